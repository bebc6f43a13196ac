"""The commands of the README and the other pages, as printed, in a clone beside `make dev`."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import dagster as dg
import httpx
import pytest

from mlschool_dagster.clock import utc_now
from mlschool_dagster.settings import ROOT
from mlschool_dagster_tests.platform import foreign_environment, processes
from mlschool_dagster_tests.serving.server import free_port

PAGES = [
    str(path.relative_to(ROOT))
    for pattern in ("README.md", "[!R]*.md", "data/*.md", "docs/**/*.md", "infra/**/*.md")
    for path in sorted(ROOT.glob(pattern))
]

NOT_RUN = {
    "make test": "that is this suite",
    "make test-all": "that is this suite",
    "make lint": "CI runs it",
    "make bench": "takes minutes",
    "make soak": "takes ten minutes",
    "make scenario NAME=": "test_scenarios runs one",
    "pip install": "needs a package index",
    "uv pip compile": "needs a package index",
    "pip download": "needs a package index",
    "python - <<'PYTHON'\nfrom zipfile": "reads what was downloaded",
    "make demo-docker": "needs Docker",
    "docker compose": "needs Docker; the tests of infra run its services",
    "dagster dev": "of one instance there is one daemon, and make dev runs",
    "dagster job execute -m mlschool_dagster.definitions -j retraining_job": "trains for minutes",
}
"""Commands by how they begin, and why they are not run here."""

SERVERS = ("mlflow models serve",)
"""Commands that run until they are stopped: they are when they answer."""

SENTENCES = {
    "approval_job": "No rollout",
    "rollback_job": "nothing to roll back to",
}
"""Jobs that may end in a sentence here, because there is nothing yet for them to do."""

EXAMPLE_DAY = "2026-11-20"
"""The day of the windows that the pages name."""

TIMEOUT = 900
"""Seconds for one block: a machine that does much else is slow."""


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in that language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block for name, block in fenced if name == language]


def commands(block: str) -> list[str]:
    """The commands of a block, each with the lines that it goes on in."""
    found: list[str] = []
    for line in block.splitlines():
        if found and not _is_whole(found[-1]):
            found[-1] += f"\n{line}"
        elif line.strip():
            found.append(line)
    return found


def _is_whole(command: str) -> bool:
    if command.endswith("\\"):
        return False
    if document := re.search(r"<<'(\w+)'\n?", command):
        return command.endswith(f"\n{document[1]}")
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return True


def reason_not_run(command: str) -> str:
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), "")


def documented() -> list[str]:
    """The commands in the comments of the run configs."""
    found = []
    for path in sorted((ROOT / "docs" / "run_config").glob("*.yaml")):
        lines = [line for line in path.read_text().splitlines() if line.startswith("#")]
        text = "\n".join(line.removeprefix("#").strip() for line in lines)
        found += [c for c in commands(text) if c.startswith("dagster ")]
    return found


@dataclass
class Checkout:
    """A fresh clone, in a folder with a space in its name, with this very environment."""

    folder: Path
    environment: Mapping[str, str]
    port: int

    def printed(self, command: str) -> str:
        """`command` as printed, with the clone's port of the endpoint and yesterday's windows."""
        yesterday = f"{utc_now() - timedelta(days=1):%Y-%m-%d}"
        return command.replace(":8080", f":{self.port}").replace(EXAMPLE_DAY, yesterday)

    def run(self, *block: str) -> "subprocess.CompletedProcess[str]":
        """Run the commands of a block in one shell."""
        script = "\n".join(map(self.printed, block))
        return subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )

    def start(self, *block: str) -> "subprocess.Popen[str]":
        """Start a block in a session of its own."""
        return subprocess.Popen(
            ["bash", "-eo", "pipefail", "-c", "\n".join(map(self.printed, block))],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.folder / ".mlschool" / "dagster"))


def environment_of_its_own(folder: Path) -> None:
    """Give a clone the packages that are installed here, as `make install` would leave them."""
    environment = folder / ".venv"
    environment.mkdir()
    for name in ("bin", "lib"):
        (environment / name).symlink_to(Path(sys.prefix) / name)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", environment)
    for name in (".installed", ".installed-dev"):
        (environment / name).touch()


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    folder = tmp_path / "a checkout"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    environment_of_its_own(folder)
    port = free_port()
    environment = {
        **foreign_environment(),
        "PATH": f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "MLSCHOOL_ENDPOINT_PORT": str(port),
    }
    yield Checkout(folder, environment, port)
    for process in processes(folder / ".mlschool"):
        process.kill()


def until_it_says(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return
    pytest.fail(f"ended before it said {text!r}:\n{''.join(seen)}")


def until(condition: Callable[[], bool]) -> None:
    """Wait as long as the test may take: how long it is depends on what else the machine does."""
    while not condition():
        time.sleep(0.2)


def stop(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)


def shape(text: str) -> list[str]:
    """The lines of an output without what differs from run to run."""
    return [re.sub(r"[\d.:-]*\d", "#", line).strip() for line in text.splitlines() if line.strip()]


def test_commands_are_found_whole() -> None:
    whole = [
        "make demo    # all of it",
        "curl -d '{\n  \"a\": 1}'",
        "dagster \\\n  job",
        "python - <<'END'\nprint(\"it's\")\nEND",
        "ls",
    ]
    assert commands("\n".join([*whole[:1], "", *whole[1:]])) == whole
    assert documented()


def test_what_is_not_run_is_printed_somewhere() -> None:
    printed = [c for page in PAGES for block in blocks(page, "sh") for c in commands(block)]
    printed += documented()
    for start in NOT_RUN.keys() - {"make bench", "make soak"}:
        assert any(command.startswith(start) for command in printed), start


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_command_runs_as_printed(checkout: Checkout) -> None:
    first, *others = [commands(block) for page in PAGES for block in blocks(page, "sh")]
    demo = checkout.run(*(command for command in first if not reason_not_run(command)))
    assert demo.returncode == 0, demo.stdout + demo.stderr
    (example,) = [block for block in blocks("README.md", "") if block.startswith("accuracy")]
    summary = shape(re.sub(r"^ *[\d.]+ s  ", "", demo.stdout, flags=re.MULTILINE))
    assert [line for line in shape(example) if line not in summary] == []

    dev = checkout.start("make dev")
    try:
        until_it_says(dev, "Ctrl-C stops all of it")
        for block in others:
            run = [command for command in block if not reason_not_run(command)]
            if run and any(map(run[-1].startswith, SERVERS)):
                serves_until_stopped(checkout, run)
            elif any("job execute" in command for command in run):
                for command in run:
                    succeeds(checkout, [command])
            elif run:
                succeeds(checkout, run)
        known = "\n".join(command for block in others for command in block)
        for command in documented():
            job = command.partition(" -j ")[2].split()[0]
            if not reason_not_run(command) and job not in known:
                succeeds(checkout, [command])
        one_platform(checkout)
    finally:
        stop(dev)
    assert processes(checkout.folder / ".mlschool") == []


def succeeds(checkout: Checkout, block: Sequence[str]) -> None:
    done = checkout.run(*block)
    output = done.stdout + done.stderr
    explanations = [text for job, text in SENTENCES.items() if job in block[-1]]
    if done.returncode and any(text in output for text in explanations):
        assert "Traceback" not in output
        return
    assert done.returncode == 0, f"{block}\n{output[-4000:]}"


def serves_until_stopped(checkout: Checkout, block: Sequence[str]) -> None:
    port = free_port()
    server = checkout.start(*(command.replace("8081", str(port)) for command in block))

    def answers() -> bool:
        assert server.poll() is None
        try:
            return httpx.get(f"http://127.0.0.1:{port}/ping").is_success
        except httpx.HTTPError:
            return False

    try:
        until(answers)
    finally:
        stop(server)


def one_platform(checkout: Checkout) -> None:
    """What a shell without any variable did is in the UI of `make dev`, with all its links."""
    home = checkout.folder / ".mlschool"
    with checkout.instance() as instance:
        until(lambda: all(run.is_finished for run in backfilled(instance)))
        assert {run.status for run in backfilled(instance)} == {dg.DagsterRunStatus.SUCCESS}
        (run, *_) = instance.get_runs(dg.RunsFilter(job_name="training_job"), limit=1)
        logs = home / "dagster" / "storage" / run.run_id / "compute_logs"
        assert any(path.stat().st_size for path in logs.iterdir())
        newest = instance.get_latest_materialization_event(dg.AssetKey("trained_model"))
        assert newest is not None
        assert newest.run_id == run.run_id
        materialization = newest.asset_materialization
        assert materialization is not None
        links = [
            v.value for v in materialization.metadata.values() if "url" in type(v).__name__.lower()
        ]
        assert any(str(link).startswith("http://127.0.0.1") for link in links)


def backfilled(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """The runs that the README's backfill asked for."""
    runs = instance.get_runs(dg.RunsFilter(job_name="monitoring_job"))
    return [run for run in runs if "dagster/backfill" in run.tags]
