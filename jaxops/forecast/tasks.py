"""The task of forecasting: all steps of the horizon at once."""

import functools
import hashlib
import inspect
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxops import metrics
from jaxops.forecast.data.scales import Scaling
from jaxops.forecast.data.series import Series
from jaxops.forecast.data.windows import check_windows, gather
from jaxops.forecast.models.distributions import NegativeBinomial
from jaxops.forecast.models.inputs import Inputs
from jaxops.task import (
    Array,
    Batch,
    Column,
    Extra,
    Key,
    Out,
    Params,
    Task,
    masked_sum,
    recorded,
    row_weights,
)


def direct(module: Any, series: Series, scaling: Scaling, partial: bool = False) -> Task:
    """Forecast the `horizon` steps after an origin from the `context` steps before it, all at once.

    A batch holds windows such as `origins` makes: a series and an origin each. The step cuts their
    rows out of the series, which are in the state's `extra`, whole on every device and in every
    checkpoint. Calls with an equal module and with series and scalings of equal content return the
    same task, which compiles once.

    Args:
        module: a Flax module such as `NLinear`, with `context`, `horizon` and `output`.
        series: all rows, also those of validation and test; the origins say which of them are used
            for training.
        scaling: a scaling by the training rows, from `jaxops.forecast.scaling`. The loss is that of
            scaled values.
        partial: whether targets may be partly unknown. The task then reads a third column, `steps`,
            the number of steps of a window's target that count, see `origins`.

    Returns:
        A task with the metrics loss, mse and mae. The last two are only in evaluations, and are of
        scaled values, over all steps and channels. The task predicts the parameters of the output,
        in the series' own units, (B, H, C, P). `jaxops.monte_carlo` gives mean and standard
        deviation of its predictions. A task that `jaxops.load` reads from a file predicts with the
        series of the file's state; to train further, make the task by `direct` again.

    Raises:
        ValueError: the scaling is of other series; or the output is for counts, and values are
            scaled, negative or fractional. A module that cannot take the series' covariates raises
            it when it is initialised. Windows that extend beyond their series raise it in `fit`,
            `evaluate` and `predict`.

    >>> from jaxops.forecast import NLinear, from_arrays
    >>> from jaxops.forecast import scaling as scaled
    >>> two = from_arrays(["a", "b"], [range(9), range(6)])
    >>> task = direct(NLinear(3, 2), two, scaled(two, "none"))
    >>> [column.name for column in task.columns]
    ['series', 'origin']
    >>> again = from_arrays(["a", "b"], [range(9), range(6)])
    >>> direct(NLinear(3, 2), again, scaled(again, "none")) is task
    True
    """
    _check_output(module.output, series, scaling)
    return _filled(module, _content(series, scaling), partial)


@dataclass(frozen=True)
class _Content:
    """The series of a task; two are equal if their fingerprints are.

    Attributes:
        fingerprint: a fingerprint of all other attributes.
        ids: S ids.
        offsets: S + 1 numbers; the rows of series s are offsets[s] to offsets[s + 1].
        arrays: float32: values (R, C), past (R, P), known (R, K), static (S, Q), all scaled, and
            loc and scale of the values (S, C).
    """

    fingerprint: str
    ids: tuple[str, ...] = field(compare=False)
    offsets: tuple[int, ...] = field(compare=False)
    arrays: dict[str, np.ndarray] = field(compare=False)


def _content(series: Series, scaling: Scaling) -> _Content:
    """Series and scaling as arrays, and their fingerprint."""
    if scaling.kind == "series" and not np.isin(series.ids, scaling.ids).all():
        new = str(series.ids[~np.isin(series.ids, scaling.ids)][0])
        raise ValueError(f"scaling must have every series of the task, got none of series {new!r}")
    loc, scale = scaling.of(series)
    group = series.index()
    arrays = {
        "values": (series.values - loc[group]) / scale[group],
        # copies, so that a task does not change with the user's arrays
        "past": scaling.covariates("past", series.past.copy()),
        "known": scaling.covariates("known", series.known.copy()),
        "static": scaling.covariates("static", series.static.copy()),
        "loc": loc,
        "scale": scale,
    }
    ids, offsets = tuple(map(str, series.ids)), tuple(series.offsets.tolist())
    digest = hashlib.blake2b(repr((ids, offsets)).encode())
    for x in arrays.values():
        digest.update(repr(x.shape).encode())
        digest.update(np.ascontiguousarray(x).data)
    return _Content(digest.hexdigest(), ids, offsets, arrays)


