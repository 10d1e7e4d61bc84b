"""Transformers over patches of a series, PatchTST, and over channels, iTransformer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxops.forecast.models.inputs import Inputs, check
from jaxops.forecast.models.layers import Dropout, forecast_of, linear
from jaxops.forecast.models.normalization import normalize
from jaxops.forecast.models.outputs import Output, Point
from jaxops.nn import BatchNorm, TransformerConfig, matmul
from jaxops.nn.blocks import Stack
from jaxops.task import recorded

Array = jax.Array


def patches(x: Array, patch: int, stride: int) -> Array:
    """Windows of `patch` steps every `stride` steps, after repeating the last value `stride` times.

    Args:
        x: (B, L).
        patch: steps of a window.
        stride: steps from one window to the next.

    Returns:
        (B, N, patch), N = (L - patch) // stride + 2.

    >>> patches(jnp.arange(6)[None], 4, 2)[0].tolist()
    [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 5, 5]]
    """
    number = (x.shape[1] - patch) // stride + 2
    x = jnp.pad(x, ((0, 0), (0, stride)), mode="edge")
    first = jnp.arange(number)[:, None] * stride
    return x[:, first + jnp.arange(patch)[None]]


class PatchBlock(nn.Module):
    """Attention and a multi-layer perceptron, each with a residual connection and batch norm.

    Attention scores are added to those of the block before (He et al. 2020, arXiv:2012.11747), as
    in PatchTST's code.
    """

    heads: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: Array, before: Array | None, train: bool, mask: Array | None
    ) -> tuple[Array, Array]:
        """Map x (B, N, D) to the same shape; also return the scores (B, heads, N, N)."""
        (batch, length, width), per_head = x.shape, x.shape[2] // self.heads

        def drop(x: Array, rate: float) -> Array:
            return Dropout(rate)(x, train)

        qkv = linear(3 * width, width, "qkv")(x)
        q, k, v = qkv.reshape(batch, length, 3, self.heads, per_head).transpose(2, 0, 3, 1, 4)
        scores = matmul(q, k.mT) * per_head**-0.5
        if before is not None:
            scores += before
        mixed = matmul(jax.nn.softmax(scores), v).swapaxes(1, 2).reshape(x.shape)
        # the authors drop twice in a row, which equals once at the combined rate
        twice = 1 - (1 - self.dropout) ** 2
        x += drop(linear(width, width, "out")(mixed), twice)
        x = BatchNorm(name="attention_norm")(x, train=train, mask=mask)
        y = linear(self.hidden, width, "up")(x)
        y = 0.5 * y * (1 + lax.erf(y * 2**-0.5))  # nn.gelu's erfc is slower on a CPU
        y = linear(width, self.hidden, "down")(drop(y, self.dropout))
        x = BatchNorm(name="norm")(x + drop(y, self.dropout), train=train, mask=mask)
        return x, scores


@recorded(formerly={"look_back": "context", "layers": "depth"})
class PatchTST(nn.Module):
    """A transformer over patches of one channel, the same for all channels.

    Nie et al. 2023, arXiv:2211.14730. As in the paper's code, the last value is repeated `stride`
    times at the end, positions are learned, normalisation is batch norm, and attention scores are
    added up over the blocks. A context of 336 makes PatchTST/42, and 512 makes PatchTST/64. The
    defaults are those for ETTh1 and ETTh2; for larger data the paper has width 128, 16 heads,
    hidden 256, dropout 0.2.

    Attributes:
        context: L, steps that the module reads.
        horizon: H, steps to forecast.
        output: a point, quantiles or a distribution, see `outputs`.
        instance_norm: see `normalize`.
        patch: number of steps of a patch.
        stride: number of steps from one patch to the next.
        depth: number of blocks.
        heads: number of attention heads.
        width: width of a patch's vector.
        hidden: width of the perceptrons' hidden layer.
        dropout: rate of the dropout on the patches' vectors, on each branch and inside the
            perceptrons.

    >>> x = Inputs.of(jnp.ones((2, 32, 3)), horizon=4)
    >>> jax.eval_shape(PatchTST(32, 4).init_with_output, jax.random.key(0), x)[0].shape
    (2, 4, 3, 1)
    """

    context: int
    horizon: int
    output: Output = Point()
    instance_norm: str = "mean_std"
    patch: int = 16
    stride: int = 8
    depth: int = 3
    heads: int = 4
    width: int = 16
    hidden: int = 128
    dropout: float = 0.3

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False, mask: Array | None = None) -> Array:
        """The output's parameters (B, H, C, P); rows where mask (B,) is False do not count.

        Raises:
            ValueError: the inputs do not fit, covariates are given, the width is not a multiple of
                heads, or patch and stride do not fit the context.
        """
        check(self, inputs)
        if not 1 <= self.stride <= self.patch <= self.context:
            raise ValueError(
                f"patch and stride must have 1 <= stride <= patch <= {self.context} (context), got "
                f"patch={self.patch} and stride={self.stride}"
            )
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of {self.heads} (heads), got {self.width}")
        x, loc, scale = normalize(inputs.values, self.instance_norm)
        batch, length, channels = x.shape
        x = patches(x.swapaxes(1, 2).reshape(-1, length), self.patch, self.stride)
        x = linear(self.width, self.patch, "embedding")(x)
        uniform = nn.initializers.uniform(0.04)
        places = self.param("positions", lambda *a: uniform(*a) - 0.02, x.shape[1:])
        x = Dropout(self.dropout)(x + places[None], train)
        rows = None if mask is None else jnp.repeat(mask, channels)
        scores = None
        for i in range(self.depth):
            block = PatchBlock(self.heads, self.hidden, self.dropout, name=f"block_{i}")
            x, scores = block(x, scores, train, rows)
        flat = x.reshape(batch, channels, -1)
        raw = linear(self.horizon * self.output.size, flat.shape[-1], "head")(flat)
        return forecast_of(self, raw, loc, scale)


@recorded(formerly={"look_back": "context", "layers": "depth"})
class ITransformer(nn.Module):
    """A transformer whose tokens are channels, each with its whole window.

    Liu et al. 2024, arXiv:2310.06625. Past covariates are tokens too. Known covariates are tokens
    with their future; the paper's code uses only their context. It mixes channels.

    Attributes:
        context: L, steps that the module reads.
        horizon: H, steps to forecast.
        output: a point, quantiles or a distribution, see `outputs`.
        instance_norm: see `normalize`.
        depth: number of blocks.
        heads: number of attention heads.
        width: width of a token.
        hidden: width of the perceptrons' hidden layer.
        dropout: rate of the dropout on tokens and on each branch.

    >>> x = Inputs.of(jnp.ones((2, 32, 3)), 4, known=jnp.ones((2, 36, 2)))
    >>> jax.eval_shape(ITransformer(32, 4).init_with_output, jax.random.key(0), x)[0].shape
    (2, 4, 3, 1)
    """

    context: int
    horizon: int
    output: Output = Point()
    instance_norm: str = "mean_std"
    depth: int = 2
    heads: int = 8
    width: int = 256
    hidden: int = 256
    dropout: float = 0.1

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False) -> Array:
        """The output's parameters (B, H, C, P).

        Raises:
            ValueError: the inputs do not fit, static covariates are given, or the width is not a
                multiple of heads.
        """
        check(self, inputs, uses=("past", "known"))
        config = TransformerConfig(
            vocabulary=1,  # unused: tokens are given as vectors
            context=1,
            depth=self.depth,
            heads=self.heads,
            width=self.width,
            hidden=self.hidden,
            causal=False,
            position="none",
            post_norm=True,
            activation="gelu_exact",
            dropout=self.dropout,
        )
        values, loc, scale = normalize(inputs.values, self.instance_norm)
        tokens = []
        for name, x in (("values", values), ("past", inputs.past), ("known", inputs.known)):
            if x.shape[-1]:
                tokens.append(linear(self.width, x.shape[1], name)(x.swapaxes(1, 2)))
        x = jnp.concatenate(tokens, 1)
        x = Dropout(self.dropout)(x, train)
        x = Stack(config, name="blocks")(x, train=train)[0]
        x = nn.LayerNorm(epsilon=1e-5, name="norm")(x[:, : values.shape[-1]])
        raw = linear(self.horizon * self.output.size, self.width, "head")(x)
        return forecast_of(self, raw, loc, scale)
