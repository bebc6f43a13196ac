"""Running a job as a user would: by Dagster's own command line, in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

from mlschool_dagster.errors import UserError
from mlschool_dagster.local.platform import Say
from mlschool_dagster.settings import ROOT, Settings

_PROGRESS = re.compile(r" - INFO - \w+ - [0-9a-f-]{36} - (?P<step>\w+) - (?P<text>.*)")


def run_config(job: str) -> Path:
    """The documented run config of `job`."""
    return ROOT / "docs" / "run_config" / f"{job}.yaml"


def run_job(job: str, settings: Settings, say: Say, config: Path | None = None) -> None:
    """Execute `job`, print the log messages of its steps, and keep its whole output as a log file.

    Raises:
        UserError: the job failed.
    """
    # In a folder without `.env`, which Dagster would let win over the variables of the platform.
    command = [
        sys.executable, "-W", "ignore", "-m", "dagster", "job", "execute", "--job", job,
        "--module-name", "mlschool_dagster.definitions",
    ]  # fmt: skip
    if config:
        command += ["--config", str(config)]
    log = settings.home / "logs" / f"{job}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    say(job)
    with (
        log.open("w", encoding="utf-8") as kept,
        subprocess.Popen(
            command,
            cwd=log.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout or ():
            kept.write(line)
            if match := _PROGRESS.search(line):
                say(f"  {match['step']}: {match['text']}")
    if process.returncode:
        raise UserError(f"{job} failed; its output is in {log}.")
