"""Folds, blends of networks and trees, and what they know of the rows that score them."""

import numpy as np
import pytest

import jaxops as jo
from jaxops import tabular
from jaxops.data.splits import folds_of
from jaxops.model.selection import Blend, tempered
from jaxops.tabular import ensembles
from jaxops.tabular.parts import Roles, parts_of
from jaxops.tabular.prepared import encoder_of
from jaxops.trust.evaluation import Evaluation

pytestmark = pytest.mark.usefixtures("one_thread")
RNG = np.random.default_rng(0)
N = 300
AGE = RNG.uniform(20, 60, N)
PLAN = RNG.choice(["a", "b", "c"], N).astype(object)
TABLE = {
    "age": np.where(np.arange(N) % 50 == 3, np.nan, AGE),
    "plan": PLAN,
    "group": (np.arange(N) // 3).astype(float),
    "left": np.where(AGE + 9 * (PLAN == "c") + RNG.normal(0, 6, N) > 42, "yes", "no").astype(
        object
    ),
}
FIRST = np.zeros(N)  # weights of the first fold's rows alone
FIRST[folds_of(N, 3, TABLE["left"], None, 0)[0][1]] = 1
SMALL = tabular.MLP((8,))
TREES = tabular.HistGradientBoosting(max_iter=20, learning_rate=0.2)
ROLES = Roles("left", None, (), None, None, None, ())


@pytest.fixture
def quick():
    """Trees, as nothing is compiled for them."""
    pytest.importorskip("lightgbm")
    return tabular.LightGBM(n_estimators=20, n_jobs=1)


@pytest.fixture(scope="module")
def both():
    """Networks and trees in three folds."""
    return tabular.fit(
        TABLE, [SMALL, TREES], label="left", drop=["group"], folds=3, epochs=15, progress=False
    )


def test_no_model_has_seen_the_rows_of_its_fold():
    row = {**TABLE, "row": np.arange(N) + 0.5}
    parts = parts_of(row, ROLES, 0.15, 4, 0, False)
    sides = []

    def trained(method, fold, left):
        train, held = fold.train["row"], fold.validation["row"]
        sides.append((train, held))
        seen = np.isin(held, train).astype(np.float32) + held.astype(np.float32)
        return jo.Model(SMALL), Evaluation("row", held, {}, parts={"outputs": seen})

    model, scored = ensembles.bagged("any", parts, trained, 60.0)
    np.testing.assert_array_equal(scored.parts["outputs"], row["row"])  # each row its own
    assert model.task.weights == (0.25,) * 4
    for train, held in sides:
        assert not set(train) & set(held) and len(train) + len(held) == N
    assert sorted(np.concatenate([held for _, held in sides])) == sorted(row["row"])


def test_labels_that_only_a_leak_could_tell():
    pytest.importorskip("lightgbm")
    noise = RNG.choice(["yes", "no"], N).astype(object)
    table = {"x": RNG.permutation(N) + 0.5, "y": noise}
    memory = tabular.LightGBM(
        n_estimators=1, learning_rate=1.0, min_child_samples=1, num_leaves=500, n_jobs=1
    )
    model = tabular.fit(table, memory, label="y", folds=3, progress=False)
    known = tabular.evaluate(model, table).figures()["accuracy"]
    assert known > 0.65 and abs(model.about["validation"]["accuracy"] - 0.5) < 0.12


def test_the_encoder_of_a_fold_knows_nothing_of_its_rows():
    parts = parts_of({n: c for n, c in TABLE.items() if n != "group"}, ROLES, 0.15, 3, 0, False)
    held = parts.folds[0][1]
    parts.train["age"][held] += 1000
    parts.train["plan"][held] = "of these rows"
    first, other = (encoder_of(SMALL, parts.fold(*fold).train, "left") for fold in parts.folds[:2])
    assert first.values == {"plan": ["a", "b", "c"]} and first.mean["age"] < 100
    assert "of these rows" in other.values["plan"] and other.mean["age"] > 100


def test_the_blend_is_better_than_its_members_on_validation(both, capsys, quick):
    losses = both.about["methods"]
    assert [name.split()[1] for name in losses] == ["MLP", "HistGradientBoosting"]
    assert both.about["folds"] == 3 and isinstance(both.task, Blend)
    assert both.about["validation"]["log_loss"] <= min(losses.values())
    assert tabular.evaluate(both, TABLE).figures()["auc"] > 0.85
    held = tabular.fit(TABLE, [quick, TREES], label="left", groups="group")
    out = capsys.readouterr().out
    assert "2: HistGradientBoosting" in out
    assert min(held.about["methods"].values()) >= held.about["validation"]["log_loss"]


def test_the_figures_of_folds_are_those_of_a_loop_over_them(quick):
    model = tabular.fit(TABLE, quick, label="left", drop=["group"], folds=3, progress=False)
    metrics = pytest.importorskip("sklearn.metrics")
    parts = parts_of({n: c for n, c in TABLE.items() if n != "group"}, ROLES, 0.15, 3, 0, False)
    p, members = np.zeros(N), model.task.models()
    for member, (_, held) in zip(members, parts.folds, strict=True):
        rows = {name: column[held] for name, column in TABLE.items()}
        p[held] = member.outputs(rows)
    assert model.task.temperature != 1
    p = tempered(p, model.task.temperature)
    figures = model.about["validation"]
    assert figures["log_loss"] == pytest.approx(metrics.log_loss(TABLE["left"] == "yes", p), 1e-5)
    means = np.mean([member.outputs(TABLE) for member in members], 0)
    wanted = tempered(means, model.task.temperature)
    np.testing.assert_allclose(model.predict(TABLE).probabilities[:, 1], wanted, atol=1e-6)


def test_new_rows_train_networks_further_and_not_trees(both):
    nets = tabular.fit(
        TABLE, SMALL, label="left", drop=["group"], folds=2, epochs=10, progress=False
    )
    turned = {**TABLE, "left": np.where(TABLE["left"] == "yes", "no", "yes").astype(object)}
    after = tabular.update(nets, turned, epochs=40, progress=False)
    scored = [tabular.evaluate(model, turned) for model in (after, nets)]
    assert scored[0].paired(scored[1], "accuracy").low > 0 and after.reader is nets.reader
    with pytest.raises(ValueError, match=r"model must be of networks alone .* got TreeModel; fit"):
        tabular.update(both, turned, progress=False)


def test_groups_stay_together_in_folds_and_checkpoints_are_of_one_training(tmp_path):
    parts = parts_of(TABLE, ROLES._replace(groups="group"), 0.15, 4, 0, False)
    for train, held in parts.folds:
        assert not {*TABLE["group"][train]} & {*TABLE["group"][held]}
    with pytest.raises(ValueError, match="checkpoints must be None where 3 trainings follow"):
        tabular.fit(TABLE, SMALL, label="left", folds=3, checkpoints=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, r"folds must be in \[2, 300\] \(the number of rows\), got 1"),
        ({"folds": 3, "validation": 0.2}, "validation must be left out where folds validate"),
        ({"folds": 3, "time": "age"}, "time must be None where validation is 3 folds, got 'age'"),
        (
            {"folds": 3, "weights": "first"},
            "first must be above 0 in some train row of fold 0, got 0 in all 200",
        ),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        tabular.fit({**TABLE, "first": FIRST}, SMALL, label="left", progress=False, **options)


@pytest.mark.slow
def test_the_short_list_is_tried_within_the_budget(capsys):
    methods = tabular.short_list()
    names = [type(one).__name__ for one in methods]
    assert names[0] == "HistGradientBoosting" and names[-3:] == ["TabM", "RealMLP", "MLP"]
    model = tabular.fit(TABLE, label="left", drop=["group"], budget="3s", epochs=2)
    out = capsys.readouterr().out
    for place, name in enumerate(model.about["methods"]):
        assert name in out and name == f"{place + 1}: {names[place]}"


def test_the_command_line_names_folds_and_lists(tmp_path, capsys):
    cli = pytest.importorskip("jaxops.cli")
    pd = pytest.importorskip("pandas")
    pd.DataFrame(TABLE).to_csv(tmp_path / "t.csv", index=False)
    command = ["fit", "tabular", str(tmp_path / "t.csv"), "--label", "left", "--out"]
    folds = ["--folds", "2", "--groups", "group", "--method", "HistGradientBoosting(max_iter=3)"]
    folds += ["--class-weights", "yes", "5"]
    assert cli.main([*command, str(tmp_path / "m"), *folds]) == 0
    assert jo.load(tmp_path / "m").about["folds"] == 2
    assert cli.main(["show", str(tmp_path / "m")]) == 0
    assert "Blend" in capsys.readouterr().out
    later = ["--time", "group", "--weights", "age", "--method", "HistGradientBoosting(max_iter=3)"]
    assert cli.main([*command, str(tmp_path / "m"), *later]) == 1  # of the gaps among the ages
    assert "age must be numbers of at least 0, got nan in row 3" in capsys.readouterr().err
    tyro = pytest.importorskip("tyro")

    def parsed(*arguments):
        given = ["tabular", "t.csv", "--out", "m", *arguments]
        return tyro.cli(cli.Fit, args=given, config=(tyro.conf.OmitSubcommandPrefixes,)).room

    several = parsed("--label", "left", "plan", "--class-weights", "balanced")
    assert several.label == ("left", "plan") and several.class_weights == "balanced"
    one = parsed("--label", "left", "--class-weights", "yes", "5", "no", "1")
    assert (one.label, one.class_weights, one.budget) == ("left", {"yes": 5, "no": 1}, None)
    assert [type(one) for one in cli.method(tabular, "short_list(trees=False)")] == [
        tabular.TabM,
        tabular.RealMLP,
        tabular.MLP,
    ]


def test_validation_rows_without_an_error_do_not_make_certain():
    pytest.importorskip("lightgbm")
    table = {"age": AGE, "young": np.where(AGE < 40, "yes", "no").astype(object)}
    trees = tabular.LightGBM(n_estimators=5, learning_rate=0.2, n_jobs=1)
    model = tabular.fit(table, [trees], label="young", progress=False)
    assert model.task.temperature == 0.5
    p = model.predict(table).probabilities
    assert 0.8 < p.max() < 0.999
