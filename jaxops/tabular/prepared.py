"""A module made ready for a table: how it reads it, its fields, its task, and its first state."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxops.data.encoders import Encoder, fit_encoder
from jaxops.model.selection import settings_within
from jaxops.optim import averaged
from jaxops.state import TrainState
from jaxops.tabular.data import TARGETS, TableReader
from jaxops.tabular.models import ModernNCA, Reads, RealMLP
from jaxops.tabular.recipes import SMOOTHING, recipe, steps_of
from jaxops.tabular.targets import check_levels, counts, multilabel, quantiles, zero_inflated
from jaxops.tabular.tasks import classifier, regressor
from jaxops.tabular.train_rows import (
    module_of,
    own_batches,
    start_among,
    start_candidates,
    start_own,
    with_places,
)
from jaxops.task import Task
from jaxops.train.loop import fit as train

BINS = 32  # of the piecewise linear encoding of a number
RARE = 10  # rows in which a text must stand, in tables of 20,000 rows and more
MOST = 1000  # texts of a column that have a feature of their own

Columns = dict[str, np.ndarray]


def target_kind(
    label: str | Sequence[str],
    classes: bool | None,
    target: str | None,
    levels: Sequence[float],
) -> tuple[bool | None, str, tuple[float, ...]]:
    """What a user says of the label: whether it names classes, what it is else, and levels.

    Args:
        label: see `tabular.fit`.
        classes: see `tabular.fit`.
        target: see `tabular.fit`.
        levels: see `tabular.fit`.

    Raises:
        ValueError: a label that is neither a name nor different names; an unknown target, one that
            contradicts `classes`, or one for several labels; quantiles without levels, or levels of
            another target.

    >>> target_kind("spent", None, "quantiles", [0.1, 0.9])
    (False, 'quantiles', (0.1, 0.9))
    """
    several = isinstance(label, list | tuple)
    names = [*label] if several else [label]
    named = all(isinstance(one, str) for one in names)
    if not named or len({*names}) < max(len(names), 1 + several):
        raise ValueError(
            f"label must be a column's name, or a list of at least 2 different ones, got {label!r}"
        )
    if several and (target, classes) != (None, None):
        raise ValueError(
            f"target and classes must be left out for several labels, got {target!r} and {classes}"
        )
    if target is not None and target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    if target is not None and classes is not None and classes != (target == "classes"):
        raise ValueError(f"classes must be left out for target={target!r}, got {classes}")
    if (target == "quantiles") != (len(levels) > 0):
        raise ValueError(
            'levels must be given for target="quantiles", and for no other, got '
            f"{tuple(levels)} for {target!r}"
        )
    levels = check_levels(levels) if levels else ()
    if several:
        return True, "labels", ()
    if target is None:
        return classes, "number", levels
    return target == "classes", "number" if target == "classes" else target, levels


def classifies(reader: TableReader) -> bool:
    """Whether the label names classes, or is several labels."""
    return reader.kind in ("classes", "labels")


def reads_of(module: Any) -> Reads:
    """How a module wants a table: its attribute `reads`, else numbers in bins, and indicators.

    Raises:
        ValueError: it embeds numbers, or does not embed texts, and reads them in another way.

    >>> from jaxops import tabular
    >>> reads_of(tabular.ResNet()).numbers, reads_of(tabular.MLP()).numbers
    ('quantile', 'bins')
    """
    reads, name = getattr(module, "reads", None), type(module).__name__
    fields = _fields(module)
    embedding = getattr(module, "embedding", None)
    if not isinstance(reads, Reads):
        return Reads("bins" if embedding is None else "quantile")
    embeds = embedding is not None or ("numbers" in fields and "embedding" not in fields)
    if embeds and reads.numbers == "bins":
        raise ValueError(
            'reads.numbers must be "standard", "quantile" or "robust" for '
            f"{name} with an embedding of numbers, got 'bins'"
        )
    if reads.codes is not None and "categories" not in fields:
        raise ValueError(
            f"reads.codes must be None for {name}, which has no field `categories` and so no "
            f"embedding of texts, got {reads.codes}"
        )
    return reads


def encoder_of(module: Any, table: Mapping[str, np.ndarray], label: str) -> Encoder:
    """The encoder of a table as a module wants it, without classes.

    A text is rare if it stands in fewer than 10 rows (in a table of fewer than 20,000 rows, in
    fewer than one of 2,000), or is not among the 1,000 most frequent of its column.

    Args:
        module: that learns.
        table: train rows by column.
        label: the column to predict.
    """
    reads = reads_of(module)
    bins, scale = (BINS, "standard") if reads.numbers == "bins" else (0, reads.numbers)
    least = min(RARE, max(1, len(table[label]) // 2_000))
    features = {name: column for name, column in table.items() if name != label}
    encoder = fit_encoder(
        features, bins=bins, scale=scale, codes=reads.codes, least=least, most=MOST
    )
    return encoder._replace(label=label)


def learned(
    method: Any,
    reader: TableReader,
    rows: Columns,
    held: Columns,
    left: float,
    options: dict[str, Any],
) -> tuple[Task, TrainState]:
    """Train a module on the columns of a table; its task and state, as a finished model has them.

    Args:
        method: the module.
        reader: of the table.
        rows: the columns of the train rows, as the reader makes them.
        held: of the validation rows.
        left: seconds until training stops.
        options: the user's, of `jaxops.fit`.

    Raises:
        ValueError: see `task_of`; a `state` to start from, where the module has one of its own.
    """
    settings = settings_of(method, reader, rows, left, options)
    module = fitted(method, reader, rows, steps_of(len(rows["label"]), settings))
    task = task_of(module, reader, rows)
    own, near = getattr(method, "own_batches", False), isinstance(module, ModernNCA)
    start = settings["optimizer"], rows
    seed, plan = settings["seed"], settings.get("plan")
    if not own and not near:
        if isinstance(module, RealMLP) and settings.get("state") is None:
            settings["state"] = start_among(task, *start, seed, plan)
        state = averaged(train(task, rows, validation=held, **settings))
        return task, state._replace(opt_state=())
    if settings.get("state") is not None:
        raise ValueError(
            f"state must be None for {type(method).__name__} with the train rows in its state, "
            "got one; update a model instead"
        )
    if own:
        outer = own_batches(task, module.members, len(rows["label"]), "mask" in rows)
        first, rows = start_own(outer, *start, seed, plan)
    else:
        outer = task
        targets = candidate_targets(reader, rows)
        first, rows = start_candidates(task, *start, targets, seed, plan)
    settings |= {"state": first, "validation": with_places(held, None)}
    state = averaged(train(outer, rows, **settings))
    extra = state.extra["module"] if own else state.extra
    return task, state._replace(opt_state=(), extra=extra)


def settings_of(
    method: Any, reader: TableReader, rows: Columns, left: float, options: dict[str, Any]
) -> dict[str, Any]:
    """The settings of `jaxops.fit`: the recipe's, and the user's in place of them.

    The schedules of `RealMLP` have to end, so it makes no more epochs than the time allows, which a
    few steps measure.

    Args:
        method: the module.
        reader: of the table.
        rows: the columns of the train rows.
        left: seconds until training stops.
        options: the user's.
    """
    make = functools.partial(recipe, method=method, classes=classifies(reader))
    if not isinstance(method, RealMLP):
        return make(len(rows["label"]), left, **options)
    task = task_of(fitted(method, reader, rows, 1), reader, rows)
    return settings_within(left, task, rows, make, options)


def fitted(module: Any, reader: TableReader, columns: Columns, total: int) -> Any:
    """The module with those of its fields set that say what it reads and answers.

    Args:
        module: a Flax module.
        reader: of the table.
        columns: of the train rows.
        total: the number of steps.
    """
    encoder, label = reader.encoder, columns["label"]
    several = {"quantiles": len(reader.levels), "zero_inflated": 3, "labels": len(reader.labels)}
    outputs = several.get(reader.kind, 1)
    if encoder.classes:
        outputs = len(encoder.classes) if len(encoder.classes) > 2 else 1
    values: dict[str, Any] = {"outputs": outputs}
    if hasattr(module, "reads"):
        values |= {
            "numbers": len(encoder.numbers),
            "categories": encoder.categories,
            "rows": len(label),
            "steps": total,
            "probabilities": classifies(reader),
            "own_batches": False,
            "embedding": _embedding(module, encoder, columns),
        }
    if isinstance(module, RealMLP):
        values["activation"] = module.activation or ("selu" if classifies(reader) else "mish")
        if reader.kind == "number" and np.ptp(label):
            scaled = standardised(label)
            values["limits"] = float(scaled.min()), float(scaled.max())
    values = {name: value for name, value in values.items() if name in _fields(module)}
    return module.clone(**values) if values else module


def _fields(module: Any) -> set[str]:
    """The names of a module's fields."""
    return (
        {f.name for f in dataclasses.fields(module)} if dataclasses.is_dataclass(module) else set()
    )


