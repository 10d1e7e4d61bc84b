"""The page of an audit: its figures are those of the parts, and what does not apply is named."""

import numpy as np
import pytest

import jaxops as jo
from jaxops import fairness, robustness, tabular
from jaxops.fairness.rates import wilson
from jaxops.robustness.auditing import taken
from jaxops.trust.calibration import ece
from jaxops.uncertainty import conformal


def rows(count, seed):
    rng = np.random.default_rng(seed)
    table = {"income": rng.normal(size=count), "sex": rng.choice(["f", "m"], count)}
    return table | {"paid": np.where(table["income"] + rng.normal(size=count) > 0, "yes", "no")}


@pytest.fixture(scope="module")
def model():
    return tabular.fit(rows(400, 0), tabular.MLP((6,)), label="paid", drop=["sex"], epochs=10,
                       progress=False)  # fmt: skip


@pytest.mark.slow
def test_an_audit_has_the_figures_of_its_parts(model, tmp_path):
    held = rows(300, 1)
    found = robustness.audit(model, held, held["paid"], protected=["sex"], levels=[5], name="loans")
    answer = model.predict(held)
    right = answer.labels == held["paid"]
    assert found.sections["Accuracy"][0]["accuracy"] == pytest.approx(right.mean())
    number = (held["paid"] == "yes").astype(int)
    assert found.sections["Calibration"][0]["value"] == pytest.approx(
        ece(answer.probabilities, number)
    )
    order = np.random.default_rng(0).permutation(300)
    known = conformal(model, taken(held, order[:150]), held["paid"][order[:150]], 0.9)
    sets = known.predict(taken(held, order[150:])).sets
    hits = sum(a in b for a, b in zip(held["paid"][order[150:]], sets, strict=True))
    (told,) = found.sections["Conformal coverage"]
    assert told["coverage"] == pytest.approx(hits / 150)
    assert told["low"] == pytest.approx(float(wilson(np.array(hits), np.array(150))[0]))
    groups = fairness.report(model, held, protected=["sex"]).tables()
    assert found.sections["Fairness: Disparities"] == groups["Disparities"]
    kinds = {line["kind"] for line in found.sections["Robustness"]}
    refused = found.sections.get("Robustness: not measured", "")
    assert "outliers" in kinds and ("missing" in kinds) != ("missing: " in refused)
    assert {line["check"] for line in found.sections["Explanations"]} >= {"gap", "deletion"}
    page = found.write(tmp_path / "audit.html").read_text()
    assert "<h1>Audit of loans</h1>" in page and page.count("<img") == len(found.figures) == 3
    with pytest.raises(ValueError, match=r"path must end in \.html"):
        found.write(tmp_path / "audit.txt")
    with pytest.raises(ValueError, match=r"levels must be some of 1 to 5, got \[7\]"):
        robustness.audit(model, held, held["paid"], levels=[7])


def test_what_does_not_apply_is_named():
    task = tabular.regressor(tabular.MLP(()), features=2)
    x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, {"features": x})
    model = jo.Model(task, state)
    label = model.predict(x) + np.random.default_rng(1).normal(size=40)
    found = robustness.audit(model, x, label, levels=[5])
    assert next(iter(found.sections)) == "Absolute error"
    assert found.sections["Calibration"].startswith("Not done: model must answer with one class")
    assert found.sections["Fairness"] == "Not done: no protected columns were given."
    assert found.sections["Robustness: not measured"].startswith("missing: Not done: ")
    (told,) = found.sections["Conformal coverage"]
    assert told["method"] == "residual" and 0.6 < told["coverage"] <= 1
