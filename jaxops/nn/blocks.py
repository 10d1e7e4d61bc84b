"""The parts of a transformer: its config, its blocks, and the stack of blocks."""

import functools
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.nn.attention import Attention, attention_mask, relative_bucket
from jaxops.nn.product import Array, Dense
from jaxops.task import recorded

POSITIONS = ("learned", "sinusoidal", "rotary", "relative", "none")
ACTIVATIONS = {
    "gelu": nn.gelu,  # by tanh, as GPT-2 has it
    "gelu_exact": lambda x: nn.gelu(x, approximate=False),
    "relu": nn.relu,
    "relu2": lambda x: jnp.square(nn.relu(x)),
    "swiglu": nn.silu,  # of the gate
    "geglu": nn.gelu,
}


@recorded(formerly={"layers": "depth"})
@dataclass(frozen=True)
class TransformerConfig:
    """The configuration of a `Transformer` or an `EncoderDecoder`.

    Attributes:
        vocabulary: number of tokens.
        context: largest number of tokens in a row.
        depth: number of blocks; an encoder-decoder has as many in each part.
        heads: of queries.
        width: D, of the residual stream.
        hidden: width of the feed-forward network; 4 * width by default.
        kv_heads: heads of keys and values; as many as `heads` by default, 1 is multi-query.
        head_width: width / heads by default.
        causal: a token attends to no later token.
        window: a token attends to the last `window` tokens, itself included; all by default.
        position: "learned", "sinusoidal", "rotary", "relative" (T5's biases, shared by the blocks)
            or "none".
        norm: "layer" or "rms".
        post_norm: normalise after each residual sum, as in BERT and the original transformer;
            before each branch by default.
        activation: "gelu", "gelu_exact", "relu", "relu2" (squared ReLU, So et al. 2021,
            arXiv:2109.08668), or with a gate "swiglu", "geglu" (Shazeer 2020, arXiv:2002.05202).
        bias: of dense layers and layer norms.
        qk_norm: see `Attention`.
        tied: logits are products with the tokens' embeddings (Press and Wolf 2017,
            arXiv:1608.05859).
        dropout: of embeddings and of each branch in training. Attention weights are not dropped:
            fused kernels have no dropout.
        scan: the blocks are one loop over stacked parameters, which compiles one block.
        remat: store only each block's input for the gradient, and compute the rest again (Chen
            et al. 2016, arXiv:1604.06174).
        epsilon: added to the variance in the norms.
        rotary_base: see `rotary`.
        attention_scale: 1 / sqrt(head_width) by default; T5 has 1.
        logit_scale: multiplies the hidden states before the logits; T5 has width ** -0.5.
        embedding_norm: normalise the embeddings, as BERT does.
        segment_types: number of token types with an embedding; BERT has 2, 0 is none.
        masked_head: BERT's head, a dense layer, activation and norm before the logits, and a bias.
        embedding_scale: multiplies a token's embedding at the input; SASRec has sqrt(width).
        gated_residual: multiply each branch by sigmoid(x W) of the block's input x (LiGR;
            Borisyuk et al. 2025, arXiv:2502.03417).

    Raises:
        ValueError: an unknown word, a size below 1, or a combination that makes no sense.

    >>> TransformerConfig(vocabulary=65, context=8, depth=2, heads=2, width=16).per_head
    8
    """

    vocabulary: int
    context: int
    depth: int
    heads: int
    width: int
    hidden: int | None = None
    kv_heads: int | None = None
    head_width: int | None = None
    causal: bool = True
    window: int | None = None
    position: str = "learned"
    norm: str = "layer"
    post_norm: bool = False
    activation: str = "gelu"
    bias: bool = True
    qk_norm: bool = False
    tied: bool = True
    dropout: float = 0.0
    scan: bool = False
    remat: bool = False
    epsilon: float = 1e-5
    rotary_base: float = 10_000.0
    attention_scale: float | None = None
    logit_scale: float = 1.0
    embedding_norm: bool = False
    segment_types: int = 0
    masked_head: bool = False
    embedding_scale: float = 1.0
    gated_residual: bool = False

    def __post_init__(self) -> None:
        words: dict[str, Any] = {
            "position": POSITIONS,
            "norm": ("layer", "rms"),
            "activation": tuple(ACTIVATIONS),
        }
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        sizes = ("vocabulary", "context", "depth", "heads", "width")
        for name in (*sizes, "hidden", "kv_heads", "head_width"):
            size = getattr(self, name)
            if (name in sizes or size is not None) and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"width must be a multiple of {self.heads} (heads), got {self.width}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"kv_heads must divide {self.heads} (heads), got {self.kv_heads}")
        if self.position == "rotary" and self.per_head % 2:
            raise ValueError(f"head_width must be even for rotary positions, got {self.per_head}")
        if self.position == "sinusoidal" and self.width % 2:
            raise ValueError(f"width must be even for sinusoidal positions, got {self.width}")
        if self.window is not None and (self.window < 1 or not self.causal):
            raise ValueError(
                f"window must be at least 1 and causal True, got {self.window} and {self.causal}"
            )

    @property
    def per_head(self) -> int:
        """H, the width of a head."""
        return self.head_width or self.width // self.heads


