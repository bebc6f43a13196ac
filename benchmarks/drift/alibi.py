"""Alibi Detect's tests of a table, in an environment of its own: CSV in, JSON out.

    python benchmarks/drift/alibi.py FOLDER

Each CSV file of the folder is a case: windows and their references, told apart by the last two
columns, ``seed`` and ``part``. Said is, for each case, in how many windows any column drifted.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

warnings.simplefilter("ignore")


def as_numbers(rows: pd.DataFrame, categories: dict[str, list[str]]) -> Any:
    """Categories as codes, missing ones being one; missing quantities as the median."""
    columns = {
        name: pd.Categorical(column, categories=categories[name]).codes + 1.0
        if name in categories
        else column.fillna(column.median()).astype(float)
        for name, column in rows.items()
    }
    return np.column_stack(list(columns.values()))


def flagged(case: Path, categories: dict[str, list[str]]) -> int:
    """In how many windows of the case any column drifted."""
    from alibi_detect.cd import TabularDrift

    def drifted(rows: pd.DataFrame) -> bool:
        parts = {
            name: as_numbers(part.iloc[:, :-2], categories) for name, part in rows.groupby("part")
        }
        where = {list(rows).index(name): None for name in categories}
        detector = TabularDrift(
            parts["reference"], p_val=0.05, categories_per_feature=where, correction="fdr"
        )
        return bool(detector.predict(parts["window"])["data"]["is_drift"])

    return sum(drifted(rows) for _, rows in pd.read_csv(case).groupby("seed"))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    columns = json.loads((folder / "columns.json").read_text())
    cases = sorted(folder.glob("*.csv"))
    print(json.dumps({case.stem: flagged(case, columns) for case in cases}))
