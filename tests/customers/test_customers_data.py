"""Logs to purchases, summaries, snapshots and histories, held to loops over customers."""

import datetime

import numpy as np
import pandas as pd
import pytest

from jaxops import customers

DAY = datetime.timedelta(1)
RNG = np.random.default_rng(0)
ROWS = 600
START = np.datetime64("2024-01-01T00:00")
TABLE = pd.DataFrame(
    {
        "who": RNG.choice([f"c{i:02}" for i in range(40)], ROWS),
        "day": START + (RNG.uniform(0, 200, ROWS) * 1440).astype("timedelta64[m]"),
        "paid": RNG.gamma(2, 10, ROWS).round(2),
    }
)
NAMES = {"customer": "who", "time": "day", "amount": "paid"}


@pytest.fixture(scope="module")
def log():
    return customers.purchases(TABLE, **NAMES)


def loop(table, cutoff):
    """Customer -> [(day, money of the day)], oldest first, up to the cut-off."""
    found = {}
    for who, moment, paid in table.sort_values("day").itertuples(index=False):
        day = moment.date()
        if day <= cutoff:
            days = found.setdefault(who, {})
            days[day] = days.get(day, 0.0) + paid
    return {who: sorted(days.items()) for who, days in sorted(found.items())}


@pytest.mark.parametrize(("unit", "length"), [(None, 1), ("day", 1), ("week", 7), ("hour", 1 / 24)])
def test_summary_is_that_of_a_loop(log, unit, length):
    cutoff = datetime.date(2024, 4, 15)
    wanted = loop(TABLE, cutoff)
    got = customers.summary(log, "2024-04-15", unit)
    assert got.ids.tolist() == list(wanted)
    for i, days in enumerate(wanted.values()):
        first, last = days[0][0], days[-1][0]
        assert got.frequency[i] == len(days) - 1
        assert got.recency[i] == pytest.approx((last - first) / DAY / length)
        assert got.T[i] == pytest.approx((cutoff - first) / DAY / length)
        money = [paid for _, paid in days[1:]]
        assert got.monetary_value[i] == pytest.approx(np.mean(money) if money else 0)
    assert (got.frequency == 0).any()  # a customer with a single purchase
    assert got.frame().columns.tolist() == ["id", "frequency", "recency", "T", "monetary_value"]


@pytest.mark.data("cdnow")
def test_summary_of_cdnow_is_the_published_one():
    import os
    from pathlib import Path

    folder = Path(os.environ["JAXOPS_DATA_DIR"], "cdnow")
    names = ["master", "customer", "time", "discs", "amount"]
    table = pd.read_csv(folder / "CDNOW_sample.txt", sep=r"\s+", names=names)
    table["time"] = pd.to_datetime(table["time"], format="%Y%m%d")
    wanted = pd.read_csv(folder / "cdnow_customers_summary.csv")
    got = customers.summary(customers.purchases(table), "1997-09-30", "week")
    assert got.ids.tolist() == wanted["ID"].tolist() and len(got.ids) == 2357
    for name in ("frequency", "recency", "T"):
        np.testing.assert_allclose(getattr(got, name), wanted[name], atol=0.0051)


def test_every_kind_of_source_gives_the_same_log(log, tmp_path):
    TABLE.to_parquet(tmp_path / "log.parquet")
    TABLE.to_csv(tmp_path / "log.csv", index=False)
    arrays = {name: TABLE[name].to_numpy() for name in TABLE}
    texts = arrays | {"day": np.datetime_as_string(arrays["day"], "s").astype(object)}
    shuffled = TABLE.sample(frac=1, random_state=1)
    for source in (tmp_path / "log.parquet", str(tmp_path / "log.csv"), arrays, texts, shuffled):
        got = customers.purchases(source, **NAMES)
        assert got.customers.tolist() == log.customers.tolist() and got.period == "day"
        np.testing.assert_array_equal(got.time, log.time)
        np.testing.assert_array_equal(got.starts, log.starts)
        np.testing.assert_allclose(got.amount, log.amount)
    assert customers.purchases(log) is log
    assert log.report.rows == ROWS and log.report.merged == ROWS - len(log.time) > 0


