"""Other data than the penguins: small worlds with a spec and a file of their own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

Entry = dict[str, Any]

DATA = Path(__file__).parents[1] / "data"
"""The folder of the penguins' spec and data."""


@dataclass(frozen=True, slots=True)
class World:
    """What a data set looks like: columns as a spec has them, classes, rows."""

    columns: list[Entry]
    classes: list[str]
    rows: int = 120
    contract: Mapping[str, float] | None = None

    def write(self, folder: Path) -> dict[str, str]:
        """Write spec and data into `folder`.

        Returns:
            The settings of a platform that knows this data and no other.
        """
        spec = {
            "name": "world",
            "description": "A small world.",
            "columns": self.columns,
            "target": {"name": "kind of thing", "classes": self.classes},
            "contract": self.contract
            or {"minimum_rows": 1, "maximum_missing_share": 1, "maximum_duplicate_share": 1},
        }
        (folder / "world.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
        self.frame().to_csv(folder / "world.csv", index=False, na_rep="NA")
        return {
            "MLSCHOOL_SPEC": str(folder / "world.yaml"),
            "MLSCHOOL_DATA": (folder / "world.csv").as_uri(),
        }

    def frame(self) -> pd.DataFrame:
        """Rows whose columns predict the class, more or less."""
        rng = np.random.default_rng(7)
        codes = np.arange(self.rows) % len(self.classes)
        columns: dict[str, Any] = {}
        for column in self.columns:
            if column["type"] == "numeric":
                middle = (column["minimum"] + column["maximum"]) / 2
                width = (column["maximum"] - column["minimum"]) / 40
                values = pd.Series(middle + width * (3 * codes + rng.normal(size=self.rows)))
            else:
                known = np.array(column["categories"], dtype=object)
                values = pd.Series(known[(codes + (rng.random(self.rows) < 0.1)) % len(known)])
            gaps = rng.random(self.rows) < (0.1 if column.get("nullable") else 0.0)
            columns[column["name"]] = values.mask(gaps)
        columns["kind of thing"] = np.array(self.classes, dtype=object)[codes]
        return pd.DataFrame(columns)


def numeric(name: str, minimum: float, maximum: float, **more: Any) -> Entry:
    """A numeric column as a spec has it."""
    entry = {"name": name, "type": "numeric", "description": "A quantity"}
    return {**entry, "minimum": minimum, "maximum": maximum, **more}


def categorical(name: str, *categories: str, **more: Any) -> Entry:
    """A categorical column as a spec has it."""
    entry = {"name": name, "type": "categorical", "description": "A quality"}
    return {**entry, "categories": list(categories), **more}


WORLDS = {
    "numbers alone": World(
        [numeric("x", -1, 1), numeric("y (m³/s)", 0, 1e6, nullable=True)], ["a", "b", "c"]
    ),
    "categories alone": World(
        [categorical("size", "S", "M", "L"), categorical("$x_{1}$", "NA", "$y_", nullable=True)],
        ["None", "$10_to_$20", "{c}"],
    ),
    "one number": World([numeric("x", 0, 1)], ["no", "yes"]),
    "one category": World([categorical("x", "a", "b", nullable=True)], ["0", "1"]),
}
