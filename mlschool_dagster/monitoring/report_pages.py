"""The reports of a window as HTML pages: our verdicts on top, Evidently's charts below.

The heading has model version, window, reference, row counts and verdicts of our own reports, which
count every row. Evidently draws a bounded sample, and only what it can: no empty window, no column
without a value. Where it fails, the page says so in place of the charts.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mlschool_dagster.dataset.spec import MODEL_VERSION, PREDICTION, DataSpec
from mlschool_dagster.errors import reason
from mlschool_dagster.garbage import no_garbage_collection
from mlschool_dagster.monitoring.drift import DriftReport
from mlschool_dagster.monitoring.pages import render, script_json, write_page
from mlschool_dagster.monitoring.performance import PerformanceReport
from mlschool_dagster.monitoring.quality import QualityReport

if TYPE_CHECKING:
    import pandas as pd

_LOG = logging.getLogger(__name__)

DEFAULT_SAMPLES = 1000
MOST_COLUMNS = 40
"""Most columns that Evidently draws, those with findings first: each takes a tenth of a second."""
MINIMUM_ROWS = 2
"""Fewest rows that Evidently can summarise: a standard deviation needs two."""

LARGEST_DRAWN, NARROWEST_DRAWN = 1e100, 1e-9
"""Bounds on size and relative range of numbers: squares must not overflow, bins not be empty."""

OTHER = "(other)"
"""Stands for any value outside a column's categories: clients choose those freely, and they would
make a page as large as they like."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The input of Evidently: bounded samples of drawable columns, and notes on what is absent."""

    current: "pd.DataFrame"
    reference: "pd.DataFrame"
    notes: tuple[str, ...]

    @property
    def enough(self) -> bool:
        rows = min(len(self.current), len(self.reference))
        return rows >= MINIMUM_ROWS and bool(self.current.columns.size)


_END_OF_DATA = "</script>\n    </head>\n    <body>"
"""Text after the data in Evidently's pages; no text of the data can hold these line ends."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Subject of a page, in the words of its heading."""

    model: str
    model_version: str
    window: str
    reference: str


@dataclass(frozen=True, slots=True)
class Heading:
    """Summary above the charts; ``table`` has one mapping a row, all with the same keys."""

    title: str
    subject: Subject
    rows: str
    summary: str
    table: Sequence[dict[str, Any]]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Charts:
    """Evidently's part of a page: what belongs into its head and its body."""

    head: Markup
    body: Markup


def write_quality_page(
    current: "pd.DataFrame",
    reference: "pd.DataFrame",
    spec: DataSpec,
    subject: Subject,
    report: QualityReport,
    path: Path,
    samples: int = DEFAULT_SAMPLES,
) -> str:
    """Write the page of the data quality `report` of a window to `path`.

    `current` has the rows of the window (`snapshot.captures_table`), or a uniform sample of
    at least `samples`; Evidently draws at most `samples` rows of it and of `reference`. Return
    what could not be drawn, or an empty text.
    """
    faulty = [column.column for column in report.columns if column.is_faulty]
    drawn = _inputs(current, reference, spec, samples, report.n_current, faulty)
    heading = Heading(
        "Data quality",
        subject,
        f"{report.n_current} in the window, {report.n_reference} in the reference",
        report.summary,
        report.rows(),
        (_refusals(report), *drawn.notes),
    )
    return _write(path, heading, drawn, lambda: _summary(drawn, spec))


def _refusals(report: QualityReport) -> str:
    if not report.refused:
        return "No request was refused."
    reasons = ", ".join(f"{reason} ({count})" for reason, count in report.refusals.items())
    return f"Refused, by reason: {reasons}."


def write_drift_page(
    current: "pd.DataFrame",
    reference: "pd.DataFrame",
    spec: DataSpec,
    subject: Subject,
    report: DriftReport,
    path: Path,
    samples: int = DEFAULT_SAMPLES,
) -> str:
    """Write the page of the drift `report` of a window to `path`; see `write_quality_page`."""
    drawn = _inputs(current, reference, spec, samples, report.n_current, report.drifted_columns)
    heading = Heading(
        "Drift",
        subject,
        f"{report.n_current} in the window, {report.n_reference} in the reference",
        report.summary,
        [
            {key: row[key] for key in ("column", "aspect", "verdict", "why")}
            for row in report.rows()
        ],
        (
            *drawn.notes,
            "The verdicts are those of the table above; the charts below carry tests of their own "
            "on the rows drawn.",
        ),
    )
    return _write(path, heading, drawn, lambda: _comparison(drawn, spec))


