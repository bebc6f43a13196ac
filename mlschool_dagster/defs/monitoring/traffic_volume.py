"""Volume and freshness of the traffic, against a forecast learned from earlier windows."""

from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mlschool_dagster.clock import utc_now
from mlschool_dagster.defs.common import (
    OWNERS,
    PlainConfig,
    outcomes,
    picture,
    plain_errors,
    table,
    undecided,
)
from mlschool_dagster.defs.keys import LIVE_TRAFFIC, TRAFFIC_VOLUME
from mlschool_dagster.defs.monitoring.windows import GROUP
from mlschool_dagster.monitoring.thresholds import VolumeConfig
from mlschool_dagster.resources.captures import Captures
from mlschool_dagster.resources.history import History

if TYPE_CHECKING:
    from mlschool_dagster.monitoring.metrics import Metric
    from mlschool_dagster.monitoring.traffic import TrafficCheck

FRESHNESS_CHECK = "traffic_is_fresh"
TOKENS = "tokens"
EVERY = timedelta(minutes=10)
INTERVAL_SECONDS = 30
_DEFAULTS = VolumeConfig()


class VolumeSettings(PlainConfig):
    """Thresholds from which traffic counts as unusual."""

    level: float = Field(
        default=_DEFAULTS.level,
        gt=0,
        lt=0.5,
        description="How often a usual window may lie below what is expected, and how often above.",
    )
    minimum_windows: int = Field(
        default=_DEFAULTS.minimum_windows,
        ge=2,
        description="How many windows must be known before anything is expected.",
    )
    patience: float = Field(
        default=_DEFAULTS.patience,
        ge=1,
        description="How many times the longest usual silence traffic may pause.",
    )

    def volume(self) -> VolumeConfig:
        """The settings as monitoring takes them."""
        return VolumeConfig(self.level, self.minimum_windows, self.patience)


