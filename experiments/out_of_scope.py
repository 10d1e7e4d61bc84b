"""Which score tells questions and images out of scope: AUROC, and the false rate at 95 %.

- clinc150: a TextCNN learns 150 intents; the 1,000 questions out of scope are to be told from the
  4,500 test questions in scope.
- mnist: a perceptron learns the digits; test digits that are blurred (a mean over 7 x 7 pixels),
  turned by 90 degrees, of shuffled pixels, and uniform noise are to be told from the test digits.

The scores are the largest probability, the energy of the logits, and in the last hidden layer the
Mahalanobis distance, the relative one, and the distances to the nearest and the 10th nearest of
5,000 train rows (33 of each intent, 500 of each digit). No score has seen a row out of scope.
CLINC150 has 100 more questions out of scope for validation: `validation` is the AUROC of them and
the validation questions, and `clinc150_auroc` the test figure of the score that has the highest.
`fpr95` is the share of the rows out of scope that are answered where 95 %
of the test rows in scope are. `refused` and `caught` use the threshold that refuses 5 % of
validation rows: the shares of test rows in scope and out of scope that it refuses.

    JAXOPS_DATA_DIR=DATA python -m experiments.out_of_scope [--seeds 3]
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import jaxops as jo
from experiments import common, intents
from jaxops import text, uncertainty, vision

PUBLISHED = {"clinc150_auroc": "0.949 (linear SVM on tf-idf, of clinc_intents)"}
REFUSED = 0.05
NEIGHBOURS = {"1st neighbour": 1, "10th neighbour": 10}
KEPT = 5000  # train rows of the neighbours
Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Settings(common.Settings):
    """How the networks learn."""

    only: tuple[str, ...] = ()
    """data sets; all by default"""
    text_epochs: int = 8
    image_epochs: int = 5


def scores(
    known: uncertainty.Hidden, label: np.ndarray
) -> dict[str, Callable[[uncertainty.Hidden], np.ndarray]]:
    """Each score as a function of features and logits."""
    relative = uncertainty.Mahalanobis.fit(known.features, label, relative=True)
    plain = replace(relative, relative=None)
    some = known.features[np.random.default_rng(0).permutation(len(label))[:KEPT]]
    near = {name: uncertainty.Neighbours.fit(some, k) for name, k in NEIGHBOURS.items()}

    def largest(told: uncertainty.Hidden) -> np.ndarray:
        z = told.logits - told.logits.max(1, keepdims=True)
        return 1 / np.exp(z).sum(1)

    def of_features(fitted: Any) -> Callable[[uncertainty.Hidden], np.ndarray]:
        return lambda told: fitted.score(told.features)

    return {
        "largest probability": largest,
        "energy": lambda told: uncertainty.energy(told.logits),
        "Mahalanobis": of_features(plain),
        "relative Mahalanobis": of_features(relative),
        **{name: of_features(one) for name, one in near.items()},
    }


def rows_of(
    model: jo.Model,
    train: tuple[Any, np.ndarray],
    validation: Any,
    test: Any,
    outside: dict[str, Any],
    unknown: dict[str, Any],
) -> Rows:
    """The figures of each score for each kind of rows out of scope, some also for validation."""
    inside = uncertainty.hidden(model, test)
    held = uncertainty.hidden(model, validation)
    others, unknown = (
        {name: uncertainty.hidden(model, rows) for name, rows in given.items()}
        for given in (outside, unknown)
    )
    rows: Rows = {}
    for name, score in scores(uncertainty.hidden(model, train[0]), train[1]).items():
        _, threshold = uncertainty.refusal(score(held), accuracy=1 - REFUSED)
        known = score(inside)
        for kind, told in others.items():
            other = score(told)
            found = uncertainty.detection(known, other)
            rows[f"{kind}: {name}"] = {
                "auroc": found.auroc,
                "fpr95": found.fpr95,
                "refused": float((known < threshold).mean()),
                "caught": float((other < threshold).mean()),
            }
            if kind in unknown:
                apart = uncertainty.detection(score(held), score(unknown[kind]))
                rows[f"{kind}: {name}"]["validation"] = apart.auroc
    return rows


def clinc150(settings: Settings, seed: int) -> tuple[Rows, float]:
    """Questions; and the accuracy in scope."""
    warnings.filterwarnings("ignore", message="texts must ")  # the longest are truncated
    data = intents.load("clinc150", settings.smoke)
    names = np.array(data.classes, object)
    parts = {
        name: pd.DataFrame({"text": rows["text"], "label": names[rows["label"]]})
        for name, rows in data.splits.items()
        if "label" in rows
    }
    small = settings.smoke
    cnn = text.TextCNN(
        4096, len(names), width=16 if small else 64, filters=16 if small else 100, word_dropout=0.1
    )
    model = text.fit(parts["train"], cnn, validation=parts["validation"], seed=seed,
                     epochs=settings.text_epochs, progress=False)  # fmt: skip
    number = {name: i for i, name in enumerate(model.task.classes)}
    label = np.array([number[name] for name in parts["train"]["label"]])
    outside, unknown = (
        {"clinc150": data.splits[f"{part}_out_of_scope"]["text"].tolist()}
        for part in ("test", "validation")
    )
    texts = [parts[name]["text"].tolist() for name in ("train", "validation", "test")]
    accuracy = text.evaluate(model, parts["test"]).figures()["accuracy"]
    return rows_of(model, (texts[0], label), texts[1], texts[2], outside, unknown), accuracy


def mnist(settings: Settings, seed: int) -> tuple[Rows, float]:
    """Digits; and the accuracy in scope."""
    from scipy.ndimage import uniform_filter

    digits = common.mnist(settings.smoke, validation=0.1)
    task = vision.classifier(vision.MLP())
    state = jo.fit(task, digits.train, optimizer=jo.optim.adam(1e-3), batch_size=128, seed=seed,
                   epochs=settings.image_epochs, progress=False)  # fmt: skip
    model = jo.Model(task, state)
    rng = np.random.default_rng(seed)
    images = digits.test["image"]
    pixels = images.reshape(len(images), -1)
    outside = {
        "blurred": uniform_filter(images, (1, 7, 7, 1)),
        "turned": np.rot90(images, axes=(1, 2)).copy(),
        "shuffled": rng.permuted(pixels, axis=1).reshape(images.shape),
        "noise": rng.integers(0, 256, images.shape).astype(np.uint8),
    }
    outside = {f"mnist, {name}": rows for name, rows in outside.items()}
    accuracy = float(jo.evaluate(task, state, digits.test)["accuracy"])
    known = digits.train["image"], digits.train["label"]
    rows = rows_of(model, known, digits.validation["image"], images, outside, {})
    return rows, accuracy


SETS = {"clinc150": clinc150, "mnist": mnist}


def run(settings: Settings, seed: int, folder: Path) -> dict[str, Any]:
    """Both data sets; what is done is kept, so that `--resume` goes on."""
    if settings.smoke:
        settings = replace(settings, text_epochs=1, image_epochs=1)
    rows: Rows = {}
    metrics: dict[str, float] = {}
    for name, (found, accuracy) in common.each_set(SETS, settings, seed, folder):
        metrics[f"{name}_accuracy"] = accuracy
        rows |= found
        common.say(f"seed {seed}: {name} done")
    own = [row for row in rows.values() if "validation" in row]
    if own:
        metrics["clinc150_auroc"] = max(own, key=lambda row: row["validation"])["auroc"]
    plot(rows, folder / "auroc.png")
    return metrics | {"models": rows}


def plot(rows: Rows, file: Path) -> None:
    """The area under the ROC curve of each score."""
    from matplotlib.figure import Figure

    kinds = [*dict.fromkeys(name.split(": ")[0] for name in rows)]
    names = [*dict.fromkeys(name.split(": ")[1] for name in rows)]
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(names):
        heights = [rows[f"{kind}: {name}"]["auroc"] for kind in kinds]
        axes.bar(np.arange(len(kinds)) + (i - 2.5) * 0.14, heights, 0.13, label=name)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set(ylabel="AUROC", ylim=(0.4, 1))
    axes.legend(fontsize="small", ncols=3, loc="lower center")
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    common.experiment("out_of_scope", Settings, run, PUBLISHED)
