"""The command ``demo-docker``: the loop through containers, some of which are killed.

The compose file of ``infra/docker`` under a project name of its own, so that the volumes of a
platform somebody runs by the same file are never touched. Grafana is left out: the loop needs none.
"""

import os
import secrets
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import httpx

from mlschool_dagster.errors import UserError
from mlschool_dagster.local.platform import Say
from mlschool_dagster.settings import ROOT

INFRA = ROOT / "infra" / "docker"
PROJECT = "mlschool-demo"
LOOP = (
    "postgres", "mlflow", "dagster-code", "dagster-webserver", "dagster-daemon", "reports",
)  # fmt: skip
"""The services that become healthy before a first version is deployed."""
KILLED = ("endpoint", "dagster-daemon", "postgres")
DAGSTER, ENDPOINT = "http://127.0.0.1:3000", "http://127.0.0.1:8080"

RUN_SECONDS, CATCH_UP_SECONDS = 600.0, 240.0
CLIENTS = 4
LOAD_SECONDS = 5.0
"""How long clients ask before a kill, while what was killed is gone, and after it is back."""
_RETRY_SECONDS = 0.2

_LAUNCH = """
mutation Launch($job: String!, $config: RunConfigData!) {
  launchRun(executionParams: {selector: {
    repositoryLocationName: "mlschool_dagster.definitions"
    repositoryName: "__repository__", jobName: $job
  }, runConfigData: $config}) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
_STATUS = "query Status($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"
_FAILURES = """
query Failures($run: ID!) {
  logsForRun(runId: $run) { ... on EventConnection { events {
    ... on ExecutionStepFailureEvent { stepKey error { message } }
  } } }
}
"""
_REPORTS = """{
  assetNodeOrError(assetKey: {path: ["drift_report"]}) {
    ... on AssetNode { assetMaterializations(limit: 1) { timestamp } }
  }
}"""


class Dagster:
    """A Dagster webserver at `url`, driven by the calls that its own pages make."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/graphql"

    def run(
        self,
        job: str,
        config: Mapping[str, Any] = MappingProxyType({}),
        seconds: float = RUN_SECONDS,
    ) -> None:
        """Launch `job` with a run config and wait for its end.

        Raises:
            UserError: it did not start, did not end in time, or did not succeed.
        """
        launched = self._ask(_LAUNCH, job=job, config=dict(config))["launchRun"]
        if launched["__typename"] != "LaunchRunSuccess":
            raise UserError(f"Dagster does not start {job}: {launched.get('message', launched)}")
        run = launched["run"]["runId"]

        def status() -> str:
            return str(self._ask(_STATUS, run=run)["runOrError"]["status"])

        wait_until(
            lambda: status() in ("SUCCESS", "FAILURE", "CANCELED"), RUN_SECONDS, f"the end of {job}"
        )
        if (ended := status()) != "SUCCESS":
            events = self._ask(_FAILURES, run=run)["logsForRun"]["events"]
            failed = [f"{e['stepKey']}: {e['error']['message'].strip()}" for e in events if e]
            raise UserError(f"{job} ended as {ended}. {' '.join(failed)}")

    def reported_since(self, since: float) -> bool:
        """Whether a drift report was made after `since`, in seconds since 1970."""
        try:
            newest = self._ask(_REPORTS)["assetNodeOrError"].get("assetMaterializations")
        except UserError:
            # The webserver has kept a connection to the database that was killed.
            return False
        return bool(newest) and int(newest[0]["timestamp"]) > since * 1000

    def _ask(self, query: str, **variables: Any) -> dict[str, Any]:
        document = {"query": query, "variables": variables}
        answer = httpx.post(self._url, json=document, timeout=60).json()
        if "errors" in answer:
            raise UserError(f"Dagster refuses a query: {answer['errors'][0]['message']}")
        data: dict[str, Any] = answer["data"]
        return data


