"""A store that is really unavailable, and a process that spills until it is killed."""

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from mlschool_dagster.capture.store import StoreUnavailableError, open_store
from mlschool_dagster.serving.buffered_store import BufferedStore, open_buffered_store
from mlschool_dagster_tests.capture.samples import WINDOW, capture

PLENTY = 64 * 1024**2


class Place:
    """The folder of an SQLite store: once removed, nothing at its path can be opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "folder"
        self._link = folder / "store"
        self._next = folder / "next"
        self.buffer_folder = folder / "spill"
        self.uri = f"sqlite:///{self._link}/captures.db"
        self._folder.mkdir(exist_ok=True)
        if not self._link.exists():
            self.bring_online()

    def open(self, limit: int = PLENTY) -> BufferedStore:
        return open_buffered_store(self.uri, self.buffer_folder, limit)

    def take_offline(self) -> None:
        # In one step: a store that finds nothing at its place would begin a new one there.
        self._next.touch()
        self._next.replace(self._link)

    def bring_online(self) -> None:
        self._next.symlink_to(self._folder)
        self._next.replace(self._link)

    def masses(self) -> dict[str, object]:
        """The input of each capture that is kept, by event id; each is there once."""
        store = open_store(self.uri)
        frame = store.read(WINDOW)
        store.close()
        masses = {
            event: inputs["body_mass_g"]
            for event, inputs in zip(frame["event_id"], frame["inputs"], strict=True)
        }
        assert len(masses) == len(frame)
        return masses

    def events(self) -> list[str]:
        """The event ids that are kept, in their order."""
        return list(self.masses())


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_back(store: BufferedStore) -> bool:
    try:
        store.count_refusals(WINDOW, {})
    except StoreUnavailableError:
        return False
    return store.buffered_bytes == 0


def append_and_acknowledge(folder: Path, acknowledged: Path) -> None:
    """Append for ever, noting each event id once it is said to be durable."""
    store = Place(folder).open()
    with acknowledged.open("a", encoding="utf-8", buffering=1) as notes:
        for number in count():
            store.append([capture(f"{number}-{i}") for i in range(3)])
            notes.writelines(f"{number}-{i}\n" for i in range(3))
