"""Wrong data is found before anything compiles, and the message says how to mend it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxops.task import Column, Task


def rows(columns: Mapping[str, Any]) -> int:
    """How many rows the columns have.

    Args:
        columns: name -> array; all have one leading axis of the same length.

    Raises:
        ValueError: no columns, a column without a leading axis, or unequal lengths.

    >>> rows({"image": np.zeros((3, 28, 28)), "label": np.zeros(3)})
    3
    """
    if not columns:
        raise ValueError("no columns found, at least one wanted")
    scalars = [name for name, value in columns.items() if np.ndim(value) == 0]
    if scalars:
        raise ValueError(f"{', '.join(scalars)}: one value found, an array of rows wanted")
    lengths = {name: len(value) for name, value in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {n:,}" for name, n in lengths.items())
        raise ValueError(f"columns of unequal length: {found} rows; equal numbers wanted")
    return next(iter(lengths.values()))


def check(columns: Mapping[str, Any], wanted: tuple[Column, ...], targets: bool = True) -> None:
    """Check that columns are what a task wants; others than the wanted ones are ignored.

    A column `mask` (N,), if there, weighs the rows: finite, 0 or more.

    Args:
        columns: name -> array with a leading axis of rows.
        wanted: what each column must look like, as in `Task.columns`.
        targets: also check the columns that are learned; prediction does without them.

    Raises:
        ValueError: a missing or empty column, unequal lengths, a wrong row shape or dtype, NaN
            or infinity in floats, or labels outside [0, classes). It names the column, what was
            found, what was wanted, and where it can be said, how to convert.

    >>> check({"label": np.array([0, 12])}, (Column("label", (), "int", classes=10),))
    Traceback (most recent call last):
    ValueError: label: 12 found in row 1 (1 such row), labels in [0, 10) wanted
    """
    wanted = tuple(column for column in wanted if targets or not column.target)
    for column in wanted:
        if column.name not in columns:
            found = ", ".join(columns) or "none"
            raise ValueError(f"{column.name}: column missing; columns found: {found}")
    chosen = {c.name: np.asarray(columns[c.name]) for c in wanted}
    if chosen and rows(chosen) == 0:
        raise ValueError(f"{', '.join(chosen)}: 0 rows found, at least 1 wanted")
    for column in wanted:
        value = chosen[column.name]
        _check_shape(column, value)
        _check_dtype(column, value)
        if jnp.issubdtype(value.dtype, np.floating):
            _check_finite(column.name, value)
        if column.classes is not None:
            _check_labels(column.name, value, column.classes)
        elif value.dtype.kind in "iu" and value.dtype.itemsize > 4:
            _check_narrow(column.name, value)
    if "mask" in columns:
        _check_mask(np.asarray(columns["mask"]))


def _check_shape(column: Column, value: np.ndarray) -> None:
    found, wanted = value.shape[1:], column.shape
    fits = len(found) == len(wanted) and all(
        w is None or f == w for f, w in zip(found, wanted, strict=True)
    )
    if fits:
        return
    name, hint = column.name, ""
    if wanted and wanted[-1] == 1 and len(found) == len(wanted) - 1:
        hint = f"; add the channel axis: {name}[..., None]"
    elif found and found[-1] == 1 and len(found) == len(wanted) + 1:
        hint = f"; drop the last axis: {name}[..., 0]"
    elif len(wanted) == 3 and len(found) == 3 and (found[1], found[2], found[0]) == wanted:
        hint = f"; move the channels last: np.moveaxis({name}, 1, -1)"
    elif None not in wanted and np.prod(found) == np.prod(np.array(wanted, int)):
        hint = f"; reshape it: {name}.reshape(-1, {', '.join(map(str, wanted))})"
    elif not wanted and len(found) == 1:
        hint = f"; from one-hot to numbers: {name}.argmax(-1)"
    raise ValueError(f"{name}: rows of shape {found} found, {wanted} wanted{hint}")


def _check_dtype(column: Column, value: np.ndarray) -> None:
    name, found, wanted = column.name, value.dtype, column.dtype
    kinds = {"float": np.floating, "int": np.integer}
    if wanted in kinds and jnp.issubdtype(found, kinds[wanted]):
        return
    if wanted not in kinds and found == np.dtype(wanted):
        return
    target = {"float": "np.float32", "int": "np.int32"}.get(wanted, f"np.{wanted}")
    if found.kind not in "biuf":
        first = value.reshape(-1)[0]
        hint = "encode it as numbers first"
        if "int" in wanted:
            hint = f"number the values: np.unique({name}, return_inverse=True)[1]"
        raise ValueError(f"{name}: {found} found ({first!r} in row 0), {wanted} wanted; {hint}")
    hint = f"convert it: {name}.astype({target})"
    if "int" in wanted and found.kind == "f":
        flat = value.reshape(len(value), -1)
        odd = np.flatnonzero((flat != np.floor(flat)).any(1))
        if wanted == "uint8" and len(odd) and np.nanmin(flat) >= 0 and np.nanmax(flat) <= 1:
            hint = f"bring it back to bytes: ({name} * 255).round().astype(np.uint8)"
        elif len(odd):
            bad = next(v for v in flat[odd[0]] if v != np.floor(v))
            hint = f"{bad} in row {odd[0]} is not a whole number"
    raise ValueError(f"{name}: dtype {found} found, {wanted} wanted; {hint}")


def _check_finite(name: str, value: np.ndarray) -> None:
    # min and max carry NaN and infinity along, and need no array of flags the size of the data
    with np.errstate(invalid="ignore"):  # bfloat16 warns of NaN here
        if value.size == 0 or (np.isfinite(value.min()) and np.isfinite(value.max())):
            return
    bad = np.flatnonzero(~np.isfinite(value.reshape(len(value), -1)).all(1))
    kind = "NaN" if np.isnan(value[bad[0]]).any() else "infinity"
    raise ValueError(
        f"{name}: {kind} found in row {bad[0]} ({_such(len(bad))} with NaN or infinity), "
        "finite numbers wanted; drop the rows or fill the values in"
    )


def _check_labels(name: str, value: np.ndarray, classes: int) -> None:
    if value.size == 0 or (value.min() >= 0 and value.max() < classes):
        return
    flat = value.reshape(len(value), -1)
    wrong = (flat < 0) | (flat >= classes)
    bad = np.flatnonzero(wrong.any(1))
    first = flat[bad[0]][wrong[bad[0]]][0]
    message = f"{name}: {first} found in row {bad[0]} ({_such(len(bad))})"
    message += f", labels in [0, {classes}) wanted"
    if first == -1:
        message += f"; rows labelled -1 (unlabelled) have to be dropped: keep = {name} != -1"
    raise ValueError(message)


def _check_narrow(name: str, value: np.ndarray) -> None:
    limits = np.iinfo(np.int32)
    if value.size and (value.max() > limits.max or value.min() < limits.min):
        big = value.max() if value.max() > limits.max else value.min()
        raise ValueError(f"{name}: {big} found, numbers of 32 bits wanted, which a device holds")


def _check_mask(value: np.ndarray) -> None:
    if value.ndim != 1 or value.dtype.kind not in "biuf":
        raise ValueError(f"mask: {value.dtype}{list(value.shape)} found, one number a row wanted")
    if value.size and not (np.isfinite(value).all() and value.min() >= 0):
        bad = np.flatnonzero(~(np.isfinite(value) & (value >= 0)))[0]
        raise ValueError(f"mask: {value[bad]} found in row {bad}, weights of 0 or more wanted")


def _such(count: int) -> str:
    return f"{count:,} such row" + ("s" if count > 1 else "")


def named(task: Task, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Columns that a task does not name (a customer's number, say) stay off the device."""
    wanted = {"mask", *(column.name for column in task.columns)}
    return {n: np.asarray(v) for n, v in columns.items() if n in wanted or not task.columns}


def prepare(
    task: Task, columns: Mapping[str, Any], targets: bool, empty: bool = False
) -> dict[str, np.ndarray]:
    """The columns that a task names, checked; without `targets` those need not be there.

    With `empty` there may be no rows, as in the batch of `data.stream` whose rows all lie in other
    processes.
    """
    if not empty or rows(columns) > 0:
        check(columns, task.columns, targets=targets)
        if task.check:
            task.check(columns)
    return named(task, columns)
