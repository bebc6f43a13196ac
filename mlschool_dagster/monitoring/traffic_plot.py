"""The picture of the traffic over the last windows, as PNG."""

from collections.abc import Sequence
from typing import Any

from mlschool_dagster.modeling.figures import COLOURS, new_figure, to_png
from mlschool_dagster.monitoring.metrics import Metric

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
