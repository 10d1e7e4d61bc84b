"""What a trained classifier says of texts: label, probability, whether to answer, and why."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxops.train.evaluation
from jaxops.data.tokenizer import check_texts
from jaxops.model import files as model_file
from jaxops.state import TrainState
from jaxops.task import Task
from jaxops.text.data import Reader, reader
from jaxops.trust.calibration import scaled, temperature


class Classifier(NamedTuple):
    """A trained classifier with all that it takes to read a text and to trust the answer.

    Attributes:
        task: see `text.classifier`, of one label.
        state: of it.
        read: texts to columns.
        temperature: what the log-probabilities are divided by.
        threshold: a text is out of scope where the largest probability is below it.
    """

    task: Task
    state: TrainState
    read: Reader
    temperature: float = 1.0
    threshold: float = 0.0

    def probabilities(self, texts: Iterable[str]) -> np.ndarray:
        """Calibrated, (N, classes).

        Raises:
            ValueError: texts that cannot be meant, tokens of another vocabulary, or a task of many
                labels, whose probabilities are those of `jaxops.predict`, one by one.
        """
        if any(column.target and column.shape for column in self.task.columns):
            raise ValueError(
                "task: many=True found, a task of one label wanted: a temperature and a threshold "
                "are fitted to probabilities that sum to one; see jaxops.predict"
            )
        wanted = self.task.columns[0].classes
        if wanted not in (None, self.read.vocabulary):
            raise ValueError(
                f"read: tokens of a vocabulary of {self.read.vocabulary:,} found, of {wanted:,} "
                "wanted: they are those of another model"
            )
        found = jaxops.train.evaluation.predict(self.task, self.state, self.read(texts))
        return scaled(found, self.temperature)


class Decision(NamedTuple):
    """What is said of one text.

    Attributes:
        label: the likeliest class.
        probability: of it, calibrated.
        in_scope: False where it is too small to be believed.
        words: each word of the text and how much it speaks for the label: by how much the
            log-odds fall when it is left out, in nats. Empty where it was not asked for.
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
    """Fit temperature and threshold on validation rows.

    Args:
        task: of one label.
        state: of it.
        read: as for the train rows.
        texts: (N,) of validation, all in scope.
        labels: (N,) integers.
        keep: the share of these texts that the threshold leaves in scope.

    Raises:
        ValueError: texts or labels that cannot be meant, tokens of another vocabulary, a task of
            many labels, or a `keep` outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep: {keep} found, a share in (0, 1] wanted")
    plain = Classifier(task, state, read)
    found = plain.probabilities(texts)
    t = temperature(found, labels)
    threshold = np.quantile(scaled(found, t).max(1), 1 - keep)
    return plain._replace(temperature=t, threshold=float(threshold))


def classify(classifier: Classifier, texts: Iterable[str], words: bool = True) -> list[Decision]:
    """Label, calibrated probability, scope, and the words that carried the decision.

    A word counts by what happens without it: the text is read once more for each of its words.
    What it says is exact for that word alone; of two words that say the same, neither counts much.
    A text of one word is compared with knowing nothing, all classes being equally likely.

    Args:
        classifier: see `calibrate` and `load`.
        texts: N of them.
        words: whether to read the texts once more for each word.

    Raises:
        ValueError: no texts, one that is empty or not a `str`, tokens of another vocabulary, or a
            task of many labels.
    """
    texts = check_texts(texts)
    p = classifier.probabilities(texts)
    best = p.argmax(1)
    parts = [text.split() if words else [] for text in texts]
    shorter = [
        (i, " ".join([*row[:j], *row[j + 1 :]]))
        for i, row in enumerate(parts)
        for j in range(len(row))
        if len(row) > 1
    ]
    rows = [i for i, _ in shorter]
    without = [np.full((0, p.shape[1]), np.nan)]
    if shorter:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of rows that nobody gave
            without.append(classifier.probabilities([text for _, text in shorter]))
    fallen = iter(np.concatenate(without)[np.arange(len(rows)), best[rows]] if rows else [])
    decisions = []
    for i, row in enumerate(parts):
        own = p[i, best[i]]
        rest = [next(fallen) for _ in row] if len(row) > 1 else [1 / p.shape[1]] * len(row)
        carried = [
            (w, float(_log_odds(own) - _log_odds(r))) for w, r in zip(row, rest, strict=True)
        ]
        decisions.append(
            Decision(
                classifier.task.classes[best[i]],
                float(own),
                bool(own >= classifier.threshold),
                tuple(carried),
            )
        )
    return decisions


def _log_odds(p: Any) -> Any:
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return np.log(p) - np.log1p(-p)


def save(path: str | Path, classifier: Classifier) -> None:
    """Write it to one model file, its tokenizer inside; see `jaxops.save`."""
    about = {
        **classifier.read.about(),
        "temperature": classifier.temperature,
        "threshold": classifier.threshold,
    }
    model_file.save(path, classifier.task, classifier.state, about)


def load(path: str | Path) -> Classifier:
    """The classifier of a model file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a model file, or one that does not tell how texts are read.
    """
    model = model_file.load(path)
    about = model.about
    try:
        read = reader(about)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Classifier(
        model.task, model.state, read, about.get("temperature", 1.0), about.get("threshold", 0.0)
    )
