"""One call a job: `fit` a finished model to a table of times, `evaluate` it, `update` it."""

import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxops import optim
from jaxops.data.checks import check_lists
from jaxops.data.tables import Source
from jaxops.model.exported.curves import strata_of
from jaxops.model.finished import Model, fingerprint, seconds
from jaxops.model.selection import best_of, trained_further
from jaxops.optim import averaged
from jaxops.survival.aft import AFTFit, aft_regression
from jaxops.survival.cox import CoxFit, breslow, cox_regression
from jaxops.survival.data import SurvivalReader
from jaxops.survival.evaluation import score
from jaxops.survival.families import Baseline, Law
from jaxops.survival.inference import reader_of
from jaxops.survival.methods import CLOSED, NETWORKS, Cox, DeepSurv
from jaxops.survival.models import Regression
from jaxops.survival.outcomes import Outcome
from jaxops.survival.preparation import (
    Parts,
    Roles,
    check_rows,
    design_places,
    of_rows,
    prepared,
    times_of,
)
from jaxops.task import check_module
from jaxops.train.loop import fit as train
from jaxops.train.settings import EarlyStopping, check_one_directory, chosen
from jaxops.trust.evaluation import Evaluation

SCORED = 200  # times of an evaluation
FEWEST = 20  # of them, however many rows
CELLS = 2**27  # rows times times of an evaluation, 0.5 GB of float32


