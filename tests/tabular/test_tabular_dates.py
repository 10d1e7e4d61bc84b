"""Dates in tables: what they become, and what a model that knows them refuses."""

import datetime

import numpy as np
import pytest

import jaxops as jo
from jaxops import tabular
from jaxops.model.encoding import decode, encode

pytestmark = pytest.mark.usefixtures("one_thread")
pd = pytest.importorskip("pandas")

DAYS = pd.Series(pd.date_range("2023-01-01", periods=200, freq="37h"))
WORK = np.where(DAYS.dt.day_of_week < 5, "work", "rest")
FRAME = pd.DataFrame({"age": np.arange(200) % 40, "since": DAYS, "kind": WORK})


def fitted(frame, **options):
    """Trees, as nothing is compiled for them."""
    pytest.importorskip("lightgbm")
    trees = tabular.LightGBM(n_estimators=3, min_child_samples=5, learning_rate=1.0, n_jobs=1)
    return tabular.fit(frame, trees, **{"label": "kind", "progress": False, **options})


@pytest.fixture(scope="module")
def model():
    return tabular.fit(FRAME, tabular.MLP((16,)), label="kind", progress=False, epochs=60)


def test_a_date_is_days_and_what_the_calendar_says_of_it():
    moments = ["1969-12-31T12:00", "2024-02-29", "", "2024-03-01 18:30:00+02:00"]
    with pytest.raises(ValueError, match="must have an offset from UTC in every row or in none"):
        tabular.read({"at": moments})
    columns = tabular.read({"at": [*moments[:3], "2024-03-01 16:30:00.000"]})
    wanted = [datetime.datetime(1969, 12, 31, 12), datetime.datetime(2024, 2, 29), None,
              datetime.datetime(2024, 3, 1, 16, 30)]  # fmt: skip
    of = {
        "at": lambda at: (at - datetime.datetime(1970, 1, 1)) / datetime.timedelta(1),
        "at month": lambda at: at.month,
        "at weekday": lambda at: at.weekday(),
        "at hour": lambda at: at.hour + at.minute / 60,
    }
    assert columns.keys() == of.keys()
    for name, value in of.items():
        expected = [np.nan if at is None else value(at) for at in wanted]
        np.testing.assert_allclose(columns[name], expected, rtol=1e-12)
    zoned = pd.Series(pd.to_datetime(wanted)).dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")
    again = tabular.read(pd.DataFrame({"at": zoned}))
    for name, value in columns.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-12)


def test_what_is_no_date_stays_as_it_is():
    table = {"a": ["2024-01-01", "soon"], "b": ["01.02.2024", "2024/01/02"], "c": ["2024", "2025"]}
    columns = tabular.read({**table, "d": ["2024-01-01"] * 2}, text=["d"])
    assert columns["a"].tolist() == table["a"] and columns["b"].tolist() == table["b"]
    assert columns["c"].tolist() == [2024, 2025] and columns["d"].tolist() == ["2024-01-01"] * 2
    assert tabular.read({"d": pd.to_timedelta([36, 12], "h")})["d"].tolist() == [1.5, 0.5]


def test_weekdays_are_learned_from_frames_and_files_alike(model, tmp_path):
    assert tabular.evaluate(model, FRAME).figures()["accuracy"] == 1
    assert model.reader.dates == ("since",)
    FRAME.to_csv(tmp_path / "t.csv", index=False)
    FRAME.to_parquet(tmp_path / "t.parquet")
    jo.save(tmp_path / "m.model", model)
    loaded, wanted = jo.load(tmp_path / "m.model"), model.predict(FRAME).probabilities
    assert loaded.reader.describe()["dates"] == "since"
    for source in (tmp_path / "t.csv", tmp_path / "t.parquet"):
        np.testing.assert_array_equal(loaded.predict(source).probabilities, wanted)
    assert np.isfinite(model.predict(FRAME.assign(since=None)).probabilities).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"since": 3}, "'since' must be dates such as 2024-12-31, as in the train rows, got int64"),
        ({"since": ["2024-01-01"] * 199 + ["no"]}, "must be dates .*, got 'no' in row 199"),
        (
            {"since": pd.Categorical(["no"] * 200)},
            "must be dates such as 2024-12-31, as in the train rows, got 'no' in row 0",
        ),
        ({"since": "2024-02-31"}, "must be dates .*, got '2024-02-31'"),
        ({"age": DAYS}, "'age' must be numbers, as in the train rows, got dates"),
    ],
)
def test_other_columns_are_refused(model, change, words):
    with pytest.raises(ValueError, match=words):
        model.predict(FRAME.assign(**change))


