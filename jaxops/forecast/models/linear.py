"""Linear forecasters, NLinear and DLinear: strong and fast baselines."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.forecast.models.inputs import Inputs, check
from jaxops.forecast.models.layers import bias_init, forecast_of, kernel_init
from jaxops.forecast.models.normalization import normalize
from jaxops.forecast.models.outputs import Output, Point
from jaxops.nn import matmul
from jaxops.task import recorded

Array = jax.Array


def moving_average(x: Array, kernel: int) -> Array:
    """Centred means of `kernel` steps along axis -2; the edge values are repeated beyond the ends.

    >>> moving_average(jnp.array([[0.0], [3.0], [6.0]]), 3).ravel().tolist()
    [1.0, 3.0, 5.0]
    """
    length, half = x.shape[-2], (kernel - 1) // 2
    ends = [(0, 0)] * (x.ndim - 2) + [(half, half), (0, 0)]
    block, width = jnp.pad(x, ends, mode="edge"), 1
    total, taken, rest = jnp.zeros_like(x), 0, kernel
    while (
        rest
    ):  # sums of 1, 2, 4, ... steps need log2(kernel) additions and round less than a cumsum
        if rest % 2:
            total, taken = total + block[..., taken : taken + length, :], taken + width
        block, width = block[..., :-width, :] + block[..., width:, :], 2 * width
        rest //= 2
    return total / kernel


def _over_time(values: Array, kernel: Array) -> Array:
    """Products over time: (B, L, C) by (L, N), or by (C, L, N) for each channel, to (B, C, N)."""
    if kernel.ndim == 2:
        return matmul(values.swapaxes(1, 2), kernel)
    return matmul(values.transpose(2, 0, 1), kernel).swapaxes(0, 1)


@recorded(formerly={"look_back": "context"})
class NLinear(nn.Module):
    """The last value plus a linear map of the differences from it.

    Zeng et al. 2023, arXiv:2205.13504. Kernel and bias are initialised uniformly within
    1 / sqrt(context), as in PyTorch and in the authors' code.

    Attributes:
        context: L, steps that the module reads.
        horizon: H, steps to forecast.
        output: a point, quantiles or a distribution, see `outputs`.
        instance_norm: "last", as in the paper, or "mean_std", "mean" or "none"; see `normalize`.
        individual: whether each channel has its own map.

    >>> x = Inputs.of(jnp.ones((2, 8, 3)), horizon=4)
    >>> jax.eval_shape(NLinear(8, 4).init_with_output, jax.random.key(0), x)[0].shape
    (2, 4, 3, 1)
    """

    context: int
    horizon: int
    output: Output = Point()
    instance_norm: str = "last"
    individual: bool = False

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False) -> Array:
        """The output's parameters (B, H, C, P).

        Raises:
            ValueError: the inputs do not fit, or covariates are given.
        """
        check(self, inputs)
        x, loc, scale = normalize(inputs.values, self.instance_norm)
        each = x.shape[2:] if self.individual else ()
        features = self.horizon * self.output.size
        kernel = self.param("kernel", kernel_init, (*each, self.context, features))
        bias = self.param("bias", bias_init(self.context), (*each, features))
        raw = _over_time(x, kernel) + bias.reshape(1, -1, features)
        return forecast_of(self, raw, loc, scale)


@recorded(formerly={"look_back": "context"})
class DLinear(nn.Module):
    """One linear map of the trend and one of the remainder; the trend is a centred moving average.

    Zeng et al. 2023, arXiv:2205.13504. Kernels and biases are initialised uniformly within
    1 / sqrt(context), as in PyTorch and in the authors' code.

    The average is linear, so both maps are computed as one product. With trend = A x and remainder
    x - A x, the forecast is (S + A^T (T - S))^T x. The average is applied to the kernels, which are
    smaller than a batch.

    Attributes:
        context: L, steps that the module reads.
        horizon: H, steps to forecast.
        output: a point, quantiles or a distribution, see `outputs`.
        instance_norm: "none", as in the paper, or "mean_std", "last" or "mean"; see `normalize`.
        individual: whether each channel has its own maps.
        kernel: number of steps of the moving average, an odd number.

    >>> x = Inputs.of(jnp.ones((2, 8, 3)), horizon=4)
    >>> jax.eval_shape(DLinear(8, 4).init_with_output, jax.random.key(0), x)[0].shape
    (2, 4, 3, 1)
    """

    context: int
    horizon: int
    output: Output = Point()
    instance_norm: str = "none"
    individual: bool = False
    kernel: int = 25

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False) -> Array:
        """The output's parameters (B, H, C, P).

        Raises:
            ValueError: the inputs do not fit, covariates are given, or the kernel is not odd.
        """
        check(self, inputs)
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        x, loc, scale = normalize(inputs.values, self.instance_norm)
        each = x.shape[2:] if self.individual else ()
        features = self.horizon * self.output.size

        def part(name: str) -> tuple[Array, Array]:
            kernel = self.param(f"{name}_kernel", kernel_init, (*each, self.context, features))
            return kernel, self.param(f"{name}_bias", bias_init(self.context), (*each, features))

        (seasonal, bias_s), (trend, bias_t) = part("seasonal"), part("trend")
        average = partial(moving_average, kernel=self.kernel)
        (averaged,) = jax.linear_transpose(average, seasonal)(trend - seasonal)
        raw = _over_time(x, seasonal + averaged) + (bias_s + bias_t).reshape(1, -1, features)
        return forecast_of(self, raw, loc, scale)
