"""Trees: each library's own predictions, categories and missing values, and what a file keeps."""

import numpy as np
import pytest

import jaxops as jo
from jaxops import tabular
from jaxops.tabular import hist_trees

RNG = np.random.default_rng(0)
N = 400
AGE = np.where(RNG.random(N) < 0.1, np.nan, RNG.uniform(20, 60, N).astype(np.float32))
SPENT = RNG.exponential(50, N).astype(np.float32).astype(float)
PLAN = RNG.choice(["a", "b", "c"], N).astype(object)
SCORE = np.nan_to_num(AGE, nan=30) / 10 + 2 * (PLAN == "b") + SPENT / 100 + RNG.normal(0, 0.3, N)
TABLE = {
    "age": AGE,
    "plan": PLAN,
    "spent": SPENT,
    "two": np.where(SCORE > 5, "yes", "no").astype(object),
    "three": np.array(["low", "middle", "high"], object)[np.digitize(SCORE, [4.3, 5.6])],
    "score": 1e4 + 100 * SCORE,
}
LABELS = ("two", "three", "score")


@pytest.fixture(autouse=True)
def one_thread_of_each(one_thread):
    """Anew for each test, as it loads a library; see `one_thread`."""
    with pytest.importorskip("threadpoolctl").threadpool_limits(1):
        yield


TRAIN, HELD = ({n: c[rows] for n, c in TABLE.items()} for rows in (slice(300), slice(300, N)))


def of(label, part):
    return {n: c for n, c in part.items() if n not in LABELS or n == label}


def fitted(method, label, **options):
    train, held = of(label, TRAIN), of(label, HELD)
    return tabular.fit(train, method, label=label, validation=held, progress=False, **options)


def answered(model, part):
    answer = model.predict(part)
    return answer.values if hasattr(answer, "values") else answer.probabilities


def xs(part):
    """The categories' numbers and the numbers, as a user of the libraries makes them."""
    codes = np.searchsorted(["a", "b", "c"], part["plan"].astype(str))
    return np.stack([codes, part["age"], part["spent"]], -1)


def ys(label, part):
    if label == "score":
        target = TRAIN["score"].astype(np.float32).astype(float)
        return (part["score"].astype(np.float32) - target.mean()) / target.std()
    return np.unique(TABLE[label].astype(str), return_inverse=True)[1][
        slice(300) if part is TRAIN else slice(300, N)
    ]


def in_unit(label, outputs):
    target = TRAIN["score"].astype(np.float32).astype(float)
    return outputs * target.std() + target.mean() if label == "score" else outputs


SETTINGS = {"learning_rate": 0.2, "max_leaf_nodes": 8, "min_samples_leaf": 5}


@pytest.mark.parametrize("label", LABELS)
def test_scikit_learn_given_the_same_rows_as_a_frame_predicts_the_same(label):
    pd = pytest.importorskip("pandas")
    ensemble = pytest.importorskip("sklearn.ensemble")
    model = fitted(tabular.HistGradientBoosting(max_iter=30, **SETTINGS), label)

    def frame(part):
        columns = pd.DataFrame({n: part[n] for n in ("age", "plan", "spent")})
        return columns.astype({"plan": pd.CategoricalDtype(["a", "b", "c"])})

    make = (
        ensemble.HistGradientBoostingRegressor
        if label == "score"
        else ensemble.HistGradientBoostingClassifier
    )
    own = make(max_iter=30, categorical_features="from_dtype", early_stopping=True, scoring="loss",
               n_iter_no_change=50, random_state=0, **SETTINGS)  # fmt: skip
    own.fit(frame(TRAIN), ys(label, TRAIN), X_val=frame(HELD), y_val=ys(label, HELD))
    best = int(np.argmax(own.validation_score_))
    assert 1 < best <= 30
    stages = own.staged_predict if label == "score" else own.staged_predict_proba
    odd = {**TABLE, "plan": np.where(np.arange(N) % 9 == 0, "new", PLAN).astype(object)}
    wanted = in_unit(label, list(stages(frame(odd)))[best - 1])
    np.testing.assert_allclose(answered(model, odd), wanted, rtol=1e-5, atol=1e-5)


