"""Checks of columns before anything compiles; messages name the column and how to convert it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.task import Column, Task


def rows(columns: Mapping[str, Any]) -> int:
    """Return the number of rows of columns.

    Args:
        columns: name -> array (N, ...).

    Returns:
        N.

    Raises:
        ValueError: no columns, a column without a leading axis, or unequal lengths.

    >>> rows({"image": np.zeros((3, 28, 28)), "label": np.zeros(3)})
    3
    """
    _check_named(columns)
    if not columns:
        raise ValueError("columns must hold at least one column, got none")
    scalars = [name for name, value in columns.items() if np.ndim(value) == 0]
    if scalars:
        raise ValueError(f"{', '.join(scalars)} must be an array of rows, got one value")
    lengths = {name: len(value) for name, value in columns.items()}
    if len(set(lengths.values())) > 1:
        given = ", ".join(f"{n:,} of {name}" for name, n in lengths.items())
        raise ValueError(f"columns must have equal numbers of rows, got {given}")
    return next(iter(lengths.values()))


def _check_named(columns: Any) -> None:
    if not isinstance(columns, Mapping):
        hint = "; write dict(frame)" if hasattr(columns, "columns") else ""
        raise ValueError(
            'columns must be arrays by name, such as {"features": x, "label": y}, got '
            f"{type(columns).__name__}{hint}"
        )


def check_lists(**lists: Any) -> None:
    """Raise `ValueError` for a text where a list of names is wanted; each letter would be a name.

    >>> check_lists(drop="age", text=None)
    Traceback (most recent call last):
    ValueError: drop must be a list of names, got 'age'; write drop=['age']
    """
    for name, given in lists.items():
        if isinstance(given, str):
            raise ValueError(
                f"{name} must be a list of names, got {given!r}; write {name}=[{given!r}]"
            )


def check(columns: Mapping[str, Any], wanted: tuple[Column, ...], targets: bool = True) -> None:
    """Check that columns fit a task. Columns that the task does not name are ignored.

    A column `mask` (N,), if there is one, holds the weights of the rows: finite numbers of at
    least 0.

    Args:
        columns: name -> array (N, ...).
        wanted: what each column must look like, as in `Task.columns`.
        targets: also check the target columns, which prediction does not need.

    Raises:
        ValueError: a missing or empty column, unequal lengths, a wrong row shape or dtype, NaN
            or infinity in floats, labels outside [0, classes), or integers outside the int32
            range. The message names the column and the first bad row, and says how to convert it.

    >>> check({"label": np.array([0, 12])}, (Column("label", (), "int", classes=10),))
    Traceback (most recent call last):
    ValueError: label must be in [0, 10), got 12 in row 1 (1 such row)
    """
    _check_named(columns)
    wanted = tuple(column for column in wanted if targets or not column.target)
    for column in wanted:
        if column.name not in columns:
            given = ", ".join(columns) or "none"
            raise ValueError(f"columns must include {column.name!r}, got {given}")
    chosen = {c.name: _unmasked(c.name, columns[c.name]) for c in wanted}
    if targets and wanted and "sample_weight" in set(columns) - set(chosen):
        raise ValueError(
            "sample_weight must be named mask, the column of row weights, got a column that "
            "the task does not read"
        )
    if chosen and rows(chosen) == 0:
        raise ValueError(f"{', '.join(chosen)} must have at least 1 row, got 0")
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
        _check_mask(_unmasked("mask", columns["mask"]))


def _check_shape(column: Column, value: np.ndarray) -> None:
    given, wanted = value.shape[1:], column.shape
    fits = len(given) == len(wanted) and all(
        w is None or g == w for g, w in zip(given, wanted, strict=True)
    )
    if fits:
        return
    name, hint = column.name, ""
    if wanted and wanted[-1] == 1 and len(given) == len(wanted) - 1:
        hint = f"; add the channel axis: {name}[..., None]"
    elif given and given[-1] == 1 and len(given) == len(wanted) + 1:
        hint = f"; drop the last axis: {name}[..., 0]"
    elif len(wanted) == 3 and len(given) == 3 and (given[1], given[2], given[0]) == wanted:
        hint = f"; move the channels last: np.moveaxis({name}, 1, -1)"
    elif None not in wanted and np.prod(given) == np.prod(np.array(wanted, int)):
        hint = f"; reshape it: {name}.reshape(-1, {', '.join(map(str, wanted))})"
    elif not wanted and len(given) == 1:
        hint = f"; from one-hot to numbers: {name}.argmax(-1)"
    raise ValueError(f"{name} must have rows of shape {wanted}, got {given}{hint}")


def _check_dtype(column: Column, value: np.ndarray) -> None:
    name, given, wanted = column.name, value.dtype, column.dtype
    kinds = {"float": np.floating, "int": np.integer}
    if wanted in kinds and jnp.issubdtype(given, kinds[wanted]):
        return
    if wanted not in kinds and given == np.dtype(wanted):
        return
    target = {"float": "np.float32", "int": "np.int32"}.get(wanted, f"np.{wanted}")
    if given.kind not in "biuf":
        first = value.reshape(-1)[0]
        hint = "encode it as numbers first"
        if "int" in wanted:
            hint = f"number the values: np.unique({name}, return_inverse=True)[1]"
        raise ValueError(f"{name} must be {wanted}, got {given} ({first!r} in row 0); {hint}")
    hint = f"convert it: {name}.astype({target})"
    flat = value.reshape(len(value), -1)
    odd = np.flatnonzero((flat != np.floor(flat)).any(1)) if given.kind == "f" else np.zeros(0, int)
    if wanted == "uint8" and len(odd) and np.nanmin(flat) >= 0 and np.nanmax(flat) <= 1:
        hint = f"bring it back to bytes: ({name} * 255).round().astype(np.uint8)"
    elif "int" in wanted and len(odd):
        bad = next(v for v in flat[odd[0]] if v != np.floor(v))
        hint = f"{bad} in row {odd[0]} is not a whole number"
    elif wanted == "uint8" and flat.size and (flat.min() < 0 or flat.max() > 255):
        hint = (
            f"scale it to bytes first, because {flat.min()} to {flat.max()} does not fit; if it "
            f"has 16 bits: ({name} // 257).astype(np.uint8)"
        )
    raise ValueError(f"{name} must have dtype {wanted}, got {given}; {hint}")


def _check_finite(name: str, value: np.ndarray) -> None:
    # min and max show NaN and infinity without an array of flags as large as the data; the limit
    # is that of the dtype on the device, where float64 becomes float32
    most = float(jnp.finfo(jax.dtypes.canonicalize_dtype(value.dtype)).max)
    with np.errstate(invalid="ignore"):  # with NaN, bfloat16 warns here
        if value.size == 0 or (value.min() >= -most and value.max() <= most):
            return
        bad = np.flatnonzero(~(np.abs(value.reshape(len(value), -1)) <= most).all(1))
    if np.isfinite(value[bad[0]]).all():
        raise ValueError(
            f"{name} must be at most {most:.3g} in size, got {np.abs(value[bad[0]]).max():.3g} in "
            f"row {bad[0]} ({_such(len(bad))}); scale the values"
        )
    kind = "NaN" if np.isnan(value[bad[0]]).any() else "infinity"
    raise ValueError(
        f"{name} must be finite, got {kind} in row {bad[0]} ({_such(len(bad))}); drop the rows or "
        "fill in the values"
    )


def _check_labels(name: str, value: np.ndarray, classes: int) -> None:
    if value.size == 0 or (value.min() >= 0 and value.max() < classes):
        return
    flat = value.reshape(len(value), -1)
    wrong = (flat < 0) | (flat >= classes)
    bad = np.flatnonzero(wrong.any(1))
    first = flat[bad[0]][wrong[bad[0]]][0]
    message = f"{name} must be in [0, {classes}), got {first} in row {bad[0]} ({_such(len(bad))})"
    if first == -1:
        message += f"; drop the rows labelled -1 (unlabelled): keep = {name} != -1"
    raise ValueError(message)


def class_names(classes: Any) -> tuple[str, ...]:
    """The names of classes, from their number or from names in order; a name may be an integer.

    Raises:
        ValueError: a name is neither a text nor a whole number, or is given twice.

    >>> class_names(2), class_names(("cat", "dog"))
    (('0', '1'), ('cat', 'dog'))
    """
    given = classes if isinstance(classes, tuple) else tuple(range(classes))
    odd = next((name for name in given if not isinstance(name, str | int | np.integer)), "")
    if odd != "":
        raise ValueError(f"classes must be a number or names, got {odd!r} among them")
    names = tuple(map(str, given))
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"classes must be distinct names, got {twice!r} twice")
    return names


def _check_narrow(name: str, value: np.ndarray) -> None:
    limits = np.iinfo(np.int32)
    if value.size and (value.max() > limits.max or value.min() < limits.min):
        big = value.max() if value.max() > limits.max else value.min()
        raise ValueError(f"{name} must be in the int32 range, got {big}; re-index the values")


def _check_mask(value: np.ndarray) -> None:
    if value.ndim != 1 or value.dtype.kind not in "biuf":
        raise ValueError(f"mask must be one number a row, got {value.dtype}{list(value.shape)}")
    if value.size and not (np.isfinite(value).all() and value.min() >= 0):
        bad = np.flatnonzero(~(np.isfinite(value) & (value >= 0)))[0]
        raise ValueError(f"mask must be finite and at least 0, got {value[bad]} in row {bad}")


def _such(count: int) -> str:
    return f"{count:,} such row" + ("s" if count > 1 else "")


def named(task: Task, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the columns that a task names, as arrays; the others are not put on the device.

    Args:
        task: the task; without `columns` it takes all.
        columns: name -> array (N, ...).
    """
    wanted = {"mask", *(column.name for column in task.columns)}
    return {n: _native(n, v) for n, v in columns.items() if n in wanted or not task.columns}


