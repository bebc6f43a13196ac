import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow import MlflowClient

from mlschool_dagster.capture.records import Role
from mlschool_dagster.clock import utc_now
from mlschool_dagster.dataset.spec import Column, DataSpec, InputValue, NumericColumn, load_spec
from mlschool_dagster.dataset.tables import content_digest
from mlschool_dagster.modeling.comparison import correct_mask
from mlschool_dagster.modeling.compiled import CompiledModel, DenseLayer, compile_model
from mlschool_dagster.modeling.evaluation import samples
from mlschool_dagster.modeling.features import input_frame
from mlschool_dagster.modeling.packaging import environment, git_commit
from mlschool_dagster.modeling.registry import Registry
from mlschool_dagster.modeling.training import TrainingResult
from mlschool_dagster.serving.batching import predict
from mlschool_dagster.serving.desired_state import VersionFolder
from mlschool_dagster.serving.model_router import Version
from mlschool_dagster.serving.prediction_request import PredictionRequest
from mlschool_dagster.serving.validation import Accepted, InvalidRequestError, Validator
from mlschool_dagster_tests.modeling.logged import Logged
from mlschool_dagster_tests.serving.tiny_model import ROW, tiny_model
from mlschool_dagster_tests.worlds import DATA

READY_SECONDS = 120
BATCH = 8


def values_of(column: Column) -> st.SearchStrategy[InputValue]:
    if isinstance(column, NumericColumn):
        known: st.SearchStrategy[InputValue] = st.floats(column.minimum, column.maximum) | (
            st.integers(math.ceil(column.minimum), math.floor(column.maximum))
        )
    else:
        known = st.sampled_from([*column.categories, "elsewhere"])
    return st.none() | known if column.nullable else known


COLUMNS = load_spec(DATA / "penguins.yaml").columns
NAMES = [column.name for column in COLUMNS]
ROWS = st.fixed_dictionaries({column.name: values_of(column) for column in COLUMNS})


@pytest.fixture(scope="module")
def compiled(trained: TrainingResult, spec: DataSpec) -> CompiledModel:
    return compile_model(trained.transformer, trained.model, spec)


@pytest.fixture(scope="module")
def served(logged: Logged) -> "mlflow.pyfunc.PyFuncModel":
    mlflow.set_tracking_uri(logged.tracking_uri)
    return mlflow.pyfunc.load_model(logged.model_uri)


@given(rows=st.lists(ROWS, min_size=BATCH, max_size=BATCH))
@example(rows=[dict.fromkeys(NAMES)] * BATCH)
@example(rows=[dict.fromkeys(NAMES) | {"island": "elsewhere", "sex": "elsewhere"}] * BATCH)
def test_the_arrays_predict_as_scikit_learn_and_keras(
    rows: list[dict[str, InputValue]],
    compiled: CompiledModel,
    trained: TrainingResult,
    spec: DataSpec,
) -> None:
    frame = input_frame(pd.DataFrame(rows), spec)
    features = trained.transformer.transform(frame)
    expected = np.asarray(trained.model.predict_on_batch(features.astype(np.float32)))
    # Keras's own differ between sizes of batches and CPUs.
    np.testing.assert_allclose(compiled.probabilities(rows), expected, atol=1e-5)


def any_value_of(column: Column) -> st.SearchStrategy[Any]:
    """What clients send for `column`: mostly good, sometimes not."""
    if isinstance(column, NumericColumn):
        odd = st.sampled_from(
            [math.inf, -math.inf, math.nan, 1e300, "48.6", " 40 ", "many", "", True, "NaN", -1, 0]
        )
    else:
        odd = st.sampled_from(["elsewhere", "", "NA", " Biscoe", "MALE ", 1, 2.5, math.nan, False])
    return st.none() | values_of(column) | odd


@given(
    rows=st.lists(
        st.fixed_dictionaries({c.name: values_of(c) for c in COLUMNS})
        | st.fixed_dictionaries({c.name: any_value_of(c) for c in COLUMNS})
        | st.fixed_dictionaries(
            {c.name: values_of(c) for c in COLUMNS if not c.nullable},
            optional={c.name: any_value_of(c) for c in COLUMNS if c.nullable},
        ),
        min_size=1,
        max_size=6,
    )
)
@example(rows=[{"island": "Biscoe"}])
@example(rows=[ROW])
@example(rows=[{**ROW, "sex": None, "body_mass_g": None}, {**ROW, "sex": None}])
@example(rows=[{**ROW, "culmen_depth_mm": math.inf}])
def test_mlflow_takes_and_refuses_what_the_endpoint_does_and_answers_the_same_bits(
    rows: list[dict[str, Any]], served: "mlflow.pyfunc.PyFuncModel", compiled: CompiledModel
) -> None:
    body = json.dumps({"dataframe_records": rows}).encode()
    try:
        accepted = Validator(compiled.spec).accept(body, "application/json")
    except InvalidRequestError as error:
        with pytest.raises(mlflow.MlflowException) as refused:
            served.predict(pd.DataFrame(rows))
        for fault in error.faults:
            assert fault["reason"] in str(refused.value)
        return
    answers = served.predict(pd.DataFrame(rows))
    columns = [f"probability_{label}" for label in compiled.spec.target.classes]
    alone = [compiled.probabilities([row])[0] for row in accepted.rows]
    np.testing.assert_array_equal(answers[columns], alone)


