"""Models that read and write: transformers, how they learn, and what they answer."""

from jaxops.language.models import bert_base, gpt2, llama_style, nanogpt, t5_small
from jaxops.language.recurrent import Recurrent

__all__ = ["Recurrent", "bert_base", "gpt2", "llama_style", "nanogpt", "t5_small"]
