"""Requests for generated text, checked before anything compiles."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxops.data.tokenizer import Tokenizer
from jaxops.devices import hosts
from jaxops.devices.plans import single
from jaxops.language import decoding
from jaxops.language.sampling import Sampling
from jaxops.nn import EncoderDecoder, Transformer, TransformerConfig
from jaxops.state import TrainState
from jaxops.task import Task


class Codec(Protocol):
    """A tokenizer: texts to tokens and back, such as `jaxops.data.Tokenizer`."""

    def encode(self, text: str) -> Sequence[int]:
        """The tokens of a text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""


class Request(NamedTuple):
    """Checked prompts, and the module that answers them.

    Attributes:
        module: a `Transformer` or an `EncoderDecoder`.
        variables: the variables of the module, on the first device.
        rows: the tokens of each prompt, int32 (n,).
        new_tokens: largest number of tokens in an answer.
        stops: int32 (n,), the tokens that end an answer.
        begin: the token with which the decoder of an encoder-decoder starts.
    """

    module: Any
    variables: Any
    rows: list[np.ndarray]
    new_tokens: int
    stops: np.ndarray
    begin: int

    def part(self, first: int, size: int) -> decoding.Prompts:
        """The `size` prompts from `first` on, as arrays."""
        rows, context = self.rows[first : first + size], self.module.config.context
        if hasattr(self.module, "begin"):  # an encoder-decoder
            starts = [np.array([self.begin], np.int32)] * len(rows)
            return decoding.aligned(starts, first, rows, context)
        return decoding.aligned(rows, first, None, context)


def encoded(prompts: str | Sequence[Any], tokenizer: Codec | None, special: bool) -> Sequence[Any]:
    """The prompts, with texts encoded as tokens.

    Args:
        prompts: see `generate`.
        tokenizer: encodes texts.
        special: see `Tokenizer.encode`; tokenizers of other classes do not get it.

    Raises:
        ValueError: there are no prompts; there is a single prompt that is not a text; or a text
            cannot be encoded.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if any(np.ndim(p) == 0 and not isinstance(p, str) for p in prompts):
        raise ValueError("prompts must be a list of prompts, got a single one")
    if not len(prompts):
        raise ValueError("prompts must have at least one prompt, got none")
    rows = []
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            if tokenizer is None:
                raise ValueError(f"prompts[{i}] must be tokens without a tokenizer, got a text")
            if not prompt:
                raise ValueError(f"prompts[{i}] must have at least one token, got an empty text")
            ours = isinstance(tokenizer, Tokenizer)
            prompt = tokenizer.encode(prompt, **({"special": special, "row": i} if ours else {}))
        rows.append(prompt)
    return rows


def checked_request(
    task: Task,
    state: TrainState,
    prompts: Sequence[Any],
    new_tokens: int,
    tokenizer: Codec | None,
    stop: Sequence[int] | None,
    begin: int | None,
) -> Request:
    """The request that these arguments of `generate` make, with prompts of tokens.

    Raises:
        ValueError: see `generate`.
    """
    check_at_least(1, new_tokens=new_tokens)
    settings = dict(task.recipe[1]) if task.recipe else {}
    module = _module(settings)
    if stop is None:
        stop = [settings["end"]] if "end" in settings else []
    if begin is None:
        begin = settings.get("padding", 0)
    stops = checked_stops(stop, module.config)
    check_tokens("begin", np.array([begin]), module.config)
    check_vocabulary(tokenizer, module.config)
    rows = [
        checked_prompt(f"prompts[{i}]", prompt, module, new_tokens)
        for i, prompt in enumerate(prompts)
    ]
    params, extra = hosts.gathered((state.params, state.extra))
    variables = jax.device_put({"params": params, **extra}, single().whole())
    return Request(module, variables, rows, new_tokens, stops, begin)


def _module(settings: dict[str, Any]) -> Any:
    """The transformer among the arguments that a task was made with."""
    kinds = (Transformer, EncoderDecoder)  # or a module of low rank that stands in for one
    module = next((v for v in settings.values() if isinstance(getattr(v, "inner", v), kinds)), None)
    if module is None:
        origin = f"one made with {', '.join(settings)}" if settings else "one made by hand"
        raise ValueError(
            f"task must be made with a Transformer or an EncoderDecoder, got {origin}; for LoRA "
            "give the inner task with the merged state"
        )
    if not hasattr(module, "begin") and not module.config.causal:
        raise ValueError("task must have a decoder (causal=True), got an encoder")
    return module


def default_length(context: int | None, longest: int) -> int:
    """The largest number of new tokens where none is asked for: 100, or fewer that fit."""
    return 100 if context is None else max(1, min(100, context - longest))


def checked_stops(stop: Sequence[int], config: TransformerConfig) -> np.ndarray:
    """The tokens that end an answer, int32 (n,), checked."""
    if not hasattr(stop, "__iter__"):
        raise ValueError(f"stop must be numbers of tokens in a list, got {stop!r}")
    if any(isinstance(token, str) for token in stop):
        raise ValueError(
            f"stop must be numbers of tokens, got {[*stop]!r}; for a text that is one token give "
            "tokenizer.id(text)"
        )
    stops = np.array(stop, np.int32).reshape(-1)
    check_tokens("stop", stops, config)
    return stops


def checked_prompt(name: str, prompt: Any, module: Any, new_tokens: int) -> np.ndarray:
    """A prompt's tokens, int32 (n,), checked."""
    config, row = module.config, np.asarray(prompt)
    if row.size == 0:
        raise ValueError(f"{name} must have at least one token, got none")
    if row.ndim != 1 or row.dtype.kind not in "iu":
        raise ValueError(f"{name} must be int (n,), got {row.dtype}{row.shape}")
    check_tokens(name, row, config)
    separate = hasattr(module, "begin")  # the answer has its own context
    longest = max(len(row), new_tokens) if separate else len(row) + new_tokens
    if longest > config.context:
        raise ValueError(
            f"{name} and new_tokens must have at most {config.context} tokens (the context) "
            f"{'each' if separate else 'together'}, got {len(row)} and {new_tokens}"
        )
    return row.astype(np.int32)


