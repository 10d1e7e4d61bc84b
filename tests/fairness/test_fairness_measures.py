"""Figures of groups beside fairlearn, statsmodels and simulation; reports of finished models."""

import gzip
import itertools
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

import jaxops as jo
from jaxops import fairness, tabular, vision
from jaxops.model.finished import Model
from jaxops.uncertainty import Sets


def folder(name):
    return Path(os.environ.get("JAXOPS_DATA_DIR", ".")) / name


def compas():
    table = pd.read_csv(folder("compas") / "compas-two-years.csv.gz", keep_default_na=False)
    return table, table["two_year_recid"], table["score_text"] != "Low", table["decile_score"] / 10


def adult():
    with gzip.open(folder("adult") / "adult-test.csv.gz", "rt") as lines:
        table = pd.read_csv(lines, header=None, skipinitialspace=True, comment="|")
    label = table[14].str.startswith(">50K").astype(int)
    return table, label, table[4] >= 13, table[4] / 16


COLUMNS = (  # of a group, after its rows
    "selection rate", "true positive rate", "false positive rate", "precision", "accuracy", "auc"
)  # fmt: skip
FAIRLEARN = {  # of fairlearn 0.15.0: MetricFrame.by_group, and its functions of disparities
    "compas race": ({
        "African-American": (3696, 0.5882035, 0.7201473, 0.448468, 0.6297148, 0.6382576, 0.6918344),
        "Asian": (32, 0.25, 0.6666667, 0.0869565, 0.75, 0.84375, 0.8574879),
        "Caucasian": (2454, 0.3480033, 0.5227743, 0.234543, 0.5913349, 0.6699266, 0.6931463),
        "Hispanic": (637, 0.2982732, 0.4439655, 0.2148148, 0.5421053, 0.6609105, 0.6379257),
        "Native American": (18, 0.6666667, 0.9, 0.375, 0.75, 0.7777778, 0.85625),
        "Other": (377, 0.2095491, 0.3233083, 0.147541, 0.5443038, 0.6657825, 0.6955349),
    }, {
        "demographic parity difference": 0.4571176,
        "demographic parity ratio": 0.3143236,
        "equal opportunity difference": 0.5766917,
        "equal opportunity ratio": 0.3592314,
        "equalised odds difference": 0.5766917,
        "equalised odds ratio": 0.1938968,
        "predictive parity difference": 0.2078947,
        "equal accuracy difference": 0.2054924,
        "equal accuracy ratio": 0.7564534,
        "equal false positives difference": 0.3615114,
    }),
    "adult sex": ({
        "Female": (5421, 0.2276333, 0.5559322, 0.1875388, 0.2658023, 0.7845416, 0.7398224),
        "Male": (10860, 0.2586556, 0.4861794, 0.1612309, 0.5635457, 0.7330571, 0.7197544),
    }, {
        "demographic parity difference": 0.0310223,
        "demographic parity ratio": 0.8800632,
        "equal opportunity difference": 0.0697528,
        "equal opportunity ratio": 0.8745299,
        "equalised odds difference": 0.0697528,
        "equalised odds ratio": 0.8597203,
        "predictive parity difference": 0.2977435,
        "equal accuracy difference": 0.0514845,
        "equal accuracy ratio": 0.9343763,
        "equal false positives difference": 0.0263079,
    }),
    "adult race sex": ({
        "Amer-Indian-Eskimo, Female": (66, 0.1212121, 0.0, 0.1269841, 0.0, 0.8333333, 0.6931217),
        "Amer-Indian-Eskimo, Male": (93, 0.0860215, 0.1875, 0.0649351, 0.375, 0.8064516, 0.7293019),
        "Asian-Pac-Islander, Female": (
            171, 0.3859649, 0.6153846, 0.3448276, 0.2424242, 0.6491228, 0.6541114),
        "Asian-Pac-Islander, Male": (
            309, 0.4530744, 0.6728972, 0.3366337, 0.5142857, 0.6666667, 0.7133802),
        "Black, Female": (753, 0.1540505, 0.5714286, 0.1293952, 0.2068966, 0.8539177, 0.7654544),
        "Black, Male": (808, 0.1559406, 0.379562, 0.1102832, 0.4126984, 0.8032178, 0.7016926),
        "Other, Female": (46, 0.2173913, 0.6, 0.1707317, 0.3, 0.8043478, 0.8487805),
        "Other, Male": (89, 0.1685393, 0.5, 0.0724638, 0.6666667, 0.8314607, 0.7981884),
        "White, Female": (4385, 0.2358039, 0.5544747, 0.1934901, 0.2756286, 0.7769669, 0.735732),
        "White, Male": (9561, 0.2635708, 0.4858871, 0.1630979, 0.5738095, 0.7276436, 0.7174267),
    }, {
        "demographic parity difference": 0.3670529,
        "demographic parity ratio": 0.1898618,
        "equal opportunity difference": 0.6728972,
        "equal opportunity ratio": 0.0,
        "equalised odds difference": 0.6728972,
        "equalised odds ratio": 0.0,
        "predictive parity difference": 0.6666667,
        "equal accuracy difference": 0.2047949,
        "equal accuracy ratio": 0.7601703,
        "equal false positives difference": 0.2798925,
    }),
}  # fmt: skip


