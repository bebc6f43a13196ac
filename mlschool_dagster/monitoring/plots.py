"""The plots of the reports, as PNG."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dataset.spec import CONFIDENCE, PREDICTION, TOGETHER, DataSpec, NumericColumn
from mlschool_dagster.modeling.figures import COLOURS, bin_edges, new_figure, shown, to_png
from mlschool_dagster.monitoring.cbpe_backtest import BacktestReport
from mlschool_dagster.monitoring.drift import DriftReport, DriftVerdict
from mlschool_dagster.monitoring.e_values import Evidence
from mlschool_dagster.monitoring.metrics import Metric
from mlschool_dagster.monitoring.performance import PerformanceReport
from mlschool_dagster.monitoring.quality import QualityReport

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_A_ROW = 3
MOST_PANELS = 24
"""Most columns that have a panel; those that drifted come first."""
MOST_BARS = 12
"""Most values or columns that have bars, and most segments that have intervals."""
REST = "(other)"
"""The values without bars of their own: all that the spec does not know, which whoever sends it may
choose freely, and what is rare."""
BINS = 25
ROUNDING = 1e-9
LEVEL_LABELS = 4
"""Most labels that fit below bars without being turned."""
WINDOW_COLOUR, REFERENCE_COLOUR = COLOURS[1], COLOURS[0]


def distributions(
    current: "pd.DataFrame", reference: "pd.DataFrame", spec: DataSpec, report: DriftReport
) -> bytes:
    """Inputs, the prediction and the confidence: window beside reference, with its verdict."""
    drifted_first = sorted(spec.input_names, key=lambda name: name not in report.drifted_columns)
    drawn = set(drifted_first[: MOST_PANELS - 2])
    names = [*(name for name in spec.input_names if name in drawn), PREDICTION, CONFIDENCE]
    known = {column.name: column.categories for column in spec.categorical}
    known[PREDICTION] = spec.target.classes
    numeric = {column.name: column for column in spec.numeric}
    rows = math.ceil(len(names) / PANELS_A_ROW)
    figure = new_figure(3.3 * PANELS_A_ROW, 2.5 * rows)
    panels = figure.subplots(rows, PANELS_A_ROW, squeeze=False).flat
    for name, axes in zip(names, panels, strict=False):
        if name in numeric or name == CONFIDENCE:
            _histogram(axes, current[name], reference[name], _unit(numeric.get(name)))
        else:
            _shares(axes, current[name], reference[name], known[name])
        verdict = report.column_verdict(name)
        drifted = verdict is DriftVerdict.DRIFTED
        axes.set_title(
            f"{shown(name)}: {verdict}",
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
    """The missing share of the inputs that miss most: window beside reference."""
    shares = {
        column.column: (column.missing_share or 0.0, column.reference_missing_share or 0.0)
        for column in report.columns
    }
    most = sorted(shares, key=lambda name: -max(shares[name]))[:MOST_BARS]
    names = [name for name in shares if name in most]
    now, then = [shares[name][0] for name in names], [shares[name][1] for name in names]
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
        versions = list(report.versions.items())[-MOST_BARS:]
        groups |= {f"version {version}": group for version, group in versions}
    most = sorted(report.segments, key=lambda name: -report.segments[name].rows)[:MOST_BARS]
    groups |= {name: group for name, group in report.segments.items() if name in most}
    figure = new_figure(max(6.4, 0.8 * len(groups)))
    axes = figure.subplots()
    for position, group in enumerate(groups.values()):
        if group.estimate is not None:
            estimate = group.estimate
            bounds = estimate.low, estimate.high
            _interval(axes, position - 0.1, estimate.accuracy, bounds, "D", "estimated, all rows")
        if group.measured is not None and group.interval is not None:
            _interval(axes, position + 0.1, group.measured, group.interval, "o", "measured")
    axes.axhline(report.accuracy_threshold, color="black", linestyle="--", label="threshold")
    labels = [f"{shown(name)}\n{g.labelled} of {g.rows} labelled" for name, g in groups.items()]
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


def estimates(report: BacktestReport) -> bytes:
    """Estimated and realised accuracy of the labelled rows over windows, with their intervals."""
    figure = new_figure(9.0, 4.0)
    axes = figure.subplots()
    for position, window in enumerate(report.windows):
        expected, realised = window.estimated, window.realised
        _interval(axes, position - 0.1, expected.value, _bounds(expected), "D", "estimated")
        _interval(axes, position + 0.1, realised.value, _bounds(realised), "o", "realised")
    shown = range(0, len(report.windows), max(1, len(report.windows) // 8))
    axes.set_xticks(shown, [report.windows[p].window.key for p in shown], rotation=25)
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
    edges = bin_edges(np.concatenate(list(values.values())), BINS)
    for (name, sample), colour in zip(
        values.items(), (WINDOW_COLOUR, REFERENCE_COLOUR), strict=True
    ):
        heights = np.histogram(sample, edges)[0] / max(1, sample.size)
        axes.stairs(heights, edges, fill=True, alpha=0.45, color=colour, label=name)
    axes.set(xlabel=shown(unit), ylabel="share of rows")


def _shares(
    axes: "Axes", now: "pd.Series[Any]", then: "pd.Series[Any]", known: Sequence[str]
) -> None:
    counts = [values.value_counts() for values in (now, then)]
    frequent = sorted(known, key=lambda name: -max(int(each.get(name, 0)) for each in counts))
    named = [name for name in known if name in frequent[:MOST_BARS]]
    shares = [[float(each.get(name, 0)) / max(1, each.sum()) for name in named] for each in counts]
    rest = [
        max(0.0, 1.0 - sum(part)) if each.sum() else 0.0
        for part, each in zip(shares, counts, strict=True)
    ]
    if max(rest) > ROUNDING:
        named.append(REST)
        for part, other in zip(shares, rest, strict=True):
            part.append(other)
    _bars(axes, named, *shares)
    axes.set_ylabel("share of rows")


def _bars(axes: "Axes", names: list[str], now: list[float], then: list[float]) -> None:
    positions = range(len(names))
    axes.bar([p - 0.2 for p in positions], now, 0.4, color=WINDOW_COLOUR, label="window")
    axes.bar([p + 0.2 for p in positions], then, 0.4, color=REFERENCE_COLOUR, label="reference")
    names = [shown(name) for name in names]
    if len(names) > LEVEL_LABELS:
        axes.set_xticks(positions, names, rotation=25, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(positions, names)


def _unit(column: NumericColumn | None) -> str:
    return column.unit if column else ""


SHOWN = 168
"""The newest windows, a week of hours."""
COLUMNS = 4
"""The columns with the most evidence, which have lines of their own."""
LEAST = 1e-4
"""Lower values are drawn at this one: they mean the same, that there is no evidence."""


def evidence_plot(windows: Sequence[Window], evidence: Evidence) -> bytes:
    """The evidence after each of the newest `windows`, which end where that of `evidence` does."""
    newest = list(windows)[-SHOWN:]
    figure = new_figure(9.0, 4.0)
    axes = figure.subplots()
    positions = range(len(newest))
    lines = {"all evidence": evidence.totals}
    for name in list(evidence.parts)[:COLUMNS]:
        lines[name or TOGETHER] = list(evidence.paths[name])
    for (name, path), colour in zip(lines.items(), ["black", *COLOURS], strict=False):
        drawn = [max(LEAST, value) for value in path[-len(newest) :]]
        axes.plot(positions, drawn, ".-", color=colour, label=shown(name))
    axes.axhline(evidence.threshold, color="black", linestyle="--", label="confirms drift")
    ticks = range(0, len(newest), max(1, len(newest) // 6))
    axes.set_xticks(ticks, [newest[position].key for position in ticks], rotation=15, fontsize=8)
    axes.set(title="Evidence for drift, over windows", yscale="log", ylabel="evidence")
    axes.yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside lower center", ncols=COLUMNS + 2, frameon=False, fontsize=8)
    return to_png(figure)


USUAL_COLOUR, UNUSUAL_COLOUR = COLOURS[0], COLOURS[1]


def volume_picture(rows: Sequence[Metric]) -> bytes:
    """Rows per window in order of time, in the band of what was to be expected."""
    import numpy as np

    figure = new_figure(8.0, 3.2)
    axes = figure.subplots()
    judged = [metric for metric in rows if metric.lower is not None]
    if judged:
        axes.fill_between(
            _moments(judged),
            np.array([metric.lower for metric in judged], float),
            np.array([metric.upper for metric in judged], float),
            step="mid",
            alpha=0.2,
            color=USUAL_COLOUR,
            label="usual",
        )
    axes.step(_moments(rows), [metric.rows for metric in rows], where="mid", color=USUAL_COLOUR)
    unusual = [metric for metric in rows if metric.finding]
    if unusual:
        counts = [metric.rows for metric in unusual]
        axes.plot(_moments(unusual), counts, "o", color=UNUSUAL_COLOUR, label="unusual")
    axes.set(title="Captured rows per hour", ylabel="rows", xlabel="UTC")
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="x", rotation=25)
    if judged or unusual:
        axes.legend(frameon=False)
    return to_png(figure)


def _moments(rows: Sequence[Metric]) -> Any:
    import numpy as np

    return np.array([metric.window.start.replace(tzinfo=None) for metric in rows], "datetime64[s]")