def check_vocabulary(tokenizer: Codec | None, config: TransformerConfig) -> None:
    """Raise `ValueError` for a tokenizer with another vocabulary than the module.

    A module may have more rows, up to a multiple of 64, such as 50304 for GPT-2's 50257 tokens.
    """
    vocabulary = getattr(tokenizer, "vocabulary", config.vocabulary)
    more = config.vocabulary - vocabulary
    if more and not (0 < more < 128 and config.vocabulary % 64 == 0):
        raise ValueError(
            f"tokenizer must have a vocabulary of {config.vocabulary:,} (the module's), got "
            f"{vocabulary:,}; this tokenizer belongs to another model"
        )


def check_tokens(name: str, tokens: np.ndarray, config: TransformerConfig) -> None:
    """Raise `ValueError` for a token outside the vocabulary."""
    outside = tokens[(tokens < 0) | (tokens >= config.vocabulary)]
    if outside.size:
        raise ValueError(
            f"{name} must be tokens in [0, {config.vocabulary}) (the vocabulary), got {outside[0]}"
        )


def check_at_least(least: int, **numbers: Any) -> None:
    """Raise `ValueError` for a number below `least`, or one that is not whole."""
    for name, number in numbers.items():
        if isinstance(number, bool) or int(number) != number or number < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {number!r}")


def check_beams(beams: int, length_penalty: float, sampling: Sampling) -> None:
    """Raise `ValueError` for settings that beam search cannot use."""
    check_at_least(1, beams=beams)
    if not (math.isfinite(length_penalty) and length_penalty >= 0):
        raise ValueError(f"length_penalty must be at least 0, got {length_penalty}")
    active = ", ".join(name for name, n in sampling._asdict().items() if n is not None)
    if beams > 1 and active:
        raise ValueError(f"beams must be 1 with {active}, got {beams}; beam search does not sample")


def checked_sampling(
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float,
) -> Sampling:
    """The settings, checked; a setting that changes nothing becomes `None`."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be a number of at least 0, got {temperature}")
    if not (math.isfinite(repetition_penalty) and repetition_penalty > 0):
        raise ValueError(f"repetition_penalty must be above 0, got {repetition_penalty}")
    for name, share in (("top_p", top_p), ("min_p", min_p)):
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {share}")
    if top_k is not None:
        check_at_least(1, top_k=top_k)
    filters = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    active = ", ".join(name for name, number in filters.items() if number is not None)
    if active and temperature == 0:
        raise ValueError(
            f"temperature must be above 0 with {active}, got 0; it takes the most probable token"
        )

    def real(number: float | None, off: float | None = None) -> Any:
        return None if number is None or number == off else np.float32(number)

    return Sampling(
        real(temperature, 0),
        None if top_k is None else np.int32(top_k),
        real(top_p, 1),
        real(min_p),
        real(repetition_penalty, 1),
    )
