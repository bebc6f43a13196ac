"""Everything about data and models that needs no running platform.

Belongs here: the data spec, reading and checking data, features, the network, training, evaluation,
and the packaging of a registered version. This is the only room that knows Keras.

Does not belong here: Dagster, HTTP, captures, drift.
"""
