"""The picture of the evidence for drift over windows, as PNG."""

from collections.abc import Sequence

from mlschool_dagster.capture.windows import Window
from mlschool_dagster.dataset.spec import TOGETHER
from mlschool_dagster.modeling.figures import COLOURS, new_figure, shown, to_png
from mlschool_dagster.monitoring.sequential import Evidence

SHOWN = 168
"""The newest windows, a week of hours."""
COLUMNS = 4
"""The columns with the most evidence, which have lines of their own."""
LEAST = 1e-4
"""What lies below is drawn there: it says the same, that there is no evidence."""


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
