"""What a window of captured traffic says of the model: quality, drift, performance.

Belongs here: flattening a window's captures, two-sample statistics, the three reports with their
verdicts, their pictures and HTML pages, and the reasoning that decides which windows need a report.

Does not belong here: reading stores, finding the reference in the registry, Dagster, and any
knowledge of a particular data set: columns, ranges and classes come from the data spec.
"""
