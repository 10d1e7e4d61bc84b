"""CSV files as Arrow tables, read by the same parser for every room."""

import codecs
import contextlib
import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxops._optional import require
from jaxops.data.checks import check_lists
from jaxops.data.text_numbers import inferred, without

LONGEST = 2**31 - 1  # characters of a field
BLOCK = 1 << 26  # bytes that Arrow reads at once; a row must fit into them
UNIT = "\x1f"  # the unit separator, which replaces a separator of several characters
MARKS = (  # byte-order marks; that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Form(NamedTuple):
    """The form of a CSV file.

    Attributes:
        encoding: the encoding of the text. If the file has the byte-order mark of UTF-8, UTF-16 or
            UTF-32, the mark decides.
        separator: the separator of the fields: one character; " " for any number of spaces; or
            several characters, and then quotes have no meaning. By default a comma; or a semicolon
            or a tab, if the first line has it and no comma.
        header: the names of the columns, for a file without a header line.
    """

    encoding: str = "utf-8"
    separator: str | None = None
    header: Sequence[str] | None = None


def read(
    path: str | Path,
    columns: Sequence[str] | None = None,
    form: Form = Form(),  # noqa: B008  # it cannot be changed
    missing: Sequence[str] = ("",),
    text: Sequence[str] | None = (),
) -> Any:
    """A CSV file (also .gz) as an Arrow table of int64, float64, bool and text, null where missing.

    A column has whole numbers, numbers or booleans if every value that is not missing is one. Whole
    numbers with leading zeros are text. A blank line is a row in a file with one column, and is
    ignored in others. Columns without a name are left out.

    Args:
        path: the file.
        columns: the names of the columns to read; None for all.
        form: the form of the file.
        missing: the texts that stand for a missing value.
        text: columns to read as text, in which only "" is missing; None for all.

    Raises:
        ValueError: an empty or broken file; a missing column, or one that is there twice; a line
            with more or fewer fields than the header; bytes that are not in the encoding; a quote
            that is not closed; whole numbers that int64 (or with missing values float64) cannot
            hold; numbers with decimal commas.
    """
    pa, pacsv = require("pyarrow", extra="data"), require("pyarrow.csv", extra="data")

    check_lists(columns=columns, missing=missing, text=text, header=form.header)
    path, form = Path(path), _recognised(Path(path), form)
    wanted, arguments = _arguments(path, columns, form)
    for name in text or ():
        if name not in wanted:
            raise ValueError(f"{path} must have a column {name!r}, got {', '.join(wanted)}")
    raw = _bytes(path, form)
    try:
        table = pacsv.read_csv(pa.BufferReader(raw), **arguments).rename_columns(wanted)
    except pa.ArrowInvalid as error:
        check(path, form)  # names the line
        raise ValueError(f"{path} must be a CSV file, got an error: {error}") from None
    # Arrow accepts quotes that are not closed
    if not _regular(path, raw, arguments["parse_options"]):
        rows = check(path, form)
        if rows != len(table):
            raise ValueError(
                f"{path} must have {rows:,} rows, one for each line, got {len(table):,}"
            )
    columns_read = {}
    for name, column in zip(wanted, table.columns, strict=True):
        if text is None or name in text:
            columns_read[name] = without(column, [""])
        else:
            where = f"{path}: column {name!r}"
            columns_read[name] = inferred(column, missing, where, form.separator != ",")
    return pa.table(columns_read)


def batches(path: Path, first: int = 0) -> Iterator[Any]:
    """The rows of a checked CSV file from row `first`, as Arrow tables of text.

    Raises:
        ValueError: see `read`; numbers are not checked.
    """
    pa, pacsv = require("pyarrow", extra="data"), require("pyarrow.csv", extra="data")

    form = _recognised(path, Form())
    wanted, arguments = _arguments(path, None, form)
    rows = check(path, form)
    if rows == 0:
        return
    found = 0
    with _stream(path, form.encoding) as stream, pacsv.open_csv(stream, **arguments) as reader:
        for block in reader:
            table = pa.Table.from_batches([block]).rename_columns(wanted)
            yield table.slice(min(max(first - found, 0), len(table)))
            found += len(table)
    if found != rows:
        raise ValueError(f"{path} must have {rows:,} rows, one for each line, got {found:,}")


def check(path: Path, form: Form) -> int:
    """The number of rows of a file whose encoding and separator are known.

    Raises:
        ValueError: see `read`; the message names the line.
    """
    last = count = 0  # the last line of the previous record, and the number of rows
    with _reading(path, form.encoding), _open(path, form.encoding) as file:
        reader = _lines(file, form.separator)
        try:
            width = len(form.header or next((line for line in reader if line), []))
            last = reader.line_num
            for line in reader:
                if len(line) != width and (line or width == 1):
                    line = line or [""]
                    if len(line) != width:
                        raise ValueError(_uneven(path, width, form, line, last + 1))
                count += len(line) == width
                last = reader.line_num
        except csv.Error as error:
            what = "must double the quotes inside a quoted field"
            if "end of data" in str(error):
                what = "must close the quote of its field, which is open to the end of the file"
            raise ValueError(f"{path}: line {last + 1} {what}") from None
    return count


def _arguments(
    path: Path, columns: Sequence[str] | None, form: Form
) -> tuple[list[str], dict[str, Any]]:
    """The names of the columns to read, and the options by which Arrow reads them as text."""
    pa, pacsv = require("pyarrow", extra="data"), require("pyarrow.csv", extra="data")

    blank, first = _first(path, form.encoding, form.separator)
    if not first and check(path, form) == 0 and form.header is not None:
        raise ValueError(f"{path} must have at least 1 row, got 0")
    names = first if form.header is None else list(form.header)
    wanted = _wanted(path, names, columns)
    place = {name: str(number) for number, name in enumerate(names)}
    places = [place[name] for name in wanted]
    separator = form.separator or ","
    quotes = _has_quotes(separator)
    return wanted, {
        "read_options": pacsv.ReadOptions(
            column_names=[*map(str, range(len(names)))],
            skip_rows=blank,
            skip_rows_after_names=int(form.header is None),
            block_size=BLOCK,
        ),
        "parse_options": pacsv.ParseOptions(
            delimiter=separator if quotes else UNIT,
            quote_char='"' if quotes else False,
            newlines_in_values=quotes,
            ignore_empty_lines=len(names) > 1,
        ),
        "convert_options": pacsv.ConvertOptions(
            column_types=dict.fromkeys(places, pa.string()),
            include_columns=places,
            strings_can_be_null=False,
        ),
    }


def _wanted(path: Path, names: list[str], columns: Sequence[str] | None) -> list[str]:
    """The names of the columns to read, from those in the header."""
    if names and names[0].startswith("sep="):
        raise ValueError(
            f"{path} must begin with a header line, got Excel's 'sep='; delete the line"
        )
    if any("\0" in name for name in names):
        raise ValueError(
            f'{path} must begin with a header line of text, got NUL bytes; try encoding="utf-16"'
        )
    wanted = [name for name in names if name] if columns is None else list(columns)
    counts = Counter(names)
    for name in wanted:
        if name not in counts:
            raise ValueError(f"{path} must have a column {name!r}, got {', '.join(names)}")
    if not wanted:
        given = "names that are empty" if names else "an empty file"
        raise ValueError(f"{path} must begin with a header line of column names, got {given}")
    twice = min((name for name in wanted if counts[name] > 1), default=None)
    if twice is not None:
        raise ValueError(f"{path} must have each column once in the header, got {twice!r} twice")
    return list(dict.fromkeys(wanted))


class _Split:
    """The fields of lines without quotes, with the interface of `csv.reader`."""

    def __init__(self, lines: Iterator[str], separator: str | None) -> None:
        self.lines, self.separator, self.line_num = lines, separator, 0

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        line = next(self.lines).rstrip("\r\n")
        self.line_num += 1
        return line.split(self.separator) if line else []


def _lines(file: Any, separator: str | None) -> Any:
    if separator == " ":
        return _Split(file, None)
    if separator is not None and len(separator) > 1:
        return _Split(file, separator)
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))
    return csv.reader(file, delimiter=separator or ",", strict=True)


