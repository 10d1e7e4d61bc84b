"""One call a job: `fit` a finished model to a table, `evaluate` it, `update` it with new rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

import numpy as np

from jaxops.data.encoders import SCALES, encode
from jaxops.data.tables import Source
from jaxops.model.finished import Model, fingerprint, seconds
from jaxops.model.selection import Blend, check_methods, trained_further
from jaxops.monitor.observing import LARGEST, reference_of
from jaxops.tabular.data import encode_target, outputs_of, reads_table, target_of
from jaxops.tabular.ensembles import members_further, selected, short_list
from jaxops.tabular.inference import reader_of
from jaxops.tabular.models import TabM
from jaxops.tabular.parts import SHARE, Parts, Roles, mask_of, parts_of
from jaxops.tabular.prepared import encoder_of, learned, reads_of, target_kind, widened
from jaxops.tabular.recipes import recipe
from jaxops.tabular.scores import scores_of
from jaxops.tabular.train_rows import module_of, represented, with_places
from jaxops.tabular.trees import Trees, grown
from jaxops.train.settings import chosen
from jaxops.trust.evaluation import Evaluation

NETWORKS = ("quantiles", "labels")  # kinds of targets that trees do not learn


def fit(
    data: Source,
    method: Any = None,
    *,
    label: str | Sequence[str],
    id: str | None = None,
    drop: Sequence[str] = (),
    groups: str | None = None,
    time: str | None = None,
    since: str | None = None,
    weights: str | None = None,
    class_weights: str | Mapping[Any, float] | None = None,
    text: Sequence[str] = (),
    validation: Source | float = SHARE,
    folds: int | None = None,
    classes: bool | None = None,
    target: str | None = None,
    levels: Sequence[float] = (),
    budget: str | float | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Model:
    """Train a model on a table, to predict one of its columns.

    The default method is `TabM` over numbers that are encoded piecewise linearly, and indicators of
    text values; with a `budget` and no method it is `short_list()`, of which the blend that
    validation prefers is kept. Dates become numbers, see `read`. Rows are held out for validation,
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
        label: the column to predict: one class, or one number, in each row. Or a list of columns of
            two classes each, such as ["left", "complained"], which networks learn together; each
            has to vary in the train rows.
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
        class_weights: what the rows of a class count in training, beside `weights`: numbers above 0
            by the names of the classes, 1 of those that are not named; or "balanced", N / (K n) for
            n of the N train rows that are of one of K classes. They change nothing in validation,
            so that the loss that stops training, the choice among methods and the figures are of
            the rows as they are; the probabilities are no longer those of the rows.
        text: columns of text, though their values may be numbers, such as zip codes.
        validation: the share of rows to hold out (with classes, of each class; with several labels,
            of each combination of theirs), or a table.
        folds: train each method once for each of so many folds, whose rows validate it, and answer
            with the mean of these models. The figures, the choice among methods and the weights of
            a blend are by every row as the model that has not seen it predicts it. So they, and the
            temperature of the probabilities, belong to models of one fold, while the mean of all
            answers: it is somewhat better than these figures, and its probabilities are less
            extreme than the rows ask for.
        classes: whether the label names classes; by default if it is text, boolean or at most 20
            whole numbers.
        target: what the label is, if no class: "number", "counts" (whole numbers from 0, Poisson
            distributed), "quantiles" (a number of which `levels` are predicted) or "zero_inflated"
            (0 or a log-normal value above 0, of which the mean is predicted). Or "classes".
        levels: the levels of the quantiles, such as (0.1, 0.5, 0.9).
        budget: time after which training stops, such as "10min", or seconds; ten minutes by
            default. Without a method it is spent on `short_list()` (for quantiles and several
            labels on its networks).
        seed: of the split and of training.
        progress: print a progress bar, what was left out and the validation figures.
        **options: of `jaxops.fit`, in place of the defaults here: `optimizer`, `batch_size`,
            `epochs`, `early_stopping`, `plan` and so on. `budget` bounds them all, see `recipe`.

    Returns:
        A model; `model.predict(table)` gives `Classes`, `Labels`, `Values` or `Quantiles`. One of
        networks and one encoder has a `reference` of the validation rows, see `jaxops.monitor`.

    Raises:
        ValueError: a table that cannot be read, with column and row; a label of one class, or
            missing in a row, or one of several that has more than two classes; weights of what is
            no class, or not above 0; as `jaxops.fit`.

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
    start, limit = monotonic(), seconds("10min" if budget is None else budget)
    classes, target, levels = target_kind(label, classes, target, tuple(levels))
    if method is None and budget is not None:
        _check_lists(options)
        method = short_list(trees=target not in NETWORKS)
    several = isinstance(method, list | tuple)
    methods = [TabM() if one is None else one for one in (method if several else [method])]
    check_methods(methods, options, Trees, folds or 1)
    _check_trees(methods, options, target)
    _check_reads(methods)
    names = id, drop, groups, time, weights, text
    roles = Roles(label, *names, classes, target, levels, since, class_weights)
    parts = parts_of(data, roles, validation, folds, seed, progress)
    if progress and parts.left_out:
        print(f"left out: {', '.join(f'{name} ({why})' for name, why in parts.left_out.items())}")
    options = {"seed": seed, "progress": progress, **options}
    left = limit - (monotonic() - start)
    if several or folds is not None:

        def trained(one: Any, parts: Parts, left: float) -> tuple[Model, Evaluation]:
            return _trained(one, parts, left, options)

        model = selected(methods, parts, trained, left, progress)
        return _with_reference(model, parts.validation)
    model, scored = _trained(methods[0], parts, left, options)
    if progress:
        print(f"validation, {len(scored):,} rows\n{scored}")
    return _with_reference(model, parts.validation)