def write_performance_page(
    reference: "pd.DataFrame",
    spec: DataSpec,
    subject: Subject,
    report: PerformanceReport,
    path: Path,
    samples: int = DEFAULT_SAMPLES,
) -> str:
    """Write the page of the performance `report` of a window and its labels to `path`.

    Evidently draws labelled rows only, at most `samples` of window and reference each. Return what
    could not be drawn, or an empty text.
    """
    target = spec.target.name
    known = _pairs(report, target)
    drawn = _drawn(
        known, reference[[target, PREDICTION]], samples, "labelled rows", rows=len(known)
    )
    if drawn.enough and not _comparable(drawn, target):
        note = f"No charts: the rows drawn show too few values of {target}."
        drawn = replace(drawn, current=known.iloc[:0], notes=(*drawn.notes, note))
    heading = Heading(
        "Performance",
        subject,
        f"{report.overall.rows} in the window, {report.overall.labelled} of them labelled, "
        f"{len(reference)} in the reference",
        report.summary,
        _judged(report),
        (report.estimate_summary, *_findings(report), *drawn.notes),
    )
    return _write(path, heading, drawn, lambda: _classification(drawn, target))


def _write(path: Path, heading: Heading, drawn: _Drawn, draw: Callable[[], Charts]) -> str:
    """Write the page, with charts if there can be any; return what could not be drawn, or ""."""
    charts, lacking = None, ""
    if drawn.enough:
        try:
            charts = draw()
        except Exception as error:
            lacking = f"Evidently could not draw the charts ({reason(error)})."
            _LOG.warning(lacking, exc_info=error)
            heading = replace(heading, notes=(*heading.notes, lacking))
    table = [{name: _cell(value) for name, value in row.items()} for row in heading.table]
    write_page(path, render("report.html", heading=heading, table=table, charts=charts))
    return lacking


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} ({count})" for key, count in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _pairs(report: PerformanceReport, target: str) -> "pd.DataFrame":
    """Label and prediction of each labelled row, expanded from the confusion counts."""
    import numpy as np
    import pandas as pd

    classes, counts = np.array(report.classes, dtype=object), np.array(report.confusion)
    labels, predictions = np.indices(counts.shape)
    return pd.DataFrame(
        {
            target: np.repeat(classes[labels.ravel()], counts.ravel()),
            PREDICTION: np.repeat(classes[predictions.ravel()], counts.ravel()),
        }
    )


def _judged(report: PerformanceReport) -> list[dict[str, Any]]:
    """The window, its versions and its segments, in one table."""
    versions = [
        {"of": name if name == "all" else f"{MODEL_VERSION}={name}", **row}
        for row in report.rows()
        for name in [row.pop(MODEL_VERSION)]
    ]
    return versions + [{"of": row.pop("segment"), **row} for row in report.segment_rows()]


def _findings(report: PerformanceReport) -> list[str]:
    worst = [report.worst.summary] if report.worst else []
    return worst + [group.summary for group in report.fairness]


def _inputs(
    current: "pd.DataFrame",
    reference: "pd.DataFrame",
    spec: DataSpec,
    samples: int,
    rows: int,
    with_findings: Collection[str],
) -> _Drawn:
    """The inputs and the prediction as Evidently draws them, at most `MOST_COLUMNS`.

    Columns in `with_findings` come first.
    """
    import numpy as np
    import pandas as pd

    known = {column.name: column.categories for column in spec.categorical}
    known[PREDICTION] = spec.target.classes
    first = sorted(spec.input_names, key=lambda name: name not in with_findings)[: MOST_COLUMNS - 1]
    names = [*(name for name in spec.input_names if name in first), PREDICTION]

    def drawable(frame: "pd.DataFrame") -> "pd.DataFrame":
        columns = {
            name: frame[name].where(frame[name].isna() | frame[name].isin(known[name]), OTHER)
            if name in known
            else frame[name].where(np.isfinite(frame[name]))
            for name in names
        }
        return pd.DataFrame(columns)

    drawn = _drawn(drawable(current), drawable(reference), samples, "rows", rows)
    if len(first) < len(spec.input_names):
        note = f"The charts show {len(first)} of {len(spec.input_names)} columns."
        drawn = replace(drawn, notes=(note, *drawn.notes))
    return drawn


def _drawn(
    current: "pd.DataFrame", reference: "pd.DataFrame", samples: int, what: str, rows: int
) -> _Drawn:
    """Bounded samples of `reference` and of `current`, which stands for `rows` of the window."""
    notes: list[str] = []
    frames = []
    for frame, origin, whole in (
        (current, "window", rows),
        (reference, "reference", len(reference)),
    ):
        if whole > samples:
            notes.append(f"The charts draw {samples} of the {origin}'s {whole} {what}.")
        if len(frame) > samples:
            frame = frame.sample(samples, random_state=0).sort_index()
        frames.append(frame)
    valued = [name for name in current if all(frame[name].notna().any() for frame in frames)]
    without = [str(name) for name in current if name not in valued]
    if without and all(len(frame) for frame in frames):
        notes.append(f"Not drawn, because they have no value: {', '.join(without)}.")
    narrow = [str(name) for name in valued if not _is_wide([frame[name] for frame in frames])]
    if narrow:
        notes.append(f"Not drawn, because their values hardly differ: {', '.join(narrow)}.")
    valued = [name for name in valued if name not in narrow]
    drawn = _Drawn(frames[0][valued], frames[1][valued], tuple(notes))
    if drawn.enough:
        return drawn
    lacking = f"No charts: they need at least {MINIMUM_ROWS} {what} with values."
    return replace(drawn, notes=(*notes, lacking))


