"""Variational dropout against over-fitting: an LSTM that reads Shakespeare word by word.

The same module is trained twice on the first 40,000 words of tinyshakespeare, long enough to
over-fit: without dropout, and with one mask for each row and all of its steps, on embeddings,
inputs, states and outputs (Gal and Ghahramani 2016, arXiv:1512.05287). The losses, in nats a word,
are those after the last step, on train and on a tenth of the text that was used for no choice (the
sizes of module and train set were chosen on the last tenth, so that the plain module over-fits).
`gap_closed` is the share of the gap between the two that dropout removes. The mean of the
probabilities under many masks (Monte Carlo) is compared with the unmasked weights (mean field).

Words that occur less than three times in train count as the same rare word.

Expected over three seeds: 3.779 ± 0.009 without dropout, 3.752 ± 0.002 with it, 3.730 ± 0.004 by
Monte Carlo, 0.54 of the gap closed; 140 s a seed on two shared CPU cores.

    python -m experiments.variational_lstm [--seeds 3]
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxops as jo
from experiments import common
from jaxops import language
from jaxops.transforms import monte_carlo

PUBLISHED: dict[str, Any] = {}
WORD = re.compile(r"[a-z']+|[^\sa-z']|\n")


@dataclass(frozen=True)
class Settings(common.Settings):
    """Of the network and of its dropout."""

    words: int = 40_000
    """of train, the first ones: few, so that there is something to be over-fitted"""
    epochs: int = 24
    batch_size: int = 32
    length: int = 32
    """words in a row"""
    width: int = 256
    learning_rate: float = 4e-3
    dropout: float = 0.4
    """of embeddings' features and of what goes to the logits"""
    recurrent_dropout: float = 0.2
    word_dropout: float = 0.1
    samples: int = 30
    """masks of the Monte Carlo prediction"""


def rows(text: str, count: int, length: int) -> tuple[list[dict[str, Any]], int]:
    """Columns `tokens` (N, length + 1) of train, validation, test, and the vocabulary's size.

    Train are the first `count` words, validation is the last tenth of the text, and test, which
    nothing was chosen by, the tenth before it.
    """
    words = WORD.findall(text.lower())
    test, validation = len(words) * 8 // 10, len(words) * 9 // 10
    train = words[: min(count, test)]
    known = [word for word, count in Counter(train).items() if count >= 3]
    number = {word: i for i, word in enumerate(known, start=1)}  # 0 is any other
    tokens = np.array([number.get(word, 0) for word in words], np.int32)

    def cut(part: np.ndarray) -> dict[str, Any]:
        starts = np.arange(0, len(part) - length, length)
        return {"tokens": part[starts[:, None] + np.arange(length + 1)]}

    parts = tokens[: len(train)], tokens[validation:], tokens[test:validation]
    return [cut(part) for part in parts], len(known) + 1


def task_of(model: Any, length: int) -> jo.Task:
    """Each next word of a row; all rows are of one length, so a row is the mean over its words."""

    def loss(logits: jax.Array, batch: Any, train: bool) -> jax.Array:
        targets = batch["tokens"][:, 1:]
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(1)

    def metrics(logits: jax.Array, batch: Any, weights: jax.Array) -> dict[str, Any]:
        right = logits.argmax(-1) == batch["tokens"][:, 1:]
        return {"accuracy": jo.metrics.mean(right.mean(1), weights)}

    column = jo.Column("tokens", (length + 1,), "int", classes=model.vocabulary)
    inputs = lambda batch, key: batch["tokens"][:, :-1]  # noqa: E731
    return jo.supervised(model, inputs, loss, metrics, jax.nn.softmax, (column,))


def negative_log(predictions: Any, batch: Any) -> jo.metrics.Mean:
    """The loss of the mean of the probabilities."""
    of_target = jnp.take_along_axis(predictions["mean"], batch["tokens"][:, 1:, None], 2)[..., 0]
    return jo.metrics.mean(-jnp.log(of_target).mean(1), jo.row_weights(batch))


def run(settings: Settings, seed: int, folder: Path) -> dict[str, float]:
    """Train without and with dropout, and compare."""
    if settings.smoke:
        settings = replace(settings, width=32, samples=4)
    text = "".join(common.shakespeare(settings.smoke))[: 40_000 if settings.smoke else None]
    parts, vocabulary = rows(text, settings.words, settings.length)
    train, validation, test = parts
    print(f"{len(train['tokens']):,} rows of {settings.length} words, {vocabulary:,} known")
    plain = language.Recurrent(vocabulary, settings.width)
    variational = plain.clone(
        dropout=settings.dropout,
        recurrent_dropout=settings.recurrent_dropout,
        word_dropout=settings.word_dropout,
    )
    epochs = 2 if settings.smoke else settings.epochs
    steps = epochs * -(-len(train["tokens"]) // settings.batch_size)
    rate = jo.optim.cosine(settings.learning_rate, steps, warmup=steps // 20)
    values: dict[str, float] = {}
    records = {}
    for name, model in (("plain", plain), ("variational", variational)):
        (folder / name).mkdir(exist_ok=True)
        log = common.Log(folder / name, settings.resume)
        task = task_of(model, settings.length)
        state = jo.fit(
            task,
            train,
            optimizer=jo.optim.chain(jo.optim.clip_by_global_norm(1.0), jo.optim.adam(rate)),
            batch_size=settings.batch_size,
            epochs=epochs,
            validation=validation,
            seed=seed,
            compute="bfloat16",
            checkpoints=folder / name / "checkpoints",
            reports=log,
        )
        records[name] = log.records
        seen, unseen = (jo.evaluate(task, state, part) for part in (train, test))
        best = min(r["loss"] for r in log.records if r["split"] == "validation")
        values |= {
            f"train_loss_{name}": seen["loss"],
            f"test_loss_{name}": unseen["loss"],
            f"val_loss_{name}": log.records[-1]["loss"],
            f"val_loss_{name}_best_epoch": best,
            f"gap_{name}": unseen["loss"] - seen["loss"],
        }
    sampled = monte_carlo(task, samples=settings.samples, seed=seed)
    mean = jo.evaluate(sampled, state, test, metrics={"monte_carlo": negative_log}, batch_size=32)
    draw(records, folder / "curves.png")
    return {
        "val_loss": values["val_loss_variational"],
        "test_loss_monte_carlo": mean["monte_carlo"],
        "accuracy": mean["accuracy"],
        "gap_closed": 1 - values["gap_variational"] / values["gap_plain"],
        **values,
    }


def draw(records: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Losses by epoch of both, those of train dashed."""
    from matplotlib.figure import Figure

    figure = Figure((6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, lines), color in zip(records.items(), ("#c0504d", "#2a6f97"), strict=True):
        for split, style in (("validation", "-"), ("train", "--")):
            points = [(r["epoch"], r["loss"]) for r in lines if r["split"] == split]
            axes.plot(*np.array(points).T, style, color=color, label=f"{name}, {split}")
    axes.set(xlabel="epoch", ylabel="nats a word", title="in training dropout is on")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    common.experiment("variational_lstm", Settings, run, PUBLISHED)