def _unmasked(name: str, column: Any) -> np.ndarray:
    """The column as an array; `ValueError` for a masked value, which NumPy would replace."""
    if np.ma.is_masked(column):
        row = np.argwhere(np.ma.getmaskarray(column))[0][0]
        raise ValueError(f"{name} must have no masked values, got one in row {row}; fill them in")
    return np.asarray(column)


def _native(name: str, column: Any) -> np.ndarray:
    """The column as a device needs it: numbers in the machine's own byte order."""
    value = _unmasked(name, column)
    if value.dtype.kind in "OSUTMm":
        raise ValueError(f"{name} must be numbers, got {value.dtype}; encode it, or leave it out")
    return value.astype(value.dtype.newbyteorder("="), copy=False)


def prepare(
    task: Task, columns: Mapping[str, Any], targets: bool, empty: bool = False
) -> dict[str, np.ndarray]:
    """Check the columns that a task names, and return them.

    Args:
        task: says what its columns must look like.
        columns: name -> array (N, ...).
        targets: whether the target columns are needed.
        empty: allow 0 rows, as in a batch of `data.stream` whose rows are all read by other
            processes.

    Raises:
        ValueError: see `check`; or `task.check` raises it.
    """
    if not empty or rows(columns) > 0:
        check(columns, task.columns, targets=targets)
        if task.check:
            task.check(columns)
    return named(task, columns)
