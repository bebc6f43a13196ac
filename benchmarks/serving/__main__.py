"""What a request costs: the endpoint beside a bare echo, and beside other model servers.

All servers run in one process each on this machine, one under load at a time, in turns, so
that whatever else the machine does disturbs them alike:

- echo: a Starlette application that returns its body, on the endpoint's server settings: the limit.
- endpoint: ``python -m mlschool_dagster.serving``, every capture on disk before its answer.
- registered: the platform's registered version under ``mlflow models serve``.
- peer: the ordinary pyfunc of the same network under ``mlflow models serve``: scikit-learn's
  transform, ``keras.predict``, and one row appended to SQLite by pandas for each request.
- fastapi, litserve, bentoml: the endpoint's own arithmetic behind FastAPI, LitServe, BentoML, rows
  checked by pydantic, nothing captured; each in an environment of its own, made once.

Load comes from wrk, which must be installed. Reported are medians over the rounds; ratios are what
counts.

    make bench-serving
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from load import Load, body_of
from servers import (
    Served,
    bentoml,
    echo,
    endpoint,
    fastapi,
    litserve,
    mlflow_models,
    peer_model,
    trained_platform,
)

RESULTS = Path(__file__).parents[1] / "results" / "serving.json"
ROUNDS = 3
SECONDS = 6
CONNECTIONS = 32

GOALS: dict[str, tuple[Callable[[float, float], bool], float]] = {
    "throughput / echo": (float.__ge__, 1 / 3),
    "throughput / peer": (float.__ge__, 40),
    "throughput / registered": (float.__ge__, 10),
    "throughput / fastapi": (float.__ge__, 1),
    "throughput / litserve": (float.__ge__, 1),
    "throughput / bentoml": (float.__ge__, 1),
    "CPU ms, 1 row": (float.__lt__, 0.5),
    "CPU ms, 100 rows": (float.__lt__, 3),
    "p99 ms at half load": (float.__lt__, 25),
    "memory MB": (float.__lt__, 300),
    "CPU s to ready": (float.__lt__, 5),
}
"""What the endpoint should reach."""


def main() -> None:
    """Measure, print a table, and write it as JSON."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = trained_platform(Path(folder, "home"))
        peer_uri = peer_model(Path(folder, "peer"), home)
        servers = {
            "echo": stack.enter_context(echo(Path(folder))),
            "endpoint": stack.enter_context(endpoint(Path(folder), home)),
            "registered": stack.enter_context(
                mlflow_models("models:/penguins@challenger", Path(folder), home)
            ),
            "peer": stack.enter_context(mlflow_models(peer_uri, Path(folder), home)),
            **{
                server.__name__: stack.enter_context(server(Path(folder), home))
                for server in (fastapi, litserve, bentoml)
            },
        }
        rounds: dict[str, list[Load]] = {name: [] for name in servers}
        for _ in range(ROUNDS):
            for name, server in servers.items():
                rounds[name].append(server.load(body_of(1), SECONDS, CONNECTIONS))
        results = {name: _row(servers[name], loads) for name, loads in rounds.items()}
        measured = servers["endpoint"]
        hundred = [measured.load(body_of(100), SECONDS, 4) for _ in range(ROUNDS)]
        rate = results["endpoint"]["requests/s"]
        half = [
            measured.load(body_of(1), SECONDS, CONNECTIONS, rate=rate / 2) for _ in range(ROUNDS)
        ]
        figures = {
            **{
                f"throughput / {other}": rate / results[other]["requests/s"]
                for other in results
                if other != "endpoint"
            },
            "CPU ms, 1 row": results["endpoint"]["CPU ms/request"],
            "CPU ms, 100 rows": _median(hundred, "cpu_ms"),
            "p99 ms at half load": _median(half, "p99_ms"),
            "memory MB": measured.memory_mb(),
            "CPU s to ready": measured.cpu_seconds_to_ready,
        }
        half_rate = _median(half, "rate")
    _print(results, figures, half_rate)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(
        json.dumps({"servers": results, "figures": figures, "half load": half_rate}, indent=2),
        encoding="utf-8",
    )


def _row(server: Served, loads: list[Load]) -> dict[str, float]:
    return {
        "requests/s": _median(loads, "rate"),
        "p50 ms": _median(loads, "p50_ms"),
        "p99 ms": _median(loads, "p99_ms"),
        "CPU ms/request": _median(loads, "cpu_ms"),
        "errors": float(sum(load.errors for load in loads)),
        "memory MB": server.memory_mb(),
        "CPU s to ready": server.cpu_seconds_to_ready,
    }


def _median(loads: list[Load], name: str) -> float:
    return statistics.median(getattr(load, name) for load in loads)


def _print(
    results: dict[str, dict[str, float]], figures: dict[str, float], half_rate: float
) -> None:
    columns = list(next(iter(results.values())))
    print(f"{'1 row, 32 connections':24}" + "".join(f"{column:>16}" for column in columns))
    for name, row in results.items():
        print(f"{name:24}" + "".join(f"{row[column]:16.2f}" for column in columns))
    print(f"\nthe endpoint (half load was {half_rate:.0f} requests/s)")
    for name, value in figures.items():
        holds, goal = GOALS[name]
        sign = "at least" if holds is float.__ge__ else "under"
        print(
            f"{name:24}{value:10.2f}   {'ok    ' if holds(value, goal) else 'MISSED'} "
            f"({sign} {goal:.3g})"
        )


if __name__ == "__main__":
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if subprocess.run(["which", "wrk"], stdout=subprocess.DEVNULL, check=False).returncode:
        sys.exit("wrk is not installed; install it (Debian, Ubuntu: apt-get install wrk).")
    main()
