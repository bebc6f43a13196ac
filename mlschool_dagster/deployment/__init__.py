"""Where an endpoint can live, and how a version gets there.

Belongs here: the interface of a target, its implementations, starting and stopping what they need,
and the client that calls an endpoint. Every target passes the same contract suite
(``mlschool_dagster_tests/deployment``).

Does not belong here: what happens inside a server (`mlschool_dagster.serving`), choosing a version,
Dagster.
"""
