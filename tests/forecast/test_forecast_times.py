"""Zones, names of frequencies, days of opening, and ends that are the same for all series."""

import numpy as np
import pytest

from jaxops import forecast as f

pd = pytest.importorskip("pandas")


def one(times, **settings):
    """One series in a table with these times."""
    table = pd.DataFrame({"time": times, "value": np.arange(len(times), dtype=float)})
    return f.series(table, layout="channels", **settings)


@pytest.mark.parametrize("frequency", ["D", "MS"])
def test_days_of_utc_in_a_column_of_another_zone_are_those_of_utc(frequency):
    naive = pd.date_range("2024-01-01", "2024-07-10", freq=frequency)
    column = naive.tz_localize("UTC").tz_convert("America/New_York")
    for settings in ({}, {"frequency": frequency}, {"zone": "UTC"}):
        read = one(column, **settings)
        assert (read.frequency, read.zone) == (frequency, "")
        np.testing.assert_array_equal(read.times(), naive.to_numpy())


@pytest.mark.skipif(pd.__version__ < "3", reason="pandas 2 cannot convert from zones of dateutil")
def test_zones_that_have_no_name_are_read():
    dateutil = pytest.importorskip("dateutil.tz")
    utc = pd.date_range("2024-03-30", periods=72, freq="h", tz="UTC")
    read = one(utc.tz_convert(dateutil.gettz("Europe/Berlin")))
    assert (read.frequency, read.zone) == ("h", "")
    np.testing.assert_array_equal(read.times(), utc.tz_convert(None).to_numpy())


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize("frequency", ["D", "B", "W-SUN", "MS", "QE-DEC"])
def test_steps_of_a_day_and_more_have_local_dates(zone, frequency):
    """Over the summer time of both halves of the year, as types, as text, and as text of UTC."""
    naive = pd.date_range("2024-01-01", "2025-01-31", freq=frequency)
    local = naive.tz_localize(zone)
    utc = local.tz_convert("UTC").strftime("%Y-%m-%dT%H:%MZ")
    for times, settings in (
        (local, {}),
        (local.astype(str), {}),
        (utc, {"zone": zone}),
        (naive, {"zone": zone}),
        (local, {"frequency": frequency}),
    ):
        read = one(times, **settings)
        assert (read.frequency, read.zone) == (frequency, "")
        np.testing.assert_array_equal(read.times(), naive.to_numpy())
        after = pd.date_range(naive[-1], periods=3, freq=frequency)[1:]
        np.testing.assert_array_equal(read.future(2)[0], after.to_numpy())


def test_calendars_of_hours_read_the_clock_of_the_zone():
    """Against pandas, through a day of 25 hours; the times are of UTC."""
    times = pd.date_range("2024-11-02", periods=72, freq="h", tz="America/New_York")
    for read in (
        one(times),
        one(times.astype(str), zone="America/New_York"),
        one(times.tz_convert(None), zone="America/New_York"),
    ):
        assert (read.frequency, read.zone) == ("h", "America/New_York")
        np.testing.assert_array_equal(read.times(), times.tz_convert(None).to_numpy())
        made = f.calendar(read, ["hour_of_day", "day_of_week"], dates={"sunday": ["2024-11-03"]})
        np.testing.assert_allclose(made.known[:, 0], times.hour / 23 - 0.5, atol=1e-6)
        np.testing.assert_allclose(made.known[:, 1], times.day_of_week / 6 - 0.5, atol=1e-6)
        assert made.known[:, 2].sum() == 25
        ahead = f.future_covariates(made, 2, dates={"sunday": []})
        np.testing.assert_allclose(ahead[0, :, 0], np.array([23, 0]) / 23 - 0.5, atol=1e-6)


def test_single_times_with_a_zone_are_read_as_columns_of_them():
    start = pd.Timestamp("2024-01-01", tz="Europe/Berlin")
    day, hour = (f.from_arrays(["a"], [range(9)], start=start, frequency=x) for x in ("D", "h"))
    assert day.start == np.datetime64("2024-01-01")
    assert hour.start == np.datetime64("2023-12-31T23")
    for series, second in ((day, "2024-01-02"), (hour, "2024-01-01T01:00")):
        limit = pd.Timestamp(second, tz="Europe/Berlin")
        assert f.split_by_time(series, limit, limit).train.tolist() == [[0, 1]]


