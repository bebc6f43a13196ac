"""The picture of the traffic over the last windows, as PNG."""

from collections.abc import Sequence

from mlschool_dagster.modeling.figures import COLOURS, new_figure, to_png
from mlschool_dagster.monitoring.metrics import Metric

USUAL_COLOUR, UNUSUAL_COLOUR = COLOURS[0], COLOURS[1]


def volume_picture(rows: Sequence[Metric]) -> bytes:
    """Rows per window in order of time, in the band of what was to be expected."""
    figure = new_figure(8.0, 3.2)
    axes = figure.subplots()
    moments = [metric.window.start for metric in rows]
    judged = [metric for metric in rows if metric.lower is not None]
    if judged:
        axes.fill_between(
            [metric.window.start for metric in judged],
            [metric.lower for metric in judged],
            [metric.upper for metric in judged],
            step="mid",
            alpha=0.2,
            color=USUAL_COLOUR,
            label="to be expected",
        )
    axes.step(moments, [metric.rows for metric in rows], where="mid", color=USUAL_COLOUR)
    unusual = [metric for metric in rows if metric.finding]
    if unusual:
        axes.plot(
            [metric.window.start for metric in unusual],
            [metric.rows for metric in unusual],
            "o",
            color=UNUSUAL_COLOUR,
            label="unusual",
        )
    axes.set(title="Captured rows per hour", ylabel="rows")
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="x", rotation=25)
    if judged or unusual:
        axes.legend(frameon=False)
    return to_png(figure)
