"""Soak: the verdict on a new primary, from its windows against those of the version before."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.metrics import ALL, Metric, MetricName
from mlschool_dagster.promotion.config import PromotionConfig
from mlschool_dagster.promotion.evidence import Conclusion, EndpointHealth, Verdict, e_value

METRICS = (MetricName.REALISED_ACCURACY, MetricName.ESTIMATED_ACCURACY)
"""The metrics that a soak reads."""


@dataclass(frozen=True, slots=True)
class _VersionAccuracy:
    """Realised and estimated accuracy of one version by window, without missing values."""

    version: str
    realised: tuple[Metric, ...]
    estimated: tuple[Metric, ...]

    @classmethod
    def of(cls, version: str, metrics: Sequence[Metric]) -> "_VersionAccuracy":
        own = [m for m in metrics if (m.version, m.segment, m.column) == (version, ALL, ALL)]
        known = [m for m in own if m.value is not None]
        realised, estimated = (tuple(m for m in known if m.name is name) for name in METRICS)
        return cls(version, realised, estimated)

    @property
    def windows(self) -> int:
        """Number of windows with a value for the version."""
        return len({metric.window for metric in (*self.realised, *self.estimated)})

    @property
    def labelled(self) -> int:
        """Number of labelled rows."""
        return sum(metric.rows for metric in self.realised)

    @property
    def right(self) -> int:
        """Number of labelled rows on which the version was right."""
        return sum(round((metric.value or 0.0) * metric.rows) for metric in self.realised)


def judge_soak(
    metrics: Sequence[Metric],
    champion: str,
    challenger: str,
    health: EndpointHealth,
    since: datetime,
    now: datetime,
    config: PromotionConfig,
) -> Verdict:
    """Whether `challenger`, the primary since `since`, does as well as `champion` did before it.

    `metrics` are those of the windows since the champion's degradation, so that both versions are
    judged on the same changed traffic. The labels since the promotion are tested against the lower
    end of the interval of the champion's accuracy. Without any label, the new version has failed
    when its interval of estimated accuracy lies wholly below each of the champion's in
    ``confirmations`` windows. Only windows that have ended count.
    """
    promoted = Window.of(since)
    before = _VersionAccuracy.of(champion, [m for m in metrics if m.window <= promoted])
    after = _VersionAccuracy.of(
        challenger, [m for m in metrics if promoted <= m.window and m.window.end <= now]
    )
    progress = f"{after.windows} of {config.soak_windows} windows since the promotion"
    complete = after.windows >= config.soak_windows
    conclusion, reason = next(
        _objections(before, after, health, config),
        (Conclusion.PASSED, f"Nothing speaks against version {challenger} in {progress}.")
        if complete
        else (Conclusion.UNDECIDED, f"Version {challenger} is soaking: {progress} have a verdict."),
    )
    return Verdict(conclusion, reason, {**_figures(before, after), **health.figures})


def _objections(
    before: _VersionAccuracy,
    after: _VersionAccuracy,
    health: EndpointHealth,
    config: PromotionConfig,
) -> Iterator[tuple[Conclusion, str]]:
    proof = 1 / config.alpha
    if health.evidence(config.maximum_error_share) >= proof:
        yield Conclusion.FAILED, health.sentence
    if _worse(before, after) >= proof:
        yield (
            Conclusion.FAILED,
            f"Version {after.version} was right on {after.right} of {after.labelled} labelled rows,"
            f" version {before.version} before it on {before.right} of {before.labelled}: it is "
            "worse.",
        )
    doubtful = _below(before, after)
    if not after.labelled and doubtful >= config.confirmations:
        yield (
            Conclusion.FAILED,
            f"The estimated accuracy of version {after.version} lies below that of version "
            f"{before.version} before it in {doubtful} windows.",
        )


def _worse(before: _VersionAccuracy, after: _VersionAccuracy) -> float:
    """The e-value against an accuracy of at least the lower end of the interval before, or 0."""
    from mlschool_dagster.monitoring.statistics import wilson_interval

    lower, _ = wilson_interval(before.right, before.labelled)
    if not lower:
        return 0.0
    wrong = after.labelled - after.right
    return e_value({0.0: after.right, 1.0: wrong}, 1 - lower, lowest=0.0)


def _below(before: _VersionAccuracy, after: _VersionAccuracy) -> int:
    """Number of windows whose interval lies wholly below each interval before."""
    lowers = [metric.lower for metric in before.estimated if metric.lower is not None]
    if not lowers:
        return 0
    return sum(m.upper is not None and m.upper < min(lowers) for m in after.estimated)


def _figures(before: _VersionAccuracy, after: _VersionAccuracy) -> dict[str, float]:
    figures = {
        "windows": float(after.windows),
        "labelled": float(after.labelled),
        "labelled_before": float(before.labelled),
        "e_value_worse": _worse(before, after),
    }
    for name, accuracy in (("accuracy", after), ("accuracy_before", before)):
        if accuracy.labelled:
            figures[name] = accuracy.right / accuracy.labelled
    return figures
