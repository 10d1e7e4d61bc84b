import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxops.model.topk import _top_k, top_k


def brute_force(queries, items, k):
    scores = queries.astype(np.float64) @ items.T.astype(np.float64)
    index = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, index, 1), index


@pytest.mark.parametrize("block", [1, 7, 10, 64, 100, 1000])
@pytest.mark.parametrize("k", [1, 5, 100])
def test_whole_numbers_with_many_ties(block, k):
    rng = np.random.default_rng(0)
    queries = rng.integers(-2, 3, (6, 4)).astype(np.float32)
    items = rng.integers(-2, 3, (100, 4)).astype(np.float32)
    scores, index = top_k(queries, items, k, block)
    wanted, order = brute_force(queries, items, k)
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(scores, wanted)
    assert len(np.unique(wanted)) < 40  # there were ties


@pytest.mark.parametrize("block", [37, 128, 512])
def test_random_numbers(block):
    rng = np.random.default_rng(1)
    queries, items = (rng.normal(size=(n, 16)).astype(np.float32) for n in (9, 512))
    scores, index = top_k(queries, items, 20, block)
    wanted, order = brute_force(queries, items, 20)
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)
    assert scores.dtype == jnp.float32 and index.dtype == jnp.int32


def test_scores_of_minus_infinity_are_items_as_well():
    items = np.array([[-np.inf], [0], [-np.inf], [-np.inf], [-np.inf]], np.float32)
    for block in (1, 2, 3, 5):
        _, index = top_k(np.ones((1, 1), np.float32), items, 5, block)
        assert index.tolist() == [[1, 0, 2, 3, 4]]


def test_factors_of_16_bits_have_sums_of_32():
    items = jnp.full((3, 512), 1 + 2**-7, jnp.bfloat16).at[1, 0].set(1)
    scores, index = top_k(jnp.ones((1, 512), jnp.bfloat16), items, 3)
    assert scores.tolist() == [[516.0, 516.0, 516.0 - 2**-7]]
    assert index.tolist() == [[0, 2, 1]]


def test_memory_does_not_grow_with_the_items():
    queries, items = jnp.zeros((64, 16)), jnp.zeros((100_000, 16))
    compiled = _top_k.lower(queries, items, None, None, 10, 1000).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 100_000 * 4 / 5


def test_inside_a_program():
    queries, items = np.eye(3, dtype=np.float32), np.arange(12, dtype=np.float32).reshape(4, 3)
    program = jax.jit(functools.partial(top_k, k=2))
    np.testing.assert_array_equal(program(queries, items)[1], [[3, 2]] * 3)


@pytest.mark.parametrize(
    ("shapes", "k", "message"),
    [
        (((2, 3), (4, 3)), 5, r"k must be in 1 to 4 \(the number of items\), got 5"),
        (((2, 3), (4, 3)), 0, "k must be .*, got 0"),
        (((2, 3), (4, 2)), 1, r"got \(2, 3\) and \(4, 2\)"),
        (((3,), (4, 3)), 1, r"must have shapes \(B, D\) and \(N, D\)"),
    ],
)
def test_bad_input(shapes, k, message):
    with pytest.raises(ValueError, match=message):
        top_k(*map(np.zeros, shapes), k)
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        top_k(np.zeros((1, 1)), np.zeros((1, 1)), 1, block=0)