def fit(
    data: Source,
    method: Any = None,
    *,
    time: str,
    event: str,
    entry: str | None = None,
    id: str | None = None,
    drop: Sequence[str] = (),
    text: Sequence[str] = (),
    validation: Source | float | None = None,
    budget: str | float = "10min",
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Model:
    """Learn from a table when rows have their event, where many have not had it yet.

    The default method is `Cox`. Numbers are standardised, and a missing one is the mean with an
    indicator; texts become indicators, of which a regression leaves out the first. Features that
    do not vary or that repeat another one are left out of a regression, and printed.

    Args:
        data: a CSV or Parquet file, a frame of pandas, polars or PyArrow, or arrays by name.
        method: `Cox`, `WeibullAFT`, `LogNormalAFT`, `LogLogisticAFT`, `DeepSurv`, `LogisticHazard`
            or `DeepHit`. Of a list each is fitted in turn to the rows that are not held out; the
            result is the one with the best integrated Brier score of the validation.
        time: the column of times until the event, or until a row was last seen; numbers or
            durations (as days), at least 0.
        event: the column that says whether the event was seen: 0 or 1, True or False; for `DeepHit`
            also the number of a cause.
        entry: the column of times from which on a row was watched; for regressions and `DeepSurv`.
            With `id`, several rows of one id are one whose features change, for `Cox`. Models with
            entry times are not scored.
        id: the column of the rows' ids, which answers repeat; it is no feature.
        drop: columns to leave out.
        text: columns of text, though their values may be numbers.
        validation: the share of rows to hold out, or a table. By default nothing for one
            regression, which has nothing to choose, and 0.15 for networks (where it decides when to
            stop) and for a list. For a regression with entry times there is none.
        budget: time after which training stops, such as "10min", or seconds.
        seed: of the split and of training.
        progress: print a progress bar, what was left out and the validation figures.
        **options: of `jaxops.fit`, for networks, in place of the defaults here: `optimizer`,
            `batch_size`, `epochs`, `early_stopping`, `plan` and so on.

    Returns:
        A model; `model.predict(table)` gives `Curves`, and `survival.coefficients(model)` the
        coefficients of a regression.

    Raises:
        ValueError: a table that cannot be read, with column and row; see `survival.outcome`; causes
            for a method of one; a time of 0 for accelerated failure times; entry times for a list
            or a network but `DeepSurv`; rows of one id that overlap in time; in a list a column
            that is a feature of one method and strata or cluster of another, unless it is in
            `drop`; options for a regression; as `cox_regression`, `aft_regression` and
            `jaxops.fit`.

    >>> from jaxops import survival
    >>> rng = np.random.default_rng(0)
    >>> age = rng.uniform(20, 60, 200)
    >>> months = rng.exponential(np.exp(4 - 0.05 * age)).round(3)
    >>> table = {"age": age, "months": np.minimum(months, 12), "left": months < 12}
    >>> model = survival.fit(table, time="months", event="left", progress=False)
    >>> answer = model.predict({"age": [25.0, 55.0]}, times=[6.0])
    >>> bool(answer.survival[0, 0] > answer.survival[1, 0])
    True
    >>> survival.evaluate(model, table).figures()["concordance"] > 0.6
    True
    """
    start, left = clock.monotonic(), seconds(budget)
    methods = list(method) if isinstance(method, list | tuple) else [method or Cox()]
    _check_methods(methods, options, entry)
    check_lists(text=text, drop=drop)
    roles = Roles(time, event, entry, id, _groups(methods, drop))
    parts = prepared(data, methods, roles, drop, text, validation, seed)
    if progress and parts.left_out:
        print(f"left out, as they look like identifiers or are empty: {', '.join(parts.left_out)}")
    settings = {"seed": seed, "progress": progress, **options}
    left -= clock.monotonic() - start
    if isinstance(method, list | tuple):
        return best_of(
            methods,
            lambda one, left: _judged(one, parts, left, settings),
            "integrated_brier",
            None,
            left,
            progress,
        )
    if parts.held is None or entry is not None:
        return _fitted(methods[0], parts, left, settings)
    model, scored = _judged(methods[0], parts, left, settings)
    if progress:
        print(f"validation, {len(scored):,} rows\n{scored}")
    return model


def evaluate(model: Model, data: Source) -> Evaluation:
    """Score a model on the rows of a table that has times and events.

    Args:
        model: of `fit`.
        data: see `fit`.

    Returns:
        The figures of `survival.score`, at up to 200 times among the events of these rows, of more
        than 671,000 rows at fewer, so that the curves take 0.5 GB. A unit is a row.

    Raises:
        ValueError: a table that the model cannot read; a model with entry times, for whose rows
            these figures are not defined; events at fewer than 2 times before the last row's.
    """
    reader = reader_of(model)
    if reader.entry is not None:
        raise ValueError(f"model must have no entry times to be scored, got {reader.entry!r}")
    ids, columns, rows = reader.columns(data, seen=True)
    return _scored(model, ids, columns, rows)


def update(model: Model, new: Source, epochs: int | None = None, **options: Any) -> Model:
    """Learn a model anew from more rows, beginning where it is, with the same features.

    A regression keeps no rows: it is fitted to the rows of `new` alone, so that `new` must have all
    rows that are to count, the old ones as well, with their times and events as they are known now.
    It begins at the present coefficients, and has the method, features, units and strata of `fit`.
    A network is trained further from its present parameters, on what is in `new`: new rows alone,
    or a mixture with old ones. The baseline of `DeepSurv`, as that of `Cox`, is made from the rows
    of `new`; for both and for accelerated failure times `horizon` and the default times of an
    answer are theirs too. The intervals of `LogisticHazard` and `DeepHit` stay as they are. The
    validation figures of `fit` are of the model before and not kept.

    Args:
        model: of `fit`.
        new: a table with the columns that `fit` read, times and events among them, and of `Cox`
            with a `cluster` that column; see `fit`.
        epochs: passes over the rows, for networks; 5 by default.
        **options: of `jaxops.fit`, for networks, in place of the defaults of `recipe`.

    Raises:
        ValueError: a table that the model cannot read; a stratum or cause that it does not know; no
            event; a feature that no longer varies; as `fit`. A regression of a file of an older
            jaxops, which does not tell its method.

    >>> from jaxops import survival
    >>> rows = {"age": np.arange(8.0), "months": [9, 7, 8, 5, 6, 3, 4, 2], "left": np.ones(8)}
    >>> model = survival.fit(rows, time="months", event="left", progress=False)
    >>> newer = survival.update(model, rows | {"months": [2, 4, 3, 6, 5, 8, 7, 9]})
    >>> [float(survival.coefficients(one)["coefficient"][0]) > 0 for one in (model, newer)]
    [True, False]
    """
    reader = reader_of(model)
    if isinstance(model.task, Regression):
        given = options if epochs is None else {"epochs": epochs, **options}
        return _without_figures(_refitted(model, model.task, reader, new, given))
    ids, columns, rows = reader.columns(new, seen=True)
    check_rows((), None if reader.id is None else ids, rows, reader)
    defaults = recipe(len(ids), np.inf) | {"early_stopping": None}
    defaults["epochs"] = 5 if epochs is None else epochs
    train_columns = _columns(columns["features"], rows)
    made = trained_further(model, train_columns, chosen(defaults, options))
    if isinstance(reader.family, Baseline):
        made = replace(made, reader=_with_baseline(made, columns["features"], rows))
    return _without_figures(made)


def _without_figures(model: Model) -> Model:
    """An updated model, without the figures of the one before."""
    kept = {k: v for k, v in model.about.items() if k not in ("validation", "methods")}
    return replace(model, about=kept)


def _refitted(
    model: Model,
    closed: Regression,
    reader: SurvivalReader,
    new: Source,
    options: Mapping[str, Any],
) -> Model:
    method = closed.method
    if method is None:
        raise ValueError("model must tell its method, got one of an older jaxops; fit it anew")
    _check_no_options(options, type(method).__name__)
    cluster = getattr(method, "cluster", None)
    ids, columns, rows = reader.columns(new, seen=True, cluster=cluster)
    check_rows((method,), None if reader.id is None else ids, rows, reader)
    strata = None
    if isinstance(reader.family, Baseline) and reader.strata:
        strata = np.array(reader.family.labels, object)[columns["stratum"]]
    fitted, family = _regressed(
        method, closed.design(columns["features"]), closed.names, rows, strata,
        columns.get("cluster"), closed.fit.coefficients,
    )  # fmt: skip
    known = fingerprint({"features": columns["features"], "time": rows.time})
    about = {"rows": len(ids), "events": rows.events, "updated with": known}
    return replace(
        model,
        task=closed._replace(fit=fitted),
        reader=replace(reader, family=family, **of_rows(rows)),
        about=model.about | about,
    )


def _with_baseline(model: Model, features: np.ndarray, rows: Outcome) -> SurvivalReader:
    """The reader of a network for log hazards, with the baseline of some rows."""
    log_hazard = np.asarray(model.outputs({"features": features}))
    family = breslow(rows, log_hazard).thinned()
    return replace(reader_of(model), family=family, **of_rows(rows))


def _check_methods(methods: list[Any], options: Mapping[str, Any], entry: str | None) -> None:
    if not methods:
        raise ValueError("method must be at least 1, got an empty list")
    for one in methods:
        if not isinstance(one, NETWORKS + CLOSED):
            known = ", ".join(kind.__name__ for kind in CLOSED + NETWORKS)
            raise ValueError(f"method must be one of {known}, got {one!r}")
        if isinstance(one, NETWORKS):
            if one.module is not None:
                check_module("module", one.module)
            if entry is not None and not isinstance(one, DeepSurv):
                raise ValueError(f"entry must be None for {type(one).__name__}, got {entry!r}")
    if not any(isinstance(one, NETWORKS) for one in methods):
        _check_no_options(options, type(methods[0]).__name__)
    check_one_directory(dict(options), len(methods))


def _check_no_options(options: Mapping[str, Any], method: str) -> None:
    for name, value in options.items():
        raise ValueError(
            f"{name} must be left out for {method}, which has no training, got {value!r}"
        )


def _groups(methods: Sequence[Any], drop: Sequence[str]) -> tuple[str, ...]:
    """The columns of strata and clusters, which are features of no method."""
    of_each = [
        [name for name in (*one.strata, one.cluster) if name is not None]
        if isinstance(one, Cox)
        else []
        for one in methods
    ]
    known = tuple(dict.fromkeys(name for names in of_each for name in names))
    for one, names in zip(methods, of_each, strict=True):
        for name in known:
            if name not in names and name not in drop:
                raise ValueError(
                    f"drop must have {name!r}, which is a feature of {type(one).__name__} but "
                    f"strata or cluster of another method of the list, got {list(drop)}"
                )
    return known


def _fitted(method: Any, parts: Parts, left: float, settings: dict[str, Any]) -> Model:
    about = {
        "data": fingerprint({"features": parts.train["features"], "time": parts.rows.time}),
        "rows": len(parts.rows.time),
        "events": parts.rows.events,
        "left out": parts.left_out,
    }
    if isinstance(method, CLOSED):
        return _closed(method, parts, settings["progress"], about)
    return _network(method, parts, left, settings, about)


def _judged(
    method: Any, parts: Parts, left: float, settings: dict[str, Any]
) -> tuple[Model, Evaluation]:
    """A model, and its scores on the validation rows."""
    assert parts.held is not None
    model = _fitted(method, parts, left, settings)
    scored = _scored(model, *parts.held(model.reader))
    model.about["validation"] = scored.figures()
    return model, scored


def _closed(method: Any, parts: Parts, progress: bool, about: dict[str, Any]) -> Model:
    reader, features, rows = parts.reader, parts.train["features"], parts.rows
    encoder = reader.encoder
    places, left_out = design_places(encoder, features)
    if progress and left_out:
        print(f"left out, as they do not vary or repeat another: {', '.join(left_out)}")
    names = [encoder.names[place] for place in places]
    scale = np.array([encoder.std.get(name, 1.0) for name in names])
    centre = np.array([encoder.mean.get(name, 0.0) for name in names])
    x = features[:, places].astype(np.float64) * scale + centre
    groups, cluster = tuple(getattr(method, "strata", ())), getattr(method, "cluster", None)
    strata = strata_of(parts.train, groups) if groups else None
    labels = parts.train[cluster] if cluster else None
    fitted, family = _regressed(method, x, names, rows, strata, labels)
    reader = replace(reader, family=family, strata=groups)
    return Model(Regression(fitted, places, scale, centre, method), None, reader, about)


def _regressed(
    method: Any,
    x: np.ndarray,
    names: list[str],
    rows: Outcome,
    strata: Any,
    cluster: Any,
    start: np.ndarray | None = None,
) -> tuple[CoxFit | AFTFit, Baseline | Law]:
    """A regression on features in the user's units, and what makes curves of it."""
    given: dict[str, Any] = {"entry": rows.entry, "names": names, "start": start}
    if not isinstance(method, Cox):
        found = aft_regression(x, rows.time, rows.event, **given, law=method.law)
        return found, found.law
    made = cox_regression(
        x, rows.time, rows.event, **given, strata=strata, cluster=cluster, robust=method.robust,
        ties=method.ties, l1=method.l1, l2=method.l2,
    )  # fmt: skip
    assert made.baseline is not None
    return made._replace(baseline=None), made.baseline.thinned()


def _network(
    method: Any, parts: Parts, left: float, settings: dict[str, Any], about: dict[str, Any]
) -> Model:
    reader, rows = parts.reader, parts.rows
    task, family = method.task(len(reader.encoder.names), rows)
    columns = _columns(parts.train["features"], rows)
    assert parts.held is not None  # a network always has validation rows
    _, encoded, seen = parts.held(reader)
    validation = _columns(encoded["features"], seen)
    options = chosen(recipe(len(rows.time), left), settings)
    state = averaged(train(task, columns, validation=validation, **options))
    model = Model(task, state._replace(opt_state=()), reader, about)
    if family is None:
        return replace(model, reader=_with_baseline(model, columns["features"], rows))
    return replace(model, reader=replace(reader, family=family))


def _columns(features: np.ndarray, rows: Outcome) -> dict[str, np.ndarray]:
    entry = {} if rows.entry is None else {"entry": rows.entry.astype(np.float32)}
    return {
        "features": features,
        "time": rows.time.astype(np.float32),
        "event": rows.event.astype(np.int32),
    } | entry


def recipe(count: int, left: float) -> dict[str, Any]:
    """The default options of `jaxops.fit` for so many train rows.

    Args:
        count: number of train rows.
        left: seconds until training stops.

    >>> recipe(1_000, 60.0)["batch_size"]
    256
    """
    return {
        "optimizer": optim.adamw(1e-3, weight_decay=1e-3),
        "batch_size": min(count, 256 if count < 20_000 else 1024),
        "epochs": 300,
        "early_stopping": EarlyStopping("loss", patience=20, seconds=left),
    }


def _scored(
    model: Model, ids: np.ndarray, columns: dict[str, np.ndarray], rows: Outcome
) -> Evaluation:
    before = rows.take(rows.time < rows.time.max())
    count = min(SCORED, max(FEWEST, CELLS // len(rows.time)))
    times = times_of(before, count) if before.events else np.zeros(0)
    if len(times) < 2:
        raise ValueError(
            f"data must have events at 2 times before the last row's to be scored, got {len(times)}"
        )
    answer = model.reader.answer(model, ids, columns, times)
    return score(ids, rows.time, rows.event, answer.risk, answer.survival, times, answer.incidence)
