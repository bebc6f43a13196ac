"""Invalid values of a run's configuration are reported in a sentence, before any work."""

import dagster as dg
import pytest

from mlschool_dagster_tests.platform import Platform, sentence


@pytest.mark.parametrize(
    ("job", "op", "entry", "value", "message"),
    [
        ("training_job", "training", "accuracy_threshold", 2.0, "less than or equal to 1"),
        ("health_job", "endpoint_health", "maximum_error_share", -1.0, "greater than or equal"),
        ("labeling_job", "label_traffic", "quality", 1.5, "less than or equal to 1"),
        ("deployment_job", "endpoint", "canary_share", 0.0, "greater than 0"),
    ],
)
def test_a_value_out_of_range_is_one_sentence(
    platform: Platform, job: str, op: str, entry: str, value: float, message: str
) -> None:
    selected = {"training_job": ["cross_validation", "trained_model"]}.get(job, [])
    result = platform.run(job, {op: {entry: value}}, assets=selected)
    text = sentence(result)
    assert text.startswith(f"In the run's configuration, {entry} is {value!r}: it should be ")
    assert message in text


def test_every_configuration_reports_its_faults_like_that() -> None:
    direct = {found.__module__ for found in dg.Config.__subclasses__() if ours(found)}
    assert direct == {"mlschool_dagster.defs.common"}


def ours(found: type) -> bool:
    return found.__module__.startswith("mlschool_dagster.")