def test_thresholds_divide_float32_numbers_as_those_of_float64():
    narrow = RNG.normal(size=1000).astype(np.float32)
    wide = narrow.astype(np.float64) + RNG.choice([-1e-9, 0, 1e-9], 1000)
    wide[:3] = np.inf, 1e300, -1e300
    kept = hist_trees._at_most(wide)
    assert kept.dtype == np.float32
    for near in (narrow, np.nextafter(narrow, np.float32(9)), np.nextafter(narrow, np.float32(-9))):
        np.testing.assert_array_equal(near <= kept, near.astype(np.float64) <= wide)


def test_rare_values_share_a_category():
    names = np.array([f"v{i}" for i in range(40)], object)
    column = np.concatenate([names.repeat(10), names[:5].repeat(30)])
    y = np.where(np.isin(column, names[:5]), "x", "y").astype(object)
    y[RNG.random(len(y)) < 0.05] = "x"
    table = {"name": column, "other": RNG.normal(size=len(y)), "y": y}
    trees = tabular.HistGradientBoosting(max_bins=8, max_iter=10, min_samples_leaf=5)
    model = tabular.fit(table, trees, label="y", progress=False)
    p = model.predict({"name": names, "other": np.zeros(40)}).probabilities[:, 0]
    assert len(np.unique(p[5:])) == 3 and p[:5].min() > p[5:].max()  # 7 of their own, one for all


@pytest.mark.slow
def test_a_column_of_100_000_categories_is_read():
    words = np.array([f"w{i:06d}" for i in range(100_000)], object)
    column = np.concatenate([np.tile(words, 2), words[:1].repeat(100_000)])
    y = np.where(np.arange(len(column)) < 200_000, RNG.normal(size=len(column)), 5.0)
    validation = {"word": words[:9], "y": np.arange(9.0)}
    trees = tabular.HistGradientBoosting(max_iter=2, learning_rate=1.0)
    table = {"word": column, "y": y}
    model = tabular.fit(table, trees, label="y", validation=validation, progress=False)
    found = model.predict({"word": ["w000000", "w000999", "never seen"]}).values
    assert found[0] > 4.5 and abs(found[1]) < 0.5 and model.task.trees.ranks.shape == (1, 100_001)


def test_trees_that_are_read_wrongly_end_the_training(monkeypatch):
    monkeypatch.setattr(hist_trees, "_at_most", lambda threshold: threshold.astype(np.float32) + 9)
    with pytest.raises(RuntimeError, match=r"the trees of scikit-learn .* must predict as there"):
        fitted(tabular.HistGradientBoosting(max_iter=5), "score")


BOOSTERS = {
    "lightgbm": {"n_estimators": 12, "learning_rate": 0.1, "num_leaves": 6, "subsample": 1.0,
                 "min_child_samples": 5, "min_child_weight": 1e-3, "subsample_freq": 0,
                 "n_jobs": 1},
    "xgboost": {"n_estimators": 12, "learning_rate": 0.1, "max_depth": 3, "tree_method": "hist",
                "min_child_weight": 1.0, "reg_lambda": 1.0, "subsample": 1.0,
                "colsample_bylevel": 1.0},
    "catboost": {"iterations": 12, "learning_rate": 0.1, "depth": 3, "random_strength": 0.0,
                 "max_bin": 64, "boosting_type": "Plain", "subsample": 1.0,
                 "bootstrap_type": "Bernoulli", "one_hot_max_size": 4, "l2_leaf_reg": 1.0,
                 "leaf_estimation_iterations": 2},
}  # fmt: skip
METHODS = {"lightgbm": "LightGBM", "xgboost": "XGBoost", "catboost": "CatBoost"}


