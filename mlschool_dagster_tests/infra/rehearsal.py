"""The compose file's services as processes of this machine, for where there is no Docker.

Commands, environments, health checks and the order of starting are the file's own. What Docker
would provide is replaced: names of services by loopback, ports by free ones, folders by folders
below one of the test's.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from mlschool_dagster.settings import ROOT
from mlschool_dagster_tests.postgres import PostgresServer
from mlschool_dagster_tests.serving.server import free_port

INFRA = ROOT / "infra" / "docker"
TIMEOUT = 300.0
PORTS = ("3000", "5000", "5432", "8080", "8090")
FOLDERS = ("/var/lib/mlschool", "/var/lib/mlflow", "/var/lib/dagster", "/opt/dagster")
REPLACED_BY_THE_TEST = ("postgres", "prometheus", "grafana")

Process = subprocess.Popen[bytes]


@dataclass
class Rehearsal:
    """The services that run, below `folder`, with `secrets` in place of the file ``.env``."""

    folder: Path
    secrets: Mapping[str, str]
    ports: dict[str, str] = field(default_factory=lambda: {p: str(free_port()) for p in PORTS})
    _processes: dict[str, Process] = field(default_factory=dict)
    _running: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Rehearsal":
        postgres = self._running.enter_context(PostgresServer())
        self.ports["5432"] = str(postgres.port)
        environment = {**postgres.administration(), **self.secrets}
        subprocess.run([str(INFRA / "databases.sh")], env=environment, check=True)
        for there in (*FOLDERS, "/var/lib/mlschool/files"):
            (self.folder / there[1:]).mkdir(parents=True)
        for name in ("dagster.yaml", "workspace.yaml"):
            text = self._here((INFRA / name).read_text(encoding="utf-8"))
            (self.folder / "opt" / "dagster" / name).write_text(text)
        return self

    def __exit__(self, *error: object) -> None:
        self._running.close()

    def url(self, port: str, path: str = "") -> str:
        """The address on this machine of what listens on `port` in its container."""
        return f"http://127.0.0.1:{self.ports[port]}{path}"

    def start(self) -> None:
        """Start every service once those it waits for are healthy, and wait until they are."""
        services = yaml.safe_load(self._here((INFRA / "compose.yaml").read_text("utf-8")))[
            "services"
        ]
        waiting = {n: s for n, s in services.items() if n not in REPLACED_BY_THE_TEST}
        started = set(REPLACED_BY_THE_TEST)
        while waiting:
            name = next(n for n, s in waiting.items() if started.issuperset(s["depends_on"]))
            service = waiting.pop(name)
            for other, needs in service["depends_on"].items():
                if needs["condition"] == "service_healthy" and other not in REPLACED_BY_THE_TEST:
                    self.wait_until_healthy(services[other])
            if service["restart"] == "no":
                self._run(service)
            else:
                self._start(name, service)
            started.add(name)
        # The endpoint is healthy only once a version has been deployed.
        for name in self._processes.keys() - {"endpoint"}:
            self.wait_until_healthy(services[name])

    def wait_until_healthy(self, service: Mapping[str, Any]) -> None:
        """Wait until the service's own check passes."""
        image = self._image(service)
        check = service["healthcheck"]["test"][1:] if "healthcheck" in service else image["check"]
        environment = self._environment(service, image)

        def is_healthy() -> bool:
            asked = subprocess.run(check, env=environment, cwd=ROOT, capture_output=True)
            return asked.returncode == 0

        self.wait_until(is_healthy)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Poll until `condition()` holds; fail if a service ends or patience does."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            for name, process in self._processes.items():
                assert process.poll() is None, (self.folder / f"{name}.log").read_text()[-3000:]
            time.sleep(0.2)

    def _run(self, service: Mapping[str, Any]) -> None:
        """Run a service that ends by itself."""
        environment = self._environment(service, self._image(service))
        subprocess.run(service["command"], env=environment, cwd=ROOT, check=True)

    def _start(self, name: str, service: Mapping[str, Any]) -> None:
        image = self._image(service)
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                service.get("command", image["command"]),
                env=self._environment(service, image),
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        self._processes[name] = process
        self._running.callback(_end, process)

    def _image(self, service: Mapping[str, Any]) -> dict[str, Any]:
        """What the service's Dockerfile says of environment, command and check."""
        text = (ROOT / service["build"]["dockerfile"]).read_text(encoding="utf-8")
        text = self._here(text.replace("\\\n", " "))
        (environment,) = re.findall(r"^ENV (.*)$", text, re.MULTILINE)
        check, command = re.findall(r"^(?:HEALTHCHECK.* )?CMD (\[.*)$", text, re.MULTILINE)
        return {
            "environment": dict(setting.split("=") for setting in environment.split()),
            "check": json.loads(check),
            "command": json.loads(command),
        }

    def _environment(self, service: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{INFRA}:{os.environ['PATH']}"
        stated = {**image["environment"], **service.get("environment", {})}
        here = {"PATH": path, "PYTHONPATH": str(ROOT), "MLSCHOOL_ENDPOINT_HOST": "127.0.0.1"}
        return {name: str(value) for name, value in (stated | here).items()}

    def _here(self, text: str) -> str:
        """`text` with the addresses, folders and secrets of this rehearsal."""
        text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda secret: self.secrets[secret[1]], text)
        text = re.sub(r"\$\{\w+:-(\w*)\}", r"\1", text)
        for folder in FOLDERS:
            text = text.replace(folder, f"{self.folder}{folder}")
        text = re.sub(r"\b(postgres|mlflow|endpoint)(?=:\d)", "127.0.0.1", text)
        text = re.sub(r"(?<=_HOST: )postgres|0\.0\.0\.0", "127.0.0.1", text)
        for port, free in self.ports.items():
            text = re.sub(rf"\b{port}\b", free, text)
        return text


def _end(process: Process) -> None:
    family = [psutil.Process(process.pid)]
    family += family[0].children(recursive=True)
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
