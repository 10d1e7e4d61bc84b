"""Residual stacks of multi-layer perceptrons: N-BEATS and N-HiTS."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxops.forecast.models.inputs import Inputs, check
from jaxops.forecast.models.layers import forecast_of, linear
from jaxops.forecast.models.normalization import normalize
from jaxops.forecast.models.outputs import Output, Point
from jaxops.nn import matmul
from jaxops.task import recorded

Array = jax.Array
STACKS = ("generic", "trend", "seasonality")


class Perceptron(nn.Module):
    """`depth` dense layers with ReLU, then a dense layer."""

    depth: int
    width: int
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (..., inputs) to (..., features)."""
        for i in range(self.depth):
            x = nn.relu(linear(self.width, x.shape[-1], f"dense_{i}")(x))
        return linear(self.features, x.shape[-1], "theta")(x)


def basis(kind: str, context: int, horizon: int, degree: int) -> np.ndarray:
    """The basis functions of a block's coefficients, (N, context + horizon).

    "trend" has the powers 0 to `degree` of time. "seasonality" has cosines and sines of 0 to
    H / 2 - 1 cycles per horizon.
    """
    time = np.arange(-context, horizon) / horizon
    if kind == "trend":  # time is scaled into [-1, 1], so that high powers stay small
        return (time * horizon / max(context, horizon)) ** np.arange(degree + 1)[:, None]
    angle = 2 * np.pi * np.arange(max(1, horizon // 2))[:, None] * time
    return np.concatenate([np.cos(angle), np.sin(angle)])


@recorded(formerly={"look_back": "context", "layers": "depth"})
class NBEATS(nn.Module):
    """N-BEATS: each block subtracts its backcast from the window and adds its forecast.

    Oreshkin et al. 2020, arXiv:1905.10437. Stacks of "generic" blocks can form any curve. With
    `stacks=("trend", "seasonality")` the model is interpretable, and the blocks of a stack share
    their weights. Every channel is treated as a series of its own. With `instance_norm="last"`
    forecasts start at the last value, as in the authors' code.

    Attributes:
        context: L, steps that the module reads.
        horizon: H, steps to forecast.
        output: a point, quantiles or a distribution, see `outputs`.
        instance_norm: see `normalize`.
        stacks: the kind of each stack, "generic", "trend" or "seasonality".
        blocks: number of blocks of a stack.
        depth: number of hidden layers of a block.
        width: width of a hidden layer. The paper has 512, and 256 for trend and 2048 for
            seasonality.
        degree: degree of the trend's polynomial.

    >>> x = Inputs.of(jnp.ones((2, 8, 3)), horizon=4)
    >>> model = NBEATS(8, 4, stacks=("trend", "seasonality"))
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0].shape
    (2, 4, 3, 1)
    """

    context: int
    horizon: int
    output: Output = Point()
    instance_norm: str = "last"
    stacks: tuple[str, ...] = ("generic", "generic")
    blocks: int = 3
    depth: int = 4
    width: int = 256
    degree: int = 2

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False) -> Array:
        """The output's parameters (B, H, C, P).

        Raises:
            ValueError: the inputs do not fit, covariates are given, or a stack has an unknown kind.
        """
        check(self, inputs)
        if not self.stacks or not set(self.stacks) <= set(STACKS):
            raise ValueError(f"stacks must be some of {STACKS}, got {self.stacks}")
        x, loc, scale = normalize(inputs.values, self.instance_norm)
        residual = x.swapaxes(1, 2)  # (B, C, L)
        total = jnp.zeros((*residual.shape[:2], self.horizon * self.output.size))
        for i, kind in enumerate(self.stacks):
            curves = basis(kind, self.context, self.horizon, self.degree)
            features = self.context + total.shape[-1]
            if kind != "generic":
                features = len(curves) * (1 + self.output.size)
            blocks = 1 if kind != "generic" else self.blocks
            perceptrons = [
                Perceptron(self.depth, self.width, features, name=f"stack_{i}_block_{j}")
                for j in range(blocks)
            ]
            for j in range(self.blocks):
                theta = perceptrons[j % blocks](residual)
                explained, more = self._split(theta, None if kind == "generic" else curves)
                residual, total = residual - explained, total + more
        return forecast_of(self, total, loc, scale)

    def _split(self, theta: Array, curves: np.ndarray | None) -> tuple[Array, Array]:
        """Backcast (B, C, L) and forecast (B, C, H * P), from (B, C, features)."""
        if curves is None:
            return theta[..., : self.context], theta[..., self.context :]
        number, both = len(curves), jnp.asarray(curves, jnp.float32)
        back = matmul(theta[..., :number], both[:, : self.context])
        weights = theta[..., number:].reshape(*theta.shape[:2], self.output.size, number)
        ahead = matmul(weights, both[:, self.context :])  # (B, C, P, H)
        return back, ahead.swapaxes(2, 3).reshape(*theta.shape[:2], -1)


def interpolation(knots: int, steps: int) -> np.ndarray:
    """Weights (knots, steps) of linear interpolation between knots that are spread over the steps.

    >>> interpolation(2, 4)[1].tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    place = (np.arange(steps) + 0.5) * knots / steps - 0.5
    return np.stack([np.interp(place, np.arange(knots), row) for row in np.eye(knots)])


@recorded(formerly={"look_back": "context", "layers": "depth"})
class NHiTS(nn.Module):
    """N-HiTS: N-BEATS whose stacks work at different resolutions.

    Challu et al. 2023, arXiv:2201.12886. A stack reads the maxima of `pool` steps. It forecasts
    every `downsample`-th step and interpolates linearly between them, so that a long horizon needs
    few numbers. Every channel is treated as a series of its own.

    Attributes:
        context: L, steps that the module reads.
        horizon: H, steps to forecast.
        output: a point, quantiles or a distribution, see `outputs`.
        instance_norm: see `normalize`.
        pool: for each stack, the number of steps whose maximum it reads.
        downsample: for each stack, the number of steps from one forecast knot to the next.
        blocks: number of blocks of a stack.
        depth: number of hidden layers of a block.
        width: width of a hidden layer.

    >>> x = Inputs.of(jnp.ones((2, 9, 3)), horizon=4)
    >>> jax.eval_shape(NHiTS(9, 4).init_with_output, jax.random.key(0), x)[0].shape
    (2, 4, 3, 1)
    """

    context: int
    horizon: int
    output: Output = Point()
    instance_norm: str = "last"
    pool: tuple[int, ...] = (2, 2, 1)
    downsample: tuple[int, ...] = (4, 2, 1)
    blocks: int = 1
    depth: int = 2
    width: int = 512

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False) -> Array:
        """The output's parameters (B, H, C, P).

        Raises:
            ValueError: the inputs do not fit, covariates are given, or `pool` and `downsample` are
                for different numbers of stacks.
        """
        check(self, inputs)
        if len(self.pool) != len(self.downsample) or min((*self.pool, *self.downsample)) < 1:
            raise ValueError(
                "pool and downsample must have the same number of values, each at least 1, got "
                f"{self.pool} and {self.downsample}"
            )
        x, loc, scale = normalize(inputs.values, self.instance_norm)
        residual, size = x.swapaxes(1, 2), self.output.size
        total = jnp.zeros((*residual.shape[:2], size, self.horizon))
        for i, (pool, downsample) in enumerate(zip(self.pool, self.downsample, strict=True)):
            knots = max(1, self.horizon // downsample)
            weights = jnp.asarray(interpolation(knots, self.horizon), jnp.float32)
            for j in range(self.blocks):
                features = self.context + size * knots
                block = Perceptron(self.depth, self.width, features, name=f"stack_{i}_block_{j}")
                theta = block(_maxima(residual, pool))
                residual -= theta[..., : self.context]
                ahead = theta[..., self.context :].reshape(*theta.shape[:2], size, knots)
                total += matmul(ahead, weights)
        return forecast_of(self, total.swapaxes(2, 3).reshape(*x.shape[::2], -1), loc, scale)


def _maxima(x: Array, pool: int) -> Array:
    """Maxima of every `pool` steps along the last axis; the last group may have fewer."""
    fill = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % pool)]
    x = jnp.pad(x, fill, constant_values=-jnp.inf)
    return x.reshape(*x.shape[:-1], -1, pool).max(-1)
