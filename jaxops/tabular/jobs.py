"""One call a job: `fit` a finished model to a table, `evaluate` it, `update` it with new rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

import numpy as np

from jaxops.data.tables import Source
from jaxops.model.finished import Model, fingerprint, seconds
from jaxops.model.selection import check_methods, trained_further
from jaxops.tabular.data import encode_target, reads_table, target_of
from jaxops.tabular.ensembles import members_further, selected
from jaxops.tabular.inference import reader_of
from jaxops.tabular.models import TabM
from jaxops.tabular.parts import SHARE, Parts, Roles, parts_of
from jaxops.tabular.prepared import encoder_of, kind_of, learned, target_kind
from jaxops.tabular.recipes import recipe
from jaxops.tabular.scores import scores_of
from jaxops.tabular.train_rows import with_places
from jaxops.tabular.trees import Trees, grown
from jaxops.train.settings import chosen
from jaxops.trust.evaluation import Evaluation


def fit(
    data: Source,
    method: Any = None,
    *,
    label: str,
    id: str | None = None,
    drop: Sequence[str] = (),
    groups: str | None = None,
    time: str | None = None,
    since: str | None = None,
    weights: str | None = None,
    text: Sequence[str] = (),
    validation: Source | float = SHARE,
    folds: int | None = None,
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
    which decides when to stop; the reader is learned from the other rows alone. What nothing can be
    learned from is left out, printed, and kept in `about`: columns that are constant, empty, equal
    to another, or texts of which more than every second row has another.

    Args:
        data: a CSV or Parquet file, a frame of pandas, polars or PyArrow, or arrays by name.
        method: a Flax module, features (B, d) float32 to outputs (B, outputs), such as `MLP()`,
            whose attribute `outputs` is set to what the label needs, and whose attribute `reads`
            says how numbers and texts are encoded, see `Reads`; or trees, such as
            `HistGradientBoosting()`. Of a list, such as `short_list()`, each is trained in turn;
            the result is the one with the best validation loss, or a blend of them.
        label: the column to predict.
        id: the column of the rows' ids, which answers repeat; it is no feature.
        drop: columns to leave out.
        groups: a column, such as the customer; no group is in training and validation. It is no
            feature.
        time: a column of dates or numbers; the validation rows are later than the train rows, and
            later rows of a group that is in training are on no side. It is no feature.
        since: a column of dates; the days of each other date since this one are features too.
        weights: a column of the rows' weights, numbers of at least 0, which count in training and
            in the validation loss that stops it; the figures are of the rows as they are. It is no
            feature.
        text: columns of text, though their values may be numbers, such as zip codes.
        validation: the share of rows to hold out (with classes, of each class), or a table.
        folds: train each method once for each of so many folds, whose rows validate it, and answer
            with the mean of these models. The figures, the choice among methods and the weights of
            a blend are by every row as the model that has not seen it predicts it.
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
        UserWarning: a column is text for a few values beside many numbers, such as "?"; in 500
            train rows or more, it tells the label almost perfectly by itself, or is a whole number
            that is another in every row; rows of a validation table stand among the train rows.

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
    start, budget = monotonic(), seconds(budget)
    classes, target, levels = target_kind(classes, target, levels)
    methods = list(method) if isinstance(method, list | tuple) else [method]
    check_methods(method, options, Trees, folds or 1)
    _check_trees(methods, options, target)
    roles = Roles(label, id, drop, groups, time, weights, text, classes, target, levels, since)
    parts = parts_of(data, roles, validation, folds, seed, progress)
    if progress and parts.left_out:
        print(f"left out: {', '.join(f'{name} ({why})' for name, why in parts.left_out.items())}")
    options = {"seed": seed, "progress": progress, **options}
    left = budget - (monotonic() - start)
    if isinstance(method, list | tuple) or folds is not None:

        def trained(one: Any, parts: Parts, left: float) -> tuple[Model, Evaluation]:
            return _trained(one, parts, left, options)

        return selected(methods, parts, trained, left, progress)
    model, scored = _trained(method, parts, left, options)
    if progress:
        print(f"validation, {len(scored):,} rows\n{scored}")
    return model


def _check_trees(methods: Sequence[Any], options: Mapping[str, Any], target: str) -> None:
    trees = [one for one in methods if isinstance(one, Trees)]
    for one in trees:
        one.check()
    if trees and target == "quantiles":
        raise ValueError(f"method must be a network for quantiles, got {trees[0]}")
    if options and len(trees) == len(methods):
        raise ValueError(
            f"{next(iter(options))} must be left out where trees alone are trained, got "
            f"{next(iter(options.values()))!r}; their settings are those of the method"
        )


def _trained(
    method: Any, parts: Parts, left: float, options: dict[str, Any]
) -> tuple[Model, Evaluation]:
    """A model, and its scores on the validation rows."""
    label, reader, classes = parts.label, parts.reader, parts.reader.encoder.classes
    count = len(parts.train[label])
    about = {"data": fingerprint(parts.train), "rows": count, "left out": parts.left_out}
    if isinstance(method, Trees):
        trees = grown(method, parts, options["seed"], left)
        model = Model(trees, None, reader, about)
        outputs, target = model.outputs(parts.validation), parts.targets()[1]
        scored = scores_of(kind_of(reader), np.arange(len(target)), outputs, target)
    else:
        method = method or TabM()
        encoder = encoder_of(method, parts.train, label)._replace(classes=classes)
        reader = replace(reader, encoder=encoder)
        train_rows, held = (encode_target(encoder, t) for t in (parts.train, parts.validation))
        if parts.weights is not None:
            train_rows["mask"], held["mask"] = parts.weights
        task, state = learned(method, reader, train_rows, held, left, options)
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
    if not reads_table(model.task):
        ids, columns = reader.columns(data, label=True)
        return _scored(model, ids, columns)
    ids, table = reader.table(data, label=True)
    target = target_of(reader.encoder, table[str(reader.encoder.label)])
    return scores_of(kind_of(reader), ids, model.outputs(table), target, reader.levels)


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
    reader, table = reader_of(model), reads_table(model.task)
    ids, columns = (reader.table if table else reader.columns)(new, label=True)
    if any(column.name == "row" for column in getattr(model.task, "columns", ())):
        columns = with_places(columns, None)
    defaults = recipe(len(ids), np.inf) | {"early_stopping": None, "epochs": epochs}
    further = members_further if table else trained_further
    return further(model, columns, chosen(defaults, options))


def _scored(model: Model, ids: np.ndarray, columns: Mapping[str, np.ndarray]) -> Evaluation:
    output = model.outputs({"features": columns["features"]})
    reader = reader_of(model)
    return scores_of(kind_of(reader), ids, output, columns["label"], reader.levels)