@pytest.mark.data("compas", "adult")
@pytest.mark.parametrize("name", [
    "compas race", "adult sex", pytest.param("adult race sex", marks=pytest.mark.slow)
])  # fmt: skip
def test_equal_to_fairlearn(name):
    groups, disparities = FAIRLEARN[name]
    table, label, predicted, p = {"compas": compas, "adult": adult}[name.split()[0]]()
    columns = {"race": "race", "sex": "sex"} if "compas" in name else {"race": 8, "sex": 9}
    protected = {one: table[columns[one]] for one in name.split()[1:]}
    found = fairness.of_classes(label, predicted, protected, p, least=1)
    assert [*found.groups.names] == [*groups]
    for group, (count, *values) in groups.items():
        assert found.figures["accuracy"][group].rows == count
        own = [found.figures[figure][group].value for figure in COLUMNS]
        np.testing.assert_allclose(own, values, atol=1e-6, err_msg=group)
    for measure, value in disparities.items():
        np.testing.assert_allclose(found.disparities[measure].value, value, atol=1e-6)


def test_wilson_is_that_of_statsmodels():
    for hits, rows in ((0, 9), (1, 9), (9, 9), (130, 400)):
        low, high = fairness.wilson(np.array(hits), np.array(rows), 0.9)
        wanted = proportion_confint(hits, rows, alpha=0.1, method="wilson")
        np.testing.assert_allclose((low, high), wanted, atol=1e-12)
        own = stats.binomtest(hits, rows).proportion_ci(0.9, method="wilson")
        np.testing.assert_allclose((low, high), (own.low, own.high), atol=1e-12)


@pytest.mark.parametrize("counts", [(56, 70, 48, 80), (9, 10, 3, 10), (10, 10, 0, 20)])
def test_difference_of_two_is_newcombes(counts):
    hits, rows = np.array(counts[::2]), np.array(counts[1::2])
    found = fairness.difference([fairness.rate_of(hits, rows)])
    low, high = confint_proportions_2indep(*counts, method="newcomb", compare="diff")
    np.testing.assert_allclose(found[:3], (np.ptp(hits / rows), max(low, 0), high), atol=1e-9)


def test_intervals_cover_in_simulation():
    """Of the largest difference and the smallest ratio of three groups, at 95 %."""
    truth, rows = np.array([0.3, 0.35, 0.5]), np.array([60, 400, 90])
    covered = np.zeros(2)
    for hits in np.random.default_rng(0).binomial(rows, truth, (1000, 3)):
        rates = [fairness.rate_of(hits, rows)]
        apart, share = fairness.difference(rates), fairness.ratio(rates)
        covered += (apart.low <= 0.2 <= apart.high, share.low <= 0.6 <= share.high)
    # at least 0.95 but for the noise of 1,000 draws (4 standard errors)
    assert (covered / 1000 > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 1000)).all()


