"""Attention against a sum over keys in NumPy, JAX's own and PyTorch's."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_transformer import bucket, rotated

from jaxops import nn as jnn
from jaxops.nn import (
    attention_mask,
    computing,
    dot_product_attention,
    product,
    rotary,
    sinusoidal,
)
from jaxops.nn.attention import has_fused_attention, relative_bucket

B, T, H = 2, 7, 4
HEADS = {"multi": (4, 4), "grouped": (4, 2), "multi-query": (4, 1)}
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 2]], np.int32)
PLACES = np.array([[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5, 0]], np.int32)
ROW = np.tile(np.arange(T, dtype=np.int32), (B, 1))
ONE = np.ones((B, T), np.int32)
# positions, segments, causal, window
MASKS = {
    "all": (ROW, ONE, False, None),
    "causal": (ROW, ONE, True, None),
    "window": (ROW, ONE, True, 3),
    "padding": (ROW, (SEGMENTS > 0).astype(np.int32), False, None),
    "packed": (PLACES, SEGMENTS, False, None),
    "packed causal": (PLACES, SEGMENTS, True, None),
    "packed window": (PLACES, SEGMENTS, True, 2),
}


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def qkv(heads, groups):
    return normal(0, B, T, heads, H), normal(1, B, T, groups, H), normal(2, B, T, groups, H)


def sees(name, b, t, s):
    positions, segments, causal, window = MASKS[name]
    if segments[b, t] != segments[b, s] or segments[b, s] == 0:
        return False
    back = positions[b, t] - positions[b, s]
    return (back >= 0 or not causal) and (window is None or back < window)


@functools.cache
def mask_of(name):
    positions, segments, causal, window = MASKS[name]
    made = jax.jit(attention_mask, static_argnums=(4, 5))
    return made(positions, positions, segments, segments, causal, window)


def brute_force(name, q, k, v):
    """One query, head and key at a time; zeros where a query sees nothing."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    share = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(*q.shape[:3]):
        seen = [s for s in range(T) if sees(name, b, t, s)]
        if seen:
            weights = np.exp([q[b, t, n] @ k[b, s, n // share] / np.sqrt(H) for s in seen])
            out[b, t, n] = weights @ v[b, seen, n // share] / weights.sum()
    return out


def real(name):
    """(B, T, 1, 1): 0 at padding, which sees nothing and means nothing."""
    return np.float32(MASKS[name][1] > 0)[..., None, None]


def loss(attend, q, k, v, mask, bias, weight):
    y = attend(q, k, v, mask, bias)
    return (y * weight).sum(), y


def by_jax(q, k, v, mask, bias):
    whole = jnp.broadcast_to(mask, (B, 1, T, T))
    return jax.nn.dot_product_attention(q, k, v, bias, whole)


def scaled(*arrays):
    return dot_product_attention(*arrays, scale=0.7)


# compiled once for all masks
run = jax.jit(jax.value_and_grad(loss, (1, 2, 3, 5), has_aux=True), static_argnums=0)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", MASKS)
def test_against_brute_force_and_jax(name, heads):
    arrays, mask = qkv(*HEADS[heads]), np.broadcast_to(mask_of(name), (B, 1, T, T))
    bias, weight = np.zeros((1, 4, T, T), np.float32), normal(3, B, T, 4, H) * real(name)
    (_, y), ours = run(dot_product_attention, *arrays, mask, bias, weight)
    np.testing.assert_allclose(y * real(name), brute_force(name, *arrays), atol=1e-5)
    (_, want), theirs = run(by_jax, *arrays, mask, bias, weight)
    np.testing.assert_allclose(y * real(name), want * real(name), atol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 3])
def test_causal_without_a_mask_is_the_mask(window):
    """And with one, both hold."""
    q, k, v = qkv(4, 2)
    place = jnp.arange(T)[None]
    mask = attention_mask(place, place, causal=True, window=window)
    segments = mask_of("padding")

    @jax.jit
    def run(q, k, v):
        how = {"causal": True, "window": window}
        plain = dot_product_attention(q, k, v, **how), dot_product_attention(q, k, v, mask)
        masked = dot_product_attention(q, k, v, segments, **how)
        return plain, (masked, dot_product_attention(q, k, v, mask & segments))

    for got, want in run(q, k, v):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", MASKS)
def test_against_pytorch(name, heads):
    torch = pytest.importorskip("torch")
    arrays = qkv(*HEADS[heads])
    bias, weight = normal(4, B, 4, T, T), normal(3, B, T, 4, H) * real(name)
    mask = np.broadcast_to(mask_of(name), (B, 1, T, T))
    (value, _), ours = run(scaled, *arrays, mask, bias, weight)
    leaves = [torch.tensor(np.asarray(x), requires_grad=True) for x in (*arrays, bias)]
    q, k, v = (x.transpose(1, 2) for x in leaves[:3])
    # a row without keys is NaN in PyTorch: padding sees itself
    seen = np.asarray(mask) | np.eye(T, dtype=bool)
    added = leaves[3] + torch.where(torch.tensor(seen), 0.0, -torch.inf)
    y = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, added, scale=0.7, enable_gqa=True
    ).transpose(1, 2)
    total = (y * torch.tensor(np.asarray(weight))).sum()
    total.backward()
    assert value == pytest.approx(total.item(), abs=1e-4)
    for a, b in zip(ours, leaves, strict=True):
        np.testing.assert_allclose(a, b.grad, atol=1e-4)


@pytest.mark.parametrize("self", [True, False], ids=["self", "cross"])
def test_module_is_that_of_pytorch(self):
    """`torch.nn.MultiheadAttention` with the same weights; values and gradients."""
    torch = pytest.importorskip("torch")
    width, heads = 16, 4
    module = torch.nn.MultiheadAttention(width, heads, batch_first=True)
    for p in module.parameters():  # the biases would start at 0
        torch.nn.init.normal_(p, std=0.3)
    x, memory = normal(0, B, T, width), normal(1, B, 5, width)
    ours = jnn.Attention(width, heads, heads, width // heads, cross=not self)
    kernel, bias = (p.detach().numpy().T for p in (module.in_proj_weight, module.in_proj_bias))
    out = module.out_proj.weight.detach().numpy().T, module.out_proj.bias.detach().numpy()
    params = {"out": {"kernel": out[0], "bias": out[1]}}
    if self:
        params["qkv"] = {"kernel": kernel, "bias": bias}
    else:
        parts = (("query", slice(width)), ("key_value", slice(width, None)))
        for name, part in parts:
            params[name] = {"kernel": kernel[:, part], "bias": bias[part]}
    weight = normal(2, B, T, width)

    def run(params, x, memory):
        def both(a, x, memory):
            if self:
                return a(x, jnp.arange(T)[None])[0]
            return a.recall(x, a.remember(memory), None)

        y = ours.apply({"params": params}, x, memory, method=both)
        return (y * weight).sum(), y

    (_, y), (dparams, dx, dmemory) = jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True))(
        jax.tree.map(jnp.asarray, params), x, memory
    )
    tx, tmemory = (torch.tensor(np.asarray(z), requires_grad=True) for z in (x, memory))
    other = tx if self else tmemory
    want = module(tx, other, other, need_weights=False)[0]
    (want * torch.tensor(np.asarray(weight))).sum().backward()
    np.testing.assert_allclose(y, want.detach(), atol=1e-4)
    np.testing.assert_allclose(dx, tx.grad, atol=1e-3)
    np.testing.assert_allclose(dparams["out"]["kernel"], module.out_proj.weight.grad.T, atol=1e-3)
    wanted = module.in_proj_weight.grad.T
    if not self:
        np.testing.assert_allclose(dmemory, tmemory.grad, atol=1e-3)
    names = ("qkv",) if self else ("query", "key_value")
    got = np.concatenate([dparams[name]["kernel"] for name in names], -1)
    np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_bfloat16_is_close(monkeypatch):
    """Values of size 1; each factor is rounded by 2**-9 of itself."""
    monkeypatch.setattr(product, "has_bfloat16", lambda: True)
    q, k, v = qkv(4, 2)
    mask = mask_of("packed causal")
    attend = jax.jit(dot_product_attention)  # traced anew for each way to compute
    want = attend(q, k, v, mask)
    with computing("bfloat16"):
        got = attend(q, k, v, mask)
    assert got.dtype == jnp.float32
    difference = np.abs((got - want) * real("packed causal")).max()
    assert 1e-4 < difference < 0.03


def test_what_sees_nothing_is_finite():
    q, k, v = qkv(4, 4)
    nothing = jnp.zeros((1, 1, T, T), bool)
    attend = jax.value_and_grad(lambda q: dot_product_attention(q, k, v, nothing).sum())
    value, gradient = jax.jit(attend)(q)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_a_mistake_is_named():
    q, k, v = qkv(4, 4)
    for wrong in ((q, k[:, :, :3], v[:, :, :3]), (q, k, v[:, :5]), (q, k[..., :2], v)):
        with pytest.raises(ValueError, match=r"with N a multiple of K, got"):
            dot_product_attention(*wrong)


def test_rotary_is_a_turn_of_complex_numbers():
    x = normal(0, B, T, 3, 8)
    positions = jnp.asarray([np.arange(T), np.arange(T) + 40])
    got = jax.jit(lambda *a: rotary(*a, 500.0))(x, positions)
    for b in range(B):
        for n in range(3):
            want = rotated(np.asarray(x[b, :, n], np.float64), np.asarray(positions[b]), 500.0)
            np.testing.assert_allclose(got[b, :, n], want, atol=1e-5)


def test_rotary_products_depend_on_the_distance_alone():
    q, k = normal(0, 1, 1, 1, 8), normal(1, 1, 1, 1, 8)

    @jax.jit
    def dot(t, s):
        return (rotary(q, t.reshape(1, 1)) * rotary(k, s.reshape(1, 1))).sum()

    near, far, other = (float(dot(*map(jnp.array, p))) for p in ((9, 4), (105, 100), (9, 5)))
    assert abs(near - far) < 1e-4 < 1e-3 < abs(near - other)


def test_sinusoidal_is_as_published():
    """Section 3.5 of Vaswani et al.: sin and cos of pos / 10000^(2i / d)."""
    got = sinusoidal(jnp.array([[0, 1, 50]]), 6)[0]
    for row, place in zip(got, (0, 1, 50), strict=True):
        angles = np.array([place / 10_000 ** (2 * i / 6) for i in range(3)])
        np.testing.assert_allclose(row, [*np.sin(angles), *np.cos(angles)], atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_relative_buckets_are_exact(causal):
    """Also where a distance is just at a bucket's edge, and compiled."""
    distance = jnp.arange(-300, 301)
    want = [bucket(d, causal) for d in range(-300, 301)]
    np.testing.assert_array_equal(relative_bucket(distance, causal), want)
    compiled = jax.jit(relative_bucket, static_argnums=1)(distance, causal)
    np.testing.assert_array_equal(compiled, want)
    assert max(want) == 31 and min(want) == 0


@pytest.mark.parametrize(
    ("capability", "width", "fused"),
    [
        ("9.0", 64, True),
        ("8.0", 128, True),
        ("7.5", 64, False),
        ("8.6", 36, False),
        (None, 64, False),
    ],
)
def test_where_the_fused_kernel_is_asked_for(capability, width, fused, monkeypatch):
    """Ampere and later, heads of up to 128 in eights; other makers' devices name no capability."""
    device = types.SimpleNamespace(
        **({} if capability is None else {"compute_capability": capability})
    )
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert has_fused_attention(width) is fused
