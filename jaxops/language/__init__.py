"""Models that read and write: transformers, how they learn, and what they answer."""

from jaxops.language.generate import Answer, generate, stream
from jaxops.language.models import bert_base, gpt2, llama_style, nanogpt, t5_small
from jaxops.language.pretrained import load_pretrained

__all__ = [
    "Answer",
    "bert_base",
    "generate",
    "gpt2",
    "llama_style",
    "load_pretrained",
    "nanogpt",
    "stream",
    "t5_small",
]
