"""The whole life of a machine learning model as Dagster assets.

The rooms of this package, and the one direction in which they may depend on each other::

    definitions -> automation -> assets -> resources
        -> {deployment, serving, monitoring, simulation} -> {capture, modeling}

``local`` starts the platform's processes on one machine; it stands outside the package's graph.
``errors``, ``atomic`` and ``settings`` belong to no room; all may import the first
three.
"""

import os

# MLflow decides as it is imported, here and in the servers that are started from here.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
