"""Promotion: challengers, their evidence, and the sensors that retrain and roll out."""

import dagster as dg

from mlschool_dagster.dataset.spec import DataSpec
from mlschool_dagster.defs.promotion.approval_job import approval_job
from mlschool_dagster.defs.promotion.challenger_comparison import (
    build_challenger_comparison,
    retraining_job,
)
from mlschool_dagster.defs.promotion.promotion_ledger import (
    build_canary_evidence,
    build_promotion_ledger,
    canary_evidence_job,
    promotion_ledger_job,
)
from mlschool_dagster.defs.promotion.promotion_sensor import build_promotion_sensor
from mlschool_dagster.defs.promotion.retraining_sensor import build_retraining_sensor


def build_definitions(spec: DataSpec) -> dg.Definitions:
    """The area's definitions for models of the data that `spec` describes."""
    return dg.Definitions(
        assets=[
            build_challenger_comparison(spec),
            build_canary_evidence(spec),
            build_promotion_ledger(spec),
        ],
        jobs=[retraining_job, canary_evidence_job, promotion_ledger_job, approval_job],
        sensors=[build_retraining_sensor(), build_promotion_sensor()],
    )