@functools.lru_cache(maxsize=2)
def _filled(module: Any, content: _Content, partial: bool) -> Task:
    """The task whose `init` puts the series into the state."""
    widths = tuple((name, content.arrays[name].shape[1]) for name in WIDTHS)
    task = _direct(module, content.ids, content.offsets, widths, partial)

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        params, extra = task.init(key, batch)
        rows = {name: jnp.asarray(content.arrays[name], jnp.float32) for name in extra["series"]}
        return params, {**extra, "series": rows}

    return task._replace(init=init)


WIDTHS = ("values", "past", "known", "static")


@recorded
def _direct(
    module: Any,
    ids: tuple[str, ...],
    offsets: tuple[int, ...],
    widths: tuple[tuple[str, int], ...],
    partial: bool = False,
) -> Task:
    """The task for series of these sizes; their values are in the state, and NaN in a new state."""
    windows = _Windows(module, np.array(ids), np.array(offsets), dict(widths), partial)
    least = 1 if partial else module.horizon
    columns = (
        Column("series", (), "int", len(ids)),
        Column("origin", (), "int", offsets[-1] - least + 1),
        *([Column("steps", (), "int", module.horizon + 1)] if partial else []),
    )
    return Task(
        windows.init,
        windows.loss,
        windows.predict,
        columns,
        sample=windows.sample,
        check=windows.check,
    )


