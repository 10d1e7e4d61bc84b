"""One call a job: `fit` a finished model to a table, `evaluate` it, `update` it with new rows."""

import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jaxops.data.checks import check_lists
from jaxops.data.columns import of_dates, read_with_dates
from jaxops.data.dataset import take
from jaxops.data.encoders import fit_encoder, order
from jaxops.data.splits import held_out
from jaxops.data.tables import Source
from jaxops.model.finished import Model, fingerprint, seconds
from jaxops.model.selection import best_of, check_methods, trained_further
from jaxops.tabular.data import (
    FEW,
    TableReader,
    encode_target,
    label_of,
    names_classes,
    target_of,
)
from jaxops.tabular.inference import reader_of
from jaxops.tabular.models import TabM
from jaxops.tabular.prepared import encoder_of, kind_of, learned, reads_of, target_kind
from jaxops.tabular.recipes import recipe
from jaxops.tabular.scores import METRICS, loss_of, scores_of
from jaxops.tabular.train_rows import with_places
from jaxops.train.settings import chosen
from jaxops.trust.evaluation import Evaluation

NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"


def fit(
    data: Source,
    method: Any = None,
    *,
    label: str,
    id: str | None = None,
    drop: Sequence[str] = (),
    groups: str | None = None,
    text: Sequence[str] = (),
    validation: Source | float = 0.15,
    classes: bool | None = None,
    target: str | None = None,
    levels: Sequence[float] = (),
    budget: str | float = "10min",
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Model:
    """Train a model on a table, to predict one of its columns.

    The default method is `TabM` over numbers that are encoded piecewise linearly, and indicators of
    text values. Dates become numbers, see `read`. Rows are held out for validation,
    which decides when to stop; the reader is learned from the other rows alone. A text column in
    which nearly every row has another value is left out, and printed.

    Args:
        data: a CSV or Parquet file, a frame of pandas, polars or PyArrow, or arrays by name.
        method: a Flax module, features (B, d) float32 to outputs (B, outputs), such as `MLP()`.
            An attribute `outputs` is set to what the label needs, and an attribute `reads` says how
            numbers and texts are encoded, see `Reads`. Of a list each is trained in turn; the
            result is the one with the best validation loss, or, where all read the table in the
            same way, a blend of them.
        label: the column to predict.
        id: the column of the rows' ids, which answers repeat; it is no feature.
        drop: columns to leave out.
        groups: a column, such as the customer; no group is in training and validation. It is no
            feature.
        text: columns of text, though their values may be numbers, such as zip codes.
        validation: the share of rows to hold out (with classes, of each class), or a table.
        classes: whether the label names classes; by default if it is text, boolean or at most 20
            whole numbers.
        target: what the label is, if no class: "number", "counts" (whole numbers from 0, Poisson
            distributed), "quantiles" (a number of which `levels` are predicted) or "zero_inflated"
            (0 or a log-normal value above 0, of which the mean is predicted). Or "classes".
        levels: the levels of the quantiles, such as (0.1, 0.5, 0.9).
        budget: time after which training stops, such as "10min", or seconds.
        seed: of the split and of training.
        progress: print a progress bar, what was left out and the validation figures.
        **options: of `jaxops.fit`, in place of the defaults here: `optimizer`, `batch_size`,
            `epochs`, `early_stopping`, `plan` and so on.

    Returns:
        A model; `model.predict(table)` gives `Classes`, `Values` or `Quantiles`.

    Raises:
        ValueError: a table that cannot be read, with column and row; a label of one class, or
            missing in a row; as `jaxops.fit`.

    Warns:
        UserWarning: a column is text for a few values beside many numbers, such as "?".

    >>> from jaxops import tabular
    >>> rng = np.random.default_rng(0)
    >>> age = rng.uniform(20, 60, 400).round()
    >>> table = {"age": age, "plan": rng.choice(["a", "b"], 400), "left": age < 40}
    >>> model = tabular.fit(table, tabular.MLP((16,)), label="left", progress=False)
    >>> model.predict({"age": [25, 55], "plan": ["a", "b"]}).labels.tolist()
    ['True', 'False']
    >>> tabular.evaluate(model, table).figures()["auc"] > 0.99
    True
    """
    start, budget = time.monotonic(), seconds(budget)
    classes, target, levels = target_kind(classes, target, levels)
    check_methods(method, options)
    check_lists(text=text, drop=drop)
    exact = [name for name in (label, id, groups) if name is not None]
    table, dates = read_with_dates(data, exact=exact, text=text, unread={*drop} - {*exact})
    _check_columns(table, label, id, groups, drop, text)
    _warn_of_numbers({n: c for n, c in table.items() if n not in (*exact, *drop, *text)})
    parts = _parts(table, dates, label, id, drop, groups, validation, classes, seed, target, levels)
    if progress and parts.left_out:
        print(f"left out, as they look like identifiers or are empty: {', '.join(parts.left_out)}")
    options = {"seed": seed, "progress": progress, **options}
    left = budget - (time.monotonic() - start)
    if isinstance(method, list | tuple):
        kind = kind_of(parts.reader)
        held = target_of(parts.reader.encoder, parts.validation[label])
        alike = len({reads_of(one) for one in method}) == 1
        return best_of(
            method,
            lambda one, left: _trained(one, parts, left, options),
            METRICS[kind],
            (lambda outputs: loss_of(kind, outputs, held, levels)) if alike else None,
            left,
            progress,
        )
    model, scored = _trained(method, parts, left, options)
    if progress:
        print(f"validation, {len(scored):,} rows\n{scored}")
    return model


class Parts(NamedTuple):
    """A table, ready to train on.

    Attributes:
        reader: knows the columns; each method has an encoder of its own.
        train: the columns to learn from and the label, as `read` gives them.
        validation: the same of the validation rows.
        left_out: names of columns that look like identifiers or have no value.
    """

    reader: TableReader
    train: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    left_out: list[str]

    @property
    def label(self) -> str:
        """The column to predict."""
        return str(self.reader.encoder.label)


def _parts(
    table: dict[str, np.ndarray],
    dates: tuple[str, ...],
    label: str,
    id: str | None,
    drop: Sequence[str],
    groups: str | None,
    validation: Any,
    classes: bool | None,
    seed: int,
    target: str,
    levels: tuple[float, ...],
) -> Parts:
    classes = names_classes(table[label]) if classes is None else classes
    table[label] = label_of(label, table[label], classes, target)
    names = sorted(set(table[label].tolist()), key=order) if classes else []
    if len(names) == 1:
        raise ValueError(f"{label} must have at least 2 classes, got {names[0]!r} alone")
    rest, held = _held_out(table, label, groups, classes, validation, seed)
    dropped = {*drop, *(name for name in (id, groups) if name is not None)}
    kept = {name: column for name, column in rest.items() if name not in dropped}
    useless = [*_identifiers(kept, label), *_empty(kept)]
    left_out = [name for name in useless if name not in of_dates(dates)]
    dates = tuple(name for name in dates if name not in left_out)
    parts = [name for name in of_dates(dates) if name in kept]
    useless += [n for n in parts if np.nanmax(kept[n]) == np.nanmin(kept[n])]
    kept = {name: column for name, column in kept.items() if name not in useless}
    if kept.keys() == {label}:
        raise ValueError(
            f"data must have a column to learn from beside {label!r}, got none that is kept"
        )
    encoder = fit_encoder({n: c for n, c in kept.items() if n != label})
    encoder = encoder._replace(label=label, classes=names)
    reader = TableReader(encoder, id, dates, target, levels)
    if held is None:
        _, held = reader.table(validation, label=True)
    return Parts(reader, kept, {name: held[name] for name in kept}, left_out)


def _trained(
    method: Any, parts: Parts, left: float, options: dict[str, Any]
) -> tuple[Model, Evaluation]:
    """A model, and its scores on the validation rows."""
    method = method or TabM()
    label, classes = parts.label, parts.reader.encoder.classes
    encoder = encoder_of(method, parts.train, label)._replace(classes=classes)
    reader = replace(parts.reader, encoder=encoder)
    train_rows, held = (encode_target(encoder, t) for t in (parts.train, parts.validation))
    count = len(train_rows["label"])
    settings = chosen(recipe(count, left, method, bool(classes), **options), options)
    task, state = learned(method, reader, train_rows, held, settings)
    about = {"data": fingerprint(train_rows), "rows": count, "left out": parts.left_out}
    model = Model(task, state, reader, about)
    scored = _scored(model, np.arange(len(held["label"])), held)
    about["validation"] = scored.figures()
    return model, scored


def evaluate(model: Model, data: Source) -> Evaluation:
    """Score a model on the rows of a table that has the label.

    Args:
        model: of `fit`.
        data: see `fit`.

    Returns:
        Of classes "accuracy", "log_loss" and "macro_f1", and for two classes "auc"; of numbers
        "mae", "mse", "rmse" and "r2", of counts also "deviance" (Poisson), of zero-inflated values
        also "spearman" (the correlation of ranks); of quantiles "pinball" (the mean over the
        levels), and of two levels or more "coverage" and "width" between the first and the last. A
        unit is a row.

    Raises:
        ValueError: a table that the model cannot read, or a label that is not one of its classes.
    """
    reader = reader_of(model)
    ids, columns = reader.columns(data, label=True)
    return _scored(model, ids, columns)


def update(model: Model, new: Source, epochs: int = 5, **options: Any) -> Model:
    """Train a model further on new rows, from its present parameters, with the same reader.

    Args:
        model: of `fit`.
        new: a table with the label; see `fit`.
        epochs: passes over the new rows.
        **options: of `jaxops.fit`, in place of the defaults of `recipe`.

    Raises:
        ValueError: a table that the model cannot read.

    >>> from jaxops import tabular
    >>> table = {"age": np.arange(40.0), "left": np.arange(40) % 2}
    >>> model = tabular.fit(table, tabular.MLP((2,)), label="left", epochs=1, progress=False)
    >>> tabular.update(model, table, epochs=1, progress=False).reader is model.reader
    True
    """
    _, columns = reader_of(model).columns(new, label=True)
    if any(column.name == "row" for column in getattr(model.task, "columns", ())):
        columns = with_places(columns, None)
    defaults = recipe(len(columns["label"]), np.inf) | {"early_stopping": None, "epochs": epochs}
    return trained_further(model, columns, chosen(defaults, options))


def _scored(model: Model, ids: np.ndarray, columns: Mapping[str, np.ndarray]) -> Evaluation:
    output = model.outputs({"features": columns["features"]})
    reader = reader_of(model)
    return scores_of(kind_of(reader), ids, output, columns["label"], reader.levels)


def _held_out(
    table: dict[str, np.ndarray],
    label: str,
    groups: str | None,
    classes: bool,
    validation: Any,
    seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """The train rows, and those held out; None where `validation` is a table of its own."""
    if validation is None or isinstance(validation, int):
        raise ValueError(f"validation must be a share in (0, 1) or a table, got {validation}")
    if not isinstance(validation, float):
        return table, None
    labels = table[label] if classes else None
    of = None if groups is None else table[groups]
    rest, held = held_out(len(table[label]), validation, labels, of, seed)
    return take(table, rest), take(table, held)


def _check_columns(
    table: Mapping[str, Any],
    label: str,
    id: str | None,
    groups: str | None,
    drop: Sequence[str],
    text: Sequence[str],
) -> None:
    for what, name in (
        ("label", label),
        ("id", id),
        ("groups", groups),
        *(("drop", d) for d in drop),
        *(("text", t) for t in text),
    ):
        if name is not None and name not in table:
            raise ValueError(f"{what} must be one of {', '.join(table)}, got {name!r}")


def _warn_of_numbers(table: Mapping[str, np.ndarray]) -> None:
    """Warn of columns that are text for a few values beside many different numbers, such as "?"."""
    for name, column in table.items():
        if column.dtype.kind != "O":
            continue
        texts = [text for text in column[:1000].tolist() if text]
        odd = [text for text in texts if not re.fullmatch(NUMBER, text)]
        if odd and len(odd) <= len(texts) / 10 and len(set(texts)) > FEW:
            warnings.warn(
                f"{name} should be numbers, but is text, as it has {odd[0]!r} in row "
                f"{column.tolist().index(odd[0])}; leave such values empty, or say text=[{name!r}]",
                stacklevel=3,
            )


def _identifiers(table: Mapping[str, np.ndarray], label: str) -> list[str]:
    """Text columns with so many values that nothing can be learned of them."""
    few = max(20, len(table[label]) / 2)
    texts = [n for n, column in table.items() if column.dtype.kind == "O" and n != label]
    return [name for name in texts if len(set(table[name].tolist())) > few]


def _empty(table: Mapping[str, np.ndarray]) -> list[str]:
    """Columns of numbers that have no value in the train rows."""
    return [n for n, column in table.items() if column.dtype.kind == "f" and np.isnan(column).all()]
