"""Training data: each input once with its newest truth, and never on both sides."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.dataset.spec import PREDICTION, DataSpec
from mlschool_dagster.dataset.tables import content_digest
from mlschool_dagster.modeling.training_data import (
    SMALL_SOURCES,
    TrainingData,
    TruthStatus,
    input_keys,
    is_held_out,
    training_data,
    truth_noise,
)

START = pd.Timestamp("2026-11-20", tz="UTC")


def labelled(
    rows: pd.DataFrame,
    spec: DataSpec,
    *,
    source: str = "expert",
    window: str = "2026-11-20-00:00",
    lies: bool = False,
    start: int = 0,
) -> pd.DataFrame:
    """`rows` as labelled captures that were predicted rightly by the old truth."""
    classes = spec.target.classes
    truth = rows[spec.target.name]
    following = dict(zip(classes, (*classes[1:], classes[0]), strict=True))
    seconds = pd.to_timedelta(np.arange(start, start + len(rows)), unit="s")
    return rows.reset_index(drop=True).assign(
        event_id=[f"{window}-{source}-{number}" for number in range(start, start + len(rows))],
        window=window,
        captured_at=START + seconds,
        labelled_at=START + seconds,
        source=source,
        **{PREDICTION: truth.to_numpy()},
        **{spec.target.name: truth.map(following).to_numpy() if lies else truth.to_numpy()},
    )


def joined(
    base: pd.DataFrame, spec: DataSpec, *captures: pd.DataFrame, **more: Any
) -> TrainingData:
    return training_data(base, pd.concat(captures, ignore_index=True), spec, **more)


def test_without_captures_the_base_data_is_what_is_trained_on(
    penguins: pd.DataFrame, spec: DataSpec
) -> None:
    result = joined(penguins, spec, labelled(penguins, spec)[:0])
    assert content_digest(result.training) == content_digest(penguins)
    assert result.held_out.empty
    assert result.truth is TruthStatus.HOLDS


@given(picks=st.lists(st.integers(0, 343), min_size=1, max_size=120), lies=st.booleans())
def test_each_input_is_on_one_side_once_with_its_newest_truth(
    penguins: pd.DataFrame, spec: DataSpec, picks: list[int], lies: bool
) -> None:
    old = labelled(penguins.iloc[picks], spec)
    new = labelled(penguins.iloc[picks[:10]], spec, lies=lies, start=1000)
    result = joined(penguins, spec, old, new)
    training, aside = (input_keys(frame, spec) for frame in (result.training, result.held_out))
    assert set(training).isdisjoint(aside)
    assert set(training) | set(aside) == set(input_keys(penguins, spec))
    assert not aside.duplicated().any()
    truths = pd.concat([result.training, result.held_out])[spec.target.name]
    truth_by_key = dict(zip([*training, *aside], truths, strict=True))
    newest = dict(zip(input_keys(new, spec), new[spec.target.name], strict=True))
    assert {key: truth_by_key[key] for key in newest} == newest


@given(share=st.floats(0.05, 0.95))
def test_an_input_once_put_aside_stays_aside(
    penguins: pd.DataFrame, spec: DataSpec, share: float
) -> None:
    keys = input_keys(penguins, spec)
    smaller, larger = is_held_out(keys, share), is_held_out(keys, min(1.0, share + 0.05))
    assert (smaller <= larger).all()
    assert abs(smaller.mean() - share) < 0.12


def test_equal_inputs_have_equal_keys_however_they_were_written(
    penguins: pd.DataFrame, spec: DataSpec
) -> None:
    as_stored = penguins.astype(object).replace({np.nan: None})
    assert (input_keys(penguins, spec) == input_keys(as_stored, spec)).all()


def test_captures_that_break_the_contract_are_left_out_and_counted(
    penguins: pd.DataFrame, spec: DataSpec
) -> None:
    captures = labelled(penguins[:40], spec)
    captures.loc[0, "body_mass_g"] = -1.0
    captures.loc[1, "island"] = "elsewhere"
    captures.loc[2, "species"] = "Emperor"
    result = joined(penguins, spec, captures)
    assert result.breaches == 3
    assert set(result.training["species"]) == set(spec.target.classes)


def test_one_liar_among_three_sources_is_not_believed(
    penguins: pd.DataFrame, spec: DataSpec
) -> None:
    parts = [
        labelled(penguins[name::3], spec, source=f"source {name}", lies=name == 2)
        for name in range(3)
    ]
    result = joined(penguins, spec, *parts)
    assert [source.name for source in result.sources if not source.trusted] == ["source 2"]
    assert result.distrusted == len(parts[2])
    assert result.truth is TruthStatus.HOLDS


def test_many_small_liars_are_judged_together(penguins: pd.DataFrame, spec: DataSpec) -> None:
    liars = [
        labelled(penguins[n : n + 5], spec, source=f"liar {n}", lies=True) for n in range(0, 100, 5)
    ]
    result = joined(penguins, spec, labelled(penguins[100:], spec), *liars)
    assert [s.name for s in result.sources if not s.trusted] == [SMALL_SOURCES]
    assert result.distrusted == 100


def test_who_labelled_another_hour_is_not_blamed_for_it(
    penguins: pd.DataFrame, spec: DataSpec
) -> None:
    before = labelled(penguins, spec, source="before")
    after = labelled(penguins, spec, source="after", window="2026-11-20-01:00", lies=True)
    result = joined(penguins, spec, before, after)
    assert all(source.trusted for source in result.sources)
    assert result.truth is TruthStatus.DOUBTFUL


def test_a_new_truth_needs_two_witnesses_or_somebody_who_verified_it(
    penguins: pd.DataFrame, spec: DataSpec
) -> None:
    before = labelled(penguins, spec)
    window = "2026-11-20-01:00"
    alone = labelled(penguins, spec, window=window, lies=True, start=1000)
    assert joined(penguins, spec, before, alone).truth is TruthStatus.DOUBTFUL
    accepted = joined(penguins, spec, before, alone, accept_new_truth=True)
    second = labelled(penguins, spec, window=window, source="other", lies=True, start=1000)
    confirmed = joined(penguins, spec, before, alone[::2], second[1::2])
    for result in (accepted, confirmed):
        assert result.truth is TruthStatus.CHANGED
        assert result.base_rows == 0
        assert result.outdated == len(before)
        old = dict(zip(input_keys(penguins, spec), penguins["species"], strict=True))
        truths = zip(input_keys(result.training, spec), result.training["species"], strict=True)
        assert all(old[key] != truth for key, truth in truths)


@pytest.mark.parametrize("share", [0.05, 0.15])
def test_ordinary_mistakes_are_no_new_truth(
    penguins: pd.DataFrame, spec: DataSpec, share: float
) -> None:
    wrong = int(len(penguins) * share)
    captures = [
        labelled(penguins[:wrong], spec, lies=True),
        labelled(penguins[wrong:], spec, start=1000),
    ]
    assert joined(penguins, spec, *captures).truth is TruthStatus.HOLDS


def drawn(rows: pd.DataFrame, spec: DataSpec, noise: float, seed: int) -> pd.DataFrame:
    """`rows` with truths drawn anew: each is another class with probability `noise`."""
    rng = np.random.default_rng(seed)
    classes = np.array(spec.target.classes, dtype=object)
    codes = rows[spec.target.name].map({name: at for at, name in enumerate(classes)}).to_numpy(int)
    other = (codes + rng.integers(1, len(classes), len(rows))) % len(classes)
    truths = classes[np.where(rng.random(len(rows)) < noise, other, codes)]
    return rows.assign(**{spec.target.name: truths})


@pytest.mark.parametrize("distinct", [1, 3, 12])
@pytest.mark.parametrize("noise", [0.0, 0.35])
def test_where_inputs_recur_captures_are_added_and_replace_nothing(
    penguins: pd.DataFrame, spec: DataSpec, distinct: int, noise: float
) -> None:
    rows = penguins[:: len(penguins) // distinct][:distinct]
    many = pd.concat([rows] * (200 // distinct)).reset_index(drop=True)
    base = drawn(many, spec, noise, 1)
    captures = labelled(drawn(many, spec, noise, 2), spec)
    result = joined(base, spec, captures)
    assert result.truth is TruthStatus.HOLDS
    assert result.recurring
    assert (result.replaced, result.repeated) == (0, 0)
    assert result.captured_rows + len(result.held_out) == len(captures)
    assert 0.15 < len(result.held_out) / len(captures) < 0.45
    assert content_digest(result.training[: len(base)]) == content_digest(base)
    assert set(result.training.index[len(base) :]).isdisjoint(result.held_out.index)


@pytest.mark.parametrize("noise", [0.2, 0.35, 0.5])
def test_honest_noise_is_no_new_truth(penguins: pd.DataFrame, spec: DataSpec, noise: float) -> None:
    base = drawn(penguins, spec, noise, 1)
    result = joined(base, spec, labelled(drawn(penguins, spec, noise, 2), spec))
    assert result.truth is TruthStatus.HOLDS
    assert not result.recurring


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_new_truth_is_seen_where_inputs_recur_and_truth_is_noisy(
    penguins: pd.DataFrame, spec: DataSpec, noise: float
) -> None:
    many = pd.concat([penguins[::40]] * 30).reset_index(drop=True)
    base = drawn(many, spec, noise, 1)
    changed = drawn(many, spec, noise, 2)
    lies = [labelled(changed, spec, source=name, lies=True) for name in ("one", "two")]
    assert joined(base, spec, lies[0]).truth is TruthStatus.DOUBTFUL
    result = joined(base, spec, lies[0][::2], lies[1][1::2])
    assert result.truth is TruthStatus.CHANGED
    assert result.base_rows == 0


def test_noise_is_how_often_rows_with_equal_inputs_differ(
    penguins: pd.DataFrame, spec: DataSpec
) -> None:
    many = pd.concat([penguins[:3]] * 40).reset_index(drop=True)
    assert truth_noise(many, input_keys(many, spec), spec) == 0.0
    half = drawn(many, spec, 0.5, 1)
    truths = half.groupby(input_keys(half, spec))[spec.target.name]
    pairs = [
        (rows.to_numpy()[:, None] != rows.to_numpy()[None, :]).sum() / (len(rows) - 1)
        for _, rows in truths
    ]
    noise = truth_noise(half, input_keys(half, spec), spec)
    assert noise == pytest.approx(sum(pairs) / len(half))
