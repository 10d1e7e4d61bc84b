"""Finished models that answer with calibrated probabilities, sets and intervals."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import pandas as pd
import pytest

import jaxops as jo
from jaxops import compress, forecast, tabular, text, uncertainty, vision
from jaxops.fairness.thresholding import ByGroup
from jaxops.model.export import export
from jaxops.serve import answers
from jaxops.serve.readers import inputs_of
from jaxops.trust import conformal as c
from jaxops.trust.calibrators import Isotonic
from jaxops.uncertainty.answers import seen

PLANS = ("basic", "free", "pro")


def customers(rows, seed):
    """Plan (three classes) and spend, by age and region; the region changes the noise."""
    rng = np.random.default_rng(seed)
    age, region = rng.uniform(20, 70, rows), rng.choice(["north", "south"], rows)
    noise = rng.normal(size=rows) * np.where(region == "south", 15, 3)
    plan = np.array(PLANS, object)[np.digitize(age + noise, [35, 55])]
    return pd.DataFrame({"age": age, "region": region, "plan": plan, "spend": age + noise})


@pytest.fixture(scope="module")
def classifier():
    known = customers(400, 0).drop(columns=["spend", "region"])
    return tabular.fit(known, tabular.MLP((8,)), label="plan", epochs=30, progress=False)


@pytest.fixture(scope="module")
def quantiles():
    known = customers(400, 0).drop(columns=["plan", "region"])
    return tabular.fit(known, tabular.MLP((8,)), label="spend", target="quantiles",
                       levels=(0.1, 0.5, 0.9), epochs=20, progress=False)  # fmt: skip


def told(model, path, data):
    """The answer of the model, and of the file that keeps it."""
    jo.save(path, model)
    return model.predict(data), jo.load(path).predict(data)


@pytest.mark.parametrize(("method", "penalty", "free"), [("lac", 0, 0), ("aps", 0, 0),
                                                         ("aps", 0.1, 1)])  # fmt: skip
def test_sets_are_those_of_the_arrays_and_are_kept(classifier, tmp_path, method, penalty, free):
    rows, new = customers(400, 1), customers(300, 2)
    sure = uncertainty.conformal(classifier, rows, rows["plan"], 0.9, method, None, False,
                                 penalty, free)  # fmt: skip
    answer, loaded = told(sure, tmp_path / "m.safetensors", new)
    assert type(answer) is type(loaded) is uncertainty.Sets
    assert answer.sets.tolist() == loaded.sets.tolist()
    np.testing.assert_array_equal(answer.probabilities, loaded.probabilities)
    before = [classifier.predict(x) for x in (rows, new)]
    number = np.array([PLANS.index(name) for name in rows["plan"]])
    scores = [c.lac_scores(x.probabilities) if method == "lac"
              else c.aps_scores(x.probabilities, None, penalty, free) for x in before]  # fmt: skip
    inside = scores[1] <= c.margin(c.own_scores(scores[0], number), 0.9)
    wanted = [{PLANS[k] for k in np.flatnonzero(row)} for row in inside]
    assert [set(one) for one in answer.sets] == wanted
    assert answer.labels.tolist() == before[1].labels.tolist()
    covered = np.mean([name in one for name, one in zip(new["plan"], answer.sets)])
    assert 0.84 < covered < (0.97 if method == "lac" else 1)
    if method == "aps" and not penalty:
        assert all(one[0] == label for one, label in zip(answer.sets, answer.labels))
    told_frame = answer.frame()
    assert told_frame["set"][0] == "; ".join(answer.sets[0])
    assert told_frame["size"].tolist() == [len(one) for one in answer.sets]


def test_groups_and_classes_have_margins_of_their_own(classifier, tmp_path):
    """The region is no feature of the model, but a column of what it is asked."""
    rows, new = customers(600, 1), customers(2000, 2)
    plain = uncertainty.conformal(classifier, rows, rows["plan"])
    by_region = uncertainty.conformal(classifier, rows, rows["plan"], group="region")
    by_class = uncertainty.conformal(classifier, rows, rows["plan"], by_class=True)

    def covered(model, some):
        sets = model.predict(new).sets
        return np.mean([name in one for name, one in zip(new["plan"][some], sets[some])])

    south = np.flatnonzero(new["region"] == "south")
    assert covered(plain, south) < 0.87 < covered(by_region, south)
    for name in PLANS:
        assert covered(by_class, np.flatnonzero(new["plan"] == name)) > 0.85
    assert by_class.reader.margins.keys() == set(PLANS)
    new.to_csv(tmp_path / "new.csv", index=False)
    answer, loaded = told(by_region, tmp_path / "m.safetensors", str(tmp_path / "new.csv"))
    assert answer.sets.tolist() == loaded.sets.tolist() == by_region.predict(new).sets.tolist()
    # a server asks for the column too
    asked = {"rows": new[["age", "region"]][:20].to_dict("records")}
    given = inputs_of(by_region).read(asked, most=100)
    assert by_region.predict(given.data).sets.tolist() == answer.sets[:20].tolist()
    with pytest.raises(
        ValueError, match=r"groups must be among north, south.* got 'east' in row 0"
    ):
        by_region.predict(new.assign(region="east"))
    with pytest.raises(ValueError, match="with the column 'region' of the groups, got DataFrame"):
        by_region.predict(new.drop(columns="region"))


def test_intervals_of_quantiles(quantiles, tmp_path):
    rows, new = customers(400, 3), customers(400, 4)
    before = [quantiles.predict(x).values for x in (rows, new)]
    for method in ("cqr", "scaled"):
        sure = uncertainty.conformal(quantiles, rows, rows["spend"], 0.9, method)
        answer, loaded = told(sure, tmp_path / "m.safetensors", new)
        for one, other in zip(answer, loaded):
            np.testing.assert_array_equal(one, other)
        if method == "cqr":
            ends = [(x[:, 0].astype(float), x[:, 2].astype(float)) for x in before]
            wanted = c.conformal_quantiles(ends[1], ends[0], rows["spend"], 0.9)
        else:
            spread = [x[:, 2].astype(float) - x[:, 0] for x in before]
            wanted = c.split_conformal(before[1][:, 1], before[0][:, 1], rows["spend"].to_numpy(),
                                       0.9, (spread[1], spread[0]))  # fmt: skip
        np.testing.assert_allclose(answer.low, wanted.low, rtol=1e-6)
        np.testing.assert_allclose(answer.high, wanted.high, rtol=1e-6)
        inside = (answer.low <= new["spend"]) & (new["spend"] <= answer.high)
        assert 0.84 < inside.mean() < 0.96
        assert answer.frame().columns.tolist() == ["id", "value", "low", "high"]


@pytest.mark.slow
def test_values_and_monte_carlo():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)).astype(np.float32)
    y = x[:, 0] + 0.3 * rng.normal(size=400)
    task = tabular.regressor(tabular.MLP((8,), dropout=0.2), features=2)
    columns = {"features": x[:200], "label": y[:200].astype(np.float32)}
    state = jo.fit(task, columns, optimizer=jo.optim.adam(1e-2), batch_size=50, epochs=10,
                   progress=False)  # fmt: skip
    model = jo.Model(task, state)
    sure = uncertainty.conformal(model, x[200:300], y[200:300], 0.8)
    answer = sure.predict(x[300:])
    size = c.margin(np.abs(model.predict(x[200:300]).astype(float) - y[200:300]), 0.8)
    np.testing.assert_allclose(answer.high - answer.values, size, rtol=1e-5)
    sampled = jo.Model(jo.monte_carlo(task, samples=20), state)
    scaled = uncertainty.conformal(sampled, x[200:300], y[200:300], 0.8)
    assert scaled.reader.method == "scaled"
    spread = sampled.predict(x[300:])["std"]
    wide = scaled.predict(x[300:])
    np.testing.assert_allclose((wide.high - wide.low) / 2, scaled.reader.margins[""] * spread,
                               rtol=1e-4)  # fmt: skip


@pytest.mark.slow
def test_texts_and_several_labels():
    rows = [
        ("my card is lost", ["card"]),
        ("a new pin", ["pin"]),
        ("card and pin", ["card", "pin"]),
        ("the card", ["card"]),
        ("pin please", ["pin"]),
    ] * 12
    table = {"text": [one for one, _ in rows], "label": [two for _, two in rows]}
    bag = text.NGramBag(256, 2, width=4)
    model = text.fit(table, bag, epochs=20, progress=False)
    sure = uncertainty.conformal(model, table, table["label"], coverage=0.8)
    answer = sure.predict(table)
    share = [len(set(own) - set(one)) / len(own) for own, one in zip(table["label"], answer.sets)]
    assert np.mean(share) <= 0.2 and answer.labels.tolist() == answer.sets.tolist()
    assert sure.reader.method == "risk"
    target = np.array([["card" in own, "pin" in own] for own in table["label"]])
    again = uncertainty.conformal(model, table, target, coverage=0.8)
    assert again.reader.margins == sure.reader.margins
    one_each = {"text": table["text"], "label": [own[0] for own in table["label"]]}
    single = text.fit(one_each, bag, epochs=20, progress=False)
    sure = uncertainty.conformal(single, table["text"], one_each["label"])
    assert all(isinstance(name, str) for one in sure.predict(["my card"]).sets for name in one)


def test_calibrated_then_conformal(classifier, tmp_path):
    rows, more, new = customers(500, 5), customers(300, 6), customers(50, 7)
    model = uncertainty.calibrated(classifier, rows, rows["plan"], "isotonic")
    answer, loaded = told(model, tmp_path / "m.safetensors", new)
    np.testing.assert_array_equal(answer.probabilities, loaded.probabilities)
    number = np.array([PLANS.index(name) for name in rows["plan"]])
    curve = Isotonic.fit(classifier.predict(rows).probabilities, number)
    wanted = curve(classifier.predict(new).probabilities)
    np.testing.assert_allclose(answer.probabilities, wanted, rtol=1e-6)
    assert answer.labels.tolist() == [PLANS[k] for k in wanted.argmax(1)]
    sure = uncertainty.conformal(model, more, more["plan"])
    both, again = told(sure, tmp_path / "both.safetensors", new)
    np.testing.assert_array_equal(both.probabilities, answer.probabilities)
    assert both.sets.tolist() == again.sets.tolist()
    assert {"calibration", "conformal"} <= sure.about.keys()
    assert sure.reader.describe()["conformal"] == "lac, coverage 0.9"
    # they are served: the fields of the request are those of the model before
    assert inputs_of(sure).schema() == inputs_of(classifier).schema()
    assert json.loads(json.dumps(answers.plain(both)))["sets"] == [list(x) for x in both.sets]
    assert sure.room == "tabular" and sure.reader.streams


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_images_without_a_reader(method, tmp_path):
    rng = np.random.default_rng(0)
    label = np.arange(60) % 2
    images = (rng.integers(0, 100, (60, 2, 2, 1)) + 100 * label[:, None, None, None]).astype(
        np.uint8
    )
    task = vision.classifier(vision.MLP((4,), classes=2), (2, 2, 1), ("dark", "bright"))
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, {"image": images})
    model = jo.Model(task, state)
    names = np.array(["dark", "bright"])[label]
    after, loaded = told(uncertainty.calibrated(model, images, names, method),
                         tmp_path / "m.safetensors", images)  # fmt: skip
    np.testing.assert_array_equal(after, loaded)
    assert after.shape == (60, 2) and after.dtype == np.float32
    sure = uncertainty.conformal(model, images, names)
    assert len(sure.predict(images).sets) == 60


def test_layers_and_logits():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(37, 3)).astype(np.float32)
    task = tabular.classifier(tabular.MLP((6, 5), outputs=3), features=3, classes=("a", "b", "c"))
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, {"features": x})
    model = jo.Model(task, state)
    told = uncertainty.hidden(model, x, batch_size=16)
    params = jax.tree.map(np.asarray, state.params)
    inside = np.maximum(x @ params["hidden_0"]["kernel"] + params["hidden_0"]["bias"], 0)
    inside = np.maximum(inside @ params["hidden_1"]["kernel"] + params["hidden_1"]["bias"], 0)
    np.testing.assert_allclose(told.features, inside, atol=1e-5)
    logits = inside @ params["logits"]["kernel"] + params["logits"]["bias"]
    np.testing.assert_allclose(told.logits, logits, atol=1e-5)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(model.predict(x), p, atol=1e-5)
    named = uncertainty.hidden(model, x, layer="logits")
    np.testing.assert_array_equal(named.features, told.logits)
    with pytest.raises(ValueError, match=r"layer must be one of hidden_0, .*, logits, got 'last'"):
        uncertainty.hidden(model, x, layer="last")
    members = tabular.classifier(tabular.TabM((4,), members=2), features=3)
    other = jo.Model(members, jo.init_state(members, jo.optim.sgd(0.1), 0, {"features": x}))
    with pytest.raises(ValueError, match="layer must be given for a network that does not end"):
        uncertainty.hidden(other, x)


def test_models_and_settings_that_do_not_fit(classifier, quantiles, tmp_path):
    rows = customers(40, 8)
    plan, spend = rows["plan"], rows["spend"]
    sure = uncertainty.conformal(classifier, rows, plan, 0.8)
    series = forecast.from_arrays(["a"], [np.arange(50.0)])
    ahead = forecast.forecast(forecast.Baseline("repeat_last"), series, 2)
    fair = dataclasses.replace(classifier, reader=ByGroup(classifier.reader, ("region",), {}, 1))
    wrap, calibrate = uncertainty.conformal, uncertainty.calibrated
    cases = (
        (lambda: wrap(classifier, rows[:5], plan[:5]), "rows of data must be at least 9 .* got 5"),
        (lambda: wrap(classifier, rows, plan, 0.99), "must be at least 99 for a coverage of 0.99"),
        (lambda: wrap(classifier, rows, plan, 0.97, group="region"),
         r"rows of group 'north' must be at least 33 for a coverage of 0.97, got \d+"),
        (lambda: wrap(classifier, rows, plan.where(plan != "pro", "free"), by_class=True),
         "rows of group 'pro' must be at least 9 .* got 0"),
        (lambda: wrap(classifier, rows, plan, method="cqr"), "method must be lac or aps for a mo"),
        (lambda: wrap(classifier, rows, plan, penalty=0.1), "penalty and free must be 0"),
        (lambda: wrap(quantiles, rows, spend, by_class=True), "by_class must be .* quantiles"),
        (lambda: wrap(classifier, rows, plan, group="region", by_class=True), "by_class must be"),
        (lambda: wrap(classifier, rows, plan[:9]), r"must have shape \(40,\), .* got \(9,\)"),
        (lambda: wrap(classifier, rows, spend), r"labels must be among basic, free, pro, got"),
        (lambda: wrap(quantiles, rows, plan), "labels must be finite numbers, got '.*' in row 0"),
        (lambda: wrap(quantiles, rows, spend.where(rows.index != 3)), "got nan in row 3"),
        (lambda: wrap(sure, rows, plan), "must have no conformal margins yet"),
        (lambda: calibrate(sure, rows, plan), "must have no conformal margins"),
        (lambda: wrap(fair, rows, plan, 0.8), "must be without thresholds by group, whose labels"),
        (lambda: calibrate(fair, rows, plan), "must be without thresholds by group, whose labels"),
        (lambda: calibrate(quantiles, rows, spend), "must answer with one class .* got quantiles"),
        (lambda: calibrate(classifier, rows, plan, "splines"), "method must be one of temperature"),
        (lambda: seen(ahead, ()), "model must answer with the probabilities .* got Forecast"),
        (lambda: export(sure, tmp_path / "out"), "model must have its own reader to be exported"),
        (lambda: compress.low_rank(sure, rank=1), "must have no conformal margins, .* reader by"),
        (lambda: tabular.update(sure, rows.drop(columns="spend"), epochs=1), "of the tabular room"),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for call, match in cases:
            with pytest.raises(ValueError, match=match):
                call()
    whole = dataclasses.replace(sure, reader=sure.reader.reader)
    assert whole.predict(rows).labels.tolist() == classifier.predict(rows).labels.tolist()


def test_weights_of_a_shift_are_those_of_the_arrays(classifier, quantiles, tmp_path):
    """New customers are older: their age decides how much likelier they are among the new rows."""
    rows, new = customers(400, 1), customers(300, 2)
    w, w_new = (np.exp(table["age"].to_numpy() / 20) for table in (rows, new))
    for model, label in ((classifier, "plan"), (quantiles, "spend")):
        sure = uncertainty.conformal(model, rows, rows[label], 0.9, weights=w)
        jo.save(tmp_path / "m.safetensors", sure)
        answer = jo.load(tmp_path / "m.safetensors").predict(new, weights=w_new)
        before, raw = model.predict(rows), model.predict(new)
        if label == "plan":
            own = c.own_scores(1 - before.probabilities, np.searchsorted(PLANS, rows[label]))
            size = c.weighted_margins(own, w, w_new, 0.9)
            wanted = ((1 - raw.probabilities) <= size[:, None]).sum(1)
            assert [len(one) for one in answer.sets] == wanted.tolist()
        else:
            ends = before.values.min(1), before.values.max(1)
            own = c.quantile_scores(ends, rows[label].to_numpy())
            size = c.weighted_margins(own, w, w_new, 0.9)
            np.testing.assert_allclose(answer.high, raw.values.max(1) + size, rtol=1e-6)
        with pytest.raises(
            ValueError, match=r"weights must be \(300,\) numbers, .* got shape \(\)"
        ):
            sure.predict(new)
    plain = uncertainty.conformal(classifier, rows, rows["plan"])
    with pytest.raises(ValueError, match=r"weights must be None, .* none, got shape \(300,\)"):
        plain.predict(new, weights=w_new)
    with pytest.raises(ValueError, match=r"weights must be None for groups"):
        uncertainty.conformal(classifier, rows, rows["plan"], group="region", weights=w)
    with pytest.raises(ValueError, match=r"scores, weights and new_weights must have shapes"):
        uncertainty.conformal(classifier, rows, rows["plan"], weights=w[:5])