def test_a_model_keeps_the_zone_of_its_training(tmp_path):
    times = pd.date_range("2024-11-02", periods=72, freq="h", tz="America/New_York")
    table = pd.DataFrame({"id": "a", "time": times, "value": np.arange(72.0)})
    reader = f.SeriesReader(2, "h", known=("hour_of_day",), zone="America/New_York")
    utc = table.assign(time=times.tz_convert("UTC"))
    np.testing.assert_array_equal(reader.series(table).known, reader.series(utc).known)
    trained = f.Forecaster(
        None, {}, None, ("value",), ("hour_of_day",), (), (), "h", zone="America/New_York"
    )
    trained.check(reader.series(utc))
    with pytest.raises(ValueError, match=r"history\.zone must be 'America/New_York', as in train"):
        trained.check(f.SeriesReader(2, "h", known=("hour_of_day",)).series(utc))


NAMES = (
    ("W", "W-SUN", "2024-01-07"),
    ("W-SUN", "7D", "2024-01-07"),
    ("QS", "QS-JAN", "2024-01-01"),
    ("QE", "QE-DEC", "2024-03-31"),
    ("YS", "YS-JAN", "2024-01-01"),
    ("h", "60min", "2024-01-01"),
    ("h", "H", "2024-01-01"),
    ("D", "24h", "2024-01-01"),
    ("min", "T", "2024-01-01"),
    ("ME", "M", "2024-01-31"),
    ("15min", "15T", "2024-01-01"),
    ("QE-NOV", "Q-NOV", "2024-02-29"),
    ("YE-DEC", "A", "2024-12-31"),
)


@pytest.mark.parametrize(("name", "other", "start"), NAMES)
def test_two_names_of_a_frequency_are_one(name, other, start):
    first, second = (
        f.from_arrays(["a"], [[1, 2]], start=start, frequency=x) for x in (name, other)
    )
    np.testing.assert_array_equal(first.times(), second.times())
    for trained in (name, other):  # files hold the name that was given
        model = f.Forecaster(None, {}, None, ("value",), (), (), (), trained)
        model.check(first)
        model.check(second)
        with pytest.raises(ValueError, match=r"history\.frequency must be"):
            model.check(f.from_arrays(["a"], [[1]], start="2024-01-01", frequency="2D"))


@pytest.mark.parametrize(
    ("offset", "name"),
    [
        (pd.offsets.MonthEnd(), "ME"),
        (pd.offsets.Day(2), "2D"),
        (pd.offsets.QuarterBegin(startingMonth=1), "QS-JAN"),
        (pd.offsets.CustomBusinessDay(), "B"),
        (pd.offsets.CustomBusinessDay(weekmask="Sun Mon Tue Wed Thu"), "C:1111001"),
        (
            pd.offsets.CustomBusinessDay(weekmask="1111110", holidays=["2024-12-25"]),
            "C:1111110:2024-12-25",
        ),
    ],
)
def test_offsets_of_pandas_are_frequencies(offset, name):
    times = pd.date_range("2024-12-19", periods=30, freq=offset)
    read = one(times[:20], frequency=offset)
    assert read.frequency == name
    np.testing.assert_array_equal(read.times(), times[:20].to_numpy())
    np.testing.assert_array_equal(read.future(10)[0], times[20:].to_numpy())
    np.testing.assert_array_equal(one(times[:20], frequency=name).times(), read.times())


def test_days_that_never_occur_are_closed():
    days = pd.date_range("2024-01-01", periods=35)
    read = one(days[days.day_of_week != 6])
    assert read.frequency == "C:1111110"
    assert "2024-02-04" not in read.future(3).astype(str).astype("U10")  # a Sunday
    marked = f.calendar(read, dates={"closed": ["2024-01-07", "2024-01-08"]}).known[:, 0]
    assert read.times()[marked == 1].astype("datetime64[D]").astype(str).tolist() == ["2024-01-08"]
    with pytest.raises(ValueError, match="must have no gaps"):  # one missing Monday
        one(days[(days.day_of_week != 6) & (days != "2024-01-15")])


