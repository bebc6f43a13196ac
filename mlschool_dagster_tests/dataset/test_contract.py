from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mlschool_dagster.dataset.contract import violations
from mlschool_dagster.dataset.spec import CategoricalColumn, DataSpec


def test_the_penguins_keep_the_contract(penguins: pd.DataFrame, spec: DataSpec) -> None:
    assert violations(penguins, spec) == []


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("body_mass_g", -5800.0, "Column body_mass_g has values outside 1000 to 10000 g"),
        ("culmen_depth_mm", np.inf, "Column culmen_depth_mm has values outside 5 to 40 mm"),
        ("island", "Hawaii", "Column island has values other than Biscoe, Dream, Torgersen"),
        ("island", np.nan, "Column island has missing values"),
        ("species", "Emu", "Column species has values other than Adelie, Chinstrap, Gentoo"),
        ("species", np.nan, "Column species has missing values"),
    ],
)
def test_a_wrong_value_is_named_with_its_row(
    column: str, value: str | float, sentence: str, penguins: pd.DataFrame, spec: DataSpec
) -> None:
    broken = penguins.copy()
    broken.loc["penguins.csv:12", column] = value
    [violation] = violations(broken, spec)
    assert violation.startswith(sentence)
    assert violation.endswith("row penguins.csv:12.")


def test_only_the_first_rows_are_listed(penguins: pd.DataFrame, spec: DataSpec) -> None:
    broken = penguins.assign(body_mass_g=0.0)
    [violation] = violations(broken, spec)
    assert violation.endswith("penguins.csv:6 and 339 more.")


def test_every_broken_rule_is_reported_at_once(penguins: pd.DataFrame, spec: DataSpec) -> None:
    broken = penguins.drop(columns="sex").assign(culmen_depth_mm="deep", flipper_length_mm=np.nan)
    assert violations(broken, spec) == [
        "Column sex is missing.",
        "Column culmen_depth_mm has the type object, not float64.",
        "Column flipper_length_mm lacks a value in more than 10% of the rows.",
    ]


def test_rules_of_the_whole_table(penguins: pd.DataFrame, spec: DataSpec) -> None:
    assert "The table has fewer than 100 rows." in violations(penguins.iloc[::4], spec)
    [repeated] = violations(pd.concat([penguins, penguins.head(10)]), spec)
    assert repeated.startswith("The table repeats more than 2% of its rows: rows penguins.csv:2,")
    [absent] = violations(penguins[penguins["species"] != "Gentoo"], spec)
    assert absent.startswith("Column species has fewer than 2 rows of Gentoo")


def test_an_empty_table_breaks_the_contract(penguins: pd.DataFrame, spec: DataSpec) -> None:
    assert "The table has fewer than 100 rows." in violations(penguins.iloc[:0], spec)


def test_sentences_stay_short_whatever_the_data_holds(
    penguins: pd.DataFrame, spec: DataSpec
) -> None:
    many = CategoricalColumn("island", "d", tuple(f"island {n} " + "x" * 90 for n in range(500)))
    columns = (many, *spec.columns[1:])
    broken = penguins.assign(island="long\ntext " * 1000)
    (violation,) = violations(broken, replace(spec, columns=columns))
    assert len(violation) < 1500
    assert "\n" not in violation
    assert "and 480 more" in violation
