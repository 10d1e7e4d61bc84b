"""Splits of rows over clients, and compressed updates."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxops as jo
from jaxops import federation, optim

LABELS = np.repeat(np.arange(10), 60)


def is_partition(parts, rows):
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(rows))


def test_even_clients_are_alike():
    parts = federation.even(605, clients=20, seed=1)
    is_partition(parts, 605)
    assert sorted({len(part) for part in parts}) == [30, 31]
    assert parts[0].tolist() != federation.even(605, clients=20, seed=2)[0].tolist()


def test_two_shards_have_few_labels():
    parts = federation.by_shard(LABELS, clients=10, seed=3)  # shards of 30 rows: one label each
    is_partition(parts, 600)
    assert {len(part) for part in parts} == {60}
    assert max(len(np.unique(LABELS[part])) for part in parts) == 2


def test_shares_of_a_label_have_the_moments_of_a_dirichlet_distribution():
    clients, concentration = 5, 0.5
    shares = []
    for seed in range(200):
        parts = federation.dirichlet(LABELS, clients, concentration, seed)
        is_partition(parts, 600)
        shares += [(LABELS[parts[0]] == label).mean() * len(parts[0]) / 60 for label in range(10)]
    mean = 1 / clients
    assert np.mean(shares) == pytest.approx(mean, abs=0.04)
    want = mean * (1 - mean) / (clients * concentration + 1)
    assert np.var(shares) == pytest.approx(want, rel=0.15)


def test_splits_that_are_refused():
    with pytest.raises(ValueError, match="clients must be at most 3"):
        federation.even(3, clients=4)
    with pytest.raises(ValueError, match="shards must be at most 60 for 600 rows of 10 clients"):
        federation.by_shard(LABELS, clients=10, shards=61)
    with pytest.raises(ValueError, match="concentration must be above 0, got 0"):
        federation.dirichlet(LABELS, 5, 0.0)
    with pytest.raises(ValueError, match="concentration must be large enough that 9 clients"):
        federation.dirichlet(LABELS[:60], 9, 0.01, least=6)


def test_eight_bits_are_unbiased():
    update = {"a": jnp.array([0.1234, -0.7, 1.0, 0.0]), "b": jnp.array([[1e-3, -2e-4]])}
    keys = jax.random.split(jax.random.key(0), 4000)
    sent = jax.vmap(lambda key: federation.eight_bits().compress(key, update))(keys)
    for name, leaf in update.items():
        step = float(abs(leaf).max()) / 127
        drawn, values = np.asarray(sent[name], float), np.asarray(leaf, float)
        assert abs(drawn - values).max() <= step * (1 + 1e-5)
        steps = drawn / step  # whole numbers
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
        error = 5 * step / 2 / len(keys) ** 0.5 + 1e-7  # five standard errors
        np.testing.assert_allclose(drawn.mean(0), values, atol=error)
    assert federation.eight_bits().size(update) == 4 + 4 + 2 + 4


def test_top_k_keeps_the_largest():
    rng = np.random.default_rng(0)
    update = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": rng.normal(size=8)}
    update["b"] = update["b"].astype(np.float32)
    sent = federation.top_k(0.25).compress(jax.random.key(0), update)
    both = np.concatenate([update["a"].ravel(), update["b"]])
    limit = np.sort(abs(both))[-5]  # a quarter of 20
    for name, leaf in update.items():
        np.testing.assert_array_equal(sent[name], np.where(abs(leaf) >= limit, leaf, 0))
    assert federation.top_k(0.25).size(update) == 5 * 8
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got 2"):
        federation.top_k(2)


class Line(nn.Module):
    """Parameters whose gradient is the row itself: a client's update is the same in each round."""

    @nn.compact
    def __call__(self, x):
        return (x * self.param("w", nn.initializers.zeros, (1, x.shape[-1]))).sum(-1)


LINE = jo.supervised(
    Line(),
    lambda batch, key: batch["x"],
    lambda y, batch, train: -y,
    lambda y, b, w: {},
    lambda y: y,
    (jo.Column("x", (8,)),),
)


@pytest.mark.parametrize(
    "compression",
    [
        federation.top_k(0.25),
        pytest.param(federation.eight_bits(feedback=True), marks=pytest.mark.slow),
    ],
)
def test_what_was_sent_and_what_is_left_are_all_updates(compression):
    """Karimireddy et al. 2019: the sum of the messages is that of the updates, less the rest.

    Three of four clients take part, by two in a block: a place is padding.
    """
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    clients = federation.Clients({"x": x}, [[0], [1], [2], [3]])
    records = []
    state = federation.fit(
        LINE, clients, rounds=5, clients_per_round=3, client_optimizer=optim.sgd(1.0), block=2,
        compression=compression, progress=False, reports=jo.Reports(records.append, every=1),
    )  # fmt: skip
    drawn = [np.random.default_rng((0, i)).choice(4, 3, replace=False) for i in range(5)]
    times = np.bincount(np.concatenate(drawn), minlength=4)
    assert len(set(times)) > 1
    left = np.asarray(state.opt_state.clients["left"]["w"])[:, 0]
    assert abs(left).max() > 1e-4  # something is left
    sent = np.asarray(state.params["w"])[0]
    np.testing.assert_allclose(sent, (times @ x - left.sum(0)) / 3, atol=1e-5)
    size = 3 * compression.size(state.params) / 1e6
    assert records[0]["sent_megabytes"] == pytest.approx(size)
