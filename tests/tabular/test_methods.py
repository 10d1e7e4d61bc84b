"""Every module and every kind of target through `tabular.fit`, and back from a file."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import jaxops as jo
from jaxops import tabular
from jaxops.model.selection import Blend
from jaxops.tabular import jobs
from jaxops.tabular.data import encode_target
from jaxops.tabular.models.real_mlp import cosines, flat_cosine
from jaxops.tabular.prepared import encoder_of, fitted, settings_of, task_of
from jaxops.tabular.recipes import decayed, is_decayed, real_mlp, recipe

pytestmark = pytest.mark.usefixtures("one_thread")
RNG = np.random.default_rng(0)
N = 240
AGE = RNG.uniform(20, 60, N)
CITY = RNG.choice([f"c{i}" for i in range(12)], N).astype(object)
TABLE = {
    "age": np.where(np.arange(N) % 40 == 3, np.nan, AGE),
    "spent": RNG.lognormal(3, 1, N),
    "member": (RNG.random(N) < 0.5).astype(float),
    "city": CITY,
    "plan": RNG.choice(["a", "b"], N).astype(object),
    "left": np.where((AGE < 40) ^ (CITY < "c3"), "yes", "no").astype(object),
}
SMALL = {
    "linear": tabular.MLP(()),
    "plr": tabular.MLP((8,), embedding=tabular.Periodic(4, 4, 0.1)),
    "resnet": tabular.ResNet(8, 8, 1),
    "ft": tabular.FTTransformer(8, 1, 2),
    "real": tabular.RealMLP((8,)),
    "full": tabular.TabM((8,), members=2, form="full", embedding=tabular.PiecewiseLinear(4, 4)),
    "nca": tabular.ModernNCA(8, embedding=None, depth=1, hidden=8),
}
TREES = tabular.HistGradientBoosting(max_iter=4)
CHILD = """
import sys, numpy as np, jaxops as jo
for path in sys.argv[2:]:
    np.save(path + ".npy", jo.load(path).predict(sys.argv[1]).probabilities)
