"""A table to train and validation rows: what each column is for, which rows are held out."""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxops.data.checks import check_lists
from jaxops.data.columns import of_dates, read_with_dates
from jaxops.data.dataset import take
from jaxops.data.encoders import fit_encoder, order
from jaxops.data.splits import folds_of, held_out, held_out_later
from jaxops.data.tables import Source
from jaxops.tabular.checks import useless, warn_of_known_rows, warn_of_leaks
from jaxops.tabular.data import (
    FEW,
    TableReader,
    days_since,
    label_of,
    names_classes,
    names_since,
    numbered,
    target_of,
)

NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
SHARE = 0.15  # of the rows that are held out by default
ALONE = 10  # rows of a combination of labels whose share is kept on both sides
Table = dict[str, np.ndarray]


class Roles(NamedTuple):
    """What the columns of a table are for, and what the label is; see `tabular.fit`."""

    label: str | Sequence[str]
    id: str | None
    drop: Sequence[str]
    groups: str | None
    time: str | None
    weights: str | None
    text: Sequence[str]
    classes: bool | None = None
    target: str = "number"
    levels: tuple[float, ...] = ()
    since: str | None = None
    class_weights: str | Mapping[Any, float] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns to predict."""
        return (self.label,) if isinstance(self.label, str) else tuple(self.label)

    def named(self) -> list[tuple[str, str]]:
        """(role, column) of all columns that are named."""
        one = [(what, getattr(self, what)) for what in ("id", "groups", "time", "weights")]
        many = [(what, name) for what in ("drop", "text") for name in getattr(self, what)]
        labels = [("label", name) for name in self.labels]
        return [(what, name) for what, name in [*labels, *one, *many] if name is not None]


class Parts(NamedTuple):
    """A table, ready to train on.

    Attributes:
        reader: knows the columns; its encoder is learned from the train rows.
        train: the columns to learn from and the label, as `read` gives them.
        validation: the same of the validation rows; of the train rows, where there are folds.
        weights: of the train and of the validation rows, float32; or None.
        class_weights: the weight of each class in training, float32; "balanced"; or None.
        left_out: columns that nothing can be learned from -> the reason.
        folds: the train and the validation rows of each fold; none where rows are held out.
    """

    reader: TableReader
    train: Table
    validation: Table
    weights: tuple[np.ndarray, np.ndarray] | None
    class_weights: np.ndarray | str | None
    left_out: dict[str, str]
    folds: list[tuple[np.ndarray, np.ndarray]]

    @property
    def label(self) -> str:
        """The column to predict."""
        return str(self.reader.encoder.label)

    def targets(self) -> list[np.ndarray]:
        """The label of the train and of the validation rows: numbers of classes, or numbers."""
        labels = self.train[self.label], self.validation[self.label]
        return [target_of(self.reader.encoder, label) for label in labels]

    def row_weights(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Weights of the train rows, times those of their classes, and of the validation rows."""
        own, held = self.weights or (None, None)
        if self.class_weights is None:
            return own, held
        label = self.targets()[0]
        classes = len(self.reader.encoder.classes)
        weights = _of_each_class(self.class_weights, label, classes)[label]
        return weights if own is None else weights * own, held

    def fold(self, rows: np.ndarray, held: np.ndarray) -> "Parts":
        """The same with other train and validation rows, of the train rows."""
        train = take(self.train, rows)
        gone = useless(train, self.label)
        train = {name: column for name, column in train.items() if name not in gone}
        weights = None if self.weights is None else (self.weights[0][rows], self.weights[0][held])
        validation = take(self.train, held)
        return self._replace(train=train, validation=validation, weights=weights, folds=[])


