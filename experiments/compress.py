"""Finished models in fewer bytes: what it costs in accuracy, and what it gains in bytes and time.

- c03: the convolutional network of article 002 on MNIST.
- c08: the perceptron of article 004 on MNIST, with half of its units taken out.
- banking77: 77 intents, the default of `text.fit`.
- adult: incomes of the census, the default of `tabular.fit` (TabM).
- beauty: SASRec over 54,542 items, whose table is nearly all of the model; 10,000 users are scored.

Each variant is measured beside its original by `compress.receipt`, on the test rows: accuracy (or
NDCG@10) with the interval of the difference, bytes of the file and of the arrays, and the median
times of calls for 1, 64 and 1,024 rows, the two models by turns. For a recommender a call is
`recommend.recommend` with k=10. Receipts are written to `seed-N/`, and the picture `pareto.png`.

Wanted: with int8 at most 27 % of the bytes of the file, and no more than 0.2 points of accuracy
lost; with half of the units a shorter time.

    JAXOPS_DATA_DIR=DATA python -m experiments.compress [--only c03 adult] [--seeds 3]
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import jaxops as jo
from experiments import beauty_sequences, common
from experiments.defaults import adult_frames, folder_of
from jaxops import compress, tabular, text, vision
from jaxops import recommend as r
from jaxops.trust.evaluation import Evaluation, of_classes

PUBLISHED: dict[str, Any] = {}
BITS: dict[str, dict[str, Any]] = {
    "bf16": {"bits": "bf16"},
    "fp8": {"bits": "fp8"},
    "int8": {},
    "int4": {"bits": 4},
    "int4, largest": {"bits": 4, "scales": "max"},
}
CALLED = (1, 64, 1024)
USERS = 10_000  # of Beauty, who are scored


@dataclass(frozen=True)
class Settings(common.Settings):
    """What is tried."""

    only: tuple[str, ...] = ()
    """models; all by default"""
    budget: str = "5min"
    """of `text.fit` and `tabular.fit`"""
    epochs: int = 5
    """passes over MNIST"""
    passes: int = 4
    """passes over the log of SASRec, of the 12 that it takes to the best validation figure"""


class Job(NamedTuple):
    """A trained model, its test data, and further models that are made of it.

    Attributes:
        model: the original.
        data: test data.
        metric: the figure that is told.
        further: name -> model, besides the models of fewer bits.
        options: of `compress.receipt`.
    """

    model: jo.Model
    data: Any
    metric: str
    further: dict[str, jo.Model]
    options: dict[str, Any]


def digits_evaluated(model: jo.Model, test: dict[str, Any]) -> Evaluation:
    """The scores of a model of MNIST."""
    p = model.predict({"image": test["image"]})
    return of_classes("image", np.arange(len(p)), p, test["label"])


def trained(task: jo.Task, settings: Settings, seed: int, folder: Path, **options: Any) -> Any:
    """MNIST, and a network that learned it."""
    digits = common.mnist(settings.smoke)
    options = {"epochs": 1 if settings.smoke else settings.epochs, "seed": seed, **options}
    state = jo.fit(task, digits.train, reports=common.Log(folder, False), **options)
    return digits, jo.Model(task, state)


def c03(settings: Settings, seed: int, folder: Path) -> Job:
    """A small convolutional network; also with products of int8, and trained for int4."""
    task = vision.classifier(vision.CNN(initializer="keras"))
    adam = jo.optim.adam(1e-3, eps=1e-7)
    digits, model = trained(task, settings, seed, folder, optimizer=adam, batch_size=32)
    further = {}
    for name, product in (("int8 x int8", "int8"), ("int8, faster product", "fastest")):
        some = {"image": digits.train["image"][:1024]}
        further[name] = compress.quantise(model, activations=some, product=product)
    known = compress.aware(model, 4, scales="max")
    state = jo.fit(
        known.task,
        digits.train,
        optimizer=jo.optim.adam(1e-4),
        batch_size=128,
        epochs=1,
        seed=seed,
        state=known.state,
    )
    further["int4, trained"] = compress.quantise(replace(known, state=state), 4, scales="max")
    return Job(model, digits.test, "accuracy", further, {"evaluate": digits_evaluated})


def c08(settings: Settings, seed: int, folder: Path) -> Job:
    """A perceptron of two layers; also with half of their units, and of those in int8."""
    task = vision.classifier(vision.MLP((256, 128)))
    adam = jo.optim.adam(1e-3)
    digits, model = trained(task, settings, seed, folder, optimizer=adam, batch_size=64)
    more = {"data": digits.train, "epochs": 1 if settings.smoke else 3, "seed": seed}
    half = compress.structured(model, share=0.5, **more)
    further = {"half": half, "half, int8": compress.quantise(half)}
    return Job(model, digits.test, "accuracy", further, {"evaluate": digits_evaluated})


def banking77(settings: Settings, seed: int, folder: Path) -> Job:
    """77 intents of banking questions."""
    train, test = (
        pd.read_csv(folder_of("banking77") / f"{split}.csv").rename(columns={"category": "label"})
        for split in ("train", "test")
    )
    model = text.fit(train, budget=settings.budget, seed=seed, progress=False)
    return Job(model, test, "accuracy", {}, {})


def adult(settings: Settings, seed: int, folder: Path) -> Job:
    """Incomes of the census; also with products of int8 where they are faster."""
    train, test = adult_frames()
    split = np.load(folder_of("adult") / "split.npz")
    rest, held = (train.iloc[split[part]] for part in ("train", "val"))
    options = {"validation": held, "budget": settings.budget, "seed": seed, "progress": False}
    model = tabular.fit(rest, tabular.TabM(), label="income", **options)
    further = {
        "int8, faster product": compress.quantise(model, activations=rest[:1024]),
        "int8 x int8": compress.quantise(model, activations=rest[:1024], product="int8"),
    }
    return Job(model, test, "accuracy", further, {})


def beauty(settings: Settings, seed: int, folder: Path) -> Job:
    """The next of 54,542 items."""
    split = beauty_sequences.read(beauty_sequences.Settings(smoke=settings.smoke))
    sizes: dict[str, Any] = {"dropout": 0.4}
    if settings.smoke:
        sizes = {"width": 16, "depth": 1, "dropout": 0.0}
    module = r.sasrec(len(split.train.items), 50, **sizes)
    state = jo.fit(
        r.next_item(module, r.CrossEntropy()),
        r.rows(split.train.histories(), 51, overlap=1),
        optimizer=jo.optim.adam(1e-3),
        batch_size=16,
        epochs=1 if settings.smoke else settings.passes,
        seed=seed,
    )
    recommender = r.sequence_recommender(module, state, split.train)
    histories, targets = (
        first(one.histories(), USERS) for one in (split.before_test(), split.test)
    )

    @functools.cache
    def evaluate(model: jo.Model, data: Any) -> Evaluation:
        return r.evaluated(model, histories, targets, counts=recommender.counts)

    few = {count: first(histories, count) for count in CALLED}

    def call(model: jo.Model, rows: int) -> Any:
        return r.recommend(model, few[rows], k=10)

    model = jo.Model(recommender, None, r.LogReader(time=None))
    table = {"int8, the table alone": compress.quantise(model, keep="block|positions")}
    return Job(model, None, "ndcg@10", table, {"evaluate": evaluate, "call": call})


def first(histories: r.Histories, count: int) -> r.Histories:
    """The histories of the first users."""
    starts = histories.starts[: count + 1]
    return r.Histories(histories.items[: starts[-1]], starts)


JOBS: dict[str, Callable[[Settings, int, Path], Job]] = {
    job.__name__: job for job in (c03, c08, banking77, adult, beauty)
}


def variants(job: Job, smoke: bool) -> Iterator[tuple[str, jo.Model]]:
    """Each model that is made of a job's."""
    for name, options in BITS.items():
        if not smoke or name == "int8":
            yield name, compress.quantise(job.model, **options)
    yield from job.further.items()


