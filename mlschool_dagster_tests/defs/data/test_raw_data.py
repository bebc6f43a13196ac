"""Raw data: read and shown, or refused in one sentence with nothing written."""

import re
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from mlflow import MlflowClient

from mlschool_dagster_tests.platform import (
    DATA,
    Platform,
    checks,
    materialized,
    sentence,
)


def data_with(old: str, new: str, times: int = 1) -> Callable[[], bytes]:
    return lambda: DATA.read_text().replace(old, new, times).encode()


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", r"data\.csv is empty; it needs a header and rows\."),
    "latin-1": (
        lambda: DATA.read_text().replace("Biscoe", "Bisc\xf6e").encode("latin-1"),
        r"data\.csv is not UTF-8 \(line \d+\); it looks like Latin-1, as of Windows: save",
    ),
    "text for a number": (
        data_with("39.1", "long"),
        r"Column culmen_length_mm must be numeric but has text such as 'long' in row data\.csv:2;",
    ),
    "a column less": (
        data_with("body_mass_g", "mass"),
        r"lacks the column body_mass_g; it has",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_read_is_reported_in_one_sentence(
    platform: Platform, tmp_path: Path, case: str
) -> None:
    content, message = BROKEN[case]
    path = tmp_path / "data.csv"
    path.write_bytes(content())
    refused(platform, path, message)


def test_a_missing_file_is_reported_in_one_sentence(platform: Platform, tmp_path: Path) -> None:
    refused(platform, tmp_path / "nowhere.csv", r"There is no data at .*nowhere\.csv; give")


def test_broken_contract_names_columns_and_rows(platform: Platform, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    text = DATA.read_text().replace("3750", "-3750", 1).replace("Dream", "Atlantis", 1)
    path.write_text(text)
    result = refused(platform, path, "breaks the data contract")
    contract = checks(result)["contract"]
    assert contract.description is not None
    for message in (sentence(result), contract.description):
        assert "Column body_mass_g has values outside 1000 to 10000 g" in message
        assert "such as -3750.0, in row data.csv:2" in message
        assert "Column island has values other than Biscoe, Dream, Torgersen" in message


def refused(platform: Platform, path: Path, message: str) -> dg.ExecuteInProcessResult:
    """Train on `path`: one sentence, a failed check, and no trace anywhere else."""
    result = platform.run("training_job", {"raw_penguins": {"uri": str(path)}})
    assert not result.success
    assert re.search(message, sentence(result))
    assert not checks(result)["contract"].passed
    assert materialized(result) == set()
    assert not (platform.files / "data").exists()
    client = MlflowClient(platform.settings.tracking_uri)
    assert client.search_runs([e.experiment_id for e in client.search_experiments()]) == []
    return result