def parts_of(
    data: Source,
    roles: Roles,
    validation: Any,
    folds: int | None,
    seed: int,
    progress: bool,
) -> Parts:
    """Read a table, check it and divide its rows; the arguments are those of `tabular.fit`."""
    check_lists(text=roles.text, drop=roles.drop)
    _check_split(roles, validation, folds)
    table, dates = _read(data, roles)
    dropped = {name for what, name in roles.named() if what not in ("label", "text")}
    dropped |= {*of_dates([roles.time])} if roles.time in dates else set()
    known = (*roles.labels, *roles.text, *dropped)
    _warn_of_numbers({n: c for n, c in table.items() if n not in known})
    table |= _days_since(table, roles.since, [name for name in dates if name not in dropped])
    label, names, labels = _label(table, roles)
    class_weights = _class_weights(roles.class_weights, label, names)
    roles = roles._replace(label=label)
    strata = table[label] if names else _combinations(table[label]) if labels else None
    rest, held = _rows(table, roles, strata, validation, folds, seed)
    if progress and held is not None and len(rest) + len(held) < len(table[label]):
        count = len(table[label]) - len(rest) - len(held)
        print(f"left out: {count:,} later rows of {roles.groups} that is in training")
    kept = take({n: c for n, c in table.items() if n not in dropped}, rest)
    kept, left_out, days, since = _useful(kept, label, roles.since, dates)
    features = {n: c for n, c in kept.items() if n != label}
    encoder = fit_encoder(features)._replace(label=label, classes=names)
    target = target_of(encoder, kept[label])
    _check_labels(labels, target)
    count = len(names)
    each = [] if class_weights is None else _of_each_class(class_weights, target, count).tolist()
    what = roles.id, days, roles.target, roles.levels, since, labels, roles.weights
    reader = TableReader(encoder, *what, tuple(each))
    for one, y in zip(labels or [label], target.T if labels else [target], strict=True):
        warn_of_leaks(features, one, y, 2 if labels else len(names))
    if held is not None:
        other = take({n: table[n] for n in kept}, held)
    elif folds is None:
        _, other = reader.table(validation, label=True)
        warn_of_known_rows(kept, other)
    else:
        other = kept
    weights = _weights(roles.weights, table, rest, held, None if folds else validation)
    groups = None if roles.groups is None else table[roles.groups]
    drawn = folds_of(len(rest), folds, strata, groups, seed) if folds is not None else []
    for rows, _ in drawn:
        _check_labels(labels, target[rows])
    if weights is not None:
        fold_weights = [(weights[0][rows], weights[0][held]) for rows, held in drawn]
        _check_sides(str(roles.weights), fold_weights or [weights])
    return Parts(reader, kept, other, weights, class_weights, left_out, drawn)


def _read(data: Source, roles: Roles) -> tuple[Table, tuple[str, ...]]:
    """The columns of the table, and which of them are dates."""
    exact = [*roles.labels, *(name for name in (roles.id, roles.groups) if name is not None)]
    unread = {*roles.drop} - {n for what, n in roles.named() if what not in ("drop", "text")}
    table, dates = read_with_dates(data, exact=exact, text=roles.text, unread=unread)
    for what, name in roles.named():
        if name not in table:
            raise ValueError(f"{what} must be one of {', '.join(table)}, got {name!r}")
    for name in roles.labels:
        if name in roles.drop:
            raise ValueError(f"drop must be columns beside the label, got {name!r} among them")
    return table, dates


def _label(table: Table, roles: Roles) -> tuple[str, list[str], dict[str, list[str]]]:
    """The label's name, its classes, and those of each of several labels.

    The label is made in the table. Several become one column, int32 (N, L).
    """
    found: dict[str, list[str]] = {}
    for name in roles.labels:
        classes = names_classes(table[name]) if roles.classes is None else roles.classes
        table[name] = label_of(name, table[name], classes, roles.target)
        found[name] = sorted(set(table[name].tolist()), key=order) if classes else []
        if len(found[name]) == 1:
            raise ValueError(f"{name} must have at least 2 classes, got {found[name][0]!r} alone")
        if len(found[name]) > 2 and not isinstance(roles.label, str):
            raise ValueError(
                f"{name} must have 2 classes, as it is one of several labels, got "
                f"{len(found[name]):,}: {', '.join(found[name][:5])}"
            )
    if isinstance(roles.label, str):
        return roles.label, found[roles.label], {}
    label, column = ", ".join(found), numbered(found, table)
    for name in found:
        del table[name]
    if label in table:
        raise ValueError(f"data must have no column {label!r} beside the labels, got one")
    table[label] = column
    return label, [], found


