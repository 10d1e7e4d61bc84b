"""Beauty (Amazon reviews, BERT4Rec's version): the next item of each of 40,226 users, of 54,542.

Leave one out: the last item is test, the one before it validation. Ranks are among all items but
those the user has seen. Rows: SASRec by full cross-entropy, by one negative and by a sampled
softmax, eSASRec, BERT4Rec, GRU4Rec, HSTU; EASE, iALS, item-kNN, popularity; and the blend of the
best of them, which `hr@10` and `ndcg@10` are of. Epochs are chosen by NDCG@10 of 10,000 users'
validation items, as was everything else; the test items are looked at once.

Published ("Turning Dross Into Gold Loss", Klenitskiy and Vasilev 2023, arXiv:2309.07602): SASRec
with one negative .0246 / .0126, BERT4Rec .0338 / .0187, SASRec by cross-entropy .0533 / .0327.

    JAXOPS_DATA_DIR=DATA python -m experiments.beauty_sequences [--seeds 3]

For another log of `user item` lines, in the order of time, say `--file`; see also
`experiments.movielens`. A run that was stopped goes on with `--resume`.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import jaxops as jo
from experiments import common
from jaxops import recommend as r

PUBLISHED = {
    "hr@10": "0.0533 (SASRec by cross-entropy)",
    "ndcg@10": "0.0327 (SASRec by cross-entropy)",
}


@dataclass(frozen=True)
class Recipe:
    """How one model of histories is trained."""

    make: Any
    """items -> module"""
    loss: Any
    epochs: int
    learning_rate: float = 2e-3
    batch_size: int = 32
    """packed rows of 50 items, of some 230 users"""
    patience: int = 3


RECIPES = {
    "SASRec, cross-entropy": Recipe(r.sasrec, r.CrossEntropy(), 24),
    "SASRec, one negative": Recipe(r.sasrec, r.BinaryCrossEntropy(), 200, patience=10),
    "SASRec, sampled softmax": Recipe(r.sasrec, r.SampledSoftmax(4096), 40),
    "eSASRec": Recipe(r.esasrec, r.SampledSoftmax(4096), 40),
    "HSTU": Recipe(r.hstu, r.SampledSoftmax(4096), 40),
    "GRU4Rec": Recipe(r.gru4rec, r.SampledSoftmax(4096), 40),
    "BERT4Rec": Recipe(r.bert4rec, r.SampledSoftmax(4096), 150, patience=10),
}


@dataclass(frozen=True)
class Settings(common.Settings):
    """Which log, and how it is read."""

    file: Path | None = None
    """lines of `user item`; DATA/beauty/beauty.txt by default"""
    context: int = 50
    """how many of a user's last items are read"""


def read(settings: Settings) -> r.Split:
    """The log, split; a small made-up one for a smoke test."""
    if settings.smoke:
        draw = np.random.default_rng(0)
        start = draw.integers(0, 40, 300)[:, None]
        items = (start + np.arange(8) * draw.integers(1, 3, (300, 1))) % 60
        log = {"user": np.repeat(np.arange(300), 8), "item": items.ravel()}
        return r.leave_one_out(r.events(log, time=None))
    file = settings.file or Path(os.environ.get("JAXOPS_DATA_DIR", ".")) / "beauty/beauty.txt"
    log = r.events(file, time=None, header=("user", "item"), separator=" ")
    print(f"data: {file}: {log.report}")
    return r.leave_one_out(log)


def train(
    name: str, settings: Settings, split: r.Split, seed: int, folder: Path
) -> tuple[r.Recommender, dict[str, float]]:
    """One model of histories, or the one that an earlier run has left; and what it took."""
    file = folder / f"{name}.safetensors"
    if settings.resume and file.exists():
        return r.load(file), {}
    recipe, items = RECIPES[name], len(split.train.items)
    module = recipe.make(items, settings.context)
    masked = not module.config.causal
    make_task = r.masked_item if masked else r.next_item
    task = make_task(module, recipe.loss)
    length = settings.context if masked else settings.context + 1
    packed = r.rows(split.train.histories(), length, overlap=0 if masked else 1)
    validation = r.held_out(r.joined(split.train, split.validation).histories(), length)
    some = np.random.default_rng(0).permutation(len(validation["items"]))[:10_000]
    log = common.Log(folder / name, settings.resume)
    begin = time.perf_counter()
    state = jo.fit(
        task,
        packed,
        optimizer=jo.optim.adam(recipe.learning_rate),
        batch_size=recipe.batch_size,
        epochs=1 if settings.smoke else recipe.epochs,
        validation={column: values[some] for column, values in validation.items()},
        early_stopping=jo.EarlyStopping("ndcg@10", recipe.patience, "max"),
        seed=seed,
        checkpoint_dir=folder / name / "checkpoints",
        resume=settings.resume,
        on_log=log,
    )
    counts = np.bincount(split.train.item, minlength=items).astype(float)
    model = r.Recommender(r.Sequence(module), state.params, split.train.items, counts)
    r.save(file, model)
    return model, {"seconds": time.perf_counter() - begin, "epochs": log.records[-1]["epoch"]}
