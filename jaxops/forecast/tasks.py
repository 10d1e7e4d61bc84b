"""What to learn from series: all steps of the horizon at once."""

import inspect
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxops import metrics
from jaxops.forecast.data.scales import Scaling
from jaxops.forecast.data.series import Series
from jaxops.forecast.data.windows import check_windows, gather
from jaxops.forecast.models.distributions import NegativeBinomial
from jaxops.forecast.models.inputs import Inputs
from jaxops.task import Array, Batch, Column, Extra, Key, Out, Params, Task, masked_sum, row_weights


def direct(network: Any, series: Series, scaling: Scaling) -> Task:
    """Forecast the `horizon` steps after an origin from the `context` before it, all at once.

    A batch holds windows as `origins` makes them. They are cut out inside the step, from the series
    that lie on the device once, in the state's `extra`. A task is made for its series.
    They are in every checkpoint too, and on every device whole. `jaxops.monte_carlo` gives mean and
    spread of what `predict` gives.

    Args:
        network: such as `NLinear`; with `context`, `horizon` and `output`.
        series: all rows, those of validation and test too; which of them are learned from is said
            by the origins.
        scaling: of the training rows. The loss is that of scaled values.

    Returns:
        A task with the metrics loss, mse and mae, the last two in evaluations alone and of scaled
        values, over all steps and channels. It predicts the parameters of the output, in the
        series' own units, (B, H, C, P).

    Raises:
        ValueError: a network that cannot take the series' covariates; a scaling of other series;
            an output of counts with scaled, negative or broken values. And by `fit`, `evaluate` and
            `predict`, for windows that reach beyond their series.
    """
    back, horizon, output = network.context, network.horizon, network.output
    _check_output(output, series, scaling)
    if scaling.kind == "series" and not np.isin(series.ids, scaling.ids).all():
        new = str(series.ids[~np.isin(series.ids, scaling.ids)][0])
        raise ValueError(f"scaling: none found of series {new!r}, one of its training rows wanted")
    loc, scale = scaling.of(series)
    group = np.repeat(np.arange(len(series.ids)), series.lengths)
    rows = {
        "values": (series.values - loc[group]) / scale[group],
        "past": series.past,
        "known": series.known,
    }
    fixed = {**rows, "static": series.static, "loc": loc, "scale": scale}
    none = {name: x.shape for name, x in fixed.items() if x.size == 0}  # checkpoints refuse them
    masked = "mask" in inspect.signature(type(network).__call__).parameters  # batch norm's

    def read(extra: Extra, batch: Batch, weights: Array) -> tuple[Inputs, Array]:
        extra = {**extra, **{name: jnp.zeros(shape) for name, shape in none.items()}}
        # a row of padding may hold anything
        origin = jnp.where(weights > 0, batch["origin"], back)
        number = jnp.where(weights > 0, batch["series"], 0)
        values = gather(extra["values"], origin, -back, horizon)
        past = gather(extra["past"], origin, -back, 0)
        known = gather(extra["known"], origin, -back, horizon)
        inputs = Inputs(values[:, :back], past, known, extra["static"][number])
        return inputs, values[:, back:]

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        def like(name: str, *length: int) -> Array:
            return jnp.zeros((1, *length, fixed[name].shape[1]))

        windows = like("values", back), like("past", back), like("known", back + horizon)
        variables = dict(network.init(key, Inputs(*windows, like("static")), train=False))
        params = variables.pop("params", {})
        return params, {
            "series": {
                name: jnp.asarray(x, jnp.float32) for name, x in fixed.items() if name not in none
            },
            "network": variables,
        }

    def loss_fn(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        weights = row_weights(batch)
        inputs, target = read(extra["series"], batch, weights)
        variables = {"params": params, **extra["network"]}
        if train:
            real = {"mask": weights > 0} if masked else {}
            found, new = network.apply(
                variables,
                inputs,
                train=True,
                rngs={"dropout": key},
                mutable=list(extra["network"]),
                **real,
            )
            extra = {**extra, "network": {**extra["network"], **new}}
        else:
            found = network.apply(variables, inputs, train=False)
        losses = output.loss(found, target).mean((1, 2))
        total = masked_sum(losses, weights)
        read_of = {}
        if not train:
            error = output.mean(found) - target
            read_of = {
                "mse": metrics.mean(jnp.square(error).mean((1, 2)), weights),
                "mae": metrics.mean(jnp.abs(error).mean((1, 2)), weights),
            }
        return total, Out(weights.sum(), read_of, extra)

    def predict(params: Params, extra: Extra, batch: Batch) -> Array:
        return scaled(params, extra, batch, train=False)

    def scaled(params: Params, extra: Extra, batch: Batch, **how: Any) -> Array:
        weights = row_weights(batch)
        inputs, _ = read(extra["series"], batch, weights)
        found = network.apply({"params": params, **extra["network"]}, inputs, **how)
        if output.scale_only:
            return found
        number = jnp.where(weights > 0, batch["series"], 0)
        loc, scale = (extra["series"][name][number][:, None] for name in ("loc", "scale"))
        return output.scaled(found, loc, scale)

    def sample(params: Params, extra: Extra, batch: Batch, key: Key) -> Array:
        if extra["network"]:  # statistics of the batch would be noise of another kind
            raise ValueError(f"sample: a network without batch norm wanted, {network} found")
        return scaled(params, extra, batch, train=True, rngs={"dropout": key})

    columns = (
        Column("series", (), "int", len(series.ids)),
        Column("origin", (), "int", len(series.values) - horizon + 1),
    )

    def check(windows: Batch) -> None:
        check_windows(series, {name: np.asarray(x) for name, x in windows.items()}, back, horizon)

    return Task(init, loss_fn, predict, columns, sample=sample, check=check)


def _check_output(output: Any, series: Series, scaling: Scaling) -> None:
    if output.scale_only and scaling.kind != "none":
        raise ValueError(
            f'scaling: {scaling.kind!r} found, "none" wanted by {output}, which cannot be shifted; '
            'a network\'s instance_norm="mean" brings series to one size'
        )
    check_counts(output, series)


def check_counts(output: Any, series: Series) -> None:
    """Raise `ValueError` where an output of counts is asked of other numbers."""
    if not isinstance(getattr(output, "of", output), NegativeBinomial):
        return
    bad = (series.values < 0) | (series.values != np.round(series.values))
    if bad.any():
        row = int(np.flatnonzero(bad.any(1))[0])
        name = str(series.ids[np.searchsorted(series.offsets, row, "right") - 1])
        found = series.values[row][bad[row]][0]
        raise ValueError(f"values: {found:g} of series {name!r} found, counts wanted by {output}")
