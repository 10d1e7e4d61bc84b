"""Forecasts of trained models for any series."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxops._shapes import next_power_of_two
from jaxops.forecast.data import grid
from jaxops.forecast.data.dates import computed
from jaxops.forecast.data.scales import Scaling
from jaxops.forecast.data.series import Series
from jaxops.forecast.data.windows import padded
from jaxops.forecast.models.distributions import NegativeBinomial
from jaxops.forecast.models.inputs import Inputs
from jaxops.forecast.models.outputs import Point
from jaxops.forecast.tasks import check_counts
from jaxops.model.finished import Program, frame, inside
from jaxops.state import TrainState
from jaxops.task import Array, Batch, Column, recorded
from jaxops.train.settings import whole

AT_ONCE = 2**22
"""About how many values go into one call and come out of it."""
NAMED = ("channels", "known_names", "past_names", "static_names")


class Forecast(NamedTuple):
    """A forecast of S series.

    Attributes:
        ids: (S,), the ids of the series.
        times: (S, H), the times of the steps; datetime64[s], or int64 if times are counts.
        mean: float32 (S, H, C), in the units of the series, like the quantiles.
        levels: levels of the Q quantiles.
        quantiles: float32 (S, H, C, Q).
        channels: names of the C channels.

    >>> from jaxops.forecast import Baseline, from_arrays
    >>> one = forecast(Baseline("repeat_last"), from_arrays(["shop"], [[5, 9]]), 1, levels=(0.9,))
    >>> one.frame().columns.tolist()
    ['id', 'time', 'channel', 'mean', 'q0.9']
    """

    ids: np.ndarray
    times: np.ndarray
    mean: np.ndarray
    levels: tuple[float, ...]
    quantiles: np.ndarray
    channels: tuple[str, ...] = ("value",)

    def frame(self) -> Any:
        """One row for each series, step and channel: its mean, and a column for each quantile."""
        count, steps, channels = self.mean.shape
        columns = {
            "id": np.repeat(self.ids, steps * channels),
            "time": np.repeat(self.times.reshape(-1), channels),
            "channel": np.tile(np.array(self.channels, object), count * steps),
            "mean": self.mean.reshape(-1),
        }
        quantiles = self.quantiles.reshape(self.mean.size, len(self.levels))
        of_level = {f"q{level:g}": quantiles[:, i] for i, level in enumerate(self.levels)}
        return frame(columns | of_level)


class Method(Protocol):
    """Anything that can forecast: `Forecaster`, `Baseline`, `Conformal`, `Ensemble`, `LogScale`.

    If you mark your own class by `jaxops.recorded`, it can be saved in a `jaxops.Model`.
    """

    def answer(
        self,
        history: Series,
        horizon: int | None,
        future: np.ndarray | None,
        levels: tuple[float, ...],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean (S, H, C) and quantiles (S, H, C, Q), float32."""


def answering(model: Any) -> Any:
    """The object that forecasts: the argument itself, or the content of a `jaxops.Model`.

    Raises:
        ValueError: the model belongs to another room.
    """

    def answers(part: Any) -> bool:
        return hasattr(part, "answer") and not hasattr(part, "room")  # readers have a room

    return inside(model, answers, "a model that forecasts")


def program_of(model: Any, levels: tuple[float, ...] | None) -> Program:
    """What is exported of a model inside another one.

    Args:
        model: a `Forecaster`, or `LogScale`, `Ensemble` or `Conformal` of such.
        levels: of the quantiles, see `Forecaster.exported`.

    Raises:
        ValueError: another model.
    """
    if not hasattr(model, "exported"):
        raise ValueError(
            "model must be a network (Forecaster), or LogScale, Ensemble or Conformal of such, to "
            f"be exported, got {type(model).__name__}; forecast it with jaxops, or fit a network"
        )
    program: Program = model.exported(levels)
    return program


def levels_of(method: Any) -> tuple[float, ...]:
    """The levels for which a model was calibrated, or else those of its own quantiles."""
    has = (0.1, 0.5, 0.9) if getattr(method, "has_quantiles", True) else ()
    return tuple(getattr(method, "levels", has))


