"""The names that Hugging Face gives to settings and tensors of GPT-2, BERT, T5 and Llama."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from jaxops.nn import EncoderDecoder, Transformer, TransformerConfig

Settings = dict[str, Any]  # the contents of a config.json

# name of an activation in config.json -> `TransformerConfig.activation`
ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu": "gelu_exact",
    "relu": "relu",
    "relu2": "relu2",
}
GATED = {"silu": "swiglu", "gelu_new": "geglu", "gelu_pytorch_tanh": "geglu"}

# path of a module or parameter in jaxops -> its names in the file; several are concatenated
Names = dict[str, tuple[str, ...]]
GPT2: Names = {
    "embedding.tokens": ("wte.weight",),
    "embedding.positions": ("wpe.weight",),
    "stack.norm": ("ln_f",),
    "stack.block_#.attention_norm": ("h.#.ln_1",),
    "stack.block_#.attention.qkv": ("h.#.attn.c_attn",),
    "stack.block_#.attention.out": ("h.#.attn.c_proj",),
    "stack.block_#.feed_forward_norm": ("h.#.ln_2",),
    "stack.block_#.feed_forward.up": ("h.#.mlp.c_fc",),
    "stack.block_#.feed_forward.down": ("h.#.mlp.c_proj",),
}
BERT: Names = {
    "embedding.tokens": ("embeddings.word_embeddings.weight",),
    "embedding.positions": ("embeddings.position_embeddings.weight",),
    "embedding.types": ("embeddings.token_type_embeddings.weight",),
    "embedding.norm": ("embeddings.LayerNorm",),
    "embedding.head_dense": ("cls.predictions.transform.dense",),
    "embedding.head_norm": ("cls.predictions.transform.LayerNorm",),
    "embedding.head_bias": ("cls.predictions.bias",),
    "stack.block_#.attention.qkv": (
        "encoder.layer.#.attention.self.query",
        "encoder.layer.#.attention.self.key",
        "encoder.layer.#.attention.self.value",
    ),
    "stack.block_#.attention.out": ("encoder.layer.#.attention.output.dense",),
    "stack.block_#.attention_norm": ("encoder.layer.#.attention.output.LayerNorm",),
    "stack.block_#.feed_forward.up": ("encoder.layer.#.intermediate.dense",),
    "stack.block_#.feed_forward.down": ("encoder.layer.#.output.dense",),
    "stack.block_#.feed_forward_norm": ("encoder.layer.#.output.LayerNorm",),
}
LLAMA: Names = {
    "embedding.tokens": ("embed_tokens.weight",),
    "embedding.head": ("lm_head",),
    "stack.norm": ("norm",),
    "stack.block_#.attention_norm": ("layers.#.input_layernorm",),
    "stack.block_#.attention.qkv": tuple(f"layers.#.self_attn.{x}_proj" for x in "qkv"),
    "stack.block_#.attention.out": ("layers.#.self_attn.o_proj",),
    "stack.block_#.feed_forward_norm": ("layers.#.post_attention_layernorm",),
    "stack.block_#.feed_forward.gate_up": ("layers.#.mlp.gate_proj", "layers.#.mlp.up_proj"),
    "stack.block_#.feed_forward.down": ("layers.#.mlp.down_proj",),
}


def _t5_stack(ours: str, theirs: str, last: int) -> Names:
    """The names in the encoder or decoder, whose feed-forward network is its layer `last`."""
    block, layer = f"{ours}.block_#", f"{theirs}.block.#.layer"
    attention, dense = f"{layer}.0.SelfAttention", f"{layer}.{last}.DenseReluDense"
    first = attention.replace("#", "0")
    return {
        f"{ours}.relative": (f"{first}.relative_attention_bias",),
        f"{ours}.norm": (f"{theirs}.final_layer_norm",),
        f"{block}.attention_norm": (f"{layer}.0.layer_norm",),
        f"{block}.attention.qkv": tuple(f"{attention}.{x}" for x in "qkv"),
        f"{block}.attention.out": (f"{attention}.o",),
        f"{block}.feed_forward_norm": (f"{layer}.{last}.layer_norm",),
        f"{block}.feed_forward.up": (f"{dense}.wi",),
        f"{block}.feed_forward.gate_up": (f"{dense}.wi_0", f"{dense}.wi_1"),
        f"{block}.feed_forward.down": (f"{dense}.wo",),
    }


_CROSS = "decoder.block.#.layer.1"
T5: Names = {
    "embedding.tokens": ("shared.weight",),
    "embedding.head": ("lm_head",),
    **_t5_stack("encoder", "encoder", 1),
    **_t5_stack("stack", "decoder", 2),
    "stack.block_#.cross_norm": (f"{_CROSS}.layer_norm",),
    "stack.block_#.cross_attention.query": (f"{_CROSS}.EncDecAttention.q",),
    "stack.block_#.cross_attention.key_value": tuple(f"{_CROSS}.EncDecAttention.{x}" for x in "kv"),
    "stack.block_#.cross_attention.out": (f"{_CROSS}.EncDecAttention.o",),
}


def _gpt2(settings: Settings) -> TransformerConfig:
    _only(settings, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    _only(settings, add_cross_attention=False, tie_word_embeddings=True)
    return TransformerConfig(
        vocabulary=settings["vocab_size"],
        context=settings["n_positions"],
        depth=settings["n_layer"],
        heads=settings["n_head"],
        width=settings["n_embd"],
        hidden=settings.get("n_inner"),
        activation=_word(settings, "activation_function", ACTIVATIONS, "gelu_new"),
        dropout=settings.get("resid_pdrop", 0.1),
        epsilon=settings.get("layer_norm_epsilon", 1e-5),
    )


def _bert(settings: Settings) -> TransformerConfig:
    _only(settings, position_embedding_type="absolute", is_decoder=False, tie_word_embeddings=True)
    return TransformerConfig(
        vocabulary=settings["vocab_size"],
        context=settings["max_position_embeddings"],
        depth=settings["num_hidden_layers"],
        heads=settings["num_attention_heads"],
        width=settings["hidden_size"],
        hidden=settings["intermediate_size"],
        causal=False,
        post_norm=True,
        activation=_word(settings, "hidden_act", ACTIVATIONS, "gelu"),
        dropout=settings.get("hidden_dropout_prob", 0.1),
        epsilon=settings.get("layer_norm_eps", 1e-12),
        embedding_norm=True,
        segment_types=settings["type_vocab_size"],
        masked_head=True,
    )


def _t5(settings: Settings) -> TransformerConfig:
    layers, width = settings["num_layers"], settings["d_model"]
    # a missing or null field means that there are equally many decoder layers
    _only(settings, num_decoder_layers=layers, relative_attention_num_buckets=32)
    _only(settings, relative_attention_max_distance=128)
    tied = settings.get("tie_word_embeddings", True)
    gated = "gated-gelu", "gated-silu"
    known = {**ACTIVATIONS, **dict(zip(gated, ("geglu", "swiglu"), strict=True))}
    return TransformerConfig(
        vocabulary=settings["vocab_size"],
        context=settings.get("n_positions", 512),
        depth=layers,
        heads=settings["num_heads"],
        width=width,
        hidden=settings["d_ff"],
        head_width=settings["d_kv"],
        position="relative",
        norm="rms",
        activation=_word(settings, "feed_forward_proj", known, "relu"),
        bias=False,
        tied=tied,
        dropout=settings.get("dropout_rate", 0.1),
        epsilon=settings.get("layer_norm_epsilon", 1e-6),
        attention_scale=1.0,
        logit_scale=width**-0.5 if settings.get("scale_decoder_outputs", tied) else 1.0,
    )


def _llama(settings: Settings) -> TransformerConfig:
    rope = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_scaling must be none (others are not supported), got {kind!r}")
    bias = settings.get("attention_bias", False)
    _only({"mlp_bias": False, **settings}, mlp_bias=bias)
    return TransformerConfig(
        vocabulary=settings["vocab_size"],
        context=settings["max_position_embeddings"],
        depth=settings["num_hidden_layers"],
        heads=settings["num_attention_heads"],
        width=settings["hidden_size"],
        hidden=settings["intermediate_size"],
        kv_heads=settings.get("num_key_value_heads"),
        head_width=settings.get("head_dim"),
        position="rotary",
        norm="rms",
        activation=_word(settings, "hidden_act", GATED, "silu"),
        bias=bias,
        tied=settings.get("tie_word_embeddings", False),
        epsilon=settings.get("rms_norm_eps", 1e-6),
        rotary_base=settings.get("rope_theta", rope.get("rope_theta", 10_000.0)),
    )


def _only(settings: Settings, **supported: Any) -> None:
    for name, value in supported.items():
        setting = settings.get(name, value)
        if setting != value and setting is not None:
            raise ValueError(f"config.json: {name} must be {value!r}, got {setting!r}")


def _word(settings: Settings, name: str, known: dict[str, str], default: str) -> str:
    setting = settings.get(name, default)
    if setting not in known:
        raise ValueError(f"config.json: {name} must be one of {tuple(known)}, got {setting!r}")
    return known[setting]


class Family(NamedTuple):
    """How the files of one family of models are read.

    Attributes:
        config: makes the config from the settings in config.json.
        names: see `Names`.
        spare: a pattern for tensors that are not needed: masks, copies of tied embeddings, heads
            for other tasks.
        module: makes the Flax module from the config.
        transposed: whether kernels are (out, in), as in PyTorch's `Linear`.
    """

    config: Callable[[Settings], TransformerConfig]
    names: Names
    spare: str
    module: Callable[[TransformerConfig], Any] = Transformer
    transposed: bool = True


def _t5_encoder(settings: Settings) -> TransformerConfig:
    """The config for a file without a decoder; whether embeddings are tied concerns the decoder."""
    return replace(_t5(settings), causal=False, tied=True)


HEADS = r"(classifier|classification_head|qa_outputs|score)\..*"
"""Heads of fine-tuned models: for classes of texts or tokens, and for spans of answers."""
FAMILIES = {
    "gpt2": Family(
        _gpt2, GPT2, rf"h\.\d+\.attn\.(masked_)?bias|lm_head\.weight|{HEADS}", transposed=False
    ),
    "bert": Family(
        _bert,
        BERT,
        # the head for masked tokens is read if the config has one
        rf"embeddings\.position_ids|pooler\..*|cls\..*|{HEADS}",
    ),
    "t5": Family(
        _t5,
        T5,
        rf"(encoder|decoder)\.embed_tokens\.weight|lm_head\.weight|{HEADS}"
        r"|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
        EncoderDecoder,
    ),
    "llama": Family(
        _llama, LLAMA, rf"layers\.\d+\.self_attn\.rotary_emb\.inv_freq|lm_head\.weight|{HEADS}"
    ),
}
T5_ENCODER = Family(
    _t5_encoder,
    {"embedding.tokens": ("shared.weight",), **_t5_stack("stack", "encoder", 1)},
    rf"encoder\.embed_tokens\.weight|{HEADS}",
)
"""Files of `model_type` t5 that have no decoder."""
