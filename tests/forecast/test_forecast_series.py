"""Reading of series against pandas, the calendar, and covariates of the future."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxops import forecast
from jaxops.forecast.data import grid
from jaxops.forecast.data.windows import gather

DATA = Path(os.environ.get("JAXOPS_DATA_DIR", "absent"))


def random_table(frequency: str, seed: int = 0) -> pd.DataFrame:
    """Five regular series of different lengths and beginnings, shuffled."""
    random = np.random.default_rng(seed)
    parts = []
    for name in ["e", "b", "c", "d", "007"]:
        length, first = random.integers(20, 40), random.integers(0, 10)
        times = pd.date_range("2023-12-28", periods=60, freq=frequency)[first : first + length]
        columns = {"value": random.normal(size=length), "price": random.normal(size=length)}
        parts.append(
            pd.DataFrame({"id": name, "time": times, **columns, "size": float(ord(name[0]))})
        )
    return pd.concat(parts).sample(frac=1, random_state=seed).reset_index(drop=True)


FREQUENCIES = ["s", "15min", "h", "D", "2D", "W-WED", "B", "MS", "ME", "QS-FEB", "QE-DEC", "YS-JAN"]


@pytest.mark.parametrize("frequency", [*FREQUENCIES, "2MS", "QE-NOV", "YE-DEC"])
def test_frequency_is_inferred_and_rows_are_sorted_as_by_pandas(frequency):
    table = random_table(frequency)
    read = forecast.series(table, value=["value", "price"], static=["size"])
    assert read.frequency == frequency
    assert read.ids.tolist() == [*dict.fromkeys(table.id)]
    times = read.times()
    for s, name in enumerate(read.ids):
        wanted = table[table.id == name].sort_values("time")
        rows = slice(read.offsets[s], read.offsets[s + 1])
        np.testing.assert_array_equal(times[rows], wanted.time.to_numpy().astype("datetime64[s]"))
        np.testing.assert_array_equal(
            read.values[rows], wanted[["value", "price"]].to_numpy(np.float32)
        )
        assert read.static[s] == ord(name[0])
        after = pd.date_range(wanted.time.iloc[-1], periods=5, freq=frequency)[1:]
        np.testing.assert_array_equal(read.future(4)[s], after.to_numpy().astype("datetime64[s]"))
        before = grid.moved(times[rows][3:4], -3, frequency)
        assert before == times[rows][0]
    by_id = table.groupby("id", sort=False)
    falls = sum((part.time.diff() < pd.Timedelta(0)).sum() for _, part in by_id)
    assert read.report.unsorted == falls > 0
    assert read.report.gaps == read.report.duplicates == read.report.missing == 0


@pytest.mark.parametrize("frequency", ["h", "B", "ME"])
@pytest.mark.parametrize("how", ["zero", "previous", "linear"])
def test_gaps_are_filled_as_by_pandas(frequency, how):
    table = random_table(frequency)
    ends = table.groupby("id").time.agg(["min", "max"])
    inner = ~table.time.isin(ends.to_numpy().ravel())
    lost = inner & (np.random.default_rng(1).random(len(table)) < 0.3)
    holey = table[~lost].copy()
    some = holey.index[holey.time.isin(table.time[inner])][:3]
    holey.loc[some, "value"] = np.nan
    read = forecast.series(
        holey, known=["price"], frequency=frequency, fill={"value": how, "price": "previous"}
    )
    assert read.report.gaps == lost.sum() and read.report.missing == 3
    assert read.report.filled == 2 * lost.sum() + 3
    fill = {
        "zero": lambda x: x.fillna(0),
        "previous": lambda x: x.ffill(),
        "linear": lambda x: x.interpolate(),
    }[how]
    for s, name in enumerate(read.ids):
        one = holey[holey.id == name].set_index("time").sort_index().asfreq(frequency)
        rows = slice(read.offsets[s], read.offsets[s + 1])
        np.testing.assert_allclose(read.values[rows, 0], fill(one.value), rtol=2e-6, atol=1e-7)
        np.testing.assert_array_equal(read.known[rows, 0], one.price.ffill().astype(np.float32))


@pytest.mark.parametrize("how", ["sum", "mean", "last"])
def test_duplicates_are_merged_as_by_pandas(how):
    table = random_table("D")
    table = pd.concat([table, table.sample(20, random_state=2, replace=True)], ignore_index=True)
    table["value"] = np.arange(len(table))
    read = forecast.series(table, known=["price"], duplicates=how)
    merged = table.groupby(["id", "time"]).agg(
        {"value": how, "price": "last" if how == "last" else "mean"}
    )
    assert read.report.duplicates == len(table) - len(merged)
    wanted = merged.loc[[*read.ids]].reset_index()
    wanted = wanted.set_index("id").loc[read.ids].reset_index()
    np.testing.assert_allclose(read.values[:, 0], wanted.value, rtol=1e-6)
    np.testing.assert_allclose(read.known[:, 0], wanted.price, rtol=1e-6)


def test_files_frames_and_arrays_give_the_same(tmp_path):
    table = random_table("h")
    table["promotion"] = table.price > 0
    table.to_csv(tmp_path / "a.csv.gz", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    zoned = table.assign(time=table.time.dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"))
    arrays = {name: table[name].to_numpy() for name in table}
    texts = table.assign(time=table.time.astype(str))
    columns = {"known": ["promotion"], "past": "price", "static": ["size"]}
    first = forecast.series(table, **columns)
    assert first.known_names == ("promotion",) and set(np.unique(first.known)) == {0, 1}
    for source in (tmp_path / "a.csv.gz", str(tmp_path / "a.parquet"), zoned, arrays, texts):
        other = forecast.series(source, **columns)
        assert other.ids.tolist() == first.ids.tolist() and "007" in other.ids
        for name in ("start", "offsets", "values", "known", "past", "static"):
            np.testing.assert_array_equal(getattr(other, name), getattr(first, name))


def test_wide_tables_by_choice():
    wide = pd.DataFrame(
        {
            "day": pd.date_range("2024-01-01", periods=5),
            "x": [np.nan, 1, 2, 3, np.nan],
            "y": [5.0, 6, 7, 8, 9],
            "promotion": [0, 0, 1, 0, 1],
        }
    )
    two = forecast.series(wide.iloc[::-1], layout="series", time="day", known=["promotion"])
    assert two.ids.tolist() == ["x", "y"] and two.channels == ("value",)
    assert two.offsets.tolist() == [0, 3, 8]
    assert two.values[:, 0].tolist() == [1, 2, 3, 5, 6, 7, 8, 9]
    assert two.known[:, 0].tolist() == [0, 1, 0, 0, 0, 1, 0, 1]
    assert two.start.astype("datetime64[D]").astype(str).tolist() == ["2024-01-02", "2024-01-01"]
    assert two.report.trimmed == 2 and two.report.unsorted == 4
    one = forecast.series(wide, layout="channels", time="day", value=["y", "promotion"])
    assert one.values.tolist() == [[5, 0], [6, 0], [7, 1], [8, 0], [9, 1]]
    assert one.channels == ("y", "promotion") and len(one) == 1
    with pytest.raises(
        ValueError,
        match=r"column 'x' must be finite, got NaN in .* at 2024-01-01T00:00:00 .*\(2 in all",
    ):
        forecast.series(wide, layout="channels", time="day")


@pytest.mark.data("ett")
def test_ett():
    read = forecast.series(DATA / "ett" / "ETTh1.csv", layout="channels", time="date")
    assert read.values.shape == (17_420, 7) and read.frequency == "h"
    assert read.channels == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    assert read.values[0, 6] == np.float32(30.531) and str(read.start[0]) == "2016-07-01T00:00:00"
    assert read.report == forecast.Report(17_420)


@pytest.mark.data("m4")
def test_m4_rows_and_the_published_naive_row():
    """The seasonal naive forecast of the last 48 rows has the published sMAPE, 13.912."""
    parts = [
        pd.read_csv(DATA / "m4" / f"Hourly-{x}.csv.gz", index_col=0) for x in ("train", "test")
    ]
    train, test = (part.to_numpy() for part in parts)
    rows = [np.append(a[~np.isnan(a)], b) for a, b in zip(train, test, strict=True)]
    read = forecast.from_arrays(parts[0].index, rows)
    assert len(read) == 414 and set(read.lengths) == {748, 1008} and read.ids[413] == "H414"
    (fold,) = forecast.backtest(read, 24, 48)
    past = gather(read.values, fold.test["origin"], -24, 0)[:, :, 0]
    truth = np.asarray(gather(read.values, fold.test["origin"], 0, 48)[:, :, 0])
    naive = np.tile(past, 2)
    smape = 200 * np.mean(np.abs(naive - truth) / (np.abs(naive) + np.abs(truth)))
    assert f"{smape:.3f}" == "13.912"
    np.testing.assert_array_equal(truth, test.astype(np.float32))


GOOD = {"id": ["a", "a", "b"], "time": [1, 2, 1], "value": [1.0, 2.0, 3.0]}
BAD = {
    "gap": (
        {"time": [1, 3, 1]},
        {"frequency": "1"},
        "must have no gaps, got 1 missing rows after series 'a' at 1, up to 3",
    ),
    "duplicate": (
        {"time": [2, 2, 1]},
        {"frequency": "1"},
        r"must have one row .*, got two for series 'a' at 2 \(1 dupl",
    ),
    "nan": (
        {"value": [1, np.nan, 3]},
        {},
        r"column 'value' must be finite, got NaN in series 'a' at 2 .*\(1 in all",
    ),
    "inf": (
        {"value": [1, np.inf, 3]},
        {},
        "column 'value' must be finite float32, got inf in row 1",
    ),
    "too large": (
        {"value": [1, 1e39, 3]},
        {},
        r"column 'value' must be finite float32, got 1e\+39 in row 1",
    ),
    "text": ({"value": ["1", "x", "3"]}, {}, "column 'value' must be numbers, got 'x'"),
    "off": (
        {"time": [1, 4, 1]},
        {"frequency": "2"},
        "times must be of frequency '2' from 1 on, got series 'a' at 4",
    ),
    "one row each": (
        {"id": list("abc")},
        {},
        "frequency must be given, .* no series with two times",
    ),
    "float times": (
        {"time": [1.5, 2, 1]},
        {},
        "column 'time' must be whole numbers or dates, got float64",
    ),
    "time missing": (
        {"time": ["2024-01-01", None, "2024"]},
        {},
        "column 'time' must have .*, got 1 missing, the first",
    ),
    "no time": (
        {"time": ["2024-01-01", "soon", "2024"]},
        {},
        "column 'time' must be whole numbers or dates in ISO 8601 .*, got 'soon'",
    ),
    "half seconds": (
        {"time": ["2024-01-01T00:00:00.5"] * 3},
        {},
        "column 'time' must be whole seconds, got 2024-01-01T00:00:00.5",
    ),
    "id missing": (
        {"id": ["a", None, "b"]},
        {},
        "column 'id' must have .*, got 1 missing, the first in row 1",
    ),
    "mixed ids": (
        {"id": np.array(["a", 1, 1], object)},
        {},
        "column 'id' must be all text or all integers, got both",
    ),
    "float ids": (
        {"id": [0.5, 1, 1]},
        {},
        r"column 'id' must be text or integers, got float64 \(0.5\)",
    ),
    "column": ({}, {"value": "sales"}, "must have a column 'sales', got id, time, value"),
    "twice": ({}, {"known": ["value"]}, "must have each column once, got 'value' twice"),
    "length": ({"value": [1.0]}, {}, r"column 'value' must have shape \(3,\), got \(1,\)"),
    "empty": ({"id": [], "time": [], "value": []}, {}, "must have at least 1 row, got 0"),
    "counts as hours": (
        {},
        {"frequency": "h"},
        "frequency must be a whole number .*, as times are integers, got 'h'",
    ),
    "frequency": (
        {},
        {"frequency": "hourly"},
        "frequency must be an alias of pandas .*, got 'hourly'",
    ),
    "number": ({}, {"frequency": 1}, "frequency must be text, such as '1' or 'D', .*, got 1"),
    "back": ({}, {"frequency": "-1h"}, "frequency must be an alias of pandas .*, got '-1h'"),
    "layout": (
        {},
        {"layout": "tall"},
        "layout must be one of 'long', 'series', 'channels', got 'tall'",
    ),
    "fill": ({}, {"fill": "mean"}, 'fill must be "zero", "previous", "linear" or None, got'),
    "fill column": (
        {},
        {"fill": {"price": "zero"}},
        "fill must name columns among value, got 'price'",
    ),
    "nothing before": (
        {"value": [np.nan, 1, 3]},
        {"fill": "previous"},
        "must have a number before each gap .*, got none for row 0 of series 'a'",
    ),
    "nothing after": (
        {"value": [1, np.nan, 3]},
        {"fill": "linear"},
        "must have a number on either side of each gap .* of series 'a'",
    ),
    "static": (
        {"size": [1, 2, 3]},
        {"static": ["size"]},
        "static column 'size' must have one .*, got 2 in series 'a' at 2",
    ),
    "static nan": (
        {"size": [1, 1, np.nan]},
        {"static": ["size"]},
        "static column 'size' must have one .*, got nan in series 'b' at 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_named(case):
    columns, arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        forecast.series({**GOOD, **columns}, **arguments)


def test_constants_computed_in_floats():
    """They differ by float64's own rounding, of which float32 keeps nothing, rightly."""
    price = [0.3, 0.1 + 0.2] * 4
    table = {"id": ["a"] * 8, "time": np.arange(8), "value": price, "price": price}
    table["size"] = price  # of one series, one number
    read = forecast.series(table, known=["price"], static=["size"])
    made = forecast.from_arrays(["a"], [price], known={"price": [price]})
    for series in (read, made):
        assert (series.values == np.float32(0.3)).all() and (series.known == series.values).all()


