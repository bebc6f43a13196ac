"""All that is declared to Dagster: one package per area of the lineage.

Each area holds its assets, checks, jobs, sensors and schedules side by side. They are thin: they
fetch through resources, call one package below, and show the result as metadata.

Does not belong here: numerics, plots, protocols.
"""
