"""Columns are judged given the others, and all of them together."""

import numpy as np
import pytest

from mlschool_dagster.monitoring.multivariate import (
    JOINT_ROWS,
    joint_test,
    shifts_given_others,
)
from mlschool_dagster.monitoring.reference_profile import ReferenceProfile
from mlschool_dagster_tests.monitoring.samples import SPEC, population, resampled

REFERENCE = population()
BASELINE = ReferenceProfile(REFERENCE, SPEC)
NUMERIC = [column.name for column in SPEC.numeric]


def test_means_from_counts_are_those_of_the_rows() -> None:
    rows = resampled(REFERENCE, 150, 1).assign(island="Anvers")
    means = BASELINE.design.means(BASELINE.cells.profile(rows))
    np.testing.assert_allclose(means, BASELINE.design.of(rows).mean(axis=0), atol=1e-12)


def test_the_reference_itself_is_where_it_was() -> None:
    shifts = shifts_given_others(BASELINE.design, BASELINE.own.profile, NUMERIC, [], 0.05)
    assert list(shifts) == NUMERIC
    assert all(shift.p_value > 0.99 for shift in shifts.values())


@pytest.mark.parametrize("column", NUMERIC)
def test_only_the_column_that_moved_is_blamed(column: str) -> None:
    rows = resampled(REFERENCE, 1_000, 5)
    rows[column] += 0.4 * REFERENCE[column].std()
    profile = BASELINE.cells.profile(rows)
    shifts = shifts_given_others(BASELINE.design, profile, NUMERIC, [], 0.05)
    assert [name for name, shift in shifts.items() if shift.p_value < 0.001] == [column]
    assert shifts[column].effect == pytest.approx(0.4, abs=0.1)


def test_residuals_of_the_reference_are_those_of_new_rows() -> None:
    """Left-out residuals are wider than those of the fit, by about as much as new rows' are."""
    spreads = []
    for seed in range(20):
        fitted = ReferenceProfile(resampled(REFERENCE, 60, seed), SPEC)
        relations = fitted.design.relations()
        own = fitted.design.variables.tolist().index("body_mass_g")
        left_out = relations.left_out_residuals(fitted.design.matrix)[:, own]
        new = relations.residuals(fitted.design.of(REFERENCE))[:, own]
        spreads.append((left_out.std(), new.std()))
    left_out, new = np.mean(spreads, axis=0)
    assert left_out == pytest.approx(new, rel=0.1)


def test_the_joint_test_is_exact_under_no_drift() -> None:
    p_values = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        p_values.append(joint_test(rng.normal(size=(40, 2)), rng.normal(size=(60, 2))).p_value)
    assert np.mean(np.array(p_values) <= 0.5) == pytest.approx(0.5, abs=0.25)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.2


def test_the_joint_test_sees_a_relation_that_is_gone() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(300, 1))
    related = np.hstack([first, first + 0.5 * rng.normal(size=(300, 1))])
    unrelated = np.column_stack([related[:, 0], rng.permutation(related[:, 1])])
    result = joint_test(unrelated, related)
    assert result.p_value < 0.001
    assert result.effect > 0.5


def test_the_sample_is_bounded_and_the_same_each_time() -> None:
    rows = resampled(REFERENCE, 3 * JOINT_ROWS, 0)
    chunks = [rows.iloc[:2_500], rows.iloc[2_500:]]
    first, second = BASELINE.summary(chunks), BASELINE.summary(chunks)
    assert first.sample.shape == (JOINT_ROWS, BASELINE.design.variables.size)
    np.testing.assert_array_equal(first.sample, second.sample)