def rising(levels: Sequence[float]) -> tuple[float, ...]:
    """Levels of quantiles as a tuple; raises `ValueError` unless they rise between 0 and 1."""
    given = np.asarray(levels)
    if (
        given.ndim != 1
        or given.dtype.kind not in "iuf"
        or not ((given > 0) & (given < 1)).all()
        or (np.diff(given) <= 0).any()
    ):
        raise ValueError(f"levels must be rising numbers between 0 and 1, got {levels!r}")
    return tuple(given.tolist())


def forecast(
    model: Any,
    history: Series,
    horizon: int | None = None,
    future: np.ndarray | None = None,
    levels: Sequence[float] | None = None,
) -> Forecast:
    """Forecast the steps after the end of each series, also of series not seen in training.

    Args:
        model: a `jaxops.Model` of this room; or a `Forecaster`, or any other object with the method
            `answer`, see `Method`.
        history: S series, as they are known at the moment of the forecast.
        horizon: H, the number of steps; by default, and at most, the model's horizon.
        future: float (S, H, K), the known covariates of the future steps, for a history that has
            such covariates. It must cover the whole horizon of the model, also if fewer steps are
            forecast. See `future_covariates`.
        levels: levels of the quantiles, rising in (0, 1); () for none. By default those for which
            the model was calibrated, or else 0.1, 0.5 and 0.9. A model of points has no quantiles
            until `calibrated` puts some around it.

    Returns:
        A `Forecast` of S series and H steps.

    Raises:
        ValueError: the horizon is longer than the model's or than `future`; a series is shorter
            than the model's context; the covariates differ from those in training; the levels do
            not rise in (0, 1); or the model belongs to another room.

    >>> from jaxops.forecast import Baseline, from_arrays
    >>> week = from_arrays(["shop"], [[5, 9, 7, 5, 9, 7]], start="2024-01-01", frequency="D")
    >>> forecast(Baseline("seasonal_naive", 3), week, horizon=2, levels=()).mean.ravel().tolist()
    [5.0, 9.0]
    """
    model = answering(model)
    levels = levels_of(model) if levels is None else rising(levels)
    horizon = None if horizon is None else whole("horizon", horizon, 1)
    mean, quantiles = model.answer(history, horizon, future, levels)
    times = history.future(mean.shape[1])
    return Forecast(history.ids, times, mean, levels, quantiles, history.channels)


