"""Reconciler of windows and reports: request a run for each window whose report is out of date.

`reconcile` is a pure function of the saved state, what has landed since, what the reports cover and
which runs exist; it returns the runs to request and the state to save. It is level-triggered, so
that neither a lost request nor an old state loses an event:

- A report names the revision *token* of the window that it covers. A window is done when its newest
  report covers its present token, and only then.
- The runs of a window are looked up each time. A process that dies between requesting runs and
  saving its state sees them at the next tick.
- A run key names window, token and attempt, because schedulers ignore a key that they have seen
  before, even if its run failed.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Protocol

from mlschool_dagster.capture.store import Changes
from mlschool_dagster.capture.windows import Window, earliest
from mlschool_dagster.errors import UserError

STATE_VERSION = 1


class RunStatus(StrEnum):
    """State of a run.

    ``QUEUED`` waits in a queue that outlives its processes; ``STARTED`` is anything from created to
    running, and may have died unnoticed; ``FAILED`` also holds for one that was cancelled.
    """

    QUEUED = "queued"
    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Run:
    """A run that reports on a window; ``since`` is when it took its present status.

    ``key`` is the `RunRequest.key` of a run that a reconciler requested, None for any other run.
    """

    key: str | None
    status: RunStatus
    since: datetime


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run to request for `window`; ``key`` differs for every token and attempt."""

    window: Window
    token: str
    attempt: int

    @property
    def key(self) -> str:
        """The run key, as in ``2026-11-20-23:00@17#1``."""
        return f"{self.window.key}@{self.token}#{self.attempt}"


class WindowSource(Protocol):
    """Windows, what landed in them, and the runs that report on them.

    Each call answers with the present state.
    """

    def changes(self, cursor: str | None) -> Changes:
        """The windows in which something landed after `cursor`."""

    def token(self, window: Window) -> str:
        """The present revision token of `window`; it never returns to an earlier value."""

    def coverage(self, window: Window) -> str | None:
        """The token that the window's newest report covers, None without a report."""

    def runs(self, window: Window) -> Sequence[Run]:
        """The runs that report on `window`, newest first, at least the newest twenty."""


@dataclass(frozen=True, slots=True)
class ReconcilerConfig:
    """How often to retry, and how much to request at once.

    After a failure the next attempt waits ``backoff``, doubled with every further failure in a row
    up to ``maximum_backoff``; after ``max_attempts`` for the same token the window rests until
    something lands in it. A run started longer than ``stale_after`` ago is considered dead with its
    machine; whoever runs it must see to it that it reports nothing any more. A window that is not
    over yet rests for ``rest`` after each of its reports: steady traffic is not reported on without
    pause. ``max_pending`` bounds what is decided upon, ``max_requests`` what one tick asks for.
    """

    max_attempts: int = 4
    backoff: timedelta = timedelta(minutes=1)
    maximum_backoff: timedelta = timedelta(hours=1)
    stale_after: timedelta = timedelta(hours=1)
    rest: timedelta = timedelta(minutes=3)
    max_requests: int = 10
    max_pending: int = 200


@dataclass(frozen=True, slots=True)
class Tick:
    """The result of one evaluation: runs to request, the state to save, and messages for the log.

    ``later`` names the windows that have not begun.
    """

    requests: tuple[RunRequest, ...]
    state: str
    messages: tuple[str, ...]
    later: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _State:
    """``pending`` windows (by key) touched up to ``cursor`` and not known to be reported.

    When more windows were touched than may be pending, they are taken in over several ticks, oldest
    first: ``cursor`` stays, ``taken_until`` is the last window taken in, and ``next_cursor``, fixed
    when the intake began, becomes the cursor when it ends. What lands meanwhile comes after it.
    Windows that have not begun yet, by a clock that is ahead, wait in ``later``.
    """

    cursor: str | None = None
    next_cursor: str | None = None
    taken_until: str = ""
    pending: tuple[str, ...] = ()
    later: tuple[str, ...] = ()

    def dump(self) -> str:
        return json.dumps({"version": STATE_VERSION, **asdict(self)})

    @classmethod
    def load(cls, text: str | None) -> "_State":
        if not text:
            return cls()
        try:
            document = json.loads(text)
            if document.pop("version") != STATE_VERSION:
                raise ValueError
            lists = {name: tuple(document.get(name, ())) for name in ("pending", "later")}
            return cls(**{**document, **lists})
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(
                "The sensor's cursor was not written by this version; reset the cursor in the UI, "
                "which checks every window again and repeats no report that is complete."
            ) from None


