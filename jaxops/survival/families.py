"""Curves of time for each row, made of what a model predicts: of a baseline, a law, or a grid."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxops.model.exported import curves
from jaxops.model.exported.curves import KNOTS
from jaxops.model.finished import frame
from jaxops.task import recorded


@recorded
@dataclass(frozen=True, eq=False)
class Baseline(curves.Baseline):
    """Proportional hazards: S(t) = exp(-H(t) exp(s)) for the log hazard s of a row.

    Attributes:
        labels: of the strata, as text.
        times: of each stratum (T,), sorted.
        hazards: of each stratum (T,), the baseline's cumulative hazard H from that time on.

    >>> base = Baseline([""], [np.array([1.0, 2.0])], [np.array([0.5, 1.0])])
    >>> base.survival(np.array([0.0]), np.array([0.5, 2.0])).round(3).tolist()
    [[1.0, 0.368]]
    >>> base.median(np.array([0.0, -2.0])).tolist()
    [2.0, inf]
    >>> base.mean(np.array([0.0]), 2.0).round(3).tolist()
    [1.607]
    """

    def thinned(self) -> "Baseline":
        """The same with at most 1,024 times of each stratum, the first and last among them.

        They are equally spaced in log H, so that the curve of no row is too high by more than about
        log(H_T / H_1) / (1023 e), which is 0.006 for a million events.
        """
        places = [_spaced(hazards) for hazards in self.hazards]
        times, hazards = (
            [part[place] for part, place in zip(parts, places, strict=True)]
            for parts in (self.times, self.hazards)
        )
        return Baseline(self.labels, times, hazards)

    def frame(self) -> Any:
        """One row a stratum and time, with the cumulative hazard."""
        sizes = [len(times) for times in self.times]
        labels = np.repeat(np.array(self.labels, object), sizes)
        times, hazards = np.concatenate(self.times), np.concatenate(self.hazards)
        return frame({"stratum": labels, "time": times, "hazard": hazards})


def _spaced(hazards: np.ndarray) -> np.ndarray:
    """Places of at most 1,024 cumulative hazards."""
    if len(hazards) <= KNOTS:
        return np.arange(len(hazards))
    wanted = np.geomspace(hazards[0], hazards[-1], KNOTS)
    return np.unique(np.searchsorted(hazards, wanted))


@recorded
@dataclass(frozen=True)
class Law(curves.Law):
    """Accelerated failure time: log t = m + scale * e for the location m of a row.

    Attributes:
        name: "weibull" (e is Gumbel's extreme value), "log-normal" or "log-logistic".
        scale: above 0.

    >>> law = Law("weibull", 1.0)  # an exponential law
    >>> law.survival(np.zeros(1), np.array([0.0, 1.0])).round(3).tolist()
    [[1.0, 0.368]]
    >>> law.median(np.zeros(1)).round(3).tolist(), law.mean(np.zeros(1), 1.0).round(3).tolist()
    ([0.693], [0.632])
    """


@recorded
@dataclass(frozen=True, eq=False)
class Grid(curves.Grid):
    """Curves that are given at times of a grid, straight between them, and level behind the last.

    Attributes:
        cuts: (T,), sorted, above 0.

    >>> grid = Grid(np.array([1.0, 2.0]))
    >>> grid.survival(np.array([[0.8, 0.4]]), np.array([0.0, 0.5, 1.5, 3.0])).round(3).tolist()
    [[1.0, 0.9, 0.6, 0.4]]
    >>> grid.median(np.array([[0.8, 0.4]])).round(3).tolist()
    [1.75]
    """
