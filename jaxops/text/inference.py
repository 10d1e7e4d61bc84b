"""Functions for a finished model: `classify` texts, `search` documents.

model = text.fit("tickets.csv", text="message", label="team")
text.classify(model, ["where is my card?"])[0].label

found = text.search(["where is my card?"], text.index(documents, encode), k=5, encode=encode)
passages = [documents[i] for i in found.documents[0]]
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxops.data.tables import Source
from jaxops.model.finished import Model, frame, inside
from jaxops.task import recorded
from jaxops.text.readers import Classes, TextReader, columns_of, has_many
from jaxops.text.retrieval import Encode, Found, Index, by_vectors, by_words, check_queries, fuse
from jaxops.trust.calibration import in_parts, scaled, temperature

FUSED = 100
"""The smallest number of documents that `search` takes from each ranking to fuse them."""
LEAST = 0.25  # smallest temperature; if all validation texts are right, the best one would be 0


class Decision(NamedTuple):
    """The decision for one text.

    Attributes:
        label: the likeliest class.
        probability: the calibrated probability of the label.
        in_scope: whether the probability reaches the threshold.
        words: each word of the text with its evidence for the label: the fall of the label's
            log-odds, in nats, when the word is left out. Empty with `words=False`.

    >>> Decision("lost", 0.9, in_scope=True, words=(("lost", 2.2),)).label
    'lost'
    """

    label: str
    probability: float
    in_scope: bool
    words: tuple[tuple[str, float], ...] = ()


def calibrate(
    model: Model, texts: Source | Sequence[str], labels: np.ndarray, keep: float = 0.95
) -> Model:
    """Fit the temperature and the threshold on validation texts.

    The temperature minimises the validation loss. The threshold is a quantile of the texts' largest
    probabilities, so that a share `keep` of the texts is in scope.

    Args:
        model: a model of `text.classifier` with one label for each text, and a `TextReader`.
        texts: N validation texts, all in scope; see `TextReader.texts`.
        labels: (N,) integers, their classes.
        keep: share of these texts that the threshold leaves in scope.

    Returns:
        The model whose reader has the temperature and the threshold.

    Raises:
        ValueError: there are no texts, or one is empty; a label is not a class; the reader has
            another vocabulary; the task has many labels; or `keep` is outside (0, 1].

    >>> import jaxops as jo
    >>> from jaxops import text
    >>> read = text.NGrams(context=32, vocabulary=64)
    >>> task = text.classifier(text.NGramBag(64, classes=2), read.context, ("lost", "found"))
    >>> state = jo.init_state(task, jo.optim.sgd(0.1), 0, read(["my card"]))
    >>> model = jo.Model(task, state, text.TextReader(read))
    >>> calibrate(model, ["my card"], np.array([0])).reader.threshold  # an untrained bag
    0.5
    """
    check_keep(keep)
    reader = replace(reader_of_one(model), temperature=1.0)
    probabilities = replace(model, reader=reader).predict(texts).probabilities
    return replace(model, reader=calibrated(reader, probabilities, labels, keep))


def calibrated(
    reader: TextReader, probabilities: np.ndarray, labels: np.ndarray, keep: float
) -> TextReader:
    """The reader with temperature and threshold fitted on validation texts, see `calibrate`."""
    t = max(temperature(probabilities, labels), LEAST)
    largest = np.concatenate([scaled(part, t).max(1) for part in in_parts(probabilities)])
    threshold = np.quantile(largest, 1 - keep)
    return replace(reader, temperature=t, threshold=float(threshold))


def check_keep(keep: float) -> None:
    """Raise `ValueError` unless `keep` is in (0, 1]."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep}")


def reader_of_one(model: Model) -> TextReader:
    """The reader of a classifier with one label a text.

    Raises:
        ValueError: a model of another kind, or with many labels.
    """
    reader: TextReader = inside(
        model, lambda part: isinstance(part, TextReader), "a classifier of texts"
    )
    if has_many(model.task):
        raise ValueError(
            "task must have one label a text (many=False), got many=True; use model.predict"
        )
    return reader


def classify(model: Model, texts: Source | Sequence[str], words: bool = True) -> list[Decision]:
    """Label, calibrated probability, scope, and the evidence of each word.

    The evidence of a word is measured by leaving it out, so the text is classified once more for
    each of its words. It measures each word alone; if two words have the same meaning, neither has
    much evidence. A text of one word is compared with equal probabilities for all classes.

    Args:
        model: a model from `text.fit`, with one label for each text.
        texts: N texts, or a table of them; see `TextReader.texts`.
        words: whether to compute the evidence of each word.

    Returns:
        N decisions.

    Raises:
        ValueError: there are no texts; a text is empty or not a `str`; the reader has another
            vocabulary; or the model has many labels.

    >>> from jaxops import text
    >>> table = {"text": ["my card is lost", "a new pin"] * 20, "label": ["card", "pin"] * 20}
    >>> model = text.fit(table, text.NGramBag(256, 2, width=4), epochs=20, progress=False)
    >>> decision, = classify(model, ["lost card"])
    >>> decision.label, [word for word, _ in decision.words]
    ('card', ['lost', 'card'])
    """
    reader = reader_of_one(model)
    _, texts = reader.texts(texts)
    answer: Classes = model.predict(texts)
    best = answer.probabilities.argmax(1)
    parts = [text.split() if words else [] for text in texts]
    left = iter(_without_each_word(model, parts, best))
    decisions = []
    for i, (row, number, own_words) in enumerate(
        zip(answer.probabilities, best, parts, strict=True)
    ):
        rest = [next(left) if len(own_words) > 1 else 1 / len(row) for _ in own_words]
        evidence = [float(_log_odds(row[number]) - _log_odds(q)) for q in rest]
        decisions.append(
            Decision(
                answer.classes[number],
                float(row[number]),
                bool(answer.in_scope[i]),
                tuple(zip(own_words, evidence, strict=True)),
            )
        )
    return decisions