def test_equal_groups_are_not_told_apart():
    """Without any difference the interval holds 0, and that of the ratio 1."""
    rows = np.array([80, 200])
    missed = 0
    for hits in np.random.default_rng(0).binomial(rows, 0.4, (400, 2)):
        rates = [fairness.rate_of(hits, rows)]
        missed += fairness.difference(rates).low > 0
        assert fairness.ratio(rates).high <= 1
    assert missed <= 400 * 0.05 + 4 * np.sqrt(400 * 0.05 * 0.95)


def labelled(rows=2000):
    rng = np.random.default_rng(0)
    sex = rng.choice(["f", "m"], rows, p=[0.4, 0.6])
    race = rng.choice(["a", "b", "c"], rows)
    p = 1 / (1 + np.exp(-rng.normal((sex == "m") * 0.8, 1.5)))
    return {"sex": sex, "race": race}, rng.random(rows) < p, p


def test_intersections_and_everyone_by_hand():
    protected, label, p = labelled()
    predicted = p > 0.5
    found = fairness.of_classes(label, predicted, protected, p)
    names = [f"{s}, {r}" for s, r in itertools.product("fm", "abc")]
    assert [*found.groups.names] == names
    for name in [*names, "(everyone)"]:
        rows = np.ones(len(label), bool)
        if "," in name:
            rows = (protected["sex"] == name[0]) & (protected["race"] == name[-1])
        y, s, own = label[rows], predicted[rows], p[rows]
        of = {metric: one[name] for metric, one in found.figures.items()}
        assert of["true positive rate"].value == s[y].mean()
        assert of["true positive rate"].rows == y.sum()
        assert of["precision"].value == y[s].mean()
        gap = (own - y).mean()
        np.testing.assert_allclose(of["calibration gap"].value, gap, atol=1e-12)
        u = stats.mannwhitneyu(own[y], own[~y]).statistic / (y.sum() * (~y).sum())
        np.testing.assert_allclose(of["auc"].value, u, atol=1e-12)
        bins = [np.floor(own * 15) == b for b in range(15)]
        error = sum(abs((own - y)[b].mean()) * b.mean() for b in bins if b.any())
        np.testing.assert_allclose(of["calibration error"].value, error, atol=1e-12)
        assert all(one.low <= one.value <= one.high for m, one in of.items() if "error" not in m)
    # p is calibrated: no group's gap is far from 0
    gaps = found.figures["calibration gap"]
    assert sum(not one.low <= 0 <= one.high for one in gaps.values()) <= 2
    rates = [found.figures["false positive rate"][name].value for name in names]
    assert found.worst["false positive rate"] == names[int(np.argmax(rates))]


def test_small_groups_are_told_and_left_out():
    sex = np.array(["f"] * 30 + ["m"] * 30 + ["x"] * 3 + ["y"])
    label = np.arange(64) % 2
    found = fairness.of_classes(label, np.r_[label[:60], 1 - label[60:]], {"sex": sex})
    assert found.small == {"x": 3, "y": 1}
    assert found.disparities["equal accuracy difference"].value == 0.0  # although x has none right
    assert found.figures["accuracy"]["x"].value == 0.0 and found.worst["accuracy"] in "fm"
    text = str(found)
    assert "one row: join it with another group" in text and "not in the disparities" in text
    assert "not defined" in text  # the precision, or a rate, of one row


def test_a_rate_without_rows_is_not_defined():
    label = np.r_[np.zeros(40), np.arange(40) % 2]
    found = fairness.of_classes(label, label, {"g": np.arange(80) < 40})
    figure = found.figures["true positive rate"]["True"]
    assert np.isnan(figure.value) and figure.rows == 0
    assert np.isnan(found.disparities["equal opportunity difference"].value)
    assert found.disparities["equalised odds difference"].value == 0.0  # of the other rate


