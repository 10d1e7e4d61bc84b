"""The squared losses: their figures (W06 in docs/errata.md), gradients and shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxops.losses import half_sum_squares, mse


def assert_close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


def test_the_two_squared_losses():
    predictions, targets = jnp.array([[1.5, 2.0, 2.0, 6.0]]), jnp.array([[1.0, 2.0, 3.0, 4.0]])
    errors = np.array([[0.5, 0.0, -1.0, 2.0]])
    assert_close(mse(predictions, targets), [1.3125])
    assert_close(half_sum_squares(predictions, targets), [2.625])
    assert_close(jax.grad(lambda p: mse(p, targets)[0])(predictions), errors / 2)
    assert_close(jax.grad(lambda p: half_sum_squares(p, targets)[0])(predictions), errors)


@pytest.mark.parametrize(
    "loss, reduce", [(mse, np.mean), (half_sum_squares, lambda e: e.sum() / 2)]
)
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 3)])
def test_rows_of_any_rank(loss, reduce, shape):
    rng = np.random.default_rng(0)
    predictions, targets = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    wanted = [reduce((p - t) ** 2) for p, t in zip(predictions, targets, strict=True)]
    assert_close(jax.jit(loss)(predictions, targets), wanted)


@pytest.mark.parametrize("loss", [mse, half_sum_squares])
def test_targets_are_never_broadcast(loss):
    # (B, 1) against (B,) would otherwise give (B, B), and a loss that looks fine
    with pytest.raises(ValueError, match=r"\(4, 1\) and \(4,\)"):
        loss(jnp.zeros((4, 1)), jnp.zeros(4))
