"""Alerts end to end: from Dagster's daemon to a webhook whose address is secret."""

import re

import pytest

from mlschool_dagster_tests.alerting.servers import SECRET, webhook
from mlschool_dagster_tests.defs.monitoring.test_crashes import daemon, wait_until
from mlschool_dagster_tests.platform import Platform

FAILURE = re.compile(r"^Sensor new_(captures|labels)_sensor fails: ")
WELL = re.compile(r"^Sensor new_(captures|labels)_sensor works again")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_daemon_reports_that_a_sensor_fails_and_that_it_works_again(platform: Platform) -> None:
    store = platform.home / "captures.db"
    store.write_text("This is no database, and is longer than the head of one: " + "x" * 100)
    with webhook() as server:
        settings = {
            "MLSCHOOL_ALERTS": server.url,
            "MLSCHOOL_DAGSTER_URL": "http://127.0.0.1:3000",
        }
        with daemon(platform, "mlschool_dagster.definitions", settings):
            # Sensors that fail alike are one alert, which names whichever failed first; and
            # whichever works again last ends it.
            wait_until(lambda: any(FAILURE.search(text) for text in server.texts()))
            store.unlink()
            wait_until(lambda: any(WELL.search(text) for text in server.texts()))
    (failure,) = [text for text in server.texts() if FAILURE.search(text)]
    assert f" fails: The capture store {store} cannot be opened: it is another kind" in failure
    assert failure.endswith("\nhttp://127.0.0.1:3000/automation")
    kept = [path for path in platform.home.rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if SECRET.encode() in path.read_bytes()]
