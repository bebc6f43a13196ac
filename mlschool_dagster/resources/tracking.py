"""MLflow: one run per asset, and the model registry."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import dagster as dg
from pydantic import Field

from mlschool_dagster.errors import UserError

if TYPE_CHECKING:
    from mlschool_dagster.modeling.registry import Registry
    from mlschool_dagster.resources.asset_run import AssetRun

PATIENCE_SECONDS = 3.0
"""How long a tracking server may take to say that it is there."""


class MlflowTracking(dg.ConfigurableResource):  # type: ignore[type-arg]
    """MLflow's tracking and registry, for one experiment."""

    tracking_uri: str = Field(
        description="MLflow's tracking and registry URI: sqlite:///… or the address of a server."
    )
    experiment: str = Field(description="MLflow experiment in which runs are kept.")
    artifacts: str = Field(
        description="Folder for the experiment's artifacts when no tracking server decides it."
    )

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
            yield run

    def registry(self, model_name: str) -> "Registry":
        """The versions of the registered model `model_name`.

        Raises:
            UserError: MLflow cannot be reached.
        """
        from mlschool_dagster.modeling.registry import Registry

        self.prepare()
        return Registry(self.tracking_uri, model_name)

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

    def _prepare_sqlite(self) -> None:
        database = Path(self.tracking_uri.removeprefix("sqlite:///"))
        if self._experiment_exists(database):
            return
        from filelock import FileLock
        from mlflow import MlflowClient

        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{database}.lock"):
            client = MlflowClient(self.tracking_uri, self.tracking_uri)
            if client.get_experiment_by_name(self.experiment) is None:
                client.create_experiment(self.experiment, artifact_location=self.artifacts)

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
        import httpx

        try:
            httpx.get(f"{self.tracking_uri}/health", timeout=PATIENCE_SECONDS).raise_for_status()
        except httpx.HTTPError as error:
            raise UserError(
                f"The MLflow server at {without_credentials(self.tracking_uri)} does not answer "
                f"({type(error).__name__}); start it, or point MLFLOW_TRACKING_URI elsewhere."
            ) from None

    def link(self, path: str) -> dg.MetadataValue:
        """A link to `path` in MLflow's UI, or where to find it when no server is configured."""
        if self.tracking_uri.startswith(("http:", "https:")):
            return dg.MetadataValue.url(f"{without_credentials(self.tracking_uri)}/#/{path}")
        return dg.MetadataValue.text(
            f"{path} (`mlflow server --backend-store-uri {self.tracking_uri}` shows it)"
        )


def without_credentials(uri: str) -> str:
    """`uri` without the user and password that it may carry."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
