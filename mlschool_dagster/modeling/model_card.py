"""The model card of a version: what it is, what to expect of it, and where it came from.

Its sections follow Mitchell et al. 2019, "Model Cards for Model Reporting". It is Markdown, shown
by MLflow as the description of the version and by Dagster in the asset's metadata.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from mlschool_dagster.dataset.spec import (
    PREDICTION,
    Column,
    DataSpec,
    NumericColumn,
)
from mlschool_dagster.dataset.tables import content_digest
from mlschool_dagster.modeling.evaluation import Evaluation, reference_frame
from mlschool_dagster.modeling.training import TrainingResult

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 5000
"""Characters that MLflow's databases keep of a description."""

LINES = 20
"""Rows of a table; more make nobody wiser."""


def model_card(
    result: TrainingResult,
    evaluation: Evaluation,
    frame: "pd.DataFrame",
    spec: DataSpec,
    lineage: Mapping[str, str],
) -> str:
    """The card of a model trained on `frame`; `shortened` fits it into a description.

    `lineage` says where data, code and run came from, name to value.
    """
    sections = [
        f"# {_plain(spec.name)}\n\n{_plain(spec.description)}\n\n"
        f"Predicts {_plain(spec.target.name)}, one of {len(spec.target.classes)} classes, with a "
        "confidence and the probability of each class.",
        _expected(evaluation, result),
        _fairness(result, frame, spec),
        _limits(frame, spec),
        _training_data(frame, spec),
        _lineage(result, {"data sha256": content_digest(frame), **lineage}),
        _inputs(frame, spec),
    ]
    return "\n\n".join(filter(None, sections))


def shortened(card: str) -> str:
    """`card` without the lines that are too many for a description."""
    end = "\n\n(The whole card is in the MLflow run: `model_card.md`.)"
    if len(card) <= LONGEST:
        return card
    return card[: LONGEST - len(end)].rpartition("\n")[0] + end


def _expected(evaluation: Evaluation, result: TrainingResult) -> str:
    scores = _table(
        ("class", "precision", "recall", "F1", "rows"),
        (
            (s.label, *map(_share, (s.precision, s.recall, s.f1)), s.support)
            for s in evaluation.scores
        ),
    )
    return (
        "## What to expect\n\n"
        f"Accuracy {evaluation.accuracy_mean:.4f} ± {evaluation.accuracy_std:.4f} (mean of "
        f"{result.config.folds} stratified folds ± standard deviation), on rows that the model of "
        "the fold had not seen.\n\n"
        f"{scores}\n\n"
        f"Calibration: expected calibration error {evaluation.calibration.expected_error:.4f} "
        "(mean distance of accuracy and confidence over ten bins)."
    )


def _fairness(result: TrainingResult, frame: "pd.DataFrame", spec: DataSpec) -> str:
    if not spec.protected:
        return ""
    reference = reference_frame(result, frame, spec)
    right = reference[PREDICTION] == reference[spec.target.name]
    lines = []
    for name in spec.protected:
        groups = reference[name].astype(object).where(reference[name].notna(), "(missing)")
        for group, hits in right.groupby(groups):
            lines.append((name, group, len(hits), _share(float(hits.mean()))))
    return "## Fairness\n\nOut of fold, by protected column:\n\n" + _table(
        ("column", "group", "rows", "accuracy"), lines
    )


def _limits(frame: "pd.DataFrame", spec: DataSpec) -> str:
    counts = frame[spec.target.name].value_counts()
    rarest = min(spec.target.classes, key=lambda label: int(counts.get(label, 0)))
    return (
        "## Limits\n\n"
        "- The accuracy holds for data like those that it was trained on; drift is watched apart.\n"
        "- Values outside the ranges below are refused, not extrapolated.\n"
        f"- The rarest class, {_plain(rarest)}, had {int(counts.get(rarest, 0))} rows.\n"
        "- Missing values of nullable columns count as the mean, or as the most frequent category."
    )


def _training_data(frame: "pd.DataFrame", spec: DataSpec) -> str:
    counts = frame[spec.target.name].value_counts()
    return f"## Data\n\n{len(frame)} rows.\n\n" + _table(
        ("class", "rows"), ((label, int(counts.get(label, 0))) for label in spec.target.classes)
    )


def _lineage(result: TrainingResult, lineage: Mapping[str, str]) -> str:
    config = ", ".join(f"{name} {value}" for name, value in asdict(result.config).items())
    lines = [*lineage.items(), ("training", config)]
    return "## Lineage\n\n" + "\n".join(f"- {_plain(k)}: {_plain(v)}" for k, v in lines)


def _inputs(frame: "pd.DataFrame", spec: DataSpec) -> str:
    lines = ((c.name, _values(c), _share(float(frame[c.name].isna().mean()))) for c in spec.columns)
    return "## Inputs\n\n" + _table(("column", "values", "missing"), lines)


def _values(column: Column) -> str:
    kept = ", may be missing" if column.nullable else ""
    if isinstance(column, NumericColumn):
        unit = f" {column.unit}" if column.unit else ""
        return f"{column.minimum:g} to {column.maximum:g}{unit}{kept}"
    shown = ", ".join(column.categories[:LINES])
    more = len(column.categories) - LINES
    return f"{shown}{f' and {more} more' if more > 0 else ''}{kept}"


def _table(header: tuple[str, ...], lines: Iterable[tuple[object, ...]]) -> str:
    every = list(lines)
    rows = [tuple(map(_plain, row)) for row in every[:LINES]]
    rows = [header, ("---",) * len(header), *rows]
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return text + (f"\n\nand {len(every) - LINES} more." if len(every) > LINES else "")


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _plain(value: object) -> str:
    """`value` as text that means nothing in Markdown or HTML."""
    text = " ".join(str(value).split())
    for sign in "\\`*_[]|~#":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
