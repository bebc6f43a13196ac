"""What monitoring costs, and that it does not depend on how long the history is.

- window: one window of 10^6 labelled rows: its snapshots, all statistics, and the reports with
  their pages, beside the statistics of Evidently's three presets on the same snapshots. Both report
  on a window of 200 rows first, so that imports are known apart.
- history: four new windows of 1,000 rows on top of 10^4 to 10^7 captures: the sensor's ticks,
  snapshots, all reports, and the check of coverage. The first window pays for imports and is not
  counted; of the others the cheapest of each counts. The history is small rows, in at least
  100 hours, because coverage is looked at for the newest 48 however many there are.
- job: ``dagster job execute`` of monitoring_job on 200 rows, the whole process.
- labels: 10^6 labels by the simulated labeller while an endpoint serves; an answer that is not 200,
  or whose capture is not there, is an error.

Reported are CPU seconds, and the kernel's high-water mark of a process's memory. Every case is a
process of its own.

    python benchmarks/monitoring            # takes some 3 GB of disk
    python benchmarks/monitoring 1e8        # a history of 10^8 as well: 15 GB more
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from histories import fill_history

from mlschool_dagster.capture.store import open_store
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.local.platform import prepare
from mlschool_dagster.settings import Settings
from mlschool_dagster_tests.serving.server import running_server
from mlschool_dagster_tests.serving.tiny_model import ROW

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "monitoring.json"
ROWS = 10**6
SMALL_ROWS = 200
HISTORIES = [10**4, 10**5, 10**6, 10**7]
LABELS = 10**6

Table = dict[str, dict[str, float]]


class Home:
    """A platform's state folder, and commands in its environment."""

    def __init__(self, folder: Path) -> None:
        settings = Settings.from_environment({"MLSCHOOL_HOME": str(folder)})
        ours = ("MLSCHOOL_", "MLFLOW_", "DAGSTER_")
        foreign = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.folder = folder
        self.store = folder / "captures.db"
        self.environment = {**foreign, **prepare(settings)}

    def copy(self, folder: Path) -> "Home":
        """The same state in another folder."""
        shutil.copytree(self.folder, folder)
        return Home(folder)

    def case(self, name: str, *arguments: str) -> dict[str, Any]:
        """What ``cases.py`` measures."""
        command = [sys.executable, "-W", "ignore", str(HERE / "cases.py"), name, *arguments]
        done = subprocess.run(
            command, env=self.environment, check=True, stdout=subprocess.PIPE, text=True
        )
        measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return measured

    def whole_job(self, window: Window) -> dict[str, float]:
        """CPU seconds and peak of memory of monitoring_job as a command."""
        tags = json.dumps({"dagster/partition": window.key})
        command = [
            *(sys.executable, "-W", "ignore", "-m", "dagster", "job", "execute"),
            *("-m", "mlschool_dagster.definitions", "-j", "monitoring_job", "--tags", tags),
        ]
        log = (self.folder / "job.log").open("wb")
        with (
            log,
            subprocess.Popen(command, env=self.environment, stdout=log, stderr=log) as process,
        ):
            status, peak = Path(f"/proc/{process.pid}/status"), 0.0
            while True:
                for line in status.read_text(encoding="utf-8").splitlines():
                    if line.startswith("VmHWM"):
                        peak = float(line.split()[1]) / 1024
                done, code, usage = os.wait4(process.pid, os.WNOHANG)
                if done:
                    break
                time.sleep(0.05)
            process.returncode = os.waitstatus_to_exitcode(code)
        if process.returncode:
            sys.exit(f"monitoring_job failed; see {self.folder / 'job.log'}.")
        return {"CPU": usage.ru_utime + usage.ru_stime, "peak MB": peak}


