"""How a new primary is judged: by the windows since it serves, against those of the one before."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.metrics import ALL, Metric, MetricName
from mlschool_dagster.promotion.config import PromotionConfig
from mlschool_dagster.promotion.evidence import Finding, Health, Verdict, e_value

METRICS = (MetricName.REALISED_ACCURACY, MetricName.ESTIMATED_ACCURACY)
"""What a probation rests on."""


@dataclass(frozen=True, slots=True)
class _Term:
    """What the windows of one version told: realised and estimated accuracy, with a value each."""

    version: str
    realised: tuple[Metric, ...]
    estimated: tuple[Metric, ...]

    @classmethod
    def of(cls, version: str, metrics: Sequence[Metric]) -> "_Term":
        own = [m for m in metrics if (m.version, m.segment, m.column) == (version, ALL, ALL)]
        told = [m for m in own if m.value is not None]
        realised, estimated = (tuple(m for m in told if m.name is name) for name in METRICS)
        return cls(version, realised, estimated)

    @property
    def windows(self) -> int:
        """How many windows tell of the version."""
        return len({metric.window for metric in (*self.realised, *self.estimated)})

    @property
    def labelled(self) -> int:
        """How many rows have a label."""
        return sum(metric.rows for metric in self.realised)

    @property
    def right(self) -> int:
        """On how many labelled rows the version was right."""
        return sum(round((metric.value or 0.0) * metric.rows) for metric in self.realised)


def judge_probation(
    metrics: Sequence[Metric],
    champion: str,
    challenger: str,
    health: Health,
    since: datetime,
    now: datetime,
    config: PromotionConfig,
) -> Verdict:
    """Whether `challenger`, the primary since `since`, does as well as `champion` did before it.

    `metrics` are those of the windows since the champion was found to be worse, so that both are
    judged in the same changed world. The labels since the promotion are held against the lower end
    of the interval of the champion's accuracy. Without any label, the new version is worse when its
    estimated accuracy lies wholly below each of the champion's in as many windows as it takes to
    confirm a degradation. Windows count when they have ended.
    """
    promoted = Window.of(since)
    before = _Term.of(champion, [m for m in metrics if m.window <= promoted])
    after = _Term.of(
        challenger, [m for m in metrics if promoted <= m.window and m.window.end <= now]
    )
    told = f"{after.windows} of {config.probation_windows} windows since the promotion"
    complete = after.windows >= config.probation_windows
    finding, reason = next(
        _objections(before, after, health, config),
        (Finding.GOOD, f"Nothing speaks against version {challenger} in {told}.")
        if complete
        else (Finding.OPEN, f"Version {challenger} is on probation: {told} tell of it."),
    )
    return Verdict(finding, reason, {**_figures(before, after), **health.figures})


def _objections(
    before: _Term, after: _Term, health: Health, config: PromotionConfig
) -> Iterator[tuple[Finding, str]]:
    proof = 1 / config.alpha
    if health.evidence(config.maximum_error_share) >= proof:
        yield Finding.BAD, health.sentence
    if _worse(before, after) >= proof:
        yield (
            Finding.BAD,
            f"Version {after.version} was right on {after.right} of {after.labelled} labelled rows,"
            f" version {before.version} before it on {before.right} of {before.labelled}: it is "
            "worse.",
        )
    doubtful = _below(before, after)
    if not after.labelled and doubtful >= config.confirmations:
        yield (
            Finding.BAD,
            f"The estimated accuracy of version {after.version} lies below that of version "
            f"{before.version} before it in {doubtful} windows.",
        )


def _worse(before: _Term, after: _Term) -> float:
    """The e-value against being as accurate as the lower end of the interval before; 0 if none."""
    from mlschool_dagster.monitoring.statistics import wilson_interval

    standard, _ = wilson_interval(before.right, before.labelled)
    if not standard:
        return 0.0
    wrong = after.labelled - after.right
    return e_value({0.0: after.right, 1.0: wrong}, 1 - standard, lowest=0.0)


def _below(before: _Term, after: _Term) -> int:
    """In how many windows the whole interval lies below each of those before, if there is one."""
    lowers = [metric.lower for metric in before.estimated if metric.lower is not None]
    if not lowers:
        return 0
    return sum(m.upper is not None and m.upper < min(lowers) for m in after.estimated)


def _figures(before: _Term, after: _Term) -> dict[str, float]:
    figures = {
        "windows": float(after.windows),
        "labelled": float(after.labelled),
        "labelled_before": float(before.labelled),
        "e_value_worse": _worse(before, after),
    }
    for name, term in (("accuracy", after), ("accuracy_before", before)):
        if term.labelled:
            figures[name] = term.right / term.labelled
    return figures