def test_models_are_compared_on_the_same_rows():
    protected, label, p = labelled()
    sex = {"sex": protected["sex"]}
    one, two = (fairness.of_classes(label, p > t, sex).scored for t in (0.5, 0.48))
    name = "demographic parity difference"
    f = protected["sex"] == "f"
    apart = [abs((p > t)[f].mean() - (p > t)[~f].mean()) for t in (0.5, 0.48)]
    paired = one.paired(two, name)
    np.testing.assert_allclose(paired.difference, apart[0] - apart[1], atol=1e-12)
    width = np.hypot(*(np.ptp(scored.interval(name)[1:]) for scored in (one, two)))
    assert paired.high - paired.low < 0.5 * width  # that as if the rows were others


def test_of_numbers_by_hand():
    rng = np.random.default_rng(0)
    group, y = rng.choice(["a", "b"], 300), rng.normal(5, 1, 300)
    told = y + np.where(group == "a", 1.0, -0.5) + rng.normal(0, 0.1, 300)
    found = fairness.of_numbers(y, told, {"g": group})
    a = group == "a"
    values = [found.figures["mean absolute error"][g].value for g in "ab"]
    wanted = [np.abs(told - y)[rows].mean() for rows in (a, ~a)]
    np.testing.assert_allclose(values, wanted, atol=1e-12)
    apart = found.disparities["mean error difference"]
    errors = told - y
    welch = stats.ttest_ind(errors[a], errors[~a], equal_var=False).confidence_interval()
    np.testing.assert_allclose(apart[1:3], (welch.low, welch.high), atol=0.01)
    assert found.worst == {"mean absolute error": "a"}


def test_report_of_a_table(model, table, tmp_path):
    found = fairness.report(model, table, protected=["sex"])
    answer = model.predict(table)
    wanted = fairness.of_classes(
        table["left"] == "yes", answer.labels == "yes", {"sex": table["sex"]},
        answer.probabilities[:, 1],
    )  # fmt: skip
    assert found.figures == wanted.figures and found.disparities == wanted.disparities
    turned = fairness.report(model, pd.DataFrame(table), protected=["sex"], positive="no")
    for sex in "fm":
        one, other = (r.figures["selection rate"][sex].value for r in (found, turned))
        np.testing.assert_allclose(one, 1 - other, atol=1e-12)
    figure = found.plot(tmp_path / "groups.png")
    assert (tmp_path / "groups.png").exists()
    panel = next(a for a in figure.axes if a.get_title() == "selection rate")
    drawn = panel.lines[1].get_xdata()
    np.testing.assert_allclose(drawn, [found.figures["selection rate"][g].value for g in "mf"])


@pytest.mark.slow
def test_report_of_images_and_of_numbers(table):
    rng = np.random.default_rng(0)
    label = (np.arange(80) % 2).astype(np.int32)
    image = (rng.integers(0, 100, (80, 4, 4, 1)) + 150 * label[:, None, None, None]).astype("uint8")
    task = vision.classifier(vision.MLP((4,), classes=2), (4, 4, 1), 2, mean=0.5, std=0.3)
    state = jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch={"image": image})
    photos = Model(task, state, vision.ImageReader((4, 4), 1))
    rows = {"image": image, "label": label, "camera": np.where(np.arange(80) < 40, "a", "b")}
    found = fairness.report(photos, rows, label="label", protected=["camera"])
    p = photos.outputs({"image": image})
    right = p.argmax(1) == label
    assert found.figures["accuracy"]["a"].value == right[:40].mean()
    paid = tabular.fit(
        table,
        tabular.MLP((4,)),
        label="paid",
        drop=["who", "sex", "left"],
        epochs=1,
        progress=False,
    )
    numbers = fairness.report(paid, table, protected=["sex"])
    own = paid.predict(table).values[table["sex"] == "f"]
    np.testing.assert_allclose(numbers.figures["mean prediction"]["f"].value, own.mean(), rtol=1e-6)


class Several:
    """A reader that answers with several labels for each row, as one of texts may."""

    room, label = "text", "left"

    def predict(self, model, data):
        labels = np.empty(len(data["left"]), object)
        labels.fill(("no",))
        p = np.zeros((len(labels), 2))
        return Sets(np.arange(len(labels)), labels, labels, p, ("no", "yes"))


