"""What is refused of tables, and the words by which a user finds it."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jaxops as jo
from jaxops import forecast, recommend, tabular
from jaxops.data import Dataset, check, k_fold
from jaxops.task import Column

BIG = 2**53 + 1
X, LABEL = Column("x", (), "float"), Column("label", (), "int", classes=2, target=True)
ROWS = {"x": np.array([1.0, 2.0]), "label": np.array([0, 1])}

CSV = [
    ("id\n18446744073709551615\n7\n", {}, "column 'id' .* int64 .* 18446744073709551615 in row 0"),
    ("id,v\n7,1\n9223372036854775808,2\n", {}, "got 9223372036854775808 in row 1 .*text="),
    (f"id,v\n{BIG},1\n,2\n", {}, f"column 'id' .* float64 holds, as some .*, got {BIG} in row 0"),
    (f"a\n0.5\n{BIG}\n", {}, f"column 'a' must be numbers .* got {BIG} in row 1"),
    ("a\n1\n1e400\n", {}, "column 'a' must be numbers .* float64 holds, got 1e400 in row 1"),
    ('a,b\n1,x\n2,"y\n3,z\n', {}, "line 3 must close the quote of its field"),
    ('a,b\n"1,x\n', {}, "line 2 must close the quote"),
    ('a,"b\n1,x\n', {}, "line 1 must close the quote"),
    ('a,b\n1,x\n"y"z,2\n', {}, "line 3 must double the quotes inside a quoted field"),
    ('a,b\n"y""z,2\n3,""q\n', {}, "line 2 must close the quote"),
    ("a\nx\ry\nz\n", {}, r"line 2 must have the carriage return \(CR\) of its field in quotes"),
    ("a;b\n1;2\n3\n", {}, "line 3 must have 2 fields, as the header, got 1, separated by ';'"),
    ("price, EUR;n\n5;2\n", {}, "line 2 must have 2 fields, .* got 1; .* separator=';'"),
    ("a;b\tc\n1;2\t3\n", {}, "one separator, got ';' and a tab in the first line"),
    (
        "a;b\n1,5;2\n2;3\n",
        {},
        "column 'a' must be numbers with a decimal point .*, got '1,5' in row 0",
    ),
    ("a\n1\n", {"text": ["zip"]}, "must have a column 'zip', got a"),
    ("a\n1\n", {"text": ["zip"], "columns": ["a"]}, "text must be among a, got 'zip'"),
    (",\n1,2\n", {}, "header line of column names, got names that are empty"),
    ("sep=;\na;b\n1;2\n", {}, "must begin with a header line, got Excel's 'sep='; delete the line"),
    (b"PK\x03\x04...", {}, "must be CSV, plain or .gz, got an Excel or packed file; export it"),
    ("ab\n1\n", {"columns": "ab"}, "columns must be a list of names, got 'ab'; write columns="),
    ("ab\n1\n", {"text": "ab"}, "text must be a list of names, got 'ab'"),
    ("ab\n1\n", {"missing": "NA"}, "missing must be a list of names, got 'NA'"),
    ("1,2\n", {"header": "ab"}, "header must be a list of names, got 'ab'"),
    ("1,2\n", {"header": ["a"]}, "line 1 must have 1 fields, as the header, got 2"),
    ("", {"header": ["a"]}, "must have at least 1 row, got 0"),
    ("a,b\n1,ü\n".encode("utf-16-le"), {}, 'must be utf-8, got .* encoding="utf-16-le"'),
    ("a,b\n1,u\n".encode("utf-16-le"), {}, 'got NUL bytes; try encoding="utf-16"'),
    ("a\n1\n", {"encoding": "klingon"}, "encoding must be one that Python knows, got 'klingon'"),
]


@pytest.mark.parametrize(("text", "options", "words"), CSV)
def test_csv(tmp_path, text, options, words):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=words):
        Dataset.from_csv(path, **options)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            [pa.array([2**63, 5], pa.uint64())],
            "must be in the int64 range, got 9223372036854775808",
        ),
        ([pa.array([BIG, None])], f"float64 holds, as some are missing, got {BIG} in row 0"),
        ([pa.array([1]), pa.array([2])], "must have each column once, got 'a' twice"),
    ],
)
def test_parquet(tmp_path, columns, words):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_arrays(columns, names=["a"] * len(columns)), path)
    with pytest.raises(ValueError, match=words):
        Dataset.from_parquet(path)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Dataset.from_csv("."), "must be a file, got a folder"),
        (lambda: Dataset.from_parquet("."), "must be a file, got a folder"),
        (
            lambda: Dataset.from_arrays(a=np.ma.array([[1], [2]], mask=[[0], [1]])),
            "a must have no masked values, got one in row 1",
        ),
        (
            lambda: Dataset.from_arrays(a=np.arange(9)).split(source=0.1),
            "name that Dataset does not use, got 'source'",
        ),
        (
            lambda: k_fold(np.array(["a", None, "a"], object), folds=2),
            r"labels must have a value in every row, got none in row 1 \(1 such rows\)",
        ),
        (lambda: tabular.fit_encoder(pd.DataFrame({"a": [1]})), r"got DataFrame; .*dict\(frame\)"),
        (
            lambda: tabular.fit_encoder({"when": np.array(["2024-01-01"], "M8[ns]")}),
            "when must be text or numbers, got datetime64.*turn dates into days",
        ),
        (lambda: tabular.fit_encoder({"a": [1, 2]}, drop="a"), r"drop must be a list of names"),
        (
            lambda: tabular.fit_encoder({"a": [1.0, 1e300]}),
            r"a must be finite, .* got 1e\+300, which float32 cannot hold, in row 1",
        ),
        (
            lambda: tabular.encode(tabular.fit_encoder({"a": [1.0, 1 + 1e-9]}), {"a": [1e38]}),
            "a must be finite when it is encoded, got inf in row 0",
        ),
        (
            lambda: check((ROWS["x"], ROWS["label"]), (X,)),
            "columns must be arrays by name, .* got tuple",
        ),
        (
            lambda: check({**ROWS, "x": np.array([0.0, 1e300])}, (X,)),
            r"x must be at most 3.4e\+38 in size, got 1e\+300 in row 1",
        ),
        (
            lambda: check({"x": np.ma.array([1.0, 2.0], mask=[False, True])}, (X,)),
            "x must have no masked values, got one in row 1",
        ),
        (
            lambda: check({**ROWS, "sample_weight": np.ones(2)}, (X, LABEL)),
            "sample_weight must be named mask",
        ),
        (
            lambda: tabular.fit({"x": [1, 2], "y": [0, 1]}, label="y", text="x"),
            "text must be a list of names, got 'x'",
        ),
        (lambda: tabular.read({"a": 1}), "column 'a' must be an array of rows, got one value"),
        (
            lambda: tabular.read({"a": ["1,5", "2"]}),
            "column 'a' must be numbers with a decimal point .*, got '1,5' in row 0",
        ),
        (
            lambda: recommend.events(
                {"user": np.array([True, 1], object), "item": [1, 2]}, time=None
            ),
            "column 'user' must be text or integers",
        ),
    ],
)
def test_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()


LABELS = [
    (["yes", "", "no", ""], r"y must have a value .*, got none in row 1 \(2 such rows\)"),
    (np.array([None, "no", "yes", "no"], object), "y must have a value .*, got none in row 0"),
    (["no", "yes", float("nan"), "no"], "y must have a value .*, got none in row 2"),
    ([0.0, float("nan"), 1.0, 0.0], "y must have a value .*, got none in row 1"),
    ([0.0, 1.0, 1.0, 0.0], r"y must be text or whole numbers, got 0.0 .*y.astype\(int\)"),
    ([0.5, 1.0, 1.0, 0.0], "got 0.5 in row 0; a label must be a class, not a number"),
    (pd.array(["a", None, "b", "a"], "string"), "y must have a value .*, got none in row 1"),
]


@pytest.mark.parametrize(("label", "words"), LABELS)
def test_labels_of_an_encoder(label, words):
    with pytest.raises(ValueError, match=words):
        tabular.fit_encoder({"x": np.arange(4.0), "y": label}, label="y")


def test_a_number_to_predict_is_no_label():
    columns = {"x": np.arange(60.0), "y": np.arange(60) * 7}
    with pytest.raises(ValueError, match=r"y must have at most 30 different .*, got 60 in 60 rows"):
        tabular.fit_encoder(columns, label="y")


@pytest.mark.parametrize("missing", ["NA", "nan", "null", None, float("nan")])
def test_labels_of_a_table_name_the_users_row(missing):
    label = ["no", "yes"] * 20
    label[33] = missing
    table = {"x": np.arange(40.0), "y": label}
    with pytest.raises(ValueError, match=r"y must have a value in every row, .* in row 33"):
        tabular.fit(table, label="y", progress=False)


@pytest.mark.parametrize("value", [np.inf, 1e300])
def test_numbers_of_a_table_name_the_users_row(value):
    table = {"x": np.where(np.arange(40) == 33, value, 1.0), "y": ["no", "yes"] * 20}
    with pytest.raises(ValueError, match=r"column 'x' must be finite .* in row 33"):
        tabular.fit(table, label="y", progress=False)


def test_classes_in_another_order_than_the_encoders():
    encoder = tabular.fit_encoder({"x": [0.0, 1.0], "y": ["yes", "no"]}, label="y")
    task = tabular.classifier(tabular.MLP(()), 1, ("yes", "no"))
    model = jo.Model(task, None, tabular.TableReader(encoder))
    words = r"classes must be \('no', 'yes'\), as the encoder has them, got \('yes', 'no'\)"
    for call in (model.predict, lambda table: tabular.evaluate(model, table)):
        with pytest.raises(ValueError, match=words):
            call({"x": [1.0], "y": ["yes"]})
    assert tabular.classifier(tabular.MLP(()), 1, encoder.classes).classes == ("no", "yes")


TIMES = ["2024-01-01T02:00:00+02:00", "2024-01-01T00:30:00"]


@pytest.mark.parametrize("times", [TIMES, TIMES[::-1]])
def test_times_with_and_without_an_offset_do_not_mix(times):
    words = "column 'time' must have an offset from UTC in every row or in none"
    with pytest.raises(ValueError, match=words):
        recommend.events({"user": ["a", "a"], "item": ["x", "y"], "time": times})
    with pytest.raises(ValueError, match=words):
        forecast.series({"id": ["a", "a"], "time": times, "value": [1, 2]})


@pytest.mark.parametrize(
    "times",
    [
        np.array(["2024-01-01", "9999-12-31", "0001-01-01"], "datetime64[s]"),
        ["2024-01-01", "9999-12-31", "0001-01-01"],
        ["2024-01-01T00:00Z", "9999-12-31T00:00Z", "0001-01-01T00:00Z"],
    ],
)
def test_years_beyond_those_of_nanoseconds(times):
    log = recommend.events({"user": ["a"] * 3, "item": ["now", "end", "start"], "time": times})
    assert log.time.tolist() == [-62135596800.0, 1704067200.0, 253402214400.0]


def test_json_is_not_taken_for_csv(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(
        ValueError, match=r"a\.jsonl must be CSV or Parquet, got JSON; give the frame"
    ):
        Dataset.from_csv(tmp_path / "a.jsonl")
