"""Definition of a scenario: its traffic hour by hour, and the evaluation of its outcome."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlschool_dagster.monitoring.metrics import ALL, MetricName
from mlschool_dagster.promotion.rollout import Step
from mlschool_dagster.simulation.labeller import Labeller
from mlschool_dagster.simulation.traffic import Drift


@dataclass(frozen=True, slots=True)
class Alert:
    """An expected notification: it starts with ``subject`` and contains ``state``."""

    subject: str
    state: str

    def __str__(self) -> str:
        return f"alert: {self.subject} {self.state}"

    def matches(self, sentence: str) -> bool:
        """Whether the notification `sentence` is this alert."""
        return sentence.startswith(self.subject) and self.state in sentence


Event = MetricName | Step | Alert
"""An observable event: a metric's finding, a step of a rollout, or a notification."""

DRIFTED = "*"
"""Stands for the column to which the scenario's drift is applied, in any data set."""

HONEST = (Labeller("labeller", quality=1.0),)


@dataclass(frozen=True, slots=True)
class Hour:
    """One window of traffic: ``rows`` requests, their drift, and who labels them.

    ``share`` and ``strength`` belong to ``drift``, as in `TrafficConfig`. The next hour starts
    when the platform has nothing left to do for this one, or at once with ``skip_settling``.
    """

    rows: int = 300
    drift: Drift = Drift.NONE
    share: float | None = None
    strength: float | None = None
    labellers: Sequence[Labeller] = HONEST
    skip_settling: bool = False


@dataclass(frozen=True, slots=True)
class Expected:
    """An event expected ``within`` so many windows after the change; None: it must not occur.

    ``column`` applies to findings only; without it, the finding is about all columns together.
    """

    what: Event
    within: int | None
    column: str = ALL


@dataclass(frozen=True, slots=True)
class Scenario:
    """Simulated traffic and labels, and the events expected to follow.

    ``quiet`` hours without any difference come first; ``changed`` are those from the change on.
    Labels come ``delay`` windows after the traffic (None: never). ``is_replaced`` says whether
    another version must serve in the end. An expected event must not occur in the quiet hours.
    """

    description: str
    changed: Sequence[Hour]
    expected: Sequence[Expected]
    quiet: Sequence[Hour] = (Hour(skip_settling=True), Hour())
    delay: int | None = 0
    is_replaced: bool = False

    @property
    def hours(self) -> list[Hour]:
        """All windows in order."""
        return [*self.quiet, *self.changed]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Observations of one run of a scenario.

    ``first`` says in which hour (from 0) each finding, by its column, and each step was first
    observed; ``alerts`` are the notifications with their hours; ``versions`` says which
    version was the primary after each hour that was waited for, from the last quiet one on;
    ``unanswered`` counts the requests that were neither answered nor refused for a reason.
    """

    first: Mapping[tuple[str, str], int]
    alerts: Sequence[tuple[int, str]]
    versions: Sequence[str]
    requests: int
    unanswered: int

    def hour_of(self, what: Event, column: str) -> int | None:
        """The hour in which the event was first observed; None if it was not."""
        if isinstance(what, Alert):
            return next((hour for hour, sentence in self.alerts if what.matches(sentence)), None)
        return self.first.get((what, column))


@dataclass(frozen=True, slots=True)
class Verdict:
    """An expectation, what happened, and whether the expectation holds."""

    expectation: str
    happened: str
    holds: bool


def evaluate(scenario: Scenario, outcome: Outcome, drifted: str) -> list[Verdict]:
    """Compare `outcome` with the expectations; `drifted` is the column that drifted."""
    verdicts = [_verdict(scenario, expected, outcome, drifted) for expected in scenario.expected]
    replaced = outcome.versions[-1] != outcome.versions[0]
    return [
        *verdicts,
        Verdict(
            "another version serves" if scenario.is_replaced else "the same version serves",
            f"version {outcome.versions[0]}, in the end {outcome.versions[-1]}",
            replaced == scenario.is_replaced,
        ),
        Verdict(
            "every request is answered",
            f"{outcome.requests - outcome.unanswered} of {outcome.requests}",
            not outcome.unanswered,
        ),
    ]


def _verdict(scenario: Scenario, expected: Expected, outcome: Outcome, drifted: str) -> Verdict:
    column = drifted if expected.column == DRIFTED else expected.column
    what = f"{expected.what}{f' of {column}' if column else ''}"
    hour = outcome.hour_of(expected.what, column)
    change = len(scenario.quiet)
    if hour is None:
        return Verdict(_expectation(what, expected), "did not happen", expected.within is None)
    if hour < change:
        return Verdict(
            _expectation(what, expected), f"before the change, in window {hour + 1}", False
        )
    took = hour - change + 1
    return Verdict(
        _expectation(what, expected),
        f"in window {took} of the change",
        expected.within is not None and took <= expected.within,
    )


def _expectation(what: str, expected: Expected) -> str:
    if expected.within is None:
        return f"{what}: never"
    return f"{what}: within {expected.within} window{'s' if expected.within > 1 else ''}"
