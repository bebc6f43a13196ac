"""What was answered is in the store, exactly once, whatever is killed or swapped meanwhile."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from mlschool_dagster.capture.records import Label
from mlschool_dagster.capture.store import CaptureStore, open_store
from mlschool_dagster.clock import utc_now
from mlschool_dagster.deployment.endpoint import VersionFiles
from mlschool_dagster.deployment.local import LocalEndpoint
from mlschool_dagster.deployment.plan import Plan
from mlschool_dagster_tests.postgres import PostgresServer
from mlschool_dagster_tests.serving.load_generator import LoadGenerator
from mlschool_dagster_tests.serving.server import (
    Server,
    free_port,
    release,
    running_server,
    server_config,
    store_uri,
    wait_for,
)

KILLS = 20
SWAP_SECONDS = 5.0
AWAY_SECONDS = 60.0
SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "30"))
"""How long swaps, labelling and monitoring go on under load."""


@pytest.mark.slow
def test_killed_workers_and_servers_lose_and_repeat_nothing(tmp_path: Path) -> None:
    with ExitStack() as stack:
        load = None
        for kill in range(KILLS // 2):
            with running_server(tmp_path, None if kill else "1", workers=2) as server:
                url = str(server.client.base_url)
                load = load or stack.enter_context(LoadGenerator(url, retry_503=True))
                load.aim(url)
                load.wait_for_answers(200)
                server.workers[kill % 2].kill()
                load.wait_for_answers(200)
                kill_all_at_once(server)
        assert load is not None
        with running_server(tmp_path, None, workers=2) as server:
            load.aim(str(server.client.base_url))
            load.wait_for_answers(200)
            load.stop()
    assert load.broken >= KILLS // 2
    assert_each_is_one_capture(load, store_uri(tmp_path))


def kill_all_at_once(server: Server) -> None:
    """End every process of `server` without a chance to finish anything."""
    processes = [psutil.Process(server.process.pid), *server.workers]
    for process in processes:
        process.suspend()
    for process in processes:
        process.kill()
    server.process.wait()


@pytest.mark.slow
def test_soak_under_swaps_labelling_and_monitoring(tmp_path: Path) -> None:
    config = server_config(tmp_path / "endpoint", store_uri(tmp_path), port=free_port())
    target = LocalEndpoint(config)
    plans = [Plan(primary=version) for version in ("1", "2")]
    files = {version: VersionFiles.of(release(tmp_path, version).folder) for version in ("1", "2")}
    target.deploy(plans[0], files)
    swaps = 0
    try:
        with (
            LoadGenerator(config.url) as load,
            again_and_again(config.store_uri, label_everything) as labelling,
            again_and_again(config.store_uri, read_everything) as monitoring,
        ):
            ending = time.monotonic() + SOAK_SECONDS
            while time.monotonic() < ending:
                swaps += 1
                target.deploy(plans[swaps % 2], files)
                load.stopped.wait(SWAP_SECONDS)
    finally:
        target.stop()
    assert load.broken == 0
    assert min(load.versions[version] for version in ("1", "2")) > 0
    assert min(labelling[0], monitoring[0]) > 0
    assert_each_is_one_capture(load, config.store_uri)


@pytest.mark.slow
def test_a_store_that_is_unavailable_for_a_minute_loses_and_repeats_nothing(tmp_path: Path) -> None:
    with PostgresServer() as postgres:
        uri = postgres.fresh_uri()
        with (
            running_server(tmp_path, store=uri) as server,
            LoadGenerator(str(server.client.base_url)) as load,
        ):
            load.wait_for_answers(200)
            postgres.stop()
            before = len(load.answered)
            load.stopped.wait(AWAY_SECONDS)
            assert len(load.answered) > before
            assert server.health()["spilled_bytes"] > 0
            postgres.start()
            wait_for(lambda: server.health()["spilled_bytes"] == 0)
            load.wait_for_answers(200)
            load.stop()
            assert load.broken == 0
            assert_each_is_one_capture(load, uri)


def assert_each_is_one_capture(load: LoadGenerator, uri: str) -> None:
    """Each request that was made was answered 200, and each answer is one capture."""
    assert load.refused == []
    store = open_store(uri)
    result = [event for window in store.windows() for event in store.read(window)["event_id"]]
    store.close()
    assert len(result) == len(set(result))
    assert set(result) == set(load.answered)


@contextmanager
def again_and_again(uri: str, work: Callable[[CaptureStore], None]) -> Iterator[list[int]]:
    """Do `work` on the store at `uri` in a thread until the block ends; counts how often."""
    rounds, ending = [0], threading.Event()

    def go_on() -> None:
        store = open_store(uri)
        while not ending.is_set():
            work(store)
            rounds[0] += 1
        store.close()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield rounds
    finally:
        ending.set()
        thread.join()


def label_everything(store: CaptureStore) -> None:
    """Label what has no label yet."""
    store.append_labels(
        Label(capture.event_id, capture.prediction, utc_now(), "expert")
        for capture in store.unlabelled()
    )


def read_everything(store: CaptureStore) -> None:
    """Read what a monitoring run reads."""
    for window in store.windows():
        store.revision(window)
        store.read(window)
        store.read_labels(window)
