"""One call a job: `fit` a finished model to a table of times, and `evaluate` it."""

import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxops import optim
from jaxops.data.checks import check_lists
from jaxops.data.tables import Source
from jaxops.model.finished import Model, fingerprint, seconds
from jaxops.model.selection import best_of
from jaxops.optim import averaged
from jaxops.survival.aft import aft_regression
from jaxops.survival.cox import breslow, cox_regression
from jaxops.survival.data import strata_of
from jaxops.survival.evaluation import score
from jaxops.survival.inference import reader_of
from jaxops.survival.methods import CLOSED, NETWORKS, Cox
from jaxops.survival.models import Regression
from jaxops.survival.outcomes import Outcome
from jaxops.survival.preparation import Parts, Roles, design_places, prepared, times_of
from jaxops.task import check_module
from jaxops.train.loop import fit as train
from jaxops.train.settings import EarlyStopping, check_one_directory, chosen
from jaxops.trust.evaluation import Evaluation

SCORED = 200  # times of an evaluation


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
        entry: the column of times from which on a row was watched; for regressions. With `id`,
            several rows of one id are one whose features change, for `Cox`.
        id: the column of the rows' ids, which answers repeat; it is no feature.
        drop: columns to leave out.
        text: columns of text, though their values may be numbers.
        validation: the share of rows to hold out, or a table. By default nothing for one
            regression, which has nothing to choose, and 0.15 for networks (where it decides when to
            stop) and for a list.
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
            for a method of one; entry times for a network; rows of one id that overlap in time;
            options for a regression; as `cox_regression`, `aft_regression` and `jaxops.fit`.

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
    groups = [
        name for one in methods if isinstance(one, Cox) for name in (*one.strata, one.cluster)
    ]
    known = tuple(dict.fromkeys(name for name in groups if name is not None))
    roles = Roles(time, event, entry, id, known)
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
    if parts.held is None:
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
        The figures of `survival.score`, at up to 200 times among the events of these rows. A unit
        is a row.

    Raises:
        ValueError: a table that the model cannot read; a model with entry times, for whose rows
            these figures are not defined; events at fewer than 2 times before the last row's.
    """
    reader = reader_of(model)
    if reader.entry is not None:
        raise ValueError(f"model must have no entry times to be scored, got {reader.entry!r}")
    ids, columns, rows = reader.columns(data, seen=True)
    return _scored(model, ids, columns, rows)


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
            if entry is not None:
                raise ValueError(f"entry must be None for {type(one).__name__}, got {entry!r}")
    if options and not any(isinstance(one, NETWORKS) for one in methods):
        name, value = next(iter(options.items()))
        raise ValueError(
            f"{name} must be left out for {type(methods[0]).__name__}, which has no training, got "
            f"{value!r}"
        )
    check_one_directory(dict(options), len(methods))


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
    given: dict[str, Any] = {"entry": rows.entry, "names": names}
    if isinstance(method, Cox):
        strata = strata_of(parts.train, method.strata) if method.strata else None
        cluster = None if method.cluster is None else parts.train[method.cluster]
        made = cox_regression(
            x, rows.time, rows.event, **given, strata=strata, cluster=cluster,
            robust=method.robust, ties=method.ties, l2=method.l2,
        )  # fmt: skip
        assert made.baseline is not None
        family: Any = made.baseline.thinned()
        reader = replace(reader, family=family, strata=tuple(method.strata))
        closed = Regression(made._replace(baseline=None), places, scale, centre)
    else:
        found = aft_regression(x, rows.time, rows.event, **given, law=method.law)
        reader = replace(reader, family=found.law)
        closed = Regression(found, places, scale, centre)
    return Model(closed, None, reader, about)


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
        log_hazard = model.outputs({"features": columns["features"]})
        family = breslow(rows, np.asarray(log_hazard)).thinned()
    return Model(task, model.state, replace(reader, family=family), about)


def _columns(features: np.ndarray, rows: Outcome) -> dict[str, np.ndarray]:
    return {
        "features": features,
        "time": rows.time.astype(np.float32),
        "event": rows.event.astype(np.int32),
    }


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
    times = times_of(before, SCORED) if before.events else np.zeros(0)
    if len(times) < 2:
        raise ValueError(
            f"data must have events at 2 times before the last row's to be scored, got {len(times)}"
        )
    answer = model.reader.answer(model, ids, columns, times)
    return score(ids, rows.time, rows.event, answer.risk, answer.survival, times, answer.incidence)
