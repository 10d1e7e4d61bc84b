"""Models that read and write: transformers, how they learn, and what they answer."""

from jaxops.language.models import bert_base, gpt2, llama_style, nanogpt, t5_small
from jaxops.language.pretrained import load_pretrained

__all__ = ["bert_base", "gpt2", "llama_style", "load_pretrained", "nanogpt", "t5_small"]
