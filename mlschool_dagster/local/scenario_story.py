"""What a scenario is: a story told hour by hour, and what the platform is to make of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlschool_dagster.monitoring.metrics import ALL, MetricName
from mlschool_dagster.promotion.rollout import Step
from mlschool_dagster.simulation.config import Drift
from mlschool_dagster.simulation.labeller import Labeller


@dataclass(frozen=True, slots=True)
class Alert:
    """A sentence that people are told: it begins with ``subject`` and has ``news`` of it."""

    subject: str
    news: str

    def __str__(self) -> str:
        return f"alert: {self.subject} {self.news}"

    def is_told_by(self, sentence: str) -> bool:
        """Whether `sentence` is this alert."""
        return sentence.startswith(self.subject) and self.news in sentence


Happening = MetricName | Step | Alert
"""What the platform can conclude (a finding of a metric), do (a step of a rollout), or tell."""

DRIFTED = "*"
"""The column that the story lets drift, whatever it is called in this data set."""

HONEST = (Labeller("labeller", quality=1.0),)


@dataclass(frozen=True, slots=True)
class Hour:
    """One window of traffic: ``rows`` requests, what is different about them, and who labels them.

    ``share`` and ``strength`` belong to ``drift``, as in `TrafficConfig`. The next hour comes when
    the platform has done all that it has to do about this one, unless it ``passes_by``.
    """

    rows: int = 300
    drift: Drift = Drift.NONE
    share: float | None = None
    strength: float | None = None
    labellers: Sequence[Labeller] = HONEST
    passes_by: bool = False


@dataclass(frozen=True, slots=True)
class Expected:
    """That something happens within so many windows from the change on; None: it never happens.

    A finding is one about ``column``, or about all columns together; nothing else has a column.
    """

    what: Happening
    within: int | None
    column: str = ALL


@dataclass(frozen=True, slots=True)
class Story:
    """What the clients and the labellers do, and what is to come of it.

    ``quiet`` hours without any difference come first; ``changed`` are those from the change on.
    Labels come ``delay`` windows after the traffic (None: never). ``is_replaced`` says whether
    another version is to serve in the end. What is expected must not happen in the quiet hours.
    """

    tells: str
    changed: Sequence[Hour]
    expected: Sequence[Expected]
    quiet: Sequence[Hour] = (Hour(passes_by=True), Hour())
    delay: int | None = 0
    is_replaced: bool = False

    @property
    def hours(self) -> list[Hour]:
        """All windows in order."""
        return [*self.quiet, *self.changed]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a story.

    ``first`` says in which hour (from 0) each finding, by its column, and each step was first
    known; ``told`` holds the sentences of all alerts, each behind its hour; ``versions`` says which
    version was the primary after each hour that was waited for, from the last quiet one on;
    ``unanswered`` counts the requests that were neither answered nor refused for a reason.
    """

    first: Mapping[tuple[str, str], int]
    told: Sequence[tuple[int, str]]
    versions: Sequence[str]
    requests: int
    unanswered: int

    def hour_of(self, what: Happening, column: str) -> int | None:
        """The hour in which it first happened; None if it did not."""
        if isinstance(what, Alert):
            return next((hour for hour, sentence in self.told if what.is_told_by(sentence)), None)
        return self.first.get((what, column))


@dataclass(frozen=True, slots=True)
class Judged:
    """An expectation beside what happened."""

    expectation: str
    happened: str
    holds: bool


def judge(story: Story, outcome: Outcome, drifted: str) -> list[Judged]:
    """Each expectation of `story`; `drifted` is the column that the story lets drift."""
    judged = [_judged(story, expected, outcome, drifted) for expected in story.expected]
    replaced = outcome.versions[-1] != outcome.versions[0]
    return [
        *judged,
        Judged(
            "another version serves" if story.is_replaced else "the same version serves",
            f"version {outcome.versions[0]}, in the end {outcome.versions[-1]}",
            replaced == story.is_replaced,
        ),
        Judged(
            "every request is answered",
            f"{outcome.requests - outcome.unanswered} of {outcome.requests}",
            not outcome.unanswered,
        ),
    ]


def _judged(story: Story, expected: Expected, outcome: Outcome, drifted: str) -> Judged:
    column = drifted if expected.column == DRIFTED else expected.column
    what = f"{expected.what}{f' of {column}' if column else ''}"
    hour = outcome.hour_of(expected.what, column)
    change = len(story.quiet)
    if hour is None:
        return Judged(_told(what, expected), "did not happen", expected.within is None)
    if hour < change:
        return Judged(_told(what, expected), f"before the change, in window {hour + 1}", False)
    took = hour - change + 1
    return Judged(
        _told(what, expected),
        f"in window {took} of the change",
        expected.within is not None and took <= expected.within,
    )


def _told(what: str, expected: Expected) -> str:
    if expected.within is None:
        return f"{what}: never"
    return f"{what}: within {expected.within} window{'s' if expected.within > 1 else ''}"
