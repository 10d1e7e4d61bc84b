"""Windows against a loop over all rows; splits, backtests, and the rows on the device."""

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxops import forecast
from jaxops.forecast.data.windows import gather

DATA = Path(os.environ.get("JAXOPS_DATA_DIR", "absent"))


def ragged(*lengths: int) -> forecast.Series:
    """Series whose values are the numbers of their rows."""
    total = np.append(0, np.cumsum(lengths))
    values = [np.arange(a, b) for a, b in pairwise(total)]
    return forecast.from_arrays([f"s{i}" for i in range(len(lengths))], values)


def brute(series, context, horizon, rows):
    """(series, origin) of every window, by a loop."""
    found = []
    for s in range(len(series)):
        for origin in range(series.offsets[s], series.offsets[s + 1]):
            whole = origin - context >= series.offsets[s]
            if whole and rows[s, 0] <= origin and origin + horizon <= rows[s, 1]:
                found.append((s, origin))
    return found


def pairs(windows):
    return list(zip(windows["series"].tolist(), windows["origin"].tolist(), strict=True))


@pytest.mark.parametrize(("context", "horizon"), [(0, 1), (3, 2), (5, 5), (10, 1), (1, 4)])
def test_every_window_of_a_split_and_no_other(context, horizon):
    series = ragged(23, 11, 40, 5)
    split = forecast.split(series, None, 0.2, 0.3)
    every = []
    for rows in (*split, np.stack([series.offsets[:-1], series.offsets[1:]], axis=1)):
        wanted = brute(series, context, horizon, rows)
        windows = forecast.origins(series, context, horizon, rows, short="skip")
        assert pairs(windows) == wanted
        assert all(column.dtype == np.int32 for column in windows.values())
        without = forecast.too_short(series, context, horizon, rows)
        assert set(np.flatnonzero(~without)) == {s for s, _ in wanted}
        every.append(set(wanted))
    assert not every[0] & every[1] and not every[1] & every[2]


def test_stride_counts_from_the_last_window():
    series = ragged(20, 12)
    windows = forecast.origins(series, 3, 2, stride=4)
    assert pairs(windows) == [(0, 6), (0, 10), (0, 14), (0, 18), (1, 26), (1, 30)]


@pytest.mark.data("ett")
@pytest.mark.parametrize("name", ["ETTh1", "ETTh2"])
def test_ett_has_the_published_counts_and_repeat_last_row(name):
    """2,785 test windows at 96, and the error of repeating the last row, of the data note."""
    series = forecast.series(DATA / "ett" / f"{name}.csv", layout="channels", time="date")
    split = forecast.split(series, 8640, 2880, 2880)
    counts = [len(forecast.origins(series, 336, 96, rows)["origin"]) for rows in split]
    assert counts == [8640 - 336 - 96 + 1, 2785, 2785]
    assert len(forecast.origins(series, 512, 720, split.test)["origin"]) == 2880 - 720 + 1
    train = series.values[slice(*split.train[0])].astype(np.float64)
    values = ((series.values - train.mean(0)) / train.std(0)).astype(np.float32)
    windows = forecast.origins(series, 336, 96, split.test)

    @jax.jit
    def errors(origin):
        last = gather(values, origin, -1, 0)
        error = gather(values, origin, 0, 96) - jnp.broadcast_to(last, (len(origin), 96, 7))
        return jnp.square(error).mean(), jnp.abs(error).mean()

    mse, mae = errors(windows["origin"])
    wanted = {"ETTh1": ("1.294", "0.713"), "ETTh2": ("0.432", "0.422")}[name]
    assert (f"{mse:.3f}", f"{mae:.3f}") == wanted