assert "sklearn.ensemble" not in sys.modules
"""


@pytest.fixture(scope="module")
def models():
    options = {"label": "left", "progress": False, "batch_size": 64, "epochs": 2}
    found = {name: tabular.fit(TABLE, module, **options) for name, module in SMALL.items()}
    more = {
        "several": tabular.fit(TABLE, SMALL["linear"], **options | {"label": ["left", "plan"]}),
        "folds": tabular.fit(TABLE, [SMALL["linear"], TREES], folds=2, **options),
        "trees": tabular.fit(TABLE, TREES, label="city", progress=False),
    }
    return found | more


@pytest.mark.slow
def test_every_model_answers_the_same_from_its_file(models, tmp_path):
    """Those of more than parameters in a new process: trees, rows of the training, a blend."""
    table = tmp_path / "t.csv"
    pytest.importorskip("pandas").DataFrame(TABLE).to_csv(table, index=False)
    for name, model in models.items():
        jo.save(tmp_path / name, model)
    elsewhere = ("trees", "nca", "folds")
    child = [sys.executable, "-c", CHILD, str(table), *(str(tmp_path / n) for n in elsewhere)]
    subprocess.run(child, check=True, timeout=240)
    for name, model in models.items():
        if name in elsewhere:
            found = np.load(tmp_path / f"{name}.npy")
        else:
            found = jo.load(tmp_path / name).predict(table).probabilities
        np.testing.assert_allclose(found, model.predict(TABLE).probabilities, atol=1e-5)


@pytest.mark.slow
def test_each_module_reads_the_table_in_its_way(models):
    encoders = {name: model.reader.encoder for name, model in models.items()}
    assert encoders["linear"].edges.keys() == {"age", "spent", "member"}
    for name in ("plr", "resnet", "full", "nca", "ft"):
        assert encoders[name].quantiles.keys() == {"age", "spent"}
        assert encoders[name].edges == {"member": [0.0, 1.0]}
    assert encoders["real"].robust and encoders["real"].codes == ["city"]
    assert encoders["ft"].codes == ["city", "plan"]
    modules = {name: dict(models[name].task.recipe[1])["module"] for name in SMALL}
    assert modules["plr"].numbers == modules["real"].numbers == modules["full"].numbers == 2
    assert modules["ft"].categories == (13, 3) and modules["real"].categories == (13,)
    assert modules["nca"].rows == 204 and modules["real"].steps == 2 * 4
    age, spent = modules["full"].embedding.edges
    features = models["full"].reader.columns(TABLE)[1]["features"]
    assert len(age) == len(spent) == 5 and abs(features[:, :2]).max() < 5.3
    state = models["real"].state.extra["schedule"]["step"]
    assert int(state) == int(models["real"].state.step) in (4, 8)


def test_a_module_of_the_user_is_given_what_it_was_given():
    """An attribute `reads` alone asks for more."""
    asked = tabular.MLP((4,), reads=tabular.Reads("standard"))
    plain, standard = (encoder_of(one, TABLE, "left") for one in (tabular.MLP((4,)), asked))
    assert len(plain.edges) == 3 and standard.numbers == ["age", "spent", "member"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            tabular.MLP(reads=tabular.Reads("quantile", codes=5)),
            "codes must be None for MLP, which",
        ),
        (tabular.ModernNCA(reads=tabular.Reads(codes=0)), "reads.numbers must be .* for ModernNCA"),
        (tabular.RealMLP(reads=tabular.Reads("bins")), "reads.numbers must be .* for RealMLP with"),
        (
            tabular.MLP(embedding=tabular.Periodic(), reads=tabular.Reads()),
            "numbers must be .* MLP",
        ),
    ],
)
def test_a_module_is_not_given_what_it_cannot_read(method, message):
    with pytest.raises(ValueError, match=message):
        tabular.fit(TABLE, method, label="left", progress=False)


def test_new_rows_move_the_limits_of_real_mlp():
    table = {"age": AGE[:64], "y": AGE[:64] / 10}
    module = tabular.RealMLP((1,), frequencies=1)
    reader = tabular.TableReader(encoder_of(module, table, "y"))
    columns, options = encode_target(reader.encoder, table), {"optimizer": optax.adam(0.2)}
    task = task_of(fitted(module, reader, columns, 40), reader, columns)
    model = jo.Model(task, jo.init_state(task, options["optimizer"], 0, columns), reader)
    new = {**table, "y": table["y"] + 5}
    after = tabular.update(model, new, 40, **options, progress=False).predict(table).values
    assert after.min() > table["y"].max() + 0.5  # at which it would be cut off
    assert after.max() <= new["y"].max() + 1e-4


def test_real_mlp_has_the_activation_of_its_target():
    reader = tabular.TableReader(tabular.fit_encoder({"age": AGE}))
    numbers = fitted(tabular.RealMLP(), reader, {"label": AGE}, 1)
    assert numbers.activation == "mish"
    ends = np.array([AGE.min(), AGE.max()])  # its authors' program cuts predictions off there
    np.testing.assert_allclose(numbers.limits, (ends - AGE.mean()) / AGE.std(), rtol=1e-9)
    assert fitted(tabular.RealMLP(activation="selu"), reader, {"label": AGE}, 1) == numbers.clone(
        activation="selu"
    )
    classes = dataclasses.replace(reader, encoder=reader.encoder._replace(classes=["a", "b"]))
    labels = {"left": ["no", "yes"], "plan": ["a", "b"]}
    several = dataclasses.replace(reader, target="labels", labels=labels)
    for one, outputs in ((classes, 1), (several, 2)):
        told = fitted(tabular.RealMLP(), one, {"label": AGE}, 1)
        assert (told.activation, told.limits, told.outputs) == ("selu", None, outputs)
        assert dict(task_of(told, one, {"label": AGE}).recipe[1])["smoothing"] == 0.1


def test_a_table_without_numbers_has_nothing_to_embed():
    table = {name: TABLE[name] for name in ("city", "plan", "left")}
    reader = tabular.TableReader(encoder_of(SMALL["plr"], table, "left"))
    columns = {"label": AGE, "features": np.zeros((N, 14))}
    assert fitted(SMALL["plr"], reader, columns, 1).embedding is None


@pytest.mark.slow
def test_methods_that_read_the_table_in_other_ways_are_blended(models, tmp_path):
    methods = [SMALL["linear"], SMALL["resnet"], SMALL["real"]]  # what `models` has compiled
    best = tabular.fit(TABLE, methods, label="left", epochs=2, batch_size=64, progress=False)
    assert isinstance(best.task, Blend) and len({*best.task.tasks}) > 1
    assert best.about["validation"]["log_loss"] < min(best.about["methods"].values())
    jo.save(tmp_path / "m.model", best)
    told = [jo.load(tmp_path / "m.model").predict(TABLE), best.predict(TABLE)]
    np.testing.assert_allclose(told[0].probabilities, told[1].probabilities, atol=1e-6)


@pytest.mark.slow
def test_counts_quantiles_and_values_that_are_often_zero(tmp_path):
    rate = np.exp(1 + (AGE - 40) / 15)
    table = {
        "age": AGE,
        "visits": RNG.poisson(rate),
        "value": np.where(RNG.random(N) < 0.4, 0, RNG.lognormal(AGE / 20, 0.3)),
    }
    options = {"progress": False, "batch_size": 32, "optimizer": jo.optim.adam(3e-3)}
    module = tabular.TabM((16,), members=4, dropout=0.0)

    def fitted(label, epochs=60, **more):
        columns = {"age": table["age"], label: table[label]}
        model = tabular.fit(columns, module, label=label, epochs=epochs, **more, **options)
        jo.save(tmp_path / label, model)
        return jo.load(tmp_path / label), tabular.evaluate(model, columns).figures()

    model, figures = fitted("visits", target="counts")
    assert np.corrcoef(np.log(model.predict(table).values), np.log(rate))[0, 1] > 0.97
    assert figures["deviance"] < 1.6 and model.about["validation"].keys() == figures.keys()
    assert tabular.evaluate(model, table).figures() == pytest.approx(figures, rel=1e-4)
    model, figures = fitted("value", target="quantiles", levels=(0.2, 0.8))
    told = model.predict(table)
    assert told.levels == (0.2, 0.8) and (told.values[:, 0] <= told.values[:, 1]).all()
    assert told.frame().columns.tolist() == ["id", "q(0.2)", "q(0.8)"]
    assert 0.4 < figures["coverage"] < 0.85 and figures["pinball"] < 1.5
    model, figures = fitted("value", target="zero_inflated", epochs=40)
    assert figures["spearman"] > 0.25
    expected = 0.6 * np.exp(AGE / 20 + 0.3**2 / 2)
    assert np.corrcoef(model.predict(table).values, expected)[0, 1] > 0.95
    assert model.reader.describe()["target"] == "zero_inflated"
    columns = {"age": AGE, "visits": table["visits"]}
    methods = [TREES, tabular.HistGradientBoosting(max_iter=9)]
    both = tabular.fit(columns, methods, label="visits", target="counts", progress=False)
    assert both.about["validation"]["deviance"] <= min(both.about["methods"].values()) + 1e-9


@pytest.mark.parametrize(
    ("label", "change", "message"),
    [
        ([1, -2], {"target": "counts"}, r"y must be counts .*, got -2 in row 1 \(120 such rows\)"),
        ([1, 0.5], {"target": "counts"}, r"y must be counts \(whole numbers from 0\), got 0.5 in"),
        ([0, -1], {"target": "zero_inflated"}, "y must be numbers from 0, got -1 in row 1"),
        ([0, 3], {"target": "zero_inflated"}, "y must have different values above 0, got 3 alone"),
        ([2, 2], {"target": "counts"}, "y must vary, got 2 in every row"),
        ([1, 2], {"target": "count"}, "target must be one of classes, number, counts, .* 'count'"),
        ([1, 2], {"target": "quantiles"}, 'levels must be given for target="quantiles"'),
        ([1, 2], {"levels": (0.5,)}, r"levels must be given .* got \(0.5,\) for None"),
        ([1, 2], {"target": "quantiles", "levels": (1.5,)}, "levels must be rising numbers betwe"),
        ([1, 2], {"target": "counts", "classes": True}, "classes must be left out for target='cou"),
        (
            [1, 2],
            {"target": "counts", "method": SMALL["nca"]},
            "method must be another than ModernNCA for counts",
        ),
    ],
)
def test_targets_that_cannot_be(label, change, message):
    table = {"age": AGE, "y": np.resize(np.array(label, float), N)}
    options = {"method": tabular.MLP(()), "label": "y", "progress": False, "epochs": 1, **change}
    with pytest.raises(ValueError, match=message):
        tabular.fit(table, **options)


def test_the_recipe_of_real_mlp():
    given = recipe(1000, 60.0, tabular.RealMLP(), classes=True, epochs=3)
    assert given["batch_size"] == 256 and given["optimizer"] is real_mlp(0.04, 12)
    assert recipe(1000, 60.0, tabular.RealMLP(), classes=False)["optimizer"] is real_mlp(0.2, 1024)
    params = {
        "scale": np.ones(2), "hidden_0_kernel": np.ones((2, 2)), "hidden_0_bias": np.ones(2),
        "numbers_kernel": np.ones((1, 2, 3)), "hidden_0_activation": np.ones(2),
    }  # fmt: skip
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    tx, steps = real_mlp(0.04, 12), 12
    update = jax.jit(tx.update)
    state, moments = tx.init(params), {name: np.zeros(2) for name in params}
    wanted = dict.fromkeys(params, 1.0)
    factors = {"scale": 6, "hidden_0_kernel": 1}
    for step in range(5):
        gradient = 0.1 * (step + 1)
        grads = jax.tree.map(lambda x, g=gradient: np.full_like(x, g), params)
        updates, state = update(grads, state, params)
        params = jax.tree.map(np.add, params, updates)
        rate = 0.04 * float(cosines(step / steps))
        decay = 0.02 * float(flat_cosine(step / steps))
        for name, (m, v) in moments.items():
            m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
            moments[name] = np.array([m, v])
            adam = m / (1 - 0.9 ** (step + 1)) / np.sqrt(v / (1 - 0.95 ** (step + 1)))
            factor = factors.get(name, 0.1)
            less = 0 if name.endswith("bias") else factor * decay * wanted[name]
            wanted[name] -= rate * factor * (adam + less)
    for name, value in params.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-4, err_msg=name)


def test_the_budget_ends_early_stopping_of_the_user_too():
    rules = [jo.EarlyStopping("auc", mode="max"), jo.EarlyStopping(seconds=5.0), None]
    found = [recipe(1000, 60.0, early_stopping=rule)["early_stopping"] for rule in rules]
    assert found[0] == rules[0]._replace(seconds=60.0) and found[1] == rules[1]
    assert found[2].seconds == 60.0 and found[2].metric == "loss"
    assert recipe(1000, np.inf, early_stopping=None)["early_stopping"] is None
    endless = {"epochs": 10**6, "early_stopping": None, "budget": 0.3}
    model = tabular.fit(TABLE, tabular.MLP(()), label="left", progress=False, **endless)
    assert int(model.state.step) < 10**6


@pytest.mark.parametrize(
    ("module", "optimizer"),
    [
        (tabular.MLP(), recipe(20, np.inf)["optimizer"]),
        (tabular.FTTransformer(), decayed(1e-4, 1e-5)),
        (tabular.ModernNCA(), decayed(1e-2, 2e-4)),
        (tabular.RealMLP(), real_mlp(0.04, 5)),  # its schedule is that of the five epochs
    ],
)
def test_new_rows_are_learned_at_the_rate_of_the_module(module, optimizer, monkeypatch):
    monkeypatch.setattr(jobs, "trained_further", lambda model, columns, settings: settings)
    monkeypatch.setattr(jobs, "_with_reference", lambda model, table: model)
    encoder = tabular.fit_encoder({"age": AGE})._replace(label="left", classes=["no", "yes"])
    task = tabular.classifier(module, features=1, classes=("no", "yes"))
    few = {name: TABLE[name][:20] for name in ("age", "left")}
    settings = tabular.update(jo.Model(task, None, tabular.TableReader(encoder)), few)
    assert settings["optimizer"] is optimizer and settings["epochs"] == 5
    assert settings["early_stopping"] is None


@pytest.mark.slow
def test_the_schedules_of_real_mlp_end_within_the_time():
    module, options = tabular.RealMLP((8,)), {"seed": 0, "progress": False, "batch_size": 64}
    encoder = encoder_of(module, TABLE, "left")._replace(classes=["no", "yes"])
    rows = encode_target(encoder, TABLE)
    settings = settings_of(module, tabular.TableReader(encoder), rows, 1.0, options)
    assert 1 <= settings["epochs"] < 256  # what the machine makes in the time
    assert settings["optimizer"] is real_mlp(0.04, 4 * settings["epochs"])


@pytest.mark.slow
def test_what_is_decayed(models):
    flat = jax.tree_util.tree_leaves_with_path(is_decayed(models["full"].state.params))
    names = {"/".join(str(k.key) for k in path): decays for path, decays in flat}
    assert {name for name, decays in names.items() if not decays} == {
        "bias", "hidden_0_bias", "embedding/bias", "embedding/weight",
    }  # fmt: skip
    assert names["hidden_0/kernel"] and names["kernel"] and names["embedding/kernel"]
