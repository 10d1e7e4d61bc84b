"""Conformal intervals that follow a backtest, window by window."""

import numpy as np
import pytest
from small import adaptive_margins

from jaxops import forecast as f


@pytest.mark.parametrize("quantiles", [None, (0.1, 0.9)])
def test_a_backtest_is_followed_window_by_window(quantiles):
    """Against the recursion over one series, channel and step at a time."""
    rng = np.random.default_rng(8)
    walks = np.cumsum(rng.normal(size=(2, 200)), 1).astype(np.float32)
    series = f.from_arrays(["a", "b"], list(walks))
    H, stride, model = 3, 2, f.Baseline("repeat_last")
    rows = series.offsets[:-1, None]
    before = f.origins(series, 1, H, rows + np.array([[30, 100]]), stride=stride)
    after = f.origins(series, 1, H, rows + np.array([[100, 200]]), stride=stride)
    shuffled = rng.permutation(len(after["origin"]))
    after = {name: column[shuffled] for name, column in after.items()}
    found = f.adaptive_backtest(model, series, before, after, H, 0.8, 0.05, quantiles)
    for s in range(2):
        own = [
            {n: c[w["series"] == s] for n, c in w.items()}
            for w in (before, {n: c[np.argsort(shuffled)] for n, c in after.items()})
        ]
        asked = () if quantiles is None else quantiles
        calibration, test = (f.historical_forecasts(model, series, w, H, asked) for w in own)
        for h, delay in enumerate((1, 1, 2)):  # the target 3 steps ahead is known 2 windows later
            ends = [
                (x.mean[:, h, 0],) * 2 if quantiles is None else x.quantiles[:, h, 0].T
                for x in (calibration, test)
            ]
            missed = [
                np.maximum(low - x.target[:, h, 0], x.target[:, h, 0] - high)
                for x, (low, high) in zip((calibration, test), ends)
            ]
            margins, _ = adaptive_margins(*missed, 0.8, 0.05, delay)
            here = np.argsort(shuffled)[np.sort(after["series"]) == s]
            np.testing.assert_allclose(
                found.bounds.high[here, h, 0], ends[1][1] + margins, rtol=1e-5, atol=1e-5
            )
            np.testing.assert_allclose(
                found.bounds.low[here, h, 0], ends[1][0] - margins, rtol=1e-5, atol=1e-5
            )
    inside = (found.bounds.low <= found.target) & (found.target <= found.bounds.high)
    np.testing.assert_allclose(found.coverage, inside.mean((0, 2)))


def test_windows_that_cannot_be_followed():
    series = f.from_arrays(["a", "b"], np.arange(80.0).reshape(2, 40))
    windows = f.origins(series, 1, 3, stride=2)
    early, late = ({n: c[keep] for n, c in windows.items()} for keep in half(windows, 20))
    ask = lambda *w: f.adaptive_backtest(f.Baseline("drift"), series, *w, 3)  # noqa: E731
    with pytest.raises(
        ValueError, match=r"calibration must have targets known .*, got later ones for 2 series"
    ):
        ask(late, early)
    with pytest.raises(
        ValueError, match=r"calibration must have the same number .*, got \[1, 3\] windows"
    ):
        ask({n: np.append(c[:1], c[-3:]) for n, c in early.items()}, late)
    gap = np.arange(len(late["origin"])) % (len(late["origin"]) // 2) != 1
    with pytest.raises(ValueError, match=r"test must have one stride of at least 1, got \[2, 4\]"):
        ask(early, {n: c[gap] for n, c in late.items()})


def half(windows, row):
    step = windows["origin"] - 40 * windows["series"]
    return step + 3 <= row, step >= row
