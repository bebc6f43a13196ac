"""``serve --model``: exactly one version, as managed services start the image's entry point."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlschool_dagster.capture.store import open_store
from mlschool_dagster.settings import ROOT, Settings
from mlschool_dagster_tests.serving.server import TIMEOUT, answers, end, free_port, wait_for
from mlschool_dagster_tests.serving.tiny_model import ROW, tiny_model

SERVE = ROOT / "infra" / "docker" / "serve"
NOBODY = 65534


@dataclass
class Container:
    """A server started by the entry point, and a client that talks to it."""

    process: "subprocess.Popen[bytes]"
    client: httpx.Client
    temporary: Path
    log: Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Version 3 in a folder of folders, as services mount it, that nobody may write."""
    mount = tmp_path / "model"
    version = mount / "penguins" / "3" / "version"
    tiny_model(3).save(version)
    for path in (*version.iterdir(), version, *version.parents[: len(version.parents)]):
        if path.is_relative_to(mount):
            path.chmod(0o555 if path.is_dir() else 0o444)
    return mount


def environment(**changes: str) -> dict[str, str]:
    """The whole environment of a container."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MLSCHOOL_ENDPOINT_HOST": "127.0.0.1",
        **changes,
    }


@contextmanager
def serving(
    tmp_path: Path, arguments: Sequence[str], user: int | None = None, **changes: str
) -> Iterator[Container]:
    """The server that ``serve`` starts, by default with one worker."""
    port, log, temporary = free_port(), tmp_path / "log", tmp_path / "tmp"
    temporary.mkdir()
    temporary.chmod(0o777)
    settings = {
        "MLSCHOOL_ENDPOINT_PORT": str(port),
        "MLSCHOOL_ENDPOINT_WORKERS": "1",
        "TMPDIR": str(temporary),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(SERVE), *arguments],
            env=environment(**settings, **changes),
            cwd="/",
            stdout=output,
            stderr=output,
            user=user,
        )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT) as client:
        try:
            wait_for(lambda: answers(client) and client.get("/ping").is_success, process)
            yield Container(process, client, temporary, log)
        finally:
            end(process)


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below `folder`, with its times of change."""
    result = {}
    for path in sorted(folder.rglob("*")):
        status = path.stat()
        result[str(path)] = (status.st_mtime_ns, status.st_ctime_ns)
    return result


def test_it_serves_that_version_and_leaves_the_folder_alone(tmp_path: Path, model: Path) -> None:
    before = contents(model)
    with serving(tmp_path, ["--model", str(model)]) as container:
        for path in ("/ping", "/ready", "/live", "/version", "/metrics", "/openapi.json"):
            assert container.client.get(path).status_code == 200, path
        assert container.client.get("/version").json()["version"] == "3"
        answer = container.client.post("/invocations", json={"inputs": [ROW]})
        assert answer.status_code == 200
        assert answer.json()["model_version"] == "3"
        refused = container.client.post("/invocations", json={"inputs": [{"island": 5}]})
        assert refused.status_code in (400, 422)
        assert any(container.temporary.iterdir())
        container.process.terminate()
        assert container.process.wait(TIMEOUT) == 0
        assert list(container.temporary.iterdir()) == []
    assert contents(model) == before
    assert '"level": "error"' not in container.log.read_text()


def test_clients_of_sagemaker_and_mlflow_are_answered(tmp_path: Path, model: Path) -> None:
    import pandas as pd
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    with serving(tmp_path, [], AZUREML_MODEL_DIR=str(model)) as container:
        # As SageMaker forwards it: without a token, whatever was sent with it.
        headers = {
            "Content-Type": "text/csv",
            "Accept": "application/json",
            "X-Amzn-SageMaker-Inference-Id": "of-sagemaker",
            "X-Amzn-SageMaker-Custom-Attributes": "trace=1",
        }
        csv = ",".join(ROW) + "\n" + ",".join(str(value) for value in ROW.values()) + "\n"
        answer = container.client.post("/invocations", content=csv, headers=headers)
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["event_id"] == "of-sagemaker"
        url = container.client.base_url
        client = ScoringServerClient(url.host, url.port)
        predictions = client.invoke(pd.DataFrame([ROW, ROW])).get_predictions()
        assert len(predictions) == 2