@dataclass(frozen=True, slots=True)
class Compose:
    """The containers of the compose file, with the secrets of the file `secrets`."""

    secrets: Path

    def call(self, *arguments: str) -> str:
        """Run ``docker compose`` with `arguments`; its output.

        Raises:
            UserError: it failed.
        """
        command = [
            "docker", "compose", "--project-name", PROJECT, "--env-file", str(self.secrets),
            "--file", str(INFRA / "compose.yaml"), *arguments,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines()[-5:]
            raise UserError(f"docker compose {arguments[0]} failed: {' / '.join(lines)}")
        return done.stdout

    def answers_kept(self) -> Counter[str]:
        """How often the store holds an answer of each event id."""
        query = "SELECT event_id FROM captures WHERE role <> 'shadow'"
        asked = self.call(
            "exec", "-T", "postgres", "psql", "--username=postgres", "--dbname=captures",
            "--no-align", "--tuples-only", f"--command={query}",
        )  # fmt: skip
        return Counter(asked.split())


@dataclass
class Load:
    """Clients who ask the endpoint without pause, each request until it is answered."""

    token: str
    row: Mapping[str, Any]
    acknowledged: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask as long as the block lasts, and wait for the last answers."""
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _work(self) -> None:
        with httpx.Client(base_url=ENDPOINT, timeout=30) as client:
            while not self._over.is_set():
                event_id = f"kill-{uuid4().hex}"
                while not self._is_answered(client, event_id):
                    time.sleep(_RETRY_SECONDS)

    def _is_answered(self, client: httpx.Client, event_id: str) -> bool:
        headers = {
            "Authorization": f"Bearer {self.token}",
            "X-Amzn-SageMaker-Inference-Id": event_id,
        }
        try:
            answer = client.post("/invocations", json={"inputs": [self.row]}, headers=headers)
        except httpx.TransportError:
            return False
        if answer.status_code == 200:
            self.acknowledged.append(event_id)
        elif answer.status_code != 503:
            self.refused.append(answer.text)
        return answer.status_code != 503


def demo_docker(say: Say) -> None:
    """Bring the containers up, run the loop to a report, kill what must not matter, take all down.

    Raises:
        UserError: Docker is missing, a part of the loop did not happen, or something was lost.
    """
    check_docker()
    with TemporaryDirectory(prefix="mlschool-") as folder:
        known = INFRA / ".env"
        compose = Compose(known if known.exists() else _new_secrets(Path(folder) / ".env"))
        # Somebody watches: what lands is reported on at once.
        os.environ.setdefault("MLSCHOOL_REST_SECONDS", "1")
        try:
            _demonstrate(compose, say)
        finally:
            say("taking the containers and their volumes down")
            compose.call("down", "--volumes", "--timeout", "30")


def check_docker() -> None:
    """Ask for a Docker daemon and for Compose.

    Raises:
        UserError: one of them is missing.
    """
    for command, what in (
        (("info",), "Docker daemon"),
        (("compose", "version"), "Docker Compose 2"),
    ):
        try:
            subprocess.run(["docker", *command], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            raise UserError(
                f"No {what} answers; install and start Docker, or run `make demo`, "
                "which needs none."
            ) from None


def _demonstrate(compose: Compose, say: Say) -> None:
    from dotenv import dotenv_values

    token = dotenv_values(compose.secrets)["MLSCHOOL_ENDPOINT_TOKEN"] or ""
    dagster = Dagster(DAGSTER)
    say("building the images (some minutes, once)")
    compose.call("build", "dagster-code", "endpoint")
    say("starting the containers")
    compose.call("up", "--detach", "--no-build", "--wait", *LOOP)
    compose.call("up", "--detach", "--no-build", "endpoint", "prometheus")
    for job, config in (
        ("training_job", {}),
        ("deployment_job", {"ops": {"endpoint": {"config": {"version": "challenger"}}}}),
    ):
        say(job)
        dagster.run(job, config)
    say("traffic_job")
    before = time.time()
    dagster.run("traffic_job")
    say("captures landed; the daemon's sensor takes over")
    wait_until(lambda: dagster.reported_since(before), CATCH_UP_SECONDS, "a drift report")
    say("the window has its report")
    _kill_under_load(compose, dagster, token, say)


def _kill_under_load(compose: Compose, dagster: Dagster, token: str, say: Say) -> None:
    load = Load(token, _row(token))
    with load.running():
        for service in KILLED:
            time.sleep(LOAD_SECONDS)
            say(f"docker kill {service}, after {len(load.acknowledged)} answers")
            compose.call("kill", service)
            time.sleep(LOAD_SECONDS)
            # Docker takes a kill for a wish, and starts what was killed by hand no more.
            compose.call("up", "--detach", "--no-build", "--wait", service)
            say(f"{service} is back, after {len(load.acknowledged)} answers")
        time.sleep(LOAD_SECONDS)
    over = time.time()
    if load.refused:
        raise UserError(f"{len(load.refused)} requests were refused, the first: {load.refused[0]}")
    expected = set(load.acknowledged)
    wait_until(
        lambda: expected <= compose.answers_kept().keys(),
        CATCH_UP_SECONDS,
        "all acknowledged captures in the store",
    )
    kept = compose.answers_kept()
    doubled = [event_id for event_id in expected if kept[event_id] > 1]
    if doubled:
        raise UserError(f"{len(doubled)} requests were kept twice, the first: {doubled[0]}")
    say(f"{len(expected)} requests acknowledged, none lost, none kept twice")
    wait_until(lambda: dagster.reported_since(over), CATCH_UP_SECONDS, "a report after the kills")
    say("the window has its report again")


def _row(token: str) -> Any:
    """The example row that the endpoint's own description has."""
    document = httpx.get(
        f"{ENDPOINT}/openapi.json", headers={"Authorization": f"Bearer {token}"}, timeout=10
    ).json()
    return next(_examples(document))


def _examples(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "inputs" and isinstance(value, list) and value:
                yield value[0]
            yield from _examples(value)
    elif isinstance(node, list):
        for value in node:
            yield from _examples(value)


def _new_secrets(path: Path) -> Path:
    lines = (INFRA / ".env.example").read_text(encoding="utf-8").splitlines()
    names = [line.removesuffix("=") for line in lines if line.endswith("=")]
    path.write_text("".join(f"{name}={secrets.token_hex(24)}\n" for name in names), "utf-8")
    return path


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until `condition()` holds.

    Raises:
        UserError: it does not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise UserError(
                f"Waited {seconds:.0f} s for {what} in vain; see `docker compose logs`."
            )
        time.sleep(1.0)
