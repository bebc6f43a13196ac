"""The platform of a state folder: found when it runs, cleaned up after when it was killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from mlschool_dagster.errors import UserError
from mlschool_dagster.local.platform import (
    Platform,
    Registered,
    running_platform,
    stop_leftovers,
)
from mlschool_dagster.local.processes import Identity, is_free
from mlschool_dagster.settings import Settings
from mlschool_dagster_tests.platform import foreign_environment, processes
from mlschool_dagster_tests.serving.server import free_port
from mlschool_dagster_tests.worlds import WORLDS

RUNNING = Platform(
    "http://dagster", "http://mlflow", "http://files", {"MLFLOW_TRACKING_URI": "http://mlflow"}
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    environment = {"MLSCHOOL_HOME": str(tmp_path), "MLSCHOOL_ENDPOINT_PORT": str(free_port())}
    return Settings.from_environment(environment)


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process
        process.kill()


def record(settings: Settings) -> Path:
    return settings.home / "platform.json"


def ended() -> Identity:
    """The identity of a process that has ended."""
    with subprocess.Popen(["sleep", "60"]) as process:
        identity = Identity.of(process.pid)
        process.kill()
    return identity


def test_a_platform_that_runs_is_used_and_left_running(
    settings: Settings, child: "subprocess.Popen[bytes]"
) -> None:
    owner = Identity.of(os.getpid())
    Registered(owner, [Identity.of(child.pid)], RUNNING).save(record(settings))
    lines: list[str] = []
    with running_platform(settings, lines.append) as platform:
        assert platform == RUNNING
    assert lines == ["using the platform that already runs: http://dagster"]
    assert child.poll() is None
    assert record(settings).exists()


@pytest.mark.parametrize(
    "uri", ["http://user:s3cret-word@mlflow", "postgresql://host/db?password=s3cret-word"]
)
def test_what_is_remembered_of_a_platform_holds_no_password(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    settings.make_home()
    running = replace(RUNNING, mlflow_url=uri, environment={"MLFLOW_TRACKING_URI": uri})
    Registered(Identity.of(os.getpid()), [], running).save(record(settings))
    assert "s3cret" not in record(settings).read_text()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="set it here as well"), running_platform(settings, print):
        pass
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with running_platform(settings, print) as platform:
        assert "MLFLOW_TRACKING_URI" not in platform.environment


def test_what_a_killed_owner_left_behind_is_stopped(
    settings: Settings, child: "subprocess.Popen[bytes]"
) -> None:
    Registered(ended(), [Identity.of(child.pid)], RUNNING).save(record(settings))
    stop_leftovers(settings)
    child.wait(timeout=10)
    assert not record(settings).exists()


def test_stopping_where_nothing_runs_does_nothing(settings: Settings) -> None:
    stop_leftovers(settings)
    assert [*settings.home.iterdir()] == []


class Command:
    """``python -m mlschool_dagster.local`` on a state folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {
            **foreign_environment(),
            "MLSCHOOL_HOME": str(home),
            "MLSCHOOL_ENDPOINT_PORT": str(free_port()),
            # Only what talks to a cloud needs it.
            "AWS_SECRET_ACCESS_KEY": "only-for-tests",
        }

    def start(self, name: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "mlschool_dagster.local", name],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, name: str) -> str:
        """The output of the command, which succeeds and leaves no process behind."""
        with self.start(name) as process:
            output, _ = process.communicate()
        assert process.returncode == 0, output
        assert processes(self.home) == []
        return output

    def ports(self) -> list[int]:
        """The ports of the platform that runs."""
        document = orjson.loads((self.home / "platform.json").read_bytes())["platform"]
        urls = [document["dagster_url"], document["mlflow_url"], document["files_url"]]
        return [int(url.rpartition(":")[2]) for url in urls]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    for process in processes(tmp_path):
        process.kill()


def wait_for_line(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stdout is not None
    assert any(text in line for line in process.stdout), f"ended before it said {text!r}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demonstration_runs_again_and_again(command: Command) -> None:
    first, second = command.run("demo"), command.run("demo")
    for number, output in enumerate((first, second), start=1):
        assert f"version      {number}, alias champion" in output
        assert "captures     200 new" in output
        assert "body_mass_g" in output
    assert not (command.home / "platform.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demonstration_runs_on_other_data(
    command: Command, tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = WORLDS["numbers alone"].write(tmp_path_factory.mktemp("world"))
    command.environment.update(world)
    output = command.run("demo")
    assert "version      1, alias champion" in output
    assert "on 200 labels" in output


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_all_of_it(command: Command, sign: signal.Signals) -> None:
    with command.start("dev") as process:
        wait_for_line(process, "Ctrl-C stops all of it")
        ports = command.ports()
        assert not any(map(is_free, ports))
        for server in ("mlschool_dagster.local.report_server", "mlflow"):
            held = [p.environ() for p in processes(command.home) if server in p.cmdline()]
            assert held
            assert not any("AWS_SECRET_ACCESS_KEY" in environment for environment in held)
        process.send_signal(sign)
        process.communicate()
    assert process.returncode == 130
    assert processes(command.home) == []
    assert all(map(is_free, ports))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_owner_that_was_killed_is_cleaned_up_after(command: Command) -> None:
    with command.start("dev") as process:
        wait_for_line(process, "Ctrl-C stops all of it")
        ports = command.ports()
        process.kill()
        # Its children hold the pipe: there is no end of the output to wait for.
        process.wait()
    assert processes(command.home)
    command.run("stop")
    assert all(map(is_free, ports))