def _is_wide(parts: "list[pd.Series[Any]]") -> bool:
    """Whether the values of all parts together span a range that histogram bins can divide.

    Numpy refuses narrower ranges, and squares of the largest numbers overflow.
    """
    import numpy as np
    import pandas as pd

    if not pd.api.types.is_float_dtype(parts[0].dtype):
        return True
    values = np.concatenate([part.dropna().to_numpy(float) for part in parts])
    low, high = float(values.min()), float(values.max())
    size = max(abs(low), abs(high))
    return size < LARGEST_DRAWN and (low == high or high - low > NARROWEST_DRAWN * size)


@no_garbage_collection()
def _summary(drawn: _Drawn, spec: DataSpec) -> Charts:
    from evidently.presets import DataSummaryPreset

    return _evidently(DataSummaryPreset(), drawn, _definition(drawn, spec))


@no_garbage_collection()
def _comparison(drawn: _Drawn, spec: DataSpec) -> Charts:
    from evidently.presets import DataDriftPreset

    # Evidently's own defaults flag every other window without drift. These tests are near ours.
    count = drawn.current.columns.size
    preset = DataDriftPreset(
        num_method="ks", cat_method="chisquare", threshold=0.05 / count, drift_share=1 / count
    )
    return _evidently(preset, drawn, _definition(drawn, spec))


@no_garbage_collection()
def _classification(drawn: _Drawn, target: str) -> Charts:
    from evidently import BinaryClassification, DataDefinition, MulticlassClassification
    from evidently.presets import ClassificationPreset

    columns: dict[str, Any] = {"target": target, "prediction_labels": PREDICTION}
    # Evidently takes rows with two classes for a binary task even where it is declared multiclass,
    # and then fails without a positive class.
    pairs = [sorted(classes) for classes in _classes(drawn) if len(classes) == 2]
    task = (
        BinaryClassification(**columns, pos_label=pairs[0][-1])
        if pairs
        else MulticlassClassification(**columns)
    )
    definition = DataDefinition(categorical_columns=[target, PREDICTION], classification=[task])
    return _evidently(ClassificationPreset(), drawn, definition)


def _classes(drawn: _Drawn) -> list[set[str]]:
    return [{*rows.iloc[:, 0], *rows.iloc[:, 1]} for rows in (drawn.current, drawn.reference)]


def _comparable(drawn: _Drawn, target: str) -> bool:
    """Whether Evidently can score window and reference side by side.

    It needs reference rows of each class that the window shows, and compares a single class with
    two by neither of its two ways.
    """
    current, reference = _classes(drawn)
    return current <= {*drawn.reference[target]} and (len(current), len(reference)) != (1, 2)


def _definition(drawn: _Drawn, spec: DataSpec) -> Any:
    from evidently import DataDefinition

    quantities = {column.name for column in spec.numeric}
    return DataDefinition(
        numerical_columns=[name for name in drawn.current if name in quantities],
        categorical_columns=[name for name in drawn.current if name not in quantities],
    )


def _evidently(preset: Any, drawn: _Drawn, definition: Any) -> Charts:
    from evidently import Dataset, Report

    snapshot = Report([preset], include_tests=False).run(
        Dataset.from_pandas(drawn.current, data_definition=definition),
        Dataset.from_pandas(drawn.reference, data_definition=definition),
    )
    return _charts(str(snapshot.get_html_str(as_iframe=False)))


def _charts(page: str) -> Charts:
    """The parts of Evidently's `page`, with no text of its data able to end the script it is in.

    Evidently writes the data into the first script as JSON, unescaped.

    Raises:
        ValueError: the page is not built as in the known releases.
    """
    styles, begin, rest = page.partition("<head>")[2].partition("<script>")
    data, separator, rest = rest.partition(_END_OF_DATA)
    body, end, _ = rest.rpartition("</body>")
    if not (begin and separator and end):
        raise ValueError("Evidently builds its pages in another way")
    # The rest is Evidently's own program.
    head = Markup(styles + begin) + script_json(data) + Markup("</script>")  # noqa: S704
    return Charts(head, Markup(body))  # noqa: S704