def _check_lists(options: Mapping[str, Any]) -> None:
    """Raise `ValueError` for options of one training, where a budget tries several methods."""
    for name in ("checkpoints", "state"):
        if options.get(name) is not None:
            raise ValueError(
                f"{name} must be None where a budget tries every method of short_list(), got "
                f"{options[name]!r}; give one method, such as method=TabM()"
            )


def _check_trees(methods: Sequence[Any], options: Mapping[str, Any], target: str) -> None:
    trees = [one for one in methods if isinstance(one, Trees)]
    for one in trees:
        one.check()
    if trees and target in NETWORKS:
        raise ValueError(f"method must be a network for {target}, got {trees[0]}")
    if options and trees and len(trees) == len(methods):
        raise ValueError(
            f"{next(iter(options))} must be left out where trees alone are trained, got "
            f"{next(iter(options.values()))!r}; their settings are those of the method"
        )


def _check_reads(methods: Sequence[Any]) -> None:
    known = "bins", *SCALES
    for one in methods:
        if not isinstance(one, Trees) and reads_of(one).numbers not in known:
            raise ValueError(
                f"reads.numbers must be one of {', '.join(known)}, got {reads_of(one).numbers!r}"
            )


def _trained(
    method: Any, parts: Parts, left: float, options: dict[str, Any]
) -> tuple[Model, Evaluation]:
    """A model, and its scores on the validation rows."""
    label, reader = parts.label, parts.reader
    count = len(parts.train[label])
    about = {"data": fingerprint(parts.train), "rows": count, "left out": parts.left_out}
    if isinstance(method, Trees):
        model = Model(grown(method, parts, options["seed"], left), None, reader, about)
    else:
        encoder = encoder_of(method, parts.train, label)._replace(classes=reader.encoder.classes)
        reader = replace(reader, encoder=encoder)
        train, held = (encode_target(encoder, part) for part in (parts.train, parts.validation))
        for columns, weights in zip((train, held), parts.row_weights(), strict=True):
            columns |= {} if weights is None else {"mask": weights}
        model = Model(*learned(method, reader, train, held, left, options), reader, about)
    outputs = outputs_of(model, reader.encoding, parts.validation)
    scored = scores_of(reader, outputs, parts.targets()[1])
    about["validation"] = scored.figures()
    return model, scored