def test_covariates_of_arrays():
    one = forecast.from_arrays(
        ["a", "b"],
        [[1, 2, 3], [4, 5]],
        known={"price": [[1, 2, 3], [4, 5]], "on": [[0, 1, 0], [1, 1]]},
        past={"rain": [np.zeros(3), np.ones(2)]},
        static={"size": np.array([10, 20]), "floors": [1, 2]},
    )
    assert one.known.tolist() == [[1, 0], [2, 1], [3, 0], [4, 1], [5, 1]]
    assert one.past[:, 0].tolist() == [0, 0, 0, 1, 1]
    assert one.static.tolist() == [[10, 1], [20, 2]]
    assert (one.known_names, one.past_names) == (("price", "on"), ("rain",))
    assert one.static_names == ("size", "floors")
    for given, message in [
        ({"known": {"price": [[1, 2, 3]]}}, "known must have 2 series for 'price', got 1"),
        (
            {"past": {"x": [[1, 2], [3, 4]]}},
            r"past must have shape \(3,\) for 'x' of series 'a', got \(2,\)",
        ),
        (
            {"static": {"x": [[1, 2], [1, 2]]}},
            r"static must have shape \(1,\) for 'x' of series 'a', got \(1, 2\)",
        ),
        ({"static": {"x": [1]}}, "static must have 2 series for 'x', got 1"),
        (
            {"known": {"x": [[1, 2, 3], [np.inf, 5]]}},
            "known must be finite, got inf in column 'x' of series 'b'",
        ),
        ({"known": {"value": [[1, 2, 3], [4, 5]]}}, "must differ, got 'value' twice"),
    ]:
        with pytest.raises(ValueError, match=message):
            forecast.from_arrays(["a", "b"], [[1, 2, 3], [4, 5]], **given)


