"""Pictures of curves and of calibration."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from jaxops.survival.curves import Curve
from jaxops.survival.metrics import Calibration
from jaxops.trust._figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PathLike,
    new_figure,
    open_frame,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito's


def plot_curves(
    curves: Mapping[str, Curve],
    path: PathLike | None = None,
    *,
    time: str = "time",
    value: str = "share without an event",
) -> "Figure":
    """Step curves with their bands, and below them the numbers at risk.

    Args:
        curves: name -> curve, at most six; see `kaplan_meier`, `nelson_aalen`, `aalen_johansen`.
        path: a file to write; None for none.
        time: the label of the time axis, such as "months".
        value: the label of the other axis.

    Raises:
        ValueError: no curve, or more than six.

    >>> from jaxops import survival
    >>> figure = plot_curves({"all": survival.kaplan_meier([1, 2, 3], [1, 0, 1])}, time="months")
    >>> [axes.get_xlabel() for axes in figure.axes]
    ['', 'months']
    """
    if not 1 <= len(curves) <= len(COLORS):
        raise ValueError(f"curves must be 1 to {len(COLORS)}, got {len(curves)}")
    figure = new_figure(6.4, 4.2 + 0.22 * len(curves))
    heights = [4, 0.22 * len(curves) + 0.3]
    axes, table = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    open_frame(axes)
    for color, (name, curve) in zip(COLORS, curves.items(), strict=False):
        times = np.concatenate([[0], curve.times])
        values, low, high = (
            np.concatenate([[curve.start], part])
            for part in (curve.estimate, curve.low, curve.high)
        )
        axes.step(times, values, where="post", color=color, label=name, linewidth=1.5)
        axes.fill_between(times, low, high, step="post", color=color, alpha=0.18, linewidth=0)
    axes.set_ylabel(value)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.02 if all(curve.estimate.max() <= 1 for curve in curves.values()) else None)
    axes.legend(frameon=False)
    axes.tick_params(labelbottom=False)
    last = max(curve.times[-1] for curve in curves.values())
    ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= last]
    for row, (color, curve) in enumerate(zip(COLORS, curves.values(), strict=False)):
        for tick, count in zip(ticks, curve.risk_at(ticks), strict=True):
            table.text(tick, -row, f"{count:,}", ha="center", va="center", color=color, fontsize=8)
    table.set_ylim(0.6 - len(curves), 0.6)
    table.set_yticks([])
    table.set_title("at risk", loc="left", fontsize=8, color=GREY, pad=2)
    table.spines[["top", "right", "left"]].set_visible(False)
    table.set_xlabel(time)
    return save_figure(figure, path)


def plot_calibration(made: Calibration, path: PathLike | None = None) -> "Figure":
    """Observed over predicted shares of events before a time, with their bounds.

    Args:
        made: see `calibration`.
        path: a file to write; None for none.

    >>> from jaxops import survival
    >>> made = survival.calibration([1, 2, 3, 4], [1, 1, 1, 0], [0.9, 0.8, 0.2, 0.1], 2.5, bins=2)
    >>> len(plot_calibration(made).axes)
    1
    """
    figure = new_figure(4.2, 4.2)
    axes = figure.subplots()
    open_frame(axes)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    low, high = (np.nan_to_num(part, nan=0) for part in (made.low, made.high))
    below, above = made.observed - low, high - made.observed
    spread = np.maximum(np.stack([below, above]), 0)
    axes.errorbar(made.predicted, made.observed, spread, fmt="o", color=BLUE, capsize=2)
    axes.set(xlabel="predicted", ylabel="observed", xlim=(0, 1), ylim=(0, 1))
    return save_figure(figure, path)
