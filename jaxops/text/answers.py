"""Answers to questions from passages, with a model that learned where an answer starts and ends.

text.answer(model, "what is the code of the door?", passages).text
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.data.tables import Source
from jaxops.data.tokenizer import check_texts
from jaxops.model.finished import Model, frame, inside
from jaxops.task import Array, recorded
from jaxops.text.data import Passages
from jaxops.text.readers import columns_of


class Answer(NamedTuple):
    """An answer, and how certain it is.

    Attributes:
        text: the part of the passage.
        passage: the number of the passage.
        start: the character at which the answer begins in the passage.
        end: the character after its last one.
        score: log-probability of its start plus that of its end, at most 0.
        no_answer: the smallest log-probability of "no answer" over all rows, minus `score`. Above 0
            it is likelier that there is no answer; choose the threshold on a validation set.

    >>> Answer("Ada", passage=0, start=6, end=9, score=-0.1, no_answer=-5.0).text
    'Ada'
    """

    text: str
    passage: int
    start: int
    end: int
    score: float
    no_answer: float


class Answers(NamedTuple):
    """The answers to N questions, each from its own passage.

    Attributes:
        ids: (N,), the user's ids, or the numbers of the rows.
        texts: `str` objects (N,), the parts of the passages.
        starts: (N,), the character at which an answer begins.
        ends: (N,), the character after its last one.
        scores: (N,), see `Answer`.
        no_answer: (N,), see `Answer`.

    >>> one = Answers(*[np.arange(1)] * 6)
    >>> one.frame().columns.tolist()
    ['id', 'text', 'start', 'end', 'score', 'no_answer']
    """

    ids: np.ndarray
    texts: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    scores: np.ndarray
    no_answer: np.ndarray

    def frame(self) -> Any:
        """A pandas frame with one row for each answer."""
        return frame(
            dict(zip(("id", "text", "start", "end", "score", "no_answer"), self, strict=True))
        )


@recorded
@dataclass(frozen=True)
class PassageReader:
    """The reader of a finished model of `text.spans`.

    Attributes:
        read: turns questions and passages into tokens, as in training.
        question: the column of the questions.
        passage: the column of the passages.
        id: the column of the user's ids; None numbers the rows.

    >>> from jaxops.data import Tokenizer
    >>> read = Passages(Tokenizer.train(["who is it"], kind="word"), context=8)
    >>> PassageReader(read).room
    'text'
    """

    room: ClassVar[str] = "text"
    read: Passages
    question: str = "question"
    passage: str = "passage"
    id: str | None = None

    def predict(self, model: Model, data: Source, longest: int = 30) -> Answers:
        """The answer to each question in its passage.

        Args:
            model: the model.
            data: a table of questions and passages; see `TextReader.texts`.
            longest: largest number of tokens in an answer.
        """
        ids, table = columns_of(data, self.id, self.question, self.passage)
        pairs = _answers(model, self.read, table[self.question], table[self.passage], longest)
        texts = np.array([one.text for one in pairs], object)
        rest = [np.array(column) for column in list(zip(*pairs, strict=True))[2:]]
        return Answers(ids, texts, *rest)


def answer(model: Model, question: str, passages: Sequence[str], longest: int = 30) -> Answer:
    """The part of the passages that best answers a question.

    Args:
        model: a model from `text.spans` with a `PassageReader`.
        question: a text.
        passages: texts, such as `search` finds.
        longest: largest number of tokens in an answer.

    Raises:
        ValueError: `longest` is below 1; there are no passages; `Passages` refuses a text; or the
            model is of another kind.

    >>> import jaxops as jo
    >>> from jaxops import nn, text
    >>> from jaxops.data import Tokenizer
    >>> read = text.Passages(Tokenizer.train(["who is it", "it is Ada"], kind="word"), context=10)
    >>> config = nn.TransformerConfig(read.tokenizer.vocabulary, context=10, depth=1, heads=1,
    ...                               width=4, causal=False, segment_types=2)
    >>> task = text.spans(text.SpanReader(config), context=10)
    >>> state = jo.init_state(task, jo.optim.sgd(0.1), 0, read(["who is it"], ["it is Ada"]))
    >>> model = jo.Model(task, state, text.PassageReader(read))
    >>> found = answer(model, "who is it", ["it is Ada"], longest=1)
    >>> found.text in ("it", "is", "Ada"), found.passage  # not trained: any word
    (True, 0)
    """
    reader: PassageReader = inside(
        model, lambda part: isinstance(part, PassageReader), "a reader of answer spans"
    )
    passages = check_texts(passages)
    pairs = _answers(model, reader.read, [question] * len(passages), passages, longest)
    best = max(pairs, key=lambda pair: pair.score)
    none = min(pair.no_answer + pair.score for pair in pairs)
    return best._replace(no_answer=none - best.score)


def _answers(
    model: Model, read: Passages, questions: Sequence[str], passages: Sequence[str], longest: int
) -> list[Answer]:
    """The best answer of each question in its own passage."""
    if longest < 1:
        raise ValueError(f"longest must be at least 1, got {longest}")
    rows = read(questions, passages)
    log_p = model.outputs(rows)
    first, last, score = map(np.asarray, best_span(log_p[..., 0], log_p[..., 1], longest))
    none = log_p[:, 0].sum(-1)
    found = []
    for pair, passage in enumerate(passages):
        own = np.flatnonzero(rows["pair"] == pair)
        row = own[score[own].argmax()]
        start = int(rows["characters"][row, first[row], 0])
        end = int(rows["characters"][row, last[row], 1])
        part = passage[start:end]  # a token may contain a space
        start, end = end - len(part.lstrip()), start + len(part.rstrip())
        least = float(none[own].min()) - float(score[row])
        found.append(Answer(part.strip(), pair, start, end, float(score[row]), least))
    return found


@functools.partial(jax.jit, static_argnums=2)
def best_span(start: Array, end: Array, longest: int) -> tuple[Array, Array, Array]:
    """The span i to j with the largest `start[i] + end[j]`, by exhaustive search.

    Args:
        start: (B, T), log-probabilities or logits; the first token is "no answer" and not used.
        end: (B, T).
        longest: i <= j < i + longest.

    Returns:
        i and j, int32 (B,), and the sum (B,). Of spans with equal sums the one that starts first is
        taken, and of these the shortest.

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