def test_split_by_rows_shares_and_times():
    series = ragged(100, 57)
    by_rows = forecast.split(series, 30, 20, 5)
    assert by_rows.train.tolist() == [[0, 30], [100, 130]]
    assert by_rows.validation.tolist() == [[30, 50], [130, 150]]
    assert by_rows.test.tolist() == [[50, 55], [150, 155]]
    # as Autoformer's loader: int(.7 n), the rest, int(.2 n)
    shares = forecast.split(series, 0.7, None, 0.2)
    assert np.diff(shares.train).ravel().tolist() == [70, 39]
    assert np.diff(shares.validation).ravel().tolist() == [10, 7]
    assert shares.test.tolist() == [[80, 100], [146, 157]]
    late = forecast.from_arrays(
        ["a", "b", "c"], [np.zeros(10), np.zeros(4), np.zeros(3)], start=[0, 3, 20]
    )
    times = forecast.split_by_time(late, 5, 8)
    assert times.train.tolist() == [[0, 5], [10, 12], [14, 14]]
    assert times.validation.tolist() == [[5, 8], [12, 14], [14, 14]]
    assert times.test.tolist() == [[8, 10], [14, 14], [14, 17]]
    assert forecast.split_by_time(late, 5, 8, 9).test.tolist() == [[8, 9], [14, 14], [14, 14]]
    days = forecast.from_arrays(["a"], [np.zeros(400)], start="2023-01-01", frequency="D")
    months = forecast.split_by_time(days, "2023-11-01", "2024-01-01", "2024-02-01")
    assert [rows.tolist() for rows in months] == [[[0, 304]], [[304, 365]], [[365, 396]]]


def test_a_fixed_origin_is_the_last_horizon():
    series = ragged(30, 12, 20)
    (fold,) = forecast.backtest(series, 5, 4)
    assert pairs(fold.test) == [(0, 26), (1, 38), (2, 58)]
    assert fold.train.tolist() == [[0, 26], [30, 38], [42, 58]]
    assert (fold.validation[:, 0] == fold.validation[:, 1]).all()


@pytest.mark.parametrize("refit", [None, 1, 2, 5])
def test_rolling_origins_score_each_once_and_learn_from_before(refit):
    series = ragged(60, 45)
    folds = forecast.backtest(series, 8, 6, count=5, step=3, refit=refit, validation=4)
    assert len(folds) == {None: 1, 1: 5, 2: 3, 5: 1}[refit]
    scored = sorted(pair for fold in folds for pair in pairs(fold.test))
    assert scored == [
        (s, end - 6 - 3 * k) for s, end in [(0, 60), (1, 105)] for k in (4, 3, 2, 1, 0)
    ]
    for fold in folds:
        first = [min(o for s, o in pairs(fold.test) if s == of) for of in (0, 1)]
        assert fold.train[:, 0].tolist() == [0, 60]
        assert fold.train[:, 1].tolist() == [o - 4 for o in first]
        assert fold.validation.tolist() == [[o - 4, o] for o in first]


def test_backtest_leaves_out_short_series_if_asked():
    series = ragged(30, 9, 20)
    with pytest.raises(ValueError, match=r"at least 13 rows .*, got 9 in 's1'.*1 of 3 series"):
        forecast.backtest(series, 5, 4, count=2)
    (fold,) = forecast.backtest(series, 5, 4, count=2, short="skip")
    assert pairs(fold.test) == [(0, 22), (0, 26), (2, 51), (2, 55)]


def test_padded_series_have_windows_and_the_same_end():
    series = ragged(3, 10)
    with pytest.raises(
        ValueError, match=r"at least 7 rows up to .* for context=5 and .*, got 3 in 's0'"
    ):
        forecast.origins(series, 5, 2)
    long = forecast.padded(series, 7)
    assert long.lengths.tolist() == [7, 10] and long.start.tolist() == [-4, 0]
    assert long.values[:7, 0].tolist() == [0, 0, 0, 0, 0, 1, 2]
    np.testing.assert_array_equal(long.future(2), series.future(2))
    assert pairs(forecast.origins(long, 5, 2)) == [(0, 5), (1, 12), (1, 13), (1, 14), (1, 15)]
    days = forecast.from_arrays(["a"], [[1, 2]], start="2024-03-31", frequency="ME")
    assert str(forecast.padded(days, 3).start[0])[:10] == "2024-02-29"


def test_cut_keeps_the_rows_of_a_range():
    series = forecast.from_arrays(["a", "b"], [range(9), range(9, 14)], start=[0, 100])
    split = forecast.split(series, None, 1, 3)
    test = forecast.cut(series, split.test)
    assert test.values[:, 0].tolist() == [6, 7, 8, 11, 12, 13] and test.start.tolist() == [6, 102]
    assert test.offsets.tolist() == [0, 3, 6] and test.known.shape == (6, 0)
    with pytest.raises(
        ValueError, match="rows must have at least 1 row of each series, got none of 'a'"
    ):
        forecast.cut(series, np.array([[3, 3], [9, 14]]))


