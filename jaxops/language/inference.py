"""What users ask of a trained model that writes: `generate`, and `stream`, token by token."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxops.language import decoding
from jaxops.language.decoding import CHUNK, NONE, Beams, Prompts, Run
from jaxops.language.requests import (
    Asked,
    Codec,
    asked_of,
    check_at_least,
    check_beams,
    sampling_of,
)
from jaxops.language.sampling import Sampling
from jaxops.state import TrainState
from jaxops.task import Task

STREAMED = 8
"""tokens between two looks at what came"""


class Answer(NamedTuple):
    """What follows a prompt.

    Attributes:
        tokens: int32 (n,), without the prompt and without the stop token.
        log_probability: of the answer, its stop token included, as the model has it: without
            temperature, filters and penalty.
        stopped: it ended by a stop token, not by length.
        text: where there is a tokenizer.
    """

    tokens: np.ndarray
    log_probability: float
    stopped: bool
    text: str | None = None


def generate(
    task: Task,
    state: TrainState,
    prompts: Sequence[Any],
    *,
    new_tokens: int = 100,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    beams: int = 1,
    length_penalty: float = 1.0,
    stop: Sequence[int] | None = None,
    seed: int = 0,
    tokenizer: Codec | None = None,
    begin: int | None = None,
    batch_size: int = 64,
) -> list[Answer]:
    """Answers to prompts: the most probable tokens, or draws, or the best that beams find.

    Keys and values of earlier tokens are kept, and prompts of different lengths answered
    together; no answer depends on the other prompts, but for rounding. Programs compile once for
    each power of two of prompt length, rows and tokens in all. `nn.computing("bfloat16")` around
    the call computes in 16 bits.

    A token is drawn after `repetition_penalty`, `temperature`, `top_k`, `top_p` and `min_p`, in
    that order: see `jaxops.language.sampling`.

    Args:
        task: made with a `nn.Transformer`, or with a `nn.EncoderDecoder`, which reads the prompt
            as its source.
        state: what was learned.
        prompts: N of them, each a sequence of tokens or, with a tokenizer, a text.
        new_tokens: at most so many in an answer.
        temperature: 0 takes the most probable token; 1 draws from the model's distribution.
        top_k: draw from the most probable so many.
        top_p: draw from the fewest that together have this probability.
        min_p: draw from those with this share of the most probable one's.
        repetition_penalty: above 1 makes tokens of prompt and answer less probable.
        beams: more than 1 is beam search: the best so many answers so far go on. An answer ends
            where its stop token is among the best so many continuations.
        length_penalty: of beam search: the best answer is that of the highest log-probability
            over (tokens, stop token included) ** length_penalty. 0 favours short answers, 1 is
            the mean over tokens.
        stop: tokens that end an answer; by default the task's `end`, if it has one.
        seed: answers depend on it, the row and the prompt.
        tokenizer: of texts. An answer's text is that of its tokens alone.
        begin: of an encoder-decoder: the token before the answer; the task's `padding` by default.
        batch_size: prompts at a time.

    Raises:
        ValueError: no prompts, an empty one, one that with `new_tokens` is longer than the
            context, tokens outside the vocabulary, a tokenizer of another vocabulary, a number out
            of its range, draws from beams, or a task whose model does not write.

    >>> from jaxops import Task, nn
    >>> model = nn.Transformer(nn.TransformerConfig(9, context=8, depth=1, heads=1, width=4))
    >>> variables = model.init(jax.random.key(0), np.zeros((1, 8), np.int32))
    >>> state = TrainState(0, variables["params"], (), {}, None)
    >>> task = Task(None, None, None, recipe=(None, (("model", model),)))
    >>> [len(answer.tokens) for answer in generate(task, state, [[1, 2, 3], [4]], new_tokens=5)]
    [5, 5]
    """
    sampling = sampling_of(temperature, top_k, top_p, min_p, repetition_penalty)
    check_beams(beams, length_penalty, sampling)
    check_at_least(1, batch_size=batch_size)
    asked = asked_of(task, state, prompts, new_tokens, tokenizer, stop, begin)
    answers: list[Answer] = []
    for first in range(0, len(asked.rows), batch_size):
        part = asked.part(first, batch_size)
        if beams > 1:
            answers += _search(asked, part, beams, length_penalty)
        else:
            answers += _draw(asked, part, sampling, seed)
    if tokenizer is None:
        return answers
    return [answer._replace(text=tokenizer.decode(answer.tokens.tolist())) for answer in answers]


def stream(
    task: Task,
    state: TrainState,
    prompts: Sequence[Any],
    *,
    new_tokens: int = 100,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: Sequence[int] | None = None,
    seed: int = 0,
    tokenizer: Codec | None = None,
    begin: int | None = None,
) -> Iterator[Any]:
    """As `generate` without beams, but the answers' tokens as they come, the same ones.

    Args are those of `generate`; all prompts are answered at once.

    Returns:
        an iterator of int32 (N,), one token of each answer, -1 of those that have ended. With a
        tokenizer of lists of N texts, what is added to each answer; a character may need several
        tokens, so some are empty.
    """
    sampling = sampling_of(temperature, top_k, top_p, min_p, repetition_penalty)
    asked = asked_of(task, state, prompts, new_tokens, tokenizer, stop, begin)
    count = len(asked.rows)
    run = _run(asked, asked.part(0, count), sampling, seed, STREAMED)
    each = (row[:count] for _, part in run for row in part if (row != NONE).any())
    return each if tokenizer is None else _texts(each, tokenizer, count)


def _texts(each: Iterator[np.ndarray], tokenizer: Codec, count: int) -> Iterator[list[str]]:
    """What every step adds to the texts of the tokens so far."""
    tokens: list[list[int]] = [[] for _ in range(count)]
    shown = [""] * count

    def added(end: bool) -> list[str]:
        new = []
        for i, so_far in enumerate(tokens):
            text = tokenizer.decode(so_far) if so_far else ""
            if not end:  # the first bytes of a character are U+FFFD until the last one comes
                text = text.rstrip("\ufffd")
            new.append(text[len(shown[i]) :])
            shown[i] += new[-1]
        return new

    for row in each:
        for so_far, token in zip(tokens, row.tolist(), strict=True):
            so_far += [token] * (token != NONE)
        yield added(end=False)
    rest = added(end=True)
    if any(rest):
        yield rest


def _run(
    asked: Asked, prompts: Prompts, sampling: Sampling, seed: int, chunk: int
) -> Iterator[tuple[Run, np.ndarray]]:
    programs = decoding.programs(asked.model)
    run = programs.begin(
        asked.variables,
        prompts,
        jax.random.key(seed),
        slots=decoding.first_slots(prompts),
        penalty=sampling.repetition_penalty is not None,
    )
    most = None if sampling.top_k is None else decoding.bucket(int(sampling.top_k), 1)

    def program(run: Run, steps: np.ndarray) -> tuple[Run, jax.Array]:
        return programs.sample(asked.variables, run, steps, asked.stops, sampling, most=most)

    return decoding.chunks(program, run, asked.new_tokens, chunk)


def _draw(asked: Asked, prompts: Prompts, sampling: Sampling, seed: int) -> list[Answer]:
    parts = list(_run(asked, prompts, sampling, seed, CHUNK))
    run = parts[-1][0]
    tokens = np.concatenate([part for _, part in parts]).T
    scores, done = jax.device_get((run.log_probability, run.done))
    return [
        Answer(tokens[i][tokens[i] != NONE], float(scores[i]), bool(done[i]))
        for i in np.flatnonzero(prompts.row != NONE).tolist()
    ]


def _search(asked: Asked, prompts: Prompts, beams: int, length_penalty: float) -> list[Answer]:
    programs = decoding.programs(asked.model)
    slots = decoding.first_slots(prompts)
    run = programs.begin(asked.variables, prompts, None, slots=slots, beams=beams)
    longest, penalty = np.int32(asked.new_tokens), np.float32(length_penalty)

    def program(run: Beams, steps: np.ndarray) -> tuple[Beams, Any]:
        return programs.beam(asked.variables, run, steps, asked.stops, longest, penalty)

    parts = list(decoding.chunks(program, run, asked.new_tokens, CHUNK))
    end = jax.device_get(parts[-1][0]._replace(cache=None))
    tokens, parents = (np.concatenate(x) for x in zip(*(part for _, part in parts), strict=True))
    return [
        _traced(end, tokens[:, i], parents[:, i], i, length_penalty)
        for i in np.flatnonzero(prompts.row != NONE).tolist()
    ]


def _traced(
    end: Beams, tokens: np.ndarray, parents: np.ndarray, row: int, length_penalty: float
) -> Answer:
    """The best answer of a row, from its end back: tokens and parents are (steps, W)."""
    stopped = bool(end.done[row])
    if stopped:
        length, beam = int(end.best_at[row]), int(end.best_beam[row])
        score = float(end.best[row]) * (length + 1) ** length_penalty
    else:
        length, beam = len(tokens), int(end.log_probability[row].argmax())
        score = float(end.log_probability[row, beam])
    found = []
    for step in reversed(range(length)):
        found.append(tokens[step, beam])
        beam = parents[step, beam]
    return Answer(np.array(found[::-1], np.int32), score, stopped)