def _combinations(label: np.ndarray) -> np.ndarray:
    """The number of each row's combination of labels (N, L), 0 of all that have under 10 rows."""
    _, place, count = np.unique(label, axis=0, return_inverse=True, return_counts=True)
    return np.where(count < ALONE, 0, np.arange(len(count)) + 1)[place.reshape(-1)]


def _check_labels(labels: Mapping[str, list[str]], target: np.ndarray) -> None:
    for i, (name, classes) in enumerate(labels.items()):
        if np.ptp(target[:, i]) == 0:
            raise ValueError(
                f"{name} must vary in the train rows, got {classes[target[0, i]]!r} in all "
                f"{len(target):,}"
            )


def _class_weights(given: Any, label: str, classes: Sequence[str]) -> np.ndarray | str | None:
    """The weight of each class, 1 where none is given; or "balanced", for the train rows to say."""
    if given is None:
        return None
    if not classes:
        raise ValueError(
            f"class_weights must be None where the label ({label}) is not one class, got {given!r}"
        )
    if isinstance(given, str) and given == "balanced":
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f'class_weights must be "balanced" or weights by class, got {given!r}')
    weights = dict.fromkeys(classes, 1.0)
    for name, weight in given.items():
        if str(name) not in weights:
            raise ValueError(f"class_weights must be of {', '.join(classes)}, got {name!r}")
        if not isinstance(weight, int | float | np.number) or not 0 < weight < np.inf:
            raise ValueError(f"class_weights must be numbers above 0, got {weight!r} for {name!r}")
        weights[str(name)] = float(weight)
    return np.array([*weights.values()], np.float32)


def _of_each_class(given: np.ndarray | str, label: np.ndarray, classes: int) -> np.ndarray:
    """The weight of each class, float32; balanced ones by these rows, 1 of a class without any."""
    if not isinstance(given, str):
        return given
    counts = np.bincount(label, minlength=classes)
    balanced = len(label) / ((counts > 0).sum() * np.maximum(counts, 1))  # as scikit-learn has it
    return np.where(counts > 0, balanced, 1).astype(np.float32)


def _useful(
    table: Table, label: str, since: str | None, dates: Sequence[str]
) -> tuple[Table, dict[str, str], tuple[str, ...], str | None]:
    """The columns to learn from, what is left out and why, and the dates and `since` that stay.

    What is made of a date goes with it, and what is the same in every row goes without a word.
    """
    left_out = useless(table, label)
    days = tuple(name for name in dates if name in table and name not in left_out)
    made = [*of_dates(dates), *names_since(dates, since).values()]
    since = since if since in days else None
    stay = [*of_dates(days), *names_since(days, since).values()]
    gone = {n for n in made if n in table and (n not in stay or _is_constant(table[n]))}
    kept = {n: column for n, column in table.items() if n not in left_out and n not in gone}
    if kept.keys() == {label}:
        raise ValueError(
            f"data must have a column to learn from beside {label!r}, got none that is kept"
        )
    return kept, {n: why for n, why in left_out.items() if n not in made}, days, since


def _is_constant(column: np.ndarray) -> bool:
    return len(np.unique(column[~np.isnan(column)])) < 2


def _days_since(table: Table, since: str | None, dates: Sequence[str]) -> Table:
    if since is None:
        return {}
    if since not in dates:
        raise ValueError(
            f"since must be a column of dates that is learned from, got {since!r} beside "
            f"{', '.join(dates) or 'no such column'}"
        )
    made = days_since(table, dates, since)
    if not made:
        raise ValueError(f"since must be None where there is one column of dates, got {since!r}")
    clash = next((name for name in made if name in table), None)
    if clash is not None:
        raise ValueError(f"data must have no column {clash!r} with since={since!r}, got one")
    return made


