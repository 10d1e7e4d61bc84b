"""One call a job: `fit` a finished model to a table, `evaluate` it, `update` it with new rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

import numpy as np

from jaxops import optim
from jaxops.data.encoders import fit_encoder
from jaxops.data.tables import Source
from jaxops.model.finished import Model, fingerprint, seconds
from jaxops.model.selection import check_methods, trained_further
from jaxops.optim import averaged
from jaxops.tabular.data import BINS, encode_target, of_classes, reads_table, target_of
from jaxops.tabular.ensembles import members_further, selected
from jaxops.tabular.inference import reader_of
from jaxops.tabular.models import TabM
from jaxops.tabular.parts import SHARE, Parts, Roles, parts_of
from jaxops.tabular.tasks import classifier, regressor
from jaxops.tabular.trees import Trees, grown
from jaxops.train.loop import fit as train
from jaxops.train.settings import EarlyStopping, chosen
from jaxops.trust.evaluation import Evaluation
from jaxops.trust.evaluation import of_classes as scores_of_classes


def fit(
    data: Source,
    method: Any = None,
    *,
    label: str,
    id: str | None = None,
    drop: Sequence[str] = (),
    groups: str | None = None,
    time: str | None = None,
    weights: str | None = None,
    text: Sequence[str] = (),
    validation: Source | float = SHARE,
    folds: int | None = None,
    classes: bool | None = None,
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
            whose attribute `outputs` is set to what the label needs; or trees, such as
            `HistGradientBoosting()`. Of a list, such as `short_list()`, each is trained in turn;
            the result is the one with the best validation loss, or a blend of them.
        label: the column to predict.
        id: the column of the rows' ids, which answers repeat; it is no feature.
        drop: columns to leave out.
        groups: a column, such as the customer; no group is in training and validation. It is no
            feature.
        time: a column of dates or numbers; the validation rows are later than the train rows, and
            later rows of a group that is in training are on no side. It is no feature.
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
        budget: time after which training stops, such as "10min", or seconds.
        seed: of the split and of training.
        progress: print a progress bar, what was left out and the validation figures.
        **options: of `jaxops.fit`, in place of the defaults here: `optimizer`, `batch_size`,
            `epochs`, `early_stopping`, `plan` and so on.

    Returns:
        A model; `model.predict(table)` gives `Classes` or `Values`.

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
    methods = list(method) if isinstance(method, list | tuple) else [method]
    check_methods(method, options, Trees, folds or 1)
    _check_trees(methods, options)
    roles = Roles(label, id, drop, groups, time, weights, text)
    parts = parts_of(data, roles, validation, classes, folds, seed, progress)
    if progress and parts.left_out:
        print(f"left out: {', '.join(f'{name} ({why})' for name, why in parts.left_out.items())}")
    options = {"seed": seed, "progress": progress, **options}
    left = budget - (monotonic() - start)
    if isinstance(method, list | tuple) or folds is not None:
        many = tuple(parts.reader.encoder.classes)
        return selected(
            methods,
            parts,
            lambda one, parts, left: _trained(one, parts, left, options),
            lambda outputs, target: _scores(many, np.arange(len(target)), outputs, target),
            lambda outputs, target: _loss(outputs, target, bool(many)),
            left,
            progress,
        )
    model, scored = _trained(method, parts, left, options)
    if progress:
        print(f"validation, {len(scored):,} rows\n{scored}")
    return model


def _check_trees(methods: Sequence[Any], options: Mapping[str, Any]) -> None:
    trees = [one for one in methods if isinstance(one, Trees)]
    for one in trees:
        one.check()
    if options and len(trees) == len(methods):
        raise ValueError(
            f"{next(iter(options))} must be left out where trees alone are trained, got "
            f"{next(iter(options.values()))!r}; their settings are those of the method"
        )


def _trained(
    method: Any, parts: Parts, left: float, options: dict[str, Any]
) -> tuple[Model, Evaluation]:
    """A model, and its scores on the validation rows."""
    label, classes = parts.label, parts.reader.encoder.classes
    count = len(parts.train[label])
    about = {"data": fingerprint(parts.train), "rows": count, "left out": parts.left_out}
    ids = np.arange(len(parts.validation[label]))
    if isinstance(method, Trees):
        tables = {n: c for n, c in parts.train.items() if n != label}, parts.validation
        targets = [target_of(parts.reader.encoder, t[label]) for t in (parts.train, tables[1])]
        trees = grown(method, tables, targets, parts.weights, classes, options["seed"], left)
        model = Model(trees, None, parts.reader, about)
        scored = _scores(trees.classes, ids, model.outputs(tables[1]), targets[1])
    else:
        encoder = _encoder(parts.train, label)._replace(classes=classes)
        train_rows, held = (encode_target(encoder, t) for t in (parts.train, parts.validation))
        if parts.weights is not None:
            train_rows["mask"], held["mask"] = parts.weights
        task = _task(method or TabM(), encoder, train_rows)
        settings = chosen(recipe(count, left), options)
        state = averaged(train(task, train_rows, validation=held, **settings))
        reader = replace(parts.reader, encoder=encoder)
        model = Model(task, state._replace(opt_state=()), reader, about)
        scored = _scored(model, ids, held)
    about["validation"] = scored.figures()
    return model, scored


def recipe(count: int, left: float) -> dict[str, Any]:
    """The default options of `jaxops.fit` for a table of so many train rows.

    Args:
        count: number of train rows.
        left: seconds until training stops.

    >>> recipe(20_000, 60.0)["batch_size"]
    256
    """
    return {
        "optimizer": optim.adamw(2e-3, weight_decay=3e-4),
        "batch_size": min(count, 32 if count < 2_000 else 256 if count < 100_000 else 1024),
        "epochs": 200,
        "early_stopping": EarlyStopping("loss", patience=10, seconds=left),
    }


def evaluate(model: Model, data: Source) -> Evaluation:
    """Score a model on the rows of a table that has the label.

    Args:
        model: of `fit`.
        data: see `fit`.

    Returns:
        Of classes "accuracy", "log_loss" and "macro_f1", and for two classes "auc"; of numbers
        "mae", "mse", "rmse" and "r2". A unit is a row.

    Raises:
        ValueError: a table that the model cannot read, or a label that is not one of its classes.
    """
    reader = reader_of(model)
    if reads_table(model.task):
        ids, table = reader.table(data, label=True)
        target = target_of(reader.encoder, table[str(reader.encoder.label)])
        return _scores(model.task.classes, ids, model.outputs(table), target)
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
    reader, table = reader_of(model), reads_table(model.task)
    ids, columns = (reader.table if table else reader.columns)(new, label=True)
    defaults = recipe(len(ids), np.inf) | {"early_stopping": None, "epochs": epochs}
    further = members_further if table else trained_further
    return further(model, columns, chosen(defaults, options))


def _scored(model: Model, ids: np.ndarray, columns: Mapping[str, np.ndarray]) -> Evaluation:
    output = model.outputs({"features": columns["features"]})
    return _scores(model.task.classes, ids, output, columns["label"])


def _scores(
    classes: Sequence[str], ids: np.ndarray, output: np.ndarray, target: np.ndarray
) -> Evaluation:
    if not classes:
        return _of_numbers(ids, output, target)
    scored = scores_of_classes("row", ids, of_classes(output), target)
    return replace(scored, parts=scored.parts | {"outputs": output})


def _loss(outputs: np.ndarray, target: np.ndarray, classes: bool) -> float:
    """What `best_of` compares by: the log loss of probabilities, the squared error of numbers."""
    if classes:
        ids = np.arange(len(target))
        scored = scores_of_classes("row", ids, of_classes(outputs), target)
        return float(scored.values["log_loss"].mean())
    return float(((outputs - target) ** 2).mean())


def _of_numbers(ids: np.ndarray, output: np.ndarray, target: np.ndarray) -> Evaluation:
    error = output.astype(np.float64) - target
    mse, mean = error**2, target.mean(dtype=np.float64)
    wholes = {
        "rmse": lambda rows: float(mse[rows].mean() ** 0.5),
        "r2": lambda rows: float(1 - mse[rows].mean() / ((target[rows] - mean) ** 2).mean()),
    }
    values = {"mae": np.abs(error), "mse": mse}
    smaller = frozenset({"mae", "mse", "rmse"})
    parts = {"outputs": output, "predicted": output, "target": target}
    return Evaluation("row", ids, values, wholes, smaller, parts=parts)


def _encoder(table: Mapping[str, np.ndarray], label: str) -> Any:
    encoder = fit_encoder({k: v for k, v in table.items() if k != label}, bins=BINS)
    return encoder._replace(label=label)


def _task(module: Any, encoder: Any, columns: Mapping[str, np.ndarray]) -> Any:
    features = len(encoder.names)
    if hasattr(module, "outputs"):
        module = module.clone(outputs=len(encoder.classes) if len(encoder.classes) > 2 else 1)
    if encoder.classes:
        return classifier(module, features, tuple(encoder.classes))
    target = columns["label"].astype(np.float64)
    if np.ptp(target) == 0:
        raise ValueError(f"{encoder.label} must vary, got {target[0]:g} in every row")
    return regressor(module, features, float(target.mean()), float(target.std()))
