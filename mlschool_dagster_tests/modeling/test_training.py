import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlschool_dagster.dataset.spec import DataSpec, load_spec
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.evaluation import evaluate
from mlschool_dagster.modeling.features import input_frame
from mlschool_dagster.modeling.training import TrainingResult, train
from mlschool_dagster.modeling.training_config import TrainingConfig
from mlschool_dagster_tests.worlds import DATA

QUICK = TrainingConfig(epochs=2, folds=2)


def test_the_defaults_learn_the_penguins(
    trained: TrainingResult, penguins: pd.DataFrame, spec: DataSpec
) -> None:
    assert evaluate(trained, penguins, spec).accuracy_mean > 0.98


@pytest.mark.slow
def test_ten_seeds_reach_an_accuracy_of_99_percent_on_average(
    penguins: pd.DataFrame, spec: DataSpec, compilation_cache: Path
) -> None:
    accuracies = [
        evaluate(
            train(penguins, spec, TrainingConfig(seed=seed), compilation_cache=compilation_cache),
            penguins,
            spec,
        ).accuracy_mean
        for seed in range(10)
    ]
    assert np.mean(accuracies) >= 0.99


def test_each_row_is_predicted_by_the_fold_that_held_it_out(
    trained: TrainingResult, penguins: pd.DataFrame
) -> None:
    folds = trained.fold_of_row
    per_class = pd.crosstab(folds, penguins["species"].to_numpy())
    assert (per_class.max() - per_class.min() <= 1).all()
    np.testing.assert_allclose(trained.probabilities.sum(axis=1), 1, atol=1e-5)
    right = trained.probabilities.argmax(axis=1) == pd.Categorical(penguins["species"]).codes
    for fold, curves in enumerate(trained.curves):
        held_out = folds == fold
        assert curves.validation_accuracy[-1] == pytest.approx(right[held_out].mean(), abs=1e-6)


def test_the_result_is_an_ordinary_keras_model(
    trained: TrainingResult, penguins: pd.DataFrame, spec: DataSpec, tmp_path: Path
) -> None:
    import keras

    trained.model.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    features = trained.transformer.transform(input_frame(penguins, spec))
    predicted = np.asarray(loaded.predict_on_batch(features)).argmax(axis=1)
    accuracy = (predicted == pd.Categorical(penguins["species"]).codes).mean()
    assert accuracy == pytest.approx(trained.final_curves.accuracy[-1], abs=1e-6)
    assert [layer.units for layer in loaded.layers] == [10, 8, 3]


def test_a_fold_never_sees_the_rows_that_it_holds_out(
    trained: TrainingResult, penguins: pd.DataFrame, spec: DataSpec, compilation_cache: Path
) -> None:
    """Rows that only fold 0 holds out are spoilt: what fold 0 learnt stays, the others change."""
    spoilt = penguins.copy()
    spoilt.loc[trained.fold_of_row == 0, "culmen_length_mm"] = 9000.0
    result = train(spoilt, spec, TrainingConfig(), compilation_cache=compilation_cache)
    np.testing.assert_array_equal(result.curves[0].loss, trained.curves[0].loss)
    assert not np.array_equal(result.curves[1].loss, trained.curves[1].loss)


def test_equal_seeds_give_equal_weights_in_another_process(
    penguins: pd.DataFrame, spec: DataSpec, tmp_path: Path
) -> None:
    table, there = tmp_path / "table.parquet", tmp_path / "weights.npz"
    penguins.to_parquet(table)
    subprocess.run(
        [sys.executable, "-m", __name__, DATA / "penguins.yaml", table, there],
        cwd=DATA.parent,
        check=True,
    )
    with np.load(there) as arrays:
        weights = list(arrays.values())
    here = train(penguins, spec, QUICK).model.get_weights()
    assert [w.tobytes() for w in weights] == [w.tobytes() for w in here]
    other = train(penguins, spec, replace(QUICK, seed=1)).model.get_weights()
    assert [w.tobytes() for w in weights] != [w.tobytes() for w in other]


def test_training_says_what_it_does(penguins: pd.DataFrame, spec: DataSpec) -> None:
    messages: list[str] = []
    train(penguins, spec, QUICK, messages.append)
    assert messages[0].startswith("Training 2 folds and the final model")
    assert messages[-1].startswith("Fold 2 of 2: accuracy")


@pytest.mark.parametrize("column", ["culmen_length_mm", "sex"])
def test_a_column_without_any_value_can_be_trained_on(
    column: str, penguins: pd.DataFrame, spec: DataSpec
) -> None:
    result = train(penguins.assign(**{column: np.nan}), spec, QUICK)
    assert np.isfinite(result.probabilities).all()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_layers_and_optimizer_are_config(
    optimizer: str, penguins: pd.DataFrame, spec: DataSpec
) -> None:
    config = replace(QUICK, hidden_layers=(5,), optimizer=optimizer, batch_size=1000)
    result = train(penguins, spec, config)
    assert [layer.units for layer in result.model.layers] == [5, 3]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"epochs": 0}, "epochs = 0; use at least 1"),
        ({"folds": 1}, "folds = 1; use at least 2"),
        ({"hidden_layers": (10, 0)}, "positive unit counts"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"optimizer": "magic"}, "use one of adam"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_config_that_cannot_be_trained_is_refused(
    setting: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        TrainingConfig(**setting)  # type: ignore[arg-type]


def test_data_that_cannot_be_stratified_is_refused(penguins: pd.DataFrame, spec: DataSpec) -> None:
    with pytest.raises(UserError, match="Class Chinstrap has 68 rows, too few for 69 folds"):
        train(penguins, spec, replace(QUICK, folds=69))
    with pytest.raises(UserError, match="Column species has 344 rows without one of the classes"):
        train(penguins.assign(species="Emu"), spec, QUICK)


if __name__ == "__main__":
    result = train(pd.read_parquet(sys.argv[2]), load_spec(Path(sys.argv[1])), QUICK)
    np.savez(sys.argv[3], *result.model.get_weights())
