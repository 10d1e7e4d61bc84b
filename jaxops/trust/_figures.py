"""What every picture of a report shares: size, colours, frame and how it is saved."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from jaxops._optional import require
from jaxops.devices import hosts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PathLike = str | os.PathLike[str]

# Okabe and Ito's colours, which colour-blind readers tell apart
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches."""
    # not pyplot: no global state, no display
    figures = require("matplotlib.figure", extra="plots")
    return figures.Figure(figsize=(width, height), dpi=150, layout="constrained")


def save_figure(figure: "Figure", path: PathLike | None) -> "Figure":
    """Write the figure, from the first process alone, with its folder where it is missing."""
    if path is not None and hosts.first():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return figure


def open_frame(axes: "Axes") -> None:
    """Axes with a light grid and without the frame's top and right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