def main(histories: list[int]) -> None:
    """Measure, print tables, and write them as JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained = Home(folder / "trained")
        trained.case("train")
        results = {
            "job": {f"{SMALL_ROWS} rows": job(trained.copy(folder / "job"))},
            "window": window(trained.copy(folder / "window")),
            "history": {
                f"{rows:.0e}": history(trained.copy(folder / f"history {rows}"), rows)
                for rows in histories
            },
            "labels": {f"{LABELS:.0e}": labels(trained.copy(folder / "labels"))},
        }
    for title, table in results.items():
        _print(title, table)
    goals = _goals(results)
    for goal, (value, holds) in goals.items():
        print(f"{goal:62}{value:10.2f}   {'ok' if holds else 'MISSED'}")
    RESULTS.write_text(
        json.dumps(
            {**results, "goals": {goal: value for goal, (value, _) in goals.items()}}, indent=2
        ),
        encoding="utf-8",
    )


def job(home: Home) -> dict[str, float]:
    """The job on a small window."""
    small = _window(6)
    home.case("fill", small.key, str(SMALL_ROWS))
    return home.whole_job(small)


def window(home: Home) -> Table:
    """A large window, by the platform and by Evidently."""
    small, large = _window(6), _window(8)
    home.case("fill", small.key, str(SMALL_ROWS))
    home.case("fill", large.key, str(ROWS))
    keys = small.key, large.key
    return {
        "platform": home.case("statistics", *keys),
        "Evidently": home.case("evidently", *keys),
    }


def history(home: Home, rows: int) -> dict[str, float]:
    """New windows on top of a history of `rows`, which is removed afterwards."""
    fill_history(home.store, rows, utc_now() - timedelta(hours=10))
    measured = home.case("history")
    shutil.rmtree(home.folder)
    return measured


def labels(home: Home) -> dict[str, float]:
    """Labels while clients are answered."""
    fill_history(home.store, LABELS, utc_now() - timedelta(hours=10))
    endpoint = home.folder / "endpoint"
    endpoint.mkdir()
    ended = threading.Event()
    waits: list[float] = []
    with running_server(endpoint, store=f"sqlite:///{home.store}") as server:

        def ask() -> None:
            while not ended.is_set():
                started = time.perf_counter()
                server.invoke([ROW]).raise_for_status()
                waits.append(time.perf_counter() - started)

        client = threading.Thread(target=ask)
        client.start()
        measured = home.case("label")
        ended.set()
        client.join()
    store = open_store(f"sqlite:///{home.store}")
    captured = sum(store.windows().values()) - LABELS
    waits.sort()
    return {
        **measured,
        "answered": len(waits),
        "lost": len(waits) - captured,
        "p50 ms": waits[len(waits) // 2] * 1000,
        "p99 ms": waits[len(waits) * 99 // 100] * 1000,
        "slowest ms": waits[-1] * 1000,
    }


def _window(hours_ago: int) -> Window:
    return Window.of(utc_now() - timedelta(hours=hours_ago))


def _goals(results: dict[str, Table]) -> dict[str, tuple[float, bool]]:
    ours, theirs = results["window"]["platform"], results["window"]["Evidently"]
    costs = [each["all"] for each in results["history"].values()]
    peaks = [each["peak MB"] for each in results["history"].values()]
    label = next(iter(results["labels"].values()))
    job = next(iter(results["job"].values()))

    def goal(value: float, holds: Callable[[float], bool]) -> tuple[float, bool]:
        return value, holds(value)

    return {
        "10^6 rows, Evidently's CPU / ours, imports apart (at least 10)": goal(
            theirs["statistics"] / ours["statistics"], lambda x: x >= 10
        ),
        "10^6 rows, peak MB (under 1000)": goal(ours["peak MB"], lambda x: x < 1000),
        "a new window, longest history / shortest, CPU (at most 1.2)": goal(
            costs[-1] / costs[0], lambda x: x <= 1.2
        ),
        "a new window, longest history / shortest, memory (at most 1.2)": goal(
            peaks[-1] / peaks[0], lambda x: x <= 1.2
        ),
        "monitoring_job at 200 rows, CPU s (under 15)": goal(job["CPU"], lambda x: x < 15),
        "10^6 labels, s (under 60)": goal(label["seconds"], lambda x: x < 60),
        "10^6 labels, last tenth / first tenth, s (at most 2)": goal(
            label["last tenth"] / label["first tenth"], lambda x: x <= 2
        ),
        "10^6 labels, answers lost": goal(label["lost"], lambda x: x == 0),
    }


def _print(title: str, table: Table) -> None:
    print(title)
    for name, row in table.items():
        print(f"  {name:12}" + "   ".join(f"{column} {value:.2f}" for column, value in row.items()))


if __name__ == "__main__":
    main([*HISTORIES, *(int(float(rows)) for rows in sys.argv[1:])])
