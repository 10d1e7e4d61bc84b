"""Multi-layer perceptrons over time and features, with covariates: TSMixer and TiDE."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.forecast.models.inputs import COVARIATES, Inputs, check
from jaxops.forecast.models.layers import Dropout, forecast_of, linear
from jaxops.forecast.models.normalization import normalize
from jaxops.forecast.models.outputs import Output, Point
from jaxops.task import recorded

Array = jax.Array


def _norm(x: Array, name: str) -> Array:
    """Layer norm over time and features."""
    return nn.LayerNorm(epsilon=1e-5, reduction_axes=(-2, -1), feature_axes=(-2, -1), name=name)(x)


class TimeMixing(nn.Module):
    """A dense layer over time, with a residual connection."""

    dropout: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map (B, T, F) to the same shape."""
        steps = x.shape[1]
        y = linear(steps, steps, "time")(_norm(x, "norm").swapaxes(1, 2)).swapaxes(1, 2)
        return x + Dropout(self.dropout)(nn.relu(y), train)


class FeatureMixing(nn.Module):
    """A multi-layer perceptron over features, with a residual connection.

    The residual is projected if the widths differ.
    """

    features: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map (B, T, F) to (B, T, features)."""

        def drop(x: Array) -> Array:
            return Dropout(self.dropout)(x, train)

        y = drop(nn.relu(linear(self.hidden, x.shape[-1], "up")(_norm(x, "norm"))))
        y = drop(linear(self.features, self.hidden, "down")(y))
        if x.shape[-1] != self.features:
            x = linear(self.features, x.shape[-1], "skip")(x)
        return x + y


@recorded(formerly={"look_back": "context"})
class TSMixer(nn.Module):
    """Multi-layer perceptrons over time and channels in turn, then a dense layer to the horizon.

    Chen et al. 2023, arXiv:2303.06053. It mixes channels; see `TSMixerExt` for covariates.

    Attributes:
        context: L, steps that the module reads.
        horizon: H, steps to forecast.
        output: a point, quantiles or a distribution, see `outputs`.
        instance_norm: see `normalize`.
        blocks: number of blocks, each with a time mixing and a feature mixing.
        hidden: width of the hidden layer of the perceptrons over channels.
        dropout: rate of the dropout after each activation and each branch.

    >>> x = Inputs.of(jnp.ones((2, 8, 3)), horizon=4)
    >>> jax.eval_shape(TSMixer(8, 4).init_with_output, jax.random.key(0), x)[0].shape
    (2, 4, 3, 1)
    """

    context: int
    horizon: int
    output: Output = Point()
    instance_norm: str = "mean_std"
    blocks: int = 4
    hidden: int = 64
    dropout: float = 0.3

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False) -> Array:
        """The output's parameters (B, H, C, P).

        Raises:
            ValueError: the inputs do not fit, or covariates are given.
        """
        check(self, inputs)
        x, loc, scale = normalize(inputs.values, self.instance_norm)
        for i in range(self.blocks):
            x = TimeMixing(self.dropout, name=f"time_{i}")(x, train)
            mixing = FeatureMixing(x.shape[-1], self.hidden, self.dropout, name=f"feature_{i}")
            x = mixing(x, train)
        features = self.horizon * self.output.size
        raw = linear(features, self.context, "head")(x.swapaxes(1, 2))
        return forecast_of(self, raw, loc, scale)


@recorded(formerly={"look_back": "context"})
class TSMixerExt(nn.Module):
    """TSMixer with covariates: the past is mapped to the horizon's steps and mixed with the rest.

    Chen et al. 2023, arXiv:2303.06053, section 4. It takes past, known and static covariates. It
    mixes channels.

    Attributes:
        context: L, steps that the module reads.
        horizon: H, steps to forecast.
        output: a point, quantiles or a distribution, see `outputs`.
        instance_norm: see `normalize`.
        blocks: number of blocks, each with a time mixing and a feature mixing.
        width: number of features that are mixed.
        hidden: width of the hidden layer of the perceptrons over features.
        dropout: rate of the dropout after each activation and each branch.

    >>> x = Inputs.of(jnp.ones((2, 8, 3)), 4, known=jnp.ones((2, 12, 5)), static=jnp.ones((2, 1)))
    >>> jax.eval_shape(TSMixerExt(8, 4).init_with_output, jax.random.key(0), x)[0].shape
    (2, 4, 3, 1)
    """

    context: int
    horizon: int
    output: Output = Point()
    instance_norm: str = "mean_std"
    blocks: int = 2
    width: int = 64
    hidden: int = 64
    dropout: float = 0.1

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False) -> Array:
        """The output's parameters (B, H, C, P).

        Raises:
            ValueError: the inputs do not fit.
        """
        check(self, inputs, uses=COVARIATES)
        values, loc, scale = normalize(inputs.values, self.instance_norm)
        static = inputs.static[:, None]

        def mix(x: Array, name: str) -> Array:
            of_series = jnp.broadcast_to(static, (*x.shape[:2], static.shape[-1]))
            mixing = FeatureMixing(self.width, self.hidden, self.dropout, name=name)
            return mixing(jnp.concatenate([x, of_series], -1), train)

        seen = [values, inputs.past, inputs.known[:, : self.context]]
        past = jnp.concatenate(seen, -1).swapaxes(1, 2)
        past = linear(self.horizon, self.context, "to_horizon")(past).swapaxes(1, 2)
        parts = [mix(past, "past")]
        if inputs.known.shape[-1]:
            parts.append(mix(inputs.known[:, self.context :], "future"))
        x = jnp.concatenate(parts, -1)
        for i in range(self.blocks):
            x = TimeMixing(self.dropout, name=f"time_{i}")(x, train)
            x = mix(x, f"feature_{i}")
        raw = linear(values.shape[-1] * self.output.size, self.width, "head")(x)
        raw = raw.reshape(*raw.shape[:2], -1, self.output.size).swapaxes(1, 2)
        return forecast_of(self, raw, loc, scale)


class ResidualBlock(nn.Module):
    """The sum of a perceptron with one hidden layer and of a dense layer, then layer norm."""

    features: int
    hidden: int
    dropout: float
    norm: bool = True

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map (..., inputs) to (..., features)."""
        inputs = x.shape[-1]
        y = nn.relu(linear(self.hidden, inputs, "up")(x))
        y = linear(self.features, self.hidden, "down")(y)
        y = Dropout(self.dropout)(y, train)
        y += linear(self.features, inputs, "skip")(x)
        return nn.LayerNorm(epsilon=1e-5, name="norm")(y) if self.norm else y


