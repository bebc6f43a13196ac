"""Dagster resources: thin handles on what lives outside a run.

Belongs here: how a run reaches MLflow, the capture store, the endpoint and the platform's files.
Each resource holds locations and gives a domain object; what is done with it is decided in the
assets, how it is done in the packages below.

Does not belong here: numerics, HTTP, SQL, decisions.
"""
