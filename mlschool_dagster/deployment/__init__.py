"""Deployment: endpoints, the plans that they carry out, and the ledger of what they served.

Belongs here: the interface of an endpoint, its implementations, starting and stopping what they
need, and the client that calls one. Every implementation passes the same contract suite
(``mlschool_dagster_tests/deployment/test_endpoint_contract.py``).

Does not belong here: what happens inside a server (`mlschool_dagster.serving`), choosing a version,
Dagster.
"""
