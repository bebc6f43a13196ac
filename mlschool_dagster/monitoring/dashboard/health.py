"""Health summary: the status of each section by recorded verdicts, since when, and what to do.

The page judges nothing itself. A verdict is the recorded outcome of an asset check, or the
``finding`` of a metric that no check records by window.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dataset.spec import TOGETHER
from mlschool_dagster.monitoring.dashboard.data import (
    MINIMUM_ROWS,
    DashboardData,
    overall,
    worst_first,
)
from mlschool_dagster.monitoring.metrics import ALL, Metric, MetricName

NAMED = 3
"""Most columns that a sentence names."""
STRIP_CELLS = 48
"""Most cells of a status strip; each shows the worst status of equally many windows."""


class Status(StrEnum):
    """The status of a section, the worst first."""

    CRITICAL = "critical"
    WARNING = "warning"
    HEALTHY = "healthy"
    UNKNOWN = "no data"


SHORTFALL = (MetricName.ESTIMATE_OF_LABELLED, MetricName.CROSS_VALIDATED_ACCURACY)
"""Findings where the measured accuracy is below them beyond chance; otherwise they say nothing."""


RULES: dict[str, tuple[tuple[Status, tuple[str, ...]], ...]] = {
    "accuracy": (
        (Status.CRITICAL, ("accuracy",)),
        (Status.CRITICAL, ("estimated_accuracy",)),
        (Status.WARNING, SHORTFALL),
        (Status.WARNING, ("estimates_hold",)),
    ),
    "drift": ((Status.CRITICAL, ("no_confirmed_drift",)), (Status.WARNING, ("no_drift",))),
    "traffic": ((Status.CRITICAL, (MetricName.ROWS, "traffic_is_fresh")),),
    "quality": ((Status.CRITICAL, ("data_quality",)),),
    "segments": ((Status.WARNING, ("segments", "fairness")),),
    "labels": ((Status.WARNING, ("known_labels",)),),
    "serving": (),
}
"""By section: a status, and the verdicts (names of checks, or metrics) of which any means it.