def test_the_run_records_how_the_model_came_about(
    logged: Logged, penguins: pd.DataFrame, trained: TrainingResult
) -> None:
    client = MlflowClient(logged.tracking_uri)
    run = client.get_run(logged.run_id)
    assert run.data.params["hidden_layers"] == "(10, 8)"
    assert run.data.metrics["accuracy_mean"] > 0.98
    assert {"accuracy_std", "expected_calibration_error"} <= run.data.metrics.keys()
    history = client.get_metric_history(logged.run_id, "epoch_loss")
    assert [point.step for point in history] == list(range(1, 51))
    [dataset] = run.inputs.dataset_inputs
    assert dataset.dataset.digest == content_digest(penguins)[:36]
    assert {file.path for file in client.list_artifacts(logged.run_id)} >= {
        "calibration.json",
        "classification_report.json",
        "confusion_matrix.json",
        "environment.json",
        "pictures",
    }
    described = json.loads(
        Path(client.download_artifacts(logged.run_id, "environment.json")).read_text()
    )
    assert described["packages"]["keras"]


def test_a_broken_installation_of_anything_is_named_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, metadata in {"empty": None, "odd": b"\xff\xfe", "nameless": b"Version: 1\n"}.items():
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        if metadata is not None:
            (folder / "METADATA").write_bytes(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    result = environment()
    assert result["packages"]["numpy"] == np.__version__
    assert [Path(path).name for path in result["unreadable"]] == [
        "empty-1.0.dist-info",
        "nameless-1.0.dist-info",
        "odd-1.0.dist-info",
    ]


def test_the_commit_is_that_of_the_code_or_none(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", *identity, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    source = tmp_path / "code.py"
    source.touch()
    inside = tmp_path / "environment" / "code.py"
    inside.parent.mkdir()
    inside.touch()
    assert git_commit(source) is None
    git("init")
    git("add", "code.py")
    assert git_commit(source) is None
    git("commit", "-m", "first")
    assert git_commit(source) == git("rev-parse", "HEAD")
    assert git_commit(inside) is None


def test_each_fold_is_a_nested_run(logged: Logged, trained: TrainingResult) -> None:
    client = MlflowClient(logged.tracking_uri)
    experiment = client.get_run(logged.run_id).info.experiment_id
    nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{logged.run_id}'")
    assert sorted(run.info.run_name for run in nested) == [f"fold-{n}" for n in range(1, 6)]
    assert all(run.info.status == "FINISHED" for run in nested)
    assert nested[0].data.params["hidden_layers"] == "(10, 8)"
    assert sorted(run.data.params["fold"] for run in nested) == ["1", "2", "3", "4", "5"]
    rows = [r.data.metrics["rows_trained_on"] + r.data.metrics["rows_held_out"] for r in nested]
    assert rows == [344] * 5
    scores = {run.info.run_name: run.data.metrics["accuracy"] for run in nested}
    last = trained.curves[2].validation_accuracy[-1]
    assert scores["fold-3"] == pytest.approx(last, abs=1e-6)
    history = client.get_metric_history(nested[0].info.run_id, "epoch_validation_accuracy")
    assert len(history) == 50


def test_the_model_states_its_schema_example_and_pinned_requirements(logged: Logged) -> None:
    mlflow.set_tracking_uri(logged.tracking_uri)
    info = mlflow.models.get_model_info(logged.model_uri)
    assert info.signature.inputs.input_names()[0] == "island"
    assert info.signature.inputs.required_input_names() == ["island"]
    assert info.signature.outputs.input_names()[:2] == ["prediction", "confidence"]
    assert info.saved_input_example_info is not None
    folder = Path(mlflow.artifacts.download_artifacts(logged.model_uri))
    requirements = (folder / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in requirements} == {
        "mlflow",
        "numpy",
        "orjson",
        "pandas",
    }
    assert all("==" in line for line in requirements)


def test_a_version_holds_no_pickle(logged: Logged) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(logged.model_uri))
    files = {path for path in folder.rglob("*") if path.is_file()}
    assert {path.name for path in files} >= {
        "compiled.npz",
        "network.keras",
        "reference.parquet",
        "spec.json",
    }
    for path in files:
        assert path.suffix not in {".pkl", ".pickle", ".joblib"}
        if zipfile.is_zipfile(path):
            names = zipfile.ZipFile(path).namelist()
            assert not any(name.endswith((".pkl", ".pickle")) for name in names)


def test_the_served_model_takes_what_its_signature_states(
    served: "mlflow.pyfunc.PyFuncModel",
    compiled: CompiledModel,
    penguins: pd.DataFrame,
    spec: DataSpec,
) -> None:
    rows = input_frame(penguins.head(BATCH), spec)
    answers = served.predict(rows)
    records = cast("list[dict[str, InputValue]]", rows.to_dict("records"))
    expected = compiled.probabilities(records)
    assert answers["prediction"].tolist() == [
        spec.target.classes[code] for code in expected.argmax(axis=1)
    ]
    np.testing.assert_array_equal(answers["confidence"], expected.max(axis=1))


def test_of_equal_probabilities_the_first_class_is_predicted_everywhere(
    logged: Logged, spec: DataSpec, tmp_path: Path
) -> None:
    tied = replace(
        tiny_model(), layers=(DenseLayer(np.zeros((9, 3)), np.array([-1.0, 2.0, 2.0]), "softmax"),)
    )
    shutil.copytree(Path(mlflow.artifacts.download_artifacts(logged.model_uri)), tmp_path / "model")
    folder = tmp_path / "model" / "artifacts" / "version"
    tied.save(folder)
    answers = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(pd.DataFrame([ROW]))
    assert answers["prediction"].tolist() == ["Chinstrap"]
    version = Version(VersionFolder("1", folder), tied, Validator(spec), utc_now())
    asked = PredictionRequest(
        Role.PRIMARY, version, None, Accepted([ROW], [0], 1, [], []), ["a"], True, 1.0
    )
    predict([asked], "penguins")
    assert asked.captures[0].prediction == "Chinstrap"
    assert correct_mask(tied, pd.DataFrame([{**ROW, "species": "Chinstrap"}])).tolist() == [True]


@pytest.mark.slow
def test_a_version_loads_where_neither_the_package_nor_keras_is_installed(
    logged: Logged, tmp_path: Path
) -> None:
    folder = mlflow.artifacts.download_artifacts(logged.model_uri)
    script = (
        "import sys\n"
        "for name in ('mlschool_dagster', 'keras', 'jax', 'sklearn'): sys.modules[name] = None\n"
        "import mlflow, pandas as pd\n"
        f"model = mlflow.pyfunc.load_model({folder!r})\n"
        "print(model.predict(model.input_example)['prediction'].tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert "Adelie" in done.stdout, done.stderr


@pytest.mark.slow
def test_mlflow_serves_the_champion(
    logged: Logged, trained: TrainingResult, penguins: pd.DataFrame, spec: DataSpec, tmp_path: Path
) -> None:
    registry = Registry(logged.tracking_uri, "served")
    registry.promote(registry.register(logged.model_uri, logged.run_id, {}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = f"-m mlflow models serve -m models:/served@champion --env-manager local -p {port}"
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, *command.split(), "-h", "127.0.0.1"],
            # MLflow runs uvicorn by name, so the environment must be an activated one.
            env={
                **os.environ,
                "MLFLOW_TRACKING_URI": logged.tracking_uri,
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}/ping", server, log)
        known = samples(trained, penguins, spec)
        rows: list[dict[str, InputValue]] = [sample.inputs for sample in known]
        rows[0] = {**rows[0], "sex": None, "body_mass_g": None}
        rows[1] = {**rows[1], "body_mass_g": int(str(rows[1]["body_mass_g"]).split(".")[0])}
        for body in (
            {"dataframe_records": rows},
            {"inputs": rows},
            {"dataframe_split": pd.DataFrame(rows).astype(object).to_dict("split")},
        ):
            text = json.dumps(body).replace("NaN", "null")
            answer = httpx.post(
                f"http://127.0.0.1:{port}/invocations",
                content=text,
                headers={"Content-Type": "application/json"},
                timeout=60,
            )
            assert answer.status_code == 200, answer.text
            predictions = [row["prediction"] for row in answer.json()["predictions"]]
            assert predictions == [sample.prediction for sample in known]
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _wait_until_ready(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    pytest.fail(f"not ready after {READY_SECONDS} s: {log.read_text()}")
