"""What is asked of every model that is ready to forecast: `forecast`, for any series."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxops.forecast.data.scales import Scaling
from jaxops.forecast.data.series import Series
from jaxops.forecast.models.inputs import Inputs
from jaxops.forecast.models.outputs import Point
from jaxops.forecast.tasks import check_counts
from jaxops.model import files as model_file
from jaxops.state import TrainState
from jaxops.task import Array, Batch, Column, Extra, Key, Out, Params, Task, recorded

AT_ONCE = 2**22
"""Numbers that go into one call of the device and come out of it, about."""
NAMED = ("channels", "known_names", "past_names", "static_names")


class Forecast(NamedTuple):
    """What will come, for S series.

    Attributes:
        ids: (S,), of the series.
        times: (S, H), of the steps; datetime64[s], or int64 where time is a count.
        mean: float32 (S, H, C).
        levels: Q quantiles.
        quantiles: float32 (S, H, C, Q).
    """

    ids: np.ndarray
    times: np.ndarray
    mean: np.ndarray
    levels: tuple[float, ...]
    quantiles: np.ndarray


class Model(Protocol):
    """What can forecast: `Forecaster`, `Baseline`, `Conformal`, `Ensemble`."""

    def answer(
        self,
        history: Series,
        horizon: int | None,
        future: np.ndarray | None,
        levels: tuple[float, ...],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean (S, H, C) and quantiles (S, H, C, Q), float32."""


def forecast(
    model: Model,
    history: Series,
    horizon: int | None = None,
    future: np.ndarray | None = None,
    levels: Sequence[float] = (0.1, 0.5, 0.9),
) -> Forecast:
    """What comes after the end of each series, whether it was in training or not.

    Args:
        model: a `Forecaster`, or another with its `answer`.
        history: as it is known at the moment of the forecast.
        horizon: steps; all that the model has by default, at most these.
        future: float (S, H, K), the known covariates of the steps to come, for a history that has
            some; of all the network's horizon, even where fewer steps are asked for. See
            `future_covariates`.
        levels: of quantiles, in (0, 1), rising; () for none, as a point forecast has, until
            `calibrated` puts some around it.

    Raises:
        ValueError: a horizon beyond the model's or beyond `future`; a series shorter than the
            look-back; covariates other than in training; levels that are none.
    """
    levels = tuple(levels)
    if any(not 0 < level < 1 for level in levels) or list(levels) != sorted(set(levels)):
        raise ValueError(f"levels: {levels} found, rising numbers between 0 and 1 wanted")
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon: {horizon} found, at least 1 wanted")
    mean, quantiles = model.answer(history, horizon, future, levels)
    return Forecast(history.ids, history.future(mean.shape[1]), mean, levels, quantiles)


