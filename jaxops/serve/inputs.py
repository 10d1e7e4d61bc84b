"""What a finished model reads from a request: raw input as JSON, checked before the model sees it.

`Table`, `Texts`, `Histories`, `Images` and `Arrays` are the kinds; `jaxops.serve.readers` finds the
one of a model. Each reads the body of a request, joins what several requests gave, makes an example
to compile for, and describes itself as a JSON schema.
"""

import base64
import io
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from jaxops._shapes import next_power_of_two
from jaxops.data.checks import check
from jaxops.data.images import opened, read_image
from jaxops.serve.fields import (
    Field,
    body_schema,
    is_text,
    list_of,
    opened_body,
    table_of,
    table_schema,
)
from jaxops.serve.refused import Refused, short
from jaxops.serve.tensors import array_of, nested
from jaxops.task import Column, example

PIXELS = 2**24  # of a request's image files, which may be far larger than their bytes
CHARACTERS = 2**20  # of a request's texts, which are read where other requests wait
CELLS = 2**21  # rows of a request, times what is wanted for each
LENGTH = 2**12  # of rows whose length is free
IDS = {"type": "array", "items": {"type": ["string", "integer"]}}
K = {"k": {"type": "integer", "minimum": 1}}


class Given(NamedTuple):
    """What a request gives to a model, checked.

    Attributes:
        data: what `Model.predict` or `Model.outputs` takes.
        rows: how many answers it asks for.
        options: of `Model.predict`.
        bucket: requests of an equal one may be joined; None for what stands alone.
        beside: what the answer says beside that of the model.
        first: how many of the best of each row are wanted; 0 for all.
    """

    data: Any
    rows: int
    options: dict[str, Any]
    bucket: Hashable
    beside: Mapping[str, Any] = {}  # never changed
    first: int = 0


class Inputs(Protocol):
    """What reads the body of a request for a kind of model."""

    @property
    def numbered(self) -> bool:
        """Whether the answers' ids are the numbers of the rows."""

    def read(self, body: Mapping[str, Any], most: int) -> Given:
        """The checked content of a body of at most so many rows.

        Raises:
            Refused: 400 for what the model does not read, 413 for too many rows.
        """

    def join(self, parts: Sequence[Any]) -> Any:
        """The data of several requests, one behind the other."""

    def example(self, rows: int) -> Given | None:
        """An example of so many rows to compile for; None where there is none."""

    def schema(self) -> dict[str, Any]:
        """The JSON schema of a body."""


