"""Captures of requests and answers, and their ground truth.

Belongs here: the capture record, labels, hourly windows, and the stores that keep them. Every store
passes the same contract suite (``mlschool_dagster_tests/capture``).

Does not belong here: HTTP, statistics, Dagster, and any knowledge of a particular data set.
"""
