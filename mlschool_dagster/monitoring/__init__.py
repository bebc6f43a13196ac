"""Monitoring of a model by hourly windows of captured traffic: quality, drift, performance, volume.

Belongs here: snapshots of windows, two-sample tests, the three reports with their verdicts, plots
and pages, the history of metrics, and the reconciler that decides which windows need a report.

Does not belong here: reading stores, finding the reference in the registry, Dagster, and any
knowledge of a particular data set: columns, ranges and classes come from the data spec.
"""
