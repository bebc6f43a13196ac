"""The data spec: read as it was meant, or refused with every entry that is wrong."""

import json
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.capture.records import CAPTURE_FIELDS, Label, as_columns
from mlschool_dagster.dataset.spec import RESERVED, DataSpec, load_spec
from mlschool_dagster.defs.data.raw_data import build_raw_data
from mlschool_dagster.errors import UserError
from mlschool_dagster.monitoring.snapshot import captures_table
from mlschool_dagster_tests.worlds import DATA

TEXT = (DATA / "penguins.yaml").read_text(encoding="utf-8")
PENGUINS = yaml.safe_load(TEXT)
MASS, SEX = 4, 5


def complaint(tmp_path: Path, document: Any) -> str:
    """What is said of `document`, a YAML text or what one holds; it is one line."""
    path = tmp_path / "spec.yaml"
    text = document if isinstance(document, str) else yaml.safe_dump(document)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        load_spec(path)
    message = str(refused.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def changed(path: str, value: Any) -> dict[str, Any]:
    """The penguins' spec with another `value` at `path`, as in ``columns.2.maximum``."""
    document: dict[str, Any] = deepcopy(PENGUINS)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = document
    for part in parents:
        place = place[part]
    place[last] = value
    return document


def test_a_spec_survives_json(spec: DataSpec) -> None:
    assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("written", "instead", "expected"),
    [
        (
            "[FEMALE, MALE]",
            "[No, Yes]",
            "columns[5].categories[0] must be text, but is the truth value false (as YAML reads "
            "No, Off and false without quotes): put it in quotes",
        ),
        ("[FEMALE, MALE]", "[1, 2]", "categories[0] must be text, but is the number 1: put it in"),
        ("[FEMALE, MALE]", "[2026-01-01]", "[0] must be text, but is the date 2026-01-01: put"),
        (
            "[FEMALE, MALE]",
            "[FEMALE, ]\n    nullable: yes\n",
            "the entry 'nullable' is there twice",
        ),
        ("[FEMALE, MALE]", "FEMALE", "columns[5].categories must be a list, but is the text"),
        (
            "[FEMALE, MALE]",
            "[FEMALE, FEMALE]",
            "columns[5].categories[1] is FEMALE, which is there",
        ),
        ("[FEMALE, MALE]", "[]", "columns[5].categories must have at least 1"),
        ("name: sex", "name: on", "columns[5].name must be text, but is the truth value true"),
        ("name: sex", "name: ~", "columns[5].name must be text, but is empty"),
        ("name: sex", "name: ' sex'", "white space around a cell is dropped"),
        ("name: sex", 'name: "se\\u0000x"', "has a character that cannot be shown"),
        (
            "name: sex",
            "name: island",
            "columns[5].name is island, which columns[0].name is already",
        ),
        ("name: sex", "on: sex", "columns[5].True is no known entry"),
        ("maximum: 10000", "maximum: 1e4", "is the text '1e4': write 10000.0"),
        ("maximum: 10000", "maximum: 1e-5", "is the text '1e-5': write 1.0e-05"),
        ("maximum: 10000", "maximum: .inf", "columns[4].maximum must be a finite number"),
        ("maximum: 10000", "maximum: 1.0e+300", "a plausible range lies within -1e+15 and 1e+15"),
        ("maximum: 10000", "maximum: 500", "columns[4].minimum is 1000, but must be less than"),
        ("maximum: 10000", f"maximum: {'9' * 400}", "columns[4].maximum must be a finite number"),
        ("maximum: 10000", "maximum: yes", "columns[4].maximum must be a finite number"),
        (
            "maximum: 10000\n    nullable: true",
            "nullable: true",
            "columns[4] lacks the entry maximum",
        ),
        ("unit: g", "unit: [g]", "columns[4].unit must be text, but is a list"),
        ("nullable: true", 'nullable: "no"', "must be true or false, without quotes"),
        ("type: numeric", "type: number", "type must be numeric or categorical, but is the text"),
        (
            "share: 0.1",
            "share: 10%",
            "maximum_missing_share must be a finite number, but is the text",
        ),
        ("share: 0.1", "share: 10%", "'10%': write 0.1"),
        ("share: 0.1", "share: 10", "maximum_missing_share is 10, but must be a share from 0 to 1"),
        ("rows: 100", "rows: 1.5", "contract.minimum_rows must be a whole number from 0"),
        ("rows: 100", "rows: -1", "contract.minimum_rows must be a whole number from 0"),
        ("[Adelie, Chinstrap, Gentoo]", "[Adelie]", "target.classes must have at least 2"),
        (
            "[Adelie, Chinstrap, Gentoo]",
            "[Adelie, Adelie]",
            "[1] is Adelie, which is there already",
        ),
        (
            "protected: [sex]",
            "protect: [sex]",
            "'protect' is no known entry; the document has name",
        ),
        ("protected: [sex]", "protected: sex", "protected must be a list, but is the text 'sex'"),
        (
            "protected: [sex]",
            "protected: [sex, sex]",
            "protected[1] is sex, which is there already",
        ),
        ("protected: [sex]", "protected: [species]", "choose among: island, sex"),
        ("name: penguins", "name: my-penguins", "use up to 63 letters, digits and underscores"),
        ("name: penguins", "name: Default", "name is Default, which MLflow calls an experiment"),
        ("name: penguins", "name: ../penguins", "use up to 63 letters, digits and underscores"),
        (
            "name: penguins",
            "name: penguins\nname: birds",
            "near line 6: the entry 'name' is there twice",
        ),
        ("name: penguins", "name: [", "is not valid YAML near line"),
        ("name: penguins", "name: !!python/name:os.system x", "is not valid YAML near line"),
    ],
)
def test_each_entry_that_cannot_be_is_named_with_what_to_do(
    tmp_path: Path, written: str, instead: str, expected: str
) -> None:
    assert written in TEXT
    assert expected in complaint(tmp_path, TEXT.replace(written, instead, 1))


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    document = changed("columns.4.maximum", "heavy")
    document["target"]["classes"] = [True, "b"]
    del document["contract"]["minimum_rows"]
    message = complaint(tmp_path, document)
    for path in (
        "columns[4].maximum",
        "target.classes[0]",
        "contract lacks the entry minimum_rows",
    ):
        assert path in message


