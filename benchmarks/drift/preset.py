"""Evidently's default preset without its pages, which are nineteen twentieths of its cost.

What decides whether a column drifted is the test that Evidently chooses by the size of the
reference and the kind of the column; the preset calls it and then draws. Here the same test is
called with the same columns; ``drifted_count_of_report`` is what the whole preset says.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.legacy.calculations.stattests import get_stattest
from evidently.legacy.core import ColumnType
from evidently.presets import DataDriftPreset


class Preset:
    """Evidently's defaults for a table whose columns are known to be ``numeric`` or not."""

    def __init__(self, columns: Sequence[str], numeric: Sequence[str]) -> None:
        self.columns, self.numeric = list(columns), list(numeric)

    def drifted_columns(self, window: pd.DataFrame, reference: pd.DataFrame) -> set[str]:
        """The columns that its default tests flag."""
        return {name for name in self.columns if self._drifted(name, window, reference)}

    def drifted_count_of_report(self, window: pd.DataFrame, reference: pd.DataFrame) -> int:
        """How many columns the whole preset says have drifted; a second of CPU."""
        definition = DataDefinition(
            numerical_columns=self.numeric,
            categorical_columns=[name for name in self.columns if name not in self.numeric],
        )
        current, known = (
            Dataset.from_pandas(frame[self.columns], data_definition=definition)
            for frame in (window, reference)
        )
        values = Report([DataDriftPreset()]).run(current, known).dict()["metrics"]
        (counted,) = (v["value"]["count"] for v in values if "DriftedColumns" in v["metric_name"])
        return int(counted)

    def _drifted(self, name: str, window: pd.DataFrame, reference: pd.DataFrame) -> bool:
        kind = ColumnType.Numerical if name in self.numeric else ColumnType.Categorical
        known, current = (
            frame[name].replace([-np.inf, np.inf], np.nan).dropna() for frame in (reference, window)
        )
        test = get_stattest(known, current, kind, None)
        return bool(test(known, current, kind, None).drifted)