def by_the_library(name, label, settings, part):
    """What the library predicts, called as its users do."""
    library = pytest.importorskip(name)
    x, y, kind = xs(TRAIN), ys(label, TRAIN), "Regressor" if label == "score" else "Classifier"
    if name == "lightgbm":
        own = getattr(library, f"LGBM{kind}")(**settings, random_state=0, verbosity=-1)
        own.fit(x, y, categorical_feature=[0])
        booster = own.booster_.predict(xs(part))
        return np.stack([1 - booster, booster], -1) if label == "two" else booster
    if name == "xgboost":
        kinds = ["c", "q", "q"]
        own = getattr(library, f"XGB{kind}")(**settings, enable_categorical=True,
                                             feature_types=kinds, random_state=0)  # fmt: skip
        own.fit(x, y)
        return own.predict(xs(part)) if label == "score" else own.predict_proba(xs(part))
    pd = pytest.importorskip("pandas")
    frames = [pd.DataFrame(xs(one)).astype({0: int}) for one in (TRAIN, part)]
    own = getattr(library, f"CatBoost{kind}")(**settings, cat_features=[0], random_seed=0,
                                              verbose=False, allow_writing_files=False)  # fmt: skip
    own.fit(frames[0], y)
    return own.predict(frames[1]) if label == "score" else own.predict_proba(frames[1])


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("name", BOOSTERS)
def test_the_libraries_themselves_predict_the_same(name, label, tmp_path):
    pytest.importorskip(name)
    settings = BOOSTERS[name]
    if name == "catboost" and label == "score":  # as its gradient steps are those of the method
        settings = {**settings, "leaf_estimation_iterations": 1}
    model = fitted(getattr(tabular, METHODS[name])(**settings), label)
    wanted = in_unit(label, by_the_library(name, label, settings, HELD))
    np.testing.assert_allclose(answered(model, HELD), wanted, rtol=2e-5, atol=2e-5)
    jo.save(tmp_path / "trees.model", model)
    again = answered(jo.load(tmp_path / "trees.model"), HELD)
    np.testing.assert_array_equal(again, answered(model, HELD))


@pytest.mark.parametrize("name", [*BOOSTERS, "HistGradientBoosting"])
def test_defaults_learn_and_stop_by_the_validation_rows(name):
    pytest.importorskip(name if name in METHODS else "sklearn")
    small = {"lightgbm": {"min_child_samples": 5, "n_jobs": 1}}.get(name, {})
    model = fitted(getattr(tabular, METHODS.get(name, name))(**small), "two")
    scored = tabular.evaluate(model, of("two", HELD))
    assert scored.figures()["auc"] > 0.9
    assert model.about["validation"] == pytest.approx(scored.figures())
    new = {"age": [np.nan, 30.0], "plan": ["never seen", ""], "spent": [1.0, np.nan]}
    p = model.predict(new).probabilities
    assert p.shape == (2, 2) and np.isfinite(p).all()


def test_a_class_that_the_train_rows_lack_has_probability_zero():
    train = {n: c[TRAIN["three"] != "low"] for n, c in of("three", TRAIN).items()}
    label = train["three"].copy()
    label[:1] = "low"  # in the table, but by its group on the validation side
    table = {**train, "three": label, "group": np.where(np.arange(len(label)) == 0, 0.0, 1.0)}
    table["group"][1:40] = 0
    pytest.importorskip("lightgbm")
    trees = tabular.LightGBM(n_estimators=3, n_jobs=1)
    for seed in range(4):
        model = tabular.fit(table, trees, label="three", groups="group", validation=0.5,
                            seed=seed, progress=False)  # fmt: skip
        p = answered(model, HELD)
        assert p.shape == (100, 3)
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
        if model.task.present == (0, 2):
            assert (p[:, 1] == 0).all()
            break
    else:
        pytest.fail("no seed held the class out")


