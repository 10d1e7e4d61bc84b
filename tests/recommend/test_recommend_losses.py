"""Losses over a catalogue against the whole softmax, formulas and simulation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxops.recommend import (
    BinaryCrossEntropy,
    BPRLoss,
    CrossEntropy,
    SampledSoftmax,
    cross_entropy,
    sampled_softmax,
)

ROWS, LENGTH, WIDTH, ITEMS = 5, 7, 4, 50


@pytest.fixture(scope="module")
def batch():
    @jax.jit
    def draw(key):
        keys = jax.random.split(key, 4)
        hidden = jax.random.normal(keys[0], (ROWS, LENGTH, WIDTH))
        table = jax.random.normal(keys[1], (ITEMS, WIDTH))
        targets = jax.random.randint(keys[2], (ROWS, LENGTH), 0, ITEMS)
        weights = jax.random.uniform(keys[3], (ROWS, LENGTH))
        return hidden, table, targets, jnp.where(weights < 0.4, 0.0, weights)

    return draw(jax.random.key(0))


@jax.jit
@jax.value_and_grad
def whole(factors, targets, weights):
    """The loss over all scores at once, of (hidden, table)."""
    hidden, table = factors
    losses = optax.softmax_cross_entropy_with_integer_labels(hidden @ table.T, targets)
    return (weights * losses).sum()


def by_chunks(factors, targets, weights, chunk=None):
    return cross_entropy(*factors, targets, weights, chunk)


@pytest.mark.parametrize(
    "chunk",
    [None, 2, 7, *(pytest.param(chunk, marks=pytest.mark.slow) for chunk in (1, 100))],
)
def test_chunks_are_the_whole_in_value_and_gradient(batch, chunk):
    hidden, table, targets, weights = batch

    @jax.jit
    def chunked(factors):
        value, gradients = jax.value_and_grad(
            lambda factors: 3.0 * by_chunks(factors, targets, weights, chunk)
        )(factors)
        alone = 3.0 * by_chunks(factors, targets, weights, chunk)  # without the gradients
        return value, gradients, alone

    wanted, wanted_gradients = whole((hidden, table), targets, 3.0 * weights)
    found, gradients, alone = chunked((hidden, table))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_allclose(alone, wanted, rtol=1e-6)
    chex.assert_trees_all_close(gradients, wanted_gradients, rtol=1e-7, atol=2e-6)


def test_large_scores_do_not_overflow(batch):
    hidden, table, targets, weights = batch
    wanted, _ = whole((100 * hidden, table), targets, weights)
    found = jax.jit(cross_entropy)(100 * hidden, table, targets, weights)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_nothing_to_foretell_is_zero(batch):
    hidden, table, targets, _ = batch
    zero = jnp.zeros(targets.shape)
    loss, gradients = jax.jit(jax.value_and_grad(by_chunks))((hidden, table), targets, zero)
    assert loss == 0
    assert all((g == 0).all() for g in gradients)


def test_a_chunk_bounds_the_memory():
    """Of the compiled programs: 64 x 50 x 20,000 scores are 256 MB."""
    factors = jnp.zeros((64, 50, 8)), jnp.zeros((20_000, 8))
    given = factors, jnp.zeros((64, 50), int), jnp.ones((64, 50))

    def scratch(program):
        return program.lower(*given).compile().memory_analysis().temp_size_in_bytes

    assert scratch(whole) > 2e8
    assert scratch(jax.jit(jax.grad(lambda *x: by_chunks(*x, chunk=1)))) < 3e7


@pytest.mark.slow
def test_the_partition_of_sampled_softmax_is_unbiased(batch):
    """Its mean over draws is the whole sum over the catalogue, within four standard errors."""
    hidden, table, targets, weights = batch
    loss, total = SampledSoftmax(negatives=20, popular=0.5), jnp.exp(hidden @ table.T).sum(-1)
    right = jnp.einsum("btd,btd->bt", hidden, table[targets])

    @jax.jit
    def partition(key):
        drawn, log_q = loss.draw(ITEMS, targets, weights, key)
        z = hidden @ table[drawn].T - (log_q + jnp.log(20.0)).reshape(1, 1, -1)
        others = jnp.where(drawn.reshape(1, 1, -1) == targets[..., None], 0.0, jnp.exp(z))
        return jnp.exp(right) + others.sum(-1)

    keys = jax.random.split(jax.random.key(1), 20_000)
    found = np.asarray(jax.lax.map(partition, keys, batch_size=100), np.float64)
    error = found.std(0) / len(keys) ** 0.5
    assert (abs(found.mean(0) - total) < 4 * error).all()
    assert (error / total < 0.02).all()  # or it would have shown nothing
    # and the loss is made of that partition
    drawn, log_q = jax.jit(lambda key: loss.draw(ITEMS, targets, weights, key))(keys[0])
    wanted = (weights * (jnp.log(partition(keys[0])) - right)).sum()
    found = jax.jit(sampled_softmax)(hidden, table, targets, weights, drawn, log_q)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_negatives_are_drawn_with_the_probabilities_they_say(batch):
    _, _, targets, weights = batch
    draw = jax.jit(SampledSoftmax(200_000, popular=0.3).draw, static_argnums=0)
    drawn, log_q = draw(ITEMS, targets, weights, jax.random.key(2))
    share = np.bincount(drawn, minlength=ITEMS) / len(drawn)
    said = np.zeros(ITEMS)
    said[np.asarray(drawn)] = np.exp(log_q)
    real = np.asarray(targets)[np.asarray(weights) > 0]
    by_hand = 0.3 * np.bincount(real, minlength=ITEMS) / len(real) + 0.7 / ITEMS
    np.testing.assert_allclose(said, by_hand, rtol=1e-5)
    np.testing.assert_allclose(share, by_hand, atol=4 * (0.05 / len(drawn)) ** 0.5)


def test_many_negatives_are_nearly_the_whole_softmax(batch):
    hidden, table, targets, weights = batch
    key = jax.random.key(3)
    every = jax.jit(CrossEntropy())(hidden, table, targets, weights, key)
    found = jax.jit(SampledSoftmax(200_000))(hidden, table, targets, weights, key)
    np.testing.assert_allclose(found, every, rtol=1e-3)


def test_one_negative_is_the_loss_of_sasrec():
    """Two items: the negative is the other one, whatever is drawn."""
    hidden = jnp.array([[[1.0, 2.0], [0.5, -1.0]]])
    table, targets = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[0, 1]])
    weights = jnp.array([[1.0, 2.0]])
    right, wrong = np.array([1.0, -1.0]), np.array([2.0, 0.5])
    losses = np.log1p(np.exp(-right)) + np.log1p(np.exp(wrong))
    arguments = (hidden, table, targets, weights, jax.random.key(0))
    binary, one, three = jax.jit(
        lambda *x: [loss(*x) for loss in (BinaryCrossEntropy(), BPRLoss(), BPRLoss(3))]
    )(*arguments)
    np.testing.assert_allclose(binary, losses @ [1, 2], rtol=1e-6)
    pairs = np.log1p(np.exp(wrong - right))
    np.testing.assert_allclose(one, pairs @ [1, 2], rtol=1e-6)
    np.testing.assert_allclose(three, pairs @ [1, 2], rtol=1e-6)


def test_gbce_weighs_the_target_by_beta():
    """Petrov and Macdonald 2023, equation 10: three items, one negative, a = 1/2."""
    hidden, table = jnp.zeros((1, 1, 2)), jnp.zeros((3, 2))
    arguments = (hidden, table, jnp.array([[1]]), jnp.ones((1, 1)), jax.random.key(0))
    losses = [BinaryCrossEntropy(1, t) for t in (0.0, 0.5, 1.0)]
    found = jax.jit(lambda *x: [loss(*x) for loss in losses])(*arguments)
    for value, beta in zip(found, (1.0, 0.75, 0.5), strict=True):
        np.testing.assert_allclose(value, (beta + 1) * np.log(2), rtol=1e-6)


def test_negatives_are_never_the_target():
    table = jnp.arange(4.0)[:, None]
    hidden, targets = jnp.ones((1, 2000, 1)), jnp.full((1, 2000), 2)

    def margin(loss):
        return jax.jit(loss)(hidden, table, targets, jnp.ones((1, 2000)), jax.random.key(0))

    # log sigmoid of 2 - {0, 1, 3}, each a third
    pairs = np.log1p(np.exp(np.array([0, 1, 3]) - 2.0))
    np.testing.assert_allclose(margin(BPRLoss()) / 2000, pairs.mean(), rtol=0.05)
    assert abs(pairs.mean() - np.r_[pairs, np.log(2)].mean()) > 0.06 * pairs.mean() / 2


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: SampledSoftmax(0), "negatives must be at least 1, got 0"),
        (lambda: SampledSoftmax(10, popular=1.0), r"popular must be in \[0, 1\), got 1.0"),
        (lambda: BinaryCrossEntropy(0), "negatives must be at least 1, got 0"),
        (lambda: BinaryCrossEntropy(1, 1.5), r"calibration must be in \[0, 1\], got 1.5"),
        (lambda: BPRLoss(0), "negatives must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_meant(make, name):
    with pytest.raises(ValueError, match=name):
        make()


def test_a_catalogue_too_large_for_one_place_of_each_row(batch, monkeypatch):
    from jaxops.recommend import losses

    hidden, table, targets, weights = batch
    wanted = whole((hidden, table), targets, weights)
    monkeypatch.setattr(losses, "AT_ONCE", 60)
    assert losses.fits(ROWS, 5, ITEMS) and not losses.fits(ROWS, 1, ITEMS)

    def in_parts(*given):  # not `by_chunks`, of which there may be a program from before
        return by_chunks(*given)

    parts = jax.jit(jax.value_and_grad(in_parts))((hidden, table), targets, weights)
    chex.assert_trees_all_close(parts, wanted, rtol=1e-5, atol=2e-6)
