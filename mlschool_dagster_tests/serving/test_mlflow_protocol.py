"""The endpoint does what MLflow's scoring server does with a request, or a list says otherwise.

Both serve the same version, and what both answer is the same to the last bit.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.deployments import PredictionsResponse
from mlflow.pyfunc import scoring_server
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from starlette.testclient import TestClient

from mlschool_dagster.modeling import packaging
from mlschool_dagster.modeling.version_folder import CODE, CODE_FOLDER, VERSION_FOLDER, copy_modules
from mlschool_dagster_tests.serving.mlflow_differences import (
    ANSWERS,
    DIFFERENCES,
    OTHERWISE,
    PAGE,
    REFUSES,
    page,
)
from mlschool_dagster_tests.serving.mlflow_shapes import OTHER, Shape, shapes
from mlschool_dagster_tests.serving.server import Server, free_port, running_server
from mlschool_dagster_tests.serving.tiny_model import ROW, SPEC, tiny_model

SHAPES = shapes()
LISTED = {name: d for d in DIFFERENCES for name in d.shapes()}
Outcome = list[tuple[Any, ...]] | None
"""Prediction, confidence and probabilities of each row; None of a request that is refused."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The version that `server` serves, as MLflow keeps it."""
    home = tmp_path_factory.mktemp("saved")
    tiny_model(1).save(home / VERSION_FOLDER)
    copy_modules(CODE, home / VERSION_FOLDER / CODE_FOLDER)
    mlflow.pyfunc.save_model(
        home / "model",
        python_model=str(Path(packaging.__file__).with_name("serving_model.py")),
        artifacts={VERSION_FOLDER: str(home / VERSION_FOLDER)},
        signature=packaging._signature(SPEC),
        pip_requirements=["mlflow"],
    )
    return home / "model"


@pytest.fixture(scope="module")
def reference(saved: Path) -> Iterator[TestClient]:
    """MLflow's scoring server, in this process."""
    model = mlflow.pyfunc.load_model(str(saved))
    with pytest.MonkeyPatch.context() as patch:
        # MLflow's server says so to the whole process.
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
        with TestClient(scoring_server.init(model), raise_server_exceptions=False) as client:
            yield client


