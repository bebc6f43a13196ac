"""Decide whether to retrain, from the metrics of the windows since the champion serves.

Three signals justify retraining: drift confirmed over windows, and estimated or realised accuracy
below its threshold. Ignore windows with a data-quality failure: a broken sensor looks like drift
and lowers the accuracy, and retraining on its output does not help. The evidence for drift
accumulates over windows and outlasts its cause: so a window counts as drifted only if it adds
evidence of its own (an e-value above 1).
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.metrics import ALL, Metric, MetricName
from mlschool_dagster.promotion.config import BUDGET_PERIOD, PromotionConfig
from mlschool_dagster.promotion.rollout import Rollout, Step

SIGNALS = (
    MetricName.DRIFT_EVIDENCE,
    MetricName.ESTIMATED_ACCURACY,
    MetricName.REALISED_ACCURACY,
)
METRICS = (*SIGNALS, MetricName.DRIFT_E_VALUE, MetricName.QUALITY_FINDINGS)
"""The metrics that the policy reads."""


@dataclass(frozen=True, slots=True)
class Degradation:
    """A signal of degradation, and the windows in which it occurred, in order."""

    signal: MetricName
    windows: tuple[Window, ...]

    @property
    def sentence(self) -> str:
        """The signal and its windows, in words."""
        windows = ", ".join(window.key for window in self.windows)
        return f"{self.signal.replace('_', ' ')} in {windows}"


@dataclass(frozen=True, slots=True)
class RetrainingDecision:
    """Whether to retrain, the reason in a sentence, and the figures behind it."""

    retrain: bool
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)


def decide_retraining(
    metrics: Sequence[Metric],
    champion: str,
    past: Sequence[Rollout],
    now: datetime,
    config: PromotionConfig,
) -> RetrainingDecision:
    """Whether to train a challenger at `now`.

    `metrics` are those named by `METRICS` of the windows in which only `champion` was the primary;
    `past` are all rollouts so far, none of them open.
    """
    failed_quality = {
        m.window for m in metrics if m.name is MetricName.QUALITY_FINDINGS and m.finding
    }
    sound = [m for m in metrics if m.window not in failed_quality and _is_of(m, champion)]
    trained_for = _trained_for(champion, past)
    drifted = {m.window for m in metrics if _adds_drift_evidence(m, champion, trained_for)}
    confirmed = [m for m in metrics if m.name is MetricName.DRIFT_EVIDENCE and m.finding]
    drifted &= {m.window for m in confirmed if m.column not in trained_for}
    suspected = _degradations(sound, drifted, config)
    confirmed_signals = [
        signal for signal in suspected if len(signal.windows) >= config.confirmations
    ]
    if not confirmed_signals:
        return RetrainingDecision(
            False, _no_degradation(suspected, failed_quality, trained_for, config)
        )
    reason = "; ".join(degradation.sentence for degradation in confirmed_signals)
    labels = sum(m.rows for m in sound if m.name is MetricName.REALISED_ACCURACY)
    obstacle = _too_soon(past, now, config) or _unlabelled(labels, config)
    if obstacle:
        return RetrainingDecision(False, f"Degradation is confirmed ({reason}), but {obstacle}")
    windows = sorted(
        {window for degradation in confirmed_signals for window in degradation.windows}
    )
    return RetrainingDecision(
        True,
        f"Degradation is confirmed: {reason}.",
        {
            "champion": champion,
            "signals": [degradation.signal.value for degradation in confirmed_signals],
            "windows": [window.key for window in windows],
            "drifted": sorted({m.column for m in confirmed if m.window in windows}),
            "labelled": labels,
        },
    )


def _is_of(metric: Metric, champion: str) -> bool:
    """Whether the metric is about all of the champion's traffic; drift has no version."""
    version = ALL if metric.name is MetricName.DRIFT_EVIDENCE else champion
    return (metric.column, metric.segment, metric.version) == (ALL, ALL, version)


def _trained_for(champion: str, past: Sequence[Rollout]) -> set[str]:
    """The columns with drift that the champion, or an ancestor of it, was retrained for."""
    promoted = {e.challenger: e for e in past if e.entry(Step.PROMOTED)}
    columns: set[str] = set()
    while champion in promoted:
        rollout = promoted.pop(champion)
        columns.update(rollout.entries[0].details.get("drifted", ()))
        champion = rollout.champion
    return columns


def _adds_drift_evidence(metric: Metric, champion: str, trained_for: Set[str]) -> bool:
    """Whether it is an e-value above 1 of the champion's rows, of a column not in `trained_for`."""
    if metric.name is not MetricName.DRIFT_E_VALUE or metric.version != champion:
        return False
    return metric.column not in trained_for and metric.value is not None and metric.value > 1


def _degradations(
    metrics: Sequence[Metric], drifted: Set[Window], config: PromotionConfig
) -> list[Degradation]:
    """Signals of degradation in recent windows; `drifted` are windows whose drift counts."""
    degradations = []
    for signal in SIGNALS:
        judged = [m for m in metrics if m.name is signal and m.value is not None]
        recent = sorted(judged, key=lambda m: m.window)[-config.horizon :]
        windows = tuple(metric.window for metric in recent if metric.finding)
        if signal is MetricName.DRIFT_EVIDENCE:
            windows = tuple(window for window in windows if window in drifted)
        if windows:
            degradations.append(Degradation(signal, windows))
    return degradations


def _no_degradation(
    suspected: Sequence[Degradation],
    failed_quality: Set[Window],
    trained_for: Set[str],
    config: PromotionConfig,
) -> str:
    reason = "No degradation is confirmed."
    if suspected:
        signs = "; ".join(signal.sentence for signal in suspected)
        reason = (
            f"No degradation is confirmed yet ({signs}): it takes {config.confirmations} windows."
        )
    if failed_quality:
        reason += (
            f" Window {max(failed_quality).key} has a data-quality failure and does not count; "
            "repair the source of the data."
        )
    columns = ", ".join(sorted(trained_for - {ALL}))
    if columns:
        reason += f" Drift of {columns} does not count: the champion was trained for it."
    return reason


def _too_soon(past: Sequence[Rollout], now: datetime, config: PromotionConfig) -> str:
    if not past:
        return ""
    rested = past[-1].last.at + config.cooldown
    if now < rested:
        return f"rollout {past[-1].id} has just ended: its cool-down lasts until {_shown(rested)}."
    recent = [e for e in past if now - e.entries[0].at < BUDGET_PERIOD]
    if len(recent) >= config.budget:
        until = recent[-config.budget].entries[0].at + BUDGET_PERIOD
        return f"the budget of {config.budget} rollouts in 7 days is used up until {_shown(until)}."
    return ""


def _unlabelled(labels: int, config: PromotionConfig) -> str:
    if labels >= config.minimum_labels:
        return ""
    return f"only {labels} captures have labels: it waits for {config.minimum_labels} of them."


def _shown(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%d %H:%M UTC")
