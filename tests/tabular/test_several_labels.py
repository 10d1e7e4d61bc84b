"""Several labels of a row, held to scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

from jaxops import tabular
from jaxops.tabular.parts import Roles, parts_of

RNG = np.random.default_rng(0)
N = 240
AGE = RNG.uniform(20, 60, N)
PLAN = RNG.choice(["a", "b"], N).astype(object)
TABLE = {
    "customer": np.arange(N) + 7,
    "age": AGE,
    "plan": PLAN,
    "left": np.where(AGE + RNG.normal(0, 4, N) < 40, "yes", "no").astype(object),
    "complained": ((PLAN == "b") ^ (RNG.random(N) < 0.1)).astype(int),
}
LABELS = ["left", "complained"]
TRUE = np.stack([TABLE["left"] == "yes", TABLE["complained"] == 1], 1).astype(int)
OPTIONS = {"label": LABELS, "id": "customer", "progress": False}


@pytest.fixture(scope="module")
def model():
    """Of members with batches of their own."""
    module = tabular.TabM((8,), members=2, own_batches=True)
    return tabular.fit(TABLE, module, epochs=20, **OPTIONS)


def test_what_it_answers(model):
    answer = model.predict(TABLE)
    assert answer.probabilities.shape == (N, 2) and answer.ids.tolist() == [*TABLE["customer"]]
    names = np.stack([np.array(["no", "yes"], object), np.array(["0", "1"], object)])
    wanted = names[[0, 1], (answer.probabilities >= 0.5).astype(int)]
    np.testing.assert_array_equal(answer.labels, wanted)
    frame = answer.frame()
    assert [*frame] == ["id", "left", "complained", "p(left=yes)", "p(complained=1)"]
    assert frame["complained"].tolist() == wanted[:, 1].tolist()
    assert model.reader.describe()["label"] == "left, complained"
    few = {name: TABLE[name][:3] for name in ("customer", "age", "plan")}
    np.testing.assert_allclose(
        model.predict(few).probabilities, answer.probabilities[:3], atol=1e-6
    )


def test_its_figures_are_those_of_scikit_learn(model):
    scored, p = tabular.evaluate(model, TABLE), model.predict(TABLE).probabilities
    each = roc_auc_score(TRUE, p, average=None)
    told = (p >= 0.5).astype(int)
    wanted = {
        "accuracy": accuracy_score(TRUE, told),
        "log_loss": np.mean([log_loss(TRUE[:, i], p[:, i].astype(float)) for i in range(2)]),
        "macro_f1": f1_score(TRUE, told, average="macro"),
        "micro_f1": f1_score(TRUE, told, average="micro"),
        "auc": each.mean(),
        "auc(left)": each[0],
        "auc(complained)": each[1],
    }
    assert scored.figures() == pytest.approx(wanted, rel=1e-6) and each.min() > 0.8
    assert model.about["validation"].keys() == wanted.keys()
    low, high = scored.interval("auc(left)")[1:]
    assert low < each[0] < high
    one = {name: column[TRUE[:, 1] == 0] for name, column in TABLE.items()}
    figures = tabular.evaluate(model, one).figures()
    assert np.isnan(figures["auc(complained)"]) and figures["auc"] == figures["auc(left)"]


@pytest.mark.slow
def test_networks_in_folds_are_blended_and_trained_further(model):
    methods = [tabular.MLP(()), tabular.MLP((8,))]
    both = tabular.fit(TABLE, methods, folds=2, epochs=4, **OPTIONS)
    assert both.about["validation"]["log_loss"] <= min(both.about["methods"].values()) + 1e-9
    assert both.predict(TABLE).probabilities.shape == (N, 2)
    turned = {**TABLE, "complained": 1 - TABLE["complained"]}
    after = tabular.update(model, turned, epochs=20, progress=False)
    scored = [tabular.evaluate(one, turned).figures()["auc(complained)"] for one in (after, model)]
    assert scored[0] > 0.8 > 0.2 > scored[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": ["left"]}, r"label must be .* at least 2 different ones, got \['left'\]"),
        ({"label": 3}, "label must be a column's name, or a list of at least 2 .*, got 3"),
        ({"label": ["left", "left", "plan"]}, r"at least 2 different ones, got \['left', 'left', "),
        ({"label": ["left", "gone"]}, "label must be one of .*, got 'gone'"),
        ({"label": ["left", "age"]}, r"age must have 2 classes, .* several labels, got 240: "),
        ({"target": "counts"}, "target and classes must be left out for several .*, got 'counts'"),
        ({"drop": ["left"]}, "drop must be columns beside the label, got 'left' among them"),
        ({"method": tabular.HistGradientBoosting()}, "method must be a network for labels, got"),
        ({"method": tabular.ModernNCA()}, "method must be another than ModernNCA for labels"),
    ],
)
def test_what_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        tabular.fit(TABLE, **{"method": tabular.MLP(()), **OPTIONS, **change})


def test_rows_are_held_out_of_each_combination():
    left, complained = np.arange(400) % 10 == 0, np.arange(400) % 8 == 0  # 10 rows of 400 are both
    table = {"age": RNG.uniform(20, 60, 400), "left": left, "complained": complained}
    table["moved"] = np.arange(400) == 31  # one row, which has to be trained on or refused
    roles = Roles(("left", "complained"), None, ("moved",), None, None, None, ())
    for seed in range(4):
        held = parts_of(table, roles, 0.2, None, seed, False).targets()[1]
        assert [len(held), *held.sum(0), held.all(1).sum()] == [80, 8, 10, 2]
        folds = parts_of(table, roles, 0.15, 5, seed, False)
        for _, rows in folds.folds:
            assert folds.targets()[0][rows].all(1).sum() == 2
    rare = roles._replace(label=("left", "moved"), drop=("complained",))
    message = "moved must vary in the train rows, got 'False' in all 320"
    with pytest.raises(ValueError, match=message):
        parts_of(table, rare, 0.15, 5, 0, False)
    assert parts_of(table, rare, 0.15, None, 0, False).targets()[0][:, 1].sum() == 1


def test_labels_that_cannot_be(model):
    gap = {**TABLE, "left": np.where(np.arange(N) == 7, "", TABLE["left"]).astype(object)}
    with pytest.raises(ValueError, match="left must have a value in every row, got none in row 7"):
        tabular.fit(gap, tabular.MLP(()), **OPTIONS)
    odd = {**TABLE, "complained": np.where(np.arange(N) == 9, 2, TABLE["complained"])}
    with pytest.raises(ValueError, match=r"complained must be one of \['0', '1'\], got '2' in row"):
        tabular.evaluate(model, odd)
    with pytest.raises(ValueError, match="no column 'left, complained' beside the labels, got one"):
        tabular.fit({**TABLE, "left, complained": AGE}, tabular.MLP(()), **OPTIONS)
    with pytest.raises(ValueError, match="model must be of one label for a threshold, got left, c"):
        tabular.classify(model, TABLE)