def _embedding(module: Any, encoder: Encoder, columns: Columns) -> Any:
    """The embedding of numbers with the edges of its bins; None in a table without numbers."""
    embedding, count = getattr(module, "embedding", None), len(encoder.numbers)
    if embedding is None or count == 0:
        return None
    if not hasattr(embedding, "edges"):
        return embedding
    shares = np.linspace(0, 1, embedding.bins + 1)
    edges = np.quantile(columns["features"][:, :count], shares, axis=0).astype(np.float64)
    return embedding.clone(edges=tuple(map(_rising, edges.T)))


def _rising(edges: np.ndarray) -> tuple[float, ...]:
    """Edges without those that are equal; of a column of one value a bin of width 1."""
    edges = np.unique(edges)
    return tuple(edges.tolist()) if len(edges) > 1 else (float(edges[0]), float(edges[0]) + 1)


def task_of(module: Any, reader: TableReader, columns: Columns) -> Task:
    """The task of a module whose fields are set, for the label of a table.

    Args:
        module: see `fitted`.
        reader: of the table.
        columns: of the train rows.

    Raises:
        ValueError: a label that does not vary, or a module that cannot learn this kind of target.
    """
    encoder, features = reader.encoder, len(reader.encoder.names)
    smoothing = SMOOTHING if isinstance(module, RealMLP) else 0.0
    if encoder.classes:
        return classifier(module, features, tuple(encoder.classes), smoothing)
    if isinstance(module, ModernNCA) and reader.kind != "number":
        raise ValueError(
            f"method must be another than ModernNCA for {reader.kind}, got {type(module)}; its "
            "predictions are means of the targets of one label"
        )
    if reader.labels:
        return multilabel(module, features, tuple(reader.labels), smoothing)
    target = columns["label"].astype(np.float64)
    if np.ptp(target) == 0:
        raise ValueError(f"{encoder.label} must vary, got {target[0]:g} in every row")
    if reader.target == "counts":
        return counts(module, features, float(target.mean()))
    if reader.target == "zero_inflated":
        logs = np.log(target[target > 0])
        if np.ptp(logs) == 0:
            raise ValueError(
                f"{encoder.label} must have different values above 0, got {np.exp(logs[0]):g} alone"
            )
        return zero_inflated(module, features, float(logs.mean()), float(logs.std()))
    mean, std = float(target.mean()), float(target.std())
    if reader.target == "quantiles":
        return quantiles(module, features, reader.levels, mean, std)
    return regressor(module, features, mean, std)


