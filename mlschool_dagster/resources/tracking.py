"""MLflow: one run per asset, and the model registry."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mlschool_dagster.credentials import public_uri
from mlschool_dagster.errors import UserError
from mlschool_dagster.settings import setting

if TYPE_CHECKING:
    from mlschool_dagster.modeling.registry import Registry
    from mlschool_dagster.resources.asset_run import AssetRun

HEALTH_TIMEOUT_SECONDS = 3.0
"""Time-out of the health check of a tracking server."""

VIEW = "workflowType=machine_learning"
"""MLflow's UI opens in its mode for generative AI, which shows no models, unless it is asked."""

NOTE = "mlflow.note.content"
"""The tag whose Markdown MLflow's UI shows as the description of a run."""

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""The tag of an experiment that MLflow's UI shows in that mode by itself."""


class MlflowTracking(dg.ConfigurableResource):  # type: ignore[type-arg]
    """MLflow's tracking and registry, for one experiment."""

    tracking_uri: str = setting("tracking_uri")
    experiment: str = Field(description="MLflow experiment in which runs are kept.")
    artifacts: str = Field(
        description="Folder for the experiment's artifacts when no tracking server decides it."
    )
    dagster_url: str = setting("dagster_url")

    @contextmanager
    def asset_run(self, context: dg.AssetExecutionContext, name: str) -> "Iterator[AssetRun]":
        """An MLflow run that lives exactly as long as the block.

        It is tagged with the Dagster run and asset. It ends FINISHED, or FAILED (KILLED when
        interrupted) if the block raises, whatever the executor.

        Raises:
            UserError: MLflow cannot be reached.
        """
        from mlschool_dagster.resources.asset_run import AssetRun

        self.prepare()
        with AssetRun.open(context, self.tracking_uri, self.experiment, name) as run:
            run.set_tag(NOTE, self.origin(context.run_id, name))
            yield run

    def origin(self, run_id: str, asset: str) -> str:
        """Origin of something that a Dagster run made of `asset`, as Markdown, with links if known.

        MLflow shows it in the notes of a run and in the description of a version.
        """
        if not self.dagster_url:
            return f"Made by Dagster run `{run_id}`, asset `{asset}`."
        base = self.dagster_url.rstrip("/")
        return (
            f"Made by Dagster run [{run_id[:8]}]({base}/runs/{run_id}), "
            f"asset [{asset}]({base}/assets/{asset})."
        )

    def registry(self, model_name: str) -> "Registry":
        """The versions of the registered model `model_name`.

        Raises:
            UserError: MLflow cannot be reached.
        """
        from mlschool_dagster.modeling.registry import Registry

        self.prepare()
        return Registry(self.tracking_uri, model_name, Path(self.artifacts))

    def prepare(self) -> None:
        """Make sure that MLflow answers, its database has its tables and the experiment exists.

        A fresh SQLite file is set up by one process at a time: MLflow itself fails when several
        create its tables at once.

        Raises:
            UserError: MLflow cannot be reached.
        """
        if self.tracking_uri.startswith("sqlite:"):
            self._prepare_sqlite()
        elif self.tracking_uri.startswith(("http:", "https:")):
            self._expect_server()
        elif not self.tracking_uri.startswith("databricks"):
            self._create_experiment()

    def _prepare_sqlite(self) -> None:
        database = Path(self.tracking_uri.removeprefix("sqlite:///"))
        if self._experiment_exists(database):
            return
        from filelock import FileLock

        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{database}.lock"):
            self._create_experiment()

    def _create_experiment(self) -> None:
        """Create the experiment, since MLflow would keep its artifacts in the current folder."""
        from mlflow import MlflowClient, MlflowException

        client = MlflowClient(self.tracking_uri, self.tracking_uri)
        if client.get_experiment_by_name(self.experiment) is not None:
            return
        artifacts = Path(self.artifacts).as_uri()
        try:
            client.create_experiment(self.experiment, artifact_location=artifacts, tags=KIND)
        except MlflowException:
            # Another process may have been faster.
            if client.get_experiment_by_name(self.experiment) is None:
                raise

    def _experiment_exists(self, database: Path) -> bool:
        """Whether the last step of the set-up is done, asked without importing MLflow."""
        if not database.exists():
            return False
        with closing(sqlite3.connect(database)) as connection:
            try:
                query = "SELECT 1 FROM experiments WHERE name = ?"
                return connection.execute(query, (self.experiment,)).fetchone() is not None
            except sqlite3.OperationalError:
                return False

    def _expect_server(self) -> None:
        """Ask the server as MLflow's client does: same address, credentials and certificates."""
        from mlflow.exceptions import MlflowException
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request
        from requests import RequestException

        server = f"The MLflow server at {without_credentials(self.tracking_uri)}"
        try:
            response = http_request(
                get_default_host_creds(self.tracking_uri),
                "/api/2.0/mlflow/experiments/search",
                "GET",
                params={"max_results": 1},
                max_retries=0,
                timeout=HEALTH_TIMEOUT_SECONDS,
                raise_on_status=False,
            )
        except (MlflowException, RequestException, OSError) as error:
            # The words of the error hold the address with its password.
            cause = type(error.__cause__ or error.__context__ or error).__name__
            raise UserError(
                f"{server} does not answer ({cause}); start it, or point MLFLOW_TRACKING_URI "
                "elsewhere."
            ) from None
        status = response.status_code
        if status in (401, 403):
            raise UserError(
                f"{server} refuses access (HTTP {status}); set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
            )
        if status != 200 or not _is_document(response.content):
            raise UserError(
                f"{server} does not answer as MLflow does (HTTP {status}); set "
                "MLFLOW_TRACKING_URI to the address at which MLflow's pages are, prefix included."
            )

    def link(self, path: str) -> dg.MetadataValue:
        """A link to `path` in MLflow's UI, or where to find it when no server is configured."""
        if self.tracking_uri.startswith(("http:", "https:")):
            base = without_credentials(self.tracking_uri).rstrip("/")
            return dg.MetadataValue.url(f"{base}/#/{path}?{VIEW}")
        return dg.MetadataValue.text(
            f"{path} (`mlflow server --backend-store-uri {public_uri(self.tracking_uri)}` shows it)"
        )


def _is_document(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except ValueError:
        return False


def without_credentials(uri: str) -> str:
    """`uri` without the user and password that it may carry."""
    return public_uri(uri)
