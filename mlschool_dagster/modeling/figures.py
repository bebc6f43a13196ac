"""One look for every picture: an empty figure, and its PNG bytes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")
"""Paul Tol's bright qualitative scheme, distinguishable with colour-vision deficiency."""


def new_figure(width: float = 6.4, height: float = 3.6) -> "Figure":
    """An empty figure of `width` by `height` inches, independent of any display or global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=110)


def to_png(figure: "Figure") -> bytes:
    """The figure as PNG."""
    from io import BytesIO

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = BytesIO()
    # The same bytes as `savefig`, which goes through all that is drawn once more beforehand.
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
