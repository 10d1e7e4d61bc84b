"""Rows of a table to features, times and events; the reader that a model file keeps; answers."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from jaxops.data.columns import of_dates, read_with_dates, warn_of_unknown
from jaxops.data.encoders import Encoder, Encoding
from jaxops.data.tables import Source
from jaxops.model.exported.curves import curves_of, numbered, strata_of
from jaxops.model.finished import Model, frame
from jaxops.survival.families import Baseline, Grid, Law
from jaxops.survival.outcomes import Outcome, outcome
from jaxops.task import recorded


class Curves(NamedTuple):
    """When N rows are expected to have their event.

    Attributes:
        ids: (N,), the user's ids, or the numbers of the rows.
        times: (T,).
        survival: float32 (N, T), the probability of no event up to each time.
        risk: float32 (N,), larger for earlier events: the log hazard, or less the location of
            accelerated failure times; less the restricted mean where there are strata, whose log
            hazards have different baselines, and for curves that may cross.
        median: float32 (N,), the time at which `survival` falls to a half; infinite where it does
            not.
        mean: float32 (N,), the restricted mean: of the time to the event or the horizon, whichever
            is first.
        horizon: the last event of the train rows.
        incidence: float32 (N, K, T), the probability of each of K causes up to each time; None for
            one cause.

    >>> one = np.ones(1, np.float32)
    >>> curves = Curves(np.arange(1), np.array([6.0]), 0.75 * np.ones((1, 1)), one, one, one, 9.0)
    >>> curves.frame().columns.tolist()
    ['id', 'risk', 'median', 'mean', 'S(6)']
    """

    ids: np.ndarray
    times: np.ndarray
    survival: np.ndarray
    risk: np.ndarray
    median: np.ndarray
    mean: np.ndarray
    horizon: float
    incidence: np.ndarray | None = None

    def frame(self) -> Any:
        """One row each: id, risk, median, restricted mean, the curve, and those of causes."""
        columns = {"id": self.ids, "risk": self.risk, "median": self.median, "mean": self.mean}
        # the shortest text that tells the time exactly
        texts = [repr(float(t)).removesuffix(".0") for t in self.times]
        columns |= {f"S({t})": self.survival[:, i] for i, t in enumerate(texts)}
        if self.incidence is not None:
            for cause in range(self.incidence.shape[1]):
                part = self.incidence[:, cause]
                columns |= {f"F{cause + 1}({t})": part[:, i] for i, t in enumerate(texts)}
        return frame(columns)


@recorded
@dataclass(frozen=True, eq=False)
class SurvivalReader:
    """What a finished survival model knows of its input.

    Attributes:
        encoder: makes the features.
        time: the column of times.
        event: the column of events: 0 or False for censored rows, else 1, True or a cause.
        entry: the column of entry times, or None.
        id: the column of the user's ids; None numbers the rows.
        dates: the columns of dates.
        strata: the columns that tell the stratum.
        family: makes curves of what the model predicts.
        grid: (T,), the times of an answer, where it is asked for none.
        horizon: the last event of the train rows.
        causes: number of them.
    """

    room: ClassVar[str] = "survival"
    streams: ClassVar[bool] = True
    encoder: Encoder
    time: str
    event: str
    entry: str | None
    id: str | None
    dates: tuple[str, ...]
    strata: tuple[str, ...]
    family: Baseline | Law | Grid
    grid: np.ndarray
    horizon: float
    causes: int = 1

    @functools.cached_property
    def _encoding(self) -> Encoding:
        return Encoding(self.encoder)

    def columns(
        self, source: Source, seen: bool = False, cluster: str | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray], Any]:
        """The ids; the features and strata; and with `seen` the times and events.

        Args:
            source: see `survival.fit`.
            seen: whether times and events are read too.
            cluster: a column of labels that becomes the column "cluster".

        Raises:
            ValueError: a column that is missing or cannot be read, with its row; a stratum that was
                not among the train rows.

        Warns:
            UserWarning: a column of text has in 20 rows or more no value of the train rows.
        """
        encoder, parts = self.encoder, of_dates(self.dates)
        known = [*encoder.mean, *encoder.values]
        wanted = [*self.dates, *(name for name in known if name not in (*parts, *self.dates))]
        own = [] if self.id is None else [self.id]
        times = [name for name in (self.time, self.entry) if name is not None and seen]
        exact = [*own, *self.strata, *([self.event] if seen else [])]
        exact += [] if cluster is None else [cluster]
        names = [*dict.fromkeys([*wanted, *exact, *times])]
        numbers = {*encoder.mean, *times}
        table, _ = read_with_dates(
            source, names, numbers, exact, encoder.values, self.dates, self.id
        )
        warn_of_unknown(encoder.values, table)
        ids, columns, rows = self.of_table(table, seen)
        if cluster is not None:
            columns["cluster"] = table[cluster]
        return ids, columns, rows

    def of_table(
        self, table: dict[str, np.ndarray], seen: bool
    ) -> tuple[np.ndarray, dict[str, np.ndarray], Any]:
        """`columns` of a table that is read already, see `jaxops.data.columns.read_with_dates`."""
        count = len(next(iter(table.values())))
        rows = outcome_of(table, self.time, self.event, self.entry, self.causes) if seen else None
        ids = np.arange(count) if self.id is None else table[self.id]
        columns = {"features": self._encoding(table)}
        if self.strata and isinstance(self.family, Baseline):
            columns["stratum"] = numbered(strata_of(table, self.strata), self.family.labels)
        return ids, columns, rows

    def predict(
        self,
        model: Model,
        data: Source,
        batch_size: int = 4096,
        first: int = 0,
        times: Sequence[float] | None = None,
    ) -> Curves:
        """The curve of each row of a table, with its risk, median and restricted mean.

        Args:
            model: the model.
            data: see `survival.fit`; times and events may be absent.
            batch_size: rows in one call of the device.
            first: the number of the first row, where rows have no ids.
            times: at which the curves are given, sorted, at least 0; by default up to 50 among the
                events of the train rows.

        Raises:
            ValueError: a table that cannot be read; times that are not sorted.
        """
        ids, columns, _ = self.columns(data)
        ids = ids + first if self.id is None else ids
        return self.answer(model, ids, columns, times, batch_size)

    def answer(
        self,
        model: Model,
        ids: np.ndarray,
        columns: dict[str, np.ndarray],
        times: Sequence[float] | None = None,
        batch_size: int = 4096,
    ) -> Curves:
        """`predict` for columns that are read already."""
        at = self.grid if times is None else np.asarray(times, np.float64)
        if at.ndim != 1 or len(at) == 0 or not (np.diff(at, prepend=-1e-300) > 0).all():
            raise ValueError(f"times must be sorted numbers of at least 0, each once, got {times}")
        stratum = columns.get("stratum", np.zeros(len(ids), np.int64))
        outputs = np.asarray(model.outputs({"features": columns["features"]}, batch_size))
        found = curves_of(self.family, outputs, stratum, at, self.horizon, self.causes, batch_size)
        return Curves(ids, at, horizon=self.horizon, **found)

    def exported(self, model: Model) -> dict[str, Any]:
        """What it knows, as plain data for `jaxops.export`; see `jaxops.model.exported.curves`."""
        strata = self.strata if isinstance(self.family, Baseline) else ()
        family = jax.tree.map(lambda x: np.asarray(x).tolist(), vars(self.family))
        return {
            "kind": "survival",
            "id": self.id,
            "dates": [*self.dates],
            "since": None,
            "encoder": self.encoder._asdict(),
            "strata": [*strata],
            "family": {"kind": type(self.family).__name__, **family},
            "times": self.grid.tolist(),
            "horizon": self.horizon,
            "causes": self.causes,
        }

    def describe(self) -> dict[str, str]:
        """What it reads, for people."""
        encoder, parts = self.encoder, of_dates(self.dates)
        return {
            "time": self.time,
            "event": self.event,
            "entry": self.entry or "",
            "numbers": ", ".join(n for n in encoder.mean if n not in (*parts, *self.dates)),
            "dates": ", ".join(self.dates),
            "texts": ", ".join(encoder.values),
            "strata": ", ".join(self.strata),
            "ids": self.id or "",
        }


def outcome_of(
    table: dict[str, np.ndarray], time: str, event: str, entry: str | None, causes: int | None
) -> Outcome:
    """The times and events of a table; see `survival.outcome`."""
    entries = None if entry is None else table[entry]
    seen = event_numbers(event, table[event])
    return outcome(table[time], seen, entries, causes=causes, names=(time, event, entry or "entry"))


def event_numbers(name: str, column: np.ndarray) -> np.ndarray:
    """A column of events, `str` objects (N,), as numbers.

    Raises:
        ValueError: what is no number, True or False, with its row.

    >>> event_numbers("died", np.array(["True", "0", "2"], object)).tolist()
    [1.0, 0.0, 2.0]
    """
    words = {"true": 1.0, "false": 0.0}
    numbers = np.zeros(len(column))
    for row, value in enumerate(column.tolist()):
        try:
            numbers[row] = words[value.lower()] if value.lower() in words else float(value)
        except ValueError:
            raise ValueError(
                f"{name} must be 0 or 1, True or False, or the number of a cause, got "
                f"{value!r} in row {row}"
            ) from None
    return numbers
