"""What users ask of trained text models: `classify` texts, `answer` questions, `search` documents.

classifier = text.calibrate(task, state, read, texts, labels)
text.classify(classifier, ["where is my card?"])[0].label

found = text.search(["where is my card?"], text.index(documents, encode), k=5, encode=encode)
passages = [documents[i] for i in found.documents[0]]
text.answer(task, state, read, "what is the code of the door?", passages).text
"""

import functools
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.data.tokenizer import check_texts
from jaxops.model import files
from jaxops.model.finished import Model
from jaxops.state import TrainState
from jaxops.task import Array, Task
from jaxops.text.data import Passages, Reader, reader
from jaxops.text.retrieval import Encode, Found, Index, by_vectors, by_words, check_queries, fuse
from jaxops.train.evaluation import predict
from jaxops.trust.calibration import scaled, temperature

FUSED = 100
"""The smallest number of documents that `search` takes from each ranking to fuse them."""


class Classifier(NamedTuple):
    """A trained classifier with its reader of texts, its temperature and its threshold.

    Attributes:
        task: made by `text.classifier`, with one label a text.
        state: trained state of the task.
        read: the reader that training used, see `text.Tokens` and `text.NGrams`.
        temperature: divides the log-probabilities.
        threshold: a text whose largest probability is below it is out of scope.

    >>> import jaxops as jo
    >>> from jaxops import text
    >>> read = text.NGrams(context=32, vocabulary=64)
    >>> task = text.classifier(text.NGramBag(64, classes=2), read.context, ("lost", "found"))
    >>> state = jo.init_state(task, jo.optim.sgd(0.1), 0, read(["my card"]))
    >>> classifier = Classifier(task, state, read)
    >>> classifier.probabilities(["my card"]).tolist()  # an untrained bag knows nothing
    [[0.5, 0.5]]
    >>> [decision.probability for decision in classify(classifier, ["my card"], words=False)]
    [0.5]
    >>> calibrate(task, state, read, ["my card"], np.array([0])).threshold
    0.5
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/cards.model", classifier)
    ...     load(f"{folder}/cards.model").read == read
    True
    """

    task: Task
    state: TrainState
    read: Reader
    temperature: float = 1.0
    threshold: float = 0.0

    def probabilities(self, texts: Iterable[str]) -> np.ndarray:
        """Calibrated probabilities (N, classes).

        Raises:
            ValueError: no texts, an empty text, a reader of another vocabulary, or a task with
                many labels.
        """
        if any(column.target and column.shape for column in self.task.columns):
            raise ValueError(
                "task must have one label a text (many=False), got many=True; temperature and "
                "threshold need probabilities that sum to one; use jaxops.predict"
            )
        vocabulary = self.task.columns[0].classes
        if vocabulary not in (None, self.read.vocabulary):
            raise ValueError(
                f"read must have a vocabulary of {vocabulary:,} (the module's), got "
                f"{self.read.vocabulary:,}; it is the reader of another model"
            )
        return scaled(predict(self.task, self.state, self.read(texts)), self.temperature)


class Decision(NamedTuple):
    """The decision for one text.

    Attributes:
        label: the likeliest class.
        probability: the calibrated probability of the label.
        in_scope: whether the probability reaches the threshold.
        words: each word of the text with its evidence for the label: by how much the log-odds of
            the label fall, in nats, when the word is left out. Empty with `words=False`.

    >>> Decision("lost", 0.9, in_scope=True, words=(("lost", 2.2),)).label
    'lost'
    """

    label: str
    probability: float
    in_scope: bool
    words: tuple[tuple[str, float], ...] = ()


