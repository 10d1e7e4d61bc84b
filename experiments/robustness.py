"""What worse input costs: noise, typing errors, missing cells, gaps, attacks; what training gains.

- mnist: a convolutional network on 20,000 digits, trained as usual, against PGD (epsilon 25/255,
  four steps), and with normal noise of 64/255. Ten corruptions; `pgd` with 20 steps and epsilon 12,
  25 and 51 of 255; `certified` is the share of 200 digits that randomised smoothing with that noise
  tells rightly, and holds within a radius of 0.125, 0.25 and 0.5 (1,000 draws; "clean" is without a
  radius). 1,000 test digits.
- adult: a perceptron, and beside it scikit-learn's boosted trees; outliers and missing cells, and
  of the perceptron `pgd` with epsilon 0.05, 0.1 and 0.2 standard deviations. 3,000 test rows.
- banking77: an n-gram bag of 77 intents; typing errors. 1,000 test questions.
- etth1: NLinear, 24 hours ahead, all seven channels; spikes and gaps in the 30 days before.
  30 windows of the test months. Its figure is the mean absolute error, in the channels' unit; the
  others have the accuracy.

The columns are the levels 1, 3 and 5 of `jaxops.robustness.corrupt`, or the three strengths above.
No model has been chosen or trained by corrupted rows, but for those of mnist that say so. A seed
needs about seven minutes of one core.

    JAXOPS_DATA_DIR=DATA python -m experiments.robustness [--seeds 3]
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import jaxops as jo
from experiments import common, etth, intents
from experiments.coverage import people
from jaxops import forecast, robustness, tabular, text, vision
from jaxops.trust._figures import save_figure
from jaxops.trust.page import grid

PUBLISHED = {"mnist_pgd": "no publication of this network and length of training"}
LEVELS = (1, 3, 5)
EPSILON, SIGMA = 25, 64  # of training, in steps of 255
STRENGTHS = {"images": (12, EPSILON, 51), "tables": (0.05, 0.1, 0.2), "radii": (32, 64, 128)}
CONTEXT, HORIZON = 336, 24
Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Settings(common.Settings):
    """How long is trained, and what is tried."""

    epochs: int = 3
    """of the networks of images, tables and series; of texts thrice as many"""
    only: tuple[str, ...] = ()
    """data sets; all by default"""


def levels_of(clean: float, values: list[float]) -> dict[str, float]:
    """A row of the result."""
    return {"clean": clean} | dict(zip(("1", "3", "5"), values, strict=True))


def of_kinds(name: str, model: jo.Model, rows: Any, labels: Any, seed: int, **options: Any) -> Rows:
    """A row for each kind of corruption."""
    found = robustness.corrupted(model, rows, labels, levels=LEVELS, seed=seed, **options)
    clean = found.interval().mean
    return {
        f"{name}: {kind}": levels_of(clean, [found.interval(kind, one).mean for one in LEVELS])
        for kind in dict.fromkeys(kind for kind, _ in found.values)
    }


def attacked(model: jo.Model, columns: Any, strengths: tuple[float, ...], seed: int) -> Any:
    """The row of PGD."""

    def accuracy(rows: Any) -> float:
        return float(jo.evaluate(model.task, model.state, rows)["accuracy"])

    return levels_of(
        accuracy(columns),
        [accuracy(robustness.pgd(model.task, model.state, columns, one, seed=seed))
         for one in strengths],
    )  # fmt: skip


@functools.lru_cache(maxsize=1)  # so that all seeds have one program
def noisy(task: jo.Task) -> jo.Task:
    """The task that learns from images with normal noise."""

    def loss(params: Any, extra: Any, batch: Any, key: Any, train: bool) -> Any:
        if train:
            image = batch["image"].astype(jnp.float32)
            noise = SIGMA * jax.random.normal(jax.random.fold_in(key, 1), image.shape)
            batch = {**batch, "image": image + noise}
        return task.loss(params, extra, batch, key, train)

    return task._replace(loss=loss)


def mnist(settings: Settings, seed: int) -> Rows:
    """Three networks of digits."""
    digits = common.mnist(settings.smoke)
    sizes = (300, 60, 20) if settings.smoke else (20_000, 1_000, 200)
    train, test, few = (
        {name: column[:size] for name, column in part.items()}
        for part, size in zip((digits.train, digits.test, digits.test), sizes, strict=True)
    )
    task = vision.classifier(vision.CNN())
    tasks = {"plain": task, "adversarial": robustness.adversarial(task, EPSILON, steps=4),
             "noise": noisy(task)}  # fmt: skip
    rows: Rows = {}
    for name, learned in tasks.items():
        state = jo.fit(learned, train, optimizer=jo.optim.adam(1e-3), batch_size=100, seed=seed,
                       epochs=settings.epochs, progress=False)  # fmt: skip
        model = jo.Model(task, state)
        rows |= of_kinds(f"mnist, {name}", model, test["image"], test["label"], seed)
        rows[f"mnist, {name}: pgd"] = attacked(model, test, STRENGTHS["images"], seed)
        held = robustness.smoothed(task, state, SIGMA).certify(
            few, draws=100 if settings.smoke else 1000, seed=seed
        )
        rows[f"mnist, {name}: certified"] = levels_of(
            held.accuracy(few["label"]),
            [held.accuracy(few["label"], radius) for radius in STRENGTHS["radii"]],
        )
    return rows


def adult(settings: Settings, seed: int) -> Rows:
    """Incomes of the census."""
    train, test, label = people("adult", settings.smoke)
    test = test[: 100 if settings.smoke else 3_000].reset_index(drop=True)
    rows: Rows = {}
    methods: dict[str, tuple[Any, dict[str, Any]]] = {
        "perceptron": (tabular.MLP((64, 64)), {"epochs": settings.epochs}),
        "trees": (tabular.HistGradientBoosting(), {}),
    }
    for name, (method, options) in methods.items():
        model = tabular.fit(train, method, label=label, seed=seed, progress=False, **options)
        rows |= of_kinds(f"adult, {name}", model, test, test[label], seed)
        if options:
            _, columns = model.reader.columns(test, label=True)
            rows[f"adult, {name}: pgd"] = attacked(model, columns, STRENGTHS["tables"], seed)
    return rows


def banking77(settings: Settings, seed: int) -> Rows:
    """Questions to a bank."""
    warnings.filterwarnings("ignore", message="texts must ")  # the longest are truncated
    data = intents.load("banking77", settings.smoke)
    names = np.array(data.classes, object)
    train = pd.DataFrame({"text": data.train["text"], "label": names[data.train["label"]]})
    bag = text.NGramBag(1024 if settings.smoke else 2**14, len(names), dropout=0.1)
    model = text.fit(train, bag, epochs=3 * settings.epochs, seed=seed, progress=False)
    some = np.random.default_rng(0).permutation(len(data.test["text"]))[:1000]
    texts = [str(data.test["text"][row]) for row in some]
    return of_kinds("banking77", model, texts, names[data.test["label"][some]], seed)


def etth1(settings: Settings, seed: int) -> Rows:
    """Temperatures and loads, 24 hours ahead."""
    series = etth.read(etth.Settings(smoke=settings.smoke), "ETTh1")
    end, context = (1800, CONTEXT) if settings.smoke else (11_520, 720)
    channels = [*series.channels]
    table = pd.DataFrame(series.values, columns=channels)
    table.insert(0, "time", series.times())
    model = forecast.fit(
        table[:end].assign(id="ETTh1"), forecast.NLinear(CONTEXT, HORIZON), horizon=HORIZON,
        value=channels, levels=(), fill="linear", seed=seed, epochs=settings.epochs,
        progress=False,
    )  # fmt: skip
    starts = range(end, len(table) - HORIZON, 96)
    before = pd.concat(
        [table[start - context : start].assign(id=f"{start:05d}") for start in starts],
        ignore_index=True,
    )
    after = np.stack([series.values[start : start + HORIZON] for start in starts])
    return of_kinds("etth1", model, before, after, seed, columns=channels)


SETS: dict[str, Callable[[Settings, int], Rows]] = {
    "mnist": mnist,
    "adult": adult,
    "banking77": banking77,
    "etth1": etth1,
}


def run(settings: Settings, seed: int, folder: Path) -> dict[str, Any]:
    """Every data set; what is done is kept, so that `--resume` goes on."""
    if settings.smoke:
        settings = replace(settings, epochs=1)
    rows: Rows = {}
    for name, found in common.each_set(SETS, settings, seed, folder):
        common.say(f"seed {seed}: {name} done")
        rows |= found
    metrics = {}
    if "mnist, plain: pgd" in rows:
        metrics["mnist_pgd"] = rows["mnist, adversarial: pgd"]["3"]
        metrics["mnist_pgd_plain"] = rows["mnist, plain: pgd"]["3"]
        metrics["mnist_certified"] = rows["mnist, noise: certified"]["3"]
    plot(rows, folder / "robustness.png")
    return metrics | {"models": rows}


def plot(rows: Rows, file: Path) -> None:
    """A panel for each data set and strength, a line for each model or kind."""
    panels: dict[str, dict[str, list[list[float]]]] = {}
    for name, row in rows.items():
        model, kind = name.split(": ")
        of, _, model = model.partition(", ")
        if of == "mnist":
            kind = kind if kind in ("pgd", "certified") else "mean of ten corruptions"
        if not model:
            kind, model = ("typing errors" if of == "banking77" else "absolute error"), kind
        lines = panels.setdefault(f"{of}: {kind}", {})
        lines.setdefault(model, []).append([*row.values()])

    def draw(axes: Any, lines: dict[str, list[list[float]]]) -> None:
        for label, values in lines.items():
            axes.plot((0, *LEVELS), np.mean(values, axis=0), ".-", label=label)
        axes.set(xticks=(0, *LEVELS), xlabel="level or strength")
        axes.legend(fontsize=6, frameon=False)

    save_figure(grid(panels, draw), file)


if __name__ == "__main__":
    common.experiment("robustness", Settings, run, PUBLISHED)
