"""A transformer in NumPy and float64, a row and a head at a time: what others are compared with."""

import math

import numpy as np

erf = np.vectorize(math.erf)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_exact": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "relu": lambda x: x * (x > 0),
    "relu2": lambda x: x**2 * (x > 0),
    "swiglu": lambda x: x / (1 + np.exp(-x)),
    "geglu": gelu,
}


def rms_norm(p, x, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p["scale"]


def norm(config, p, x):
    if config.norm == "rms":
        return rms_norm(p, x, config.epsilon)
    x = x - x.mean(-1, keepdims=True)
    return rms_norm(p, x, config.epsilon) + p.get("bias", 0)


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def rotated(x, positions, base):
    """Pairs (i, i + H/2) as complex numbers, turned."""
    half = x.shape[-1] // 2
    z = x[:, :half] + 1j * x[:, half:]
    z = z * np.exp(1j * np.outer(positions, base ** (-2 * np.arange(half) / x.shape[-1])))
    return np.concatenate([z.real, z.imag], -1)


def bucket(distance, causal):
    """T5's, with the logarithms' floor by whole numbers."""
    if not causal:
        return 16 * (distance > 0) + of_bucket(abs(distance), 16)
    return of_bucket(max(-distance, 0), 32)


def of_bucket(back, buckets, largest=128):
    exact = buckets // 2
    if back < exact:
        return back
    # the k with (back / exact)^(buckets - exact) >= (largest / exact)^k
    power = buckets - exact
    fits = (k for k in range(power) if back**power * exact**k >= largest**k * exact**power)
    return exact + max(fits)


def heads(config, q, k, v, sees, bias=None):
    """softmax(scale q k + bias) v for each head; `sees` (T, S)."""
    scale = config.attention_scale or config.per_head**-0.5
    out = []
    for n in range(config.heads):
        group = n // (config.heads // (config.kv_heads or config.heads))
        scores = scale * q[n] @ k[group].T + (0 if bias is None else bias[n])
        out.append(softmax(np.where(sees, scores, -np.inf)) @ v[group])
    return np.concatenate(out, -1)


def split(config, p, x, counts):
    """A product as lists of heads (T, H)."""
    parts = np.split(dense(p, x), sum(counts), axis=-1)
    ends = np.cumsum(counts)[:-1]
    return [parts[a:b] for a, b in zip([0, *ends], [*ends, len(parts)], strict=True)]


def attention(config, p, x, positions, sees, bias):
    kv = config.kv_heads or config.heads
    q, k, v = split(config, p["qkv"], x, [config.heads, kv, kv])
    if config.qk_norm:
        q = [rms_norm(p["query_norm"], y, config.epsilon) for y in q]
        k = [rms_norm(p["key_norm"], y, config.epsilon) for y in k]
    if config.position == "rotary":
        q, k = ([rotated(y, positions, config.rotary_base) for y in z] for z in (q, k))
    return dense(p["out"], heads(config, q, k, v, sees, bias))


def cross(config, p, x, memory, sees):
    kv = config.kv_heads or config.heads
    (q,), (k, v) = (
        split(config, p["query"], x, [config.heads]),
        split(config, p["key_value"], memory, [kv, kv]),
    )
    if config.qk_norm:
        q = [rms_norm(p["query_norm"], y, config.epsilon) for y in q]
        k = [rms_norm(p["key_norm"], y, config.epsilon) for y in k]
    return dense(p["out"], heads(config, q, k, v, sees))


def feed_forward(config, p, x):
    act = ACTIVATIONS[config.activation]
    if "gate_up" in p:
        gate, up = np.split(dense(p["gate_up"], x), 2, axis=-1)
        return dense(p["down"], act(gate) * up)
    return dense(p["down"], act(dense(p["up"], x)))


def stack(config, p, x, positions, segments, memory=None, memory_segments=None):
    ahead = positions[None, :] - positions[:, None]
    sees = segments[None, :] == segments[:, None]
    if config.causal:
        sees = sees & (ahead <= 0) & (ahead > -(config.window or 1000))
    bias = None
    if config.position == "relative":
        buckets = np.vectorize(bucket)(ahead, config.causal)
        bias = p["relative"]["embedding"][buckets].transpose(2, 0, 1)
    for i in range(config.depth):
        b = p[f"block_{i}"]

        def add(x, name, branch, b=b):
            p = b[f"{name}_norm"]
            if config.post_norm:
                return norm(config, p, x + branch(x))
            return x + branch(norm(config, p, x))

        own = b["attention"]
        x = add(x, "attention", lambda x: attention(config, own, x, positions, sees, bias))
        if memory is not None:
            seen = segments[:, None] == memory_segments[None, :]
            x = add(x, "cross", lambda x: cross(config, b["cross_attention"], x, memory, seen))
        x = add(x, "feed_forward", lambda x: feed_forward(config, b["feed_forward"], x))
    return x if config.post_norm else norm(config, p["norm"], x)


def embed(config, p, tokens, positions):
    x = p["tokens"][tokens]
    if config.position == "learned":
        x = x + p["positions"][positions]
    if config.position == "sinusoidal":
        half = config.width // 2
        angle = np.outer(positions, 10_000.0 ** (-np.arange(half) / half))
        x = x * np.sqrt(config.width) + np.concatenate([np.sin(angle), np.cos(angle)], -1)
    if config.segment_types:
        x = x + p["types"][0]
    return norm(config, p["norm"], x) if config.embedding_norm else x


def logits(config, p, x):
    if config.masked_head:
        x = ACTIVATIONS[config.activation](dense(p["head_dense"], x))
        return norm(config, p["head_norm"], x) @ p["tokens"].T + p["head_bias"]
    x = x * config.logit_scale
    return x @ p["tokens"].T if config.tied else dense(p["head"], x)


def transformer(config, p, tokens, segments, positions):
    """Logits (T, V) of one row."""
    x = embed(config, p["embedding"], tokens, positions)
    return logits(config, p["embedding"], stack(config, p["stack"], x, positions, segments))
