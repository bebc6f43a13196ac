"""A PostgreSQL server is stopped and started again under continuous appends."""

import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from mlschool_dagster.capture.store import open_store
from mlschool_dagster.serving.buffered_store import BufferedStore, open_buffered_store
from mlschool_dagster.serving.write_ahead_log import size_of_all
from mlschool_dagster_tests.capture.samples import WINDOW, capture
from mlschool_dagster_tests.postgres import PostgresServer
from mlschool_dagster_tests.serving.store_outage import PLENTY, is_back, wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


class Client:
    """Appends one batch after the other, as a server's writer does."""

    def __init__(self, store: BufferedStore) -> None:
        self._store = store
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._append)
        self.acknowledged: list[str] = []
        self.longest = 0.0

    def __enter__(self) -> "Client":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _append(self) -> None:
        for number in count():
            if self._ending.is_set():
                return
            events = [f"{number}-{i}" for i in range(3)]
            started = time.monotonic()
            self._store.append([capture(event) for event in events])
            self.longest = max(self.longest, time.monotonic() - started)
            self.acknowledged += events
            time.sleep(0.001)


@pytest.mark.parametrize(
    ("seconds", "mode"),
    [
        (2, "fast"),
        (2, "immediate"),
        pytest.param(60, "fast", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_lost_doubled_or_reordered(
    server: PostgresServer, tmp_path: Path, seconds: float, mode: str
) -> None:
    uri = server.fresh_uri()
    store = open_buffered_store(uri, tmp_path / "spill", PLENTY)
    with Client(store) as client:
        wait_until(lambda: len(client.acknowledged) > 50)
        server.stop(mode)
        stopped = time.monotonic()
        wait_until(lambda: store.buffered_bytes > 0)
        wait_until(lambda: time.monotonic() - stopped > seconds, seconds + 30)
        server.start()
        wait_until(lambda: is_back(store), 60)
        in_time = len(client.acknowledged)
        wait_until(lambda: len(client.acknowledged) > in_time + 50)
    # A slow machine may have let the store wait once more.
    wait_until(lambda: is_back(store), 60)
    store.close()
    kept = list(open_store(uri).read(WINDOW)["event_id"])
    assert kept == client.acknowledged
    assert client.longest < 5
    assert size_of_all(tmp_path / "spill") == 0


def test_a_server_that_was_never_there_is_waited_for(
    server: PostgresServer, tmp_path: Path
) -> None:
    uri = server.fresh_uri()
    server.stop()
    store = open_buffered_store(uri, tmp_path / "spill", PLENTY)
    store.append([capture("a")])
    store.close()
    server.start()
    again = open_buffered_store(uri, tmp_path / "spill", PLENTY)
    wait_until(lambda: size_of_all(tmp_path / "spill") == 0)
    again.close()
    assert list(open_store(uri).read(WINDOW)["event_id"]) == ["a"]