def _check_split(roles: Roles, validation: Any, folds: int | None) -> None:
    if validation is None or isinstance(validation, int):
        raise ValueError(f"validation must be a share in (0, 1) or a table, got {validation}")
    share = isinstance(validation, float)
    if folds is not None and not (share and validation == SHARE):
        raise ValueError("validation must be left out where folds validate, got one")
    if roles.time is not None and (folds is not None or not share):
        what = f"{folds} folds" if folds is not None else "a table of its own"
        raise ValueError(f"time must be None where validation is {what}, got {roles.time!r}")
    if roles.groups is not None and not share:
        raise ValueError(
            f"groups must be None where validation is a table of its own, got {roles.groups!r}; "
            f"drop=[{roles.groups!r}] leaves the column out"
        )


def _rows(
    table: Mapping[str, np.ndarray],
    roles: Roles,
    strata: np.ndarray | None,
    validation: Any,
    folds: int | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The train rows, and those held out; None where a table or folds validate."""
    count = len(table[str(roles.label)])
    groups = None if roles.groups is None else table[roles.groups]
    if folds is not None or not isinstance(validation, float):
        return np.arange(count), None
    if roles.time is None:
        return held_out(count, validation, strata, groups, seed)
    times = table[roles.time]
    if times.dtype.kind == "O":
        raise ValueError(f"{roles.time} must be dates or numbers, got {times[0]!r} in row 0")
    missing = np.isnan(times)
    if missing.any():
        raise ValueError(
            f"{roles.time} must have a value in every row, got none in row {missing.argmax()} "
            f"({missing.sum():,} such rows)"
        )
    return held_out_later(times, validation, groups)


def _weights(
    name: str | None,
    table: Mapping[str, np.ndarray],
    rest: np.ndarray,
    held: np.ndarray | None,
    validation: Any,
) -> tuple[np.ndarray, np.ndarray] | None:
    """The weights of the train and of the validation rows."""
    if name is None:
        return None
    weights = _checked_weights(name, table[name])
    if held is not None or validation is None:
        return weights[rest], weights[rest if held is None else held]
    other = read_with_dates(validation, [name])[0][name]
    return weights[rest], _checked_weights(name, other)


def mask_of(reader: TableReader, data: Source, table: Table) -> Table:
    """The column `mask` of new rows that a model is trained further on; none if all count alike.

    Args:
        reader: knows the column of weights, and the weights of the classes.
        data: the new rows.
        table: the same as the reader has read them, with the label.

    Raises:
        ValueError: the column of weights is missing, or they are not numbers of at least 0.
    """
    encoder, name = reader.encoder, reader.weights
    each, mask = np.array(reader.class_weights, np.float32), {}
    if name is not None:
        mask["mask"] = _checked_weights(name, read_with_dates(data, [name])[0][name])
    if reader.class_weights:
        weights = each[target_of(encoder, table[str(encoder.label)])]
        mask["mask"] = weights * mask.get("mask", 1)
    return mask


def _checked_weights(name: str, weights: np.ndarray) -> np.ndarray:
    if weights.dtype.kind == "O":
        raise ValueError(f"{name} must be numbers of at least 0, got {weights[0]!r} in row 0")
    wrong = ~(weights >= 0)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{name} must be numbers of at least 0, got {weights[row]:g} in row {row} "
            f"({wrong.sum():,} such rows)"
        )
    if not weights.any():
        raise ValueError(f"{name} must be above 0 in some row, got 0 in every row")
    return weights.astype(np.float32)


def _check_sides(name: str, weights: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Check the weights of the train and the validation rows, of each fold."""
    for place, sides in enumerate(weights):
        fold = f" of fold {place}" if len(weights) > 1 else ""
        for rows, of in zip(("train", "validation"), sides, strict=True):
            if not of.any():
                raise ValueError(
                    f"{name} must be above 0 in some {rows} row{fold}, got 0 in all {len(of):,}"
                )


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
                stacklevel=4,
            )
