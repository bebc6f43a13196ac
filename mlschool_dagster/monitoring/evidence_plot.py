"""The picture of the evidence for drift over windows, as PNG."""

from collections.abc import Sequence

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.modeling.figures import COLOURS, new_figure, to_png
from mlschool_dagster.monitoring.sequential import TOGETHER, Evidence

SHOWN = 168
"""The newest windows, a week of hours."""
COLUMNS = 4
"""The columns with the most evidence, which have lines of their own."""
LEAST = 1e-4
"""What lies below is drawn there: it says the same, that there is no evidence."""


def evidence_plot(windows: Sequence[Window], evidence: Evidence) -> bytes:
    """The evidence after each of the newest `windows`, which end where that of `evidence` does."""
    shown = list(windows)[-SHOWN:]
    figure = new_figure(9.0, 4.0)
    axes = figure.subplots()
    positions = range(len(shown))
    lines = {"all evidence": evidence.totals}
    for name in list(evidence.parts)[:COLUMNS]:
        lines[name or TOGETHER] = list(evidence.paths[name])
    for (name, path), colour in zip(lines.items(), ["black", *COLOURS], strict=False):
        drawn = [max(LEAST, value) for value in path[-len(shown) :]]
        axes.plot(positions, drawn, ".-", color=colour, label=name)
    axes.axhline(evidence.threshold, color="black", linestyle="--", label="confirms drift")
    ticks = range(0, len(shown), max(1, len(shown) // 6))
    axes.set_xticks(ticks, [shown[position].key for position in ticks], rotation=15, fontsize=8)
    axes.set(title="Evidence for drift, over windows", yscale="log", ylabel="evidence")
    figure.legend(loc="outside lower center", ncols=COLUMNS + 2, frameon=False, fontsize=8)
    return to_png(figure)
