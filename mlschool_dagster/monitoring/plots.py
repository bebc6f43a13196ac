"""The pictures of the reports, as PNG."""

import math
from typing import TYPE_CHECKING, Any

from mlschool_dagster.modeling.figures import COLOURS, new_figure, to_png
from mlschool_dagster.modeling.spec import CONFIDENCE, PREDICTION, DataSpec, NumericColumn
from mlschool_dagster.monitoring.drift import DriftReport, DriftVerdict
from mlschool_dagster.monitoring.estimates import EstimatesReport
from mlschool_dagster.monitoring.metrics import Metric
from mlschool_dagster.monitoring.performance import PerformanceReport
from mlschool_dagster.monitoring.quality import QualityReport

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_A_ROW = 3
BINS = 25
LEVEL_LABELS = 4
"""Most labels that fit below bars without being turned."""
WINDOW_COLOUR, REFERENCE_COLOUR = COLOURS[1], COLOURS[0]


def distributions(
    current: "pd.DataFrame", reference: "pd.DataFrame", spec: DataSpec, report: DriftReport
) -> bytes:
    """Every input, the prediction and the confidence: window beside reference, with its verdict."""
    names = [*spec.input_names, PREDICTION, CONFIDENCE]
    numeric = {column.name: column for column in spec.numeric}
    rows = math.ceil(len(names) / PANELS_A_ROW)
    figure = new_figure(3.3 * PANELS_A_ROW, 2.5 * rows)
    panels = figure.subplots(rows, PANELS_A_ROW, squeeze=False).flat
    for name, axes in zip(names, panels, strict=False):
        if name in numeric or name == CONFIDENCE:
            _histogram(axes, current[name], reference[name], _unit(numeric.get(name)))
        else:
            _shares(axes, current[name], reference[name])
        verdict = report.column_verdict(name)
        drifted = verdict is DriftVerdict.DRIFTED
        axes.set_title(
            f"{name}: {verdict}",
            fontsize=10,
            color=WINDOW_COLOUR if drifted else "black",
            weight="bold" if drifted else "normal",
        )
    for axes in panels:
        axes.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return to_png(figure)


def missing_shares(report: QualityReport) -> bytes:
    """The missing share of every input: window beside reference."""
    names = [column.column for column in report.columns]
    now = [column.missing_share or 0.0 for column in report.columns]
    then = [column.reference_missing_share or 0.0 for column in report.columns]
    figure = new_figure()
    axes = figure.subplots()
    _bars(axes, names, now, then)
    axes.set(title="Missing values", ylabel="share of rows", ylim=(0, max(0.05, *now, *then) * 1.1))
    axes.legend(frameon=False)
    return to_png(figure)


def accuracy(report: PerformanceReport) -> bytes:
    """Estimated and measured accuracy, with their intervals: of the window, versions, segments."""
    groups = {"window": report.overall}
    if len(report.versions) > 1:
        groups |= {f"version {version}": group for version, group in report.versions.items()}
    groups |= report.segments
    figure = new_figure(max(6.4, 0.8 * len(groups)))
    axes = figure.subplots()
    for position, group in enumerate(groups.values()):
        if group.estimate is not None:
            found = group.estimate
            bounds = found.low, found.high
            _interval(axes, position - 0.1, found.accuracy, bounds, "D", "estimated, all rows")
        if group.measured is not None and group.interval is not None:
            _interval(axes, position + 0.1, group.measured, group.interval, "o", "measured")
    axes.axhline(report.accuracy_threshold, color="black", linestyle="--", label="threshold")
    labels = [f"{name}\n{g.labelled} of {g.rows} labelled" for name, g in groups.items()]
    if len(groups) > LEVEL_LABELS:
        axes.set_xticks(range(len(groups)), labels, fontsize=8, rotation=30, ha="right")
    else:
        axes.set_xticks(range(len(groups)), labels)
    axes.set(
        title=f"Accuracy: {report.verdict}",
        ylabel="accuracy",
        ylim=(-0.02, 1.02),
        xlim=(-0.5, len(groups) - 0.5),
    )
    _legend_once(figure, axes)
    return to_png(figure)


