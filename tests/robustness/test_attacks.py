"""Adversarial examples and training beside closed forms of linear models, and a loop by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxops as jo
from jaxops import robustness, tabular, vision
from jaxops.robustness.attacks import Attack

RNG = np.random.default_rng(0)
W, B = np.array([1.0, -2.0, 0.5], np.float32), np.float32(0.3)
LINE = tabular.classifier(tabular.MLP(()), features=3)
X = RNG.normal(size=(7, 3)).astype(np.float32)
ROWS = {"features": X, "label": np.array([0, 1, 1, 0, 1, 0, 0], np.int32)}
SIGN = np.where(ROWS["label"] == 1, 1, -1).astype(np.float32)[:, None]
DEEP = tabular.classifier(tabular.MLP((5,), outputs=3), features=3, classes=("a", "b", "c"))
WEIGHTS = np.random.default_rng(7)
K1, B1, K2, B2 = (
    WEIGHTS.normal(size=size).astype(np.float32) for size in ((3, 5), (5,), (5, 3), (3,))
)

# Rows 2 and 5 of ART 1.20.1 with PyTorch 2.13.0: FastGradientMethod(classifier, norm, eps=0.4) and
# ProjectedGradientDescent(classifier, norm, eps=0.4, eps_step=0.15, max_iter=6, num_random_init=0)
# for a PyTorchClassifier of the same weights with clip_values=(-2.5, 2.5). In row 4, where the
# bounds and the ball of norm 2 both hold, ART differs: it clips before it projects.
ART = {
    "inf": [
        [[1.7040, 0.5471, -1.1037], [-0.3323, -0.9443, 0.0837]],
        [[1.6040, 0.6471, -1.0037], [-0.3323, -0.9443, 0.0837]],
    ],
    "2": [
        [[1.3839, 0.5564, -0.7345], [-0.7318, -0.9029, -0.1391]],
        [[1.3639, 0.6540, -0.7268], [-0.7318, -0.9029, -0.1391]],
    ],
}


def started(task, rows):
    return jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=rows)


def line():
    params = {"logits": {"kernel": jnp.asarray(W[:, None]), "bias": jnp.asarray([B])}}
    return started(LINE, ROWS)._replace(params=params)


def deep():
    """A network with given weights, and rows of its three classes."""
    rows = {"features": X, "label": np.arange(7, dtype=np.int32) % 3}
    params = {"hidden_0": {"kernel": K1, "bias": B1}, "logits": {"kernel": K2, "bias": B2}}
    params = jax.tree.map(jnp.asarray, params)
    return started(DEEP, rows)._replace(params=params), rows


def test_one_step_on_a_line_goes_against_the_sign_of_its_weights():
    found = robustness.fgsm(LINE, line(), ROWS, 0.2)
    np.testing.assert_allclose(found["features"], X - 0.2 * SIGN * np.sign(W), rtol=1e-6)
    np.testing.assert_array_equal(found["label"], ROWS["label"])
    found = robustness.fgsm(LINE, line(), ROWS, 0.2, norm="2")["features"]
    np.testing.assert_allclose(found, X - 0.2 * SIGN * W / np.linalg.norm(W), rtol=1e-5)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_many_steps_on_a_line_end_at_the_best_place_of_the_ball(norm):
    way = np.sign(W) if norm == "inf" else W / np.linalg.norm(W)
    options = {"norm": norm, "steps": 40, "step_size": 0.2}
    found = robustness.pgd(LINE, line(), ROWS, 0.2, batch_size=3, **options)["features"]
    np.testing.assert_allclose(found, X - 0.2 * SIGN * way, atol=1e-4)
    toward = robustness.pgd(LINE, line(), ROWS, 0.2, target=ROWS["label"], **options)
    np.testing.assert_allclose(toward["features"], X + 0.2 * SIGN * way, atol=1e-4)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_steps_are_those_of_a_loop_by_hand(norm):
    """Backward through one hidden layer in NumPy, with projection and bounds."""
    state, rows = deep()
    k1, b1, k2, b2 = (one.astype(np.float64) for one in (K1, B1, K2, B2))
    x = X.astype(np.float64)
    for _ in range(6):
        hidden = x @ k1 + b1
        logits = np.maximum(hidden, 0) @ k2 + b2
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        g = ((p - np.eye(3)[rows["label"]]) @ k2.T * (hidden > 0)) @ k1.T
        length = np.maximum(np.linalg.norm(g, axis=1, keepdims=True), 1e-12)
        x = x + 0.15 * (np.sign(g) if norm == "inf" else g / length)
        change = x - X
        if norm == "inf":
            change = np.clip(change, -0.4, 0.4)
        else:
            far = np.linalg.norm(change, axis=1, keepdims=True)
            change = change * np.minimum(1, 0.4 / np.maximum(far, 1e-12))
        x = np.clip(X + change, -2.5, 2.5)
    options = {"norm": norm, "steps": 6, "step_size": 0.15, "bounds": (-2.5, 2.5)}
    for size in (1024, 4):  # the last batch has padding
        found = robustness.pgd(DEEP, state, rows, 0.4, scattered=False, batch_size=size, **options)[
            "features"
        ]
        np.testing.assert_allclose(found, x, atol=1e-4)


@pytest.mark.parametrize("norm", [*ART])
def test_steps_are_those_of_art(norm):
    state, rows = deep()
    options = {"norm": norm, "bounds": (-2.5, 2.5)}
    one = robustness.fgsm(DEEP, state, rows, 0.4, **options)["features"]
    several = robustness.pgd(
        DEEP, state, rows, 0.4, steps=6, step_size=0.15, scattered=False, **options
    )["features"]
    np.testing.assert_allclose([one[[2, 5]], several[[2, 5]]], ART[norm], atol=1e-4)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_starts_are_uniform_in_the_ball(norm):
    attack = Attack("x", 2.0, norm, 1, 0.1)
    drawn = np.asarray(attack._draw(jax.random.key(0), jnp.zeros((20_000, 3))))
    far = np.abs(drawn).max(1) if norm == "inf" else np.linalg.norm(drawn, axis=1)
    assert far.max() <= 2.0001  # the share within a radius r is (r / 2)^3 in both norms
    np.testing.assert_allclose([(far < r).mean() for r in (1.0, 1.5)], [0.125, 0.421875], atol=0.01)
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.04)


@pytest.fixture(scope="module")
def images():
    """Bytes whose left or right half is brighter, and a linear model that tells which."""
    label = np.arange(40, dtype=np.int32) % 2
    x = np.random.default_rng(3).integers(90, 130, (40, 4, 4, 1))
    x[:, :, :2] += 20 * (1 - label)[:, None, None, None]
    x[:, :, 2:] += 20 * label[:, None, None, None]
    rows = {"image": x.astype(np.uint8), "label": label}
    task = vision.classifier(vision.MLP((), classes=2), (4, 4, 1), classes=2)
    side = 20 * np.tile([-1.0, -1.0, 1.0, 1.0], 4)[:, None].astype(np.float32)
    params = {"logits": {"kernel": jnp.asarray(side * [[-1, 1]]), "bias": jnp.zeros(2)}}
    state = started(task, rows)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, state.params)
    state = state._replace(params=params)
    return task, state, rows


def test_bytes_stay_bytes_in_the_ball(images):
    task, state, rows = images
    before = rows["image"].astype(int)
    small = robustness.pgd(task, state, rows, 30, steps=10)
    assert small["image"].dtype == np.uint8
    assert np.abs(small["image"] - before).max() == 30
    short = robustness.pgd(task, state, rows, 90, norm="2", steps=10)["image"] - before
    length = np.sqrt((short**2).sum((1, 2, 3)))
    assert 60 < length.max() <= 90
    accuracy = [jo.evaluate(task, state, one)["accuracy"] for one in (rows, small)]
    assert accuracy[0] > 0.9 and accuracy[1] < 0.2
    again = robustness.pgd(task, state, rows, 30, steps=10)
    np.testing.assert_array_equal(again["image"], small["image"])


def test_wrong_settings(images):
    task, state, rows = images
    wrong = [
        ({"epsilon": 0.03}, "epsilon must be at least 1 for bytes.*give 8 for 8/255"),
        ({"epsilon": 0}, "epsilon must be a number above 0, got 0"),
        ({"norm": "1"}, "norm must be one of inf, 2, got '1'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"step_size": -1.0}, "step_size must be a number above 0, got -1.0"),
        ({"bounds": (0, 0)}, "bounds must be the lowest and the highest number"),
        ({"bounds": (100, 255)}, "image must be within the bounds 100 and 255, got a number out"),
        ({"column": "label"}, r"column must be one of the task's columns of numbers \(image\)"),
        ({"target": [1]}, r"target must have shape \(40,\), got \(1,\)"),
        ({"target": np.full(40, 2)}, r"label must be in \[0, 2\), got 2 in row 0"),
    ]
    for changed, message in wrong:
        with pytest.raises(ValueError, match=message):
            robustness.pgd(task, state, rows, **({"epsilon": 8} | changed))
    with pytest.raises(ValueError, match="task must not couple the rows"):
        robustness.fgsm(task._replace(coupled=True), state, rows, 8)
    with pytest.raises(ValueError, match="task must not couple the rows"):
        robustness.adversarial(task._replace(coupled=True), 8)


def test_adversarial_loss_of_a_line_is_its_closed_form():
    """The worst logit in the ball is y (w x + b) - epsilon |w|_1; padding does not count."""
    task = robustness.adversarial(LINE, 0.3)
    assert task is robustness.adversarial(LINE, 0.3)
    state = line()
    batch = {name: jnp.concatenate([value, value[:1]]) for name, value in ROWS.items()}
    batch["features"] = batch["features"].at[-1].set(jnp.nan)
    batch["mask"] = jnp.r_[jnp.full(7, 2.0), 0.0]

    def robust(params):
        kernel, bias = params["logits"]["kernel"][:, 0], params["logits"]["bias"][0]
        margin = SIGN[:, 0] * (X @ kernel + bias) - 0.3 * jnp.abs(kernel).sum()
        return 2 * jax.nn.softplus(-margin).sum()

    found = jax.jit(jax.value_and_grad(lambda p: task.loss(p, {}, batch, state.key, True)[0]))
    wanted = jax.jit(jax.value_and_grad(robust))(state.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found(state.params),
        wanted,
    )
    plain, same = (
        jax.jit(lambda one=one: one.loss(state.params, {}, batch, state.key, False)[0])()
        for one in (LINE, task)
    )
    assert float(same) == float(plain)


@pytest.mark.slow
def test_adversarial_training_trades_accuracy_for_robustness(tmp_path):
    """One strong feature is right in 85 %; many weak ones together always, and they are fragile."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 2000).astype(np.int32)
    sign = 2.0 * label - 1
    strong = sign * np.where(rng.random(2000) < 0.85, 1, -1)
    weak = 0.3 * sign[:, None] + rng.normal(size=(2000, 100))
    x = np.c_[strong, weak].astype(np.float32)
    task = tabular.classifier(tabular.MLP(()), features=101)
    told = []
    for one in (task, robustness.adversarial(task, 0.5)):
        state = jo.fit(one, {"features": x[:1000], "label": label[:1000]}, batch_size=250,
                       optimizer=jo.optim.adam(0.02), epochs=40, progress=False)  # fmt: skip
        held = {"features": x[1000:], "label": label[1000:]}
        attacked = robustness.pgd(task, state, held, 0.5)
        told.append([jo.evaluate(task, state, rows)["accuracy"] for rows in (held, attacked)])
        jo.save(tmp_path / "one.model", jo.Model(one, state))  # the task itself
        assert jo.load(tmp_path / "one.model").predict(x[:2]).shape == (2,)
    (clean, attacked), (robust_clean, robust_attacked) = told
    assert clean > 0.95 and attacked < 0.3
    assert 0.8 < robust_clean < clean and robust_attacked > 0.75