@contextlib.contextmanager
def _reading(path: Path, encoding: str) -> Iterator[None]:
    """Name the file in errors about its bytes."""
    try:
        yield
    except UnicodeDecodeError:
        raise ValueError(_encoding_message(path, encoding)) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} must be a whole gzip file, got an error: {error}") from None


def _open(path: Path, encoding: str) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    return open(path, encoding=encoding, newline="")


def _has_quotes(separator: str | None) -> bool:
    return separator is None or (len(separator) == 1 and separator != " ")


def _bytes(path: Path, form: Form) -> Any:
    """The file in UTF-8, with one character between its fields, as a buffer."""
    if not _has_quotes(form.separator) or form.encoding not in ("utf-8", "utf-8-sig"):
        with _reading(path, form.encoding), _open(path, form.encoding) as file:
            if _has_quotes(form.separator):
                return file.read().encode()
            return "\n".join(UNIT.join(line) for line in _lines(file, form.separator)).encode()
    if path.suffix == ".gz":
        with _reading(path, form.encoding):
            return gzip.decompress(path.read_bytes())
    return np.memmap(path, np.uint8, "r")


def _stream(path: Path, encoding: str) -> Any:
    """The file in UTF-8 as an Arrow stream, of which little is in memory at once."""
    pa = require("pyarrow", extra="data")

    stream = pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None)
    if encoding in ("utf-8", "utf-8-sig"):
        return stream
    return pa.transcoding_input_stream(stream, encoding, "utf-8")


