"""Configuration of a server process, and the record that identifies the process."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlschool_dagster.serving.server_config import (
    process_start,
    read_record,
    write_record,
)
from mlschool_dagster_tests.serving.server import server_config

STORE = "postgresql://somebody:password@db/captures"
CONFIG = server_config(Path("/home"), STORE, token="token-of-many-characters")  # noqa: S106


@pytest.mark.parametrize(
    "change",
    [
        {"home": Path("/elsewhere")},
        {"store_uri": STORE.replace("password", "another")},
        {"name": "birds"},
        {"host": "localhost"},
        {"port": 8081},
        {"workers": 2},
        {"spill_bytes": 1},
        {"access_log": True},
        {"token": "another-token-of-characters"},
        {"token": None},
    ],
)
def test_any_other_setting_is_another_configuration(change: dict[str, Any]) -> None:
    assert replace(CONFIG, **change).digest != CONFIG.digest
    assert replace(CONFIG).digest == CONFIG.digest


def test_its_secrets_are_not_shown() -> None:
    for shown in (repr(CONFIG), CONFIG.digest, CONFIG.url):
        assert "password" not in shown
        assert "token-of" not in shown


def test_what_is_written_down_says_nothing_of_its_secrets(tmp_path: Path) -> None:
    """Two records of the same settings have nothing in common but what is no secret."""
    config = replace(CONFIG, home=tmp_path)
    written = []
    for _ in range(2):
        write_record(config)
        record = read_record(tmp_path)
        assert record is not None
        written.append(record.configuration)
        for name in ("server.json", "server.key"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert written[0] != written[1]
    assert config.digest not in (tmp_path / "server.json").read_text()


def test_its_address_is_a_url() -> None:
    assert CONFIG.url == "http://127.0.0.1:8080"
    assert replace(CONFIG, host="::1", port=80).url == "http://[::1]:80"


def test_a_record_names_this_very_process(tmp_path: Path) -> None:
    config = replace(CONFIG, home=tmp_path)
    assert read_record(tmp_path) is None
    write_record(config)
    record = read_record(tmp_path)
    assert record is not None
    assert (record.pid, record.url) == (os.getpid(), config.url)
    assert record.is_of(config)
    assert not record.is_of(replace(config, token="another-token-of-characters"))  # noqa: S106
    assert record.is_running
    assert not replace(record, started="at another time").is_running


def test_a_process_that_has_ended_has_no_start() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert process_start(process.pid) is not None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        # Ended, and waiting for its parent to take note.
        assert process_start(process.pid) is None
    assert process_start(process.pid) is None


@pytest.mark.parametrize(
    ("option", "variable"),
    [("--workers", "MLSCHOOL_ENDPOINT_WORKERS"), ("--spill-megabytes", "MLSCHOOL_SPILL_MEGABYTES")],
)
@pytest.mark.parametrize("by_environment", [False, True])
def test_a_setting_that_cannot_be_used_is_named(
    tmp_path: Path, option: str, variable: str, by_environment: bool
) -> None:
    command = [sys.executable, "-m", "mlschool_dagster.serving", "--home", str(tmp_path)]
    command += ["--store", "sqlite:///x", "--name", "penguins"]
    environment = dict(os.environ)
    if by_environment:
        environment[variable] = "0"
    else:
        command += [option, "0"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert f"argument {option}: {variable} is '0'; use a number from 1 to " in ended.stderr
