"""What a forecasting network sees, and what is refused before anything compiles."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Inputs(NamedTuple):
    """The look-back window of B series of C channels, with covariates; widths may be 0.

    Attributes:
        values: float32 (B, L, C).
        past: float32 (B, L, P), covariates known up to the forecast's origin.
        known: float32 (B, L + H, K), covariates whose future is known too.
        static: float32 (B, Q), of the series.
    """

    values: Array
    past: Array
    known: Array
    static: Array

    @classmethod
    def of(
        cls,
        values: Array,
        horizon: int,
        past: Array | None = None,
        known: Array | None = None,
        static: Array | None = None,
    ) -> "Inputs":
        """Inputs whose covariates are of width 0 where they are not given.

        >>> Inputs.of(jnp.ones((2, 8, 3)), horizon=4).known.shape
        (2, 12, 0)
        """
        batch, length, _ = values.shape

        def given(x: Array | None, *shape: int) -> Array:
            return jnp.zeros((*shape, 0)) if x is None else jnp.asarray(x)

        return cls(
            jnp.asarray(values),
            given(past, batch, length),
            given(known, batch, length + horizon),
            given(static, batch),
        )


COVARIATES = ("past", "known", "static")


def check(model: Any, inputs: Inputs, uses: tuple[str, ...] = ()) -> None:
    """Raise `ValueError` unless the inputs fit the model; `uses` names its covariates."""
    name, length, horizon = type(model).__name__, model.context, model.horizon
    for field in ("context", "horizon"):
        if getattr(model, field) < 1:
            raise ValueError(f"{name}: {field}: {getattr(model, field)} found, at least 1 wanted")
    if inputs.values.ndim != 3 or inputs.values.shape[1] != length:
        raise ValueError(
            f"values: {inputs.values.shape} found, (B, context = {length}, C) wanted by {name}"
        )
    batch = len(inputs.values)
    wanted = {"past": (batch, length), "known": (batch, length + horizon), "static": (batch,)}
    for column in COVARIATES:
        found = getattr(inputs, column).shape
        if found[-1] == 0:
            continue
        if column not in uses:
            raise ValueError(f"{column}: width {found[-1]} found, but {name} has no use for it")
        if found[:-1] != wanted[column]:
            raise ValueError(
                f"{column}: {found} found, {(*wanted[column], found[-1])} wanted: "
                f"context {length}, horizon {horizon}"
            )
    if model.output.scale_only and model.instance_norm not in ("none", "mean"):
        raise ValueError(
            f'instance_norm: {model.instance_norm!r} found, "none" or "mean" wanted with '
            f"{model.output}, which can be scaled but not shifted"
        )