@contextmanager
def mlflow_models_serve(model: Path) -> Iterator[httpx.Client]:
    """A process that serves `model` as ``mlflow models serve`` does, once it answers."""
    port = free_port()
    command = f"-m mlflow models serve --env-manager local -h 127.0.0.1 -p {port} -m {model}"
    process = subprocess.Popen(
        [sys.executable, *command.split()],
        # MLflow runs uvicorn by name, so the environment must be an activated one.
        env={
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        ScoringServerClient("127.0.0.1", port).wait_server_ready(120, process)
        # Its connections end after a few idle seconds, at times just as the next request is sent.
        anew = httpx.Limits(max_keepalive_connections=0)
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, limits=anew, timeout=60) as client:
            yield client
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def outcome(client: httpx.Client, shape: Shape) -> Outcome:
    headers = {} if shape.content_type is None else {"content-type": shape.content_type}
    answer = client.post("/invocations", content=shape.body, headers=headers)
    if answer.status_code != 200:
        return None
    return [
        (entry["prediction"], entry["confidence"], *probabilities(entry))
        for entry in answer.json()["predictions"]
    ]


def probabilities(entry: dict[str, Any]) -> Iterator[float]:
    nested = entry.get("probabilities")
    for label in SPEC.target.classes:
        yield entry[f"probability_{label}"] if nested is None else nested[label]


def test_every_shape_has_a_name_of_its_own_and_every_listed_difference_is_about_one() -> None:
    assert len(SHAPES) > 108
    assert max(Counter(shape.name for shape in SHAPES).values()) == 1
    assert max(Counter(name for d in DIFFERENCES for name in d.shapes()).values()) == 1
    assert LISTED.keys() <= {shape.name for shape in SHAPES}


def differences(theirs: httpx.Client, ours: httpx.Client) -> dict[str, tuple[str, str]]:
    """What both do with each shape where that is not the same."""
    result = {}
    for shape in SHAPES:
        their, our = outcome(theirs, shape), outcome(ours, shape)
        if their == our:
            continue
        if their is None or our is None:
            result[shape.name] = (REFUSES, ANSWERS) if their is None else (ANSWERS, REFUSES)
        else:
            result[shape.name] = (ANSWERS, OTHERWISE)
    return result


def test_it_does_what_mlflow_does_or_the_difference_is_listed(
    server: Server, reference: TestClient
) -> None:
    listed = {name: (d.mlflow, d.ours) for name, d in LISTED.items()}
    assert differences(reference, server.client) == listed


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_does_what_mlflow_models_serve_does(server: Server, saved: Path) -> None:
    listed = {name: (d.mlflow, d.ours) for name, d in LISTED.items()}
    with mlflow_models_serve(saved) as theirs:
        assert differences(theirs, server.client) == listed


def test_the_page_lists_the_differences() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


NUMBERS = ["culmen_length_mm", "culmen_depth_mm", "flipper_length_mm", "body_mass_g"]
FRAME = pd.DataFrame([ROW, OTHER])
FRAMES = {
    "plain": FRAME,
    "one row": FRAME.head(1),
    "many rows": pd.concat([FRAME] * 20, ignore_index=True),
    "object": FRAME.astype(object),
    "integers": FRAME.astype({"body_mass_g": np.int64, "flipper_length_mm": np.int32}),
    "single precision": FRAME.astype({"body_mass_g": np.float32}),
    "nullable integers": FRAME.assign(body_mass_g=pd.array([5800, 3800], "Int64")),
    "missing number": FRAME.assign(body_mass_g=[np.nan, 3800.0]),
    "missing number throughout": FRAME.assign(body_mass_g=np.nan),
    "missing text": FRAME.assign(sex=[np.nan, "FEMALE"]),
    "None": FRAME.assign(sex=pd.Series([None, "FEMALE"]), body_mass_g=pd.Series([None, 3800])),
    "categories": FRAME.astype({"sex": "category", "island": "category"}),
    "string type": FRAME.astype({"sex": "string", "island": "string"}),
    "numbers as text": FRAME.astype({"body_mass_g": str}),
    "named index": FRAME.set_index(pd.Index(["a", "b"], name="bird")),
    "dates as index": FRAME.set_index(pd.date_range("2026-01-01", periods=2)),
    "several indexes": FRAME.set_index(pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])),
    "columns in reverse": FRAME[FRAME.columns[::-1]],
    "surplus columns": FRAME.assign(
        species=pd.Series(["Gentoo", None]), note=pd.Series([{"a": 1}, [2]])
    ),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_mlflows_client_gets_from_it_what_it_gets_from_mlflows_server(
    frame: pd.DataFrame,
    server: Server,
    reference: TestClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = server.client.base_url
    client = ScoringServerClient(url.host, url.port)
    client.wait_server_ready()
    sent: list[bytes] = []
    post = scoring_server.client.requests.post

    def posting(url: str, data: str, headers: dict[str, str]) -> Any:
        sent.append(data.encode())
        return post(url=url, data=data, headers=headers)

    monkeypatch.setattr(scoring_server.client.requests, "post", posting)
    answer = client.invoke(frame, params={"any": 1})
    assert isinstance(answer, PredictionsResponse)
    assert len(answer.get_predictions()) == len(frame)
    theirs = outcome(reference, Shape("sent", sent[0], "application/json"))
    if theirs is not None:
        ours = [
            (e["prediction"], e["confidence"], *probabilities(e)) for e in answer["predictions"]
        ]
        assert ours == theirs


def test_mlflows_client_gets_the_reason(server: Server) -> None:
    url = server.client.base_url
    client = ScoringServerClient(url.host, url.port)
    with pytest.raises(Exception, match=r"error code 422.*must be one of Biscoe.*not 'Anvers'"):
        client.invoke(FRAME.assign(island="Anvers"))
    assert json.loads(client.get_version())["endpoint"] == "penguins"