def norm(config: TransformerConfig, name: str | None = None) -> nn.Module:
    """Make `LayerNorm`, or `RMSNorm` (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    if config.norm == "rms":
        return nn.RMSNorm(epsilon=config.epsilon, name=name)
    return nn.LayerNorm(epsilon=config.epsilon, use_bias=config.bias, name=name)


class FeedForward(nn.Module):
    """Dense, activation, dense; gated activations multiply by a second dense product."""

    config: TransformerConfig
    out_std: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, T, D) to (B, T, D)."""
        config, hidden = self.config, self.config.hidden or 4 * self.config.width
        act, init = ACTIVATIONS[config.activation], nn.initializers.normal(0.02)
        if config.activation.endswith("glu"):
            both = Dense(2 * hidden, config.bias, kernel_init=init, name="gate_up")(x)
            gate, up = jnp.split(both, 2, axis=-1)
            y = act(gate) * up
        else:
            y = act(Dense(hidden, config.bias, kernel_init=init, name="up")(x))
        init = nn.initializers.normal(self.out_std)
        return Dense(config.width, config.bias, kernel_init=init, name="down")(y)


class Block(nn.Module):
    """A transformer block: attention, then cross-attention if `cross`, then feed-forward.

    Each branch is added to its input: x + branch(norm(x)), or norm(x + branch(x)) with
    `config.post_norm`.

    Attributes:
        config: of the transformer.
        cross: attend over a memory as well.
        train: apply dropout.

    >>> config = TransformerConfig(vocabulary=65, context=8, depth=2, heads=2, width=16)
    >>> x, positions = jnp.ones((1, 8, 16)), jnp.arange(8)[None]
    >>> arguments = (x, None, None, None, positions, None, None, None, 0)
    >>> shapes = jax.eval_shape(Block(config).init, jax.random.key(0), *arguments)
    >>> sorted(shapes["params"])
    ['attention', 'attention_norm', 'feed_forward', 'feed_forward_norm']
    """

    config: TransformerConfig
    cross: bool = False
    train: bool = False

    def setup(self) -> None:
        """The branches, their norms and their dropout."""
        config = self.config
        branches = 3 if self.cross else 2
        std = 0.02 / (branches * config.depth) ** 0.5  # GPT-2: the sum's variance stays
        attention = functools.partial(
            Attention,
            features=config.width,
            heads=config.heads,
            kv_heads=config.kv_heads or config.heads,
            head_width=config.per_head,
            bias=config.bias,
            qk_norm=config.qk_norm,
            epsilon=config.epsilon,
            scale=config.attention_scale,
            out_std=std,
        )
        self.attention = attention(
            rotary_base=config.rotary_base if config.position == "rotary" else None,
            causal=config.causal,
            window=config.window,
        )
        self.attention_norm = norm(config)
        if self.cross:
            self.cross_attention = attention(cross=True)
            self.cross_norm = norm(config)
        self.feed_forward = FeedForward(config, std)
        self.feed_forward_norm = norm(config)
        self.drop = nn.Dropout(config.dropout, deterministic=not self.train)
        if config.gated_residual:
            gate = functools.partial(Dense, config.width, config.bias)
            self.gates = [gate(kernel_init=nn.initializers.normal(0.02)) for _ in range(branches)]

    def __call__(
        self,
        x: Array,
        cache: Any,
        remembered: Any,
        memory: Any,
        positions: Array,
        mask: Array | None,
        bias: Array | None,
        memory_mask: Array | None,
        slot: Array | int,
    ) -> tuple[Array, tuple[Any, Any]]:
        """Apply the branches.

        Args:
            x: (B, T, D).
            cache: keys and values so far, see `Attention`, or `None`.
            remembered: keys and values of the memory, or `None` to compute them of `memory`.
            memory: (B, S, D), or `None`.
            positions: int (B or 1, T).
            mask: see `Attention`.
            bias: see `Attention`.
            memory_mask: bool (B or 1, 1, T or 1, S), or `None`.
            slot: see `Attention`.

        Returns:
            (B, T, D); and the keys and values of x (or the cache with them) and of the memory.
        """
        state = {}

        def attend(x: Array) -> Array:
            y, state["kept"] = self.attention(x, positions, mask, bias, cache, slot)
            return y

        x = self._branch(attend, self.attention_norm, x, 0)
        if self.cross:
            if remembered is None:
                remembered = self.cross_attention.remember(memory)
            x = self._branch(
                lambda x: self.cross_attention.recall(x, remembered, memory_mask),
                self.cross_norm,
                x,
                1,
            )
        x = self._branch(self.feed_forward, self.feed_forward_norm, x, -1)
        return x, (state["kept"], remembered)

    def _branch(self, branch: Any, norm: nn.Module, x: Array, number: int) -> Array:
        gate = nn.sigmoid(self.gates[number](x)) if self.config.gated_residual else 1.0
        if self.config.post_norm:
            return norm(x + self.drop(branch(x)) * gate)
        return x + self.drop(branch(norm(x))) * gate