def reconcile(
    state: str | None, source: WindowSource, now: datetime, config: ReconcilerConfig | None = None
) -> Tick:
    """Decide which runs to request at `now` (timezone-aware), given the saved `state`.

    A window that has not begun is kept until it has; one that is impossibly old is named in a
    message and dropped. At most one run of a window is under way, except beside one that is stale.

    Call it with the last state that was saved, None at first. With an older state it requests the
    same runs by the same keys, or sees that they exist.

    Raises:
        UserError: `state` is no state of this version.
    """
    config = config or ReconcilerConfig()
    remembered = _ingest(_State.load(state), source, now, config)
    requests: list[RunRequest] = []
    pending: list[str] = []
    messages: list[str] = []
    for key in remembered.pending:
        decision = _decide(Window.from_key(key), source, now, config)
        if decision.message:
            messages.append(decision.message)
        if decision.pending:
            pending.append(key)
        if decision.request and len(requests) < config.max_requests:
            requests.append(decision.request)
    settled = replace(remembered, pending=tuple(pending))
    return Tick(tuple(requests), settled.dump(), tuple(messages), settled.later)


def _ingest(state: _State, source: WindowSource, now: datetime, config: ReconcilerConfig) -> _State:
    changes = source.changes(state.cursor)
    target = changes.cursor if state.next_cursor is None else state.next_cursor
    present = Window.of(now)
    later = {*state.later, *(w.key for w in changes.windows if w > present)}
    capacity = max(0, config.max_pending - len(state.pending))
    due = sorted(key for key in later if key <= present.key)[:capacity]
    known = {*state.pending, *due}
    fresh = sorted(w.key for w in changes.windows if w.key > state.taken_until and w <= present)
    new = [key for key in fresh if key not in known]
    capacity -= len(due)
    taken = replace(
        state,
        cursor=target,
        next_cursor=None,
        taken_until="",
        pending=tuple(sorted({*known, *new[:capacity]})),
        later=tuple(sorted(later.difference(due))),
    )
    if len(new) <= capacity:
        return taken
    taken_until = new[capacity - 1] if capacity else state.taken_until
    return replace(taken, cursor=state.cursor, next_cursor=target, taken_until=taken_until)


@dataclass(frozen=True, slots=True)
class _Decision:
    """The decision on one pending window: whether it stays pending, and a run to request."""

    pending: bool
    request: RunRequest | None = None
    message: str = ""


def _decide(
    window: Window, source: WindowSource, now: datetime, config: ReconcilerConfig
) -> _Decision:
    if window < earliest(now):
        return _Decision(
            pending=False,
            message=f"{window.key}: no window is that old; the clock that said so was wrong, and "
            "what it captured is in no report.",
        )
    # The order matters: a run that ends, or an event that lands, between two of these questions
    # may cause one report too many, never one too few, and never two runs at once.
    runs = source.runs(window)
    if any(_under_way(run, now, config) for run in runs):
        return _Decision(pending=True)
    coverage = source.coverage(window)
    token = source.token(window)
    if coverage == token:
        return _Decision(pending=False)
    if _rests(window, runs, now, config):
        return _Decision(pending=True)
    made = max((_attempt(run, window, token) for run in runs), default=0)
    if made >= config.max_attempts:
        return _Decision(
            pending=False,
            message=f"{window.key}: gave up after {made} attempts; it is tried again when "
            "something new lands in it, or when its report is made by hand.",
        )
    if now < _not_before(runs, made, config):
        return _Decision(pending=True)
    request = RunRequest(window, token, made + 1)
    return _Decision(pending=True, request=request, message=_reason(request, runs))


def _under_way(run: Run, now: datetime, config: ReconcilerConfig) -> bool:
    if run.status is RunStatus.STARTED:
        return now - run.since <= config.stale_after
    return run.status is RunStatus.QUEUED


def _rests(window: Window, runs: Sequence[Run], now: datetime, config: ReconcilerConfig) -> bool:
    """Whether the window is still open, and was reported on within ``rest``."""
    newest = next((run for run in runs if run.key is not None), None)
    if newest is None or newest.status is not RunStatus.SUCCEEDED:
        return False
    return now < min(window.end, newest.since + config.rest)


def _attempt(run: Run, window: Window, token: str) -> int:
    """Which attempt at `token` the run was, 0 if it was none."""
    prefix = RunRequest(window, token, 0).key.removesuffix("0")
    if run.key is None or not run.key.startswith(prefix):
        return 0
    return int(run.key.removeprefix(prefix))


def _not_before(runs: Sequence[Run], made: int, config: ReconcilerConfig) -> datetime:
    """When the next attempt may start, given that no run is under way."""
    failures = 0
    for run in runs:
        # A run that succeeded although its own token is still uncovered is a failure in disguise.
        if run.status is RunStatus.SUCCEEDED and failures >= made:
            break
        failures += 1
    if not failures:
        return datetime.min.replace(tzinfo=UTC)
    doubled = config.backoff * (1 << min(failures - 1, 16))
    return runs[0].since + min(doubled, config.maximum_backoff)


def _reason(request: RunRequest, runs: Sequence[Run]) -> str:
    if runs and runs[0].status is RunStatus.STARTED:
        return (
            f"{request.window.key}: its run, under way since {runs[0].since.isoformat()}, is taken "
            f"for dead; attempt {request.attempt} is requested."
        )
    if request.attempt > 1:
        return f"{request.window.key}: attempt {request.attempt} is requested."
    return ""