def _with_reference(model: Model, table: Mapping[str, np.ndarray]) -> Model:
    """The model with the sketch of rows, unless it reads the table itself, as trees do.

    Args:
        model: to be used.
        table: of the rows, see `TableReader.table`.
    """
    if reads_table(model.task):
        return model
    encoder, count = model.reader.encoder._replace(label=None), len(next(iter(table.values())))
    some = {name: column[:: -(-count // LARGEST)] for name, column in table.items()}
    reference = reference_of(represented(model), encode(encoder, some))
    return replace(model, reference=reference)


def evaluate(model: Model, data: Source) -> Evaluation:
    """Score a model on the rows of a table that has the label.

    Args:
        model: of `fit`.
        data: see `fit`. All rows count alike.

    Returns:
        Of classes "accuracy", "log_loss" and "macro_f1", and for two classes "auc"; of several
        labels "accuracy" (every label right), "log_loss", "macro_f1", "micro_f1", that of each,
        such as "auc(left)", and their mean, "auc", without those that do not vary in these rows,
        whose own is NaN; of numbers "mae", "mse", "rmse" and "r2", of
        counts also "deviance" (Poisson), of zero-inflated values also "spearman" (the correlation
        of ranks); of quantiles "pinball" (the mean over the levels), and of two levels or more
        "coverage" and "width" between the first and the last. A unit is a row.

    Raises:
        ValueError: a table that the model cannot read, or a label that is not one of its classes.
    """
    reader = reader_of(model)
    ids, table = reader.table(data, label=True)
    target = target_of(reader.encoder, table.pop(str(reader.encoder.label)))
    return scores_of(reader, outputs_of(model, reader.encoding, table), target, ids)


def update(model: Model, new: Source, epochs: int = 5, **options: Any) -> Model:
    """Train a model further on new rows, from its present parameters, with the same reader.

    Each network trains with the optimizer and batches of its own module, see `recipe`. The rows
    have the weights of `fit`: those of its column `weights`, which the new table has too, times
    those of their classes (balanced ones as the train rows of `fit` had them). The range in which
    `RealMLP` predicts numbers grows to that of the new ones too. The
    candidates of `ModernNCA` stay the train rows of `fit`: new rows change how they are compared,
    and never answer themselves; fit it anew for that. The new rows are also what later ones are
    compared with, see `jaxops.monitor`.

    Args:
        model: of `fit`, of networks alone.
        new: a table with the label; see `fit`.
        epochs: passes over the new rows.
        **options: of `jaxops.fit`, in place of the defaults of `recipe`.

    Raises:
        ValueError: a table that the model cannot read, or without the column of weights; trees,
            which are not trained further.

    >>> from jaxops import tabular
    >>> table = {"age": np.arange(40.0), "left": np.arange(40) % 2}
    >>> model = tabular.fit(table, tabular.MLP((2,)), label="left", epochs=1, progress=False)
    >>> tabular.update(model, table, epochs=1, progress=False).reader is model.reader
    True
    """
    reader, given = reader_of(model), chosen({"early_stopping": None, "epochs": epochs}, options)
    ids, table = reader.table(new, label=True)
    mask = mask_of(reader, new, table)

    def settings(task: Any) -> dict[str, Any]:
        return recipe(len(ids), np.inf, module_of(task), bool(task.classes), **given)

    if reads_table(model.task):
        return members_further(model, table, mask, settings)
    columns = with_places(encode_target(reader.encoder, table) | mask, None)
    if isinstance(model.task, Blend):
        model = trained_further(model, columns, settings(model.task.tasks[0]))
    else:
        task = widened(model.task, columns["label"])
        model = trained_further(replace(model, task=task), columns, settings(task))
    return _with_reference(model, table)
