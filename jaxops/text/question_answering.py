"""Extractive question answering: where in the passages is the answer to a question?

read = text.Passages(tokenizer, length=128)
task = text.spans(text.SpanReader(config), length=128)
state = jo.fit(task, read(questions, passages, answers), ...)
text.answer(task, state, read, "what is the code of the door?", passages).text
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxops import metrics
from jaxops.data.tokenizer import PAD, Tokenizer, check_texts, opened
from jaxops.nn import Dense, Transformer, TransformerConfig
from jaxops.state import TrainState
from jaxops.task import Array, Batch, Column, Task, recorded, supervised
from jaxops.train.evaluation import predict


class SpanReader(nn.Module):
    """An encoder that says of each token how likely an answer starts, and ends, there.

    Devlin et al. 2019, arXiv:1810.04805, section 4.2. Only tokens of the passage, and the first
    token, which stands for no answer, are possible.

    Attributes:
        config: of the encoder, with `causal=False` and `segment_types=2`.
    """

    config: TransformerConfig

    def setup(self) -> None:
        """The encoder and its head."""
        config = self.config
        if config.causal or config.segment_types != 2:
            raise ValueError(
                f"config: causal={config.causal}, segment_types={config.segment_types} found; "
                "causal=False, segment_types=2 wanted: the question and the passage"
            )
        self.encoder = Transformer(config)
        self.head = Dense(2)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.config.vocabulary

    def __call__(self, tokens: Array, types: Array, *, train: bool = False) -> Array:
        """Logits (B, T, 2) of start and end; tokens (B, T), types (B, T), 1 in the passage."""
        segments = (tokens != PAD).astype(jnp.int32)
        x = self.encoder.hidden(tokens, segments, None, types, train=train)
        possible = (types == 1).at[:, 0].set(True)
        return jnp.where(possible[..., None], self.head(x), -1e9)


@recorded
def spans(model: Any, length: int) -> Task:
    """Learn where the answer to a question starts and ends.

    A batch holds, as `Passages` makes them, `tokens` integers (B, length): the question and a
    passage; `types`, 1 for tokens of the passage; and `start` and `end` (B,), the first and the
    last token of the answer, both 0 where the passage has none. The loss of a row is the mean of
    the two cross-entropies over places.

    Args:
        model: a Flax module, (tokens, types) to logits (B, length, 2), such as `SpanReader`.
        length: of a row.

    Returns:
        A task that predicts log-probabilities (B, length, 2), with the metrics loss and accuracy:
        how often both the likeliest start and the likeliest end are right.

    >>> from jaxops.nn import TransformerConfig
    >>> config = TransformerConfig(
    ...     100, context=32, depth=2, heads=2, width=16, causal=False, segment_types=2)
    >>> [column.name for column in spans(SpanReader(config), length=32).columns]
    ['tokens', 'types', 'start', 'end']
    """

    def places(batch: Batch) -> Array:
        return jnp.stack([batch["start"], batch["end"]], axis=-1)

    def loss(logits: Array, batch: Batch, train: bool) -> Array:
        log_p = jax.nn.log_softmax(logits, axis=1)
        return -jnp.take_along_axis(log_p, places(batch)[:, None], axis=1)[:, 0].mean(-1)

    def right(logits: Array, batch: Batch, weights: Array) -> dict[str, Any]:
        return {"accuracy": metrics.mean((logits.argmax(1) == places(batch)).all(-1), weights)}

    return supervised(
        model,
        lambda batch, key: (batch["tokens"], batch["types"]),
        loss,
        right,
        lambda logits: jax.nn.log_softmax(logits, axis=1),
        (
            Column("tokens", (length,), "int", classes=getattr(model, "vocabulary", None)),
            Column("types", (length,), "int", classes=2),
            Column("start", (), "int", classes=length, target=True),
            Column("end", (), "int", classes=length, target=True),
        ),
    )


@dataclass(frozen=True)
class Passages:
    """Reads a question and a passage as one row: begin, question, end, passage, end, padding.

    The first token, `tokenizer.bos`, stands for no answer; `tokenizer.eos` ends question and
    passage. Of BERT's own tokenizer these are [CLS] and [SEP].

    A passage that is too long for a row is read in several, each of which begins in the middle of
    the one before.

    Attributes:
        tokenizer: of both.
        length: of a row.

    >>> read = Passages(Tokenizer.train(["who is it", "it is Ada"], kind="word"), length=10)
    >>> rows = read(["who is it"], ["it is Ada"], [(6, 9)])
    >>> rows["tokens"].tolist()
    [[2, 8, 5, 6, 3, 6, 5, 7, 3, 0]]
    >>> rows["start"].tolist(), rows["end"].tolist()
    ([7], [7])
    """

    tokenizer: Tokenizer
    length: int

    def __call__(
        self,
        questions: Sequence[str],
        passages: Sequence[str],
        answers: Sequence[tuple[int, int] | None] | None = None,
    ) -> dict[str, np.ndarray]:
        """Columns for `spans`, R rows of N pairs.

        Args:
            questions: N texts.
            passages: N texts.
            answers: N places in the passages, `passage[start:end]` the answer, or `None` where
                there is none. A row of a long passage that holds an answer in part has none.

        Returns:
            `tokens`, `types` (R, length) int32, with answers `start`, `end` (R,); besides, for
            reading an answer from its tokens, `pair` (R,), which pair a row is of, and
            `characters` (R, length, 2), where in its passage each token begins and ends.

        Raises:
            ValueError: unequal numbers of them, an empty text, a question that leaves no room for
                a passage, an answer that is outside its passage or empty, or a tokenizer without
            the special tokens.
        """
        questions, passages = check_texts(questions), check_texts(passages)
        places = [None] * len(questions) if answers is None else answers
        if not len(questions) == len(passages) == len(places):
            raise ValueError(
                f"questions, passages, answers: {len(questions)}, {len(passages)}, {len(places)} "
                "found, equal numbers wanted"
            )
        self.tokenizer.check_padding()
        rust = opened(self.tokenizer.to_json())
        asked, told = (
            rust.encode_batch(x, add_special_tokens=False) for x in (questions, passages)
        )
        rows: list[tuple[Any, ...]] = []
        for pair, (question, passage) in enumerate(zip(asked, told, strict=True)):
            _check_place(pair, places[pair], passages[pair])
            rows += self._rows(pair, question.ids, passage, places[pair])
        tokens, types, characters, pairs, start, end = map(np.stack, zip(*rows, strict=True))
        columns = {"tokens": tokens, "types": types, "pair": pairs, "characters": characters}
        return columns if answers is None else {**columns, "start": start, "end": end}

    def _rows(
        self, pair: int, question: list[int], passage: Any, place: tuple[int, int] | None
    ) -> list[tuple[Any, ...]]:
        end = self.tokenizer.eos
        head = [self.tokenizer.bos, *question, end]
        room = self.length - len(head) - 1
        if room < 1:
            raise ValueError(
                f"questions: {len(question)} tokens found in row {pair}, at most "
                f"{self.length - 4} wanted in rows of {self.length}"
            )
        rows = []
        for first in range(0, len(passage.ids), max(room // 2, 1)):
            ids = passage.ids[first : first + room]
            own = slice(len(head), len(head) + len(ids))
            tokens, types, pairs = np.full(self.length, PAD), np.zeros(self.length), np.array(pair)
            tokens[: own.stop + 1] = [*head, *ids, end]
            types[own] = 1
            characters = np.zeros((self.length, 2))
            characters[own] = passage.offsets[first : first + room]
            row = (tokens, types, characters, pairs, *_span(characters[own], place, len(head)))
            rows.append(tuple(np.asarray(x, np.int32) for x in row))
            if first + room >= len(passage.ids):
                break
        return rows


def _check_place(pair: int, place: tuple[int, int] | None, passage: str) -> None:
    if place is not None and not 0 <= place[0] < place[1] <= len(passage):
        raise ValueError(
            f"answers: {tuple(place)} found in row {pair}, (start, end) with "
            f"0 <= start < end <= {len(passage)} wanted"
        )


def _span(characters: np.ndarray, place: tuple[int, int] | None, head: int) -> tuple[int, int]:
    """First and last token of the answer, both 0 where it is not in this row as a whole."""
    if place is None or place[0] < characters[0, 0] or place[1] > characters[-1, 1]:
        return 0, 0
    inside = np.flatnonzero((characters[:, 1] > place[0]) & (characters[:, 0] < place[1]))
    return (head + inside[0], head + inside[-1]) if len(inside) else (0, 0)


@functools.partial(jax.jit, static_argnums=2)
def best_span(start: Array, end: Array, longest: int) -> tuple[Array, Array, Array]:
    """The span i to j with the largest `start[i] + end[j]`, exactly.

    Args:
        start: (B, T), log-probabilities or logits; the first place is no answer, and left out.
        end: (B, T).
        longest: i <= j < i + longest.

    Returns:
        i and j, int32 (B,), and the sum (B,). Of equal sums the first start, then the shortest.

    >>> start, end = jnp.array([[9.0, 1.0, 2.0, 0.0]]), jnp.array([[9.0, 5.0, 0.0, 2.0]])
    >>> [x.tolist() for x in best_span(start, end, longest=2)]
    [[1], [1], [6.0]]
    """
    start, end = start[:, 1:], end[:, 1:]
    rows, count = start.shape
    longest = min(longest, count)
    place = jnp.arange(count)[:, None] + jnp.arange(longest)[None]
    stops = jnp.where(place[None] < count, end[:, jnp.minimum(place, count - 1)], -jnp.inf)
    sums = (start[..., None] + stops).reshape(rows, -1)
    best = sums.argmax(-1)
    first, more = 1 + best // longest, best % longest
    return first, first + more, sums.max(-1)


class Answer(NamedTuple):
    """An answer, and how sure it is.

    Attributes:
        text: a part of the passage.
        passage: its number.
        start: where it begins in the passage, in characters.
        end: where it ends.
        score: log-probability of its start plus that of its end, 0 or less.
        no_answer: log-probability that there is none, the least of all passages', minus `score`:
            above 0 means rather none. Where to draw the line is for a validation set to say.
    """

    text: str
    passage: int
    start: int
    end: int
    score: float
    no_answer: float


def answer(
    task: Task,
    state: TrainState,
    read: Passages,
    question: str,
    passages: Sequence[str],
    longest: int = 30,
) -> Answer:
    """The part of the passages that answers a question best.

    Args:
        task: made by `spans`.
        state: of it.
        read: as it was trained with.
        question: a text.
        passages: texts, such as `search` finds.
        longest: of an answer, in tokens.

    Raises:
        ValueError: see `Passages`; or `longest` below 1.
    """
    if longest < 1:
        raise ValueError(f"longest: {longest} found, at least 1 wanted")
    passages = check_texts(passages)
    rows = read([question] * len(passages), passages)
    log_p = predict(task, state, rows)
    first, last, score = map(np.asarray, best_span(log_p[..., 0], log_p[..., 1], longest))
    row = int(score.argmax())
    passage = int(rows["pair"][row])
    start = int(rows["characters"][row, first[row], 0])
    end = int(rows["characters"][row, last[row], 1])
    found = passages[passage][start:end]
    start, end = end - len(found.lstrip()), start + len(found.rstrip())  # of a token with a blank
    none = float(log_p[:, 0].sum(-1).min()) - float(score[row])
    return Answer(found.strip(), passage, start, end, float(score[row]), none)