def test_errors_say_what_to_do(model, table):
    ones, sex = np.ones(40), np.arange(40) % 2
    cases = [
        (lambda: fairness.report(model, table, protected=["race"]),
         "rows must have a column 'race', got who, age, sex, left, paid"),
        (lambda: fairness.report(model, pd.DataFrame(table), protected=["race"]),
         "frame must have a column 'race'"),
        (lambda: fairness.report(model, table, protected="sex"), "protected must be names"),
        (lambda: fairness.report(model, table, protected=["sex"], label="paid"),
         "paid must be one of no, yes, got"),
        (lambda: fairness.report(model, table, protected=["sex"], positive="maybe"),
         "positive must be one of no, yes, got 'maybe'"),
        (lambda: fairness.report(model, table, protected=["age"]),
         "protected must have at most 100 groups, got 800 of age; cut numbers into ranges"),
        (lambda: fairness.of_classes(ones, ones, {}), "protected must be columns by name"),
        (lambda: fairness.of_classes(ones, ones * 2, {"s": sex}), "predicted must be 0 or 1, got"),
        (lambda: fairness.of_classes(ones, ones, {"s": sex[1:]}), "label must have 39 rows"),
        (lambda: fairness.of_classes(ones, ones, {"s": sex * 0}),
         r"protected must have at least 2 groups of 20 rows, got 0 \(40\); join small groups"),
        (lambda: fairness.of_classes(ones, ones, {"s": sex}, ones * np.nan),
         "probabilities must be finite numbers, got nan in row 0"),
        (lambda: fairness.of_classes(ones, ones, {"s": sex}, ones * 3.0),
         r"probabilities must be in \[0, 1\], got 3.0 in row 0"),
        (lambda: fairness.of_classes(ones, ones, {"s": sex}, coverage=95),
         r"coverage must be in \(0, 1\), got 95"),
        (lambda: fairness.of_numbers(ones * np.inf, ones, {"s": sex}),
         "label must be finite numbers, got inf in row 0"),
        (lambda: fairness.groups_of({"a": ["x, y", "x"], "b": ["z", "y, z"]}),
         "groups of different names, got 'x, y, z' twice"),
        (lambda: fairness.report(Model(model.task, model.state, Several()), table,
                                 protected=["sex"]), "got several labels or numbers"),
        (lambda: fairness.report(Model(model.task, model.state), table, protected=["sex"]),
         "label must be given"),
        (lambda: fairness.evaluate(model, table), "model must have thresholds by group"),
    ]  # fmt: skip
    for call, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            call()


def test_missing_values_are_a_group():
    groups = fairness.groups_of({"sex": ["f", None, "", "f"], "n": [1, 1.0, 1, 2]})
    assert groups.names == ("(missing), 1", "f, 1", "f, 2")
    assert groups.place.tolist() == [1, 0, 0, 2]


def test_reweigh_makes_label_and_group_independent():
    rng = np.random.default_rng(0)
    sex, race = rng.choice(["f", "m"], 500), rng.choice(["a", "b"], 500)
    label = rng.choice(["x", "y", "z"], 500)
    weights = fairness.reweigh(label, {"sex": sex, "race": race})
    np.testing.assert_allclose(weights.sum(), 500)
    for s, r in itertools.product("fm", "ab"):
        rows = (sex == s) & (race == r)
        np.testing.assert_allclose(weights[rows].sum(), rows.sum())
        for one in "xyz":
            share = weights[rows & (label == one)].sum() / rows.sum()
            np.testing.assert_allclose(share, (label == one).mean())
    with pytest.raises(ValueError, match="got none of '1' in m"):
        fairness.reweigh([1, 0, 0], {"sex": ["f", "f", "m"]})
    with pytest.raises(ValueError, match="label must have a value in every row, got none in row 1"):
        fairness.reweigh(["x", None, "y", "x", "y"], {"sex": list("ffmmf")})
