"""Small transformers of every kind, and what a row of packed documents is: shared by tests."""

import functools

import jax
import numpy as np
import pytest

from jaxops.nn import EncoderDecoder, Transformer, TransformerConfig

SMALL = {"vocabulary": 11, "context": 12, "depth": 2, "heads": 4, "width": 16, "hidden": 24}
LLAMA = {"position": "rotary", "norm": "rms", "activation": "swiglu", "bias": False}
T5 = {"position": "relative", "norm": "rms", "bias": False, "attention_scale": 1.0}
BERT = {
    "causal": False,
    "post_norm": True,
    "activation": "gelu_exact",
    "epsilon": 1e-12,
    "embedding_norm": True,
    "segment_types": 2,
    "masked_head": True,
}
KINDS = {
    "gpt2": {},
    "nanogpt": {"activation": "gelu_exact", "bias": False},
    "llama": {**LLAMA, "kv_heads": 2, "tied": False},
    "fast": {**LLAMA, "activation": "relu2", "kv_heads": 1, "qk_norm": True, "window": 3},
    "bert": BERT,
    "t5 decoder": {**T5, "activation": "relu", "logit_scale": 0.25},
    "t5 encoder": {**T5, "activation": "geglu", "causal": False, "head_width": 6, "tied": False},
    "vaswani": {"position": "sinusoidal", "post_norm": True, "activation": "relu", "window": 4},
    "no positions": {"position": "none", "kv_heads": 2, "qk_norm": True},
}
# those of which another kind has every part are slow
SLOW = ("nanogpt", "no positions")
each_kind = pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k in SLOW)) for k in KINDS]
)

# two rows of documents, with padding behind them
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 0], [1, 2, 2, 2, 2, 2, 2, 2, 0, 0]], np.int32)
PLACES = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0], [0, 0, 1, 2, 3, 4, 5, 6, 0, 0]], np.int32)
TOKENS = np.random.default_rng(0).integers(0, 11, SEGMENTS.shape, np.int32)
REAL = (SEGMENTS > 0)[..., None]
WEIGHT = np.random.default_rng(1).normal(size=(*TOKENS.shape, 11)).astype(np.float32) * REAL


def config_of(kind, **changes):
    return TransformerConfig(**{**SMALL, **KINDS[kind], **changes})


def random_params(model, *inputs):
    """Larger than at the start, and no bias 0 or scale 1: so that each of them matters."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(5)

    def draw(path, leaf):
        start = 1.0 if path[-1].key == "scale" else 0.0
        return (start + 0.3 * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def params_of(config):
    return random_params(Transformer(config), TOKENS)


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, tokens, segments, positions):
    """One program for all tests of a config."""

    def total(params):
        logits = Transformer(config).apply({"params": params}, tokens, segments, positions)
        return (logits * WEIGHT).sum(), logits

    return jax.value_and_grad(total, has_aux=True)(params)


@functools.cache
def learned(config):
    """Logits, the weighted sum of them, and its gradient."""
    (value, logits), gradient = run(config, params_of(config), TOKENS, SEGMENTS, PLACES)
    return logits, value, gradient


def logits_of(config, tokens, segments):
    """Of rows (2, 10), of one document each."""
    places = np.tile(np.arange(10, dtype=np.int32), (2, 1))
    return run(config, params_of(config), tokens, segments, places)[0][1]


def stacked(params, layers):
    """Parameters of blocks in a loop, as those of one scan."""
    if "block_0" not in params:
        return {k: stacked(v, layers) if isinstance(v, dict) else v for k, v in params.items()}
    blocks = [params[f"block_{i}"] for i in range(layers)]
    others = {k: v for k, v in params.items() if not k.startswith("block_")}
    return {**others, "blocks": jax.tree.map(lambda *x: np.stack(x), *blocks)}


@functools.cache
def pair_of(config):
    """An encoder-decoder's parameters."""
    return random_params(EncoderDecoder(config), TOKENS, TOKENS)


@functools.partial(jax.jit, static_argnums=0)
def pair_logits(config, params, source, target, sources, targets):
    """Of an encoder-decoder: one program for all tests of a config with sources (2, 10)."""
    return EncoderDecoder(config).apply({"params": params}, source, target, sources, targets)
