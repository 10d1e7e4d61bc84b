"""Curves of time for the rows of a table: of a baseline of hazards, a law, or a grid of times.

The classes of `jaxops.survival.families`, which a model file holds, are made of those here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, ndtr

from jaxops.model.exported.tables import Columns, as_text, by_name, column, read_table

KNOTS = 1024  # of a baseline in a finished model, and of the integral of a law


def read_survival(reader: Columns, raw: Any) -> tuple[tuple[np.ndarray, np.ndarray], Columns]:
    """The ids and the strata of the rows of a table, and their features."""
    raw, count = by_name(raw)
    ids, columns = read_table(reader, raw)
    if "places" in reader:  # a regression takes some of the features
        columns = {"features": columns["features"][:, reader["places"]]}
    stratum = np.zeros(count, np.int64)
    if reader["strata"]:
        table = {name: as_text(column(raw, name)) for name in reader["strata"]}
        stratum = numbered(strata_of(table, reader["strata"]), reader["family"]["labels"])
    return (ids, stratum), columns


def of_survival(
    reader: Columns, rows: tuple[np.ndarray, np.ndarray], outputs: np.ndarray
) -> Columns:
    """The curve of each row, its risk, median and restricted mean, and the curves of causes."""
    (ids, stratum), times = rows, np.array(reader["times"])
    family, horizon = _family(**reader["family"]), reader["horizon"]
    found = curves_of(family, outputs, stratum, times, horizon, reader["causes"])
    return {"ids": ids, "times": tuple(times.tolist()), "horizon": horizon, **found}


def _family(kind: str, **known: Any) -> Any:
    if kind == "Law":
        return Law(**known)
    if kind == "Grid":
        return Grid(np.array(known["cuts"]))
    times, hazards = ([np.array(x) for x in known[name]] for name in ("times", "hazards"))
    return Baseline(known["labels"], times, hazards)


def curves_of(
    family: Any,
    outputs: np.ndarray,
    stratum: np.ndarray,
    times: np.ndarray,
    horizon: float,
    causes: int,
    batch_size: int = 4096,
) -> dict[str, np.ndarray]:
    """`survival`, `risk`, `median`, `mean` and, of several causes, `incidence`, float32.

    Args:
        family: `Baseline`, `Law` or `Grid`.
        outputs: log hazards (N,), locations (N,), or curves (N, cuts) or (N, K, cuts).
        stratum: (N,), the number of each row's.
        times: (T,), sorted.
        horizon: of the restricted mean.
        causes: K.
        batch_size: rows in memory at once.
    """
    if outputs.ndim == 1:
        outputs = outputs.astype(np.float64)
    crossing = isinstance(family, Grid) or len(getattr(family, "labels", ())) > 1
    parts = []
    for start in range(0, len(outputs), batch_size):
        some, own = outputs[start : start + batch_size], stratum[start : start + batch_size]
        mean = family.mean(some, horizon, own)
        part = {
            "survival": family.survival(some, times, own),
            "risk": -mean if crossing else -some if isinstance(family, Law) else some,
            "median": family.median(some, own),
            "mean": mean,
        }
        if causes > 1:
            part["incidence"] = family.incidence(some, times)
        parts.append({name: value.astype(np.float32) for name, value in part.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def strata_of(table: dict[str, np.ndarray], strata: Sequence[str]) -> np.ndarray:
    """The stratum of each row as text, (N,).

    >>> strata_of({"a": np.array(["x"], object), "b": np.array(["y"], object)}, ["a", "b"]).tolist()
    ['a=x, b=y']
    """
    parts = [[f"{name}={value}" for value in table[name].tolist()] for name in strata]
    return np.array([", ".join(row) for row in zip(*parts, strict=True)], object)


def numbered(labels: np.ndarray, known: Sequence[str]) -> np.ndarray:
    """The number of each label among the known ones, int64 (N,).

    Raises:
        ValueError: a label that is not known.
    """
    number = {label: place for place, label in enumerate(known)}
    for row, label in enumerate(labels.tolist()):
        if label not in number:
            raise ValueError(f"strata must be one of {', '.join(known)}, got {label} in row {row}")
    return np.array([number[label] for label in labels.tolist()], np.int64)


def step(times: np.ndarray, values: np.ndarray, at: Any, start: float) -> np.ndarray:
    """The values of a step function, continuous from the right, at any times.

    >>> step(np.array([1.0, 2.0]), np.array([0.5, 0.25]), [0.0, 1.0, 9.0], 1.0).tolist()
    [1.0, 0.5, 0.25]
    """
    place = np.searchsorted(times, np.asarray(at, np.float64), side="right")
    return np.concatenate([[start], values])[place]


@dataclass(frozen=True, eq=False)
class Baseline:
    """See `jaxops.survival.Baseline`."""

    labels: Sequence[str]
    times: Sequence[np.ndarray]
    hazards: Sequence[np.ndarray]

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


@dataclass(frozen=True)
class Law:
    """See `jaxops.survival.Law`."""

    name: str
    scale: float

    def survival(self, outputs: np.ndarray, times: np.ndarray, stratum: Any = 0) -> np.ndarray:
        """(N, T) for locations (N,)."""
        with np.errstate(divide="ignore"):
            z = (np.log(times)[None] - outputs[:, None].astype(np.float64)) / self.scale
        if self.name == "weibull":
            with np.errstate(over="ignore"):
                return np.exp(-np.exp(z))
        return ndtr(-z) if self.name == "log-normal" else expit(-z)

    def median(self, outputs: np.ndarray, stratum: Any = 0) -> np.ndarray:
        """(N,)."""
        middle = {"weibull": np.log(np.log(2))}.get(self.name, 0.0)
        return np.exp(outputs + self.scale * middle)

    def mean(self, outputs: np.ndarray, horizon: float, stratum: Any = 0) -> np.ndarray:
        """(N,), the integral of the curve from 0 to the horizon, by the trapezoidal rule."""
        times = horizon * np.linspace(0, 1, KNOTS) ** 2  # closer where curves may be steep
        return np.trapezoid(self.survival(outputs, times), times, axis=1)


@dataclass(frozen=True, eq=False)
class Grid:
    """See `jaxops.survival.Grid`."""

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
