import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import assert_close

from jaxops.nn import BatchNorm

KEY = jax.random.key(0)


def close(got, want):
    assert_close(got, want, rtol=1e-4, atol=1e-5)


def start(x):
    variables = jax.jit(BatchNorm().init)(KEY, x)
    variables["params"] = {"scale": jnp.arange(1.0, 4.0), "bias": jnp.arange(3.0)}
    return variables


@pytest.mark.parametrize("shape", [(8, 3), (8, 5, 4, 3)])
@pytest.mark.parametrize("mask", [None, jnp.arange(8) < 5])
def test_it_is_that_of_flax(shape, mask):
    x = np.random.default_rng(0).normal(2, 3, shape).astype(np.float32)
    variables = start(x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, jax.eval_shape(nn.BatchNorm(use_running_average=True).init, KEY, x)
    )
    flax_mask = None if mask is None else mask.reshape(8, *[1] * (len(shape) - 1))

    @jax.jit
    def run(variables, x):
        def ours(params, x):
            v = {**variables, "params": params}
            return BatchNorm().apply(v, x, train=True, mask=mask, mutable="batch_stats")

        def flax(params, x):
            v = {**variables, "params": params}
            norm = nn.BatchNorm(use_running_average=False, momentum=0.9)
            return norm.apply(v, x, mask=flax_mask, mutable="batch_stats")

        results = []
        for f in (ours, flax):
            y, pull, new = jax.vjp(f, variables["params"], x, has_aux=True)
            results.append((y, pull(jnp.cos(x)), new))
        fixed = nn.BatchNorm(use_running_average=True)
        return (
            results,
            BatchNorm().apply({**variables, **new}, x),
            fixed.apply({**variables, **new}, x),
        )

    (ours, flax), fixed, fixed_flax = run(variables, x)
    close(ours, flax)
    close(fixed, fixed_flax)


def test_padding_may_hold_anything_and_a_batch_of_padding_changes_nothing():
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    variables = start(x)

    @jax.jit
    def run(x, mask):
        return BatchNorm().apply(variables, x, train=True, mask=mask, mutable="batch_stats")

    mask = jnp.arange(6) < 4
    clean, dirty = run(x, mask), run(np.where(mask[:, None], x, np.float32(np.nan)), mask)
    close((dirty[0][:4], dirty[1]), (clean[0][:4], clean[1]))
    y, new = run(x, jnp.zeros(6, bool))
    assert np.isfinite(y).all()
    close(new["batch_stats"], variables["batch_stats"])
