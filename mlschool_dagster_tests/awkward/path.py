"""The whole path of a data set, in process: from its files to the comparison of two versions.

Each step either works or ends in one sentence. `walk` raises whatever else happens.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pandas as pd
import yaml

from mlschool_dagster.capture.records import Label
from mlschool_dagster.clock import utc_now
from mlschool_dagster.dataset.spec import DataSpec, load_spec
from mlschool_dagster.dataset.tables import read_data
from mlschool_dagster.defs.keys import REPORTS
from mlschool_dagster.errors import UserError
from mlschool_dagster.local.platform import local_endpoint
from mlschool_dagster.modeling.compiled import CompiledModel
from mlschool_dagster.modeling.registry import Registry
from mlschool_dagster_tests.awkward.data_sets import AwkwardData
from mlschool_dagster_tests.platform import (
    Config,
    Platform,
    metadata,
    platform_at,
    sentence,
    untouched_home,
)

QUICK = {"epochs": 2, "folds": 2, "hidden_layers": [4], "accuracy_threshold": 0.0}
ROWS_SENT = 40


@dataclass
class Journey:
    """How far a data set came: the steps that worked, and the sentence that refused it, if any."""

    steps: list[str] = field(default_factory=list)
    refusal: str = ""


class RefusedStepError(Exception):
    """A step ended in the one sentence that this carries."""


def walk(data: AwkwardData, folder: Path, mlflow_database: Path) -> Journey:
    """Lead `data` along the whole path, with its files and all state in `folder`."""
    journey = Journey()
    try:
        for step in _steps(data, folder, mlflow_database):
            journey.steps.append(step)
    except (RefusedStepError, UserError) as error:
        journey.refusal = str(error)
        assert journey.refusal.strip()
        assert "\n" not in journey.refusal.strip()
    return journey


def _steps(data: AwkwardData, folder: Path, mlflow_database: Path) -> Iterator[str]:
    spec_file, data_file = folder / "spec.yaml", folder / "data.csv"
    spec_file.write_text(yaml.safe_dump(data.document, allow_unicode=True), encoding="utf-8")
    data_file.write_text(data.csv(), encoding="utf-8")
    spec = load_spec(spec_file)
    yield "spec"
    home = untouched_home(folder / "home", mlflow_database)
    with platform_at(home, MLSCHOOL_SPEC=str(spec_file), MLSCHOOL_DATA=str(data_file)) as platform:
        training = {"training": QUICK}
        _run(platform, "training_job", training)
        yield "training"
        model = _compiled(platform, spec)
        frame = read_data(str(data_file), spec)
        rows = [*_inputs(frame, spec), *data.probes]
        _agree(model, rows)
        yield "parity"
        try:
            _run(platform, "deployment_job", {"endpoint": {"version": "challenger"}})
            yield "deployment"
            _send(platform, spec, model, rows)
            yield "requests"
            _run(platform, "traffic_job", {"send_traffic": {"samples": 20, "drift": "NONE"}})
            yield "traffic"
        finally:
            local_endpoint(platform.settings).stop()
        _run(platform, "batch_job")
        yield "batch"
        with platform.store() as store:
            windows = sorted(store.windows())
            random_truth = random.Random(7)
            store.append_labels(
                Label(capture.event_id, random_truth.choice(spec.target.classes), utc_now(), "test")
                for capture in list(store.unlabelled())
            )
        for window in windows:
            result = _run(platform, "monitoring_job", window=window)
            for report in REPORTS:
                page = Path(metadata(result, report)["report"]).read_text(encoding="utf-8")
                assert "<script>alert(1)" not in page
                assert "</html>" in page
        yield "monitoring"
        _run(platform, "dashboard_job")
        yield "dashboard"
        retraining: Config = {
            **training,
            "training_data": {"captures": "labelled", "accept_new_truth": True},
            "challenger_comparison": {"minimum_rows": 1},
        }
        _run(platform, "retraining_job", retraining)
        yield "retraining"


def _run(platform: Platform, job: str, config: Config | None = None, **options: Any) -> Any:
    """Run `job`; whatever it says of itself fits into JSON."""
    result = platform.run(job, config or {}, **options)
    if not result.success:
        raise RefusedStepError(f"{job}: {sentence(result)}")
    for event in result.get_asset_materialization_events():
        for value in event.materialization.metadata.values():
            _strict(value.value)
    return result


def _strict(value: Any) -> None:
    """Fail where `value` holds what JSON has no word for: the UI could not show it."""
    if isinstance(value, dg.TableMetadataValue):
        value = [record.data for record in value.records]
    if isinstance(value, dict | list | int | float | str):
        json.dumps(value, allow_nan=False)


def _compiled(platform: Platform, spec: DataSpec) -> CompiledModel:
    registry = Registry(platform.settings.tracking_uri, spec.name)
    return CompiledModel.load(registry.fetch("1", platform.settings.home / "versions"))


def _inputs(frame: pd.DataFrame, spec: DataSpec) -> list[dict[str, Any]]:
    drawn = frame.iloc[:: max(1, len(frame) // ROWS_SENT)]
    return [
        {name: None if pd.isna(row[name]) else row[name] for name in spec.input_names}
        for row in drawn.to_dict("records")
    ]


def _agree(model: CompiledModel, rows: Sequence[Mapping[str, Any]]) -> None:
    """Each row gets the same bits alone and among the others."""
    together = model.probabilities(rows)
    for row, expected in zip(rows, together, strict=True):
        assert (model.probabilities([row])[0] == expected).all()


def _send(
    platform: Platform, spec: DataSpec, model: CompiledModel, rows: list[dict[str, Any]]
) -> None:
    """Send `rows` in each format; the answers are the model's, whatever the format."""
    expected = model.probabilities(rows)
    status = local_endpoint(platform.settings).status()
    with httpx.Client(base_url=status.url, timeout=30) as client:
        for body, kind in _bodies(spec, rows):
            answer = client.post("/invocations", content=body, headers={"content-type": kind})
            assert answer.status_code == 200, answer.text
            for entry, shares in zip(answer.json()["predictions"], expected, strict=True):
                assert list(entry["probabilities"].values()) == list(shares)
        document = client.get("/openapi.json")
        assert document.status_code == 200
        assert client.get("/docs").status_code == 200


def _bodies(spec: DataSpec, rows: list[dict[str, Any]]) -> Iterator[tuple[bytes, str]]:
    names = spec.input_names
    split = {"columns": names, "data": [[row[name] for name in names] for row in rows]}
    columns = {name: [row[name] for row in rows] for name in names}
    documents: list[dict[str, Any]] = [
        *({key: rows} for key in ("inputs", "instances", "dataframe_records")),
        {"inputs": columns},
        {"dataframe_split": split},
    ]
    for document in documents:
        yield json.dumps(document).encode(), "application/json"
