"""The parts of a request's body: rows of a table, lists and options, each checked by its kind."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxops.data.columns import DATE
from jaxops.data.encoders import LARGEST
from jaxops.serve.refused import Refused, short

WORDS: dict[str, tuple[str, list[str]]] = {  # kind of a cell -> how messages call it, JSON types
    "number": ("a number", ["number"]),
    "text": ("a text", ["string", "integer", "boolean"]),
    "date": ("a date such as 2024-12-31", ["string"]),
    "id": ("a text or a whole number", ["string", "integer"]),
    "time": ("a date or a number", ["string", "number"]),
}
TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "boolean": (bool,),
    "array": (list,),
}


@dataclass(frozen=True)
class Field:
    """A column of a table.

    Attributes:
        name: the column's.
        kind: see `WORDS`.
        example: a value of it; None where there is none to compile for.
        null: whether values may be missing.
        needed: whether the column may not be left out.

    >>> Field("age", "number").column([3, None]).tolist()
    [3.0, nan]
    """

    name: str
    kind: str
    example: Any = None
    null: bool = True
    needed: bool = True

    def column(self, values: Sequence[Any]) -> np.ndarray:
        """The checked values as an array: float64 with NaN, int64, or objects with None.

        Raises:
            Refused: a value of another kind, with its row.
        """
        cells = [self._cell(value, row) for row, value in enumerate(values)]
        if self.kind == "number":
            return np.array(cells, np.float64)
        if self.kind in ("id", "time") and any(isinstance(cell, str) for cell in cells):
            row = next((i for i, cell in enumerate(cells) if not isinstance(cell, str)), None)
            if row is not None:
                raise Refused(
                    400,
                    f"{self.name} must be all text or all numbers, got both, "
                    f"{short(cells[row])} in row {row}",
                )
        elif self.kind in ("id", "time"):
            return np.array(cells)
        return np.array([*cells, None], object)[:-1]  # objects also of texts of one length

    def _cell(self, value: Any, row: int) -> Any:
        kind, name = type(value), self.kind
        if value is None and self.null:
            return np.nan if name == "number" else None
        finite = kind in (int, float) and abs(value) <= LARGEST
        if name == "number" and finite:
            return float(value)
        if name == "text" and kind in (bool, int):
            return str(value)  # as a table's whole numbers and booleans are read
        counted = (name == "id" and kind is int) or (name == "time" and finite)
        if counted and abs(value) < 2**63:
            return value
        dated = name == "date" and kind is str and re.fullmatch(DATE, value)
        if dated or (name in ("text", "id", "time") and kind is str and is_text(value)):
            return value
        wanted = WORDS[name][0] + " or null" * self.null
        raise Refused(400, f"{self.name} must be {wanted}, got {short(value)} in row {row}")

    def schema(self) -> dict[str, Any]:
        """The JSON schema of a cell, with an example of three digits."""
        kinds, one = [*WORDS[self.kind][1], *(["null"] if self.null else [])], self.example
        shown = float(f"{one:.3g}") if isinstance(one, float) else one
        return {"type": kinds} | ({} if shown is None else {"examples": [shown]})


def is_text(value: str) -> bool:
    """Whether a text is Unicode: JSON can escape halves of a character."""
    return value.isascii() or not re.search("[\ud800-\udfff]", value)


def list_of(name: str, given: Any, most: int) -> Any:
    """What was given, if it is a list of 1 to `most` rows."""
    if not isinstance(given, list | np.ndarray) or len(given) == 0:
        raise Refused(400, f"{name} must be a list of at least 1 row, got {short(given)}")
    if len(given) > most:
        raise Refused(413, f"{name} must have at most {most:,} rows, got {len(given):,}")
    return given


def opened_body(
    body: Mapping[str, Any], keys: Sequence[str], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """The checked options of a body that has the first of the keys, and no others.

    Args:
        body: of a request.
        keys: those beside `options`.
        wanted: name -> JSON schema of the options.

    Raises:
        Refused: 400.
    """
    names = [*keys, "options"] if wanted else [*keys]
    for name in body:
        if name not in names:
            raise Refused(400, f"the body must have {' and '.join(names)} alone, got {short(name)}")
    if keys[0] not in body:
        raise Refused(400, f"the body must have {keys[0]!r}, got none")
    options = body.get("options", {})
    if not isinstance(options, dict):
        raise Refused(400, f"options must be an object, got {short(options)}")
    for name, value in options.items():
        if name not in wanted:
            raise Refused(400, f"options must be among {', '.join(wanted)}, got {short(name)}")
        _check_option(name, value, wanted[name])
        if type(value) is int and "number" in wanted[name]["type"]:
            options = {**options, name: float(value)}  # NumPy has no numbers of any length
    return options


def _check_option(name: str, value: Any, schema: Mapping[str, Any]) -> None:
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    fits = type(value) in [one for kind in kinds for one in TYPES[kind]]
    fits = fits and not (isinstance(value, str) and not is_text(value))
    if fits and type(value) in (int, float):
        low, high = schema.get("minimum", -LARGEST), schema.get("maximum", LARGEST)
        fits = low <= value <= high
    most = schema.get("maxItems", LARGEST)
    if fits and isinstance(value, list) and len(value) > most:
        raise Refused(400, f"{name} must have at most {most} items, got {len(value):,}")
    if not fits:
        bounds = [f"{end} {schema[end]}" for end in ("minimum", "maximum") if end in schema]
        wanted = ", ".join([" or ".join(kinds), *bounds])
        raise Refused(400, f"{name} must be of type {wanted}, got {short(value)}")
    for one in value if isinstance(value, list) else ():
        _check_option(f"{name}: each", one, schema["items"])


def table_of(
    name: str, given: Any, fields: tuple[Field, ...], most: int
) -> tuple[dict[str, np.ndarray], int]:
    """The checked columns of a table, and the number of its rows.

    Args:
        name: what messages call it.
        given: a list of objects, or an object of lists.
        fields: the columns.
        most: the most rows.

    Raises:
        Refused: a column that is unknown or missing, a value of another kind, with its row.
    """
    rows: Any = [given] if isinstance(given, dict) else list_of(name, given, most)
    first = rows[0] if isinstance(rows[0], dict) else {}
    fields = tuple(f for f in fields if f.needed or f.name in first)
    names = dict.fromkeys(f.name for f in fields)
    for row, one in enumerate(rows):
        if not isinstance(one, dict):
            raise Refused(400, f"{name} must be objects, got {short(one)} in row {row}")
        if one.keys() != names.keys():
            raise _other_names(name, one, [*names], "" if one is given else f" in row {row}")
    if isinstance(given, dict):
        lists = {f.name: list_of(f.name, given[f.name], most) for f in fields}
    else:
        lists = {f.name: [row[f.name] for row in rows] for f in fields}
    count = len(lists[fields[0].name])
    for one, values in lists.items():
        if len(values) != count:
            wanted = f"{count:,} rows, as {fields[0].name}"
            raise Refused(400, f"{one} must have {wanted}, got {len(values):,}")
    return {f.name: f.column(lists[f.name]) for f in fields}, count


def _other_names(name: str, given: Mapping[str, Any], wanted: list[str], where: str) -> Refused:
    odd = next((one for one in given if one not in wanted), None)
    if odd is not None:
        columns = ", ".join(wanted)
        return Refused(400, f"{name} must have the columns {columns}, got {short(odd)}{where}")
    gone = next(one for one in wanted if one not in given)
    hint = "null stands for a missing value"
    return Refused(400, f"{name} must have the column {gone!r} ({hint}), got none{where}")


def table_schema(fields: Sequence[Field]) -> dict[str, Any]:
    """The JSON schema of a table, see `table_of`."""
    cells = {one.name: one.schema() for one in fields}
    lists = {name: {"type": "array", "items": cell} for name, cell in cells.items()}
    needed = [one.name for one in fields if one.needed]
    rules: dict[str, Any] = {"required": needed, "additionalProperties": False}
    row = {"type": "object", "properties": cells, **rules}
    columns = {"type": "object", "properties": lists, **rules}
    return {"oneOf": [{"type": "array", "items": row, "minItems": 1}, columns]}


def body_schema(
    parts: Mapping[str, Any], required: list[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON schema of a body, see `opened_body`."""
    properties = dict(parts)
    if options:
        named = {"type": "object", "properties": dict(options), "additionalProperties": False}
        properties["options"] = named
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
