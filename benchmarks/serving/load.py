"""Load by wrk, and what it did to the server."""

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil

DATA = Path(__file__).parents[2] / "data" / "penguins.csv"
INPUTS = (
    "island",
    "culmen_length_mm",
    "culmen_depth_mm",
    "flipper_length_mm",
    "body_mass_g",
    "sex",
)

SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = %s
local pause = %d
if pause > 0 then
  delay = function() return math.random(0, 2 * pause) end
end
local threads = {}
setup = function(thread) table.insert(threads, thread) end
init = function() refused = 0; math.randomseed(os.time()) end
response = function(status) if status ~= 200 then refused = refused + 1 end end
done = function(summary, latency)
  local wrong = summary.errors.connect + summary.errors.read + summary.errors.timeout
  for _, thread in ipairs(threads) do wrong = wrong + thread:get("refused") end
  io.write(string.format(
    '{"requests": %%d, "seconds": %%f, "errors": %%d, "p50_ms": %%f, "p99_ms": %%f}\\n',
    summary.requests, summary.duration / 1e6, wrong,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True)
class Load:
    """What a while of load showed; ``cpu_ms`` is the server's CPU time per request."""

    rate: float
    errors: int
    p50_ms: float
    p99_ms: float
    cpu_ms: float


def body_of(rows: int) -> str:
    """A request of the first `rows` complete rows of the data."""
    frame = pd.read_csv(DATA).dropna()[list(INPUTS)].head(rows)
    return json.dumps({"dataframe_records": frame.to_dict("records")})


def apply_load(
    url: str, process: psutil.Process, body: str, seconds: int, connections: int, rate: float = 0.0
) -> Load:
    """Post `body` to `url` over `connections`, as fast as it goes or at about `rate` a second."""
    pause = round(1000 * connections / rate) if rate else 0
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT % (f"[==[{body}]==]", pause))
        script.flush()
        before = cpu_seconds(process)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s"]
        done = subprocess.run(
            [*command, "-s", script.name, url], capture_output=True, text=True, check=True
        )
        spent = cpu_seconds(process) - before
    shown = json.loads(done.stdout.splitlines()[-1])
    return Load(
        rate=shown["requests"] / shown["seconds"],
        errors=shown["errors"],
        p50_ms=shown["p50_ms"],
        p99_ms=shown["p99_ms"],
        cpu_ms=1000 * spent / max(shown["requests"], 1),
    )


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process and all that it started."""
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)
