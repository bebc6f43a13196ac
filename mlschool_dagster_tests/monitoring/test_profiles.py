"""A window's counts do not depend on how it was cut, and say what the rows would have said."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from mlschool_dagster.monitoring.profiles import cells_at, reference_cells, transport
from mlschool_dagster_tests.monitoring.samples import SPEC, population, window

REFERENCE = population()
CELLS = reference_cells(REFERENCE, SPEC)


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(0, 120), max_size=4), seed=st.integers(0, 50))
def test_chunks_add_up_to_the_whole(cuts: list[int], seed: int) -> None:
    rows = window(120, seed)
    bounds = [0, *sorted(cuts), 120]
    parts = [CELLS.profile(rows.iloc[a:b]) for a, b in pairwise(bounds)]
    total = parts[0]
    for part in parts[1:]:
        total += part
    whole = CELLS.profile(rows)
    assert total.rows == whole.rows == 120
    for name in (*SPEC.input_names, "prediction", "confidence"):
        added, counted = total.column(name), whole.column(name)
        assert added.missing == counted.missing == int(rows[name].isna().sum())
        assert (added.counts == counted.counts).all()
        assert counted.present + counted.missing == 120


def test_a_value_counts_on_its_point_and_its_neighbours_beside_it() -> None:
    cells = cells_at(np.array([1.0, 2.0, np.nextafter(2.0, 3.0)]), 0.0, 9.0)
    values = [0.0, np.nextafter(1.0, 0.0), 1.0, 1.5, 2.0, 2.0, np.nextafter(2.0, 3.0), 2.5, np.nan]
    assert cells.count(np.array(values)).counts.tolist() == [2, 1, 1, 2, 0, 1, 1]


def test_text_counts_alike_as_categories() -> None:
    islands = pd.Series(["Anvers", None, "Biscoe"] * 30, dtype=object)
    rows = window(90).assign(island=islands)
    profile = CELLS.profile(rows.astype({"island": "category", "prediction": "category"}))
    for name in ("island", "prediction"):
        computed, plain = profile.categories[name], CELLS.profile(rows).categories[name]
        assert (computed.missing, computed.counts.tolist()) == (
            plain.missing,
            plain.counts.tolist(),
        )


def test_means_and_variances_are_those_of_the_rows() -> None:
    rows = window(150)
    cells = CELLS.quantities["body_mass_g"]
    computed = CELLS.profile(rows).quantities["body_mass_g"]
    assert cells.mean(computed) == pytest.approx(rows["body_mass_g"].mean())
    assert computed.variance * cells.unit**2 == pytest.approx(rows["body_mass_g"].var())


def test_absurd_values_move_no_mean_far_from_what_the_reference_knows() -> None:
    known = REFERENCE["body_mass_g"]
    rows = window(10).assign(body_mass_g=[np.inf] * 9 + [-np.inf])
    computed = CELLS.profile(rows).quantities["body_mass_g"]
    reach = known.max() - known.min()
    expected = 0.9 * (known.max() + reach) + 0.1 * (known.min() - reach)
    assert CELLS.quantities["body_mass_g"].mean(computed) == pytest.approx(expected)


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=40),
    st.lists(st.integers(0, 30), min_size=1, max_size=40),
)
def test_the_distance_is_what_values_have_to_move(first: list[int], second: list[int]) -> None:
    current, reference = np.array(first, float), np.array(second, float)
    cells = cells_at(reference, 0.0, 100.0)
    distance = transport(cells.count(current), cells.count(reference), cells)
    exact = wasserstein_distance(current, reference)
    gaps = np.diff(cells.points, prepend=cells.points[0])
    assert distance <= exact + 1e-9
    assert distance >= exact - gaps.max() - 1e-9


def test_the_distance_of_a_shift_is_the_shift() -> None:
    values = REFERENCE["body_mass_g"].dropna().to_numpy()
    cells = cells_at(values, 0.0, 1e5)
    distance = transport(cells.count(values + 400), cells.count(values), cells)
    assert distance == pytest.approx(400)


def test_a_reference_without_a_value_still_has_a_cell() -> None:
    cells = reference_cells(REFERENCE.assign(body_mass_g=np.nan), SPEC)
    computed = cells.profile(window(40)).quantities["body_mass_g"]
    assert computed.present == int(window(40)["body_mass_g"].notna().sum())


def test_an_unknown_value_is_neither_missing_nor_known() -> None:
    rows = pd.concat([window(20).assign(island="Anvers"), window(5).assign(island=None)])
    computed = CELLS.profile(rows).categories["island"]
    assert (computed.missing, computed.counts.tolist()) == (5, [0, 0, 0, 20])
