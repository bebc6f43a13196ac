import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import classification_report, confusion_matrix

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.modeling import plots
from mlschool_dagster.modeling.evaluation import calibrate, evaluate, reference_frame, samples
from mlschool_dagster.modeling.training import TrainingResult


def test_scores_agree_with_scikit_learn(
    trained: TrainingResult, penguins: pd.DataFrame, spec: DataSpec
) -> None:
    evaluation = evaluate(trained, penguins, spec)
    reference = reference_frame(trained, penguins, spec)
    truth, predicted = reference["species"], reference["prediction"]
    labels = list(spec.target.classes)
    expected = confusion_matrix(truth, predicted, labels=labels)
    np.testing.assert_array_equal(evaluation.confusion, expected)
    report = classification_report(truth, predicted, output_dict=True)
    for scores in evaluation.scores:
        row = report[scores.label]
        assert (scores.precision, scores.recall, scores.f1, scores.support) == pytest.approx(
            (row["precision"], row["recall"], row["f1-score"], row["support"])
        )
    per_fold = (truth == predicted).groupby(trained.fold_of_row).mean()
    np.testing.assert_allclose(evaluation.fold_accuracies, per_fold)
    assert evaluation.accuracy_mean == pytest.approx(per_fold.mean())
    assert evaluation.accuracy_std == pytest.approx(per_fold.std(ddof=0))


def test_calibration_error_of_a_known_case() -> None:
    confidence = np.array([0.95, 0.95, 0.65, 0.65, 1.0])
    right = np.array([True, False, True, True, True])
    calibration = calibrate(confidence, right)
    assert calibration.count.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0, 3]
    expected = (2 * (1 - 0.65) + 3 * abs(2 / 3 - 2.9 / 3)) / 5
    assert calibration.expected_error == pytest.approx(expected)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1))
def test_calibration_counts_every_row_once(rows: list[tuple[float, bool]]) -> None:
    confidence, right = (np.array(values) for values in zip(*rows, strict=True))
    calibration = calibrate(confidence, right)
    assert calibration.count.sum() == len(rows)
    assert 0 <= calibration.expected_error <= 1


def test_the_reference_is_the_data_with_out_of_fold_predictions(
    trained: TrainingResult, penguins: pd.DataFrame, spec: DataSpec
) -> None:
    reference = reference_frame(trained, penguins, spec)
    for column in [*spec.input_names, "species"]:
        pd.testing.assert_series_equal(
            reference[column], penguins[column].reset_index(drop=True), check_names=False
        )
    probabilities = reference[[f"probability_{label}" for label in spec.target.classes]]
    assert (probabilities.max(axis=1) == reference["confidence"]).all()
    winners = probabilities.idxmax(axis=1).str.removeprefix("probability_")
    assert (winners == reference["prediction"]).all()


def test_samples_are_rows_with_the_trained_network_s_answers_one_for_each_class(
    trained: TrainingResult, penguins: pd.DataFrame, spec: DataSpec
) -> None:
    result = samples(trained, penguins, spec)
    assert [sample.prediction for sample in result] == list(spec.target.classes)
    for sample in result:
        assert list(sample.inputs) == spec.input_names
        assert None not in sample.inputs.values()
        assert 0.9 < sample.confidence <= 1


def test_rows_that_are_never_complete_are_samples_too(
    trained: TrainingResult, penguins: pd.DataFrame, spec: DataSpec
) -> None:
    result = samples(trained, penguins.assign(sex=None), spec)
    assert result
    assert all(sample.inputs["sex"] is None for sample in result)


def test_every_picture_is_a_png(
    trained: TrainingResult, penguins: pd.DataFrame, spec: DataSpec
) -> None:
    evaluation = evaluate(trained, penguins, spec)
    pictures = [
        plots.class_balance(penguins, spec),
        plots.distributions(penguins, spec),
        plots.learning_curves(trained),
        plots.confusion_matrix(evaluation.confusion, spec, "Out of fold"),
        plots.reliability_diagram(evaluation),
        plots.fold_accuracies(evaluation),
    ]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
