"""Retention: what may be deleted because it is older than somebody wants to keep it.

Belongs here: captures with their labels, frozen windows with their pages, and the history of
metrics. Does not belong here: what a scheduler remembers of its runs.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlschool_dagster.capture.store import CaptureStore
from mlschool_dagster.capture.windows import FOLDER_FORMAT, Window
from mlschool_dagster.errors import UserError
from mlschool_dagster.owned import MARKER, is_owned, make_owned, remove_owned

if TYPE_CHECKING:
    from mlschool_dagster.monitoring.metrics import MetricsHistory

_FILE = re.compile(
    r"(?P<cut>\.)?((captured_traffic|labels)(?(cut)\.\w{32})\.parquet"
    r"|(data_quality|drift|performance)_report(?(cut)\.\w{32})\.html)"
)
"""What a window's folder holds, be it half written; folders of earlier releases have no marker."""
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What of one `kind` is older than `before`, and what becomes of it.

    ``windows`` and ``items`` (rows, files or runs) go, or would go if this were no dry run;
    ``kept`` windows or runs stay although they are as old, for the reason in ``remark``;
    ``failed`` of them because they could not be removed.
    """

    kind: str
    before: datetime
    windows: int
    items: int
    kept: int = 0
    remark: str = ""
    failed: int = 0

    def row(self) -> dict[str, Any]:
        """A flat mapping, for a table."""
        return {**asdict(self), "before": self.before.isoformat(timespec="minutes")}


def bound(days: float, now: datetime) -> datetime | None:
    """The start of the first hour to keep, if `days` are kept at `now`; None if all is (0 days).

    Raises:
        UserError: `days` is negative.
    """
    if days < 0:
        raise UserError(f"{days:g} days cannot be kept; choose 1 or more, or 0 to keep everything.")
    return Window.of(now - timedelta(days=days)).start if days else None


def forget_captures(
    store: CaptureStore, before: datetime, is_covered: Callable[[Window], bool], dry_run: bool
) -> Outgoing:
    """Deletes the captures of windows before `before`, with their labels, shadows and refusals.

    A window stays as long as its reports do not cover everything in it, as `is_covered` tells: what
    nobody has looked at yet is not deleted however old it is.
    """
    old = [window for window in store.newest_windows() if window.end <= before]
    covered = [window for window in old if is_covered(window)]
    count = store.count if dry_run else store.delete
    items = sum(count(window) for window in covered)
    kept = len(old) - len(covered)
    remark = "not everything in them is in every report yet" if kept else ""
    return Outgoing("captures", before, len(covered), items, kept, remark)


def forget_files(folder: Path, before: datetime, dry_run: bool) -> Outgoing:
    """Deletes what was frozen and drawn of windows before `before`, in `folder` by window.

    Only folders that the platform made go: what else has the name of a window is kept and named, as
    is a folder that cannot be removed. A window that is needed again can be frozen again as long as
    its captures are there.
    """
    gone, files, kept, failed = 0, 0, [], 0
    for path, window in _windows(folder):
        if window.end > before:
            continue
        if not (is_owned(path) or is_window_folder(path)):
            kept.append(f"{path} was not made by the platform")
            continue
        held = sum(1 for file in path.rglob("*") if file.name != MARKER and file.is_file())
        try:
            if not dry_run and make_owned(path, is_window_folder):
                remove_owned(path)
        except (UserError, OSError) as error:
            kept.append(str(error))
            failed += 1
        else:
            gone += 1
            files += held
    remark = "; ".join([*kept[:_NAMED], *([f"{len(kept) - _NAMED} more"] * (len(kept) > _NAMED))])
    return Outgoing("files", before, gone, files, len(kept), remark, failed)


def is_window_folder(folder: Path) -> bool:
    """Whether `folder` holds a window's files and nothing else, as it does without a marker too."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    files = [*folder.iterdir()]
    return bool(files) and all(
        path.is_file() and not path.is_symlink() and _FILE.fullmatch(path.name) for path in files
    )


def forget_metrics(history: "MetricsHistory", before: datetime, dry_run: bool) -> Outgoing:
    """Deletes the metrics of windows before `before`."""
    first_kept = Window.of(before)
    items = history.count(first_kept) if dry_run else history.forget(first_kept)
    return Outgoing("metrics", before, 0, items)


def _windows(folder: Path) -> Iterable[tuple[Path, Window]]:
    """What has the name of a window in `folder`."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        try:
            start = datetime.strptime(path.name, FOLDER_FORMAT).replace(tzinfo=UTC)
        except ValueError:
            # Somebody else's.
            continue
        yield path, Window(start)