COUNTS = {
    "lightgbm": {"n_estimators": 60, "num_leaves": 8, "min_child_samples": 20, "n_jobs": 1},
    "xgboost": {"n_estimators": 60, "max_depth": 3, "min_child_weight": 20.0},
    "catboost": {"iterations": 60, "depth": 3},
    "HistGradientBoosting": {"max_iter": 60, "max_leaf_nodes": 8},
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_poisson_distributed(name):
    pytest.importorskip(name if name in METHODS else "sklearn")
    rate = np.exp(np.nan_to_num(AGE, nan=30) / 20 - 1)
    table = {"age": AGE, "plan": PLAN, "visits": np.random.default_rng(1).poisson(rate)}
    trees = getattr(tabular, METHODS.get(name, name))(**COUNTS[name])
    model = tabular.fit(table, trees, label="visits", target="counts", progress=False)
    found = model.predict(table).values
    assert found.min() > 0 and np.corrcoef(found, rate)[0, 1] > 0.85
    assert found.mean() == pytest.approx(table["visits"].mean(), rel=0.12)
    assert tabular.evaluate(model, table).figures()["deviance"] < 1.3
    with pytest.raises(ValueError, match="method must be a network for quantiles, got"):
        tabular.fit(table, trees, label="visits", target="quantiles", levels=[0.5])


def test_counts_in_the_thousands():
    x = np.random.default_rng(0).normal(size=120)
    visits = np.random.default_rng(1).poisson(3000 * np.exp(x / 2))
    trees = tabular.HistGradientBoosting(max_iter=20, min_samples_leaf=5)
    options = {"label": "visits", "target": "counts", "progress": False}
    found = tabular.fit({"x": x, "visits": visits}, trees, **options).predict({"x": x}).values
    assert np.corrcoef(found, visits)[0, 1] > 0.8


@pytest.mark.parametrize("name", COUNTS)
def test_numbers_that_float32_would_merge_stay_different(name):
    pytest.importorskip(name if name in METHODS else "sklearn")
    seconds = 1.7e9 + np.arange(N)  # as float32 there are few of them
    table = {"seconds": seconds, "plan": np.where(np.arange(N) < N // 2, "a", "b")}
    trees = getattr(tabular, METHODS.get(name, name))(**COUNTS[name])
    model = tabular.fit(table, trees, label="plan", progress=False)
    assert (model.predict(table).labels == table["plan"]).mean() > 0.98


def test_other_names_of_settings_replace_the_defaults_of_catboost():
    pytest.importorskip("catboost")
    names = {"n_estimators": 3, "eta": 0.3, "max_depth": 2, "reg_lambda": 2.0, "border_count": 16}
    model = fitted(tabular.CatBoost(**names), "two")
    own = model.task.trees._model
    assert own.tree_count_ <= 3 and own.get_all_params()["depth"] == 2
    same = tabular.CatBoost(iterations=3, learning_rate=0.3, depth=2, l2_leaf_reg=2.0, max_bin=16)
    np.testing.assert_array_equal(answered(model, HELD), answered(fitted(same, "two"), HELD))


def test_the_time_ends_it():
    table = of("score", TABLE)
    model = tabular.fit(table, tabular.HistGradientBoosting(learning_rate=1e-3, max_leaf_nodes=3),
                        label="score", budget=1e-6, progress=False)  # fmt: skip
    assert len(model.task.trees.roots) <= 64


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (tabular.HistGradientBoosting(depth=3), {}, "settings of HistGradientBoosting .* 'depth'"),
        (tabular.HistGradientBoosting(loss="poisson"), {}, "none that fit sets, got 'loss'"),
        (tabular.HistGradientBoosting(), {"epochs": 3}, "epochs must be left out where trees"),
        (tabular.HistGradientBoosting(max_iter=0), {}, "max_iter"),
    ],
)
def test_settings_that_cannot_be(method, options, message):
    with pytest.raises(ValueError, match=message):
        fitted(method, "two", **options)