def _without_each_word(model: Model, parts: list[list[str]], best: np.ndarray) -> np.ndarray:
    """The probability of a text's best class without each word; not for texts of one word."""
    shorter = [
        (i, " ".join([*row[:j], *row[j + 1 :]]))
        for i, row in enumerate(parts)
        for j in range(len(row))
        if len(row) > 1
    ]
    if not shorter:
        return np.zeros(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the whole texts have already warned
        probabilities = model.predict([text for _, text in shorter]).probabilities
    found: np.ndarray = probabilities[np.arange(len(shorter)), best[[i for i, _ in shorter]]]
    return found


def _log_odds(p: Any) -> Any:
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return np.log(p) - np.log1p(-p)


def search(
    queries: str | Sequence[str],
    index: Index | Model,
    k: int = 10,
    encode: Encode | None = None,
) -> Found:
    """The best documents for each query, by words, or with `encode` by words and vectors.

    With `encode` the best 100 documents (or k, if larger) of `text.by_words` and of
    `text.by_vectors` are fused, see `text.fuse`.

    Args:
        queries: texts, or one text.
        index: made by `text.index`; or a `jaxops.Model` of it.
        k: number of documents for each query, at most the number of all documents.
        encode: the encoder that the index was made with; without it only words count.

    Raises:
        ValueError: there is no query, or one is empty; `k` is outside 1 to N; or `encode` is given
            for an index without vectors.

    >>> from jaxops import text
    >>> found = search("a red card", text.index(["my card", "red card", "a bank"]), k=2)
    >>> found.documents.tolist()
    [[1, 2]]
    """
    known: Index = inside(index, lambda part: isinstance(part, Index), "an index of documents")
    if encode is None:
        return by_words(queries, known, k)
    check_queries(queries, known, k)
    count = min(max(k, FUSED), len(known.words.lengths))
    rankings = by_words(queries, known, count), by_vectors(queries, known, encode, count)
    return fuse([found.documents for found in rankings], k)


class Hits(NamedTuple):
    """The documents that a search found for each of B queries, best first.

    Attributes:
        ids: (B,), the ids of the queries, or their numbers.
        documents: (B, k), the user's ids of the documents, or their numbers; "" or -1 where there
            is no document.
        scores: float32 (B, k), comparable within a row; -inf where there is no document.

    >>> one = Hits(np.arange(1), np.array([[7, -1]]), np.array([[2.0, -np.inf]]))
    >>> one.frame().document.tolist()
    [7]
    """

    ids: np.ndarray
    documents: np.ndarray
    scores: np.ndarray

    def frame(self) -> Any:
        """A row for each found document: id of the query, rank from 1, document, score."""
        row, rank = np.nonzero(np.isfinite(self.scores))
        found = {"document": self.documents[row, rank], "score": self.scores[row, rank]}
        return frame({"id": self.ids[row], "rank": rank + 1, **found})


@recorded
@dataclass(frozen=True, eq=False)
class DocumentReader:
    """The reader of an index of documents, for `jo.Model(index, None, reader)`.

    Attributes:
        ids: (N,), the user's ids of the documents; with None, their numbers are used.
        text: the column of the queries, in a file, a frame or arrays by name.
        id: the column of the queries' ids; None numbers them.

    >>> from jaxops import text
    >>> from jaxops.model.finished import Model
    >>> index = text.index(["my card", "a bank"])
    >>> model = Model(index, None, DocumentReader(np.array(["d7", "d8"], object)))
    >>> model.predict(["which bank"], k=1).documents.tolist()
    [['d8']]
    """

    room: ClassVar[str] = "text"
    ids: np.ndarray | None = None
    text: str = "text"
    id: str | None = None

    def predict(
        self,
        model: Model,
        data: Source | Sequence[str],
        k: int = 10,
        encode: Encode | None = None,
    ) -> Hits:
        """The best documents for each query; see `search`.

        Args:
            model: the model.
            data: the queries: a list of texts, or a table of them; see `TextReader.texts`.
            k: number of documents for each query.
            encode: the encoder that the index was made with; without it only words count.
        """
        ids, table = columns_of(data, self.id, self.text)
        found = search(table[self.text], model, k, encode)
        if self.ids is None:
            return Hits(ids, found.documents, found.scores)
        named = np.where(found.documents < 0, "", self.ids[found.documents])
        return Hits(ids, named, found.scores)