def row_of(receipt: compress.Receipt, metric: str, side: str) -> dict[str, float]:
    """What the table tells of the original or of the compressed model of a receipt."""
    figure = next(row for row in receipt.figures if row["metric"] == metric)
    row = {metric: figure[side]}
    if side == "compressed":
        row |= {name: figure[name] for name in ("difference", "low", "high")}
    sizes = {one["what"]: one for one in receipt.sizes}
    row["file_bytes"] = sizes["bytes on disk"][side]
    row["file_share"] = row["file_bytes"] / sizes["bytes on disk"]["original"]
    row["memory_share"] = sizes["bytes in memory"][side] / sizes["bytes in memory"]["original"]
    for times in receipt.times:
        row[f"ms_{times['rows']}"] = times[f"{side} p50"]
        row[f"time_share_{times['rows']}"] = times[f"{side} p50"] / times["original p50"]
    return row


def run(settings: Settings, seed: int, folder: Path) -> dict[str, Any]:
    """Each model, in each form."""
    unknown = [name for name in settings.only if name not in JOBS]
    if unknown:
        raise ValueError(f"only must name some of {', '.join(JOBS)}, got {unknown[0]!r}")
    rows: dict[str, dict[str, float]] = {}
    metrics: dict[str, Any] = {}
    for name in settings.only or (("c03",) if settings.smoke else tuple(JOBS)):
        own = folder / name
        own.mkdir(exist_ok=True)
        job = JOBS[name](settings, seed, own)
        jo.save(own / "original.safetensors", job.model)
        for variant, model in variants(job, settings.smoke):
            receipt = compress.receipt(job.model, model, job.data, **job.options)
            (own / f"{variant}.json").write_text(receipt.json())
            rows.setdefault(f"{name}: original", row_of(receipt, job.metric, "original"))
            rows[f"{name}: {variant}"] = row_of(receipt, job.metric, "compressed")
            common.say(f"{name}, {variant}\n\n{receipt}\n")
        small = rows[f"{name}: int8"]
        metrics[f"{name}_int8"] = small[job.metric]
        metrics[f"{name}_int8_difference"] = small["difference"]
        metrics[f"{name}_int8_file_share"] = small["file_share"]
    plot(rows, folder / "pareto.png")
    return metrics | {"models": rows}


