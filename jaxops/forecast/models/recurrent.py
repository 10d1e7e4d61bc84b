"""A recurrent network that forecasts all steps at once."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.forecast.models.inputs import COVARIATES, Inputs, check
from jaxops.forecast.models.layers import forecast_of, linear
from jaxops.forecast.models.normalization import normalize
from jaxops.forecast.models.outputs import Output, Point
from jaxops.nn.recurrence import recurrence
from jaxops.task import recorded

Array = jax.Array


@recorded(formerly={"look_back": "context", "layers": "depth", "context": "step_width"})
class Recurrent(nn.Module):
    """LSTM or GRU over the window and its covariates, then one perceptron shared by all steps.

    The last state is mapped to `step_width` numbers for each step of the horizon. The perceptron
    maps these numbers and the step's known covariates to the forecast. This is the direct forecast
    of MQ-RNN (Wen et al. 2017, arXiv:1711.11053). It mixes channels. Dropout is variational (Gal
    and Ghahramani 2016, arXiv:1512.05287), so `jaxops.monte_carlo` computes the mean and spread of
    forecasts.

    Attributes:
        context: L, steps that the module reads.
        horizon: H, steps to forecast.
        output: a point, quantiles or a distribution, see `outputs`.
        instance_norm: see `normalize`.
        cell: "lstm" or "gru".
        width: width of a state and of the perceptron's hidden layer.
        depth: number of recurrent layers.
        step_width: width of the vector for each step.
        dropout: rate of the dropout on the inputs of a layer, with one mask for all steps.
        recurrent_dropout: rate of the dropout on the state that enters the gates.

    >>> x = Inputs.of(jnp.ones((2, 8, 3)), 4, known=jnp.ones((2, 12, 5)), static=jnp.ones((2, 1)))
    >>> jax.eval_shape(Recurrent(8, 4).init_with_output, jax.random.key(0), x)[0].shape
    (2, 4, 3, 1)
    """

    context: int
    horizon: int
    output: Output = Point()
    instance_norm: str = "mean_std"
    cell: str = "lstm"
    width: int = 64
    depth: int = 1
    step_width: int = 16
    dropout: float = 0.1
    recurrent_dropout: float = 0.1

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False) -> Array:
        """The output's parameters (B, H, C, P).

        Raises:
            ValueError: the inputs do not fit, or `cell` is unknown.
        """
        check(self, inputs, uses=COVARIATES)
        values, loc, scale = normalize(inputs.values, self.instance_norm)
        batch, length, channels = values.shape
        static = jnp.broadcast_to(inputs.static[:, None], (batch, length, inputs.static.shape[-1]))
        x = jnp.concatenate([values, inputs.past, inputs.known[:, :length], static], -1)
        read = recurrence(self.cell)(
            self.width,
            self.depth,
            dropout=self.dropout,
            recurrent_dropout=self.recurrent_dropout,
            name="recurrence",
        )
        state = read(x, train=train)[0][:, -1]
        state = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(state)
        about = linear(self.horizon * self.step_width, self.width, "context")(state)
        steps = about.reshape(batch, self.horizon, self.step_width)
        steps = jnp.concatenate([steps, inputs.known[:, length:]], -1)
        steps = nn.relu(linear(self.width, steps.shape[-1], "step")(steps))
        raw = linear(channels * self.output.size, self.width, "head")(steps)
        raw = raw.reshape(batch, self.horizon, channels, -1).swapaxes(1, 2)
        return forecast_of(self, raw, loc, scale)