def test_ids_and_numbers_stay_as_they_are():
    log = customers.purchases({"customer": [10, 9, 10], "time": [0.5, 1.5, 0.75]})
    assert log.customers.tolist() == [9, 10] and log.customers.dtype == np.int64
    assert log.time.tolist() == [1.5, 0.5, 0.75] and log.period is None
    equal = customers.purchases({"customer": [1, 1, 1], "time": [2, 2, 3]})
    assert equal.time.tolist() == [2, 3]


def test_periods():
    days = ["2024-01-07", "2024-01-08", "2024-01-31", "2024-02-01"]  # a Sunday, and a Monday
    table = {"customer": ["a"] * 4, "time": days}
    weeks = customers.purchases(table, period="week")
    assert np.diff(weeks.time).tolist() == [1, 3] and weeks.date(weeks.time[0]) == "2024-01-07"
    months = customers.purchases(table, period="month")
    assert months.time.tolist() == [54 * 12, 54 * 12 + 1]
    for end in ("2024-06-30", "2024-06", pd.Timestamp("2024-06-30"), datetime.date(2024, 6, 30)):
        assert customers.summary(months, end).T.tolist() == [5]
    for log, within in ((months, "2024-06-15"), (weeks, "2024-06-15"), (months, "2024-06-30T12")):
        with pytest.raises(ValueError, match=r"cutoff must be the last day of a (month|week)"):
            customers.summary(log, within)
    assert weeks.at("2024-01-14") == weeks.at(weeks.date(weeks.time[1])) == weeks.time[1]
    hours = customers.purchases(
        {"customer": ["a"] * 3, "time": [f"2024-01-01T{x}" for x in ("23:59", "23:00", "22:59")]},
        period="hour",
    )
    assert np.diff(hours.time).tolist() == [1] and hours.date(hours.time[1]) == "2024-01-01T23"
    assert hours.at("2024-01-01") == hours.at("2024-01-01T23:30") == hours.time[1]


REFUND = {
    "customer": ["a", "a", "a", "b", "b", "c", "d"],
    "time": [1, 1, 2, 1, 1, 1, 1],
    "amount": [10.0, -4.0, 5.0, 10.1, -10.1, -3.0, 0.0],
}


def test_refunds():
    read = {"amount": "amount"}
    with pytest.raises(ValueError, match=r"at least 0, got -4.0 in row 1 .*; 3 such rows.*refunds"):
        customers.purchases(REFUND, **read)
    dropped = customers.purchases(REFUND, refunds="drop", **read)
    assert dropped.customers.tolist() == ["a", "b", "d"] and dropped.report.refunds == 3
    assert dropped.amount.tolist() == [10, 5, 10.1, 0]
    net = customers.purchases(REFUND, refunds="net", **read)
    assert net.customers.tolist() == ["a", "d"] and net.amount.tolist() == [6, 5, 0]
    assert net.starts.tolist() == [0, 2, 3]
    assert dropped.report.unmatched == pytest.approx(
        17.1
    ) and net.report.unmatched == pytest.approx(3)
    alone = {"customer": ["a"], "time": [1], "amount": [-1.0]}
    for refunds in ("drop", "net"):
        with pytest.raises(ValueError, match="must have a purchase, got 1"):
            customers.purchases(alone, refunds=refunds, **read)


