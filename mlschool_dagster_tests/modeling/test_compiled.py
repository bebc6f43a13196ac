"""A compiled model imputes, scales, encodes and predicts by its arrays alone."""

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlschool_dagster.dataset.spec import CategoricalColumn, InputValue, NumericColumn
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.compiled import CompiledModel, DenseLayer
from mlschool_dagster_tests.serving.tiny_model import ROW, SPEC, tiny_model


def test_features_are_scaled_numbers_then_one_hot_categories() -> None:
    features = tiny_model().features([ROW])[0]
    expected = [(48.6 - 43.9) / 5.4, (16 - 17.2) / 2, (230 - 200.9) / 14, (5800 - 4201.8) / 801]
    np.testing.assert_allclose(features, [*expected, 1, 0, 0, 0, 1])


@pytest.mark.parametrize("null", [None, float("nan")])
def test_null_is_imputed_as_in_training(null: float | None) -> None:
    model = replace(
        tiny_model(),
        numeric_fill=np.array([40.0, 17, 200, 4000]),
        categorical_fill=("Dream", "MALE"),
    )
    blank = model.features([dict.fromkeys(ROW, null)])
    filled = dict(zip(("culmen_length_mm", "culmen_depth_mm"), (40.0, 17.0), strict=True))
    filled |= {"flipper_length_mm": 200.0, "body_mass_g": 4000.0}
    np.testing.assert_array_equal(
        blank, model.features([{**filled, "island": "Dream", "sex": "MALE"}])
    )


def test_an_unknown_category_is_none_of_the_known_ones() -> None:
    features = tiny_model().features([{**ROW, "island": "Anvers"}])[0]
    np.testing.assert_array_equal(features[4:7], [0, 0, 0])


@pytest.mark.parametrize("activation", ["linear", "relu", "sigmoid", "tanh"])
def test_layers_are_applied_in_order(activation: str) -> None:
    model = tiny_model()
    first, head = model.layers
    model = replace(model, layers=(replace(first, activation=activation), head))
    hidden = model.features([ROW]) @ first.kernel + first.bias
    hidden = {
        "linear": hidden,
        "relu": np.where(hidden > 0, hidden, 0),
        "sigmoid": 1 / (1 + np.exp(-hidden)),
        "tanh": np.tanh(hidden),
    }[activation]
    logits = np.exp(hidden @ head.kernel + head.bias)
    np.testing.assert_allclose(model.probabilities([ROW]), logits / logits.sum(), atol=1e-6)


def test_rows_do_not_influence_each_other() -> None:
    model = tiny_model()
    rows = [{**ROW, "body_mass_g": mass} for mass in (3000, None, 6000, 4500)]
    together = model.probabilities(rows)
    assert together.shape == (4, 3)
    np.testing.assert_allclose(together.sum(axis=1), 1.0, atol=1e-6)
    alone = np.vstack([model.probabilities([row]) for row in rows])
    np.testing.assert_array_equal(together, alone)


def test_each_row_of_many_is_imputed_and_encoded_by_itself() -> None:
    model = replace(tiny_model(), categorical_fill=("elsewhere", "MALE"))
    rows: list[dict[str, InputValue]] = [
        {**ROW, "island": island, "sex": sex, "body_mass_g": mass}
        for island in ("Torgersen", None, "Anvers", float("nan"))
        for sex in ("FEMALE", None, "")
        for mass in (3000, None, 4500.5, float("nan"))
    ]
    np.testing.assert_array_equal(
        model.features(rows), np.vstack([model.features([row]) for row in rows])
    )


@pytest.mark.parametrize("kind", [NumericColumn, CategoricalColumn])
def test_all_columns_may_be_of_one_type(kind: type) -> None:
    model = tiny_model()
    kept = [isinstance(column, kind) for column in SPEC.columns]
    spec = replace(
        SPEC, columns=tuple(c for c, keep in zip(SPEC.columns, kept, strict=True) if keep)
    )
    of_kind = slice(0, 4) if kind is NumericColumn else slice(4, 9)
    first, head = model.layers
    only = replace(
        model,
        spec=spec,
        numeric_fill=model.numeric_fill[: len(spec.numeric)],
        numeric_mean=model.numeric_mean[: len(spec.numeric)],
        numeric_scale=model.numeric_scale[: len(spec.numeric)],
        categorical_fill=model.categorical_fill[: len(spec.categorical)],
        categories=model.categories[: len(spec.categorical)],
        layers=(replace(first, kernel=first.kernel[of_kind]), head),
    )
    np.testing.assert_array_equal(only.features([ROW]), model.features([ROW])[:, of_kind])
    assert only.probabilities([ROW]).shape == (1, 3)


def test_no_rows_give_no_probabilities() -> None:
    assert tiny_model().probabilities([]).shape == (0, 3)


def test_extreme_activations_stay_finite() -> None:
    model = tiny_model()
    first, head = model.layers
    huge = (
        DenseLayer(first.kernel * 1e6, first.bias, "sigmoid"),
        replace(head, kernel=head.kernel * 1e6),
    )
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert np.isfinite(replace(model, layers=huge).probabilities([ROW])).all()


def test_a_saved_model_predicts_the_same(tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "version")
    loaded = CompiledModel.load(tmp_path / "version")
    assert loaded.spec == tiny_model().spec
    np.testing.assert_array_equal(loaded.probabilities([ROW]), tiny_model().probabilities([ROW]))


def test_arrays_that_do_not_fit_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="one value per numeric column"):
        replace(model, numeric_mean=np.zeros(3))
    with pytest.raises(ValueError, match="softmax"):
        replace(model, layers=(model.layers[0], replace(model.layers[1], activation="relu")))
    with pytest.raises(ValueError, match="kernels that fit"):
        replace(model, layers=model.layers[1:])


def test_a_missing_or_damaged_folder_is_reported_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        CompiledModel.load(tmp_path / "nothing")
    folder = tmp_path / "damaged"
    tiny_model().save(folder)
    arrays = (folder / "compiled.npz").read_bytes()
    for damage in (b"", b"no archive", arrays[: len(arrays) // 2]):
        (folder / "compiled.npz").write_bytes(damage)
        with pytest.raises(UserError, match="damaged"):
            CompiledModel.load(folder)
    (folder / "compiled.npz").write_bytes(arrays)
    (folder / "spec.json").write_text(json.dumps({"name": "nothing else"}))
    with pytest.raises(UserError, match="damaged"):
        CompiledModel.load(folder)


def test_arrays_that_unfold_to_more_than_their_file_are_refused_unread(tmp_path: Path) -> None:
    tiny_model().save(tmp_path)
    path = tmp_path / "compiled.npz"
    with np.load(path) as arrays:
        np.savez_compressed(path, **{**arrays, "kernel_0": np.zeros((1000, 1000))})
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"damaged \(compiled.npz unfolds to 80\d{5} bytes"):
        CompiledModel.load(tmp_path)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "numeric_fill.npy",
            b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"0" * 8,
        )
    with pytest.raises(UserError, match="damaged"):
        CompiledModel.load(tmp_path)


def test_loading_needs_no_training_library(tmp_path: Path) -> None:
    tiny_model().save(tmp_path)
    code = (
        "import sys; from pathlib import Path; "
        "from mlschool_dagster.modeling.compiled import CompiledModel; "
        f"CompiledModel.load(Path({str(tmp_path)!r})); "
        "print({'keras', 'jax', 'sklearn', 'pandas', 'scipy'} & set(sys.modules))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == "set()"
