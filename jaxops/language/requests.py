"""What is asked of a model that writes, checked before anything compiles."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxops.devices import hosts
from jaxops.devices.plans import single
from jaxops.language import decoding
from jaxops.language.sampling import Sampling
from jaxops.nn import EncoderDecoder, Transformer, TransformerConfig
from jaxops.state import TrainState
from jaxops.task import Task


class Codec(Protocol):
    """A tokenizer: texts to tokens and back, as `jaxops.data.Tokenizer`."""

    def encode(self, text: str) -> Sequence[int]:
        """Of a text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Of tokens."""


class Asked(NamedTuple):
    """Checked prompts, and what answers them.

    Attributes:
        model: a `Transformer` or an `EncoderDecoder`.
        variables: its own, on the first device.
        rows: the prompts, int32 (n,) each.
        new_tokens: at most so many in an answer.
        stops: int32 (n,).
        begin: what an answer of an encoder-decoder follows.
    """

    model: Any
    variables: Any
    rows: list[np.ndarray]
    new_tokens: int
    stops: np.ndarray
    begin: int

    def part(self, first: int, size: int) -> decoding.Prompts:
        """These rows as arrays."""
        rows, context = self.rows[first : first + size], self.model.config.context
        if isinstance(self.model, EncoderDecoder):
            starts = [np.array([self.begin], np.int32)] * len(rows)
            return decoding.aligned(starts, first, rows, context)
        return decoding.aligned(rows, first, None, context)


def asked_of(
    task: Task,
    state: TrainState,
    prompts: Sequence[Any],
    new_tokens: int,
    tokenizer: Codec | None,
    stop: Sequence[int] | None,
    begin: int | None,
) -> Asked:
    """The arguments of `generate`, checked.

    Raises:
        ValueError: see there.
    """
    check_at_least(1, new_tokens=new_tokens)
    made = dict(task.recipe[1]) if task.recipe else {}
    model = _model(made)
    if stop is None:
        stop = [made["end"]] if "end" in made else []
    if begin is None:
        begin = made.get("padding", 0)
    stops = np.array(stop, np.int32).reshape(-1)
    check_tokens("stop", stops, model.config)
    check_tokens("begin", np.array([begin]), model.config)
    check_vocabulary(tokenizer, model.config)
    rows = _tokens(prompts, tokenizer, model, new_tokens)
    params, extra = hosts.gathered((state.params, state.extra))
    variables = jax.device_put({"params": params, **extra}, single().whole())
    return Asked(model, variables, rows, new_tokens, stops, begin)


def _model(made: dict[str, Any]) -> Any:
    """The transformer among the arguments that a task was made with."""
    kinds = (Transformer, EncoderDecoder)
    model = next((value for value in made.values() if isinstance(value, kinds)), None)
    if model is None:
        found = ", ".join(made) or "no record of how it was made"
        raise ValueError(
            f"task: made with {found}; one made with a Transformer or an EncoderDecoder wanted "
            "(of LoRA: the task inside, with the merged state)"
        )
    if isinstance(model, Transformer) and not model.config.causal:
        raise ValueError("task: an encoder (causal=False) found, a decoder wanted: it cannot write")
    return model


def _tokens(
    prompts: Sequence[Any], tokenizer: Codec | None, model: Any, new_tokens: int
) -> list[np.ndarray]:
    """Each prompt's tokens, checked."""
    if isinstance(prompts, str) or any(np.ndim(p) == 0 and not isinstance(p, str) for p in prompts):
        raise ValueError("prompts: a single one found, a list of prompts wanted")
    if not len(prompts):
        raise ValueError("prompts: none found, at least one wanted")
    config = model.config
    rows = []
    for i, prompt in enumerate(prompts):
        name = f"prompts[{i}]"
        if isinstance(prompt, str):
            if tokenizer is None:
                raise ValueError(f"{name}: a text found without a tokenizer, tokens wanted")
            prompt = tokenizer.encode(prompt)
        row = np.asarray(prompt)
        if row.size == 0:
            raise ValueError(f"{name}: empty, at least one token wanted")
        if row.ndim != 1 or row.dtype.kind not in "iu":
            raise ValueError(f"{name}: {row.dtype}{row.shape} found, int (n,) wanted")
        check_tokens(name, row, config)
        apart = isinstance(model, EncoderDecoder)  # the answer has a context of its own
        length, both = len(row), max(len(row), new_tokens) if apart else len(row) + new_tokens
        if both > config.context:
            raise ValueError(
                f"{name}: {length} tokens found, and new_tokens is {new_tokens}; at most "
                f"{config.context} (context) {'each' if apart else 'together'} wanted"
            )
        rows.append(row.astype(np.int32))
    return rows


def check_vocabulary(tokenizer: Codec | None, config: TransformerConfig) -> None:
    """Raise `ValueError` for a tokenizer that says it has another vocabulary than the model.

    A model may have a few rows more, to a multiple of 64, as GPT-2's 50304 for 50257 tokens.
    """
    own = getattr(tokenizer, "vocabulary", config.vocabulary)
    more = config.vocabulary - own
    if more and not (0 < more < 128 and config.vocabulary % 64 == 0):
        raise ValueError(
            f"tokenizer: a vocabulary of {own:,} found, of {config.vocabulary:,} (the model's) "
            "wanted: it is that of another model"
        )


def check_tokens(name: str, tokens: np.ndarray, config: TransformerConfig) -> None:
    """Raise `ValueError` for one that the vocabulary lacks."""
    odd = tokens[(tokens < 0) | (tokens >= config.vocabulary)]
    if odd.size:
        raise ValueError(
            f"{name}: token {odd[0]} found, wanted in [0, {config.vocabulary}) (vocabulary)"
        )


def check_at_least(least: int, **numbers: Any) -> None:
    """Raise `ValueError` for what is less, or no whole number."""
    for name, number in numbers.items():
        if isinstance(number, bool) or int(number) != number or number < least:
            raise ValueError(f"{name}: {number!r} found, a whole number of at least {least} wanted")


def check_beams(beams: int, length_penalty: float, sampling: Sampling) -> None:
    """Raise `ValueError` for what beam search cannot do."""
    check_at_least(1, beams=beams)
    if not (math.isfinite(length_penalty) and length_penalty >= 0):
        raise ValueError(f"length_penalty: {length_penalty} found, at least 0 wanted")
    given = ", ".join(name for name, n in sampling._asdict().items() if n is not None)
    if beams > 1 and given:
        raise ValueError(f"beams: {beams} found with {given}; beam search does not draw")


def sampling_of(
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float,
) -> Sampling:
    """The numbers checked; `None` where they change nothing."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature: {temperature} found, a number of at least 0 wanted")
    if not (math.isfinite(repetition_penalty) and repetition_penalty > 0):
        raise ValueError(f"repetition_penalty: {repetition_penalty} found, more than 0 wanted")
    for name, share in (("top_p", top_p), ("min_p", min_p)):
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"{name}: {share} found, more than 0 and at most 1 wanted")
    if top_k is not None:
        check_at_least(1, top_k=top_k)
    filters = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    given = ", ".join(name for name, number in filters.items() if number is not None)
    if given and temperature == 0:
        raise ValueError(f"{given}: found with temperature 0, which takes the most probable token")

    def real(number: float | None, off: float | None = None) -> Any:
        return None if number is None or number == off else np.float32(number)

    return Sampling(
        real(temperature, 0),
        None if top_k is None else np.int32(top_k),
        real(top_p, 1),
        real(min_p),
        real(repetition_penalty, 1),
    )
