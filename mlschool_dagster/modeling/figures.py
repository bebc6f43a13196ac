"""The common style of all pictures: an empty figure, its colours, and its PNG bytes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")
"""Paul Tol's bright qualitative scheme, distinguishable with colour-vision deficiency."""

LONGEST_LABEL = 40
"""Most letters of a name or a value in a picture; longer ones are cut."""


def new_figure(width: float = 6.4, height: float = 3.6) -> "Figure":
    """An empty figure of `width` by `height` inches, independent of any display or global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=110)


def shown(text: str) -> str:
    """`text` as a label: on one line, at most `LONGEST_LABEL` characters, and never hidden.

    Matplotlib leaves labels that begin with an underscore out of legends.
    """
    printable = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
    if len(printable) > LONGEST_LABEL:
        printable = f"{printable[: LONGEST_LABEL - 1]}\N{HORIZONTAL ELLIPSIS}"
    return f" {printable}" if printable.startswith("_") else printable


def bin_edges(values: "NDArray[np.float64]", bins: int) -> "NDArray[np.float64]":
    """The edges of `bins` equal bins over the finite `values`, whatever these are.

    Where all values lie closer together than numbers of their size can tell apart in so many
    steps, the bins are as wide as that takes; without a value they go from 0 to 1.
    """
    import numpy as np

    known = values[np.isfinite(values)]
    if not known.size:
        return np.linspace(0.0, 1.0, bins + 1)
    # Halves, because the difference of two numbers may be too large to be one.
    middle = known.min() / 2 + known.max() / 2
    half = known.max() / 2 - known.min() / 2
    least = bins * 8 * float(np.spacing(np.abs(known).max()))
    half = max(half, least, np.finfo(float).tiny) if half else max(0.5, least)
    edges = middle + half * np.linspace(-1.0, 1.0, bins + 1)
    edges[0], edges[-1] = min(edges[0], known.min()), max(edges[-1], known.max())
    return np.asarray(edges)


def to_png(figure: "Figure") -> bytes:
    """The figure as PNG; its text is shown as it is, dollar signs being no formulas."""
    from io import BytesIO

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    buffer = BytesIO()
    # The same bytes as `savefig`, which goes through all that is drawn once more beforehand.
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
