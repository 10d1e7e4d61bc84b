"""The cells of a table as the players of an explanation, whatever features they became."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxops.data.encoders import Encoder
from jaxops.model.finished import Model
from jaxops.model.players import Players, likeliest, program_of
from jaxops.tabular.train_rows import represented

UNKNOWN = "\0"  # a text that no column has
Table = Mapping[str, np.ndarray]


def cells(
    reader: Any, model: Model, ids: np.ndarray, table: Table, predict: Callable[[Table], np.ndarray]
) -> Players:
    """The players of rows of a table: a cell of each of the user's columns.

    An absent number is the mean of the train rows (with the scale "robust" their median), an absent
    text is one that did not occur in them.

    Args:
        reader: a `TableReader`.
        model: whose reader it is.
        ids: of the N rows.
        table: of the reader.
        predict: what the model predicts of such a table.
    """
    encoder = reader.encoder
    known = [*encoder.mean, *encoder.values]
    source = {name: _source(name, reader) for name in known}
    names = [*dict.fromkeys(source.values())]
    place = {name: names.index(source[name]) for name in known}
    mean = {name: np.array([encoder.mean[name]]) for name in encoder.mean}
    absent = mean | {name: np.array([UNKNOWN], object) for name in encoder.values}
    outputs = predict(table)
    if getattr(model.task, "reads_table", False):
        columns, baseline = dict(table), absent
        owners = {name: np.array([place[name]]) for name in known}
    else:
        model = represented(model)
        columns, baseline = ({"features": reader.encoding(rows)} for rows in (table, absent))
        owners = {"features": np.array([[place[name] for name in columns_of_features(encoder)]])}
        predict = model.outputs
    classes, told = _outputs(reader)
    every = np.broadcast_to(np.array(names, object), (len(ids), len(names)))
    return Players(
        "cells",
        ids,
        every,
        np.stack([_shown(name, table, reader) for name in names], 1),
        np.ones(every.shape, bool),
        columns,
        owners,
        baseline,
        told,
        likeliest(outputs, classes),
        predict,
        program_of(model),
        classes,
    )


def columns_of_features(encoder: Encoder) -> list[str]:
    """The column of the table that each feature of an encoder comes from; see `Encoder.names`.

    >>> from jaxops.data.encoders import fit_encoder
    >>> columns_of_features(fit_encoder({"age": [20.0, np.nan, 30.0], "plan": ["a", "b", "a"]}))
    ['age', 'age', 'plan', 'plan']
    """
    made = encoder._replace(codes=[])
    indicators = {
        name: len(made._replace(mean={}, missing=[], edges={}, values={name: texts}).names)
        for name, texts in encoder.values.items()
        if name not in encoder.codes
    }
    return [
        *encoder.numbers,
        *encoder.missing,
        *(name for name, count in indicators.items() for _ in range(count)),
        *(name for name, edges in encoder.edges.items() for _ in edges[:-1]),
        *encoder.codes,
    ]


def _source(name: str, reader: Any) -> str:
    """The user's column that a column of the table was made of: of a date's month, the date."""
    dates = [date for date in reader.dates or () if name.startswith(f"{date} ")]
    return max(dates, key=len) if dates and name in reader.derived else name


def _shown(name: str, table: Table, reader: Any) -> np.ndarray:
    """What the user's rows have in a column, objects (N,)."""
    count = len(next(iter(table.values())))
    if name not in table:
        return np.full(count, "", object)
    column = table[name]
    if name in (reader.dates or ()):
        days = np.where(np.isnan(column), np.datetime64("NaT"), np.datetime64(0, "D"))
        steps = np.nan_to_num(column).astype("timedelta64[D]")
        return np.array(["" if str(day) == "NaT" else str(day) for day in days + steps], object)
    return column.astype(object)


def _outputs(reader: Any) -> tuple[str, tuple[str, ...]]:
    """`Players.classes`, and the names of the outputs."""
    if reader.labels:
        return "each", tuple(f"{name}={two[1]}" for name, two in reader.labels.items())
    if reader.encoder.classes:
        return "one", tuple(reader.encoder.classes)
    if reader.target == "quantiles":
        return "", tuple(f"q({level:g}) of {reader.encoder.label}" for level in reader.levels)
    return "", (str(reader.encoder.label),)
