"""The scores of a classifier on any sample of its rows, against scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from jaxops.trust.evaluation import of_classes

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
