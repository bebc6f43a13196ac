"""When to retrain: from what monitoring found in the windows since the champion serves.

Three signals justify it: drift confirmed over windows, and estimated or realised accuracy below its
threshold. A breach of quality does not, because training on the output of a dead sensor mends
nothing: it is told, and as long as a window has one, nothing else that was found in that window
counts either, since a dead sensor looks like drift and lowers the accuracy. The evidence for drift
is gathered over windows, and remains for a while when what caused it is over, a dead sensor for
one: so a window counts as drifted only if it has itself something to say for it.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.metrics import ALL, Metric, MetricName
from mlschool_dagster.promotion.config import BUDGET_PERIOD, PromotionConfig
from mlschool_dagster.promotion.episode import Episode, Step

SIGNALS = (
    MetricName.DRIFT_EVIDENCE,
    MetricName.ESTIMATED_ACCURACY,
    MetricName.REALISED_ACCURACY,
)
METRICS = (*SIGNALS, MetricName.DRIFT_E_VALUE, MetricName.QUALITY_FINDINGS)
"""What the policy reads."""


@dataclass(frozen=True, slots=True)
class Degradation:
    """A signal, and the windows in which it was found, in order."""

    signal: MetricName
    windows: tuple[Window, ...]

    @property
    def sentence(self) -> str:
        """What was found where."""
        found = ", ".join(window.key for window in self.windows)
        return f"{self.signal.replace('_', ' ')} in {found}"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to retrain, why or why not in a sentence, and what that rests on."""

    retrain: bool
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)


def decide(
    metrics: Sequence[Metric],
    champion: str,
    told: Sequence[Episode],
    now: datetime,
    config: PromotionConfig,
) -> Decision:
    """Whether the champion is to be challenged at `now`.

    `metrics` are those named by `METRICS` of the windows in which only `champion` was the primary;
    `told` are all episodes so far, none of them open.
    """
    breached = {m.window for m in metrics if m.name is MetricName.QUALITY_FINDINGS and m.finding}
    sound = [m for m in metrics if m.window not in breached and _is_of(m, champion)]
    learnt = _learnt(champion, told)
    speaking = {m.window for m in metrics if _speaks_for_drift(m, champion, learnt)}
    confirmed = [m for m in metrics if m.name is MetricName.DRIFT_EVIDENCE and m.finding]
    speaking &= {m.window for m in confirmed if m.column not in learnt}
    suspected = _degradations(sound, speaking, config)
    found = [signal for signal in suspected if len(signal.windows) >= config.confirmations]
    if not found:
        return Decision(False, _no_degradation(suspected, breached, learnt, config))
    reason = "; ".join(degradation.sentence for degradation in found)
    labels = sum(m.rows for m in sound if m.name is MetricName.REALISED_ACCURACY)
    obstacle = _too_soon(told, now, config) or _unlabelled(labels, config)
    if obstacle:
        return Decision(False, f"Degradation is confirmed ({reason}), but {obstacle}")
    windows = sorted({window for degradation in found for window in degradation.windows})
    return Decision(
        True,
        f"Degradation is confirmed: {reason}.",
        {
            "champion": champion,
            "signals": [degradation.signal.value for degradation in found],
            "windows": [window.key for window in windows],
            "drifted": sorted({m.column for m in confirmed if m.window in windows}),
            "labelled": labels,
        },
    )


def _is_of(metric: Metric, champion: str) -> bool:
    """Whether the metric is about all of the champion's traffic; drift has no version."""
    version = ALL if metric.name is MetricName.DRIFT_EVIDENCE else champion
    return (metric.column, metric.segment, metric.version) == (ALL, ALL, version)


def _learnt(champion: str, told: Sequence[Episode]) -> set[str]:
    """The columns whose drift the champion, or one that it came from, was trained for."""
    promoted = {e.challenger: e for e in told if e.entry(Step.PROMOTED)}
    columns: set[str] = set()
    while champion in promoted:
        episode = promoted.pop(champion)
        columns.update(episode.entries[0].details.get("drifted", ()))
        champion = episode.champion
    return columns


def _speaks_for_drift(metric: Metric, champion: str, learnt: Set[str]) -> bool:
    """Whether it is an e-value of the champion's rows, of any column but those, above 1."""
    if metric.name is not MetricName.DRIFT_E_VALUE or metric.version != champion:
        return False
    return metric.column not in learnt and metric.value is not None and metric.value > 1


def _degradations(
    metrics: Sequence[Metric], speaking: Set[Window], config: PromotionConfig
) -> list[Degradation]:
    """The signals found in recent windows; `speaking` are those with drift that counts."""
    found = []
    for signal in SIGNALS:
        judged = [m for m in metrics if m.name is signal and m.value is not None]
        recent = sorted(judged, key=lambda m: m.window)[-config.horizon :]
        windows = tuple(metric.window for metric in recent if metric.finding)
        if signal is MetricName.DRIFT_EVIDENCE:
            windows = tuple(window for window in windows if window in speaking)
        if windows:
            found.append(Degradation(signal, windows))
    return found


def _no_degradation(
    suspected: Sequence[Degradation],
    breached: Set[Window],
    learnt: Set[str],
    config: PromotionConfig,
) -> str:
    told = "No degradation is confirmed."
    if suspected:
        signs = "; ".join(signal.sentence for signal in suspected)
        told = (
            f"No degradation is confirmed yet ({signs}): it takes {config.confirmations} windows."
        )
    if breached:
        told += (
            f" Window {max(breached).key} has a breach of quality and does not count; mend the "
            "source of the data, which no training can."
        )
    columns = ", ".join(sorted(learnt - {ALL}))
    if columns:
        told += f" Drift of {columns} does not count: the champion was trained for it."
    return told


def _too_soon(told: Sequence[Episode], now: datetime, config: PromotionConfig) -> str:
    if not told:
        return ""
    rested = told[-1].last.at + config.cooldown
    if now < rested:
        return f"episode {told[-1].id} has just ended: it cools down until {_shown(rested)}."
    recent = [e for e in told if now - e.entries[0].at < BUDGET_PERIOD]
    if len(recent) >= config.budget:
        until = recent[-config.budget].entries[0].at + BUDGET_PERIOD
        return f"the budget of {config.budget} episodes in 7 days is used up until {_shown(until)}."
    return ""


def _unlabelled(labels: int, config: PromotionConfig) -> str:
    if labels >= config.minimum_labels:
        return ""
    return f"only {labels} captures have labels: it waits for {config.minimum_labels} of them."


def _shown(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%d %H:%M UTC")
