"""The scores of a classifier on any sample of its rows, against scikit-learn's."""

from functools import partial

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from jaxops.trust.evaluation import Evaluation, of_classes

RNG = np.random.default_rng(0)
TARGET = RNG.integers(0, 2, 300)
SCORE = (TARGET * 0.1 + RNG.uniform(size=300) * 0.9).round(1)  # with many ties
ROWS = RNG.integers(0, 300, 300)  # a resample: some rows twice, some not at all


@pytest.mark.parametrize("rows", [np.arange(300), ROWS])
def test_figures_of_any_rows(rows):
    one = of_classes("row", np.arange(300), np.stack([1 - SCORE, SCORE], 1), TARGET)
    want = roc_auc_score(TARGET[rows], SCORE[rows])
    np.testing.assert_allclose(one.wholes["auc"](rows), want, rtol=1e-12)
    told = (SCORE > 0.5).astype(int)
    want = f1_score(TARGET[rows], told[rows], average="macro")
    np.testing.assert_allclose(one.wholes["macro_f1"](rows), want, rtol=1e-12)


def test_one_class_alone_has_no_area():
    one = of_classes("row", np.arange(3), np.full((3, 2), 0.5), np.ones(3, int))
    assert np.isnan(one.figures()["auc"])


def test_resamples_are_computed_once_and_are_those_of_a_loop():
    """Of 300 units in blocks of 3, the same for both models."""
    calls, x, noise = [0], RNG.normal(size=300), 0.1 * RNG.normal(size=300)

    def median(values, rows):
        calls[0] += len(rows) < 300 or (rows != np.arange(300)).any()
        return float(np.median(values[rows]))

    one, other = (
        Evaluation("row", np.arange(300), {}, {"median": partial(median, values)}, block=3)
        for values in (x, x + noise)
    )
    rng, drawn = np.random.default_rng(0), []
    for _ in range(500):
        rows = (rng.integers(0, 300, 100)[:, None] + np.arange(3)) % 300
        drawn.append([np.median(values[rows]) for values in (x, x + noise)])
    drawn = np.array(drawn)
    for _ in range(2):
        for k, each in enumerate((one, other)):
            want = (np.median((x, x + noise)[k]), *np.quantile(drawn[:, k], [0.05, 0.95]))
            assert each.interval("median", 0.9) == want
        pair, gaps = one.paired(other, "median", 0.9), drawn[:, 0] - drawn[:, 1]
        assert pair[1:3] == tuple(np.quantile(gaps, [0.05, 0.95]))
        assert pair.p == 2 * min((gaps <= 0).mean(), (gaps >= 0).mean())
    assert calls == [1000]
    assert one.part(np.arange(150)).interval("median") != one.interval("median")  # its own