def estimates(report: EstimatesReport) -> bytes:
    """Estimated and realised accuracy of the labelled rows over windows, with their intervals."""
    figure = new_figure(9.0, 4.0)
    axes = figure.subplots()
    for position, found in enumerate(report.comparisons):
        expected, realised = found.estimated, found.realised
        _interval(axes, position - 0.1, expected.value, _bounds(expected), "D", "estimated")
        _interval(axes, position + 0.1, realised.value, _bounds(realised), "o", "realised")
    shown = range(0, len(report.comparisons), max(1, len(report.comparisons) // 8))
    axes.set_xticks(shown, [report.comparisons[p].window.key for p in shown], rotation=25)
    axes.set(title=f"Estimates: {report.verdict}", ylabel="accuracy of labelled rows")
    _legend_once(figure, axes)
    return to_png(figure)


def _bounds(metric: Metric) -> tuple[float, float]:
    return metric.lower or 0.0, 1.0 if metric.upper is None else metric.upper


def _interval(
    axes: "Axes",
    position: float,
    value: float | None,
    bounds: tuple[float, float],
    marker: str,
    label: str,
) -> None:
    if value is None:
        return
    low, high = bounds
    axes.errorbar(
        position,
        value,
        yerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
        fmt=marker,
        capsize=4,
        color=COLOURS[0] if marker == "D" else COLOURS[1],
        label=f"{label}, 95 % interval",
    )


def _legend_once(figure: "Figure", axes: "Axes") -> None:
    """A legend below with each label once, none if nothing was drawn."""
    once = {label: drawn for drawn, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if once:
        place = "outside lower center"
        figure.legend(once.values(), once.keys(), loc=place, ncols=len(once), frameon=False)


def _histogram(axes: "Axes", now: "pd.Series[Any]", then: "pd.Series[Any]", unit: str) -> None:
    import numpy as np

    values = {"window": now.dropna().to_numpy(float), "reference": then.dropna().to_numpy(float)}
    together = np.concatenate(list(values.values()))
    edges = np.histogram_bin_edges(together[np.isfinite(together)], BINS)
    for (name, sample), colour in zip(
        values.items(), (WINDOW_COLOUR, REFERENCE_COLOUR), strict=True
    ):
        axes.stairs(
            _bin_shares(sample, edges), edges, fill=True, alpha=0.45, color=colour, label=name
        )
    axes.set(xlabel=unit, ylabel="share of rows")


def _bin_shares(values: "np.ndarray[Any, Any]", edges: "np.ndarray[Any, Any]") -> Any:
    import numpy as np

    return np.histogram(values, edges)[0] / max(1, values.size)


def _shares(axes: "Axes", now: "pd.Series[Any]", then: "pd.Series[Any]") -> None:
    known = then.value_counts().index
    classes = [*sorted(known), *now[~now.isin(known)].value_counts().index[:3]]
    _bars(axes, classes, _class_shares(now, classes), _class_shares(then, classes))
    axes.set_ylabel("share of rows")


def _class_shares(values: "pd.Series[Any]", classes: list[str]) -> list[float]:
    shares = values.value_counts(normalize=True)
    return [float(shares.get(label, 0.0)) for label in classes]


def _bars(axes: "Axes", names: list[str], now: list[float], then: list[float]) -> None:
    positions = range(len(names))
    axes.bar([p - 0.2 for p in positions], now, 0.4, color=WINDOW_COLOUR, label="window")
    axes.bar([p + 0.2 for p in positions], then, 0.4, color=REFERENCE_COLOUR, label="reference")
    if len(names) > LEVEL_LABELS:
        axes.set_xticks(positions, names, rotation=25, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(positions, names)


def _unit(column: NumericColumn | None) -> str:
    return column.unit if column else ""
