"""The reader of a finished forecasting model: the meaning of a table's columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxops.data.tables import Source
from jaxops.forecast.data import reading
from jaxops.forecast.data.dates import calendar_columns, computed
from jaxops.forecast.data.future import future_covariates
from jaxops.forecast.data.regular import Duplicates, Fill
from jaxops.forecast.data.scales import Scaling
from jaxops.forecast.data.series import Series
from jaxops.forecast.inference import Forecast, Forecaster, answering, forecast
from jaxops.forecast.lag_players import lags_of
from jaxops.model.finished import Model, inside
from jaxops.model.players import Players
from jaxops.task import Batch, Column, Extra, Key, Params, Task, recorded


@recorded
@dataclass(frozen=True)
class SeriesReader:
    """How series are read from a table, for training and for every forecast after it.

    Attributes:
        horizon: H, number of steps that the model forecasts.
        frequency: frequency of the series; None infers it when the training series are read.
        id: the column of ids; for this and all that follow see `series`.
        time: the column of times.
        value: the columns of values; None for those of the layout.
        known: covariates whose future is known. Features of the calendar (see `calendar`) that are
            not in the table are computed.
        past: covariates that are known only up to now.
        static: covariates with one number for each series.
        layout: "long", "series" or "channels".
        fill: how gaps are filled.
        duplicates: what is done with duplicates.
        season: steps of one season, for the unit of "mase".
        zone: the time zone of dates and clock.
        end: "latest" or a time at which all series end.

    >>> reader = SeriesReader(2, "D", id="shop", value="sold", known=("day_of_week",))
    >>> table = {"shop": ["a", "a"], "time": ["2024-01-01", "2024-01-02"], "sold": [5, 9]}
    >>> reader.series(table).known[0].tolist()  # a Monday
    [-0.5]
    """

    room: ClassVar[str] = "forecast"
    horizon: int
    frequency: str | None = None
    id: str = "id"
    time: str = "time"
    value: str | Sequence[str] | None = None
    known: Sequence[str] = ()
    past: Sequence[str] = ()
    static: Sequence[str] = ()
    layout: reading.Layout = "long"
    fill: Fill | Mapping[str, Fill] | None = None
    duplicates: Duplicates = "error"
    season: int = 1
    zone: str = ""
    end: str | int | None = None

    def series(self, source: Source) -> Series:
        """The series of a table.

        Args:
            source: a CSV or Parquet file, a frame of pandas, polars or PyArrow, or arrays by name,
                see `jaxops.forecast.series`; or a `Series`, which is returned unchanged.

        Raises:
            ValueError: see `jaxops.forecast.series`.
        """
        if isinstance(source, Series):
            return source
        known = reading.names(self.known)
        made: list[str] = []
        if any(map(computed, known)):
            # read once, to see which features of the calendar are in the table
            keys = (self.id, self.time) if self.layout == "long" else (self.time,)
            _, source = reading.frame(source, None, keys, "utf-8", self.id)
            made = [name for name in known if computed(name) and name not in source.columns]
        series = reading.series(
            source,
            id=self.id,
            time=self.time,
            value=self.value,
            known=[name for name in known if name not in made],
            past=self.past,
            static=self.static,
            layout=self.layout,
            frequency=self.frequency,
            zone=self.zone,
            fill=self.fill,
            duplicates=self.duplicates,
            end=self.end,
        )
        if not made:
            return series
        columns = calendar_columns(series.times(), series.frequency, made, zone=series.zone)
        both, names = np.concatenate([series.known, columns], 1), (*series.known_names, *made)
        order = [names.index(name) for name in known]
        return replace(series, known=both[:, order], known_names=tuple(known))

    def describe(self) -> dict[str, str]:
        """A description of what it reads and what it forecasts."""
        columns = [*([self.id] if self.layout == "long" else []), self.time]
        for names in (self.value or (), self.known, self.past, self.static):
            columns += reading.names(names)
        steps = f"{self.horizon} of {self.frequency}"
        return {"steps ahead": steps, "columns": ", ".join(map(str, columns))}

    def players(self, model: Model, data: Source) -> Players:
        """The last values of series, for `jaxops.explain`.

        Raises:
            ValueError: a model other than a `Forecaster`, such as a baseline or a conformal one.
        """
        found = answering(model)
        if not isinstance(found, Forecaster):
            raise ValueError(
                f"model must be a Forecaster to be explained, got {type(found).__name__}"
            )
        history = self.series(data)
        return lags_of(found, history, self._future(history, None))

    def _future(self, history: Series, future: Any) -> np.ndarray | None:
        """The known covariates of the future steps, of a table or as they are given."""
        if not history.known_names or isinstance(future, np.ndarray):
            return future
        key = self.id if self.layout == "long" else None
        return future_covariates(history, self.horizon, future, id=key, time=self.time)

    def predict(
        self,
        model: Model,
        data: Source,
        future: Source | np.ndarray | None = None,
        horizon: int | None = None,
        levels: Sequence[float] | None = None,
    ) -> Forecast:
        """Forecast the steps after the end of each series of a table.

        Args:
            model: the model.
            data: see `series`: the series as they are known now, in training or new.
            future: for a model with known covariates, a table with their rows for the H future
                steps (the table of `data` may hold them too), or float (S, H, K). It is not needed
                if all known covariates are features of the calendar.
            horizon: number of steps, at most H; H by default.
            levels: levels of the quantiles; by default those for which the model was calibrated.

        Raises:
            ValueError: see `series` and `jaxops.forecast.forecast`.
        """
        history, method = self.series(data), answering(model)
        if not history.known_names and future is not None:
            raise ValueError("future must be None for a model without known covariates, got some")
        future = self._future(history, future)
        horizon = self.horizon if horizon is None else horizon
        return forecast(method, history, horizon, future, levels)


def reader_of(model: Any) -> SeriesReader:
    """The reader of a model of this room.

    Raises:
        ValueError: the model belongs to another room, or has no reader.
    """
    reader: SeriesReader = inside(
        model, lambda part: isinstance(part, SeriesReader), "of the forecasting room"
    )
    return reader


@recorded(formerly={"network": "module"})
def _stored(
    module: Any,
    scaling: str,
    named: tuple[tuple[str, Any], ...],
    arrays: tuple[tuple[str, tuple[int, ...], str], ...],
) -> Task:
    """The content of a forecaster's file: module, names, and its arrays' shapes and dtypes."""

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        flat = {name: jnp.zeros(shape, dtype) for name, shape, dtype in arrays}
        return flax.traverse_util.unflatten_dict(flat, sep="/"), {}

    def unused(*_: Any) -> Any:
        raise ValueError("task must be made by forecast.direct, got one from a forecaster's file")

    column = Column("values", (module.context, len(dict(named)["channels"])))
    return Task(init, unused, unused, (column,))


def _finished(model: Model) -> Model:
    """The forecaster of a file of format 1, with a reader of columns "id" and "time"."""
    task, state = model.trained()
    assert task.recipe is not None
    made = dict(task.recipe[1])
    named, params = dict(made["named"]), jax.device_get(state.params)
    ids = np.array(model.about["ids"], object)
    scaling = Scaling(made["scaling"], params["loc"], params["scale"], ids)
    forecaster = Forecaster(made["module"], params["variables"], scaling, **named)
    reader = SeriesReader(
        horizon=made["module"].horizon,
        frequency=named["frequency"],
        value=named["channels"],
        known=named["known_names"],
        past=named["past_names"],
        static=named["static_names"],
    )
    return Model(forecaster, None, reader, model.about, model.versions)


_stored.finished = _finished  # type: ignore[attr-defined]  # `jaxops.load` calls it
