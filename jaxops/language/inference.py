"""Text from a trained language model: `generate` whole answers, or `stream` them by token."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxops._shapes import next_power_of_two
from jaxops.language import decoding
from jaxops.language.data import TokenReader
from jaxops.language.decoding import CHUNK, NONE, Beams, Prompts, Run
from jaxops.language.pieces import Pieces
from jaxops.language.requests import (
    Codec,
    Request,
    check_at_least,
    check_beams,
    checked_request,
    checked_sampling,
    default_length,
    encoded,
)
from jaxops.language.sampling import Sampling
from jaxops.model.finished import Model

STREAMED = 8
"""The number of tokens that `stream` makes in one call."""


class Answer(NamedTuple):
    """The answer to a prompt.

    Attributes:
        tokens: int32 (n,), without the prompt and without the stop token.
        log_probability: the log-probability of the answer with its stop token, in the model's own
            distribution: without temperature, filters and penalty.
        stopped: whether a stop token ended the answer; if not, it reached its largest length.
        text: the decoded tokens; `None` without a tokenizer.

    >>> answer = Answer(np.array([3, 1]), log_probability=-0.7, stopped=True)
    >>> answer.tokens.tolist(), answer.text
    ([3, 1], None)
    """

    tokens: np.ndarray
    log_probability: float
    stopped: bool
    text: str | None = None


def generate(
    model: Model,
    prompts: str | Sequence[Any],
    *,
    new_tokens: int | None = None,
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
    special: bool | None = None,
    begin: int | None = None,
    batch_size: int = 64,
) -> list[Answer]:
    """Answers to prompts, by greedy decoding, sampling or beam search.

    Keys and values of earlier tokens are cached. Prompts of different lengths are answered
    together; an answer does not depend on the other prompts, except for rounding. Requests whose
    prompt lengths, numbers of prompts and total lengths round up to the same powers of two share
    their compilation. `nn.computing("bfloat16")` around the call computes in 16 bits.

    Before a token is drawn, `repetition_penalty`, `temperature`, `top_k`, `top_p` and `min_p` are
    applied in this order: see `jaxops.language.sampling`.

    Args:
        model: a model from `language.fit`; or `jaxops.Model(task, state)` with a task of an
            `nn.Transformer`, or of an `nn.EncoderDecoder`, which reads the prompt as its source.
        prompts: N prompts, each a sequence of tokens or, with a tokenizer, a text; or one text.
        new_tokens: largest number of tokens in an answer; by default 100, or fewer if only fewer
            fit into the context of a model from `language.fit`.
        temperature: 0 takes the most probable token; 1 draws from the model's distribution.
        top_k: draw from the k most probable tokens.
        top_p: draw from the smallest set of tokens that together have this probability.
        min_p: draw from tokens with at least this share of the largest probability.
        repetition_penalty: above 1 makes tokens of the prompt and the answer less probable.
        beams: number of unfinished answers that beam search keeps; 1 means no beam search. An
            answer ends if its stop token is among the best `beams` continuations.
        length_penalty: beam search takes the answer with the largest log-probability divided by
            (number of tokens, with the stop token) ** length_penalty. 0 favours short answers, and
            1 compares means over tokens.
        stop: tokens that end an answer; by default the task's `end`, if it has one, or for a model
            from `language.fit` the end of a text.
        seed: the seed of the draws; they also depend on the row and the prompt.
        tokenizer: encodes prompts that are texts, and decodes answers (without their prompts); by
            default that of the model's reader.
        special: put the special tokens around a prompt that a Hugging Face file asks for, such as
            <s> of Llama; a `jaxops.data.Tokenizer` that was trained here asks for none. By default
            True, unless the model's reader says False.
        begin: the token with which an encoder-decoder starts an answer; by default the task's
            `padding`.
        batch_size: number of prompts that are answered at once.

    Returns:
        N answers.

    Raises:
        ValueError: there are no prompts, or one is empty; a prompt and `new_tokens` together are
            longer than the context; a token is outside the vocabulary; the tokenizer has another
            vocabulary; a number is out of its range; sampling and beams are combined; or the task's
            module cannot generate.

    >>> from jaxops import Model, Task, TrainState, nn
    >>> module = nn.Transformer(nn.TransformerConfig(9, context=8, depth=1, heads=1, width=4))
    >>> variables = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 8), np.int32))
    >>> state = TrainState(0, variables["params"], (), {}, None)
    >>> task = Task(None, None, None, recipe=(None, (("module", module),)))
    >>> answers = generate(Model(task, state), [[1, 2, 3], [4]], new_tokens=5)
    >>> [len(answer.tokens) for answer in answers]
    [5, 5]
    """
    sampling = checked_sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    check_beams(beams, length_penalty, sampling)
    check_at_least(1, batch_size=batch_size)
    tokenizer, stop, prompts, new_tokens = _asked(
        model, tokenizer, special, stop, prompts, new_tokens
    )
    request = checked_request(*model.trained(), prompts, new_tokens, tokenizer, stop, begin)
    answers: list[Answer] = []
    for first in range(0, len(request.rows), batch_size):
        part = request.part(first, batch_size)
        if beams > 1:
            answers += _search(request, part, beams, length_penalty)
        else:
            answers += _draw(request, part, sampling, seed)
    if tokenizer is None:
        return answers
    return [answer._replace(text=tokenizer.decode(answer.tokens.tolist())) for answer in answers]


def stream(
    model: Model,
    prompts: str | Sequence[Any],
    *,
    new_tokens: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: Sequence[int] | None = None,
    seed: int = 0,
    tokenizer: Codec | None = None,
    special: bool | None = None,
    begin: int | None = None,
) -> Iterator[Any]:
    """The tokens of `generate` without beams, yielded one after the other while they are made.

    All prompts are answered at once. The arguments are those of `generate`.

    Args:
        model: see `generate`, like the arguments below.
        prompts: N prompts.
        new_tokens: largest number of tokens in an answer.
        temperature: 0 takes the most probable token.
        top_k: draw from the k most probable tokens.
        top_p: draw from the smallest set of tokens with this probability.
        min_p: draw from tokens with at least this share of the largest probability.
        repetition_penalty: above 1 makes tokens that occurred less probable.
        stop: tokens that end an answer.
        seed: the seed of the draws.
        tokenizer: encodes and decodes texts.
        special: put the special tokens of a Hugging Face file around prompts.
        begin: the token with which an encoder-decoder starts.

    Returns:
        An iterator of int32 (N,): one token of each answer, or -1 for an answer that has ended.
        With a tokenizer, an iterator of lists of N texts, which are added to the answers. An added
        text may be empty, because a character may need several tokens.

    Raises:
        ValueError: see `generate`.

    >>> from jaxops import Model, Task, TrainState, nn
    >>> module = nn.Transformer(nn.TransformerConfig(9, context=8, depth=1, heads=1, width=4))
    >>> variables = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 8), np.int32))
    >>> state = TrainState(0, variables["params"], (), {}, None)
    >>> task = Task(None, None, None, recipe=(None, (("module", module),)))
    >>> len(list(stream(Model(task, state), [[1, 2, 3], [4]], new_tokens=5)))
    5
    """
    sampling = checked_sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    tokenizer, stop, prompts, new_tokens = _asked(
        model, tokenizer, special, stop, prompts, new_tokens
    )
    request = checked_request(*model.trained(), prompts, new_tokens, tokenizer, stop, begin)
    count = len(request.rows)
    run = _run(request, request.part(0, count), sampling, seed, STREAMED)
    each = (row[:count] for _, part in run for row in part if (row != NONE).any())
    return each if tokenizer is None else _texts(each, tokenizer, count)


def _asked(
    model: Model,
    tokenizer: Codec | None,
    special: bool | None,
    stop: Any,
    prompts: Any,
    new_tokens: int | None,
) -> tuple[Codec | None, Any, Sequence[Any], int]:
    """Tokenizer, stop tokens, prompts as tokens, and length; the reader has the defaults."""
    reader = model.reader if isinstance(model.reader, TokenReader) else None
    if reader is not None:
        tokenizer = tokenizer or reader.tokenizer
        stop = [reader.tokenizer.eos] if stop is None else stop
        special = reader.special if special is None else special
    rows = encoded(prompts, tokenizer, special is not False)
    if new_tokens is None:
        context = None if reader is None else reader.context
        new_tokens = default_length(context, max(map(len, rows)))
    return tokenizer, stop, rows, new_tokens


def _texts(each: Iterator[np.ndarray], tokenizer: Codec, count: int) -> Iterator[list[str]]:
    """The texts that each step adds to the answers."""
    texts = [Pieces(tokenizer.decode) for _ in range(count)]
    for row in each:
        tokens = zip(texts, row.tolist(), strict=True)
        yield ["" if token == NONE else pieces.added(token) for pieces, token in tokens]
    rest = [pieces.rest() for pieces in texts]
    if any(rest):
        yield rest


def _run(
    request: Request, prompts: Prompts, sampling: Sampling, seed: int, chunk: int
) -> Iterator[tuple[Run, np.ndarray]]:
    programs = decoding.programs(request.module)
    run = programs.begin(
        request.variables,
        prompts,
        jax.random.key(seed),
        slots=decoding.first_slots(prompts),
        penalty=sampling.repetition_penalty is not None,
    )
    most = None if sampling.top_k is None else next_power_of_two(int(sampling.top_k))

    def program(run: Run, steps: np.ndarray) -> tuple[Run, jax.Array]:
        return programs.sample(request.variables, run, steps, request.stops, sampling, most=most)

    return decoding.chunks(program, run, request.new_tokens, chunk)


def _draw(request: Request, prompts: Prompts, sampling: Sampling, seed: int) -> list[Answer]:
    parts = list(_run(request, prompts, sampling, seed, CHUNK))
    run = parts[-1][0]
    tokens = np.concatenate([part for _, part in parts]).T
    scores, done = jax.device_get((run.log_probability, run.done))
    return [
        Answer(tokens[i][tokens[i] != NONE], float(scores[i]), bool(done[i]))
        for i in np.flatnonzero(prompts.row != NONE).tolist()
    ]


def _search(request: Request, prompts: Prompts, beams: int, length_penalty: float) -> list[Answer]:
    programs = decoding.programs(request.module)
    slots = decoding.first_slots(prompts)
    run = programs.begin(request.variables, prompts, None, slots=slots, beams=beams)
    longest, penalty = np.int32(request.new_tokens), np.float32(length_penalty)

    def program(run: Beams, steps: np.ndarray) -> tuple[Beams, Any]:
        return programs.beam(request.variables, run, steps, request.stops, longest, penalty)

    parts = list(decoding.chunks(program, run, request.new_tokens, CHUNK))
    end = jax.device_get(parts[-1][0]._replace(cache=None))
    tokens, parents = (np.concatenate(x) for x in zip(*(part for _, part in parts), strict=True))
    return [
        _traced(end, tokens[:, i], parents[:, i], i, length_penalty)
        for i in np.flatnonzero(prompts.row != NONE).tolist()
    ]


def _traced(
    end: Beams, tokens: np.ndarray, parents: np.ndarray, row: int, length_penalty: float
) -> Answer:
    """The best answer of a row, traced back from its end; tokens and parents are (steps, W)."""
    stopped = bool(end.done[row])
    if stopped:
        length, beam = int(end.best_at[row]), int(end.best_beam[row])
        score = float(end.best[row]) * (length + 1) ** length_penalty
    else:
        length, beam = len(tokens), int(end.log_probability[row].argmax())
        score = float(end.log_probability[row, beam])
    backwards = []
    for step in reversed(range(length)):
        backwards.append(tokens[step, beam])
        beam = parents[step, beam]
    return Answer(np.array(backwards[::-1], np.int32), score, stopped)