def plot(rows: dict[str, dict[str, float]], file: Path) -> None:
    """The figure of each model against its bytes and the time of 64 rows, beside the original's."""
    from matplotlib.figure import Figure

    jobs = list(dict.fromkeys(name.partition(": ")[0] for name in rows))
    figure = Figure(figsize=(10, 3.2 * len(jobs)), layout="constrained")
    axes = figure.subplots(len(jobs), 2, squeeze=False)
    told = (("file_share", "bytes of the file"), ("time_share_64", "time of 64 rows"))
    for pair, job in zip(axes, jobs, strict=True):
        own = {n.partition(": ")[2]: x for n, x in rows.items() if n.startswith(f"{job}: ")}
        metric = next(iter(own["original"]))
        for one, (key, what) in zip(pair, told, strict=True):
            for variant, row in own.items():
                difference = 100 * row.get("difference", 0.0)
                bounds = [[difference - 100 * row.get("low", 0.0)],
                          [100 * row.get("high", 0.0) - difference]]  # fmt: skip
                one.errorbar([row[key]], [difference], yerr=bounds, fmt="o", capsize=2)
                one.annotate(variant, (row[key], difference), fontsize=7)
            one.set(xlabel=f"{what}, share of the original's", xlim=(0, None))
            one.set(ylabel=f"{metric}, points", title=job)
            one.grid(alpha=0.3)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    common.experiment("compress", Settings, run, PUBLISHED)