def test_what_says_nothing_is_no_feature(model):
    names = model.reader.encoder.mean
    assert {"since", "since month", "since weekday", "since hour"} < names.keys()
    month = FRAME.assign(
        since=pd.Timestamp("2024-05-06") + pd.to_timedelta(np.arange(200) % 9, "D")
    )
    assert [*fitted(month).reader.encoder.mean] == ["age", "since", "since weekday"]
    assert fitted(FRAME, drop=["since"]).reader.dates == ()
    assert fitted(FRAME.assign(since=pd.NaT)).about["left out"] == {"since": "no value"}
    with pytest.raises(ValueError, match="no column 'since hour' beside a date of that name"):
        fitted(FRAME.assign(**{"since hour": 1}))
    dropped = fitted(FRAME.assign(**{"since hour": [[1]] * 200}), drop=["since hour"])
    assert dropped.reader.dates == ("since",) and len(dropped.predict(FRAME).labels) == 200


def test_categories_are_dates_where_dates_are_wanted(model):
    wanted = model.predict(FRAME).probabilities
    days = FRAME.since.dt.strftime("%Y-%m-%dT%H:%M").astype("category")
    np.testing.assert_array_equal(model.predict(FRAME.assign(since=days)).probabilities, wanted)
    none = model.predict(FRAME.assign(since=pd.Categorical([None] * 200))).probabilities
    np.testing.assert_array_equal(none, model.predict(FRAME.assign(since=None)).probabilities)


def test_a_reader_of_an_older_file_takes_dates_as_days():
    days = tabular.read(FRAME)["since"]
    reader = tabular.TableReader(tabular.fit_encoder({"since": days}))
    with pytest.raises(
        ValueError, match="'since' must be numbers, as in the train rows, got dates"
    ):
        reader.columns(FRAME)
    file = encode(reader, arrays := {})
    del file["arguments"]["dates"]
    older = decode(file, arrays)
    features = older.columns(FRAME)[1]["features"][:, 0]
    np.testing.assert_allclose(features, (days - days.mean()) / days.std(), atol=1e-5)
    assert older.describe()["numbers"] == "since" and older.describe()["dates"] == ""
    with pytest.raises(ValueError, match=r"'since' must be numbers, .*, got '2023-01-01' in row 0"):
        older.columns({"since": ["2023-01-01"]})


def test_dates_as_text_are_the_same_texts_in_prediction():
    frame = FRAME.assign(since=pd.to_datetime("2024-01-01") + pd.to_timedelta(FRAME.age % 3, "D"))
    reader = fitted(frame, text=["since"]).reader
    assert len(reader.encoder.values["since"]) == 3 and reader.dates == ()
    features = reader.columns(frame)[1]["features"][:, 1:4]
    np.testing.assert_array_equal(features, np.eye(3)[frame.age % 3])


def test_the_days_of_other_dates_since_one(tmp_path):
    left = DAYS + pd.to_timedelta(np.arange(200) % 30 * 1.5, "D")
    frame = FRAME.assign(left=left, kind=np.where(np.arange(200) % 30 < 15, "soon", "late"))
    model = fitted(frame, since="since", drop=["age"])
    assert "left since since" in model.reader.encoder.mean and model.reader.since == "since"
    _, table = model.reader.table(frame)
    np.testing.assert_allclose(table["left since since"], np.arange(200) % 30 * 1.5)
    jo.save(tmp_path / "m.model", model)
    later = frame.assign(since=DAYS + pd.Timedelta("900D"), left=left + pd.Timedelta("900D"))
    later.to_csv(tmp_path / "later.csv", index=False)
    answer = jo.load(tmp_path / "m.model").predict(tmp_path / "later.csv")
    assert (answer.labels == frame["kind"]).all()  # the days alone tell it, in other years too
    assert model.reader.describe()["dates"] == "since, left"
    same = frame.assign(since=pd.Timestamp("2023-01-01"))  # says nothing, and nothing since it
    assert fitted(same, since="since", drop=["age"]).reader.since is None
    for since, message in (
        (
            "age",
            "since must be a column of dates that is learned from, got 'age' beside since, left",
        ),
        ("nothing", "got 'nothing' beside since, left"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted(frame, since=since)
    with pytest.raises(ValueError, match="since must be None where there is one column of dates"):
        fitted(FRAME, since="since")
    with pytest.raises(ValueError, match="data must have no column 'left since since' with"):
        fitted(frame.assign(**{"left since since": 1.0}), since="since")
