"""Known transformers: their shapes, with the parameter counts that are published for them."""

from dataclasses import replace
from typing import Any

from jaxops.nn import EncoderDecoder, Transformer, TransformerConfig

GPT2 = TransformerConfig(
    vocabulary=50_257, context=1024, layers=12, heads=12, width=768, dropout=0.1
)
NANOGPT = TransformerConfig(
    vocabulary=65,
    context=256,
    layers=6,
    heads=6,
    width=384,
    activation="gelu_exact",
    bias=False,
    dropout=0.2,
)
BERT_BASE = TransformerConfig(
    vocabulary=30_522,
    context=512,
    layers=12,
    heads=12,
    width=768,
    causal=False,
    post_norm=True,
    activation="gelu_exact",
    dropout=0.1,
    epsilon=1e-12,
    embedding_norm=True,
    segment_types=2,
    masked_head=True,
)
T5_SMALL = TransformerConfig(
    vocabulary=32_128,
    context=512,
    layers=6,
    heads=8,
    width=512,
    head_width=64,
    position="relative",
    norm="rms",
    activation="relu",
    bias=False,
    dropout=0.1,
    epsilon=1e-6,
    attention_scale=1.0,
    logit_scale=512**-0.5,
)
TINY_LLAMA = TransformerConfig(
    vocabulary=32_000,
    context=2048,
    layers=22,
    heads=32,
    width=2048,
    hidden=5632,
    kv_heads=4,
    position="rotary",
    norm="rms",
    activation="swiglu",
    bias=False,
    tied=False,
    scan=True,
)


def gpt2(**changes: Any) -> Transformer:
    """GPT-2 small: 124,439,808 parameters (Radford et al. 2019).

    Args:
        changes: other fields of `TransformerConfig`; `layers=24, heads=16, width=1024` is medium.

    >>> gpt2(context=128).config.context
    128
    """
    return Transformer(replace(GPT2, **changes))


def nanogpt(**changes: Any) -> Transformer:
    """nanoGPT's network for characters, as its setting for a GPU has it: 10,745,088 parameters.

    That for a CPU is `nanogpt(context=64, layers=4, heads=4, width=128, dropout=0.0)`. A.
    Karpathy, nanoGPT, config/train_shakespeare_char.py, where positions are not counted (10.65M).

    Args:
        changes: other fields of `TransformerConfig`.
    """
    return Transformer(replace(NANOGPT, **changes))


def bert_base(**changes: Any) -> Transformer:
    """BERT base, uncased, with the head for masked tokens: 109,514,298 parameters.

    Devlin et al. 2018, arXiv:1810.04805, which has 110M with a pooler in place of the head.

    Args:
        changes: other fields of `TransformerConfig`.
    """
    return Transformer(replace(BERT_BASE, **changes))


def t5_small(**changes: Any) -> EncoderDecoder:
    """T5 small: 60,506,624 parameters (Raffel et al. 2020, arXiv:1910.10683).

    Args:
        changes: other fields of `TransformerConfig`; of another width, `logit_scale` too.
    """
    return EncoderDecoder(replace(T5_SMALL, **changes))


def llama_style(**changes: Any) -> Transformer:
    """Llama's kind: rotary, RMSNorm, SwiGLU, no biases, grouped heads, untied, in a scan.

    TinyLlama's size, 1,100,048,384 parameters (Zhang et al. 2024, arXiv:2401.02385). Llama 2 7B
    (Touvron et al. 2023, arXiv:2307.09288), of 6,738,415,616, is `llama_style(context=4096,
    layers=32, kv_heads=32, width=4096, hidden=11_008)`.

    Args:
        changes: other fields of `TransformerConfig`.
    """
    return Transformer(replace(TINY_LLAMA, **changes))
