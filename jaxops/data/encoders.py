"""Rows of a table to features: what a value means is learned on the train rows alone."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxops.data.checks import rows


class Encoder(NamedTuple):
    """How raw columns become features; plain values, so that JSON holds it as it is.

    `Encoder(**json.loads(json.dumps(encoder._asdict())))` is equal to `encoder`.

    Attributes:
        mean: numeric column -> mean of its train values.
        std: numeric column -> their standard deviation, 1 where it is 0.
        missing: the numeric columns with values missing in train; each has an indicator.
        values: text column -> its sorted train values; each has an indicator.
        label: the column that is learned, or `None`.
        classes: the label's sorted train values, as text; the place of one is its number.
    """

    mean: dict[str, float]
    std: dict[str, float]
    missing: list[str]
    values: dict[str, list[str]]
    label: str | None
    classes: list[str]

    @property
    def names(self) -> list[str]:
        """The features' names in order: numbers, indicators of missing ones, text indicators."""
        return [
            *self.mean,
            *(f"{name} missing" for name in self.missing),
            *(f"{name}={value}" for name, values in self.values.items() for value in values),
        ]


def fit_encoder(
    columns: Mapping[str, Any], drop: Sequence[str] = (), label: str | None = None
) -> Encoder:
    """Learn an `Encoder` from train rows.

    Args:
        columns: name -> (N,), numbers (NaN is a missing value) or text.
        drop: columns to leave out, such as a customer's number.
        label: the column that is learned, text or whole numbers.

    Raises:
        ValueError: a column that is not there, of rank 2, without a value, infinite, neither
            numbers nor text, or text that names the rows (more values than half the rows).

    >>> table = {"age": np.array([20.0, 40.0, np.nan]), "plan": np.array(["a", "b", "a"])}
    >>> encoder = fit_encoder(table)
    >>> encoder.names
    ['age', 'age missing', 'plan=a', 'plan=b']
    >>> encode(encoder, table)["features"].tolist()
    [[-1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]]
    """
    count = rows(columns)
    if count == 0:
        raise ValueError("0 rows found, at least 1 wanted")
    for name in (*drop, *([label] if label is not None else [])):
        if name not in columns:
            raise ValueError(f"no column {name!r}; columns found: {', '.join(columns)}")
    classes = [] if label is None else sorted(set(_labels(label, columns[label])), key=_order)
    encoder = Encoder({}, {}, [], {}, label, classes)
    for name in columns:
        if name in drop or name == label:
            continue
        value = _column(name, columns[name])
        if value.dtype.kind != "O":
            present = value[~np.isnan(value)]
            if len(present) == 0:
                raise ValueError(f"{name}: every value is missing; drop the column")
            constant = present.max() == present.min()
            encoder.mean[name] = float(present[0] if constant else present.mean())
            encoder.std[name] = 1.0 if constant else float(present.std())
            if len(present) < count:
                encoder.missing.append(name)
            continue
        values = sorted(set(value))
        if len(values) > max(20, count / 2):
            raise ValueError(
                f"{name}: {len(values):,} different texts in {count:,} rows found, which name the "
                f"rows and tell nothing of others; drop it: drop=({name!r},)"
            )
        encoder.values[name] = values
    if not encoder.names:
        raise ValueError(f"no columns to learn from; columns found: {', '.join(columns)}")
    return encoder


def encode(encoder: Encoder, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Raw columns as an encoder learned to read them.

    A number becomes (x - mean) / std, a missing one 0 (the mean); a text that was not seen in
    train is 0 in all of its column's indicators. Columns that the encoder does not know are
    ignored, and the label may be absent, as it is in prediction.

    Returns:
        `features` float32 (N, len(encoder.names)), and `label` int32 (N,) where there is one.

    Raises:
        ValueError: a missing column, numbers for text or text for numbers, infinity, or a label
            that is none of the classes.
    """
    known = [*encoder.mean, *encoder.values]
    for name in known:
        if name not in columns:
            raise ValueError(f"no column {name!r}; columns found: {', '.join(columns)}")
    targets = [name for name in (encoder.label,) if name is not None and name in columns]
    count = rows({name: columns[name] for name in [*known, *targets]})
    numbers = {name: _column(name, columns[name], "numbers") for name in encoder.mean}
    scaled = [
        np.nan_to_num((value - encoder.mean[name]) / encoder.std[name])
        for name, value in numbers.items()
    ]
    absent = [np.isnan(numbers[name]) for name in encoder.missing]
    one_hot = [
        _column(name, columns[name], "text") == value
        for name, values in encoder.values.items()
        for value in values
    ]
    features = np.empty((count, len(encoder.names)), np.float32)
    for place, feature in enumerate([*scaled, *absent, *one_hot]):
        features[:, place] = feature
    encoded = {"features": features}
    for name in targets:
        encoded["label"] = _numbered(name, encoder.classes, columns[name])
    return encoded


def _column(name: str, column: Any, wanted: str | None = None) -> np.ndarray:
    """Numbers as float64 (N,), text as an object array of `str`."""
    value = np.asarray(column)
    if value.ndim != 1:
        raise ValueError(f"{name}: rows of shape {value.shape[1:]} found, one value a row wanted")
    if value.dtype.kind in "biuf":
        found, value = "numbers", value.astype(np.float64)
        infinite = np.flatnonzero(np.isinf(value))
        if len(infinite):
            raise ValueError(
                f"{name}: infinity found in row {infinite[0]}, finite numbers or NaN for missing "
                "wanted"
            )
    else:
        found, value = "text", value.astype(object)
        odd = next((row for row, v in enumerate(value) if not isinstance(v, str)), None)
        if odd is not None:
            raise ValueError(f"{name}: {value[odd]!r} found in row {odd}, text or numbers wanted")
    if wanted not in (None, found):
        raise ValueError(
            f"{name}: {found} found ({value[0]!r} in row 0), {wanted} wanted, as in the train rows"
        )
    return value


def _labels(name: str, column: Any) -> list[str]:
    value = np.asarray(column)
    if value.ndim != 1 or value.dtype.kind not in "biuOU":
        raise ValueError(
            f"{name}: {value.dtype} of rank {value.ndim} found, one text or whole number a row "
            "wanted"
        )
    return [str(v) for v in value.tolist()]


def _order(label: str) -> tuple[bool, int, str]:
    """Whole numbers by size, so that "10" comes after "9"; then text."""
    number = label.removeprefix("-").isdecimal()
    return (not number, int(label) if number else 0, label)


def _numbered(name: str, classes: list[str], column: Any) -> np.ndarray:
    number = {value: i for i, value in enumerate(classes)}
    labels = _labels(name, column)
    for row, label in enumerate(labels):
        if label not in number:
            raise ValueError(f"{name}: {label!r} found in row {row}, one of {classes} wanted")
    return np.array([number[label] for label in labels], np.int32)
