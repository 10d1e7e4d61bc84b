"""What a transformer is made of: its config, its blocks, and the stack of them."""

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
    """What a transformer is.

    Attributes:
        vocabulary: how many tokens there are.
        context: the longest sequence; the rows of learned positions.
        depth: blocks, of the encoder and the decoder each where there are both.
        heads: of queries.
        width: of the residual stream, D.
        hidden: of the feed-forward network; 4 * width by default.
        kv_heads: heads of keys and values; as many as `heads` by default, 1 is multi-query.
        head_width: width / heads by default.
        causal: a token sees none that comes later.
        window: it sees the last so many tokens, itself included; all by default.
        position: "learned", "sinusoidal", "rotary", "relative" (T5's biases, shared by the layers)
            or "none".
        norm: "layer" or "rms".
        post_norm: normalise after each sum, as in BERT and the first transformer; before each
            branch by default.
        activation: "gelu", "gelu_exact", "relu", "relu2" (squared ReLU, So et al. 2021,
            arXiv:2109.08668), or with a gate "swiglu", "geglu" (Shazeer 2020, arXiv:2002.05202).
        bias: of dense layers and layer norms.
        qk_norm: see `Attention`.
        tied: logits are products with the tokens' embeddings (Press and Wolf 2017).
        dropout: of embeddings and of each branch in training. The weights of attention are not
            dropped: fused kernels have no dropout.
        scan: blocks are one loop over stacked parameters, which compiles once for all of them.
        remat: keep of each block its input alone for the gradient (Chen et al. 2016).
        epsilon: of the norms.
        rotary_base: see `rotary`.
        attention_scale: 1 / sqrt(head_width) by default; T5 has 1.
        logit_scale: multiplies what the logits are made of; T5 has width ** -0.5.
        embedding_norm: normalise the embeddings, as BERT does.
        segment_types: rows of an embedding of a token's type, as BERT has 2; 0 has none.
        masked_head: BERT's head, a dense layer, activation and norm before the logits, and a bias.
        embedding_scale: multiplies a token's embedding where it comes in; SASRec has sqrt(width).
        gated_residual: multiply each branch by sigmoid(x W) of what came in (LiGR; Borisyuk et al.
            2025, arXiv:2502.03417).

    Raises:
        ValueError: a combination that cannot be meant.
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
                raise ValueError(f"{name}: {getattr(self, name)!r} found, one of {known} wanted")
        sizes = ("vocabulary", "context", "depth", "heads", "width")
        for name in (*sizes, "hidden", "kv_heads", "head_width"):
            found = getattr(self, name)
            if (name in sizes or found is not None) and found < 1:
                raise ValueError(f"{name}: {found} found, at least 1 wanted")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} found, at least 0 and below 1 wanted")
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"width: {self.width} found, a multiple of {self.heads} heads wanted")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"kv_heads: {self.kv_heads} found, a divisor of {self.heads} wanted")
        if self.position == "rotary" and self.per_head % 2:
            raise ValueError(f"head_width: {self.per_head} found, an even one wanted for rotary")
        if self.position == "sinusoidal" and self.width % 2:
            raise ValueError(f"width: {self.width} found, an even one wanted for sinusoidal")
        if self.window is not None and (self.window < 1 or not self.causal):
            raise ValueError(
                f"window: {self.window}, causal: {self.causal} found; at least 1, "
                "and causal, wanted"
            )

    @property
    def per_head(self) -> int:
        """H, the width of a head."""
        return self.head_width or self.width // self.heads


def norm(config: TransformerConfig, name: str | None = None) -> nn.Module:
    """The config's norm: `LayerNorm`, or `RMSNorm` (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    if config.norm == "rms":
        return nn.RMSNorm(epsilon=config.epsilon, name=name)
    return nn.LayerNorm(epsilon=config.epsilon, use_bias=config.bias, name=name)


class FeedForward(nn.Module):
    """Dense, activation, dense; with a gate the activation of a second product multiplies."""

    config: TransformerConfig
    out_std: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, T, D) to the same."""
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
    """Attention, attention over a memory if `cross`, feed-forward; each added to what came in.

    Attributes:
        config: of the transformer.
        cross: there is a memory.
        train: drop.
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
        """x (B, T, D) to the same, and keys and values: of x, or the cache, and of the memory."""
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
    """The blocks, what they share (relative positions), and the last norm."""

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
        """x (B, T, D) to the same, and the keys and values of all layers."""
        config, length = self.config, x.shape[1]
        if cache is None:
            slot: Array | int = 0
            own = others = arange(length) if positions is None else positions
        else:
            slot = cache.length
            own = arange(length) + slot - cache.start[:, None]
            slots = jax.tree.leaves(cache.layers)[0].shape[-1]  # of keys
            others = arange(slots) - cache.start[:, None]
        mask = None
        if cache is not None:
            mask = attention_mask(own, others, own >= 0, others >= 0, True, config.window)
        elif not (config.causal and positions is None and segments is None):
            mask = attention_mask(own, others, segments, segments, config.causal, config.window)
        bias = None
        if config.position == "relative":
            bucket = relative_bucket(others[:, None] - own[:, :, None], config.causal)
            init = nn.initializers.normal(0.02)
            table = nn.Embed(32, config.heads, embedding_init=init, name="relative")
            bias = table(bucket).transpose(0, 3, 1, 2)
        shared = (memory, own, mask, bias, memory_mask, slot)
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
            own = None if caches is None else caches[i]
            known = None if remembered is None else remembered[i]
            x, state = block(*arguments, name=f"block_{i}")(x, own, known, *shared)
            states.append(state)
        kept, remembered = zip(*states, strict=True)
        # None without a memory, as in an empty cache: so a cache can be a loop's carry
        return x, (kept, remembered if self.cross else None)


def arange(length: int) -> Array:
    """Positions 0 to length - 1, (1, length)."""
    return jnp.arange(length)[None]
