"""The vocabulary of the metrics that reports record of each window (`MetricsHistory`)."""

from dataclasses import dataclass
from enum import StrEnum

from mlschool_dagster.capture.windows import Window

ALL = ""
"""The column, segment or version of a metric that is about all of them together."""


class MetricName(StrEnum):
    """The names of metrics; the unit is a share in [0, 1] unless stated otherwise."""

    ROWS = "rows"
    """Captured rows; `lower` and `upper` bound the forecast."""
    ROW_RATE = "row_rate"
    """Answered rows per hour, including those that sampling left out."""
    SILENCE = "silence_hours"
    """The longest time without a capture within the window, in hours."""
    REFUSED_SHARE = "refused_share"
    QUALITY_FINDINGS = "quality_findings"
    """The number of faults of the rows; a finding if there is one."""
    MISSING_SHARE = "missing_share"
    OUT_OF_RANGE_SHARE = "out_of_range_share"
    NEW_CATEGORY_SHARE = "new_category_share"
    DUPLICATE_SHARE = "duplicate_share"
    DRIFT_EFFECT = "drift_effect"
    """Of each column, and of all together the multivariate effect; a finding if it drifted."""
    DRIFT_P_VALUE = "drift_p_value"
    """Adjusted for the number of tests."""
    DRIFT_E_VALUE = "drift_e_value"
    """The window's e-value against no drift, from 0 to infinity; 1 is no evidence."""
    DRIFT_EVIDENCE = "drift_evidence"
    """The evidence of all windows up to this one; a finding where it confirms drift."""
    ESTIMATED_ACCURACY = "estimated_accuracy"
    """From calibrated probabilities alone; a finding if its interval is below the threshold."""
    ESTIMATE_OF_LABELLED = "estimated_accuracy_of_labelled"
    """The same of the labelled rows alone, to compare with the realised accuracy; a finding if the
    interval of that lies below."""
    REALISED_ACCURACY = "realised_accuracy"
    """From labels; a finding if its interval is below the threshold."""
    ERROR_SHARE = "error_share"
    """Wrong predictions among the labelled rows of a segment."""
    CROSS_VALIDATED_ACCURACY = "cross_validated_accuracy"
    """Of the version that served, out of fold; a finding if the realised interval lies below."""
    CHECK = "check"
    """Whether the asset check named in the column passed: 1 or 0, no value where it is undecided; a
    finding if it failed."""
    LABEL_COVERAGE = "label_coverage"
    LABEL_DELAY = "label_delay_hours"
    """The median, in hours."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of one window.

    It is about ``column``, ``segment`` (as in ``role=canary``) and ``version``
    of the model, each `ALL` if about all. ``value`` is None if there was not enough data; ``lower``
    and ``upper`` bound its 95 % interval unless its name says otherwise; ``threshold`` is what it
    is compared with; ``rows`` is how many rows it rests on; ``finding`` is whether it is a fault.
    """

    window: Window
    name: MetricName
    value: float | None
    rows: int
    column: str = ALL
    segment: str = ALL
    version: str = ALL
    lower: float | None = None
    upper: float | None = None
    threshold: float | None = None
    finding: bool = False
