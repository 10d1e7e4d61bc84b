"""`labelled`: the rows and the labels of data as a room's `evaluate` takes them."""

from typing import Any

import numpy as np

from jaxops.data import columns
from jaxops.explain.tables.frames import frame_of, texts_of
from jaxops.model.finished import Model


def labelled(model: Model, data: Any) -> tuple[Any, Any]:
    """Raw rows and their labels, as `corrupted` takes them.

    Args:
        model: a finished model of images, texts, tables or forecasts, with a reader.
        data: what the room's `evaluate` takes: a file, a frame or arrays by name with the label; or
            a folder with a folder of images for each class. Of forecasts the last H rows of each
            series (H is the horizon) are the labels; series with at most H rows are left out.

    Raises:
        ValueError: a model of another kind; data that it cannot read; rows of series that are not
            in the order of time, or occur twice; a series without values at the steps of its
            forecast.

    >>> from jaxops import forecast
    >>> series = forecast.from_arrays(["a"], [range(20)])
    >>> model = forecast.fit(series, forecast.Baseline("drift"), horizon=2, levels=(),
    ...                      progress=False)
    >>> table = {"id": ["a"] * 9, "time": np.arange(9), "value": np.arange(9.0)}
    >>> rows, labels = labelled(model, table)
    >>> len(rows), labels.tolist()
    (7, [[[7.0], [8.0]]])
    """
    reader, classes = model.reader, getattr(model.task, "classes", ())
    if hasattr(reader, "series"):
        return _forecasts(model, rows_of(model, data))
    if hasattr(reader, "images"):
        known = reader.columns(data, classes)[1]
        return known["image"], np.array(classes, object)[known["label"]]
    if hasattr(reader, "texts") and hasattr(reader, "label") and classes:
        many = any(one.target and one.shape for one in model.task.columns)
        label = reader.columns(data, classes, many)[1]["label"]
        table = columns.frame_of(data)[1]  # texts such as "12" stay texts
        return table, label if many else np.array(classes, object)[label]
    if hasattr(reader, "table"):
        label = str(reader.encoder.label)
        return rows_of(model, data), reader.table(data, label=True)[1][label]
    raise ValueError(
        "labels must be given for a model other than of images, texts, tables or forecasts, got "
        f"None and one of the room {model.room!r}"
    )


def rows_of(model: Model, source: Any) -> Any:
    """The rows of a table as a frame, in which what the model reads as text is text."""
    text = texts_of(model)
    if hasattr(model.reader, "series") and model.reader.layout == "long":
        text = [model.reader.id]
    return frame_of(source, text=text)


def _forecasts(model: Model, table: Any) -> tuple[Any, np.ndarray]:
    """The rows but the last H of each series, and the values (S, H, C) of the steps after them."""
    reader = model.reader
    series = reader.series(table)
    found = series.report
    if found.unsorted or found.duplicates:
        raise ValueError(
            "rows must be in the order of time within each series, each once, got "
            f"{found.unsorted} earlier than the row before and {found.duplicates} duplicates"
        )
    if reader.layout == "long":
        left = table.groupby(reader.id, sort=False).cumcount(ascending=False)
    else:
        left = np.arange(len(table))[::-1]
    rows = table[np.asarray(left) >= reader.horizon].reset_index(drop=True)
    names = series.ids[series.index()].astype(str).tolist()
    known = dict(zip(zip(names, series.times().tolist(), strict=True), series.values, strict=True))
    answer = model.predict(rows)
    unknown = np.full(len(series.channels), np.nan)
    labels = [
        [known.get((str(name), time), unknown) for time in times]
        for name, times in zip(answer.ids, answer.times.tolist(), strict=True)
    ]
    found = np.array(labels, np.float64)
    without = np.isnan(found).all((1, 2))
    if without.any():
        place = int(without.argmax())
        raise ValueError(
            "rows must have values at the steps of the forecast, got none for series "
            f"{str(answer.ids[place])!r} from {answer.times[place][0]} on"
        )
    return rows, found