GOOD = {"customer": ["a", "b", "c"], "time": ["2024-01-01"] * 3, "amount": [1.0, 2.0, 3.0]}
READ = customers.purchases({name: GOOD[name] for name in ("customer", "time")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"time": ["2024-01-01", "soon", "2024-01-02"]},
            "'time' must be dates .*, got 'soon' in row 1",
        ),
        (
            {"time": ["2024-01-01", None, "2024-01-02"]},
            "'time' must have a time in every row.* row 1",
        ),
        ({"time": [1.0, 2.0, np.inf]}, "in row 2"),
        ({"time": [19970101, 19970131, 19981231]}, "'time' must be dates .* got 19970101 in row 0"),
        ({"time": pd.Categorical(["2024-01-01"] * 3)}, "'time' must be dates .* got categories"),
        (
            {"customer": ["a", None, "c"]},
            "'customer' must have an id in every row, got '' in row 1",
        ),
        (
            {"amount": [1.0, np.nan, 2.0]},
            "'amount' must have a number in every row, got nan in row 1",
        ),
        ({"amount": ["1", "much", "2"]}, "'amount' must be numbers, got 'much' in row 1"),
        ({"amount": None}, "must have a column 'amount'"),
    ],
)
def test_what_cannot_be_read_is_named_with_column_and_row(change, message):
    table = {name: x for name, x in (GOOD | change).items() if x is not None}
    with pytest.raises(ValueError, match=message):
        customers.purchases(table, amount="amount")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: customers.purchases(GOOD, time="customer"), "must be distinct"),
        (lambda: customers.purchases(GOOD, period="decade"), "period must be one of"),
        (
            lambda: customers.purchases(GOOD, refunds="net"),
            'refunds must be "error" without amount',
        ),
        (
            lambda: customers.purchases({"customer": [1], "time": [1]}, period="day"),
            "'time' must be dates, as period is 'day', got numbers",
        ),
        (
            lambda: customers.summary(READ, "2023-12-31"),
            r"cutoff must be at least 2024-01-01 \(the first purchase\), got 2023-12-31",
        ),
        (lambda: customers.summary(READ, 3), "cutoff must be a date"),
        (lambda: customers.summary(READ, "then"), "cutoff must be a date"),
        (lambda: customers.summary(READ, unit="fortnight"), "unit must be one of"),
        (lambda: customers.summary(READ, unit="month"), "unit must be the period"),
        (lambda: customers.snapshots(READ, ["2024-01-01"], 1), "without amounts"),
        (lambda: customers.snapshots(READ, [], 1, label="returned"), "at least 1 date"),
        (
            lambda: customers.snapshots(READ, ["2024-01-01"], 1, label="time"),
            r"cutoffs must be before 2024-01-01 .*got 2024-01-01",
        ),
        (
            lambda: customers.snapshots(READ, ["2024-01-01"] * 2, 1, label="returned"),
            "cutoffs must be distinct, got 2024-01-01, 2024-01-01",
        ),
        (
            lambda: customers.snapshots(READ, ["2024-01-01"], 1, label="returned", windows=[-5]),
            "windows must be finite, above 0 and distinct, got -5",
        ),
        (
            lambda: customers.snapshots(READ, ["2024-01-01"], 1, label="returned", windows=[5, 5]),
            "windows must be finite, above 0 and distinct, got 5, 5",
        ),
        (
            lambda: customers.purchases(READ, period="month"),
            "period must be left out for Purchases, .* got 'month'",
        ),
        (
            lambda: customers.snapshots(READ, ["2024-01-01"], 0, label="returned"),
            "horizon must be finite and above 0",
        ),
        (
            lambda: customers.snapshots(READ, ["2024-01-01"], 3, label="returned"),
            r"cutoff must be at most 2023-12-29 .*got 2024-01-01",
        ),
    ],
)
def test_settings_that_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_snapshots_are_those_of_a_loop(log):
    cutoffs = ["2024-03-01", "2024-04-15"]
    options = {"gap": 7, "windows": [14, 60]}
    value = customers.snapshots(log, cutoffs, 30, **options)
    returned = customers.snapshots(log, cutoffs, 30, label="returned", **options)
    number = customers.snapshots(log, cutoffs, 30, label="purchases", **options)
    end = datetime.date(2024, 5, 1)  # 9 days into the time after the second cut-off
    spells = customers.snapshots(log, cutoffs, 30, label="time", end=end, **options)
    seen = customers.purchases(TABLE[TABLE["day"] < "2024-05-02"], **NAMES)
    same = customers.snapshots(seen, cutoffs, 30, label="time", end=end, **options)
    for name in spells:  # what comes after the end is not there
        np.testing.assert_array_equal(spells[name], same[name], err_msg=name)
    whole, row = loop(TABLE, datetime.date(2025, 1, 1)), 0
    for text in cutoffs:
        cutoff = datetime.date.fromisoformat(text)
        for who, days in loop(TABLE, cutoff).items():
            assert (value["customer"][row], value["cutoff"][row]) == (who, text)
            first, last = days[0][0], days[-1][0]
            assert value["age"][row] == (cutoff - first) / DAY
            assert value["since last"][row] == (cutoff - last) / DAY
            assert value["total amount"][row] == pytest.approx(sum(paid for _, paid in days))
            assert value["last amount"][row] == pytest.approx(days[-1][1])
            for length in (14, 60):
                recent = [paid for day, paid in days if cutoff - day < length * DAY]
                assert value[f"purchases in {length}"][row] == len(recent)
                assert value[f"amount in {length}"][row] == pytest.approx(sum(recent), abs=1e-9)
            later = [paid for day, paid in whole[who] if 7 * DAY < day - cutoff <= 37 * DAY]
            assert value["value"][row] == pytest.approx(sum(later), abs=1e-9)
            assert number["purchases"][row] == len(later) and returned["returned"][row] == bool(
                later
            )
            until = min(37, (end - cutoff) / DAY)
            gaps = [(day - cutoff) / DAY - 7 for day, _ in whole[who]]
            gaps = [gap for gap in gaps if 0 < gap <= until - 7]
            assert spells["returned"][row] == bool(gaps)
            assert spells["time"][row] == min([*gaps, until - 7])
            row += 1
    assert row == len(value["customer"]) == len(spells["time"])
    assert 0 < spells["returned"].sum() < row
    labels = {"value", "purchases", "returned", "time"}  # one label, no other
    assert labels & value.keys() == {"value"} and labels & spells.keys() == {"time", "returned"}