@recorded
@dataclass(frozen=True, eq=False)
class Forecaster:
    """A trained module, ready to forecast.

    Attributes:
        module: the Flax module, with its settings.
        variables: its parameters, and batch statistics if it has any.
        scaling: the scaling that it was trained with.
        channels: names of the channels, in order.
        known_names: names of the covariates whose future is known, in order.
        past_names: names of the covariates that are known only up to now, in order.
        static_names: names of the covariates of a whole series, in order.
        frequency: frequency of the series.
        lengthens: whether a history shorter than the module's context is lengthened by repeating
            its first row, as `padded` does; otherwise it is an error.
        zone: zone of the series, see `Series`; None if it is not known.
    """

    module: Any
    variables: Any
    scaling: Scaling
    channels: tuple[str, ...]
    known_names: tuple[str, ...]
    past_names: tuple[str, ...]
    static_names: tuple[str, ...]
    frequency: str
    lengthens: bool = False
    zone: str | None = None

    @property
    def has_quantiles(self) -> bool:
        """Whether it forecasts more than a point."""
        return not isinstance(self.module.output, Point)

    def answer(
        self,
        history: Series,
        horizon: int | None,
        future: np.ndarray | None,
        levels: tuple[float, ...],
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `forecast`."""
        module = self.module
        horizon = module.horizon if horizon is None else horizon
        cut = self._cutting(history, self._checked(history, horizon, future, levels))
        variables = jax.device_put(self.variables)
        steps = module.context + module.horizon
        wide = steps * (len(self.channels) * max(1, len(levels)) + len(self.known_names))
        size = next_power_of_two(min(AT_ONCE // wide, len(history.ids)))
        parts: list[Any] = []
        for start in range(0, len(history.ids), size):
            part: Any = cut(slice(start, start + size))
            count = len(part[1])
            part = jax.tree.map(
                lambda x, n=size - count: np.concatenate([x, x[:1].repeat(n, 0)]), part
            )
            answers = mean_and_quantiles(module, levels, variables, *part)
            parts.append(jax.tree.map(lambda x, n=count: x[:n], answers))
            if len(parts) > 2:  # the device computes while the host cuts out the next windows
                parts[-3] = jax.device_get(parts[-3])
        mean, quantiles = (np.concatenate(x) for x in zip(*jax.device_get(parts), strict=True))
        return mean[:, :horizon], quantiles[:, :horizon]

    def windows(self, history: Series, future: np.ndarray | None) -> tuple[Inputs, Any, Any]:
        """What the module reads of each series, in NumPy, with the (S, C) that it was scaled by.

        Args:
            history: see `forecast`.
            future: see `forecast`.
        """
        known = self._checked(history, self.module.horizon, future, ())
        return self._cutting(history, known)(slice(None))

    def _cutting(
        self, history: Series, known: np.ndarray
    ) -> Callable[[slice], tuple[Inputs, Any, Any]]:
        """A function that cuts out the last windows of some series."""
        context = self.module.context
        loc, scale = self.scaling.of(history)
        history = padded(history, context) if self.lengthens else history
        past = self.scaling.covariates("past", history.past)
        static = self.scaling.covariates("static", history.static)

        def cut(few: slice) -> tuple[Inputs, Any, Any]:
            rows = history.offsets[1:][few, None] - context + np.arange(context)
            windows: Any = (
                (history.values[rows] - loc[few, None]) / scale[few, None],
                past[rows],
                self.scaling.covariates(
                    "known", np.concatenate([history.known[rows], known[few]], 1)
                ),
                static[few],
            )
            return Inputs(*windows), loc[few], scale[few]

        return cut

    def exported(self, levels: tuple[float, ...] | None = None) -> Program:
        """Mean and quantiles for the last rows of series, for `jaxops.export`.

        Args:
            levels: of the quantiles; by default 0.1, 0.5 and 0.9 where the model has any.

        Raises:
            ValueError: levels of a model of points.
        """
        levels = levels_of(self) if levels is None else rising(levels)
        self._check_levels(levels)
        module, scaling, channels = self.module, self.scaling, len(self.channels)
        names = {"past": self.past_names, "known": self.known_names, "static": self.static_names}
        steps = module.context + module.horizon
        shapes = {"past": (module.context,), "known": (steps,), "static": ()}

        def function(variables: Any, columns: Batch) -> dict[str, Array]:
            rows = columns["values"].shape[0]
            none = {name: jnp.zeros((rows, *shape, 0)) for name, shape in shapes.items()}
            inputs = {n: columns.get(n, none[n]) for n in none} | {"values": columns["values"]}
            mean, quantiles = mean_and_quantiles(
                module, levels, variables, Inputs(**inputs), columns["loc"], columns["scale"]
            )
            return {"mean": mean, "quantiles": quantiles} if levels else {"mean": mean}

        columns = [Column("values", (module.context, channels))]
        columns += [Column(n, (*shapes[n], len(names[n]))) for n in names if names[n]]
        columns += [Column("loc", (channels,)), Column("scale", (channels,))]
        plain = {name: None if x is None else np.asarray(x).tolist()
                 for name, x in scaling._asdict().items() if name != "kind"}  # fmt: skip
        counts = isinstance(getattr(module.output, "of", module.output), NegativeBinomial)
        reader = {
            "kind": "windows",
            "context": module.context,
            "horizon": module.horizon,
            "lengthens": self.lengthens,
            "log": False,
            "unit": None,
            "counts": counts,
            "levels": [*levels],
            "channels": [*self.channels],
            **{name: [*of] for name, of in names.items()},
            "scaling": {"kind": scaling.kind, **plain},
        }
        return Program(function, self.variables, tuple(columns), reader)

    def check(self, history: Series) -> None:
        """Raise `ValueError` if series have other columns or another frequency."""
        for name in (*NAMED, "frequency", "zone"):
            trained, given = getattr(self, name), getattr(history, name)
            if name == "frequency":
                equal = grid.same(trained, given)
            elif name == "zone":  # unknown in old files; matters only for features of the clock
                equal = trained is None or not any(map(computed, self.known_names))
                equal |= trained == given
            else:
                equal = trained == given
            if not equal:
                raise ValueError(
                    f"history.{name} must be {trained!r}, as in training, got {given!r}"
                )

    def _check_levels(self, levels: tuple[float, ...]) -> None:
        if levels and not self.has_quantiles:
            raise ValueError(
                f"levels must be () for {self.module.output}, a point without quantiles, got "
                f"{levels}; use `calibrated` to put quantiles around it"
            )

    def _checked(
        self,
        history: Series,
        horizon: int,
        future: np.ndarray | None,
        levels: tuple[float, ...],
    ) -> np.ndarray:
        """The known covariates of the module's whole horizon, (S, H, K)."""
        module = self.module
        self._check_levels(levels)
        check_counts(module.output, history)
        if horizon > module.horizon:
            raise ValueError(f"horizon must be at most {module.horizon}, got {horizon}")
        self.check(history)
        short = np.flatnonzero(history.lengths < module.context)
        if len(short) and not self.lengthens:
            raise ValueError(
                f"history must have at least {module.context} rows of each series (the module's "
                f"context), got {history.lengths[short[0]]} of series "
                f"{str(history.ids[short[0]])!r}; `padded` lengthens it"
            )
        count, width = len(history.ids), len(self.known_names)
        if future is None and not width:
            return np.zeros((count, module.horizon, 0), np.float32)
        if future is None:
            raise ValueError(f"future must have {self.known_names} of the future steps, got None")
        if not isinstance(future, np.ndarray):
            raise ValueError(
                f"future must be an array ({count}, {module.horizon}, {width}), got "
                f"{type(future).__name__}; `future_covariates` makes it from a table"
            )
        future = future.astype(np.float32)
        if future.ndim != 3 or (len(future), future.shape[2]) != (count, width):
            raise ValueError(
                f"future must have shape ({count}, {module.horizon}, {width}), got {future.shape}"
            )
        if future.shape[1] < module.horizon:
            raise ValueError(
                f"future must have {module.horizon} steps of {self.known_names} (the module's "
                f"horizon), got {future.shape[1]}"
            )
        if not np.isfinite(future).all():
            bad = (~np.isfinite(future)).sum()
            raise ValueError(f"future must be finite, got {bad:,} values that are not")
        return future[:, : module.horizon]


@functools.partial(jax.jit, static_argnums=(0, 1))
def mean_and_quantiles(
    module: Any,
    levels: tuple[float, ...],
    variables: Any,
    inputs: Inputs,
    loc: Array,
    scale: Array,
) -> tuple[Array, Array]:
    """The forecast of windows, (B, H, C) and (B, H, C, Q), in the units of the series.

    Args:
        module: of a `Forecaster`.
        levels: of the quantiles.
        variables: of the module.
        inputs: the windows.
        loc: (B, C), which was subtracted from their values.
        scale: (B, C), by which these were divided.
    """
    parameters, output = module.apply(variables, inputs, train=False), module.output
    if not output.scale_only:
        parameters = output.scaled(parameters, loc[:, None], scale[:, None])
    mean = output.mean(parameters)
    quantiles = output.quantiles(parameters, levels) if levels else jnp.zeros((*mean.shape, 0))
    return mean, quantiles


def forecaster(module: Any, state: TrainState, series: Series, scaling: Scaling) -> Forecaster:
    """Make a forecaster of a trained module; it does not keep the series.

    Args:
        module: the Flax module, as given to `direct`.
        state: the trained state of the task of `direct`.
        series: the series given to `direct`.
        scaling: the scaling given to `direct`.

    Returns:
        A model for `forecast`; `jaxops.save(path, jaxops.Model(model))` writes it to a file.
    """
    return Forecaster(
        module,
        jax.device_get({"params": state.params, **state.extra["network"]}),
        scaling,
        series.channels,
        series.known_names,
        series.past_names,
        series.static_names,
        series.frequency,
        zone=series.zone,
    )
