"""The last values of series as the players of an explanation."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxops.forecast.data.series import Series
from jaxops.forecast.inference import Forecaster, mean_and_quantiles
from jaxops.forecast.models.inputs import Inputs
from jaxops.model.finished import Program
from jaxops.model.players import Columns, Players
from jaxops.task import Array, Batch, Column


@dataclass(frozen=True)
class _Means:
    """The mean forecast (B, H * C), for JAX."""

    module: Any

    def __call__(self, variables: Any, columns: Batch) -> Array:
        inputs = Inputs(**{name: columns[name] for name in Inputs._fields})
        loc, scale = columns["loc"], columns["scale"]
        mean, _ = mean_and_quantiles(self.module, (), variables, inputs, loc, scale)
        return mean.reshape(len(mean), -1)


def lags_of(model: Forecaster, history: Series, future: np.ndarray | None) -> Players:
    """The players of series: their last values, and those of covariates, which the model reads.

    An absent value is the mean of its row's window. Covariates of a whole series stay. Of a series
    that is shorter than the context, the repeated first values that the model reads are players
    too. The outputs are the mean forecasts of the steps; by default the first one is explained.

    Args:
        model: a forecaster.
        history: N series.
        future: see `jaxops.forecast.forecast`.

    Raises:
        ValueError: see `jaxops.forecast.forecast`.
    """
    inputs, loc, scale = model.windows(history, future)
    columns: Columns = {**inputs._asdict(), "loc": loc, "scale": scale}
    columns = {name: np.asarray(x, np.float32) for name, x in columns.items()}
    context = model.module.context
    channels = {
        "values": model.channels,
        "past": model.past_names,
        "known": model.known_names,
    }
    names: list[str] = []
    owners: Columns = {}
    cells: list[np.ndarray] = []
    for column, own in channels.items():
        if not own:
            continue
        steps = columns[column].shape[1]
        owners[column] = len(names) + np.arange(steps * len(own)).reshape(1, steps, len(own))
        alone = column == "values" and len(own) == 1
        names += [
            (f"lag {context - i}" if i < context else f"step {i - context + 1}")
            if alone
            else f"{name}, " + (f"lag {context - i}" if i < context else f"step {i - context + 1}")
            for i in range(steps)
            for name in own
        ]
        x = columns[column]
        x = x * scale[:, None] + loc[:, None] if column == "values" else x
        cells.append(x.reshape(len(x), -1))
    every = np.broadcast_to(np.array(names, object), (len(history.ids), len(names)))
    function = _Means(model.module)
    program = Program(function, jax.device_put(model.variables),
                      tuple(Column(name, x.shape[1:]) for name, x in columns.items()))  # fmt: skip
    forecast = jax.jit(function)
    horizon = model.module.horizon
    steps = [f"step {h + 1}" for h in range(horizon)]
    several = [f"{name}, {step}" for step in steps for name in model.channels]
    return Players(
        "lags",
        history.ids,
        every,
        np.concatenate(cells, 1).astype(object),
        np.ones(every.shape, bool),
        columns,
        owners,
        {
            name: np.repeat(columns[name].mean(1, keepdims=True), columns[name].shape[1], 1)
            for name in owners
        },
        tuple(steps if len(model.channels) == 1 else several),
        np.zeros(len(history.ids), int),
        lambda some: np.asarray(forecast(program.params, some)),
        program,
        "",
    )