def test_bad_arrays_and_wide_tables_are_named():
    with pytest.raises(ValueError, match="ids must differ, got 'a' twice"):
        forecast.from_arrays(["a", "a"], [[1], [2]])
    with pytest.raises(
        ValueError, match="values must be finite, got nan in column 'value' of series 'b', row 1"
    ):
        forecast.from_arrays(["a", "b"], [[1], [2, np.nan]])
    with pytest.raises(
        ValueError, match=r"values must have shape \(T, 1\), .*, got \(0,\) for series 'a'"
    ):
        forecast.from_arrays(["a"], [[]])
    with pytest.raises(ValueError, match="start must be integers or dates, got 'soon'"):
        forecast.from_arrays(["a"], [[1]], start="soon")
    with pytest.raises(
        ValueError, match=r"frequency must be an alias .*, as times are dates, got '1'"
    ):
        forecast.from_arrays(["a"], [[1]], start="2024-01-01")
    for start, frequency in [
        ("2024-01-15", "MS"),
        ("2024-01-06", "B"),
        ("2024-01-02", "W-MON"),
        (["2024-01-01", "2024-03-30"], "ME"),
    ]:
        with pytest.raises(
            ValueError, match=rf"start must be a time of frequency '{frequency}', got 2024-"
        ):
            forecast.from_arrays(["a", "b"], [[1], [2]], start=start, frequency=frequency)
    one = forecast.from_arrays(["a"], [[1, 2]])
    with pytest.raises(ValueError, match=r"known must have shape \(2, 0\), got \(1, 0\)"):
        replace(one, known=np.zeros((1, 0), np.float32))
    two = forecast.from_arrays(["a", "b"], [[1, 2], [3, 0]])
    with (
        np.errstate(divide="ignore"),
        pytest.raises(
            ValueError,
            match="values must be finite, got -inf in column 'value' of series 'b', row 1",
        ),
    ):
        replace(two, values=np.log(two.values))
    with pytest.raises(ValueError, match="values must be float32, got float64"):
        replace(two, values=two.values * np.float64(2))
    prices = np.array([[1], [np.nan], [2], [3]], np.float32)
    with pytest.raises(
        ValueError, match="known must be finite, got nan in column 'price' of series 'a', row 1"
    ):
        replace(two, known=prices, known_names=("price",))
    with pytest.raises(
        ValueError, match="static must be finite, got nan in column 'size' of series 'b'"
    ):
        replace(two, static=prices[:2], static_names=("size",))
    with pytest.raises(ValueError, match="column 'y' must have at least 1 number, got 0"):
        forecast.series({"time": [1, 2], "x": [1, 2], "y": [np.nan] * 2}, layout="series")
    with pytest.raises(ValueError, match="past and static must be empty with layout"):
        forecast.series({"time": [1, 2], "x": [1, 2]}, layout="series", past=["x"])


