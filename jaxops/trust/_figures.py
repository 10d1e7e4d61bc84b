"""Functions for all figures of a report: size, colours, frame and saving."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from jaxops._optional import require
from jaxops.devices import hosts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PathLike = str | os.PathLike[str]

# the colours of Okabe and Ito, which colour-blind readers can tell apart
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure with this width and height in inches."""
    # without pyplot, because that has global state and may need a display
    figures = require("matplotlib.figure", extra="plots")
    return figures.Figure(figsize=(width, height), dpi=150, layout="constrained")


def save_figure(figure: "Figure", path: PathLike | None) -> "Figure":
    """Write the figure, only in the first process; its folder is made if it is missing."""
    if path is not None and hosts.first():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return figure


def open_frame(axes: "Axes") -> None:
    """Give axes a light grid, and remove the top and the right side of the frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
