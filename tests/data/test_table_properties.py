"""Random tables that three libraries write come back equal, or are refused."""

import io
import math
from datetime import datetime

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxops.data import Dataset

SETTINGS = settings(
    derandomize=True,
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
WHOLE = st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5)
UNSIGNED = st.integers(0, 2**64 - 1)
NUMBERS = st.floats(allow_nan=False)
FLAGS = st.booleans()
# what CSV can tell apart: a text with a letter is no number, and "nan" would be a missing value
LETTERS = st.text(st.characters(codec="utf-8"), max_size=8).map(lambda text: f"{text}q")
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
DATES = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31))
KINDS = {"whole": WHOLE, "unsigned": UNSIGNED, "numbers": NUMBERS, "flags": FLAGS}
ARROW = {
    "whole": pa.int64(),
    "unsigned": pa.uint64(),
    "numbers": pa.float64(),
    "flags": pa.bool_(),
    "text": pa.string(),
    "dates": pa.timestamp("us"),
}
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=4)


def tables(**more):
    """Arrow tables of one to three columns of any kinds, with missing values or without."""
    kinds = {**KINDS, **more}

    @st.composite
    def made(draw):
        rows, columns = draw(st.integers(1, 5)), {}
        for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
            kind = draw(st.sampled_from([*kinds]))
            value = kinds[kind] if draw(st.booleans()) else kinds[kind] | st.none()
            values = draw(st.lists(value, min_size=rows, max_size=rows))
            columns[name] = pa.array(values, ARROW[kind])
        return pa.table(columns)

    return made()


def pandas_of(table):
    """A pandas frame that has lost nothing."""
    nullable = {pa.int64(): pd.Int64Dtype(), pa.uint64(): pd.UInt64Dtype()}
    nullable[pa.bool_()] = pd.BooleanDtype()
    return table.to_pandas(types_mapper=nullable.get)


def csv_by(library, table, path):
    if library == "pandas":
        pandas_of(table).to_csv(path, index=False)
    elif library == "polars":
        pl.from_arrow(table).write_csv(path)
    else:
        file = io.BytesIO()
        pacsv.write_csv(table, file)
        path.write_bytes(file.getvalue())


def parquet_by(library, table, path):
    if library == "pandas":
        pandas_of(table).to_parquet(path)
    elif library == "polars":
        pl.from_arrow(table).write_parquet(path)
    else:
        pq.write_table(table, path)


def assert_equal(column, values):
    """The values of an Arrow column are those that were read, none of them changed."""
    assert len(column) == len(values)
    for read, value in zip(column.tolist(), values.to_pylist(), strict=True):
        if value is None:
            assert read == "" or read is None or math.isnan(read)
        elif isinstance(value, datetime):
            assert np.datetime64(value, "us") == column.dtype.type(read, "us")
        else:
            assert read == value and isinstance(read, str) == isinstance(value, str)


def assert_read_or_refused(read, table):
    """Refused are only whole numbers that int64 or, with gaps, float64 cannot hold.

    And carriage returns that pandas writes without quotes, which look like ends of lines.
    """
    values = [value for column in table.columns for value in column.to_pylist()]
    try:
        columns = read()
    except ValueError as error:
        if "float64" in str(error) or "int64" in str(error):
            assert any(isinstance(v, int | float) and abs(v) >= 2**53 for v in values)
        else:
            assert "fields" in str(error) or "carriage return" in str(error)
            assert any(isinstance(v, str) and "\r" in v for v in (*values, *table.column_names))
        return
    assert [*columns] == table.column_names
    for name, column in columns.items():
        assert_equal(column, table[name])


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_csv(library, tmp_path):
    path = tmp_path / "t.csv"

    @SETTINGS
    @given(tables(text=LETTERS))
    def holds(table):
        csv_by(library, table, path)
        assert_read_or_refused(lambda: Dataset.from_csv(path).train, table)

    holds()


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_text_of_csv_is_kept_where_it_is_asked_for(library, tmp_path):
    path = tmp_path / "t.csv"

    @SETTINGS
    @given(st.lists(ANY_TEXT, min_size=1, max_size=5), st.lists(LETTERS, min_size=5, max_size=5))
    def holds(texts, others):
        table = pa.table({"a": texts, "b": others[: len(texts)]})
        csv_by(library, table, path)
        assert_read_or_refused(lambda: Dataset.from_csv(path, text=["a", "b"]).train, table)

    holds()


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_parquet(library, tmp_path):
    path = tmp_path / "t.parquet"

    @SETTINGS
    @given(tables(text=ANY_TEXT, dates=DATES))
    def holds(table):
        parquet_by(library, table, path)
        assert_read_or_refused(lambda: Dataset.from_parquet(path).train, table)

    holds()


@pytest.mark.parametrize("frame", [pandas_of, pl.from_arrow, lambda table: table])
def test_frames(frame):
    from jaxops.data.tables import from_frame, source_frame

    @SETTINGS
    @given(tables(text=ANY_TEXT, dates=DATES))
    def holds(table):
        def read():
            return from_frame(*source_frame(frame(table), None, (), None))

        assert_read_or_refused(read, table)

    holds()