def test_calendar_against_pandas():
    """Half-hours over a year's end, compared with what pandas counts."""
    times = pd.date_range("2024-12-20", periods=1000, freq="30min")
    one = forecast.from_arrays(["a"], [np.zeros(1000)], start=times[0], frequency="30min")
    counted = {
        "minute_of_hour": (times.minute, 60),
        "hour_of_day": (times.hour, 24),
        "day_of_week": (times.day_of_week, 7),
        "day_of_month": (times.day - 1, 31),
        "day_of_year": (times.day_of_year - 1, 366),
        "week_of_year": (times.isocalendar().week.to_numpy(int) - 1, 53),
        "month_of_year": (times.month - 1, 12),
    }
    centred = forecast.calendar(one, [*counted])
    cyclic = forecast.calendar(one, [*counted], encoding="cyclic")
    assert centred.known_names == tuple(counted)
    for j, (name, (value, count)) in enumerate(counted.items()):
        np.testing.assert_allclose(centred.known[:, j], value / (count - 1) - 0.5, atol=1e-6)
        assert cyclic.known_names[2 * j : 2 * j + 2] == (f"{name}_sin", f"{name}_cos")
        angle = np.arctan2(cyclic.known[:, 2 * j], cyclic.known[:, 2 * j + 1])
        np.testing.assert_allclose(np.cos(angle - 2 * np.pi * value / count), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("frequency", "start", "marked"),
    [
        ("h", "2024-12-24T22:00", range(2, 26)),
        ("D", "2024-12-20", [5]),
        ("B", "2024-12-20", [3]),
        ("W-MON", "2024-12-09", [2]),
        ("7D", "2024-12-12", [1]),
        ("MS", "2024-10-01", [2]),
        ("ME", "2024-10-31", [2]),
        ("QS-JAN", "2024-01-01", [3]),
        ("QE-DEC", "2024-03-31", [3]),
        ("YE-DEC", "2023-12-31", [1]),
    ],
)
def test_a_holiday_marks_the_rows_that_hold_it(frequency, start, marked):
    one = forecast.from_arrays(["a"], [np.zeros(30)], start=start, frequency=frequency)
    one = forecast.calendar(one, dates={"christmas": ["2024-12-25"], "never": []})
    assert np.flatnonzero(one.known[:, 0]).tolist() == [*marked] and not one.known[:, 1].any()


