"""The page of an audit: its figures are those of the parts, and what does not apply is named."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import jaxops as jo
from jaxops import fairness, forecast, robustness, tabular, text, vision
from jaxops.customers.reader import LogReader
from jaxops.fairness.rates import wilson
from jaxops.robustness.auditing import taken
from jaxops.robustness.labelled import labelled
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
    assert found.sections["Robustness: not measured"].startswith("missing: ")
    (told,) = found.sections["Conformal coverage"]
    assert told["method"] == "residual" and 0.6 < told["coverage"] <= 1


def test_labels_of_a_folder_of_images(tmp_path):
    task = vision.classifier(vision.MLP((2,), classes=2), (2, 2, 1), classes=("cat", "dog"))
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, {"image": np.zeros((1, 2, 2, 1), np.uint8)})
    model = jo.Model(task, state, vision.ImageReader((2, 2), 1))
    for name, color in (("cat", 10), ("cat", 20), ("dog", 30)):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("L", (2, 2), color).save(tmp_path / name / f"{color}.png")
    images, labels = labelled(model, tmp_path)
    assert images[:, 0, 0, 0].tolist() == [10, 20, 30] and images.dtype == np.uint8
    assert labels.tolist() == ["cat", "cat", "dog"]


@pytest.mark.parametrize("many", [False, True])
def test_labels_of_texts(many, tmp_path):
    read = text.NGrams(32, 32)
    task = text.classifier(text.NGramBag(32, classes=2), read.context, ("card", "pin"), many)
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, read(["12"]))
    model = jo.Model(task, state, text.TextReader(read, separator=";" if many else None))
    own = ["pin", "card", "card;pin" if many else "card"]
    table = pd.DataFrame({"text": ["12", "007", "lost"], "label": own})
    table.to_csv(tmp_path / "texts.csv", index=False)
    rows, labels = labelled(model, tmp_path / "texts.csv")
    assert rows["text"].tolist() == ["12", "007", "lost"]  # and no numbers
    assert labels.tolist() == ([[0, 1], [1, 0], [1, 1]] if many else own)


def test_rows_of_a_file_have_numbers_that_can_be_corrupted(model, tmp_path):
    held = rows(60, 1)
    pd.DataFrame(held).to_csv(tmp_path / "held.csv", index=False)
    table, labels = labelled(model, tmp_path / "held.csv")
    assert labels.tolist() == held["paid"].tolist()
    np.testing.assert_array_equal(table["income"], held["income"])
    own = robustness.corrupted(model, held, held["paid"], kinds=["outliers"], levels=[5])
    for source in (table, tmp_path / "held.csv"):
        found = robustness.corrupted(model, source, labels, kinds=["outliers"], levels=[5])
        np.testing.assert_array_equal(found.values["outliers", 5], own.values["outliers", 5])


def test_text_of_a_file_stays_text(tmp_path):
    """Texts that could be read as booleans are what the model has learned from."""
    table = {"plan": np.tile(["true", "false"], 40), "left": np.tile(["yes", "no"], 40),
             "age": np.arange(80) % 7}  # fmt: skip
    file = tmp_path / "rows.csv"
    pd.DataFrame(table).to_csv(file, index=False)
    model = tabular.fit(file, tabular.MLP((4,)), label="left", epochs=1, progress=False)
    read, labels = labelled(model, file)
    assert read["plan"].tolist() == table["plan"].tolist() and labels.tolist() == [*table["left"]]
    own, found = (
        robustness.corrupted(model, rows, table["left"], kinds=["outliers"], levels=[1])
        for rows in (table, file)
    )
    np.testing.assert_array_equal(found.values["outliers", 1], own.values["outliers", 1])


def sales(days):
    """Two series of one week each that repeat, of which the second ends a day earlier."""
    times = pd.date_range("2024-01-01", periods=days).astype(str)
    parts = [{"id": "a", "time": times, "value": np.arange(days) % 7.0},
             {"id": "b", "time": times[:-1], "value": np.arange(days - 1) % 7.0 + 10}]  # fmt: skip
    return pd.concat(map(pd.DataFrame, parts), ignore_index=True)


def test_forecasts_are_audited_on_the_last_rows(tmp_path):
    model = forecast.fit(sales(42), forecast.NLinear(14, 3), horizon=3, levels=(), epochs=1,
                         fill="linear", progress=False)  # fmt: skip
    table = sales(42)
    table.to_csv(tmp_path / "sales.csv", index=False)
    history, labels = labelled(model, tmp_path / "sales.csv")
    assert labels[:, :, 0].tolist() == [[4, 5, 6], [13, 14, 15]]  # days 39 to 41, and 38 to 40
    found = robustness.audit(model, table, levels=[5])
    wanted = np.abs(model.predict(history).mean - labels).mean()
    assert found.sections["Absolute error"][0]["absolute error"] == pytest.approx(wanted)
    assert {line["kind"] for line in found.sections["Robustness"]} == {"clean", "spikes", "gaps"}
    assert found.sections["Explanations"][0]["rows"] == 2  # of all rows of both series
    with pytest.raises(ValueError, match=r"rows must be in the order of time .*, got 1 earlier"):
        labelled(model, table.iloc[[1, 0, *range(2, len(table))]])
    ending = replace(model, reader=replace(model.reader, end="2024-02-11", fill="zero"))
    with pytest.raises(ValueError, match=r"rows must have values at the steps .* series 'a' from"):
        labelled(ending, table)


def test_a_model_of_another_room_is_refused():
    model = jo.Model("a closed form", None, LogReader())
    with pytest.raises(ValueError, match=r"labels must be given .* one of the room 'customers'"):
        robustness.audit(model, {"customer": ["a"], "time": [1]})
