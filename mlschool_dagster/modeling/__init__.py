"""Everything about models that needs no running platform.

Belongs here: features, training, evaluation, and the packaging and registration of a version. This
is the only package that knows Keras.

Does not belong here: Dagster, HTTP, captures, drift, and what a data set is (`dataset`).
"""