@pytest.mark.parametrize("document", ["", "42", "[]", "columns: {}", "- a\n- b", "a: &x [*x]"])
def test_what_is_no_spec_at_all_is_one_sentence(tmp_path: Path, document: str) -> None:
    complaint(tmp_path, document)


def test_a_spec_that_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.yaml"):
        with pytest.raises(UserError, match=str(path)):
            load_spec(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
PATHS = [
    "name", "description", "target", "target.name", "target.classes", "target.classes.1", "columns",
    "columns.0", "columns.0.categories", "columns.0.type", "columns.0.categories.1",
    "columns.4.minimum", "columns.4.nullable", "columns.4.unit", "columns.4.name", "contract",
    "contract.minimum_rows", "contract.maximum_missing_share", "protected", "protected.0",
]  # fmt: skip


@given(path=st.sampled_from(PATHS), value=JSON)
def test_whatever_stands_in_an_entry_it_is_read_or_refused(path: str, value: Any) -> None:
    try:
        spec = DataSpec.from_dict(changed(path, value))
    except UserError as refused:
        assert "\n" not in str(refused)
    else:
        # What is taken can be declared to Dagster, and comes back from JSON as it was.
        build_raw_data(spec, "data.csv")
        assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("name", [*RESERVED, "probability_x", "__index_level_0__"])
@pytest.mark.parametrize("path", [f"columns.{MASS}.name", f"columns.{SEX}.name", "target.name"])
def test_no_column_has_a_name_that_the_platform_uses(tmp_path: Path, path: str, name: str) -> None:
    assert "a name that the platform itself uses" in complaint(
        tmp_path, {**changed(path, name), "protected": []}
    )


def test_all_that_stands_beside_the_columns_is_reserved(spec: DataSpec) -> None:
    beside = set(captures_table(as_columns([], CAPTURE_FIELDS), spec).column_names) - set(
        spec.input_names
    )
    beside |= {field.name for field in fields(Label)}
    assert {name for name in beside if not name.startswith("probability_")} <= set(RESERVED)
