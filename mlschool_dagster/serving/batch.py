"""Batch prediction: whole files, by the rules and the model that answer requests, in chunks."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlschool_dagster.dataset.source_files import shown
from mlschool_dagster.dataset.spec import PROBABILITY_PREFIX
from mlschool_dagster.dataset.tables import carried_schema, table_files
from mlschool_dagster.errors import UserError
from mlschool_dagster.modeling.compiled import CompiledModel
from mlschool_dagster.serving.batch_output import PREDICTIONS_FILE, REJECTED_FILE, TAKEN, outputs
from mlschool_dagster.serving.column_rules import Rule, rules_of

CHUNK_ROWS = 20_000

MISSHAPEN = "the row: must have one cell per column"


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """What came of a batch: counts of rows by class, and of rejected ones by reason.

    A row that is rejected for several reasons counts under each of them. ``carried`` names the
    columns that the model does not know and that stand beside the predictions.
    """

    predicted: int
    rejected: int
    classes: dict[str, int]
    reasons: dict[str, int]
    carried: list[str]
    predictions: Path
    rejections: Path
    seconds: float

    @property
    def rows(self) -> int:
        """How many rows were read."""
        return self.predicted + self.rejected

    @property
    def rejected_share(self) -> float:
        """The share of rows that were rejected, 0 if there were none at all."""
        return self.rejected / self.rows if self.rows else 0.0

    @property
    def rows_per_second(self) -> float:
        """How fast rows were read, judged, predicted on and written."""
        return self.rows / self.seconds


def score(
    source: Path,
    output: Path,
    model: CompiledModel,
    version: str,
    chunk_rows: int = CHUNK_ROWS,
    progress: Callable[[str], None] = lambda told: None,
) -> BatchSummary:
    """Predict on every row of `source`, a CSV or Parquet file or a folder of them.

    Into the folder `output` go the predictions (`PREDICTIONS_FILE`: file and row number, inputs,
    prediction, confidence, probability of each class, model version, other columns of `source`)
    and what was rejected (`REJECTED_FILE`: file and row number, reasons, and the row as JSON),
    each whole or not at all. Memory holds `chunk_rows` rows at a time.

    Raises:
        UserError: `source` cannot be read, or is not data for this model.
    """
    started = time.perf_counter()
    written_over = [output, output / PREDICTIONS_FILE, output / REJECTED_FILE]
    if source.resolve() in [path.resolve() for path in written_over]:
        raise UserError(
            f"The predictions would land among their input in {output}; choose another folder."
        )
    files = table_files(source, model.spec)
    carried = carried_schema(files)
    taken = [n for n in carried.names if n in TAKEN or n.startswith(PROBABILITY_PREFIX)]
    if taken:
        raise UserError(
            f"{shown(source)} has the column {taken[0]}, a name that the predictions use; rename "
            "or drop it."
        )
    rules = rules_of(model.spec)
    classes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    rows = rejected = 0
    with outputs(output, model.spec, version, carried) as written:
        for file in files:
            for chunk in file.chunks(chunk_rows):
                faulty = _judge(chunk.rows, rules)
                valid = [at for at in range(len(chunk.rows)) if at not in faulty]
                written.reject(chunk, faulty)
                with np.errstate(all="ignore"):
                    probabilities = model.probabilities([chunk.rows[at] for at in valid])
                classes.update(written.predict(chunk, valid, probabilities))
                reasons.update(reason for found in faulty.values() for reason in found)
                rows += len(chunk.rows)
                rejected += len(faulty)
                progress(f"{rows:,} rows done, {rejected:,} of them rejected ({chunk.file})")
    return BatchSummary(
        predicted=rows - rejected,
        rejected=rejected,
        classes={label: classes[label] for label in model.spec.target.classes},
        reasons=dict(reasons.most_common()),
        carried=list(carried.names),
        predictions=output / PREDICTIONS_FILE,
        rejections=output / REJECTED_FILE,
        seconds=time.perf_counter() - started,
    )


def _judge(rows: Sequence[Any], rules: Mapping[str, Rule]) -> dict[int, list[str]]:
    """What is wrong with which of `rows`, by position."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    whole = []
    for at, row in enumerate(rows):
        if type(row) is dict:
            whole.append(at)
        else:
            found[at].append(MISSHAPEN)
    for name, rule in rules.items():
        values = [rows[at][name] for at in whole]
        # Nearly every column is valid, which costs little to see as a whole.
        if values and not rule.fits(values):
            for at, value in zip(whole, values, strict=True):
                if (issue := rule.issue(value)) is not None:
                    found[at].append(f"{name}: {issue.message}")
    return found