@dataclass(frozen=True)
class Table:
    """Rows of a table: a list of objects, or an object of lists, under `rows`.

    Attributes:
        fields: the columns.
        options: name -> JSON schema of the options.
        joins: whether rows are independent of each other.
        future: the columns of the rows to come, under `future`.

    >>> Table((Field("age", "number"),)).read({"rows": [{"age": 3}]}, most=10).data
    {'age': array([3.])}
    """

    fields: tuple[Field, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    joins: bool = True
    future: tuple[Field, ...] = ()

    @property
    def numbered(self) -> bool:
        """Whether no column holds ids."""
        return all(one.kind != "id" for one in self.fields)

    def read(self, body: Mapping[str, Any], most: int) -> Given:
        """See `Inputs`."""
        keys = ("rows", "future") if self.future else ("rows",)
        options = opened_body(body, keys, self.options)
        data, count = table_of("rows", body["rows"], self.fields, most)
        if "future" in body:
            options["future"] = table_of("future", body["future"], self.future, most)[0]
        steps = options.get("horizon", 1)
        steps = steps if isinstance(steps, int) else 1  # of customers it is a time
        at_most(count, max(len(options.get("times", ())), steps))
        # texts and numbers as ids would become all texts
        kinds = tuple(data[one.name].dtype.kind for one in self.fields if one.kind == "id")
        return Given(data, count, options, (kinds, repr(options)) if self.joins else None)

    def join(self, parts: Sequence[Any]) -> Any:
        """See `Inputs`."""
        return joined(parts)

    def example(self, rows: int) -> Given | None:
        """See `Inputs`."""
        if not self.joins or any(one.example is None for one in self.fields):
            return None
        columns = {one.name: one.column([one.example] * rows) for one in self.fields}
        return Given(columns, rows, {}, None)

    def schema(self) -> dict[str, Any]:
        """See `Inputs`."""
        tables = {"rows": table_schema(self.fields)}
        if self.future:
            tables["future"] = table_schema(self.future)
        return body_schema(tables, ["rows"], self.options)


@dataclass(frozen=True)
class Texts:
    """A list of texts, under `texts`.

    Attributes:
        column: the name by which the reader gets them; None gives it the list.
        most: the number of documents, where the best k of them are wanted.

    >>> Texts().read({"texts": ["my card"]}, most=10).data
    ['my card']
    """

    column: str | None = None
    most: int = 0
    numbered: ClassVar[bool] = True

    def read(self, body: Mapping[str, Any], most: int) -> Given:
        """See `Inputs`."""
        options = opened_body(body, ("texts",), K if self.most else {})
        first = best(options, self.most) if self.most else 0
        texts = list_of("texts", body["texts"], most)
        at_most(len(texts), options.get("k", 1))
        for row, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip() or not is_text(text):
                wanted = "texts that are not blank"
                raise Refused(400, f"texts must be {wanted}, got {short(text)} in row {row}")
        if (count := sum(map(len, texts))) > CHARACTERS:
            wanted = f"at most {CHARACTERS:,} characters together"
            raise Refused(413, f"texts must have {wanted}, got {count:,}")
        return Given(self._named(texts), len(texts), options, repr(options), first=first)

    def _named(self, texts: list[str]) -> Any:
        # a language model takes a list of names of files for files
        return texts if self.column is None else {self.column: texts}

    def join(self, parts: Sequence[Any]) -> Any:
        """See `Inputs`."""
        lists = parts if self.column is None else [part[self.column] for part in parts]
        return self._named([text for part in lists for text in part])

    def example(self, rows: int) -> Given:
        """See `Inputs`."""
        return self.read({"texts": ["a text"] * rows}, rows)

    def schema(self) -> dict[str, Any]:
        """See `Inputs`."""
        texts = {"type": "array", "items": {"type": "string"}, "minItems": 1}
        return body_schema({"texts": texts}, ["texts"], K if self.most else {})


@dataclass(frozen=True)
class Histories:
    """For each user a list of the items' ids, oldest first, under `histories`.

    Attributes:
        known: the ids of the catalogue, as texts.

    >>> Histories({"tea": 0}).read({"histories": [["tea", "jam"]]}, most=10).beside
    {'unknown': 1, 'empty': 0}
    """

    known: Mapping[str, int]
    options: ClassVar[Mapping[str, Any]] = {
        **K,
        "exclude_seen": {"type": "boolean"},
        "allow": IDS,
        "deny": IDS,
    }
    numbered: ClassVar[bool] = True

    def read(self, body: Mapping[str, Any], most: int) -> Given:
        """See `Inputs`."""
        options = opened_body(body, ("histories",), self.options)
        first = best(options, len(self.known))
        histories = list_of("histories", body["histories"], most)
        at_most(len(histories), options["k"])
        unknown = empty = 0
        for row, ids in enumerate(histories):
            if not isinstance(ids, list):
                raise Refused(400, f"histories must be lists, got {short(ids)} in row {row}")
            odd = next((one for one in ids if type(one) not in (str, int)), None)
            if odd is not None or None in ids:
                raise Refused(
                    400, f"histories must hold texts or integers, got {short(odd)} in row {row}"
                )
            found = sum(str(one) in self.known for one in ids)
            unknown, empty = unknown + len(ids) - found, empty + (found == 0)
        beside = {"unknown": unknown, "empty": empty}
        return Given(histories, len(histories), options, repr(options), beside, first)

    def join(self, parts: Sequence[Any]) -> Any:
        """See `Inputs`."""
        return [history for part in parts for history in part]

    def example(self, rows: int) -> Given:
        """See `Inputs`."""
        return self.read({"histories": [[next(iter(self.known))]] * rows}, rows)

    def schema(self) -> dict[str, Any]:
        """See `Inputs`."""
        histories = {"type": "array", "items": IDS, "minItems": 1}
        return body_schema({"histories": histories}, ["histories"], self.options)


@dataclass(frozen=True)
class Images:
    """Images under `images`: nested lists of bytes (H, W, C), or files in base64.

    Attributes:
        size: (height, width) of the model's images.
        channels: 3 for colour, 1 for grey, where lists (H, W) will do.

    >>> Images((1, 2), 1).read({"images": [[[0, 255]]]}, most=10).data.shape
    (1, 1, 2, 1)
    """

    size: tuple[int, int]
    channels: int
    numbered: ClassVar[bool] = True
    slow: ClassVar[bool] = True  # to read

    def read(self, body: Mapping[str, Any], most: int) -> Given:
        """See `Inputs`."""
        opened_body(body, ("images",), {})
        images = list_of("images", body["images"], most)
        left = [PIXELS]
        pixels = np.stack([self._image(image, row, left) for row, image in enumerate(images)])
        return Given(pixels, len(images), {}, "images")

    def _image(self, image: Any, row: int, left: list[int]) -> np.ndarray:
        if isinstance(image, str):
            return self._file(image, row, left)
        wanted = (*self.size, self.channels)
        flat, shape = nested("images", image)
        if shape != wanted and not (self.channels == 1 and shape == self.size):
            raise Refused(400, f"images must have shape {wanted}, got {shape} in row {row}")
        try:
            return array_of("images", flat, "uint8").reshape(wanted)
        except Refused:
            raise Refused(400, f"images must be bytes, 0 to 255, got others in row {row}") from None

    def _file(self, text: str, row: int, left: list[int]) -> np.ndarray:
        try:
            file: Any = io.BytesIO(base64.b64decode(text, validate=True))
            with opened(file) as image:
                left[0] -= image.width * image.height
            found = None if left[0] < 0 else read_image(file, self.size, self.channels)
        except ValueError:
            raise Refused(
                400, f"images must be lists, or image files in base64, got neither in row {row}"
            ) from None
        if found is None:
            raise Refused(
                413, f"images must have at most {PIXELS:,} pixels in all, got more in row {row}"
            )
        return found

    def join(self, parts: Sequence[Any]) -> Any:
        """See `Inputs`."""
        return np.concatenate(parts)

    def example(self, rows: int) -> Given:
        """See `Inputs`."""
        return Given(np.zeros((rows, *self.size, self.channels), np.uint8), rows, {}, None)

    def schema(self) -> dict[str, Any]:
        """See `Inputs`."""
        one = {"oneOf": [{"type": "string", "format": "byte"}, {"type": "array"}]}
        images = {"type": "array", "items": one, "minItems": 1}
        return body_schema({"images": images}, ["images"], {})


@dataclass(frozen=True)
class Arrays:
    """Columns of numbers by name as nested lists, under `columns`, for a model without a reader.

    Attributes:
        columns: what they must look like.

    >>> Arrays((Column("x", (2,)),)).read({"columns": {"x": [[1, 2]]}}, most=10).data["x"].dtype
    dtype('float32')
    """

    columns: tuple[Column, ...]
    numbered: ClassVar[bool] = True

    def read(self, body: Mapping[str, Any], most: int) -> Given:
        """See `Inputs`."""
        opened_body(body, ("columns",), {})
        given, names = body["columns"], [column.name for column in self.columns]
        if not isinstance(given, dict) or given.keys() != set(names):
            got = ", ".join(map(short, given)) if isinstance(given, dict) else short(given)
            raise Refused(400, f"columns must be an object of {', '.join(names)}, got {got}")
        arrays = {}
        for column in self.columns:
            flat, shape = nested(column.name, given[column.name])
            dtype = {"float": "float32", "int": "int32"}.get(column.dtype, column.dtype)
            arrays[column.name] = array_of(column.name, flat, dtype, shape).reshape(shape)
        return encoded(arrays, self.columns, most)

    def join(self, parts: Sequence[Any]) -> Any:
        """See `Inputs`."""
        return joined(parts)

    def example(self, rows: int) -> Given:
        """See `Inputs`."""
        arrays = {name: np.repeat(x, rows, 0) for name, x in example(self.columns).items()}
        return Given(arrays, rows, {}, None)

    def schema(self) -> dict[str, Any]:
        """See `Inputs`."""
        arrays = {column.name: {"type": "array"} for column in self.columns}
        columns = {"type": "object", "properties": arrays, "required": [*arrays]}
        return body_schema({"columns": columns}, ["columns"], {})


def best(options: dict[str, Any], count: int) -> int:
    """How many of `count` things a request wants; its options ask for a power of two of them.

    So few programs compile, and what is beyond is cut off the answer.

    >>> options = {"k": 5}
    >>> best(options, 100), options
    (5, {'k': 8})
    """
    k: int = options.get("k", min(10, count))
    if k > count:
        raise Refused(400, f"k must be at most {count:,} (the number of all), got {k}")
    options["k"] = min(next_power_of_two(k), count)
    return k


def joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Columns of several requests, one behind the other.

    >>> joined([{"x": np.array([1])}, {"x": np.array([2])}])
    {'x': array([1, 2])}
    """
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def at_most(rows: int, each: int) -> None:
    """Raise `Refused` for a request that asks for more than the memory of a server should hold."""
    if rows * each > CELLS:
        raise Refused(413, f"rows times what each asks for must be at most {CELLS:,}, got more")


def is_free(columns: Sequence[Column]) -> bool:
    """Whether rows may have several lengths."""
    return any(None in column.shape for column in columns)


def encoded(arrays: dict[str, np.ndarray], columns: tuple[Column, ...], most: int) -> Given:
    """Encoded columns, checked by what the task says of them.

    Raises:
        Refused: 400 for columns that the task does not read, 413 for too many rows.
    """
    for column in columns:
        given, kinds = arrays[column.name].dtype, {"float": "f", "int": "iu"}
        wanted = kinds.get(column.dtype)
        if not (given.kind in wanted if wanted else given == np.dtype(column.dtype)):
            raise Refused(400, f"{column.name} must have dtype {column.dtype}, got {given}")
    try:
        check(arrays, columns, targets=False)
    except ValueError as error:
        raise Refused(400, str(error)) from None
    for column in columns:
        for size, axis in zip(arrays[column.name].shape[1:], column.shape, strict=True):
            if axis is None and (size > LENGTH or size != next_power_of_two(size)):
                wanted = f"a power of two, at most {LENGTH:,}"  # so few programs compile
                raise Refused(
                    400, f"a row of {column.name} must have as length {wanted}, got {size}"
                )
    count = len(arrays[columns[0].name])
    list_of(columns[0].name, arrays[columns[0].name], most)
    bucket = tuple((n, x.dtype.str, x.shape[1:]) for n, x in sorted(arrays.items()))
    return Given(arrays, count, {}, bucket)
