import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import filled

from jaxops import metrics
from jaxops.data.augment import Compose, Cutout, Flip
from jaxops.vision import MLP, classifier

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.integers(0, 256, (8, 6, 5, 3), np.uint8),
    "label": RNG.integers(0, 4, 8).astype(np.int32),
}
SETTINGS = {"image_shape": (6, 5, 3), "classes": 4, "mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 4.0)}
MODEL = MLP((16,), classes=4)


def started(task):
    """Parameters, and the task's loss and predictions, each compiled once."""
    params, extra = filled(task.init, BATCH, size=0.1)
    return params, extra, jax.jit(task.loss, static_argnums=4), jax.jit(task.predict)


def log_probabilities(params, images):
    """What the task should compute, in NumPy."""
    x = (images / 255 - np.asarray([0.1, 0.2, 0.3])) / np.asarray([1.0, 2.0, 4.0])
    p = jax.tree.map(np.asarray, params)
    x = np.maximum(x.reshape(len(x), -1) @ p["hidden_0"]["kernel"] + p["hidden_0"]["bias"], 0)
    logits = x @ p["logits"]["kernel"] + p["logits"]["bias"]
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_loss_metrics_and_predictions_are_those_of_numpy():
    params, extra, loss_of, predict = started(classifier(MODEL, **SETTINGS))
    want = log_probabilities(params, BATCH["image"])
    losses = -want[np.arange(8), BATCH["label"]]
    mask = np.asarray([1, 1, 1, 1, 1, 0, 0, 1], np.float32)
    for batch, weights in ((BATCH, np.ones(8)), ({**BATCH, "mask": mask}, mask)):
        loss, out = loss_of(params, extra, batch, KEY, False)
        np.testing.assert_allclose(loss, (losses * weights).sum(), rtol=1e-5)
        assert out.weight == weights.sum()
        read = metrics.summarize(out.metrics)
        right = (want.argmax(1) == batch["label"]) * weights
        assert read["accuracy"] == pytest.approx(right.sum() / weights.sum())
    probabilities = predict(params, extra, {"image": BATCH["image"]})
    np.testing.assert_allclose(probabilities, np.exp(want), rtol=1e-4, atol=1e-6)


def test_label_smoothing_is_for_training_only():
    params, extra, loss_of, _ = started(classifier(MODEL, **SETTINGS, label_smoothing=0.2))
    logs = log_probabilities(params, BATCH["image"])
    target = np.full((8, 4), 0.05) + 0.8 * np.eye(4)[BATCH["label"]]
    smooth, _ = loss_of(params, extra, BATCH, KEY, True)
    np.testing.assert_allclose(smooth, -(target * logs).sum(), rtol=1e-5)
    plain, _ = loss_of(params, extra, BATCH, KEY, False)
    np.testing.assert_allclose(plain, -logs[np.arange(8), BATCH["label"]].sum(), rtol=1e-5)


def test_augmentation_sees_unit_images_and_only_training_ones():
    seen = []

    def note(key, images):
        seen.append(images)
        return images[:, :, ::-1]

    task = classifier(MODEL, **SETTINGS, augment=note)
    params, extra, loss_of, predict = started(task)
    predict(params, extra, BATCH)
    loss_of(params, extra, BATCH, KEY, False)
    assert not seen

    @jax.jit
    def augmented(params):
        return task.loss(params, extra, BATCH, KEY, True)[0], seen.pop()

    loss, images = augmented(params)
    np.testing.assert_allclose(images, BATCH["image"] / 255, rtol=1e-6)
    logs = log_probabilities(params, BATCH["image"][:, :, ::-1])
    np.testing.assert_allclose(loss, -logs[np.arange(8), BATCH["label"]].sum(), rtol=1e-5)


def test_a_few_steps_learn_with_everything_switched_on():
    model = MLP((32,), classes=4, dropout=0.1, batch_norm=True)
    task = classifier(model, **SETTINGS, augment=Compose((Flip(), Cutout(2))), label_smoothing=0.05)
    (params, extra), loss_of = jax.jit(task.init)(KEY, BATCH), jax.jit(task.loss, static_argnums=4)
    before = loss_of(params, extra, BATCH, KEY, False)[0]

    @jax.jit
    def step(carry, key):
        params, extra = carry
        grads, out = jax.grad(task.loss, has_aux=True)(params, extra, BATCH, key, True)
        return (jax.tree.map(lambda p, g: p - 0.02 * g, params, grads), out.extra), None

    (params, extra), _ = jax.lax.scan(step, (params, extra), jax.random.split(KEY, 200))
    after, out = loss_of(params, extra, BATCH, KEY, False)
    assert after < 0.2 * before
    assert metrics.summarize(out.metrics)["accuracy"] == 1.0
    assert jnp.any(extra["batch_stats"]["norm_0"]["mean"] != 0)


def test_names_columns_and_equal_calls():
    task = classifier(MODEL, **{**SETTINGS, "classes": ["a", "b", "c", "d"]})
    assert task.classes == ("a", "b", "c", "d")
    assert [(c.name, c.shape, c.classes, c.target) for c in task.columns] == [
        ("image", (6, 5, 3), None, False),
        ("label", (), 4, True),
    ]
    augment = Compose((Flip(), Cutout(2)))
    assert classifier(MODEL, **SETTINGS, augment=augment) is classifier(
        MODEL, **SETTINGS, augment=Compose((Flip(), Cutout(2)))
    )
    assert task.recipe is not None and task.recipe[0] is classifier
    with pytest.raises(ValueError, match=r"module.classes must be 3 .*, got 4"):
        classifier(MODEL, classes=3)
