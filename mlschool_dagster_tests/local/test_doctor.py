"""What is missing or odd is named in one sentence each, and nothing else is."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mlschool_dagster.identity import Identity
from mlschool_dagster.local.doctor import Finding, Level, examine, known_variables
from mlschool_dagster.local.platform import Platform, Registered
from mlschool_dagster.settings import PLATFORM_RECORD, ROOT
from mlschool_dagster_tests.platform import foreign_environment
from mlschool_dagster_tests.serving.server import free_port


def found(environment: dict[str, str], **env_file: str | None) -> list[Finding]:
    return list(examine(environment, env_file))


def texts(level: Level, environment: dict[str, str], **env_file: str | None) -> str:
    """What is found at that level, a line each."""
    findings = found(environment, **env_file)
    assert all(re.fullmatch(r"[^\n]+[.)]", finding.text) for finding in findings)
    return "\n".join(finding.text for finding in findings if finding.level is level)


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"MLSCHOOL_HOME": str(tmp_path / "home"), "MLSCHOOL_ENDPOINT_PORT": str(free_port())}


def test_nothing_is_wrong_with_a_fresh_checkout_and_nothing_is_made(
    home: dict[str, str], tmp_path: Path
) -> None:
    assert texts(Level.WRONG, home) == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("MLSCHOOL_HOEM", "x", "MLSCHOOL_HOEM, which is no setting; MLSCHOOL_HOME may be meant"),
        ("MLFLOW_TRACKING_URL", "x", "MLFLOW_TRACKING_URI may be meant"),
        ("MLSCHOOL_XYZZY", "x", "MLSCHOOL_XYZZY, which is no setting; .env.example lists them"),
        ("MLSCHOOL_ENDPOINT_WORKERS", "many", "MLSCHOOL_ENDPOINT_WORKERS is 'many'"),
        ("MLSCHOOL_DATA", "/nope.csv", "There is nothing at /nope.csv; see MLSCHOOL_DATA"),
        ("MLFLOW_TRACKING_URI", "http://u:pass@127.0.0.1:9", "MLFLOW_TRACKING_URI names does not"),
        ("MLSCHOOL_HISTORY", "postgresql://u:pass@127.0.0.1:9/x", "MLSCHOOL_HISTORY names does"),
    ],
)
def test_a_variable_that_leads_nowhere_is_named(
    home: dict[str, str], variable: str, value: str, sentence: str
) -> None:
    wrong = texts(Level.WRONG, {**home, variable: value})
    assert sentence in wrong
    assert "pass" not in wrong


def test_entries_of_the_env_file_are_named_as_such(home: dict[str, str]) -> None:
    wrong = texts(Level.WRONG, home, MLSCHOOL_HOEM="x", MLSCHOOL_FILES=None, PATH="/bin")
    assert ".env sets MLSCHOOL_HOEM" in wrong
    assert ".env names MLSCHOOL_FILES without a value; write MLSCHOOL_FILES=value." in wrong
    assert "PATH" not in wrong


def test_a_port_that_is_taken_is_odd_and_its_holder_named(home: dict[str, str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        odd = texts(Level.ODD, {**home, "MLSCHOOL_ENDPOINT_PORT": str(port)})
    assert f"Port {port}, which endpoint would use, is taken by" in odd
    assert f"(process {os.getpid()})" in odd


def test_a_platform_is_found_while_it_runs_and_when_it_was_killed(home: dict[str, str]) -> None:
    record = Path(home["MLSCHOOL_HOME"]) / PLATFORM_RECORD
    platform = Platform("http://dagster", "http://mlflow", "http://files", {})
    with subprocess.Popen(["sleep", "60"]) as child:
        here = Identity.of(os.getpid())
        gone = Identity(here.pid, here.created - 1000)
        Registered(here, [], platform).save(record)
        assert "A platform runs on this state folder: http://dagster." in texts(Level.FINE, home)
        Registered(gone, [Identity.of(child.pid)], platform).save(record)
        assert f"left processes running ({child.pid}); run make stop." in texts(Level.WRONG, home)
        child.kill()
    record.write_text("{")
    assert "cannot be read; run make stop" in texts(Level.WRONG, home)


def test_the_example_explains_every_setting() -> None:
    text = (ROOT / "mlschool_dagster" / "settings.py").read_text(encoding="utf-8")
    named = set(re.findall(r"\"((?:MLSCHOOL|MLFLOW|DAGSTER)_[A-Z_]+[A-Z])\"", text))
    assert named
    assert named <= known_variables()


def test_the_command_fails_if_something_is_wrong(home: dict[str, str], tmp_path: Path) -> None:
    def doctor(**variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "mlschool_dagster.local", "doctor"],
            env={**foreign_environment(), **home, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    assert doctor().returncode == 0
    (tmp_path / ".env").write_text("MLSCHOOL_ENDPOINT_PORT=none\n")
    failed = doctor()
    assert failed.returncode == 1
    assert "WRONG  MLSCHOOL_ENDPOINT_PORT is 'none'" in failed.stdout
    assert "Traceback" not in failed.stderr
