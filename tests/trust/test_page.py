"""Pictures of an evaluation: which there are, and that they show its numbers."""

import numpy as np
import pytest

from jaxops.trust.evaluation import Evaluation, of_classes
from jaxops.trust.page import page, pictures

RNG = np.random.default_rng(0)


def test_of_numbers():
    target = RNG.normal(size=30)
    parts = {"predicted": target + 1, "target": target}
    drawn = pictures(Evaluation("row", np.arange(30), {"mae": np.ones(30)}, parts=parts))
    assert list(drawn) == ["predicted and true values", "values of the rows"]
    points = drawn["predicted and true values"].axes[0].lines[0].get_xydata()
    np.testing.assert_array_equal(points, np.stack([target, target + 1], 1))


def test_of_forecasts():
    target, mae = RNG.normal(size=(5, 4, 2)), RNG.uniform(size=(5, 4))
    parts = {"forecast": target + 1, "target": target}
    ids = np.array(["a", "b", "c", "d", r"$\x$"], object)  # no formula
    scored = Evaluation("window", ids, {"mae": mae, "mase": mae[:, 0]}, parts=parts)
    drawn = pictures(scored)
    assert list(drawn) == ["forecasts", "by step ahead", "values of the windows"]
    panels = drawn["forecasts"].axes
    assert [axes.get_title() for axes in panels] == [
        "a, first channel", "c, first channel", r"\$\x\$, first channel"
    ]  # fmt: skip
    np.testing.assert_array_equal(panels[1].lines[1].get_ydata(), target[2, :, 0] + 1)
    (steps,) = drawn["by step ahead"].axes
    np.testing.assert_allclose(steps.lines[0].get_ydata(), mae.mean(0))
    assert page("sales", {}, scored).count("<img") == 3


@pytest.mark.parametrize(("count", "confusion"), [(3, True), (101, False)])
def test_of_classes(count, confusion):
    p = RNG.dirichlet(np.ones(count), 40)
    drawn = pictures(of_classes("text", np.arange(40), p, RNG.integers(0, count, 40)))
    assert ("confusion" in drawn) is confusion and "ROC curve" not in drawn
    assert "reliability" in drawn