def widened(task: Any, label: np.ndarray) -> Any:
    """The task with the limits of `RealMLP` moved out as far as the targets of new rows need it.

    Any other task is returned as it is.

    >>> from jaxops import tabular
    >>> module = tabular.RealMLP((8,), limits=(-1.0, 1.0))
    >>> task = widened(tabular.regressor(module, 2, mean=5.0, std=2.0), np.array([4.0, 11.0]))
    >>> dict(task.recipe[1])["module"].limits
    (-1.0, 3.0)
    """
    module = module_of(task)
    if getattr(module, "limits", None) is None:
        return task
    make, given = task.recipe[0], dict(task.recipe[1])
    if "task" in given:  # a task around another one, as `compress.aware` makes
        return make(**given | {"task": widened(given["task"], label)})
    new = (np.array([label.min(), label.max()], np.float64) - given["mean"]) / given["std"]
    low, high = module.limits
    limits = min(low, float(new[0])), max(high, float(new[1]))
    return make(**given | {"module": module.clone(limits=limits)})


def candidate_targets(reader: TableReader, columns: Columns) -> np.ndarray:
    """The targets of train rows as `ModernNCA` averages them, (N, outputs).

    Args:
        reader: of the table.
        columns: of the train rows.
    """
    label, classes = columns["label"], len(reader.encoder.classes)
    if classes > 2:
        return np.eye(classes, dtype=np.float32)[label]
    if classes:
        return label[:, None].astype(np.float32)
    return standardised(label)[:, None].astype(np.float32)


def standardised(label: np.ndarray) -> np.ndarray:
    """Numbers that vary, less their mean, in units of their standard deviation, float64.

    >>> standardised(np.array([1.0, 3.0])).tolist()
    [-1.0, 1.0]
    """
    label = label.astype(np.float64)
    return np.asarray((label - label.mean()) / label.std())
