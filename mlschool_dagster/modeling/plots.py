"""Pictures of a data set and of a model's training, each as PNG bytes."""

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from mlschool_dagster.dataset.spec import DataSpec, NumericColumn
from mlschool_dagster.modeling.evaluation import Counts, Evaluation
from mlschool_dagster.modeling.figures import COLOURS, bin_edges, new_figure, shown, to_png
from mlschool_dagster.modeling.training import TrainingResult

if TYPE_CHECKING:
    import pandas as pd

    from mlschool_dagster.modeling.comparison import Paired

HISTOGRAM_BINS = 24
PANELS_PER_ROW = 2
MOST_CLASSES = 20


def class_balance(frame: "pd.DataFrame", spec: DataSpec) -> bytes:
    """Rows per class."""
    counts = [int((frame[spec.target.name] == label).sum()) for label in spec.target.classes]
    figure = new_figure()
    axes = figure.subplots()
    bars = axes.bar(spec.target.classes, counts, color=COLOURS[0])
    axes.bar_label(bars)
    axes.margins(y=0.1)
    axes.set(xlabel=spec.target.name, ylabel="rows", title="Rows per class")
    return to_png(figure)


def distributions(frame: "pd.DataFrame", spec: DataSpec) -> bytes:
    """A histogram of each numeric column, one outline per class."""
    rows = -(-len(spec.numeric) // PANELS_PER_ROW)
    figure = new_figure(8.4, 2.8 * rows)
    panels = figure.subplots(rows, PANELS_PER_ROW, squeeze=False).ravel()
    for axes, column in zip(panels, spec.numeric, strict=False):
        values = frame[column.name]
        edges = bin_edges(values.to_numpy(float), HISTOGRAM_BINS)
        for label, colour in zip(spec.target.classes, cycle(COLOURS), strict=False):
            of_class = values[frame[spec.target.name] == label]
            axes.hist(of_class, edges, histtype="step", color=colour, label=label, lw=1.6)
        axes.set(xlabel=_with_unit(column), ylabel="rows")
    for axes in panels[len(spec.numeric) :]:
        axes.remove()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), title=spec.target.name
    )
    return to_png(figure)


def learning_curves(result: TrainingResult) -> bytes:
    """Loss and accuracy per epoch: a line per fold, on rows trained on and on rows held out."""
    figure = new_figure(8.4, 3.6)
    loss, accuracy = figure.subplots(1, 2)
    epochs = np.arange(1, result.config.epochs + 1)
    for number, (curves, colour) in enumerate(zip(result.curves, cycle(COLOURS), strict=False), 1):
        style: dict[str, Any] = {"color": colour, "lw": 1.2}
        loss.plot(epochs, curves.validation_loss, label=f"fold {number}", **style)
        loss.plot(epochs, curves.loss, ls=":", **style)
        accuracy.plot(epochs, curves.validation_accuracy, **style)
        accuracy.plot(epochs, curves.accuracy, ls=":", **style)
    loss.set(xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    loss.yaxis.set_major_formatter("{x:g}")
    loss.minorticks_off()
    accuracy.set(xlabel="epoch", ylabel="accuracy (share of rows)")
    figure.legend(
        loc="outside upper center",
        ncols=min(5, len(result.curves)),
        title="solid: rows held out, dotted: rows trained on",
    )
    return to_png(figure)


def confusion_matrix(counts: Counts, spec: DataSpec, title: str) -> bytes:
    """Rows by true and predicted class, from `confusion_counts`; numbers up to `MOST_CLASSES`."""
    classes = spec.target.classes
    size = min(len(classes), MOST_CLASSES)
    figure = new_figure(max(4.8, 1.2 * size), max(4.0, 1.0 * size))
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if size < len(classes):
            break
        axes.text(
            column,
            row,
            f"{count}\n{shares[row, column]:.1%}",
            ha="center",
            va="center",
            color="white" if shares[row, column] > 0.5 else "black",
        )
    if size == len(classes):
        ticks = range(size)
        axes.set_xticks(ticks, map(shown, classes))
        axes.set_yticks(ticks, map(shown, classes))
    axes.set(
        xlabel=f"predicted {spec.target.name}",
        ylabel=f"true {spec.target.name}",
        title=f"{title} (rows, share of true class)",
    )
    return to_png(figure)


def reliability_diagram(evaluation: Evaluation) -> bytes:
    """How often out-of-fold predictions of a given confidence were right."""
    calibration = evaluation.calibration
    figure = new_figure(5.2, 4.8)
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    edges = np.linspace(0, 1, len(calibration.count) + 1)
    style: dict[str, Any] = {"width": np.diff(edges), "align": "edge", "edgecolor": "white"}
    top.plot((0, 1), (0, 1), color=COLOURS[-1], ls="--", label="perfectly calibrated")
    top.bar(edges[:-1], np.nan_to_num(calibration.accuracy), color=COLOURS[0], **style)
    top.plot(
        calibration.confidence,
        calibration.accuracy,
        "o",
        color=COLOURS[1],
        clip_on=False,
        label="mean of the bin",
    )
    top.set(
        ylabel="accuracy (share of rows)",
        title=f"Reliability, expected calibration error {calibration.expected_error:.3f}",
        xlim=(0, 1),
        ylim=(0, 1.05),
    )
    top.legend(loc="upper left")
    bottom.bar(edges[:-1], calibration.count, color=COLOURS[-1], **style)
    bottom.set(xlabel="confidence (probability of the predicted class)", ylabel="rows")
    return to_png(figure)


def fold_accuracies(evaluation: Evaluation) -> bytes:
    """Accuracy per fold on the rows held out, and its mean."""
    figure = new_figure()
    axes = figure.subplots()
    names = [str(number + 1) for number in range(len(evaluation.fold_accuracies))]
    bars = axes.bar(names, evaluation.fold_accuracies, color=COLOURS[0])
    axes.bar_label(bars, fmt="%.3f", label_type="center", color="white")
    mean, std = evaluation.accuracy_mean, evaluation.accuracy_std
    axes.axhline(mean, color=COLOURS[1], ls="--", label=f"mean {mean:.4f}, std {std:.4f}")
    lowest = float(evaluation.fold_accuracies.min())
    axes.set(
        xlabel="fold",
        ylabel="accuracy (share of rows)",
        title="Accuracy on rows held out",
        ylim=(max(0.0, lowest - 0.1), 1.04),
    )
    axes.legend(loc="upper right", ncols=2)
    return to_png(figure)


def _with_unit(column: NumericColumn) -> str:
    return f"{column.name} ({column.unit})" if column.unit else column.name


def differences(compared: "Mapping[str, Paired]") -> bytes:
    """How much more often the challenger is right, with its interval: a line per part."""
    figure = new_figure(7.2, 1.2 + 0.3 * len(compared))
    axes = figure.subplots()
    for place, part in enumerate(compared.values()):
        colour = COLOURS[0] if part.difference >= 0 else COLOURS[1]
        axes.plot([part.lower, part.upper], [place, place], color=colour)
        axes.plot(part.difference, place, "o", color=colour)
        axes.annotate(f"{part.rows} rows", (1.01, place), xycoords=("axes fraction", "data"))
    axes.axvline(0, color=COLOURS[-1])
    axes.set_yticks(range(len(compared)), list(compared))
    axes.invert_yaxis()
    axes.set(xlabel="accuracy of the challenger less that of the champion, 95 % interval")
    return to_png(figure)
