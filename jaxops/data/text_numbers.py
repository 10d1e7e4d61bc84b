"""Columns of texts as numbers, if all are numbers and can be held exactly."""

import contextlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxops._optional import require

TRUE, FALSE = ("True", "TRUE", "true"), ("False", "FALSE", "false")
WHOLE = "[+-]?[0-9]+"
COMMA = r"^\s*[+-]?[0-9][0-9.]*(,[0-9]+)?\s*$"  # a number with a decimal comma


def without(column: Any, missing: Sequence[str]) -> Any:
    """A column of texts, with null for the texts that stand for a missing value."""
    pa, pc = require("pyarrow", extra="data"), require("pyarrow.compute", extra="data")

    absent = pc.is_in(column, value_set=pa.array(missing, pa.string()))
    return pc.if_else(absent, pa.scalar(None, pa.string()), column)


def inferred(column: Any, missing: Sequence[str], where: str, decimal_commas: bool) -> Any:
    """A column of texts as int64, float64, bool or text, null where missing.

    Args:
        column: an Arrow column.
        missing: the texts that stand for a missing value.
        where: the name of the column in messages.
        decimal_commas: whether to refuse numbers with decimal commas; otherwise they are text.

    Raises:
        ValueError: numbers that int64 and float64 cannot hold, or with decimal commas.

    >>> import pyarrow as pa
    >>> column = pa.chunked_array([["1", "", "3"]])
    >>> inferred(column, ("",), "column 'age'", False).to_pylist()
    [1, None, 3]
    """
    pa, pc = require("pyarrow", extra="data"), require("pyarrow.compute", extra="data")

    present = without(column, missing)
    if present.null_count == len(present):
        return pa.chunked_array([pa.nulls(len(present), pa.float64())])
    numbers = as_numbers(present, where)
    if numbers is not None:
        return numbers
    true = pc.is_in(present, value_set=pa.array(TRUE))
    if pc.all(pc.or_(true, pc.is_in(present, value_set=pa.array([*FALSE, None])))).as_py():
        return pc.if_else(present.is_valid(), true, pa.scalar(None, pa.bool_()))
    row = comma(present) if decimal_commas else None
    if row is not None:
        raise ValueError(
            f"{where} must be numbers with a decimal point and no other signs, got "
            f"{present[row].as_py()!r} in row {row} (counted from 0); write decimal commas as "
            "points, or read it as text: text=[...]"
        )
    return present


def comma(texts: Any) -> int | None:
    """The first row with a decimal comma, if all texts of an Arrow column are such numbers."""
    pc = require("pyarrow.compute", extra="data")

    if not pc.all(pc.match_substring_regex(texts, COMMA), min_count=0).as_py():
        return None
    row = pc.index(pc.fill_null(pc.match_substring(texts, ","), False), True).as_py()
    return None if row < 0 else row


def as_numbers(texts: Any, where: str | None = None, exact: bool = True) -> Any:
    """An Arrow column of texts as int64 or float64 with the same nulls, or None.

    The result is None if some text is not a number or has leading zeros. With `exact`, it is also
    None if a whole number cannot be held exactly; if `where` names the column, this is an error
    instead. Without `exact`, the nearest float64 is used.
    """
    pa, pc = require("pyarrow", extra="data"), require("pyarrow.compute", extra="data")

    numbers = _cast(texts)
    if numbers is None:  # most often these are texts; if not, remove the spaces and try again
        numbers = _cast(texts := pc.utf8_trim_whitespace(texts))
    if numbers is None:
        return None
    if pc.any(pc.starts_with(texts, "+")).as_py():  # Arrow accepts a plus only in floats
        texts = pc.replace_substring_regex(texts, r"^\+([0-9])", r"\1")
        numbers = _cast(texts)
    if pa.types.is_integer(numbers.type):
        same = pc.equal(numbers.cast(pa.string()), texts)
        if not pc.all(same, min_count=0).as_py() and _zeros(texts):
            return None
        return numbers
    if _zeros(texts.filter(pc.starts_with(texts, "0"))):
        return None
    changed = _inexact(texts, numbers) if exact else None
    if changed is None:
        return numbers
    if where is None:
        return None
    row = pc.index(texts, changed).as_py()
    raise ValueError(
        f"{where} must be numbers that int64 or float64 holds, got {changed} in row {row} (counted "
        "from 0); read it as text: text=[...]"
    )


def _zeros(texts: Any) -> bool:
    """Whether some text is like "007", or like "0x10", which Arrow reads as 16."""
    pc = require("pyarrow.compute", extra="data")

    return bool(pc.any(pc.match_substring_regex(texts, "^[+-]?0[0-9xX]")).as_py())


def _cast(texts: Any) -> Any:
    pa = require("pyarrow", extra="data")

    for dtype in (pa.int64(), pa.float64()):
        with contextlib.suppress(pa.ArrowInvalid):
            texts.slice(0, 256).cast(dtype)  # first a few: Arrow writes an error for each bad row
            return texts.cast(dtype)
    return None


def _inexact(texts: Any, numbers: Any) -> str | None:
    """A whole number that float64 would change, or a number that is infinite as float64."""
    pc = require("pyarrow.compute", extra="data")

    large = texts.filter(pc.greater_equal(pc.abs(numbers), 2.0**53)).to_pylist()
    whole = [text for text in large if re.fullmatch(WHOLE, text)]
    beyond = any(abs(int(text)) >= 2**63 for text in whole)
    if beyond and pc.all(pc.match_substring_regex(texts, f"^{WHOLE}$")).as_py():
        return next(text for text in whole if abs(int(text)) >= 2**63)
    for text in large:
        value = float(text)
        if np.isinf(value) and re.search("[0-9]", text):
            return text
        if re.fullmatch(WHOLE, text) and int(value) != int(text):
            return text
    return None