The first of a section's rules that applies is its problem; the template says, by the first of the
verdicts, what that is and what to do.
"""
REPORTS = {
    "accuracy": "performance_report",
    "drift": "drift_report",
    "quality": "data_quality_report",
    "segments": "performance_report",
}
"""The report that has the details of a section."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section of the page: its question, and the answer as a value and in sentences.

    If something is wrong, ``problem`` names the verdict, ``since`` (UTC) says since when, and
    ``report`` is the path of the report to read. ``strip`` is the status over time.
    """

    key: str
    question: str
    value: str
    text: str
    status: Status
    strip: tuple[Status, ...]
    problem: str = ""
    since: datetime | None = None
    report: str = ""


@dataclass(frozen=True, slots=True)
class HealthSummary:
    """The worst status of all sections, since when (UTC), and the sections."""

    status: Status
    since: datetime | None
    sections: tuple[Section, ...]

    def _with(self, status: Status) -> list[Section]:
        return [section for section in self.sections if section.status is status]

    @property
    def problems(self) -> list[Section]:
        """The sections in which something is wrong, the worst first."""
        return [*self._with(Status.CRITICAL), *self._with(Status.WARNING)]

    @property
    def unknown(self) -> list[Section]:
        """The sections without a verdict."""
        return self._with(Status.UNKNOWN)


def health_summary(data: DashboardData) -> HealthSummary:
    """The health of the model by the recorded verdicts."""
    sections = tuple(_section(data, key) for key in _SECTIONS)
    worst = _worst(section.status for section in sections)
    if worst is Status.HEALTHY:
        return HealthSummary(worst, _healthy_since(data), sections)
    begun = [s.since for s in sections if s.status is worst and s.since is not None]
    return HealthSummary(worst, min(begun, default=None), sections)


def _section(data: DashboardData, key: str) -> Section:
    question, describe, lacking = _SECTIONS[key]
    value, text = describe(data) or ("none yet", lacking)
    history = _history(data, key)
    status = Status.HEALTHY if history or (key == "serving" and data.periods) else Status.UNKNOWN
    section = Section(key, question, value, text, status, _strip(data, history))
    if key == "serving" and data.periods and data.periods[-1].until is not None:
        since = data.periods[-1].until
        return replace(section, status=Status.CRITICAL, problem="nothing serves", since=since)
    for status, verdicts in RULES[key]:
        failing = [metrics for verdict in verdicts if (metrics := _failing(data, verdict))]
        if failing:
            since = min(metrics[0].window.start for metrics in failing)
            newest = max(metrics[-1].window for metrics in failing)
            report = f"windows/{newest.folder}/{REPORTS[key]}.html" if key in REPORTS else ""
            wrong = replace(section, problem=verdicts[0], since=since, report=report)
            return replace(wrong, status=status)
    return section


def _verdicts(data: DashboardData, verdict: str) -> list[Metric]:
    """The recorded verdicts in order of windows, without undecided ones."""
    if isinstance(verdict, MetricName):
        series = data.series(verdict)
    else:
        series = data.series(MetricName.CHECK, verdict)
    decided = [metric for metric in series if metric.value is not None]
    if verdict in SHORTFALL:
        accuracy = data.series(MetricName.REALISED_ACCURACY)
        measured = {metric.window for metric in accuracy if metric.value is not None}
        return [metric for metric in decided if metric.window in measured]
    return decided


def _failing(data: DashboardData, verdict: str) -> list[Metric]:
    """The verdicts at the end of the series that are findings without a break."""
    verdicts = _verdicts(data, verdict)
    passed = [index for index, metric in enumerate(verdicts, 1) if not metric.finding]
    return verdicts[passed[-1] if passed else 0 :]


def _history(data: DashboardData, key: str) -> dict[Window, Status]:
    """The status of each window with a verdict."""
    history: dict[Window, Status] = {}
    for status, verdicts in RULES[key]:
        for verdict in verdicts:
            for metric in _verdicts(data, verdict):
                if metric.finding or verdict not in SHORTFALL:
                    now = status if metric.finding else Status.HEALTHY
                    history[metric.window] = _worst((now, history.get(metric.window, now)))
    return history


def _strip(data: DashboardData, history: dict[Window, Status]) -> tuple[Status, ...]:
    if not history:
        return ()
    size = math.ceil(len(data.windows) / STRIP_CELLS)
    statuses = [history.get(window, Status.UNKNOWN) for window in data.windows]
    return tuple(_worst(statuses[i : i + size]) for i in range(0, len(statuses), size))


def _healthy_since(data: DashboardData) -> datetime | None:
    """The end of the newest window with a problem, or the start of the first window."""
    histories = [_history(data, key).items() for key in RULES]
    problems = [w.end for windows in histories for w, s in windows if s is not Status.HEALTHY]
    return max(problems, default=data.windows[0].start if data.windows else None)


def _worst(statuses: Iterable[Status]) -> Status:
    return min(statuses, key=list(Status).index)


Description = tuple[str, str] | None
"""The value and the sentences of a section, or None without data."""


def _accuracy(data: DashboardData) -> Description:
    sources = {
        "Measured by labels": MetricName.REALISED_ACCURACY,
        "Promised by the confidence of the same rows": MetricName.ESTIMATE_OF_LABELLED,
        "Promised by cross-validation": MetricName.CROSS_VALIDATED_ACCURACY,
        "Estimated without labels": MetricName.ESTIMATED_ACCURACY,
    }
    known = {text: m for text, name in sources.items() if (m := data.newest(name)) is not None}
    sentences = []
    for source, metric in known.items():
        where = f" in {metric.window.key}" if metric.name not in SHORTFALL else ""
        sentences.append(f"{source}: {_interval(metric)}{where}.")
    value = next((metric.value for metric in known.values()), None)
    return (percent(value), " ".join(sentences)) if known else None


def _drift(data: DashboardData) -> Description:
    effects = data.by_column(MetricName.DRIFT_EFFECT)
    newest = max((series[-1].window for series in effects.values()), default=None)
    if newest is None:
        return None
    drifted = _findings(data, MetricName.DRIFT_EFFECT, newest)
    text = f"{_named(drifted) if drifted else 'No column'} drifted in {newest.key}."
    evidence = data.newest(MetricName.DRIFT_EVIDENCE)
    if evidence is None or not evidence.finding:
        return _named(drifted, 1) if drifted else "no drift", text
    confirmed = _findings(data, MetricName.DRIFT_EVIDENCE, evidence.window)
    return _named(confirmed, 1), f"Confirmed by the evidence so far: {_named(confirmed)}. {text}"


def _traffic(data: DashboardData) -> Description:
    rows, refused = data.newest(MetricName.ROWS), data.newest(MetricName.REFUSED_SHARE)
    if rows is None:
        return None
    value = counted(round(rows.value or 0), "row")
    text = f"{value} in {rows.window.key}"
    if rows.lower is not None and rows.upper is not None:
        text += f"; {rows.lower:,.0f} to {rows.upper:,.0f} are expected"
    if refused is not None:
        text += f"; {percent(refused.value)} of the requests of {refused.window.key} were refused"
    return value, f"{text}."


def _quality(data: DashboardData) -> Description:
    faults = data.newest(MetricName.QUALITY_FINDINGS)
    if faults is None:
        return None
    value = counted(round(faults.value or 0), "fault")
    text = f"{value} in the {counted(faults.rows, 'row')} of {faults.window.key}."
    return value, text[0].upper() + text[1:]


def _segments(data: DashboardData) -> Description:
    ranked, everyone = worst_first(data), overall(data)
    if not ranked or everyone is None:
        return None
    worst = ranked[0]
    return worst.name, (
        f"{worst.name} has the most wrong predictions: {percent(worst.share)} of "
        f"{counted(worst.rows, 'labelled row')}, against {percent(everyone.share)} of all."
    )


def _labels(data: DashboardData) -> Description:
    labelled = [metric for metric in data.series(MetricName.LABEL_COVERAGE) if metric.value]
    delay = data.newest(MetricName.LABEL_DELAY)
    if not labelled:
        return None
    text = f"{percent(labelled[-1].value)} of {labelled[-1].window.key} is labelled"
    if delay is not None and delay.value is not None:
        is_short = delay.value < 1
        late = f"{60 * delay.value:.0f} minutes" if is_short else f"{delay.value:,.1f} hours"
        text += f"; the median label came {late} after its prediction"
    return percent(labelled[-1].value), f"{text}."


def _serving(data: DashboardData) -> Description:
    if not data.periods:
        return None
    period = data.periods[-1]
    if period.until is not None:
        return "nothing", f"The last version, {period.version}, ended {minute(period.until)}."
    value = f"version {period.version}"
    return value, f"Version {period.version} serves since {minute(period.since)}."


_SECTIONS: dict[str, tuple[str, Callable[[DashboardData], Description], str]] = {
    "accuracy": ("Is the model right?", _accuracy, "No window has been judged yet."),
    "drift": ("Has the data changed?", _drift, "No window has been compared yet."),
    "traffic": ("Does traffic arrive as usual?", _traffic, "No traffic has been counted yet."),
    "quality": ("Are the rows in order?", _quality, "No rows have been examined yet."),
    "segments": (
        "Is any segment served worse?",
        _segments,
        f"No segment has {MINIMUM_ROWS} labelled rows yet.",
    ),
    "labels": ("Do labels arrive?", _labels, "No label has arrived yet."),
    "serving": ("What serves?", _serving, "No version has been deployed yet."),
}


def counted(number: int, thing: str) -> str:
    """A number of things, as in ``no faults``, ``1 row`` and ``1,200 rows``."""
    return f"{f'{number:,}' if number else 'no'} {thing}{'' if number == 1 else 's'}"


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage."""
    return "unknown" if share is None else f"{share:.1%}"


def minute(instant: datetime) -> str:
    """An instant (UTC) to the minute."""
    return instant.strftime("%Y-%m-%d %H:%M")


def _findings(data: DashboardData, name: MetricName, window: Window) -> list[str]:
    """The columns with a finding in `window`, the largest value first; else all together."""
    series = data.by_column(name).values()
    findings = [m for metrics in series for m in metrics if m.window == window and m.finding]
    ranked = sorted(findings, key=lambda metric: -(metric.value or 0.0))
    return [metric.column for metric in ranked if metric.column != ALL] or [TOGETHER][
        : len(findings)
    ]


def _interval(metric: Metric) -> str:
    text = percent(metric.value)
    if metric.lower is not None and metric.upper is not None:
        text += f" ({percent(metric.lower)} to {percent(metric.upper)})"
    return text


def _named(columns: Sequence[str], most: int = NAMED) -> str:
    more = len(columns) - most
    return ", ".join(columns[:most]) + (f" and {more} more" if more > 0 else "")