def _regular(path: Path, raw: Any, options: Any) -> bool:
    """Whether each quote of a file opens a field, closes it, or is doubled within it.

    The result is False if there are quotes in the middle of other fields, or if the file is too
    large to check.

    Raises:
        ValueError: some lines, but not all, end with only a carriage return, which may belong to a
            field.
    """
    if not options.quote_char:
        return True
    text = np.frombuffer(raw, np.uint8)
    if len(text) > 1 << 30:
        return False
    at = np.flatnonzero(text == ord('"'))
    first, last = np.diff(at, prepend=-2) > 1, np.diff(at, append=len(text) + 1) > 1  # of a run
    start, end = at[first], at[last]
    edge = np.zeros(256, bool)
    edge[[ord(options.delimiter), ord("\n"), ord("\r")]] = True
    mark = 3 if text[:3].tobytes() == codecs.BOM_UTF8 else 0
    before = edge[text[start - 1]] | (start == mark)
    after = edge[text[(end + 1) % len(text)]] | (end == len(text) - 1)
    inside = np.flatnonzero(first) % 2 == 1
    odd = (end - start) % 2 == 0
    right = np.where(inside, after | ~odd, before & (after | odd))
    if len(at) % 2 or not right.all():
        return False
    returns = np.flatnonzero(text == ord("\r"))
    alone = returns[text[(returns + 1) % len(text)] != ord("\n")]
    alone = alone[np.searchsorted(at, alone) % 2 == 0]  # outside quotes
    if len(alone):
        newlines = np.flatnonzero(text == ord("\n"))
        if (np.searchsorted(at, newlines) % 2 == 0).any():
            raise ValueError(
                f"{path}: line {np.searchsorted(newlines, alone[0]) + 1} must have the carriage "
                "return (CR) of its field in quotes"
            )
    return True


def _recognised(path: Path, form: Form) -> Form:
    """The form, with the encoding and the separator that the file's first line shows."""
    if path.is_dir():
        raise ValueError(f"{path} must be a file, got a folder")
    if path.suffix in (".json", ".jsonl", ".ndjson"):
        raise ValueError(
            f"{path} must be CSV or Parquet, got JSON; give the frame of pandas.read_json"
        )
    with open(path, "rb") as file:
        packed = file.read(4) in (b"PK\3\4", b"BZh9", b"\xfd7zX", b"(\xb5/\xfd")
    if packed:
        raise ValueError(
            f"{path} must be CSV, plain or .gz, got an Excel or packed file; export it"
        )
    try:
        encoding = codecs.lookup(form.encoding).name
    except LookupError:
        raise ValueError(f"encoding must be one that Python knows, got {form.encoding!r}") from None
    with _reading(path, form.encoding):
        if encoding == "utf-8":
            with _open(path, "latin-1") as file:
                start = file.read(4).encode("latin-1")
            marked = next((name for mark, name in MARKS if start.startswith(mark)), "utf-8")
            form = form._replace(encoding=marked)
    if form.separator is None:
        found = [s for s in (",", ";", "\t") if len(_first(path, form.encoding, s)[1]) > 1]
        if found[1:] and "," not in found:
            raise ValueError(
                f"{path} must have one separator, got ';' and a tab in the first line; say which: "
                "separator=';'"
            )
        form = form._replace(separator=found[0] if found else ",")
    return form


def _first(path: Path, encoding: str, separator: str | None) -> tuple[int, list[str]]:
    """The number of blank lines at the start of a file, and the fields of the line after them.

    There are no fields if the quotes do not fit the separator.
    """
    with _reading(path, encoding), _open(path, encoding) as file:
        reader, blank = _lines(file, separator), 0
        try:
            for line in reader:
                if line:
                    return blank, line
                blank = reader.line_num
        except csv.Error:
            pass
    return 0, []


def _uneven(path: Path, width: int, form: Form, line: list[str], number: int) -> str:
    hint = ""
    if form.separator != ",":
        hint = f", separated by {form.separator!r}"
    elif other := [s for s in ";\t" if any(s in field for field in line)]:
        hint = f"; if another character separates the fields, give it: separator={other[0]!r}"
    return f"{path}: line {number} must have {width} fields, as the header, got {len(line)}{hint}"


def _encoding_message(path: Path, encoding: str) -> str:
    # the stream's error counts from its last buffer; the whole file gives the true position
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        raw.decode(encoding)
        given = "other bytes"
    except UnicodeDecodeError as error:
        given = f"0x{raw[error.start]:02x} at byte {error.start}"
    hint = '"utf-16-le" or "utf-16-be"' if b"\0" in raw[:1000] else '"latin-1" or "cp1252"'
    return f"{path} must be {encoding}, got {given}; try encoding={hint}"
