"""What the page says before it draws: one question per section, answered in a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

from mlschool_dagster.monitoring.dashboard.board import Board, lasting_since, share_of_findings
from mlschool_dagster.monitoring.dashboard.segments import (
    MINIMUM_ROWS,
    Comparison,
    Segment,
    comparisons,
    overall,
    worst_first,
)
from mlschool_dagster.monitoring.metrics import Metric, MetricName

NAMED = 3
"""Most columns that a sentence names."""
RECENTLY = timedelta(days=1)


class State(StrEnum):
    """Whether somebody should look: a check failed, one may soon, none did, or nothing is known."""

    FINDING = "look here"
    DOUBT = "keep an eye on it"
    FINE = "fine"
    UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Answer:
    """A section's question and its answer: `headline` in a few words, `text` in a sentence."""

    key: str
    question: str
    headline: str
    text: str
    state: State


def answers(board: Board) -> list[Answer]:
    """The answers of all sections, in their order on the page."""
    told = [
        _accuracy(board),
        _drift(board),
        _traffic(board),
        _quality(board),
        _segments(board),
        _labels(board),
        _serving(board),
    ]
    return [_as_checked(board, answer) for answer in told]


CHECKS = {
    "accuracy": ("accuracy", "estimated_accuracy"),
    "drift": ("no_drift", "no_confirmed_drift"),
    "quality": ("data_quality",),
    "segments": ("segments", "fairness"),
    "labels": ("known_labels",),
}
"""The asset checks that each section is about. What they found in the newest window that they could
judge is the section's verdict: the page judges nothing itself."""


def _as_checked(board: Board, answer: Answer) -> Answer:
    """The answer as the checks of its section have it."""
    newest = [
        judged[-1]
        for check in CHECKS.get(answer.key, ())
        if (judged := [m for m in board.series(MetricName.CHECK, check) if m.value is not None])
    ]
    failed = [metric for metric in newest if metric.finding]
    if not failed:
        settled = newest and answer.state is State.FINDING
        return replace(answer, state=State.FINE) if settled else answer
    told = ", ".join(f"{metric.column} in {metric.window.key}" for metric in failed)
    text = f"{answer.text} Failed checks: {told}."
    headline = "a check failed" if answer.state is State.UNKNOWN else answer.headline
    return replace(answer, headline=headline, text=text, state=State.FINDING)


