"""What the rooms' jobs share: blends, updates, and how many epochs a time allows."""

import numpy as np
import pytest

import jaxops as jo
from jaxops import tabular
from jaxops.model import selection
from jaxops.train import loop
from jaxops.trust.evaluation import Evaluation

TASK = tabular.regressor(tabular.MLP((2,)), features=1)
ROWS = {"features": np.zeros((600, 1), np.float32), "label": np.zeros(600, np.float32)}


def recipe(count, left, epochs=12, **options):
    return {
        "optimizer": jo.optim.sgd(0.1),
        "batch_size": 6,
        "epochs": epochs,
        "left": left,
    } | options


@pytest.mark.parametrize(
    ("seconds", "given", "epochs"),
    [
        (7.0, {}, 6),  # 600 examples of 600 rows a second, and a seventh of the time is left over
        (70.0, {}, 12),
        (0.1, {}, 1),
        (7.0, {"epochs": 9}, 9),
        (7.0, {"checkpoints": "runs/here"}, 12),
    ],
)
def test_epochs_that_a_time_allows(monkeypatch, seconds, given, epochs):
    calls = []

    def fit(task, columns, reports, **settings):
        calls.append(settings)
        reports({"examples_per_second": 600.0})

    monkeypatch.setattr(loop, "fit", fit)
    monkeypatch.setattr(selection.time, "monotonic", lambda: 5.0)  # the steps take no time
    given = {"state": "mine", "metrics": "mine", **given}
    found = selection.settings_within(seconds, TASK, ROWS, recipe, given)
    assert found["epochs"] == epochs and found["left"] == seconds
    assert len(calls) == (1 if len(given) == 2 else 0)
    for call in calls:  # it starts anew, and validates nothing
        assert (call["steps"], call["epochs"]) == (8, None)
        assert call["state"] is None and call["metrics"] is None


def test_the_blend_of_two_that_err_apart_is_better(capsys):
    target = np.linspace(-1, 1, 40).astype(np.float32)

    def fit(shift, left):
        outputs = target + np.float32(shift)
        state = jo.init_state(TASK, jo.optim.sgd(0.1), 0, {n: v[:1] for n, v in ROWS.items()})
        scored = Evaluation(
            "row", np.arange(40), {"mse": (outputs - target) ** 2}, parts={"outputs": outputs}
        )
        return jo.Model(TASK, state, None, {"validation": scored.figures()}), scored

    def loss(outputs):
        return float(((outputs - target) ** 2).mean())

    model = selection.best_of([1.0, -1.0, 3.0], fit, "mse", loss, 60.0, progress=True)
    assert isinstance(model.task, selection.Blend) and model.task.weights == (0.5, 0.5)
    assert model.about["validation"] == {"mse": pytest.approx(0.0, abs=1e-12)}
    assert "blend: mse 0.0000, weights 0.5, 0.5, 0" in capsys.readouterr().out
    alone = selection.best_of([1.0, 2.0], fit, "mse", None, 60.0, progress=False)
    assert alone.task is TASK and alone.about["methods"] == {"1: float": 1.0, "2: float": 4.0}
    with pytest.raises(ValueError, match="method must be at least 1, got an empty list"):
        selection.best_of([], fit, "mse", loss, 60.0, progress=False)