@dataclass(frozen=True, eq=False)
class _Windows:
    """The functions of a task of windows.

    Attributes:
        module: as given to `direct`.
        ids: (S,) ids of the series.
        offsets: (S + 1,) offsets of their rows.
        widths: number of columns of the values, and of each kind of covariates.
        partial: see `direct`.
    """

    module: Any
    ids: np.ndarray
    offsets: np.ndarray
    widths: dict[str, int]
    partial: bool = False

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shapes of the arrays in the state, and of empty ones, which checkpoints cannot hold."""
        rows, count = int(self.offsets[-1]), len(self.ids)
        lengths = {"values": rows, "past": rows, "known": rows, "static": count}
        shapes = {name: (lengths[name], width) for name, width in self.widths.items()}
        return {**shapes, **dict.fromkeys(("loc", "scale"), (count, self.widths["values"]))}

    def init(self, key: Key, batch: Batch) -> tuple[Params, Extra]:
        back, ahead = self.module.context, self.module.horizon

        def like(name: str, *length: int) -> Array:
            return jnp.zeros((1, *length, self.widths[name]))

        windows = like("values", back), like("past", back), like("known", back + ahead)
        variables = dict(self.module.init(key, Inputs(*windows, like("static")), train=False))
        params = variables.pop("params", {})
        none = {name: jnp.full(s, jnp.nan) for name, s in self.shapes().items() if np.prod(s)}
        return params, {"series": none, "network": variables}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        weights, output = row_weights(batch), self.module.output
        inputs, target = self.read(extra["series"], batch, weights)
        variables = {"params": params, **extra["network"]}
        if train:
            masked = "mask" in inspect.signature(type(self.module).__call__).parameters
            outputs, new = self.module.apply(
                variables,
                inputs,
                train=True,
                rngs={"dropout": key},
                mutable=list(extra["network"]),
                **({"mask": weights > 0} if masked else {}),  # for batch norm
            )
            extra = {**extra, "network": {**extra["network"], **new}}
        else:
            outputs = self.module.apply(variables, inputs, train=False)
        counted, share = self.counted(batch)
        mean = lambda x: (x * counted).mean((1, 2)) / share  # noqa: E731
        weights = weights * share
        total = masked_sum(mean(output.loss(outputs, target)), weights)
        errors = {}
        if not train:
            error = output.mean(outputs) - target
            errors = {
                "mse": metrics.mean(mean(jnp.square(error)), weights),
                "mae": metrics.mean(mean(jnp.abs(error)), weights),
            }
        return total, Out(weights.sum(), errors, extra)

    def predict(self, params: Params, extra: Extra, batch: Batch) -> Array:
        return self.outputs(params, extra, batch, train=False)

    def sample(self, params: Params, extra: Extra, batch: Batch, key: Key) -> Array:
        if extra["network"]:  # the statistics of the batch would add another kind of noise
            raise ValueError(f"module must have no batch norm for samples, got {self.module}")
        return self.outputs(params, extra, batch, train=True, rngs={"dropout": key})

    def check(self, windows: Batch) -> None:
        columns = {name: np.asarray(x) for name, x in windows.items()}
        if self.partial and (columns["steps"] < 1).any():
            w = int((columns["steps"] < 1).argmax())
            raise ValueError(f"steps must be at least 1, got {columns['steps'][w]} in window {w}")
        if self.widths["known"] or not self.partial:
            columns.pop("steps", None)  # all rows of the horizon are read
        check_windows(self.ids, self.offsets, columns, self.module.context, self.module.horizon)

    def counted(self, batch: Batch) -> tuple[Array | float, Array | float]:
        """Which steps of each target count, (B, H, 1) of 0 and 1, and their share (B,)."""
        if not self.partial:
            return 1.0, 1.0
        steps = jnp.maximum(batch["steps"], 1)  # a row of padding may hold any value
        counted = jnp.arange(self.module.horizon)[None] < steps[:, None]
        return counted[:, :, None].astype(jnp.float32), counted.mean(1)

    def outputs(self, params: Params, extra: Extra, batch: Batch, **options: Any) -> Array:
        """The outputs of the module, in the series' own units."""
        weights, output = row_weights(batch), self.module.output
        inputs, _ = self.read(extra["series"], batch, weights)
        outputs = self.module.apply({"params": params, **extra["network"]}, inputs, **options)
        if output.scale_only:
            return outputs
        number = jnp.where(weights > 0, batch["series"], 0)
        loc, scale = (extra["series"][name][number][:, None] for name in ("loc", "scale"))
        return output.scaled(outputs, loc, scale)

    def read(self, arrays: Extra, batch: Batch, weights: Array) -> tuple[Inputs, Array]:
        """The rows of each window: inputs and target."""
        back, ahead = self.module.context, self.module.horizon
        empty = {name: jnp.zeros(s) for name, s in self.shapes().items() if not np.prod(s)}
        arrays = {**arrays, **empty}
        # a row of padding may hold any values
        origin = jnp.where(weights > 0, batch["origin"], back)
        number = jnp.where(weights > 0, batch["series"], 0)
        values = gather(arrays["values"], origin, -back, 0 if self.partial else ahead)
        target = values[:, back:]
        if self.partial:  # steps that do not count repeat the last value that does
            steps = jnp.where(weights > 0, batch["steps"], 1)
            rows = jnp.minimum(jnp.arange(ahead)[None], steps[:, None] - 1)
            target = arrays["values"][origin[:, None] + rows]
        past = gather(arrays["past"], origin, -back, 0)
        known = gather(arrays["known"], origin, -back, ahead)
        inputs = Inputs(values[:, :back], past, known, arrays["static"][number])
        return inputs, target


def _check_output(output: Any, series: Series, scaling: Scaling) -> None:
    if output.scale_only and scaling.kind != "none":
        raise ValueError(
            f"scaling must be of kind 'none' for {output}, which cannot be shifted, got "
            f'{scaling.kind!r}; use instance_norm="mean" of the module to scale series'
        )
    check_counts(output, series)


def check_counts(output: Any, series: Series) -> None:
    """Raise `ValueError` if an output is for counts and the values are not counts."""
    if not isinstance(getattr(output, "of", output), NegativeBinomial):
        return
    bad = (series.values < 0) | (series.values != np.round(series.values))
    if bad.any():
        row = int(np.flatnonzero(bad.any(1))[0])
        name = str(series.ids[np.searchsorted(series.offsets, row, "right") - 1])
        value = series.values[row][bad[row]][0]
        raise ValueError(
            f"values must be whole numbers from 0 up for {output}, got {value:g} in series {name!r}"
        )
