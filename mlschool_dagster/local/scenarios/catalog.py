"""Catalog of the scenarios.

Each is as short as possible, as a window takes half a minute on two cores.
"""

from collections.abc import Mapping

from mlschool_dagster.local.scenarios.scenario import DRIFTED, Alert, Expected, Hour, Scenario
from mlschool_dagster.monitoring.metrics import MetricName
from mlschool_dagster.promotion.rollout import Step
from mlschool_dagster.simulation.labeller import Labeller
from mlschool_dagster.simulation.traffic import Drift

_LABELLER, _LABORATORY = Labeller("labeller", quality=1.0), Labeller("laboratory", quality=1.0)
_LIAR = Labeller("stranger", quality=1.0, lies=True)

_MANY = 1300
"""Enough rows for a canary that answers a tenth of them."""


def _fails(check: str, asset: str) -> Alert:
    return Alert(f"Check {check} on {asset}", "did not pass")


def _recovers(check: str, asset: str) -> Alert:
    return Alert(f"Check {check} on {asset}", "passes again")


_ACCURACY = ("accuracy", "performance_report")
_CONFIRMED_DRIFT = ("no_confirmed_drift", "drift_report")
_DRIFT = ("no_drift", "drift_report")
_FRESHNESS = ("traffic_is_fresh", "traffic_volume")
_QUALITY = ("data_quality", "data_quality_report")
_VOLUME = ("volume_as_expected", "traffic_volume")

SCENARIOS: Mapping[str, Scenario] = {
    "gradual_drift": Scenario(
        description="A measurement drifts, each hour by a quarter of a deviation more; no labels.",
        changed=[Hour(drift=Drift.SHIFT, strength=step / 4) for step in range(1, 5)],
        delay=None,
        expected=[
            Expected(MetricName.DRIFT_EFFECT, within=3, column=DRIFTED),
            Expected(MetricName.DRIFT_EVIDENCE, within=3),
            Expected(_fails(*_DRIFT), within=3),
            Expected(_fails(*_CONFIRMED_DRIFT), within=3),
            Expected(Step.REQUESTED, within=None),
        ],
    ),
    "sudden_drift": Scenario(
        description="A measurement shifts by one to three standard deviations at once; no labels.",
        changed=[Hour(drift=Drift.SHIFT)],
        delay=None,
        expected=[
            Expected(MetricName.DRIFT_EFFECT, within=1, column=DRIFTED),
            Expected(MetricName.DRIFT_EVIDENCE, within=1),
            Expected(_fails(*_DRIFT), within=1),
            Expected(_fails(*_CONFIRMED_DRIFT), within=1),
            Expected(Step.REQUESTED, within=None),
        ],
    ),
    "sensor_failure": Scenario(
        description="An instrument fails and is repaired: a column has no values for two hours. "
        "Retraining would not help.",
        changed=[*[Hour(drift=Drift.MISSING, share=1.0)] * 2, Hour()],
        expected=[
            Expected(MetricName.QUALITY_FINDINGS, within=1),
            Expected(MetricName.MISSING_SHARE, within=1, column=DRIFTED),
            Expected(_fails(*_QUALITY), within=1),
            Expected(_recovers(*_QUALITY), within=3),
            Expected(Step.REQUESTED, within=None),
        ],
    ),
    "label_delay": Scenario(
        description="The truth changes unseen; labels come two hours late, and only they show it.",
        changed=[Hour(drift=Drift.CONCEPT, share=0.6)] * 3,
        delay=2,
        expected=[
            Expected(MetricName.REALISED_ACCURACY, within=3),
            Expected(_fails(*_ACCURACY), within=3),
            Expected(MetricName.DRIFT_EVIDENCE, within=None),
            Expected(_fails(*_CONFIRMED_DRIFT), within=None),
            Expected(Step.REQUESTED, within=None),
        ],
    ),
    "concept_drift": Scenario(
        description="The same inputs belong to another class from now on; two sources label.",
        quiet=[Hour(labellers=(_LABELLER, _LABORATORY))],
        changed=[
            Hour(rows, Drift.CONCEPT, share=1.0, labellers=(_LABELLER, _LABORATORY))
            for rows in (300, 300, _MANY, 300)
        ],
        expected=[
            Expected(MetricName.REALISED_ACCURACY, within=1),
            Expected(_fails(*_ACCURACY), within=1),
            Expected(Step.REQUESTED, within=2),
            Expected(Step.COMPARED, within=2),
            Expected(Step.PROMOTED, within=3),
            Expected(_recovers(*_ACCURACY), within=4),
            Expected(Step.ROLLED_BACK, within=None),
        ],
        is_replaced=True,
    ),
    "outage": Scenario(
        description="For an hour nothing comes in; then traffic is back.",
        # The usual traffic is known only after a day.
        quiet=[*[Hour(rows=40, skip_settling=True)] * 23, Hour(rows=40)],
        changed=[Hour(rows=0), Hour(rows=40)],
        delay=None,
        expected=[
            Expected(MetricName.ROWS, within=1),
            Expected(_fails(*_VOLUME), within=1),
            Expected(_fails(*_FRESHNESS), within=1),
            Expected(_recovers(*_VOLUME), within=2),
            Expected(_recovers(*_FRESHNESS), within=2),
            Expected(Step.REQUESTED, within=None),
        ],
    ),
    "new_category": Scenario(
        description="Three rows in ten have a category unknown to the model; they are refused.",
        changed=[Hour(drift=Drift.NEW_CATEGORY)],
        delay=None,
        expected=[
            Expected(MetricName.QUALITY_FINDINGS, within=1),
            Expected(MetricName.REFUSED_SHARE, within=1),
            Expected(_fails(*_QUALITY), within=1),
            Expected(Step.REQUESTED, within=None),
        ],
    ),
    "poisoned_labels": Scenario(
        description="A label source is wrong on half of the rows; nothing is promoted from it.",
        changed=[Hour(labellers=(_LABELLER, _LIAR))] * 2,
        expected=[
            Expected(MetricName.REALISED_ACCURACY, within=1),
            Expected(_fails(*_ACCURACY), within=1),
            Expected(Step.REQUESTED, within=2),
            Expected(Step.REJECTED, within=2),
            Expected(Alert("Promotion of", "rejected"), within=2),
            Expected(Step.CANARY, within=None),
        ],
    ),
    "closed_loop": Scenario(
        description="A measurement drifts for good: retrain, compare, promote, healthy.",
        quiet=[Hour()],
        changed=[
            *(Hour(rows, Drift.SHIFT) for rows in (400, 400, _MANY)),
            *[Hour(200, Drift.SHIFT, skip_settling=True)] * 2,
            Hour(200, Drift.SHIFT),
        ],
        expected=[
            Expected(MetricName.DRIFT_EFFECT, within=1, column=DRIFTED),
            Expected(MetricName.DRIFT_EVIDENCE, within=1),
            Expected(_fails(*_CONFIRMED_DRIFT), within=1),
            Expected(Step.REQUESTED, within=2),
            Expected(Step.COMPARED, within=2),
            Expected(Step.CANARY, within=2),
            Expected(Step.PROMOTED, within=3),
            Expected(Step.HEALTHY, within=6),
            Expected(Step.ROLLED_BACK, within=None),
        ],
        is_replaced=True,
    ),
}
"""Scenarios by name."""
