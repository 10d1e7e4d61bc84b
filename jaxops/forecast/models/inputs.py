"""Inputs of a forecasting module, and their checks before anything compiles."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Inputs(NamedTuple):
    """The context of B windows of C channels, with covariates. The covariates' widths may be 0.

    Attributes:
        values: float32 (B, L, C).
        past: float32 (B, L, P), covariates whose future is not known.
        known: float32 (B, L + H, K), covariates whose future is known.
        static: float32 (B, Q), static covariates of the series.
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
        """Make inputs; covariates that are not given get width 0.

        Args:
            values: (B, L, C).
            horizon: H.
            past: (B, L, P).
            known: (B, L + H, K).
            static: (B, Q).

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


def check(module: Any, inputs: Inputs, uses: tuple[str, ...] = ()) -> None:
    """Raise `ValueError` if the inputs do not fit the module; `uses` names its covariates."""
    name, length, horizon = type(module).__name__, module.context, module.horizon
    for field in ("context", "horizon"):
        if getattr(module, field) < 1:
            raise ValueError(f"{field} must be at least 1 in {name}, got {getattr(module, field)}")
    if inputs.values.ndim != 3 or inputs.values.shape[1] != length:
        raise ValueError(
            f"values must have shape (B, {length}, C) for {name}, with context={length}, got "
            f"{inputs.values.shape}"
        )
    batch = len(inputs.values)
    shapes = {"past": (batch, length), "known": (batch, length + horizon), "static": (batch,)}
    for column in COVARIATES:
        shape = getattr(inputs, column).shape
        if shape[-1] == 0:
            continue
        if column not in uses:
            raise ValueError(
                f"{column} must have width 0 for {name}, which does not use it, got {shape[-1]}"
            )
        if shape[:-1] != shapes[column]:
            raise ValueError(
                f"{column} must have shape {(*shapes[column], shape[-1])}, got {shape}; "
                f"context {length}, horizon {horizon}"
            )
    if module.output.scale_only and module.instance_norm not in ("none", "mean"):
        raise ValueError(
            f'instance_norm must be "none" or "mean", got {module.instance_norm!r}, with '
            f"{module.output}, which can be scaled but not shifted"
        )
