"""Curves of time for each row, made of what a model predicts: of a baseline, a law, or a grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from scipy.special import expit

from jaxops.model.finished import frame
from jaxops.survival.curves import step
from jaxops.task import recorded

KNOTS = 1024  # of a baseline in a finished model, and of the integral of a law


@recorded
@dataclass(frozen=True, eq=False)
class Baseline:
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

    labels: Sequence[str]
    times: Sequence[np.ndarray]
    hazards: Sequence[np.ndarray]

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

    def survival(self, outputs: np.ndarray, times: np.ndarray, stratum: Any = 0) -> np.ndarray:
        """(N, T) for log hazards (N,), and strata by number (N,)."""
        base = np.stack(
            [step(t, h, times, 0.0) for t, h in zip(self.times, self.hazards, strict=True)]
        )
        return np.exp(-base[np.broadcast_to(stratum, len(outputs))] * np.exp(outputs)[:, None])

    def median(self, outputs: np.ndarray, stratum: Any = 0) -> np.ndarray:
        """(N,), infinite where the curve stays above a half."""
        wanted = np.log(2) * np.exp(-outputs.astype(np.float64))
        stratum = np.broadcast_to(stratum, len(outputs))
        found = np.full(len(outputs), np.inf)
        for s, (times, hazards) in enumerate(zip(self.times, self.hazards, strict=True)):
            own = stratum == s
            place = np.searchsorted(hazards * (1 + 1e-12), wanted[own])
            found[own] = np.append(times, np.inf)[place]
        return found

    def mean(self, outputs: np.ndarray, horizon: float, stratum: Any = 0) -> np.ndarray:
        """(N,), the integral of the curve of these steps from 0 to the horizon, exactly."""
        stratum = np.broadcast_to(stratum, len(outputs))
        found = np.zeros(len(outputs))
        for s, times in enumerate(self.times):
            own = stratum == s
            knots = np.concatenate([[0.0], times[(times > 0) & (times < horizon)], [horizon]])
            curves = self.survival(outputs[own], knots[:-1], s)
            found[own] = curves @ np.diff(knots)
        return found

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
class Law:
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

    name: str
    scale: float

    def survival(self, outputs: np.ndarray, times: np.ndarray, stratum: Any = 0) -> np.ndarray:
        """(N, T) for locations (N,)."""
        with np.errstate(divide="ignore"):
            z = (np.log(times)[None] - outputs[:, None].astype(np.float64)) / self.scale
        if self.name == "weibull":
            with np.errstate(over="ignore"):
                return np.exp(-np.exp(z))
        return scipy.stats.norm.sf(z) if self.name == "log-normal" else expit(-z)

    def median(self, outputs: np.ndarray, stratum: Any = 0) -> np.ndarray:
        """(N,)."""
        middle = {"weibull": np.log(np.log(2))}.get(self.name, 0.0)
        return np.exp(outputs + self.scale * middle)

    def mean(self, outputs: np.ndarray, horizon: float, stratum: Any = 0) -> np.ndarray:
        """(N,), the integral of the curve from 0 to the horizon, by the trapezoidal rule."""
        times = horizon * np.linspace(0, 1, KNOTS) ** 2  # closer where curves may be steep
        return np.trapezoid(self.survival(outputs, times), times, axis=1)


@recorded
@dataclass(frozen=True, eq=False)
class Grid:
    """Curves that are given at times of a grid, straight between them, and level behind the last.

    Attributes:
        cuts: (T,), sorted, above 0.

    >>> grid = Grid(np.array([1.0, 2.0]))
    >>> grid.survival(np.array([[0.8, 0.4]]), np.array([0.0, 0.5, 1.5, 3.0])).round(3).tolist()
    [[1.0, 0.9, 0.6, 0.4]]
    >>> grid.median(np.array([[0.8, 0.4]])).round(3).tolist()
    [1.75]
    """

    cuts: np.ndarray

    def survival(self, outputs: np.ndarray, times: np.ndarray, stratum: Any = 0) -> np.ndarray:
        """(N, T) of curves (N, cuts), or of incidences (N, K, cuts) of K causes."""
        if outputs.ndim == 3:
            return 1 - self.incidence(outputs, times).sum(1)
        return self._between(outputs, times, 1.0)

    def incidence(self, outputs: np.ndarray, times: np.ndarray) -> np.ndarray:
        """(N, K, T) of incidences (N, K, cuts)."""
        return self._between(outputs, times, 0.0)

    def _between(self, outputs: np.ndarray, times: np.ndarray, start: float) -> np.ndarray:
        knots = np.concatenate([[0.0], self.cuts])
        place = np.clip(np.searchsorted(knots, times, side="right") - 1, 0, len(self.cuts) - 1)
        share = np.clip((times - knots[place]) / (knots[place + 1] - knots[place]), 0, 1)
        first = np.full((*outputs.shape[:-1], 1), start, outputs.dtype)
        values = np.concatenate([first, outputs], -1)
        return values[..., place] * (1 - share) + values[..., place + 1] * share

    def median(self, outputs: np.ndarray, stratum: Any = 0) -> np.ndarray:
        """(N,), infinite where the curve stays above a half."""
        values = self.survival(outputs, np.concatenate([[0.0], self.cuts])).astype(np.float64)
        place = np.clip((values > 0.5).sum(1), 1, len(self.cuts))
        rows, knots = np.arange(len(values)), np.concatenate([[0.0], self.cuts])
        high, low = values[rows, place - 1], values[rows, place]
        share = np.divide(high - 0.5, high - low, out=np.ones(len(values)), where=high > low)
        found = knots[place - 1] + share * (knots[place] - knots[place - 1])
        return np.where(low <= 0.5, found, np.inf)

    def mean(self, outputs: np.ndarray, horizon: float, stratum: Any = 0) -> np.ndarray:
        """(N,), the integral of the curve from 0 to the horizon, exactly."""
        knots = np.concatenate([[0.0], self.cuts[self.cuts < horizon], [horizon]])
        return np.trapezoid(self.survival(outputs, knots), knots, axis=1)
