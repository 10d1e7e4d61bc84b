"""Errors that say what to do: each input, and words that must be in the message."""

import numpy as np
import pytest

from jaxops import forecast as f

pd = pytest.importorskip("pandas")

DAYS = pd.date_range("2024-01-01", periods=9)
LONG = pd.DataFrame({"time": DAYS, "store": 1, "item": 2, "value": np.arange(9.0)})
TWO = f.from_arrays(["tiny", "long"], [range(3), range(30)])
MARKED = f.calendar(
    f.series(LONG[["time", "value"]], layout="channels"), dates={"holiday": ["2024-01-02"]}
)
NETWORK = f.Forecaster(
    f.TiDE(4, 2), {}, f.scaling(MARKED, "none"), ("value",), ("holiday",), (), (), "D"
)
ONES = np.ones((2, 3, 1))
METERS = np.c_[np.linspace(0, 1000, 9), 2**27 + np.arange(9)].ravel()
WRONG = {
    "several id columns": (
        lambda: f.series(LONG, id=["store", "item"]),
        ["id must be the name of one column", "'store'"],
    ),
    "one series without ids": (
        lambda: f.series(LONG[["time", "value"]]),
        ["must have a column 'id', got time, value", 'layout="channels" reads one series'],
    ),
    "a meter's reading": (
        lambda: f.series({"time": DAYS, "value": 2**27 + np.arange(9)}, layout="channels"),
        ["column 'value' of series 'series' must range over", "of 8", "up to 8", "differences"],
    ),
    "a meter's reading beside another series": (
        lambda: f.series({"id": ["b", "a"] * 9, "time": np.arange(18) // 2, "value": METERS}),
        ["column 'value' of series 'a' must range over", "range of 8", "up to 8"],
    ),
    "a meter's reading in arrays": (
        lambda: f.from_arrays(["a"], [2.0**27 + np.arange(9)]),
        ["values: 'value' of series 'a'", "rounded by up to 8"],
    ),
    "several time columns": (
        lambda: f.series(LONG, layout="channels", time=["year", "month"]),
        ["time must be the name of one column"],
    ),
    "day first": (
        lambda: f.series({"time": ["13/01/2024"], "value": [1.0]}, layout="channels"),
        ["'13/01/2024'", "pandas.to_datetime"],
    ),
    "days of one's own ahead": (
        lambda: f.future_covariates(MARKED, 2),
        ["columns holiday", "dates="],
    ),
    "a table as future": (
        lambda: f.forecast(NETWORK, MARKED, future=pd.DataFrame({"id": ["a"]})),
        ["future must be an array (1, 2, 1)", "DataFrame", "future_covariates"],
    ),
    "a series without training rows": (
        lambda: f.scaling(TWO, rows=f.backtest(TWO, 5, 5, short="skip")[0].train),
        ["none of series 'tiny'", "1 of 2", "series.part"],
    ),
    "a constant series": (
        lambda: f.mase(ONES, ONES, np.array([[2.0], [0.0]])),
        ["scale must be above 0", "window 1", "leave out series"],
    ),
    "a form": (
        lambda: f.Baseline("ets", forms=("XYZ",)),
        ["forms must be among", "XYZ"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_message_says_what_to_do(case):
    call, words = WRONG[case]
    with pytest.raises(ValueError) as error:
        call()
    for word in words:
        assert word in str(error.value)


def test_times_in_the_index_of_pandas_are_read():
    frame = LONG[["time", "value"]]
    wanted = f.series(frame, layout="channels")
    indexed = frame.set_index("time")
    for source in (indexed, indexed.rename_axis(None), indexed["value"]):
        read = f.series(source, layout="channels")
        np.testing.assert_array_equal(read.times(), wanted.times())
        np.testing.assert_array_equal(read.values, wanted.values)
        assert read.channels == ("value",)
    both = f.series(LONG.set_index(["store", "time"]), id="store")
    assert both.ids.tolist() == ["1"] and len(both.values) == 9


def test_levels_are_those_that_a_model_has():
    history = f.from_arrays(["a"], [np.arange(40) % 5])
    points = f.forecast(f.Baseline("naive2"), history, 2)
    assert points.levels == () and points.quantiles.shape == (1, 2, 1, 0)
    assert f.forecast(f.Baseline("drift"), history, 2).levels == (0.1, 0.5, 0.9)
    windows = f.origins(history, 10, 2)
    around = f.calibrated(f.Baseline("naive2"), history, windows, 2, levels=(0.2, 0.8))
    assert f.forecast(around, history, 2).levels == (0.2, 0.8)


@pytest.mark.parametrize("method", ["repeat_last", "drift", "seasonal_naive", "theta"])
def test_one_value_has_no_quantiles(method):
    """It has a mean; but no error from which a width could be learned ("ets": its own tests)."""
    told = f.forecast(f.Baseline(method, 1), f.from_arrays(["a"], [[5.0]]), 2)
    assert (told.mean == 5).all() and np.isnan(told.quantiles).all()
