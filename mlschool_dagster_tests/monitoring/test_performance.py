"""Accuracy is estimated from every row, measured on labelled ones, judged by its interval."""

import json

import pandas as pd
import pytest

from mlschool_dagster.capture.records import labels_frame
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.monitoring.metric_records import performance_metrics
from mlschool_dagster.monitoring.metrics import MetricName
from mlschool_dagster.monitoring.performance import PerformanceVerdict, performance
from mlschool_dagster_tests.monitoring.samples import SPEC, START, window

NO_LABELS = labels_frame([])


def labels(current: pd.DataFrame, wrong: int = 0, hours: float = 2) -> pd.DataFrame:
    """A label for each row, equal to the prediction but for the first `wrong` rows."""
    other = {"Adelie": "Gentoo", "Chinstrap": "Adelie", "Gentoo": "Chinstrap"}
    predictions = current["prediction"].tolist()
    ground_truth = [other[p] for p in predictions[:wrong]] + predictions[wrong:]
    return pd.DataFrame(
        {
            "event_id": current["event_id"],
            "label": ground_truth,
            "labelled_at": current["captured_at"] + pd.Timedelta(hours=hours),
            "source": "test",
        }
    )


def test_without_labels_there_is_an_estimate_only() -> None:
    report = performance([window(50)], [NO_LABELS], SPEC, {})
    assert report.verdict is PerformanceVerdict.NOT_ENOUGH_DATA
    assert report.overall.measured is None
    assert report.overall.estimated == pytest.approx(window(50)["confidence"].mean(), abs=0.001)
    json.dumps(report.to_dict(), allow_nan=False)


def test_an_empty_window_has_neither() -> None:
    report = performance([window(0)], [NO_LABELS], SPEC, {})
    assert (report.overall.estimated, report.overall.measured) == (None, None)
    json.dumps(report.to_dict(), allow_nan=False)


def test_unlabelled_rows_count_in_the_estimate() -> None:
    current = window(200)
    report = performance([current], [labels(current.iloc[:160])], SPEC, {})
    assert (report.overall.rows, report.overall.labelled) == (200, 160)
    assert report.overall.coverage == 0.8
    assert report.overall.estimated == pytest.approx(current["confidence"].mean(), abs=0.001)


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [
        (10, PerformanceVerdict.ACCEPTABLE),
        (34, PerformanceVerdict.INCONCLUSIVE),
        (46, PerformanceVerdict.DEGRADED),
    ],
)
def test_only_a_whole_interval_below_the_threshold_is_degradation(
    wrong: int, verdict: PerformanceVerdict
) -> None:
    current = window(160)
    report = performance([current], [labels(current, wrong)], SPEC, {}, accuracy_threshold=0.8)
    assert report.verdict is verdict
    if verdict is PerformanceVerdict.DEGRADED:
        assert report.summary == "Accuracy 0.71 [0.64, 0.78] on 160 labelled rows lies below 0.8."


def test_the_confusion_counts_labels_by_predictions() -> None:
    current = window(100).assign(prediction="Adelie")
    report = performance([current], [labels(current, wrong=40)], SPEC, {})
    assert report.confusion == ((60, 0, 0), (0, 0, 0), (40, 0, 0))
    adelie, chinstrap, gentoo = report.scores
    assert (adelie.precision, adelie.recall, adelie.support) == (0.6, 1.0, 60)
    assert (chinstrap.precision, chinstrap.recall, chinstrap.f1) == (None, None, None)
    assert gentoo.recall == 0.0


def test_the_newest_label_counts() -> None:
    current = window(50)
    ground_truth = [labels(current, hours=3), labels(current, wrong=50, hours=1)]
    for frames in (ground_truth, ground_truth[::-1], [pd.concat(ground_truth)]):
        assert performance([current], frames, SPEC, {}).overall.measured == 1.0


def test_labels_that_are_no_classes_are_counted_named_and_no_evidence() -> None:
    current = window(50)
    report = performance([current], [labels(current).assign(label="adelie")], SPEC, {})
    assert report.verdict is PerformanceVerdict.NOT_ENOUGH_DATA
    assert (report.overall.labelled, report.overall.measured) == (0, None)
    assert report.unknown_labels == {"adelie": 50}
    assert (
        "50 labels are none of the classes and count for nothing: 'adelie' (50)" in report.summary
    )
    json.dumps(report.to_dict(), allow_nan=False)


def test_labels_of_the_classes_count_beside_others() -> None:
    current = window(50)
    ground_truth = labels(current, wrong=5)
    ground_truth.loc[10:19, "label"] = "adelie"
    ground_truth.loc[20:22, "label"] = "Gentoo "
    report = performance([current], [ground_truth.iloc[:15], ground_truth.iloc[15:]], SPEC, {})
    assert (report.overall.labelled, report.overall.correct) == (37, 32)
    assert report.unknown_labels == {"adelie": 10, "Gentoo ": 3}
    assert "'Gentoo ' (3)" in report.summary


def test_any_number_of_other_labels_is_reported_in_bounded_space() -> None:
    current = window(500)
    ground_truth = labels(current).assign(label=[f"label {row}" * 100 for row in range(500)])
    report = performance([current], [ground_truth.iloc[:90], ground_truth.iloc[90:]], SPEC, {})
    assert sum(report.unknown_labels.values()) == 500
    assert len(report.unknown_labels) == 101
    assert len(report.summary) < 1000


def test_versions_are_reported_apart() -> None:
    current = window(100)
    current["model_version"] = ["3"] * 60 + ["4"] * 40
    report = performance([current], [labels(current, wrong=60)], SPEC, {})
    assert {v: a.measured for v, a in report.versions.items()} == {"3": 0.0, "4": 1.0}
    assert [row["model_version"] for row in report.rows()] == ["all", "3", "4"]


def test_the_delay_of_labels_is_measured() -> None:
    current = window(10)
    delay = performance([current], [labels(current, hours=5)], SPEC, {}).label_delay
    assert delay is not None
    assert delay.median_hours == pytest.approx(5)


@pytest.mark.parametrize(("wrong", "short"), [(2, False), (40, True)])
def test_an_accuracy_surely_below_what_was_expected_is_recorded_as_such(
    wrong: int, short: bool
) -> None:
    current = window(200)
    report = performance([current], [labels(current, wrong)], SPEC, {})
    assert report.verdict is PerformanceVerdict.ACCEPTABLE
    judged = {
        metric.name: metric.finding
        for metric in performance_metrics(Window(START), report, (337, 344))
        if (metric.segment, metric.version) == ("", "")
    }
    assert judged[MetricName.ESTIMATE_OF_LABELLED] is short
    assert judged[MetricName.CROSS_VALIDATED_ACCURACY] is short
    assert judged[MetricName.REALISED_ACCURACY] is False


def test_an_empty_window_leaves_no_numbers() -> None:
    report = performance([window(0)], [NO_LABELS], SPEC, {})
    assert list(performance_metrics(Window(START), report, (337, 344))) == []
