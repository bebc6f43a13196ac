"""One MLflow run for one asset, on top of dagster-mlflow's tracking object.

dagster-mlflow keeps one MLflow run per Dagster run, looked up by each process and ended by a
hook. That leaves failed trainings FINISHED under the multiprocess executor, ends the run when the
topologically last step succeeds, and lets the next Dagster run in the same process log into a run
that was never ended. Kept from it: experiment and client set-up, tags, chunked parameters and the
MLflow functions as methods. Replaced: how a run begins and ends.

Imported inside functions only, because dagster-mlflow imports MLflow.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Self

import dagster as dg
from dagster_mlflow.resources import MlFlow  # noqa: TID253
from mlflow.entities import Run, RunStatus  # noqa: TID253

RUN_TAG = "dagster_run_id"
ASSET_TAG = "dagster_asset"


class AssetRun(MlFlow):  # type: ignore[misc]
    """The MLflow run of one asset; open it with `AssetRun.open`."""

    mlflow_run: Run

    @classmethod
    @contextmanager
    def open(
        cls, context: dg.AssetExecutionContext, tracking_uri: str, experiment: str, name: str
    ) -> Iterator[Self]:
        """A fresh MLflow run, ended with the block: FINISHED, FAILED or (interrupted) KILLED."""
        _end_strays(context)
        run = cls(
            SimpleNamespace(
                log=context.log,
                # Its start is how Dagster's UI calls the run.
                dagster_run=SimpleNamespace(job_name=f"{name} {context.run_id[:8]}"),
                run_id=context.run_id,
                resource_config={
                    "mlflow_tracking_uri": tracking_uri,
                    "experiment_name": experiment,
                    "extra_tags": {ASSET_TAG: name},
                },
            )
        )
        run.close_orphans(context.instance)
        status = RunStatus.FAILED
        try:
            yield run
            status = RunStatus.FINISHED
        except Exception:
            raise
        except BaseException:
            status = RunStatus.KILLED
            raise
        finally:
            run.end_run(RunStatus.to_string(status))

    def _setup(self) -> None:
        self.mlflow_run = self.start_run(run_name=self.run_name, log_system_metrics=False)
        self._set_all_tags()

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return str(self.mlflow_run.info.run_id)

    @property
    def path(self) -> str:
        """The run's place in MLflow's UI."""
        return f"experiments/{self.mlflow_run.info.experiment_id}/runs/{self.run_id}"

    def close_orphans(self, instance: dg.DagsterInstance) -> None:
        """End the runs whose process was killed before it could end them itself.

        They are recognised by a Dagster run that is over while their own status is RUNNING.
        """
        for orphan in self.tracking_client.search_runs(
            [self.experiment.experiment_id], "attributes.status = 'RUNNING'"
        ):
            dagster_run = instance.get_run_by_id(orphan.data.tags.get(RUN_TAG, ""))
            if dagster_run is not None and dagster_run.is_finished:
                self.tracking_client.set_terminated(orphan.info.run_id, "KILLED")


def _end_strays(context: dg.AssetExecutionContext) -> None:
    """End runs that other code left active in this thread, lest this asset logs into them."""
    import mlflow

    while stray := mlflow.active_run():
        context.log.warning(f"MLflow run {stray.info.run_id} was left active here; it is ended.")
        mlflow.end_run(RunStatus.to_string(RunStatus.KILLED))
