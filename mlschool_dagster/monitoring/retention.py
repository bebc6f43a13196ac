"""Retention: delete old captures with their labels, folders of windows, and metrics.

Does not belong here: the scheduler's own records of its runs.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from mlschool_dagster.capture.store import CaptureStore
from mlschool_dagster.capture.windows import FOLDER_FORMAT, Window
from mlschool_dagster.errors import UserError
from mlschool_dagster.storage import Location

if TYPE_CHECKING:
    from mlschool_dagster.monitoring.metrics_history import MetricsHistory

_DATASET = re.compile(r"[0-9a-f]{64}\.parquet")
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Deletion:
    """Items of one `kind` older than `before`, and how they are deleted.

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


def delete_captures(
    store: CaptureStore, before: datetime, is_covered: Callable[[Window], bool], dry_run: bool
) -> Deletion:
    """Delete the captures of windows before `before`, with their labels, shadows and refusals.

    A window stays as long as its reports do not cover everything in it, by `is_covered`: what
    is in no report yet is not deleted, however old it is.
    """
    old = [window for window in store.newest_windows() if window.end <= before]
    covered = [window for window in old if is_covered(window)]
    count = store.count if dry_run else store.delete
    items = sum(count(window) for window in covered)
    kept = len(old) - len(covered)
    remark = "not everything in them is in every report yet" if kept else ""
    return Deletion("captures", before, len(covered), items, kept, remark)


def delete_files(folder: Location, before: datetime, dry_run: bool) -> Deletion:
    """Delete the snapshots and pages of windows before `before` below `folder`.

    Only folders that the platform made go: what else has the name of a window is kept and named, as
    is a folder that cannot be removed. A snapshot can be written again as long as
    its captures are there.
    """
    gone, files, kept, failed = 0, 0, [], 0
    for place, window in _windows(folder):
        if window.end > before:
            continue
        if not place.is_owned():
            kept.append(f"{place.uri} was not made by the platform")
            continue
        held = place.files()
        try:
            if not dry_run:
                place.remove_owned()
        except (UserError, OSError) as error:
            kept.append(str(error))
            failed += 1
        else:
            gone += 1
            files += held
    remark = "; ".join([*kept[:_NAMED], *([f"{len(kept) - _NAMED} more"] * (len(kept) > _NAMED))])
    return Deletion("files", before, gone, files, len(kept), remark, failed)


def delete_run_folders(folders: Iterable[Location], before: datetime, dry_run: bool) -> Deletion:
    """Delete those of `folders`, one for each run, in which nothing was written since `before`.

    Only folders that the platform made go.
    """
    files = 0
    for folder in folders:
        written = [file.modified() for file in folder.children() if file.exists()]
        if written and max(written) < before and folder.is_owned():
            files += folder.files()
            if not dry_run:
                folder.remove_owned()
    return Deletion("run files", before, 0, files, 0)


def delete_datasets(
    data: Location, needed: Collection[str], before: datetime, dry_run: bool
) -> Deletion:
    """Delete data sets below `data` written before `before`, but for those whose digest is needed.

    `needed` has the digests that the newest state of some asset rests on.
    """
    old = [
        file
        for folder in data.children()
        for file in folder.children()
        if _DATASET.fullmatch(file.name) and file.modified() < before
    ]
    outgoing = [file for file in old if file.name.partition(".")[0] not in needed]
    for file in [] if dry_run else outgoing:
        file.remove()
    kept = len(old) - len(outgoing)
    remark = "they are the newest state of an asset" if kept else ""
    return Deletion("data sets", before, 0, len(outgoing), kept, remark)


def delete_metrics(history: "MetricsHistory", before: datetime, dry_run: bool) -> Deletion:
    """Delete the metrics of windows before `before`."""
    first_kept = Window.of(before)
    items = history.count(first_kept) if dry_run else history.delete(first_kept)
    return Deletion("metrics", before, 0, items)


def _windows(folder: Location) -> Iterable[tuple[Location, Window]]:
    """Entries of `folder` named after a window."""
    for place in folder.children():
        try:
            start = datetime.strptime(place.name, FOLDER_FORMAT).replace(tzinfo=UTC)
        except ValueError:
            # Somebody else's.
            continue
        yield place, Window(start)