@dg.asset(
    key=TRAFFIC_VOLUME,
    deps=[LIVE_TRAFFIC],
    group_name=GROUP,
    kinds={"table", "python"},
    owners=OWNERS,
    code_version="1",
    check_specs=[
        dg.AssetCheckSpec(
            "volume_as_expected",
            asset=TRAFFIC_VOLUME,
            description="The newest finished window, and those that finished or changed since "
            "the last check, have as much traffic as is usual.",
        ),
        dg.AssetCheckSpec(
            FRESHNESS_CHECK,
            asset=TRAFFIC_VOLUME,
            description="The last capture is no longer ago than traffic usually pauses.",
        ),
    ],
)
def traffic_volume(
    context: dg.AssetExecutionContext,
    config: VolumeSettings,
    captures: Captures,
    history: History,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Compare rows per hour, and the time since the last capture, with what is usual.

    Usual is what that hour of the week or day had before. Windows without the traffic they should
    have had (outages), or in which all requests were refused, show here alone: no report is made
    of them.
    """
    from mlschool_dagster.monitoring.metric_records import check_metrics
    from mlschool_dagster.monitoring.traffic import check_traffic

    with plain_errors(), captures.open() as store, history.metrics() as metrics:
        seen = check_traffic(store, metrics, _tokens(context.instance), utc_now(), config.volume())
        freshness = _freshness_check(seen)
        if seen.windows:
            newest = list(seen.windows)[-1]
            metrics.record(newest, FRESHNESS_CHECK, check_metrics(newest, outcomes([freshness])))
    context.log.info(f"{len(seen.changed_windows)} windows are new or have changed")
    return dg.MaterializeResult(
        metadata={**_figures(seen), TOKENS: dg.MetadataValue.json(seen.tokens)},
        check_results=[_volume_check(seen), freshness],
    )


def _tokens(instance: dg.DagsterInstance) -> dict[str, str]:
    """Which captures the last check has read."""
    event = instance.get_latest_materialization_event(TRAFFIC_VOLUME)
    materialization = event.asset_materialization if event else None
    tokens = materialization.metadata[TOKENS].value if materialization else {}
    return dict(tokens)  # type: ignore[arg-type]


def _figures(seen: "TrafficCheck") -> "dict[str, dg.MetadataValue | float]":
    from mlschool_dagster.monitoring.metrics import MetricName
    from mlschool_dagster.monitoring.plots import volume_picture

    rows = [metrics[MetricName.ROWS] for metrics in seen.windows.values()]
    figures: dict[str, dg.MetadataValue | float] = {
        "windows": table(map(_row, reversed(rows))),
        "volume": picture(lambda: volume_picture(rows), "captured rows per hour"),
        "unusual_windows": float(sum(metric.finding for metric in rows)),
        "rows_this_hour": float(seen.rows_now),
    }
    if rows:
        figures["rows"] = float(rows[-1].rows)
    if seen.silence is not None:
        figures["silence_hours"] = _hours(seen.silence)
    if seen.pause is not None:
        figures["longest_pause_hours"] = _hours(seen.pause)
    return figures


def _row(rows: "Metric") -> dict[str, str | int | float | None]:
    from mlschool_dagster.monitoring.traffic import volume_verdict

    return {
        "window": rows.window.key,
        "rows": rows.rows,
        "at_least": rows.lower,
        "at_most": rows.upper,
        "verdict": volume_verdict(rows).value,
    }


def _volume_check(seen: "TrafficCheck") -> dg.AssetCheckResult:
    from mlschool_dagster.monitoring.metrics import MetricName

    if seen.findings:
        sentence = " ".join(map(_finding, seen.findings))
    elif seen.windows:
        newest = list(seen.windows.values())[-1][MetricName.ROWS]
        sentence = f"{newest.rows} rows in {newest.window.key}; {_expected(newest)}."
    else:
        sentence = "There has been no traffic yet."
    return dg.AssetCheckResult(
        check_name="volume_as_expected",
        passed=not seen.findings,
        severity=dg.AssetCheckSeverity.WARN,
        description=sentence,
        metadata={"unusual": table(map(_row, seen.findings))},
    )


def _finding(rows: "Metric") -> str:
    from mlschool_dagster.monitoring.traffic import VolumeVerdict, volume_verdict

    verdict = volume_verdict(rows)
    if verdict is VolumeVerdict.ALL_REFUSED:
        return f"Every request in {rows.window.key} was refused; see the endpoint's log."
    return f"{rows.rows} rows in {rows.window.key}, {verdict}: {_expected(rows)}."


def _expected(rows: "Metric") -> str:
    if rows.lower is None or rows.upper is None:
        return "too little is known to expect anything"
    return f"{rows.lower:.0f} to {rows.upper:.0f} are usual"


def _freshness_check(seen: "TrafficCheck") -> dg.AssetCheckResult:
    if seen.silence is None:
        sentence = "There has been no traffic yet."
    elif seen.pause is None:
        sentence = (
            f"The last capture was {_hours(seen.silence):.1f} hours ago; too little is known of "
            "usual silences."
        )
    else:
        sentence = (
            f"The last capture was {_hours(seen.silence):.1f} hours ago; up to "
            f"{_hours(seen.pause):.1f} are usual."
        )
    return dg.AssetCheckResult(
        check_name=FRESHNESS_CHECK,
        passed=seen.is_fresh,
        severity=dg.AssetCheckSeverity.ERROR,
        description=sentence,
        metadata=undecided(seen.silence is None or seen.pause is None),
    )


def _hours(duration: timedelta) -> float:
    return duration.total_seconds() / 3600


volume_job = dg.define_asset_job(
    "volume_job",
    dg.AssetSelection.assets(TRAFFIC_VOLUME),
    description="See how much traffic comes, against what usually comes.",
    # An outage is reported however many windows wait for their reports.
    tags={"stage": "monitoring", "dagster/max_runtime": 300, "dagster/priority": "1"},
)


@dg.sensor(
    job=volume_job,
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Checks the volume and freshness of the traffic every ten minutes.",
)
def traffic_volume_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """A schedule by the platform's own clock.

    Dagster's schedules know the machine's clock only, and sleep through a simulated day.
    """
    now = utc_now()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    slot = (now - (now - midnight) % EVERY).isoformat()
    if slot == context.cursor:
        return dg.SensorResult(skip_reason=dg.SkipReason("The last check is recent enough."))
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=slot)], cursor=slot)