def test_nothing_after_the_cutoff_is_in_the_features(log):
    later = TABLE["day"] >= "2024-03-02"
    changed = TABLE.assign(paid=np.where(later, 1000 + TABLE["paid"], TABLE["paid"]))
    fewer = changed[~later | (np.arange(ROWS) % 2 == 0)]
    one = customers.snapshots(log, ["2024-03-01"], 30)
    two = customers.snapshots(customers.purchases(fewer, **NAMES), ["2024-03-01"], 30)
    assert not np.allclose(one.pop("value"), two.pop("value"))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_histories(log):
    wanted = loop(TABLE, datetime.date(2024, 4, 15))
    got = customers.histories(log, "2024-04-15", "week")
    assert got.ids.tolist() == list(wanted)
    for i, days in enumerate(wanted.values()):
        before, amount = got.of(i)
        ages = [(datetime.date(2024, 4, 15) - day).days / 7 for day, _ in days]
        assert before.tolist() == pytest.approx(ages)
        assert amount.tolist() == pytest.approx([paid for _, paid in days])


def test_a_summary_is_checked():
    one = customers.Summary(np.arange(2), np.array([0, 1.0]), np.zeros(2), np.ones(2), None)
    one.check()
    for change, message in [
        ({"frequency": np.array([0, 0.5])}, "frequency must be whole numbers .* got 0.5 in row 1"),
        ({"recency": np.array([0, 2.0])}, r"recency must be in \[0, T\], got 2.0 in row 1"),
        (
            {"recency": np.array([0.5, 0.5])},
            "recency must be 0 where frequency is 0, got 0.5 in row 0",
        ),
        ({"T": np.array([np.nan, 1])}, "in row 0"),
        ({"T": np.ones(3)}, "T must have shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            one._replace(**change).check()