def calibrate(
    task: Task,
    state: TrainState,
    read: Reader,
    texts: Iterable[str],
    labels: np.ndarray,
    keep: float = 0.95,
) -> Classifier:
    """Fit the temperature and the threshold on validation texts.

    The temperature minimises the validation loss; the threshold is the quantile of the largest
    probabilities that leaves a share `keep` of the texts in scope.

    Args:
        task: made by `text.classifier`, with one label a text.
        state: trained state of the task.
        read: the reader that training used.
        texts: N validation texts, all in scope.
        labels: (N,) integers, their classes.
        keep: share of these texts that the threshold leaves in scope.

    Returns:
        The classifier, for `classify` and `save`.

    Raises:
        ValueError: no texts, an empty text, labels that are not classes, a reader of another
            vocabulary, a task with many labels, or `keep` outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep}")
    classifier = Classifier(task, state, read)
    probabilities = classifier.probabilities(texts)
    t = temperature(probabilities, labels)
    threshold = np.quantile(scaled(probabilities, t).max(1), 1 - keep)
    return classifier._replace(temperature=t, threshold=float(threshold))


def classify(classifier: Classifier, texts: Iterable[str], words: bool = True) -> list[Decision]:
    """Label, calibrated probability, scope, and the evidence of each word.

    The evidence of a word is measured by leaving it out: the text is classified once more for each
    of its words. It is exact for that word alone; of two words with the same meaning neither has
    much. A text of one word is compared with equal probabilities for all classes.

    Args:
        classifier: see `calibrate` and `load`.
        texts: N texts.
        words: whether to compute the evidence of each word.

    Returns:
        N decisions; see `Classifier` for an example.

    Raises:
        ValueError: no texts, an empty text, a text that is not a `str`, a reader of another
            vocabulary, or a task with many labels.
    """
    texts = check_texts(texts)
    probabilities = classifier.probabilities(texts)
    best = probabilities.argmax(1)
    parts = [text.split() if words else [] for text in texts]
    left = iter(_without_each_word(classifier, parts, best))
    decisions = []
    for row, number, own_words in zip(probabilities, best, parts, strict=True):
        rest = [next(left) if len(own_words) > 1 else 1 / len(row) for _ in own_words]
        evidence = [float(_log_odds(row[number]) - _log_odds(q)) for q in rest]
        decisions.append(
            Decision(
                classifier.task.classes[number],
                float(row[number]),
                bool(row[number] >= classifier.threshold),
                tuple(zip(own_words, evidence, strict=True)),
            )
        )
    return decisions


def _without_each_word(
    classifier: Classifier, parts: list[list[str]], best: np.ndarray
) -> np.ndarray:
    """The probability of a text's best class without each of its words; texts of one have none."""
    shorter = [
        (i, " ".join([*row[:j], *row[j + 1 :]]))
        for i, row in enumerate(parts)
        for j in range(len(row))
        if len(row) > 1
    ]
    if not shorter:
        return np.zeros(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the full texts have given it already
        probabilities = classifier.probabilities([text for _, text in shorter])
    return probabilities[np.arange(len(shorter)), best[[i for i, _ in shorter]]]


def _log_odds(p: Any) -> Any:
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return np.log(p) - np.log1p(-p)


def save(path: str | Path, classifier: Classifier) -> None:
    """Write a classifier to one model file, its reader included; see `jaxops.save`.

    Args:
        path: the file.
        classifier: see `calibrate`.
    """
    about = {
        **classifier.read.about(),
        "temperature": classifier.temperature,
        "threshold": classifier.threshold,
    }
    files.save(path, Model(classifier.task, classifier.state, about=about))


def load(path: str | Path) -> Classifier:
    """The classifier of a model file that `text.save` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a model file, or one without a reader of texts.
    """
    model = files.load(path)
    about = model.about
    try:
        read = reader(about)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Classifier(
        model.task, model.state, read, about.get("temperature", 1.0), about.get("threshold", 0.0)
    )


def search(
    queries: str | Sequence[str], index: Index, k: int = 10, encode: Encode | None = None
) -> Found:
    """The best documents for each query: by words, or with `encode` by words and vectors fused.

    With `encode` the best 100 documents (or k, if larger) of `text.by_words` and of
    `text.by_vectors` are fused, see `text.fuse`.

    Args:
        queries: texts, or one text.
        index: made by `text.index`.
        k: number of documents for each query, at most the number of all documents.
        encode: the one the index was made with; without it only words count.

    Raises:
        ValueError: no query, an empty query, `k` outside 1 to N, or `encode` for an index without
            vectors.

    >>> from jaxops import text
    >>> found = search("a red card", text.index(["my card", "red card", "a bank"]), k=2)
    >>> found.documents.tolist()
    [[1, 2]]
    """
    if encode is None:
        return by_words(queries, index, k)
    check_queries(queries, index, k)
    count = min(max(k, FUSED), len(index.words.lengths))
    rankings = by_words(queries, index, count), by_vectors(queries, index, encode, count)
    return fuse([found.documents for found in rankings], k)


class Answer(NamedTuple):
    """An answer, and how certain it is.

    Attributes:
        text: the part of the passage.
        passage: the number of the passage.
        start: the character at which the answer begins in the passage.
        end: the character behind its last one.
        score: log-probability of its start plus that of its end, at most 0.
        no_answer: the smallest log-probability of "no answer" over all rows, minus `score`. Above 0
            no answer is the likelier; choose the limit on a validation set.

    >>> Answer("Ada", passage=0, start=6, end=9, score=-0.1, no_answer=-5.0).text
    'Ada'
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
        task: made by `text.spans`.
        state: trained state of the task.
        read: the reader that training used.
        question: a text.
        passages: texts, such as `search` finds.
        longest: largest number of tokens in an answer.

    Raises:
        ValueError: `longest` below 1, no passages, or texts that `Passages` refuses.

    >>> import jaxops as jo
    >>> from jaxops import nn, text
    >>> from jaxops.data import Tokenizer
    >>> read = text.Passages(Tokenizer.train(["who is it", "it is Ada"], kind="word"), context=10)
    >>> config = nn.TransformerConfig(read.tokenizer.vocabulary, context=10, depth=1, heads=1,
    ...                               width=4, causal=False, segment_types=2)
    >>> task = text.spans(text.SpanReader(config), context=10)
    >>> state = jo.init_state(task, jo.optim.sgd(0.1), 0, read(["who is it"], ["it is Ada"]))
    >>> found = answer(task, state, read, "who is it", ["it is Ada"], longest=1)
    >>> found.text in ("it", "is", "Ada"), found.passage  # not trained: any word
    (True, 0)
    """
    if longest < 1:
        raise ValueError(f"longest must be at least 1, got {longest}")
    passages = check_texts(passages)
    rows = read([question] * len(passages), passages)
    log_p = predict(task, state, rows)
    first, last, score = map(np.asarray, best_span(log_p[..., 0], log_p[..., 1], longest))
    row = int(score.argmax())
    passage = int(rows["pair"][row])
    start = int(rows["characters"][row, first[row], 0])
    end = int(rows["characters"][row, last[row], 1])
    part = passages[passage][start:end]
    start, end = end - len(part.lstrip()), start + len(part.rstrip())  # a token may hold a blank
    none = float(log_p[:, 0].sum(-1).min()) - float(score[row])
    return Answer(part.strip(), passage, start, end, float(score[row]), none)


@functools.partial(jax.jit, static_argnums=2)
def best_span(start: Array, end: Array, longest: int) -> tuple[Array, Array, Array]:
    """The span i to j with the largest `start[i] + end[j]`, by exhaustive search.

    Args:
        start: (B, T), log-probabilities or logits; the first place is "no answer" and left out.
        end: (B, T).
        longest: i <= j < i + longest.

    Returns:
        i and j, int32 (B,), and the sum (B,). Of equal sums the first start, then the
        shortest span.

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
