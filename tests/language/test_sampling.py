"""What the filters leave, by their definitions and brute force; draws in binomial bounds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxops.language.sampling import Sampling, choose, choose_each, each, filtered, penalised

ROWS = np.random.default_rng(0).normal(0, 2, (40, 12)).astype(np.float32)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def survivors(logits, top_k, top_p, min_p):
    """The definitions, one after another, each on the distribution renormalised."""
    alive = set(range(len(logits)))

    def probability(i):
        return softmax(np.array([logits[j] for j in sorted(alive)]))[sorted(alive).index(i)]

    if top_k is not None:
        alive = {i for i in alive if sum(logits[j] > logits[i] for j in alive) < top_k}
    if top_p is not None:
        # of all sets with at least this probability the smallest, and of these the most probable
        p = {i: float(probability(i)) for i in alive}
        size = next(
            n
            for n in range(1, len(alive) + 1)
            if sum(sorted(p.values(), reverse=True)[:n]) >= top_p - 1e-6
        )
        alive = set(max(itertools.combinations(alive, size), key=lambda s: sum(p[i] for i in s)))
    if min_p is not None:
        p = {i: probability(i) for i in alive}
        alive = {i for i in alive if p[i] >= min_p * max(p.values())}
    return alive


CASES = [
    {"top_k": 1},
    {"top_k": 4},
    {"top_k": 50},
    {"top_p": 0.05},
    {"top_p": 0.6},
    {"top_p": 0.95},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 5, "top_p": 0.8},
    {"top_k": 6, "top_p": 0.9, "min_p": 0.2},
    {"top_p": 0.7, "min_p": 0.05},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("most", [None, 8])
def test_filters_leave_what_their_definitions_leave_with_its_share(case, most):
    if most is not None and case.get("top_k", 50) > most:
        pytest.skip("looks at more")
    found = np.array(filtered(jnp.array(ROWS), Sampling(1.0, **case), most))
    for row, left in zip(ROWS, found, strict=True):
        alive = survivors(row, *(case.get(name) for name in ("top_k", "top_p", "min_p")))
        assert set(np.flatnonzero(np.isfinite(left))) == alive
        wanted = np.where([i in alive for i in range(len(row))], np.exp(row), 0)
        np.testing.assert_allclose(softmax(left), wanted / wanted.sum(), rtol=1e-5)


def test_tokens_of_equal_probability_are_left_together():
    logits = jnp.array([[1.0, 3.0, 1.0, 0.0]])
    for sampling in (Sampling(top_k=2), Sampling(top_p=0.8)):
        left = filtered(logits, sampling, 2 if sampling.top_k else None)
        assert jnp.isfinite(left).tolist() == [[True, True, True, False]]


def test_the_penalty_makes_what_occurred_less_probable():
    logits, seen = jnp.array(ROWS), jnp.array(ROWS > 0) ^ (jnp.arange(12)[None] % 2 == 0)
    found = np.array(penalised(logits, seen, 1.3))
    for i, j in np.ndindex(*ROWS.shape):
        x = ROWS[i, j]
        wanted = x if not seen[i, j] else (x / 1.3 if x > 0 else x * 1.3)
        assert found[i, j] == pytest.approx(wanted, rel=1e-6)
    assert (found <= ROWS).all()


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0), Sampling(0.5, top_k=4), Sampling(2.0, top_p=0.7, min_p=0.1)]
)
def test_draws_are_as_frequent_as_the_distribution_has_them(sampling):
    draws = 20_000
    row = ROWS[0]
    keys = jax.random.split(jax.random.key(1), draws)
    found = np.bincount(choose(jnp.tile(row[None], (draws, 1)), keys, sampling), minlength=len(row))
    alive = survivors(row / sampling.temperature, *sampling[1:4])
    p = np.where([i in alive for i in range(len(row))], np.exp(row / sampling.temperature), 0)
    p /= p.sum()
    # 36 counts here, each outside four standard deviations with 6e-5 (and skewed where p is small)
    assert (abs(found - draws * p) <= 4 * np.sqrt(draws * p * (1 - p)) + 1).all()
    assert (found[p == 0] == 0).all()


def test_a_row_is_drawn_by_its_own_key_alone():
    keys = jax.random.split(jax.random.key(0), len(ROWS))
    together = choose(jnp.array(ROWS), keys, Sampling(1.0))
    alone = [choose(jnp.array(ROWS[i : i + 1]), keys[i : i + 1], Sampling(1.0)) for i in range(9)]
    assert together[:9].tolist() == [int(x[0]) for x in alone]
    assert len(set(np.array(together).tolist())) > 3


def test_without_a_temperature_the_most_probable_is_taken():
    seen = jnp.zeros(ROWS.shape, bool).at[jnp.arange(len(ROWS)), ROWS.argmax(1)].set(True)
    assert choose(jnp.array(ROWS), None, Sampling()).tolist() == ROWS.argmax(1).tolist()
    shunned = choose(jnp.array(ROWS), None, Sampling(repetition_penalty=1e9), seen=seen)
    assert not (shunned == ROWS.argmax(1)).any()


def test_rows_with_settings_of_their_own_are_chosen_as_alone():
    some = [
        Sampling(),
        Sampling(np.float32(0.7)),
        Sampling(np.float32(1.5), top_k=np.int32(3)),
        Sampling(np.float32(2.0), top_p=np.float32(0.6), min_p=np.float32(0.1)),
        Sampling(repetition_penalty=np.float32(3.0)),
        Sampling(np.float32(1.0), repetition_penalty=np.float32(2.0)),
    ]
    logits, keys = jnp.array(ROWS[:6]), jax.random.split(jax.random.key(3), 6)
    seen = logits > 1
    rows = jax.tree.map(lambda *x: np.array(x)[:, None], *map(each, some))
    for live in (np.ones(6, bool), np.arange(6) == 0):  # all, and one that is greedy
        found = np.asarray(jax.jit(choose_each)(logits, keys, rows, seen, live))
        for i in np.flatnonzero(live):
            row = slice(i, i + 1)
            assert found[i] == choose(logits[row], keys[row], some[i], seen=seen[row])[0]
