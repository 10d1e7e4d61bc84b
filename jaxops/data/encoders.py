"""Raw columns of a table as features, by statistics of the train rows only."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxops.data.checks import check_lists, rows
from jaxops.data.number_scales import (
    bin_edges,
    median_and_spread,
    normal_scores,
    quantiles,
    smooth_clip,
)
from jaxops.data.tables import as_array
from jaxops.task import recorded

LARGEST = float(np.finfo(np.float32).max)
SCALES = ("standard", "quantile", "robust")
BLOCK = 2**18  # features of a block of rows, so that few float64 are in memory at once


@recorded
class Encoder(NamedTuple):
    """How raw columns become features; see `fit_encoder`.

    It holds only plain values, so it can be stored as JSON:
    `Encoder(**json.loads(json.dumps(encoder._asdict())))` is equal to `encoder`.

    Attributes:
        mean: numeric column -> mean of its train values, or with `robust` their median.
        std: numeric column -> standard deviation of its train values, or 1 if that is 0; with
            `robust` the distance between their quartiles.
        missing: the numeric columns with missing values in train; each has an indicator.
        values: text column -> its sorted train values, without rare ones; each has an indicator.
        label: the target column, or `None`.
        classes: the label's sorted train values, as text; a label's number is its index here.
        edges: numeric column -> the edges of its bins, for a piecewise linear encoding.
        quantiles: numeric column -> its quantiles, which map it to a normal distribution.
        robust: whether scaled numbers are clipped smoothly to (-3, 3).
        rare: text column -> its rare train values, which share one indicator.
        codes: the text columns that become one feature each, the number of the value.

    >>> encoder = fit_encoder({"age": [20.0, 40.0], "left": ["no", "yes"]}, label="left")
    >>> encoder.names, encoder.mean, encoder.classes
    (['age'], {'age': 30.0}, ['no', 'yes'])
    """

    mean: dict[str, float]
    std: dict[str, float]
    missing: list[str]
    values: dict[str, list[str]]
    label: str | None
    classes: list[str]
    edges: dict[str, list[float]] = {}  # noqa: RUF012  # a default, never changed
    quantiles: dict[str, list[float]] = {}  # noqa: RUF012
    robust: bool = False
    rare: dict[str, list[str]] = {}  # noqa: RUF012
    codes: list[str] = []  # noqa: RUF012

    @property
    def names(self) -> list[str]:
        """The names of the features in order.

        The order is: numbers, indicators of missing numbers, indicators of texts, pieces of numbers
        in bins, and the numbers of texts.
        """
        return [
            *self.numbers,
            *(f"{name} missing" for name in self.missing),
            *(feature for name in self.values if name not in self.codes
              for feature in self._indicators(name)),
            *(f"{name}>{e:g}" for name, edges in self.edges.items() for e in edges[:-1]),
            *self.codes,
        ]  # fmt: skip

    @property
    def numbers(self) -> list[str]:
        """The columns of numbers that become one feature each; these are the first features."""
        return [name for name in self.mean if name not in self.edges]

    @property
    def categories(self) -> tuple[int, ...]:
        """How many different numbers each column in `codes` has; these are the last features.

        0 stands for a value that did not occur in training. Then follow the known values, and one
        number for all rare values if there are any.
        """
        return tuple(1 + len(self._indicators(name)) for name in self.codes)

    def _indicators(self, name: str) -> list[str]:
        rare = [f"{name} rare"] if name in self.rare else []
        return [*(f"{name}={value}" for value in self.values[name]), *rare]


def fit_encoder(
    columns: Mapping[str, Any],
    drop: Sequence[str] = (),
    label: str | None = None,
    bins: int = 0,
    scale: str = "standard",
    codes: int | None = None,
    least: int = 1,
    most: int | None = None,
) -> Encoder:
    """Learn an `Encoder` from train rows.

    Args:
        columns: name -> (N,), numbers (NaN is a missing value) or text ("" or None is one).
        drop: columns to leave out, such as identifiers.
        label: the target column, text or whole numbers; no value may be missing.
        bins: encode each number piecewise linearly, in about this number of bins with equally many
            train rows (PLE; Gorishniy et al. 2022, arXiv:2203.05556). A value that fills more than
            one bin gets its own bin, and the other values share the rest. 0 makes no bins.
        scale: how numbers without bins are scaled. "standard" subtracts the mean and divides by the
            standard deviation. "quantile" maps them to a normal distribution, see
            `number_scales.normal_scores`. "robust" subtracts the median, divides by the distance
            between the quartiles and clips smoothly to (-3, 3), see `number_scales.smooth_clip`.
            With the last two, a column of two values becomes 0 and 1.
        codes: a column with more different texts than this becomes one feature, the number of the
            text, for an embedding; by default no column does.
        least: texts in fewer train rows are rare. The rare texts of a column share one indicator or
            number.
        most: only this number of the most frequent texts of a column are not rare; by default there
            is no such limit.

    Raises:
        ValueError: another scale; a missing column; a column that is not one-dimensional, has no
            value, has an infinite value, or has neither numbers nor text; a text column that looks
            like an identifier; a label of whole numbers that do not look like classes (more than 20
            different values, and more than half the rows); a missing label.

    >>> table = {"age": np.array([20.0, 40.0, np.nan]), "plan": np.array(["a", "b", "a"])}
    >>> encoder = fit_encoder(table)
    >>> encoder.names
    ['age', 'age missing', 'plan=a', 'plan=b']
    >>> encode(encoder, table)["features"].tolist()
    [[-1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]]
    """
    count = rows(columns)
    if count == 0:
        raise ValueError("columns must have at least 1 row, got 0")
    check_lists(drop=drop)
    for name in (*drop, *([label] if label is not None else [])):
        if name not in columns:
            raise ValueError(f"columns must include {name!r}, got {', '.join(columns)}")
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    classes = [] if label is None else _classes(label, columns[label])
    encoder = Encoder({}, {}, [], {}, label, classes, {}, {}, scale == "robust", {}, [])
    for name in columns:
        if name in drop or name == label:
            continue
        value = _column(name, columns[name])
        if value.dtype.kind != "O":
            _learn_numbers(encoder, name, value, bins, scale)
            continue
        _learn_texts(encoder, name, value, least, most)
        if codes is not None and len(encoder.values[name]) + (name in encoder.rare) > codes:
            encoder.codes.append(name)
    if not encoder.names:
        raise ValueError(f"columns must include one to learn from, got {', '.join(columns)}")
    return encoder


def _learn_numbers(encoder: Encoder, name: str, value: np.ndarray, bins: int, scale: str) -> None:
    """Put the statistics of a column of numbers into the encoder."""
    present = value[~np.isnan(value)]
    if len(present) == 0:
        raise ValueError(f"{name} must have a value in some row, got none; drop the column")
    if len(present) < len(value):
        encoder.missing.append(name)
    low, high = float(present.min()), float(present.max())
    if low == high:
        encoder.mean[name], encoder.std[name] = low, 1.0
        return
    encoder.mean[name], encoder.std[name] = (
        median_and_spread(present)
        if scale == "robust"
        else (present.mean().item(), present.std().item())
    )
    if bins:
        encoder.edges[name] = bin_edges(present, bins)
    elif scale != "standard" and ((present == low) | (present == high)).all():
        encoder.edges[name] = [low, high]
    elif scale == "quantile":
        encoder.quantiles[name] = quantiles(present)


def _learn_texts(
    encoder: Encoder, name: str, value: np.ndarray, least: int, most: int | None
) -> None:
    """Put the values of a column of text into the encoder."""
    counts = Counter(value.tolist())
    if len(counts) > max(20, len(value) / 2):
        raise ValueError(
            f"{name} must have at most {max(20, len(value) // 2):,} different texts, got "
            f"{len(counts):,} in {len(value):,} rows; it looks like an identifier column: "
            f"drop=({name!r},)"
        )
    kept = {text for text, rows in counts.most_common(most) if rows >= least}
    encoder.values[name] = sorted(kept)
    if len(kept) < len(counts):
        encoder.rare[name] = sorted(counts.keys() - kept)


def encode(encoder: Encoder, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Turn raw columns into features by an encoder that was learned from the train rows.

    A number becomes (x - mean) / std, or is scaled as `scale` says; a missing number becomes 0. A
    text has one indicator for each train value and one for all rare values; all are 0 for a new
    value. If the column is in `codes`, a text becomes a number instead, which is 0 for a new value.
    With `bins`, a number x has one feature for each bin from a to b:
    min(max((x - a) / (b - a), 0), 1), where the first bin has no lower and the last no upper bound.
    Columns that the encoder does not know are ignored.

    Args:
        encoder: see `fit_encoder`.
        columns: name -> (N,), as in training; the label may be absent, as in prediction.

    Returns:
        `features` float32 (N, len(encoder.names)), and `label` int32 (N,) if there is a label.

    Raises:
        ValueError: a missing column, numbers instead of text or text instead of numbers, infinity,
            or a label that is not one of the classes.

    >>> encoder = fit_encoder({"plan": ["a", "b"]})
    >>> encode(encoder, {"plan": ["b", "new"]})["features"].tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    label, encoded = encoder.label, {"features": Encoding(encoder)(columns)}
    if label is not None and label in columns:
        rows({name: columns[name] for name in (*encoder.mean, *encoder.values, label)})
        encoded["label"] = _numbered(label, encoder.classes, columns[label])
    return encoded


class Encoding:
    """The features of `encode`, for many tables: what is looked up is laid out once.

    Args:
        encoder: see `fit_encoder`.

    >>> encoding = Encoding(fit_encoder({"plan": ["a", "b"]}))
    >>> encoding({"plan": ["b", "new"]}).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        numbers, texts, edges = encoder.numbers, [*encoder.values], encoder.edges
        place = {name: place for place, name in enumerate(encoder.mean)}
        self._scaled = _integers(place[name] for name in numbers)
        self._mean = _floats(encoder.mean[name] for name in numbers)
        self._std = _floats(encoder.std[name] for name in numbers)
        ranked = [name for name in numbers if name in encoder.quantiles]
        self._ranked = _integers(numbers.index(name) for name in ranked)
        self._quantiles = [np.array(encoder.quantiles[name]) for name in ranked]
        self._missing = _integers(place[name] for name in encoder.missing)
        self._binned = _integers(place[name] for name in edges for _ in edges[name][1:])
        self._low = _floats(low for bounds in edges.values() for low in bounds[:-1])
        self._width = _floats(high for bounds in edges.values() for high in bounds[1:]) - self._low
        inner = [len(bounds) - 2 for bounds in edges.values()]  # edges that bound two bins
        self._least = _floats(least for n in inner for least in (-np.inf, *[0.0] * n))
        self._most = _floats(most for n in inner for most in (*[1.0] * n, np.inf))
        self._number = [_number(encoder, name) for name in texts]
        self._indicated = _integers(i for i, name in enumerate(texts) if name not in encoder.codes)
        counts = [len(encoder._indicators(texts[i])) for i in self._indicated]
        self._first = len(numbers) + len(encoder.missing) + np.cumsum([0, *counts])
        self._codes = _integers(texts.index(name) for name in encoder.codes)
        self._count = int(self._first[-1]) + len(self._binned) + len(self._codes)

    def __call__(self, columns: Mapping[str, Any]) -> np.ndarray:
        """The features, float32 (N, D); see `encode`."""
        encoder = self.encoder
        known = [*encoder.mean, *encoder.values]
        for name in known:
            if name not in columns:
                raise ValueError(f"columns must include {name!r}, got {', '.join(columns)}")
        count = rows({name: columns[name] for name in known or columns})
        numbers = [_column(name, columns[name], "numbers") for name in encoder.mean]
        texts = [_column(name, columns[name], "text") for name in encoder.values]
        features = np.zeros((count, self._count), np.float32)
        step = max(1, BLOCK // max(1, self._count))
        with np.errstate(over="ignore"):  # infinite features are refused below
            for first in range(0, count, step):
                part = slice(first, first + step)
                self._fill(features[part], [x[part] for x in numbers], [x[part] for x in texts])
        if not np.isfinite(features).all():
            row, place = np.argwhere(~np.isfinite(features))[0]
            raise ValueError(
                f"{encoder.names[place]} must be finite when it is encoded, got "
                f"{features[row, place]} in row {row}; its value is too far from the values of the "
                "train rows"
            )
        return features

    def _fill(
        self, features: np.ndarray, numbers: list[np.ndarray], texts: list[np.ndarray]
    ) -> None:
        """The features of a block of rows; arrays in here have a row for each column or bin."""
        count, first = len(features), self._first
        x = np.array(numbers).reshape(-1, count)
        scaled = np.nan_to_num((x[self._scaled] - self._mean) / self._std)
        if self.encoder.robust:
            scaled = smooth_clip(scaled)
        if len(self._ranked):
            scores = normal_scores(x[self._scaled[self._ranked]], self._quantiles)
            scaled[self._ranked] = np.nan_to_num(scores)
        features[:, : len(scaled)] = scaled.T
        features[:, len(scaled) : first[0]] = np.isnan(x[self._missing]).T
        share = np.clip((x[self._binned] - self._low) / self._width, self._least, self._most)
        features[:, first[-1] : first[-1] + len(share)] = np.nan_to_num(share).T
        lists = zip(self._number, (column.tolist() for column in texts), strict=True)
        numbered = [[number.get(text, 0) for text in column] for number, column in lists]
        coded = np.array(numbered, np.intp).reshape(-1, count)
        column, row = np.nonzero(coded[self._indicated])
        features[row, first[column] + coded[self._indicated[column], row] - 1] = 1
        features[:, self._count - len(self._codes) :] = coded[self._codes].T


def _integers(values: Iterable[int]) -> np.ndarray:
    return np.array([*values], np.intp)


def _floats(values: Iterable[float]) -> np.ndarray:
    return np.array([*values], np.float64)[:, None]


def _classes(name: str, column: Any) -> list[str]:
    """The sorted values of a label."""
    labels = label_texts(name, column)
    classes = sorted(set(labels), key=order)
    most = max(20, len(labels) // 2)
    if len(classes) > most and order(classes[-1])[0] is False:
        raise ValueError(
            f"{name} must have at most {most:,} different whole numbers to name classes, got "
            f"{len(classes):,} in {len(labels):,} rows; a label must be a class, not a number"
        )
    return classes


def _number(encoder: Encoder, name: str) -> dict[str, int]:
    """The numbers of texts: known texts from 1, then one for all rare; new texts have 0."""
    known = encoder.values[name]
    number = dict.fromkeys(encoder.rare.get(name, ()), len(known) + 1)
    return number | {value: i for i, value in enumerate(known, 1)}


def _column(name: str, column: Any, wanted: str | None = None) -> np.ndarray:
    """Numbers as float64 (N,), text as an object array of `str`; NaN and "" are missing."""
    value = as_array(name, column)
    if value.ndim != 1:
        raise ValueError(f"{name} must be one value a row, got rows of shape {value.shape[1:]}")
    if value.dtype.kind in "mM":
        raise ValueError(
            f"{name} must be text or numbers, got {value.dtype}; turn dates into days: "
            f"({name} - np.datetime64(0, 's')) / np.timedelta64(1, 'D')"
        )
    kind = "text"
    if value.dtype.kind not in "biuf":
        value = value.astype(object, copy=False)
    if value.dtype.kind == "O" and {*map(type, value.tolist())} != {str}:
        absent = np.array([_is_missing(v) for v in value.tolist()])
        if all(isinstance(v, float | int | np.number) for v in value[~absent]):
            value = np.array(np.where(absent, np.nan, value), np.float64)
        else:
            value = np.where(absent, "", value)
            odd = next((row for row, v in enumerate(value) if not isinstance(v, str)), None)
            if odd is not None:
                raise ValueError(f"{name} must be text or numbers, got {value[odd]!r} in row {odd}")
    if value.dtype.kind in "biuf":
        kind, value = "numbers", value.astype(np.float64, copy=False)
        beyond = np.abs(value) > LARGEST
        if beyond.any():
            large = np.flatnonzero(beyond)
            given = value[large[0]]
            given = "infinity" if np.isinf(given) else f"{given:g}, which float32 cannot hold,"
            raise ValueError(
                f"{name} must be finite, or NaN where missing, got {given} in row {large[0]}"
            )
    if wanted not in (None, kind):
        raise ValueError(
            f"{name} must be {wanted}, as in the train rows, got {kind} ({value[0]!r} in row 0)"
        )
    return value


def _is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value != value


def label_texts(name: str, column: Any) -> list[str]:
    """The labels of rows as text.

    Args:
        name: the name of the column.
        column: (N,), text, whole numbers or booleans.

    Raises:
        ValueError: a missing label, or a label of another type; the message names the row.

    >>> label_texts("left", [True, False])
    ['True', 'False']
    """
    value = as_array(name, column)
    if value.ndim != 1 or value.dtype.kind not in "biufOUT":
        raise ValueError(
            f"{name} must be one text or whole number a row, got {value.dtype} of rank {value.ndim}"
        )
    labels = value.tolist()
    absent = [row for row, v in enumerate(labels) if v == "" or _is_missing(v)]
    if absent:
        raise ValueError(
            f"{name} must have a value in every row, got none in row {absent[0]} "
            f"({len(absent):,} such rows); drop them"
        )
    odd = next((row for row, v in enumerate(labels) if not isinstance(v, str | int)), None)
    if odd is not None:
        hint = "a label must be a class, not a number"
        if value.dtype.kind == "f" and (value == np.floor(value)).all():
            hint = f"convert it: {name}.astype(int)"
        raise ValueError(
            f"{name} must be text or whole numbers, got {labels[odd]!r} in row {odd}; {hint}"
        )
    return [str(v) for v in labels]


def order(label: str) -> tuple[bool, int, str]:
    """A sort key: whole numbers by size, so that "10" comes after "9", and then text."""
    number = label.removeprefix("-").isdecimal()
    return (not number, int(label) if number else 0, label)


def _numbered(name: str, classes: list[str], column: Any) -> np.ndarray:
    number = {value: i for i, value in enumerate(classes)}
    labels = label_texts(name, column)
    for row, label in enumerate(labels):
        if label not in number:
            raise ValueError(f"{name} must be one of {classes}, got {label!r} in row {row}")
    return np.array([number[label] for label in labels], np.int32)