def test_calendar_errors():
    counts = forecast.from_arrays(["a"], [[1, 2]])
    days = forecast.from_arrays(["a"], [[1, 2]], start="2024-01-01", frequency="D")
    for one, arguments, message in [
        (counts, {"features": ["day_of_week"]}, "times must be dates, got counts"),
        (
            days,
            {"features": ["weekday"]},
            "features must be among minute_of_hour, .*, got 'weekday'",
        ),
        (days, {}, "features or dates must be given, got neither"),
        (days, {"dates": {"x": ["soon"]}}, "dates must be dates for 'x'"),
        (days, {"features": ["day_of_week"], "encoding": "sin"}, "encoding must be .*, got 'sin'"),
        (
            days,
            {"features": ["day_of_week"], "dates": {"value": []}},
            "must differ, got 'value' twice",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            forecast.calendar(one, **arguments)


def promotions() -> tuple[forecast.Series, pd.DataFrame]:
    """Two series that end on different days, and a table that reaches ten days beyond both."""
    days = pd.date_range("2024-01-01", periods=30)
    table = pd.DataFrame({"id": np.repeat(["a", "b"], 30), "time": [*days, *days]})
    table["price"] = np.arange(60.0)
    table["value"] = 1.0
    given = table[
        (table.id == "a") & (table.time < days[20]) | (table.id == "b") & (table.time < days[18])
    ]
    read = forecast.series(given, known=["price"])
    return forecast.calendar(read, ["day_of_week"], dates={"holiday": ["2024-01-20"]}), table


def test_future_covariates_are_those_behind_each_end():
    read, table = promotions()
    shuffled = table.sample(frac=1, random_state=0)
    other = pd.DataFrame({"id": ["z"], "time": table.time[:1], "price": [7.0]})
    future = forecast.future_covariates(
        read, 10, pd.concat([other, shuffled]), dates={"holiday": ["2024-01-20"]}
    )
    assert future.shape == (2, 10, 3) and future.dtype == np.float32
    assert future[0, :, 0].tolist() == [*range(20, 30)]
    assert future[1, :, 0].tolist() == [*range(48, 58)]
    weekday = [[(6 + s + h) % 7 / 6 - 0.5 for h in range(10)] for s in (0, -2)]
    np.testing.assert_allclose(future[:, :, 1], weekday, atol=1e-6)  # 2024-01-21 is a Sunday: 6
    assert np.argwhere(future[:, :, 2]).tolist() == [[1, 1]]


def test_future_covariates_for_all_series_alike():
    read, table = promotions()
    alike = table[table.id == "a"].drop(columns=["id", "value"])
    future = forecast.future_covariates(read, 3, alike, id=None, dates={"holiday": []})
    assert future[:, :, 0].tolist() == [[20, 21, 22], [18, 19, 20]]


def test_future_covariates_errors():
    read, table = promotions()
    dates = {"holiday": []}
    with pytest.raises(
        ValueError, match=r"got none of series 'a' at 2024-01-31.*step 11 of horizon=11"
    ):
        forecast.future_covariates(read, 11, table, dates=dates)
    with pytest.raises(ValueError, match=r"got none of series 'b' at 2024-01-19.*1 of 2 series"):
        forecast.future_covariates(read, 2, table[table.id == "a"], dates=dates)
    with pytest.raises(
        ValueError, match=r"one row for each time, got two for series 'b' at 2024-01-19T00:00:00"
    ):
        again = pd.concat([table, table[(table.id == "b") & (table.time == "2024-01-19")]])
        forecast.future_covariates(read, 2, again, dates=dates)
    with pytest.raises(
        ValueError,
        match="must be finite, got NaN in column 'price' of series 'a' at 2024-01-21T00:00:00",
    ):
        table.loc[20, "price"] = np.nan
        forecast.future_covariates(read, 2, table, dates=dates)
    with pytest.raises(
        ValueError, match="source must be a table with columns price, holiday, got None"
    ):
        forecast.future_covariates(read, 2)
    with pytest.raises(ValueError, match="must have a column 'price'"):
        forecast.future_covariates(read, 2, table.drop(columns="price"), dates=dates)
    bare = forecast.from_arrays(["a"], [[1, 2]])
    assert forecast.future_covariates(bare, 3).shape == (1, 3, 0)