@dataclass(frozen=True, eq=False)
class Forecaster:
    """A trained network.

    Attributes:
        network: it and its settings.
        variables: its parameters, and batch statistics if any.
        scaling: that it was trained with.
        channels: the series' names, in order; as are the next three.
        known_names: likewise.
        past_names: likewise.
        static_names: likewise.
        frequency: of the series.
    """

    network: Any
    variables: Any
    scaling: Scaling
    channels: tuple[str, ...]
    known_names: tuple[str, ...]
    past_names: tuple[str, ...]
    static_names: tuple[str, ...]
    frequency: str

    @property
    def has_quantiles(self) -> bool:
        """Whether it says more than a point."""
        return not isinstance(self.network.output, Point)

    def answer(
        self,
        history: Series,
        horizon: int | None,
        future: np.ndarray | None,
        levels: tuple[float, ...],
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `forecast`."""
        network = self.network
        horizon = network.horizon if horizon is None else horizon
        known = self._checked(history, horizon, future, levels)
        loc, scale = self.scaling.of(history)
        variables = jax.device_put(self.variables)
        steps = network.context + network.horizon
        wide = steps * (len(self.channels) * max(1, len(levels)) + len(self.known_names))
        # a power of two, so that few sizes compile
        size = 1 << max(0, min(AT_ONCE // wide, len(history.ids)) - 1).bit_length()
        parts: list[Any] = []
        for start in range(0, len(history.ids), size):
            few = slice(start, start + size)
            rows = history.offsets[1:][few, None] - network.context + np.arange(network.context)
            windows: Any = (
                (history.values[rows] - loc[few, None]) / scale[few, None],
                history.past[rows],
                np.concatenate([history.known[rows], known[few]], 1),
                history.static[few],
            )
            part = (Inputs(*windows), loc[few], scale[few])
            count = len(rows)
            part = jax.tree.map(
                lambda x, n=size - count: np.concatenate([x, x[:1].repeat(n, 0)]), part
            )
            found = _answer(network, levels, variables, *part)
            parts.append(jax.tree.map(lambda x, n=count: x[:n], found))
            if len(parts) > 2:  # the device has work while the host cuts the next windows out
                parts[-3] = jax.device_get(parts[-3])
        mean, quantiles = (np.concatenate(x) for x in zip(*jax.device_get(parts), strict=True))
        return mean[:, :horizon], quantiles[:, :horizon]

    def _checked(
        self,
        history: Series,
        horizon: int,
        future: np.ndarray | None,
        levels: tuple[float, ...],
    ) -> np.ndarray:
        """The covariates of the horizon, (S, H, K), H being the network's."""
        network = self.network
        if levels and not self.has_quantiles:
            raise ValueError(
                f"levels: {levels} found, () wanted for {network.output}, a point without "
                "quantiles; `calibrated` puts some around it"
            )
        check_counts(network.output, history)
        if horizon > network.horizon:
            raise ValueError(f"horizon: {horizon} found, at most {network.horizon} wanted")
        for name in (*NAMED, "frequency"):
            wanted, found = getattr(self, name), getattr(history, name)
            if wanted != found:
                raise ValueError(f"history: {name} {found} found, {wanted} wanted, as in training")
        short = np.flatnonzero(history.lengths < network.context)
        if len(short):
            raise ValueError(
                f"history: {history.lengths[short[0]]} rows of series "
                f"{str(history.ids[short[0]])!r} found, at least {network.context} (context) "
                "wanted; see `padded`"
            )
        count, width = len(history.ids), len(self.known_names)
        if future is None and not width:
            return np.zeros((count, network.horizon, 0), np.float32)
        if future is None:
            raise ValueError(f"future: none found, the steps to come of {self.known_names} wanted")
        future = np.asarray(future, np.float32)
        if future.ndim != 3 or (len(future), future.shape[2]) != (count, width):
            raise ValueError(
                f"future: {future.shape} found, ({count}, {network.horizon}, {width}) wanted"
            )
        if future.shape[1] < network.horizon:
            raise ValueError(
                f"future: {future.shape[1]} steps of {self.known_names} found, "
                f"{network.horizon} wanted, as the network's horizon"
            )
        if not np.isfinite(future).all():
            raise ValueError("future: a value that is not finite found")
        return future[:, : network.horizon]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _answer(
    network: Any,
    levels: tuple[float, ...],
    variables: Any,
    inputs: Inputs,
    loc: Array,
    scale: Array,
) -> tuple[Array, Array]:
    found, output = network.apply(variables, inputs, train=False), network.output
    if not output.scale_only:
        found = output.scaled(found, loc[:, None], scale[:, None])
    mean = output.mean(found)
    quantiles = output.quantiles(found, levels) if levels else jnp.zeros((*mean.shape, 0))
    return mean, quantiles


def forecaster(network: Any, state: TrainState, series: Series, scaling: Scaling) -> Forecaster:
    """What was learned, ready to forecast; the series themselves are not kept.

    Args:
        network: as given to `direct`; so are the next but one and the last.
        state: of its task.
        series: the training series.
        scaling: of them.
    """
    return Forecaster(
        network,
        jax.device_get({"params": state.params, **state.extra["network"]}),
        scaling,
        series.channels,
        series.known_names,
        series.past_names,
        series.static_names,
        series.frequency,
    )


@recorded
def _stored(
    network: Any,
    scaling: str,
    named: tuple[tuple[str, Any], ...],
    arrays: tuple[tuple[str, tuple[int, ...], str], ...],
) -> Task:
    """What a file tells of a forecaster: its network, names, and its arrays' shapes and dtypes."""

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        flat = {name: jnp.zeros(shape, dtype) for name, shape, dtype in arrays}
        return flax.traverse_util.unflatten_dict(flat, sep="/"), {}

    def loss(*_: Any) -> tuple[Array, Out]:
        raise ValueError("a forecaster from a file is not trained; see forecast.direct")

    def predict(params: Params, extra: Extra, batch: Batch) -> Array:
        if scaling == "series" or any(dict(named)[name] for name in NAMED[1:]):
            raise ValueError("a forecaster that wants more than values; see forecast.load")
        loc, scale = params["loc"][None], params["scale"][None]
        values = (jnp.asarray(batch["values"], jnp.float32) - loc) / scale
        found = network.apply(params["variables"], Inputs.of(values, network.horizon), train=False)
        return found if network.output.scale_only else network.output.scaled(found, loc, scale)

    column = Column("values", (network.context, len(dict(named)["channels"])))
    return Task(init, loss, predict, (column,))


def save(path: str | Path, model: Forecaster) -> None:
    """Write it to one model file; see `jaxops.save`."""
    scaling = model.scaling
    params = {"variables": model.variables, "loc": scaling.loc, "scale": scaling.scale}
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    arrays = tuple((name, np.shape(x), str(np.asarray(x).dtype)) for name, x in flat.items())
    named = tuple((name, getattr(model, name)) for name in (*NAMED, "frequency"))
    state = TrainState(jnp.int32(0), params, (), {}, jax.random.key(0))
    about = {"ids": scaling.ids.tolist()}
    model_file.save(path, _stored(model.network, scaling.kind, named, arrays), state, about)


def load(path: str | Path) -> Forecaster:
    """The forecaster of a model file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a model file, or of something else.
    """
    found = model_file.load(path)
    make, arguments = found.task.recipe or (None, ())
    if make is not _stored:
        raise ValueError(f"{path}: not a forecaster; see jaxops.load")
    params, given = jax.device_get(found.state.params), dict(arguments)
    ids = np.array(found.about["ids"], dtype=object)
    scaling = Scaling(given["scaling"], params["loc"], params["scale"], ids)
    return Forecaster(given["network"], params["variables"], scaling, **dict(given["named"]))