def test_gather_against_slices_under_jit_and_in_a_loop():
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    origin = np.array([4, 44, 17, 17], np.int32)
    for start, stop in [(-4, 0), (0, 6), (-4, 6)]:
        wanted = np.stack([values[o + start : o + stop] for o in origin])
        got = jax.jit(gather, static_argnums=(2, 3))(values, origin, start, stop)
        np.testing.assert_array_equal(got, wanted)

    def add(i, total):
        return total + gather(values, jax.lax.dynamic_slice_in_dim(origin, i, 1), -2, 1)

    total = jax.lax.fori_loop(0, 4, add, jnp.zeros((1, 3, 3)))
    wanted = sum(values[o - 2 : o + 1] for o in origin)
    np.testing.assert_allclose(total[0], wanted, rtol=1e-6, atol=1e-6)
    assert gather(jnp.zeros((50, 0)), origin, -4, 6).shape == (4, 10, 0)


def test_gradients_reach_the_rows_of_the_window_alone():
    origin = jnp.array([5, 12])
    grads = jax.grad(lambda v: gather(v, origin, -3, 0).sum())(jnp.zeros((20, 2)))
    assert np.flatnonzero(grads[:, 0]).tolist() == [2, 3, 4, 9, 10, 11]


def test_bad_arguments_are_named():
    series = ragged(30, 12)
    split = forecast.split(series, None, 2, 4)
    other = ragged(10, 12)
    days = forecast.from_arrays(["a"], [[1, 2]], start="2024-01-01", frequency="D")
    for call, message in [
        (
            lambda: forecast.split(series, 20, 0, 0),
            "series must have at least 20 rows .*, got 12 in 's1'",
        ),
        (lambda: forecast.split(series, None, None, 2), "must be None, got train, validation"),
        (
            lambda: forecast.split(series, 1.5, 0, 0),
            "train must be a number of rows, a share .*, got 1.5",
        ),
        (
            lambda: forecast.split(series, 0.7, 0.2, 0.2),
            "series must have at least 33 rows .*, got 30 in 's0'",
        ),
        (
            lambda: forecast.origins(series, 1, 5, split.test),
            "at least 31 rows up to .*, got 30 in 's0'",
        ),
        (lambda: forecast.origins(series, 40, 5, short="skip"), "got 30 in 's0'.* 2 of 2 series"),
        (lambda: forecast.cut(other, split.test), "rows must be a range within each of these 2"),
        (
            lambda: forecast.origins(other, 1, 1, split.test),
            "rows must be a range within each of these 2",
        ),
        (lambda: forecast.origins(series, 1, 0), "horizon at least 1, got context=1 and horizon=0"),
        (lambda: forecast.origins(series, 1, 1, stride=0), "stride must be at least 1 .*, got 0"),
        (
            lambda: forecast.split_by_time(series, "2024-01-01", "2024-02-01"),
            "must be times such as 0, got",
        ),
        (
            lambda: forecast.split_by_time(days, 1, 2),
            "must be times such as 2024-01-01T00:00:00, got",
        ),
        (lambda: forecast.split_by_time(series, 9, 5), r"must be rising times, got \[9, 5\]"),
        (lambda: forecast.backtest(series, 1, 1, count=0), "must be at least 1 .*, got count=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("known", [False, True])
def test_partial_windows_against_a_loop(known):
    """Of each origin with a context the steps in its range; known covariates need all rows."""
    series = ragged(20, 9, 6)
    if known:
        widened = np.ones((35, 1), np.float32)
        series = replace(series, known=widened, known_names=("price",))
    rows = np.array([[0, 17], [22, 29], [29, 35]])
    wanted = []
    for s, (begin, end) in enumerate(rows):
        for origin in range(begin, end):
            last = series.offsets[s + 1]
            if origin - 4 >= series.offsets[s] and (not known or origin + 3 <= last):
                wanted.append((s, origin, min(3, end - origin)))
    found = forecast.origins(series, 4, 3, rows, partial=True, short="skip")
    columns = (found[name].tolist() for name in ("series", "origin", "steps"))
    assert list(zip(*columns, strict=True)) == wanted
    one = forecast.from_arrays(["one"], [range(4)])
    with pytest.raises(ValueError, match=r"at least 5 rows .* context=4 and horizon=3, got 4"):
        forecast.origins(one, 4, 3, partial=True)
