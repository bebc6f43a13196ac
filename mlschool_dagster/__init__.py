"""The whole life of a machine learning model as Dagster assets.

Dependencies between its packages point one way::

    definitions -> defs -> resources
        -> {deployment, promotion, alerting, simulation, monitoring, serving}
        -> {capture, modeling} -> dataset

``local`` starts the platform's processes on one machine; it stands outside this graph. Modules
beside the packages (``errors``, ``atomic``, ``storage``, ...) are for all of them.
"""

import os

# MLflow decides as it is imported, here and in the servers that are started from here.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
