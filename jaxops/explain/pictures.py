"""Pictures of explanations: bars of words, cells, events and lags, and heat over images."""

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxops._optional import require
from jaxops.trust._figures import (
    BLUE,
    GREY,
    ORANGE,
    PathLike,
    new_figure,
    open_frame,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxops.explain.activations import Maps
    from jaxops.explain.results import Explanation

BARS, TOLD = 20, 26  # bars of a picture, letters of a name
MAPS = 16  # channels of a picture


def plot(explanation: "Explanation", row: int, path: PathLike | None = None) -> "Figure":
    """The picture of one row; see `Explanation.plot`.

    Orange speaks for the output, blue against it.
    """
    if explanation.kind == "pixels":
        figure = _heat(explanation, row)
    elif explanation.kind == "lags":
        figure = _in_order(explanation, row)
    else:
        figure = _bars(explanation, row)
    return save_figure(figure, path)


def heading(explanation: "Explanation", row: int) -> str:
    """What the picture of a row shows, in words.

    A `$` of the user's text is no formula.
    """
    told = f"row {explanation.ids[row]}: {explanation.unit(row)} = {explanation.outputs[row]:.3g}"
    base = explanation.baseline[row]
    told += "" if np.isnan(base) else f" ({base:.3g} at the baseline)"
    return f"{told}\n{explanation.method.replace('_', ' ')}".replace("$", r"\$")


def _bars(explanation: "Explanation", row: int) -> "Figure":
    """A bar for each player: words and events in their order, cells by their size."""
    players = np.flatnonzero(explanation.real[row])
    values = explanation.values[row]
    largest = players[np.argsort(-np.abs(values[players]), kind="stable")][:BARS]
    shown = largest if explanation.kind in ("cells", "features") else np.sort(largest)
    left_out = len(players) - len(shown)
    names = [_name(explanation, row, player) for player in shown]
    numbers = values[shown]
    if left_out:
        names.append(f"{left_out} others")
        numbers = np.append(numbers, values[players].sum() - numbers.sum())
    figure = new_figure(6, 1.1 + 0.26 * len(names))
    axes = figure.subplots()
    place = np.arange(len(names))
    axes.barh(place, numbers, color=np.where(numbers >= 0, ORANGE, BLUE), height=0.7)
    axes.set_yticks(place, [name.replace("$", r"\$") for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel(_unit(explanation, row), fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(heading(explanation, row), fontsize=9, loc="left")
    open_frame(axes)
    axes.grid(axis="y", visible=False)
    return figure


def _unit(explanation: "Explanation", row: int) -> str:
    told = f"part of the {explanation.unit(row)}" if explanation.signed else "strength"
    told += " (nats)" if explanation.signed and explanation.scale == "log-odds" else ""
    return told.replace("$", r"\$")


def _name(explanation: "Explanation", row: int, player: int) -> str:
    """The name of a player with what is in its cell, cut to a width that fits."""
    name = str(explanation.names[row, player])
    if explanation.cells is not None:
        cell = explanation.cells[row, player]
        cell = f"{cell:.4g}" if isinstance(cell, float | np.floating) else str(cell)
        name = f"{name} = {cell or 'none'}"
    return name if len(name) <= TOLD else f"{name[: TOLD - 1]}…"


def _in_order(explanation: "Explanation", row: int) -> "Figure":
    """Bars of the lags of each channel in their order, below what the series was."""
    values, cells = explanation.values[row], explanation.cells
    channels = [str(name).rpartition(", ")[0] for name in explanation.names[row]]
    named = list(dict.fromkeys(channels))
    figure = new_figure(6.5, 0.8 + 1.9 * len(named))
    panels = figure.subplots(len(named), 1, squeeze=False)[:, 0]
    for axes, channel in zip(panels, named, strict=True):
        own = np.array([name == channel for name in channels])
        place = np.array([_step(str(name)) for name in explanation.names[row][own]])
        part = values[own]
        axes.bar(place, part, color=np.where(part >= 0, ORANGE, BLUE), width=0.9)
        axes.axhline(0, color=GREY, linewidth=0.8)
        open_frame(axes)
        axes.tick_params(labelsize=8)
        axes.set_ylabel(f"part of {channel or 'the lag'}", fontsize=8)
        if cells is not None:
            other = axes.twinx()
            other.plot(place, cells[row][own].astype(float), color=GREY, linewidth=1)
            other.set_ylabel("the series", fontsize=8, color=GREY)
            other.tick_params(labelsize=8, colors=GREY)
            other.spines[["top"]].set_visible(False)
    panels[0].set_title(heading(explanation, row), fontsize=9, loc="left")
    panels[-1].set_xlabel("time step; the first one of the forecast is 0", fontsize=8)
    return figure


def _step(name: str) -> int:
    """The place of a lag in time: of "sold, lag 3" -3, of "price, step 2" of the future 1."""
    *_, word, number = name.split(" ")
    return -int(number) if word == "lag" else int(number) - 1


def _heat(explanation: "Explanation", row: int) -> "Figure":
    """The image in grey, and the values over it."""
    assert explanation.shape is not None  # of pixels
    assert explanation.images is not None
    heat = explanation.values[row].reshape(explanation.shape)
    image = np.asarray(explanation.images[row], float)
    figure = new_figure(6.7, 3.3)
    axes = figure.subplots(1, 2)
    extent = (0.0, float(explanation.shape[1]), float(explanation.shape[0]), 0.0)
    _show(axes[0], image, extent)
    _show(axes[1], image, extent, alpha=0.35)
    most = float(np.abs(heat).max()) or 1.0
    made = require("matplotlib.colors", extra="plots").LinearSegmentedColormap
    colors = made.from_list("against and for", [BLUE, "#f7f7f7", ORANGE])
    drawn = axes[1].imshow(
        heat,
        cmap=colors if explanation.signed else "Oranges",
        vmin=-most if explanation.signed else 0.0,
        vmax=most,
        extent=extent,
        alpha=0.8,
        interpolation="nearest",
    )
    axes[1].set_axis_off()
    bar = figure.colorbar(drawn, ax=axes[1], shrink=0.8)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(_unit(explanation, row), fontsize=7)
    figure.suptitle(heading(explanation, row), fontsize=9, x=0.01, ha="left")
    return figure


def _show(axes: "Axes", image: np.ndarray, extent: Any, alpha: float = 1.0) -> None:
    """An image (H, W) or (H, W, C) of numbers of any range."""
    scaled = (image - image.min()) / max(np.ptp(image), 1e-30)
    if image.ndim == 3 and (alpha < 1 or image.shape[2] not in (3, 4)):
        scaled = scaled.mean(-1)
    axes.imshow(scaled, cmap="gray", extent=extent, alpha=alpha, interpolation="nearest")
    axes.set_axis_off()


def plot_maps(maps: "Maps", row: int, path: PathLike | None = None) -> "Figure":
    """The channels of one image with the largest means; see `Maps.plot`.

    Raises:
        ValueError: there is no such row.
    """
    if not 0 <= row < len(maps.ids):
        raise ValueError(f"row must be in [0, {len(maps.ids)}), got {row}")
    values = maps.values[row]
    shown = np.argsort(-values.mean((0, 1)), kind="stable")[:MAPS]
    across = min(4, len(shown))
    down = -(-len(shown) // across)
    figure = new_figure(1.5 * across, 0.4 + 1.6 * down)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, channel in zip(panels, shown.tolist(), strict=False):
        axes.imshow(values[..., channel], cmap="Oranges", interpolation="nearest")
        axes.set_title(str(channel), fontsize=7)
    figure.suptitle(f"{maps.ids[row]}: {maps.layer}".replace("$", r"\$"), fontsize=9)
    return save_figure(figure, path)