def test_captures_go_to_a_sink_that_is_given(tmp_path: Path, model: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'captures.db'}"
    with serving(
        tmp_path,
        ["--model", str(model)],
        MLSCHOOL_CAPTURE_STORE=uri,
        MLSCHOOL_MODEL_VERSION="7",
    ) as container:
        headers = {"X-Amzn-SageMaker-Inference-Id": "kept"}
        container.client.post("/invocations", json={"inputs": [ROW]}, headers=headers)
    store = open_store(uri)
    (capture,) = store.unlabelled()
    store.close()
    assert (capture.event_id, capture.model_version) == ("kept", "7")


def _is_reachable_to_others() -> bool:
    """Whether another user can import the server."""
    command = [sys.executable, "-c", "import mlschool_dagster.serving.app"]
    try:
        subprocess.run(command, env=environment(), cwd="/", user=NOBODY, check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start it as somebody else")
def test_it_needs_no_privileges(tmp_path: Path, model: Path) -> None:
    if not _is_reachable_to_others():
        pytest.skip("this Python is out of reach of other users")
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            pytest.skip("pytest's folders are out of reach of other users")
    with serving(tmp_path, ["--model", str(model)], user=NOBODY) as container:
        assert container.client.post("/invocations", json={"inputs": [ROW]}).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "{empty}"], "{empty} has no version folder"),
        (["--model", "{empty}/nowhere"], "{empty}/nowhere has no version folder"),
        (["--model", "{several}"], "{several} has several version folders"),
        (["--model"], "serve --model needs the folder of a version"),
    ],
)
def test_a_folder_without_one_version_is_named(
    tmp_path: Path, arguments: list[str], expected: str
) -> None:
    places = {"empty": tmp_path / "empty", "several": tmp_path / "several"}
    places["empty"].mkdir()
    for number in (1, 2):
        tiny_model(number).save(places["several"] / str(number))
    finished = subprocess.run(
        [str(SERVE), *(part.format(**places) for part in arguments)],
        env=environment(MLSCHOOL_ENDPOINT_PORT=str(free_port())),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert finished.returncode != 0
    assert expected.format(**places) in finished.stdout + finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr


@pytest.fixture
def commanded(tmp_path: Path) -> Any:
    """What the entry point would run, with arguments and changes of the environment."""
    shown = tmp_path / "bin" / "python"
    shown.parent.mkdir()
    shown.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    shown.chmod(0o755)

    def command(*arguments: str, **changes: str) -> dict[str, str]:
        path = f"{shown.parent}:/usr/bin:/bin"
        printed = subprocess.run(
            [str(SERVE), *arguments],
            env={"PATH": path, **changes},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\n")[2:-1]
        return dict(zip(printed[::2], printed[1::2], strict=True))

    return command


def test_services_find_it_where_they_look(commanded: Any) -> None:
    """SageMaker asks port 8080 on any address; Azure ML gives the folder by a variable."""
    azure = commanded(AZUREML_MODEL_DIR="/var/azureml-app/model/3")
    assert azure["--model"] == "/var/azureml-app/model/3"
    assert azure["--host"] == "0.0.0.0"  # noqa: S104
    assert Settings.model_fields["endpoint_port"].default == 8080
    given = commanded("--model", "/opt/ml/model", MLSCHOOL_MODEL_VERSION="7")
    assert (given["--model"], given["--model-version"]) == ("/opt/ml/model", "7")
    own = commanded(MLSCHOOL_ENDPOINT_NAME="penguins")
    assert "--model" not in own
    assert own["--home"] == "/var/lib/mlschool/endpoint"