@recorded(formerly={"look_back": "context"})
class TiDE(nn.Module):
    """TiDE: a multi-layer perceptron over the window and all covariates, then one for each step.

    Das et al. 2023, arXiv:2304.08424. It takes past covariates too, which the paper leaves out.
    Every channel is treated as a series of its own, with the same covariates.

    Attributes:
        context: L, steps that the module reads.
        horizon: H, steps to forecast.
        output: a point, quantiles or a distribution, see `outputs`.
        instance_norm: see `normalize`.
        width: width of the hidden layers.
        encoder: number of blocks of the encoder.
        decoder: number of blocks of the decoder.
        per_step: width of the decoder's output for each step.
        projected: width that the covariates of a step are projected to.
        temporal: width of the hidden layer of the perceptron for each step.
        dropout: rate of the dropout in every block.

    >>> x = Inputs.of(jnp.ones((2, 8, 3)), 4, known=jnp.ones((2, 12, 5)), static=jnp.ones((2, 1)))
    >>> jax.eval_shape(TiDE(8, 4).init_with_output, jax.random.key(0), x)[0].shape
    (2, 4, 3, 1)
    """

    context: int
    horizon: int
    output: Output = Point()
    instance_norm: str = "mean_std"
    width: int = 256
    encoder: int = 2
    decoder: int = 2
    per_step: int = 8
    projected: int = 4
    temporal: int = 128
    dropout: float = 0.3

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False) -> Array:
        """The output's parameters (B, H, C, P).

        Raises:
            ValueError: the inputs do not fit.
        """
        check(self, inputs, uses=COVARIATES)

        def block(x: Array, features: int, hidden: int, name: str) -> Array:
            return ResidualBlock(features, hidden, self.dropout, name=name)(x, train)

        values, loc, scale = normalize(inputs.values, self.instance_norm)
        values = values.swapaxes(1, 2)
        batch, channels, _ = values.shape

        def for_all(x: Array) -> Array:
            """(B, ...) to (B, C, ...)."""
            return jnp.broadcast_to(x[:, None], (batch, channels, *x.shape[1:]))

        parts = [values, for_all(inputs.static)]
        future = jnp.zeros((batch, channels, self.horizon, 0))
        if inputs.past.shape[-1]:
            past = block(inputs.past, self.projected, self.width, "past")
            parts.append(for_all(past.reshape(batch, -1)))
        if inputs.known.shape[-1]:
            known = block(inputs.known, self.projected, self.width, "known")
            parts.append(for_all(known.reshape(batch, -1)))
            future = for_all(known[:, self.context :])
        x = jnp.concatenate(parts, -1)
        for i in range(self.encoder):
            x = block(x, self.width, self.width, f"encoder_{i}")
        for i in range(self.decoder - 1):
            x = block(x, self.width, self.width, f"decoder_{i}")
        x = block(x, self.horizon * self.per_step, self.width, f"decoder_{self.decoder - 1}")
        steps = x.reshape(batch, channels, self.horizon, self.per_step)
        steps = jnp.concatenate([steps, future], -1)
        # no layer norm here: that of a single number would be 0
        last = ResidualBlock(self.output.size, self.temporal, self.dropout, False, name="temporal")
        raw = last(steps, train).reshape(batch, channels, -1)
        raw += linear(self.horizon * self.output.size, self.context, "direct")(values)
        return forecast_of(self, raw, loc, scale)