def test_quarters_and_periods_are_read():
    wanted = np.array(["2009-10-01", "2010-01-01"], "datetime64[s]")
    periods = pd.period_range("2009Q4", periods=2, freq="Q")
    for quarters in (["2009Q4", "2010Q1"], ["2009-Q4", "2010-Q1"], periods):
        read = one(quarters)
        assert read.frequency == "QS-JAN"
        np.testing.assert_array_equal(read.times(), wanted)


DAYS = pd.date_range("2024-01-01", periods=90)
SALES = pd.DataFrame(
    {
        "id": ["slow"] * 3 + ["fast"] * 90,
        "time": [*DAYS[[2, 10, 20]], *DAYS],
        "value": [1.0, 2, 1] + [5.0] * 90,
    }
)


def test_slow_sellers_end_with_all_others():
    own = f.series(SALES, fill="zero")
    assert own.lengths.tolist() == [19, 90] and own.report.early == 1
    assert str(own.report).endswith(", 1 series end before the last row")
    read = f.series(SALES, fill="zero", end="latest")
    assert read.lengths.tolist() == [88, 90]
    assert read.values[:88, 0].nonzero()[0].tolist() == [0, 8, 18]
    assert read.values[:88].sum() == 4 and read.report.gaps == 85
    assert (read.future(1) == np.datetime64("2024-03-31")).all()
    later = f.series(SALES, fill="zero", end="2024-04-07")
    assert (later.future(1) == np.datetime64("2024-04-08")).all()
    model = f.fit(
        SALES,
        f.Baseline("repeat_last"),
        horizon=2,
        fill="zero",
        end="latest",
        levels=(),
        progress=False,
    )
    assert model.predict(SALES).mean[:, 0, 0].tolist() == [0, 5]


def test_an_end_between_two_steps_is_the_one_before():
    months = {"id": list("aab"), "time": ["2024-01-31", "2024-02-29", "2024-01-31"]}
    table = {**months, "value": [1.0, 2, 3]}
    read = f.series(table, fill="previous", end="2024-04-15")
    assert read.frequency == "ME" and read.lengths.tolist() == [3, 3]
    counts = f.series({**table, "time": [0, 3, 6]}, frequency="3", fill="previous", end=11)
    assert counts.lengths.tolist() == [4, 2]


WRONG = {
    "mixed offsets": (
        {"time": ["2024-01-01T00:00Z", "2024-01-02T00:00"]},
        {},
        "offset from UTC in every row or in none, got '2024-01-01T00:00Z' and '2024-01-02T00:00'",
    ),
    "zone": (
        {"time": ["2024-01-01T00:00Z", "2024-01-02T00:00Z"]},
        {"zone": "Berlin"},
        'zone must be a name such as "Europe/Berlin", or "", got \'Berlin\'',
    ),
    "local midnights": (
        {"time": ["2024-10-26T22:00Z", "2024-10-27T23:00Z", "2024-10-28T23:00Z"]},
        {},
        "or zone= if these are dates of a local clock",
    ),
    "offset without a name": (
        {},
        {"frequency": pd.DateOffset(months=1)},
        "an offset of pandas that has an alias, such as pandas.offsets.MonthEnd",
    ),
    "end before": (
        {},
        {"end": "2024-01-01"},
        'end must be "latest", or a time not before the last',
    ),
    "end of another kind": ({}, {"end": 7}, 'end must be "latest", or a time not before'),
    "end without fill": (
        {"id": list("abbb"), "time": ["2024-01-01", "2024-01-01", "2024-01-02", "2024-01-03"]},
        {"end": "latest", "layout": "long"},
        "2 missing rows after series 'a' at 2024-01-01T00:00:00, up to the end",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_times_are_named(case):
    columns, settings, message = WRONG[case]
    table = {"time": ["2024-01-01", "2024-01-02"], **columns}
    table["value"] = np.arange(len(table["time"]), dtype=float)
    with pytest.raises(ValueError) as error:
        f.series(table, **{"layout": "channels", **settings})
    assert message in str(error.value)
