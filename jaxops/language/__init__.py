"""Language models: pre-training and fine-tuning of transformers, and generation of text.

`jobs` has one function for each job: `fit`, `evaluate`, `update`. `data` makes rows of tokens,
`models` has the Flax modules, `tasks` says what to learn, and `inference` generates text.
`finetune` freezes or adapts parameters (LoRA), and `pretrained` reads published weights.
"""

from jaxops.data.packing import Packed, pack
from jaxops.language.data import Likelihoods, TokenReader, padded, windows
from jaxops.language.finetune import adapt, frozen, layerwise, lora, merge
from jaxops.language.inference import Answer, generate, stream
from jaxops.language.jobs import evaluate, fit, recipe, update
from jaxops.language.models import Recurrent, bert_base, gpt2, llama_style, nanogpt, t5_small
from jaxops.language.pretrained import load_pretrained
from jaxops.language.tasks import (
    exact_match,
    masked_tokens,
    next_token,
    sequence_to_sequence,
    span_corruption,
)

__all__ = [
    "Answer",
    "Likelihoods",
    "Packed",
    "Recurrent",
    "TokenReader",
    "adapt",
    "bert_base",
    "evaluate",
    "exact_match",
    "fit",
    "frozen",
    "generate",
    "gpt2",
    "layerwise",
    "llama_style",
    "load_pretrained",
    "lora",
    "masked_tokens",
    "merge",
    "nanogpt",
    "next_token",
    "pack",
    "padded",
    "recipe",
    "sequence_to_sequence",
    "span_corruption",
    "stream",
    "t5_small",
    "update",
    "windows",
]
