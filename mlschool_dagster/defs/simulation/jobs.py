"""Simulation jobs: ``traffic_job`` sends requests, ``labeling_job`` labels what was captured."""

import dagster as dg
from pydantic import Field

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.common import NETWORK_RETRIES, PlainConfig, plain_errors, table
from mlschool_dagster.defs.keys import LIVE_TRAFFIC
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.endpoint import EndpointResource
from mlschool_dagster.resources.files import PlatformFiles
from mlschool_dagster.simulation.ground_truth_log import GroundTruthLog, read_ground_truth
from mlschool_dagster.simulation.traffic import Drift, TrafficConfig

_TRAFFIC = TrafficConfig()


class TrafficSettings(PlainConfig):
    """Configuration of the simulated traffic."""

    samples: int = Field(default=_TRAFFIC.samples, description="Rows sent in all.")
    drift: Drift = Field(
        default=Drift.SHIFT,
        description="What is different about the rows: none; shift (a numeric column grows by 1 to "
        "3 standard deviations); covariate (rows from the upper tail of a column); new_category; "
        "missing (values left out); concept (same inputs, another truth).",
    )
    column: str = Field(default="", description="Column that drifts; empty: the drift chooses.")
    share: float = Field(
        default=0.0, description="Share of rows that drift; 0: the drift's own default."
    )
    batch_size: int = Field(default=_TRAFFIC.batch_size, description="Rows per request.")
    seed: int = Field(default=_TRAFFIC.seed, description="Seed: equal seed, equal rows.")
    url: str = Field(default="", description="Address of the endpoint; empty: the platform's own.")

    def traffic(self) -> TrafficConfig:
        """The settings as the simulation takes them.

        Raises:
            UserError: a value cannot be simulated.
        """
        return TrafficConfig(
            samples=self.samples,
            drift=self.drift,
            column=self.column or None,
            share=self.share or None,
            batch_size=self.batch_size,
            seed=self.seed,
        )


class LabelingSettings(PlainConfig):
    """Configuration of the simulated labellers."""

    quality: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Share of labels that are true; the others are drawn uniformly.",
    )
    seed: int = Field(default=42, description="Seed: equal seed, equal labels.")


def build_traffic_job(spec: DataSpec, data: str) -> dg.JobDefinition:
    """The job ``traffic_job``: send rows of `data` to the endpoint over HTTP."""

    @dg.op(
        description=f"Sends rows of the {spec.name} data to the endpoint, with or without drift.",
        retry_policy=NETWORK_RETRIES,
    )
    def send_traffic(
        context: dg.OpExecutionContext,
        config: TrafficSettings,
        endpoint: EndpointResource,
        files: PlatformFiles,
    ) -> None:
        from mlschool_dagster.dataset.tables import read_data
        from mlschool_dagster.deployment.client import EndpointClient
        from mlschool_dagster.simulation.traffic import simulate

        with plain_errors(), GroundTruthLog(files.ground_truth(context.run_id)) as log:
            # Another endpoint is not given our token.
            client = EndpointClient(spec.name, config.url) if config.url else endpoint.connect()
            summary = simulate(
                read_data(data, spec),
                spec,
                client.invoke,
                config.traffic(),
                context.log.info,
                log.append,
            )
        context.log_event(
            dg.AssetObservation(
                LIVE_TRAFFIC,
                metadata={
                    "sent": summary.sent,
                    "accepted": summary.accepted,
                    "refused": summary.refused,
                    "refusals": table(
                        {"reason": reason, "faults": n} for reason, n in summary.refusals.items()
                    ),
                    "drift": summary.drift,
                },
            )
        )
        context.log.info(f"{summary.accepted} of {summary.sent} rows answered; {summary.drift}")

    @dg.job(
        name="traffic_job",
        description="Simulated clients drive the endpoint over HTTP.",
        tags={"stage": "simulation"},
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        send_traffic()

    return job


def build_labeling_job(spec: DataSpec) -> dg.JobDefinition:
    """The job ``labeling_job``: label every capture that has no label yet."""

    @dg.op(description="Labels every unlabelled capture with the truth, or with a guess.")
    def label_traffic(
        context: dg.OpExecutionContext,
        config: LabelingSettings,
        captures: Captures,
        files: PlatformFiles,
    ) -> None:
        from mlschool_dagster.simulation.labeller import Labeller, label_captures

        with plain_errors(), captures.open() as store:
            labeller = Labeller(quality=config.quality)
            summary = label_captures(
                store,
                read_ground_truth(files.ground_truths),
                spec,
                [labeller],
                config.seed,
                context.log.info,
            )
        context.log_event(
            dg.AssetObservation(LIVE_TRAFFIC, metadata={"labelled": summary.labelled})
        )
        context.log.info(f"{summary.labelled} captures labelled, {summary.guessed} of them guessed")

    @dg.job(
        name="labeling_job",
        description="Simulated labellers label unlabelled captures.",
        tags={"stage": "simulation"},
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        label_traffic()

    return job