def counted(number: int, thing: str) -> str:
    """So many of a `thing`, which takes an s."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _accuracy(board: Board) -> Answer:
    told = [
        (word, metric)
        for word, metric in (
            ("realised", board.newest(MetricName.REALISED_ACCURACY)),
            ("estimated", board.newest(MetricName.ESTIMATED_ACCURACY)),
        )
        if metric is not None
    ]
    key, question = "accuracy", "Is the model still right?"
    if not told:
        return _unknown(key, question, "No window has been judged yet, by labels or without.")
    bad = [word for word, metric in told if metric.finding]
    word, metric = told[0]
    text = "; ".join(f"{word} accuracy {_interval(m)} in {m.window.key}" for word, m in told) + "."
    wrong, known = share_of_findings(board.series(metric.name))
    below = (
        f"By its {word} accuracy, the model was below the threshold in {wrong} of "
        f"{counted(known, 'window')}."
    )
    state = State.FINDING if bad else State.FINE
    short = _short_of_expectations(board, metric) if word == "realised" else ""
    if short and not bad:
        state = State.DOUBT
    whole = " ".join(filter(None, [_capital(text), short, below]))
    return Answer(key, question, _percent(metric.value), whole, state)


def _short_of_expectations(board: Board, realised: Metric) -> str:
    """What let expect more than the `realised` accuracy of that window, as a sentence, if any."""
    told = [
        f"{word} ({_interval(metric)})"
        for word, name in (
            ("the confidence of the same rows", MetricName.ESTIMATE_OF_LABELLED),
            ("cross-validation", MetricName.CROSS_VALIDATED_ACCURACY),
        )
        for metric in board.series(name)
        if metric.window == realised.window and metric.finding
    ]
    if not told:
        return ""
    return f"It is surely less than what {' and '.join(told)} let one expect."


def _drift(board: Board) -> Answer:
    key, question = "drift", "Has the data changed?"
    evidence = board.newest(MetricName.DRIFT_EVIDENCE)
    compared = [m.window for m in board.metrics if m.name is MetricName.DRIFT_EFFECT]
    newest = max(compared, default=None)
    if newest is None:
        return _unknown(key, question, "No window has been compared with the training data yet.")
    drifted = board.findings(MetricName.DRIFT_EFFECT, newest)
    if evidence is not None and evidence.finding:
        since = lasting_since(board.series(MetricName.DRIFT_EVIDENCE))
        confirmed = board.findings(MetricName.DRIFT_EVIDENCE, evidence.window) or drifted
        text = f"Drift is confirmed since {since.key if since else evidence.window.key}"
        text += f", in {_named(confirmed)}." if confirmed else "."
        headline = _named(confirmed, 1) if confirmed else "confirmed"
        return Answer(key, question, headline, text, State.FINDING)
    if drifted:
        text = f"The newest window, {newest.key}, differs in {_named(drifted)}; "
        text += "one window alone confirms nothing."
        return Answer(key, question, _named(drifted, 1), text, State.FINDING)
    text = f"The newest window compared, {newest.key}, looks like the training data."
    return Answer(key, question, "no drift", text, State.FINE)


def _traffic(board: Board) -> Answer:
    key, question = "traffic", "Does as much arrive as usual?"
    rows = board.newest(MetricName.ROWS)
    refused = board.newest(MetricName.REFUSED_SHARE)
    if rows is None or rows.value is None:
        return _unknown(key, question, "No traffic has been counted yet.")
    text = f"{rows.value:,.0f} rows in {rows.window.key}"
    if rows.lower is not None and rows.upper is not None:
        text += f", where {rows.lower:,.0f} to {rows.upper:,.0f} were to be expected"
    if refused is not None and refused.value is not None:
        text += f"; {_percent(refused.value)} of the requests were refused"
    finding = rows.finding or (refused is not None and refused.finding)
    state = State.FINDING if finding else State.FINE
    return Answer(key, question, f"{rows.value:,.0f} rows", f"{text}.", state)


def _quality(board: Board) -> Answer:
    key, question = "quality", "Are the rows themselves in order?"
    found = board.newest(MetricName.QUALITY_FINDINGS)
    if found is None or found.value is None:
        return _unknown(key, question, "No window's rows have been examined yet.")
    count = round(found.value)
    if not found.finding and not count:
        text = f"No fault in the {found.rows:,} rows of {found.window.key}."
        return Answer(key, question, "no fault", text, State.FINE)
    since = lasting_since(board.series(MetricName.QUALITY_FINDINGS)) or found.window
    faults = counted(count, "fault")
    text = f"{faults} in {found.window.key}; there have been some since {since.key}."
    return Answer(key, question, faults, text, State.FINDING)


def _segments(board: Board) -> Answer:
    key, question = "segments", "Is anybody served worse?"
    ranked, everyone = worst_first(board), overall(board)
    if not ranked or everyone is None:
        return _unknown(key, question, f"No segment has {MINIMUM_ROWS} labelled rows yet.")
    worst = ranked[0]
    apart = [comparison for comparison in comparisons(ranked) if comparison.clearly]
    text = (
        f"{_segment(worst)} is served worst: {_percent(worst.share)} of {worst.rows:,} labelled "
        f"rows are wrong, {_percent(everyone.share)} of all."
    )
    text += _apart(apart)
    state = State.FINDING if worst.interval[0] > everyone.interval[1] else State.FINE
    return Answer(key, question, _segment(worst), text, state)


def _apart(apart: Sequence[Comparison]) -> str:
    if not apart:
        return " No column's segments differ beyond chance."
    return f" Segments differ beyond chance by {_named([c.worst.column for c in apart])}."


def _labels(board: Board) -> Answer:
    key, question = "labels", "Do labels arrive?"
    coverage, delay = board.newest(MetricName.LABEL_COVERAGE), board.newest(MetricName.LABEL_DELAY)
    known = board.series(MetricName.LABEL_COVERAGE)
    labelled = [metric for metric in known if metric.value]
    if coverage is None or not labelled:
        return _unknown(key, question, "No label has arrived yet.")
    newest = labelled[-1]
    text = f"The newest labelled window is {newest.window.key}, {_percent(newest.value)} of it"
    if delay is not None and delay.value is not None:
        text += f"; the median label came {delay.value:,.1f} hours after its prediction"
    state = State.FINDING if coverage.finding else State.FINE
    return Answer(key, question, _percent(newest.value), f"{text}.", state)


def _serving(board: Board) -> Answer:
    key, question = "serving", "What serves, and who decided so?"
    if not board.terms:
        return _unknown(key, question, "No version has been deployed yet.")
    term = board.terms[-1]
    if term.until is not None:
        text = f"Nothing serves since {term.until:%Y-%m-%d %H:%M}."
        return Answer(key, question, "nothing", text, State.FINDING)
    changed = [event for event in board.changes if event.at == term.since and event.why]
    text = f"Version {term.version} serves since {term.since:%Y-%m-%d %H:%M}"
    text += f": {changed[0].why}." if changed else "."
    recent = [event for event in board.promotions if event.at > board.now - RECENTLY]
    if recent:
        text += f" Newest step of a promotion: version {recent[-1].version} {recent[-1].what}."
    return Answer(key, question, f"version {term.version}", text, State.FINE)


def _unknown(key: str, question: str, text: str) -> Answer:
    return Answer(key, question, "not yet", text, State.UNKNOWN)


def _segment(segment: Segment) -> str:
    return f"{segment.column} = {segment.value}"


def _interval(metric: Metric) -> str:
    text = _percent(metric.value)
    if metric.lower is not None and metric.upper is not None:
        text += f" ({_percent(metric.lower)} to {_percent(metric.upper)})"
    return text


def _percent(share: float | None) -> str:
    return "not known" if share is None else f"{100 * share:.1f} %"


def _named(columns: Sequence[str], most: int = NAMED) -> str:
    more = len(columns) - most
    return ", ".join(columns[:most]) + (f" and {more} more" if more > 0 else "")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