class Stack(nn.Module):
    """The blocks, the relative positions that they share, and the last norm."""

    config: TransformerConfig
    cross: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        positions: Array | None = None,
        segments: Array | None = None,
        *,
        memory: Array | None = None,
        memory_mask: Array | None = None,
        cache: Any = None,
        train: bool = False,
    ) -> tuple[Array, Any]:
        """(B, T, D) to (B, T, D), and the keys and values of all blocks."""
        config, length = self.config, x.shape[1]
        if cache is None:
            slot: Array | int = 0
            places = key_places = arange(length) if positions is None else positions
        else:
            slot = cache.length
            places = arange(length) + (jnp.reshape(slot, (-1, 1)) - cache.start[:, None])
            slots = jax.tree.leaves(cache.layers)[0].shape[-1]  # of keys
            key_places = arange(slots) - cache.start[:, None]
        mask = None
        if cache is not None:
            mask = attention_mask(
                places, key_places, places >= 0, key_places >= 0, True, config.window
            )
        elif not (config.causal and positions is None and segments is None):
            mask = attention_mask(
                places, key_places, segments, segments, config.causal, config.window
            )
        bias = None
        if config.position == "relative":
            bucket = relative_bucket(key_places[:, None] - places[:, :, None], config.causal)
            init = nn.initializers.normal(0.02)
            table = nn.Embed(32, config.heads, embedding_init=init, name="relative")
            bias = table(bucket).transpose(0, 3, 1, 2)
        shared = (memory, places, mask, bias, memory_mask, slot)
        caches, remembered = (None, None) if cache is None else (cache.layers, cache.memory)
        x, state = self._blocks(x, caches, remembered, shared, train)
        return (x if config.post_norm else norm(config, "norm")(x)), state

    def _blocks(
        self, x: Array, caches: Any, remembered: Any, shared: Any, train: bool
    ) -> tuple[Array, Any]:
        config = self.config
        arguments = (config, self.cross, train)
        block: Any = nn.remat(Block, prevent_cse=not config.scan) if config.remat else Block
        if config.scan:
            over = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, 0, *[nn.broadcast] * len(shared)),
                length=config.depth,
            )
            return over(*arguments, name="blocks")(x, caches, remembered, *shared)
        states = []
        for i in range(config.depth):
            cache = None if caches is None else caches[i]
            memory = None if remembered is None else remembered[i]
            x, state = block(*arguments, name=f"block_{i}")(x, cache, memory, *shared)
            states.append(state)
        kept, remembered = zip(*states, strict=True)
        # None without a memory, as in an empty cache, so that a cache can be the carry of a loop
        return x, (kept, remembered if self.cross else None)


def arange(length: int) -> Array:
    """Positions 0 to length - 1, (1, length)."""
    return jnp.arange(length)[None]
