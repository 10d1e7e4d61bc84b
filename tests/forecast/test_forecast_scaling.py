"""Covariates are scaled by the training rows, in training and in every forecast after it."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxops as jo
from jaxops import forecast as f

ROWS, TRAIN = 60, 40
RNG = np.random.default_rng(0)
RAIN, PRICE = 1000 + 10 * RNG.normal(size=(2, ROWS)), 5 + 2 * RNG.normal(size=(2, ROWS))
HOLIDAY, SIZE = (np.arange(ROWS) % 13 == 0) * np.ones((2, 1)), [80.0, 3000.0]


@pytest.fixture(scope="module")
def series():
    made = f.from_arrays(
        ["a", "b"],
        RNG.normal(size=(2, ROWS)),
        start="2024-01-01",
        frequency="D",
        past={"rain": RAIN},
        known={"price": PRICE, "holiday": HOLIDAY},
        static={"size": SIZE},
    )
    return f.calendar(made, ["day_of_week"])


@pytest.fixture(scope="module")
def by_hand(series):
    """The same series with covariates that NumPy has scaled."""

    def scaled(x, rows):
        return (x - x[:, rows].mean()) / x[:, rows].std()

    train = slice(TRAIN)
    known = series.known.copy()
    known[:, 0] = scaled(PRICE, train).ravel()
    size = np.array(SIZE)
    return replace(
        series,
        past=scaled(RAIN, train).reshape(-1, 1).astype(np.float32),
        known=known,
        static=((size - size.mean()) / size.std())[:, None].astype(np.float32),
    )


def train_rows(series):
    return f.split(series, TRAIN, None, 0).train


@pytest.mark.parametrize("kind", ["series", "global", "none"])
def test_a_task_holds_covariates_scaled_by_training_rows(series, by_hand, kind):
    scaling = f.scaling(series, kind, train_rows(series))
    module = f.Recurrent(8, 4, width=4)
    task = f.direct(module, series, scaling)
    first = {name: x[:1] for name, x in f.origins(series, 8, 4).items()}
    _, extra = task.init(jax.random.key(0), first)
    for name in ("past", "known", "static"):
        np.testing.assert_allclose(
            extra["series"][name], getattr(by_hand, name), rtol=1e-4, atol=1e-4
        )
    assert scaling.past.shape == (2, 1) and scaling.known.shape == (2, 3)
    if kind == "none":
        np.testing.assert_array_equal(extra["series"]["values"], series.values)


def test_a_saved_model_scales_what_it_is_given(series, by_hand, tmp_path):
    module = f.TiDE(8, 4, width=4, encoder=1, decoder=1, temporal=4)
    scaling = f.scaling(series, rows=train_rows(series))
    windows = f.origins(series, 8, 4)
    task = f.direct(module, series, scaling)
    state = jo.init_state(task, jo.optim.adam(1e-3), 0, {n: x[:1] for n, x in windows.items()})
    jo.save(tmp_path / "m", jo.Model(f.forecaster(module, state, series, scaling)))
    future, future_by_hand = series.known[:8].reshape(2, 4, 3), by_hand.known[:8].reshape(2, 4, 3)
    told = f.forecast(jo.load(tmp_path / "m"), series, future=future, levels=())
    bare = scaling._replace(past=None, known=None, static=None)  # as in files of before
    plain = f.forecaster(module, state, by_hand, bare)
    wanted = f.forecast(plain, by_hand, future=future_by_hand, levels=())
    np.testing.assert_allclose(told.mean, wanted.mean, rtol=1e-4, atol=1e-4)
    raw = f.forecast(replace(plain, scaling=bare), series, future=future, levels=())
    assert np.abs(raw.mean - wanted.mean).max() > 1  # what is not scaled is another forecast


def test_a_scaling_from_before_a_covariate_was_added(series):
    scaling = f.scaling(series, rows=train_rows(series))
    longer = f.calendar(series, ["month_of_year"])
    with pytest.raises(ValueError, match="scaling must be made with the 4 known covariates"):
        f.direct(f.Recurrent(8, 4, width=4), longer, scaling)
