"""The transformer against PyTorch's functions and layers, in the gradient of every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_transformer import bucket
from transformers_small import (
    PLACES,
    REAL,
    SEGMENTS,
    TOKENS,
    WEIGHT,
    config_of,
    each_kind,
    learned,
    params_of,
)

from jaxops.nn.blocks import Stack

torch = pytest.importorskip("torch")
F = torch.nn.functional

ACTIVATIONS = {
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_exact": F.gelu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x) ** 2,
    "swiglu": F.silu,
    "geglu": lambda x: F.gelu(x, approximate="tanh"),
}


def norm(config, p, x):
    if config.norm == "rms":
        return F.rms_norm(x, x.shape[-1:], p["scale"], config.epsilon)
    return F.layer_norm(x, x.shape[-1:], p["scale"], p.get("bias"), config.epsilon)


def dense(p, x):
    return F.linear(x, p["kernel"].T, p.get("bias"))


def rotated(x, positions, base):
    """As `transformers` writes it: x (B, N, T, H)."""
    width = x.shape[-1]
    frequency = 1.0 / base ** (torch.arange(0, width, 2) / width)
    angle = (positions[:, None, :, None] * frequency).repeat(1, 1, 1, 2)
    half = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], -1)
    return x * angle.cos() + half * angle.sin()


def attention(config, p, x, positions, mask):
    kv, h = config.kv_heads or config.heads, config.per_head
    y = dense(p["qkv"], x).unflatten(-1, (-1, h)).transpose(1, 2)
    q, k, v = y.split([config.heads, kv, kv], 1)
    if config.qk_norm:
        q = F.rms_norm(q, (h,), p["query_norm"]["scale"], config.epsilon)
        k = F.rms_norm(k, (h,), p["key_norm"]["scale"], config.epsilon)
    if config.position == "rotary":
        q, k = (rotated(z, positions, config.rotary_base) for z in (q, k))
    y = F.scaled_dot_product_attention(
        q, k, v, mask, scale=config.attention_scale, enable_gqa=kv != config.heads
    )
    return dense(p["out"], y.transpose(1, 2).flatten(2))


def feed_forward(config, p, x):
    act = ACTIVATIONS[config.activation]
    if "gate_up" in p:
        gate, up = dense(p["gate_up"], x).chunk(2, -1)
        return dense(p["down"], act(gate) * up)
    return dense(p["down"], act(dense(p["up"], x)))


def mask_of(config, p, segments, positions):
    ahead = positions[:, None, :] - positions[:, :, None]
    sees = segments[:, None, :] == segments[:, :, None]
    if config.causal:
        sees = sees & (ahead <= 0) & (ahead > -(config.window or 1000))
    mask = torch.where(sees, 0.0, -torch.inf)[:, None]
    if config.position == "relative":
        buckets = [[[bucket(d, config.causal) for d in t] for t in b] for b in ahead.tolist()]
        mask = mask + p["relative"]["embedding"][torch.tensor(buckets)].permute(0, 3, 1, 2)
    return mask


def transformer(config, p, tokens, segments, positions):
    """Logits (B, T, V)."""
    e = p["embedding"]
    x = F.embedding(tokens, e["tokens"])
    if config.position == "learned":
        x = x + e["positions"][positions]
    if config.position == "sinusoidal":
        angle = positions[..., None] * torch.exp(
            -torch.log(torch.tensor(10_000.0)) * torch.arange(0, config.width, 2) / config.width
        )
        x = x * config.width**0.5 + torch.cat([angle.sin(), angle.cos()], -1)
    if config.segment_types:
        x = x + e["types"][0]
    if config.embedding_norm:
        x = norm(config, e["norm"], x)
    mask = mask_of(config, p["stack"], segments, positions)
    for i in range(config.depth):
        b = p["stack"][f"block_{i}"]
        for name in ("attention", "feed_forward"):
            y = x if config.post_norm else norm(config, b[f"{name}_norm"], x)
            if name == "attention":
                y = attention(config, b[name], y, positions, mask)
            else:
                y = feed_forward(config, b[name], y)
            x = norm(config, b[f"{name}_norm"], x + y) if config.post_norm else x + y
    if not config.post_norm:
        x = norm(config, p["stack"]["norm"], x)
    if config.masked_head:
        x = ACTIVATIONS[config.activation](dense(e["head_dense"], x))
        return norm(config, e["head_norm"], x) @ e["tokens"].T + e["head_bias"]
    x = x * config.logit_scale
    return x @ e["tokens"].T if config.tied else dense(e["head"], x)


def as_torch(params):
    return jax.tree.map(lambda p: torch.tensor(np.asarray(p), requires_grad=True), params)


@each_kind
def test_every_gradient_is_pytorchs(kind):
    config = config_of(kind)
    logits, value, gradient = learned(config)
    params = as_torch(params_of(config))
    want = transformer(config, params, *map(torch.tensor, (TOKENS, SEGMENTS, PLACES)))
    total = (want * torch.tensor(WEIGHT)).sum()
    total.backward()
    np.testing.assert_allclose(logits * REAL, want.detach().numpy() * REAL, atol=1e-4)
    assert value == pytest.approx(total.item(), rel=1e-4, abs=1e-3)

    def close(ours, theirs):
        want = theirs.grad.numpy()
        np.testing.assert_allclose(ours, want, atol=1e-3 * max(1.0, np.abs(want).max()))

    jax.tree.map(close, gradient, params)


def linear(layer):
    parts = {"kernel": layer.weight.T, "bias": layer.bias}
    return {name: jnp.asarray(part.detach().numpy()) for name, part in parts.items()}


def normed(layer):
    parts = {"scale": layer.weight, "bias": layer.bias}
    return {name: jnp.asarray(part.detach().numpy()) for name, part in parts.items()}


def multihead(layer, cross=False):
    kernel, bias = (
        jnp.asarray(p.detach().numpy().T) for p in (layer.in_proj_weight, layer.in_proj_bias)
    )
    width = len(kernel)
    parts = {"query": slice(width), "key_value": slice(width, None)}
    parts = parts if cross else {"qkv": slice(None)}
    dense = {n: {"kernel": kernel[..., p], "bias": bias[p]} for n, p in parts.items()}
    return {**dense, "out": linear(layer.out_proj)}


def block(layer, cross):
    norms = [normed(getattr(layer, f"norm{i}")) for i in range(1, 4 if cross else 3)]
    names = ["attention_norm", *["cross_norm"] * cross, "feed_forward_norm"]
    looks = {"cross_attention": multihead(layer.multihead_attn, True)} if cross else {}
    return {
        "attention": multihead(layer.self_attn),
        **looks,
        "feed_forward": {"up": linear(layer.linear1), "down": linear(layer.linear2)},
        **dict(zip(names, norms, strict=True)),
    }


@pytest.mark.parametrize("post_norm", [False, True], ids=["pre", "post"])
@pytest.mark.parametrize("cross", [False, True], ids=["encoder", "decoder"])
def test_the_stack_is_pytorchs_layers(cross, post_norm):
    """`nn.TransformerEncoderLayer`, `nn.TransformerDecoderLayer`, with padding; both gradients."""
    kind = torch.nn.TransformerDecoderLayer if cross else torch.nn.TransformerEncoderLayer
    act = "relu" if cross else "gelu_exact"
    config = config_of("gpt2", causal=cross, post_norm=post_norm, activation=act)
    act, pre = "relu" if cross else "gelu", not post_norm
    layers = [kind(16, 4, 24, 0.0, act, batch_first=True, norm_first=pre) for _ in range(2)]
    last = torch.nn.LayerNorm(16)
    for p in (p for layer in [*layers, last] for p in layer.parameters()):
        torch.nn.init.normal_(p, std=0.3)
    params = {f"block_{i}": block(layer, cross) for i, layer in enumerate(layers)}
    if not post_norm:
        params["norm"] = normed(last)
    rng = np.random.default_rng(0)
    x, memory = (rng.normal(size=(2, n, 16)).astype(np.float32) for n in (10, 6))
    real, seen = SEGMENTS > 0, np.arange(6)[None] < np.array([[6], [4]])
    weight = rng.normal(size=x.shape).astype(np.float32) * real[..., None]

    def run(x, memory):
        more = {"memory": memory, "memory_mask": seen[:, None, None]} if cross else {}
        segments = jnp.asarray(real, jnp.int32)
        y = Stack(config, cross).apply({"params": params}, x, None, segments, **more)[0]
        return (y * weight).sum(), y

    (_, got), gradients = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(x, memory)
    tx, tmemory = (torch.tensor(z, requires_grad=True) for z in (x, memory))
    y = tx
    for layer in layers:
        if cross:
            ahead = torch.ones(10, 10, dtype=bool).triu(1)
            y = layer(
                y,
                tmemory,
                tgt_mask=ahead,
                tgt_key_padding_mask=torch.tensor(~real),
                memory_key_padding_mask=torch.tensor(~seen),
            )
        else:
            y = layer(y, src_key_padding_mask=torch.tensor(~real))
    if not post_norm:
        y = last(y)
    (y * torch.tensor(weight)).sum().backward()
    rows = real[..., None]
    np.testing.assert_allclose(got * rows, y.detach().numpy() * rows, atol=1e-4)
    np.testing.assert_allclose(gradients[0], tx.grad, atol=1e-3)
    if cross:
        np.testing.assert_allclose(gradients[1], tmemory.grad, atol=1e-3)
