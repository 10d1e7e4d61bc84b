"""Tables of every kind are read exactly: what was wrong in silence, or could not be read."""

import datetime as dt
import gzip
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxops.data import Dataset, k_fold
from jaxops.data.columns import read_with_dates
from jaxops.data.tables import array, parts
from jaxops.tabular import encode, fit_encoder, read

NAN = float("nan")


def kinds(columns):
    return {name: (column.dtype.kind, column.tolist()) for name, column in columns.items()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, (kind, values) in wanted.items():
        assert found[name][0] == kind
        np.testing.assert_array_equal(found[name][1], values)


CSV = [
    ("id,v\n123456789,1\n,2\n", {}, {"id": ("f", [123456789, NAN]), "v": ("i", [1, 2])}),
    ("t\n1700000001.5\n16777217.25\n", {}, {"t": ("f", [1700000001.5, 16777217.25])}),
    ("a\n1e300\n0.1\n", {}, {"a": ("f", [1e300, 0.1])}),
    ("v\n1\n\n3\n", {}, {"v": ("f", [1, NAN, 3])}),
    ("a,b\n\n1,2\n\n3,4\n", {}, {"a": ("i", [1, 3]), "b": ("i", [2, 4])}),
    ("f,g\nTrue,true\n,FALSE\n", {}, {"f": ("f", [1, NAN]), "g": ("i", [1, 0])}),
    (",a\n0,1\n1,2\n", {}, {"a": ("i", [1, 2])}),
    ("a,b,\n1,2,\n", {}, {"a": ("i", [1]), "b": ("i", [2])}),
    ('v1,v2,,,\nham,"a, b",,,\n', {"columns": ["v2"]}, {"v2": ("O", ["a, b"])}),
    ("v,w\no\0k,1\0\n", {}, {"v": ("O", ["o\0k"]), "w": ("O", ["1\0"])}),
    ("zip,n\n01234,0\n90210,2\n", {}, {"zip": ("O", ["01234", "90210"]), "n": ("i", [0, 2])}),
    ("zip,n\n12,1\nNA,2\n", {"text": ["zip"]}, {"zip": ("O", ["12", "NA"]), "n": ("i", [1, 2])}),
    ("a,b\n0x10,-0\n5,2\n", {}, {"a": ("O", ["0x10", "5"]), "b": ("i", [0, 2])}),
    ("a,b\n+1,+0.5\n-2,1\n", {}, {"a": ("i", [1, -2]), "b": ("f", [0.5, 1])}),
    ("a\n+9007199254740993\n1\n", {}, {"a": ("i", [2**53 + 1, 1])}),
    ("a\n+01\n2\n", {}, {"a": ("O", ["+01", "2"])}),
    ("a;b\n1;x, y\n", {}, {"a": ("i", [1]), "b": ("O", ["x, y"])}),
    ("a\tb\n1\tx; y\n", {}, {"a": ("i", [1]), "b": ("O", ["x; y"])}),
    ("a;b\n1;2\n", {"separator": ","}, {"a;b": ("O", ["1;2"])}),
    ("1::x\n2::y\n", {"separator": "::", "header": ["n", "t"]},
     {"n": ("i", [1, 2]), "t": ("O", ["x", "y"])}),
    ('a,b\nx"y,"""q"""\n', {}, {"a": ("O", ['x"y']), "b": ("O", ['"q"'])}),
    ("a,b\r1,2\r3,4\r", {}, {"a": ("i", [1, 3]), "b": ("i", [2, 4])}),
    ("\ufeffa,b\nü,1\n".encode("utf-16-le"), {}, {"a": ("O", ["ü"]), "b": ("i", [1])}),
    ("\ufeffa,b\nü,1\n".encode("utf-32-be"), {}, {"a": ("O", ["ü"]), "b": ("i", [1])}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "options", "wanted"), CSV)
def test_csv_is_read_exactly(tmp_path, text, options, wanted):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_same(kinds(Dataset.from_csv(path, **options).train), wanted)


def test_long_fields_and_the_index_of_pandas(tmp_path):
    path = tmp_path / "t.csv"
    pd.DataFrame({"text": ["x " * 100_000], "n": [1]}).to_csv(path)
    columns = Dataset.from_csv(path).train
    assert [*columns] == ["text", "n"] and len(columns["text"][0]) == 200_000
    pd.DataFrame({"n": [1, 2]}, index=[5, 6]).to_parquet(tmp_path / "t.parquet")
    assert [*Dataset.from_parquet(tmp_path / "t.parquet").train] == ["n"]


def test_many_columns_take_little_time(tmp_path):
    path = tmp_path / "t.csv"
    names = [f"c{i}" for i in range(3000)]
    path.write_text(",".join(names) + "\n" + ",".join(["1"] * 3000) + "\n")
    assert [*Dataset.from_csv(path).train] == names


@pytest.mark.parametrize("kind", ["csv", "gz", "utf-16", "parquet"])
def test_parts_of_a_file_are_its_rows(tmp_path, kind):
    names = [f"{i:03}" for i in range(25)]
    text = "a;b\n" + "".join(f"{name};ü\n" for name in names)
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        table = pa.table({"a": names, "b": pa.array(names).dictionary_encode()})
        pq.write_table(table, path, row_group_size=7)
    elif kind == "gz":
        path.write_bytes(b"".join(gzip.compress(half.encode()) for half in (text[:50], text[50:])))
    else:
        path.write_text(text, encoding="utf-8" if kind == "csv" else kind)
    for first, sizes in ((0, [10, 10, 5]), (7, [10, 8]), (15, [10]), (25, []), (30, [])):
        frames = [*parts(path, 10, first)]
        assert [len(frame) for frame in frames] == sizes
        for place, frame in zip(range(first, 25, 10), frames, strict=True):
            assert frame["a"].tolist() == names[place : place + 10]
            wanted = names[place : place + 10] if kind == "parquet" else ["ü"] * len(frame)
            assert frame["b"].tolist() == wanted


def test_parquet_keeps_what_it_declares(tmp_path):
    store = pa.array([101, None, 101]).dictionary_encode()
    flag = pa.array([True, None, False])
    far = pa.array([dt.date(9999, 12, 31), None, dt.date(1, 1, 1)])
    berlin = pa.array([dt.datetime(2024, 1, 1)] * 3, pa.timestamp("us", "Europe/Berlin"))
    names = ["store", "flag", "far", "berlin", "none", "narrow"]
    table = pa.table(
        [store, flag, far, berlin, pa.nulls(3), pa.array([0.5, None, 1], pa.float32())], names
    )
    pq.write_table(table, tmp_path / "t.parquet")
    columns = Dataset.from_parquet(tmp_path / "t.parquet").train
    assert columns["store"].tolist() == ["101", "", "101"]
    np.testing.assert_array_equal(columns["flag"], [1, NAN, 0])
    far = np.array(["9999-12-31", "NaT", "0001-01-01"], "datetime64[D]")
    np.testing.assert_array_equal(columns["far"], far)
    assert (columns["berlin"] == np.datetime64("2024-01-01")).all()
    assert np.isnan(columns["none"]).all() and columns["narrow"].dtype == np.float32


def test_frames_and_masked_arrays_keep_their_kinds_and_gaps():
    frame = pd.DataFrame(
        {
            "store": pd.Categorical([101, 202, 101]),
            "flag": pd.array([True, None, False], "boolean"),
            "whole": pd.array([2**53, None, 1], "Int64"),
            "text": ["a", None, "b"],
        }
    )
    wanted = {
        "store": ("O", ["101", "202", "101"]),
        "flag": ("f", [1, NAN, 0]),
        "whole": ("f", [2**53, NAN, 1]),
        "text": ("O", ["a", "", "b"]),
    }
    assert_same(kinds(Dataset.from_arrays(**frame).train), wanted)
    assert fit_encoder(Dataset.from_arrays(**frame).train).values["store"] == ["101", "202"]
    masked = np.ma.array([1.0, 5.0], mask=[False, True])
    np.testing.assert_array_equal(Dataset.from_arrays(x=masked).train["x"], [1, NAN])
    columns = read({"x": masked, "n": np.ma.array([1, 5], mask=[True, False]), "t": ["a", NAN]})
    assert_same(kinds(columns), {"x": ("f", [1, NAN]), "n": ("f", [NAN, 5]), "t": ("O", ["a", ""])})


def test_columns_of_text_that_look_like_numbers():
    table = {"zip": [1234, 90210, 1234], "size": [1.0, NAN, 2.5]}
    columns = read(table, text=["zip", "size"])
    assert columns["zip"].tolist() == ["1234", "90210", "1234"]
    assert columns["size"].tolist() == ["1", "", "2.5"]
    assert read({"zip": ["01", "1"]})["zip"].tolist() == ["01", "1"]
    columns, _ = read_with_dates({"month": ["01", "12"]}, numbers=["month"])
    assert columns["month"].tolist() == [1, 12]


def test_missing_text_is_one_value_in_the_encoder():
    columns = {"plan": np.array(["a", None, NAN, "b"], object)}
    encoder = fit_encoder(columns)
    assert encoder.values == {"plan": ["", "a", "b"]}
    assert encode(encoder, columns)["features"].argmax(1).tolist() == [1, 0, 0, 2]


def test_folds_keep_the_shares_of_text_and_booleans():
    labels = np.where(np.arange(100) < 5, "yes", "no").astype(object)
    for values in (labels, labels.astype(str), labels == "yes"):
        folds = [labels[held] for _, held in k_fold(values, folds=5)]
        assert [(fold == "yes").sum() for fold in folds] == [1] * 5


def test_decimals_that_float64_writes_alike_are_numbers():
    frame = pd.DataFrame({"price": [Decimal("1.50"), None, Decimal("-2.25")]})
    found = array("price", frame["price"])
    np.testing.assert_array_equal(found, [1.5, np.nan, -2.25])
    with pytest.raises(ValueError, match="got Decimal"):
        array("price", pd.Series([Decimal("0.12345678901234567890")]))
