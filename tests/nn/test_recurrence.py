"""LSTM and GRU against PyTorch and against loops in NumPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import assert_close

from jaxops.nn import GRU, LSTM, Embed

KEY = jax.random.key(0)
ROWS, STEPS, INPUTS, FEATURES = 3, 9, 4, 5
LENGTHS = np.array([9, 3, 5])
MASK = np.arange(STEPS) < LENGTHS[:, None]
VARIANTS = [  # what one layer does in both directions, the first of two does too
    pytest.param(
        kind,
        layers,
        both,
        id=f"{kind.__name__}-{layers}-{'both' if both else 'one'}",
        marks=[pytest.mark.slow] * ((layers, both) == (1, True)),
    )
    for kind in (LSTM, GRU)
    for layers, both in ((1, False), (1, True), (2, True))
]


def inputs(rows=ROWS, steps=STEPS):
    return np.random.default_rng(1).normal(size=(rows, steps, INPUTS)).astype(np.float32)


def params_of(model, x):
    """Parameters of which none is zero, as biases are at first."""
    shapes = jax.eval_shape(model.init, KEY, x)["params"]
    rng = np.random.default_rng(2)
    return {k: rng.normal(0, 0.4, v.shape).astype("f") for k, v in shapes.items()}


@functools.cache
def program(model):
    """Gradients by parameters, x and state, and the result: one program for all tests of a module.

    Of the loss `(outputs * weights).sum()` and the squares of the final state.
    """

    def total(params, x, state, segments, weights):
        result = model.apply({"params": params}, x, segments, state)
        return loss(result, weights), result

    return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))


def loss(result, weights):
    outputs, final = result
    return (outputs * weights).sum() + sum((leaf**2).sum() for leaf in jax.tree.leaves(final))


def weights_of(model):
    shape = (ROWS, STEPS, FEATURES * (1 + model.bidirectional))
    return np.random.default_rng(3).normal(size=shape).astype("f")


def read(model, params, x, state, segments):
    """Outputs and final state."""
    segments = np.asarray(segments, np.int32)
    return program(model)(params, x, state, segments, weights_of(model))[1]


def start_of(model, rows=ROWS):
    shape = (model.depth * (1 + model.bidirectional), rows, model.features)
    state = [np.random.default_rng(i).normal(size=shape).astype("f") for i in range(2)]
    return tuple(state) if isinstance(model, LSTM) else state[0]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def one_step(kind, p, x, h, c, keep):
    """Of one vector, as the docstrings have it."""
    a, b = x @ p["kernel"] + p["bias"], (h * keep) @ p["recurrent_kernel"]
    if kind is LSTM:
        i, f, g, o = np.split(a + b, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    (xr, xz, xn), (hr, hz, hn) = np.split(a, 3), np.split(b, 3)
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    n = np.tanh(xn + r * (hn + p["recurrent_bias"]))
    return (1 - z) * n + z * h, c


def by_loops(model, params, x, lengths, state=None, drops=None):
    """Rows one by one, cut to their lengths: outputs and final states."""
    kind, directions = type(model), ["forward", "backward"][: 1 + model.bidirectional]
    count = model.depth * len(directions)
    hidden = memory = np.zeros((count, len(x), model.features))
    if state is not None:
        hidden, memory = state if kind is LSTM else (state, memory)
    outputs = np.zeros((*x.shape[:2], model.features * len(directions)))
    finals = np.zeros((2, count, len(x), model.features))
    for row, length in enumerate(lengths):
        below = [x[row, t] for t in range(length)]
        for layer in range(model.depth):
            if drops:
                below = [v * drops[f"dropout_{layer}"][row] for v in below]
            sides = []
            for side, name in enumerate(directions):
                at = layer * len(directions) + side
                prefix = f"{name}_{layer}_"
                p = {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
                keep = drops[f"{prefix}dropout"][row] if drops else 1
                h, c, seen = hidden[at, row], memory[at, row], []
                for vector in below if name == "forward" else below[::-1]:
                    h, c = one_step(kind, p, vector, h, c, keep)
                    seen.append(h)
                sides.append(seen if name == "forward" else seen[::-1])
                finals[:, at, row] = h, c
            below = [np.concatenate(both) for both in zip(*sides, strict=True)]
        outputs[row, :length] = below
    return outputs, tuple(finals) if kind is LSTM else finals[0]


@pytest.mark.parametrize(("kind", "layers", "both"), VARIANTS)
def test_it_is_what_loops_give(kind, layers, both):
    model, x = kind(FEATURES, layers, both), inputs()
    params, start = params_of(model, x), start_of(model)
    got = read(model, params, x, start, MASK)
    assert_close(got, by_loops(model, params, x, LENGTHS, start), atol=1e-5)
    zero, whole = jax.tree.map(np.zeros_like, start), np.full(ROWS, STEPS)
    got = read(model, params, x, zero, np.ones_like(MASK))
    assert_close(got, by_loops(model, params, x, whole), atol=1e-5)


@pytest.mark.parametrize(("kind", "layers", "both"), VARIANTS)
def test_gradients_are_the_slopes_of_the_loops(kind, layers, both):
    model, x = kind(FEATURES, layers, both), inputs()
    params, start = params_of(model, x), start_of(model)
    rng, weights = np.random.default_rng(4), weights_of(model)
    grads, _ = program(model)(params, x, start, MASK.astype(np.int32), weights)
    trees = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, x, start))
    for _ in range(3):
        way = jax.tree.map(lambda a: rng.normal(size=a.shape), trees)
        at = [jax.tree.map(lambda a, b: a + step * b, trees, way) for step in (1e-5, -1e-5)]
        ends = [loss(by_loops(model, p, v, LENGTHS, s), weights) for p, v, s in at]
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, w: (g * w).sum(), grads, way)))
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(("kind", "layers", "both"), VARIANTS)
def test_it_is_that_of_pytorch(kind, layers, both):
    torch = pytest.importorskip("torch")
    model, x = kind(FEATURES, layers, both), inputs()
    params, start = params_of(model, x), start_of(model)
    theirs = getattr(torch.nn, kind.__name__)(
        INPUTS, FEATURES, layers, batch_first=True, bidirectional=both
    )
    split = {}  # PyTorch's name -> ours, and which of its two biases
    for layer in range(layers):
        for name, end in (("forward", ""), ("backward", "_reverse"))[: 1 + both]:
            here = f"{name}_{layer}"
            second = np.zeros_like(params[f"{here}_bias"])
            if kind is GRU:
                second[2 * FEATURES :] = params[f"{here}_recurrent_bias"]
            split |= {
                f"weight_ih_l{layer}{end}": params[f"{here}_kernel"].T,
                f"weight_hh_l{layer}{end}": params[f"{here}_recurrent_kernel"].T,
                f"bias_ih_l{layer}{end}": params[f"{here}_bias"],
                f"bias_hh_l{layer}{end}": second,
            }
    theirs.load_state_dict({k: torch.tensor(v) for k, v in split.items()})
    packed_x, packed_start = jax.tree.map(lambda a: torch.tensor(a, requires_grad=True), (x, start))
    pack = torch.nn.utils.rnn.pack_padded_sequence
    unpack = torch.nn.utils.rnn.pad_packed_sequence
    outputs, final = theirs(
        pack(packed_x, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False), packed_start
    )
    outputs, _ = unpack(outputs, batch_first=True, total_length=STEPS)

    weights = weights_of(model)
    grads, found = program(model)(params, x, start, MASK.astype(np.int32), weights)
    leaves = [outputs, *(final if kind is LSTM else (final,))]
    assert_close(jax.tree.leaves(found), [v.detach().numpy() for v in leaves], atol=1e-5)

    loss((outputs, leaves[1:]), torch.tensor(weights)).backward()
    assert_close(grads[1], packed_x.grad.numpy(), atol=1e-4)
    wanted = jax.tree.map(lambda v: v.grad.numpy(), packed_start)
    assert_close(grads[2], wanted, atol=1e-4)
    for layer in range(layers):
        for name, end in (("forward", ""), ("backward", "_reverse"))[: 1 + both]:
            here = f"{name}_{layer}"
            by_name = {
                k: getattr(theirs, f"{k}_l{layer}{end}").grad.numpy()
                for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
            assert_close(grads[0][f"{here}_kernel"], by_name["weight_ih"].T, rtol=1e-4, atol=1e-4)
            assert_close(
                grads[0][f"{here}_recurrent_kernel"], by_name["weight_hh"].T, rtol=1e-4, atol=1e-4
            )
            assert_close(grads[0][f"{here}_bias"], by_name["bias_ih"], rtol=1e-4, atol=1e-4)
            if kind is GRU:
                second = by_name["bias_hh"][2 * FEATURES :]
                assert_close(grads[0][f"{here}_recurrent_bias"], second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_padding_may_hold_anything(kind):
    model, x = kind(FEATURES, 2, True), inputs()
    params, start = params_of(model, x), start_of(model)
    rest = start, MASK.astype(np.int32), weights_of(model)
    wanted = program(model)(params, x, *rest)
    found = program(model)(params, np.where(MASK[..., None], x, np.float32(np.nan)), *rest)
    assert_close(found, wanted, rtol=0)
    (_, by_x, _), (outputs, _) = found
    assert not np.asarray(outputs)[~MASK].any() and np.asarray(outputs)[MASK].all()
    assert not np.asarray(by_x)[~MASK].any() and np.asarray(by_x)[MASK].all()


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_packed_documents_are_read_one_by_one(kind):
    model, x = kind(FEATURES, 2, True), inputs()
    params, zero = params_of(model, x), jax.tree.map(np.zeros_like, start_of(model))
    segments = np.zeros((ROWS, STEPS), np.int32)
    segments[0] = [0, 4, 4, 4, 2, 2, 0, 2, 7]  # padding before, within and between
    outputs, final = read(model, params, x, zero, segments)
    parts = [[1, 2, 3], [4, 5, 7], [8]]
    alone, real = np.zeros_like(x), np.zeros_like(segments)
    for row, part in enumerate(parts):  # each document begins a row of its own
        alone[row, : len(part)], real[row, : len(part)] = x[0, part], 1
    want, ends = read(model, params, alone, zero, real)
    for row, part in enumerate(parts):
        assert_close(outputs[0, part], want[row, : len(part)], atol=1e-6)
    assert not outputs[0, [0, 6]].any()
    for leaf, end in zip(jax.tree.leaves(final), jax.tree.leaves(ends), strict=True):
        assert_close(leaf[::2, 0], end[::2, 2], atol=1e-6)  # forward
        assert_close(leaf[1::2, 0], end[1::2, 0], atol=1e-6)


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_reading_goes_on_from_a_state(kind):
    model, x = kind(FEATURES, 2), inputs(steps=8)
    params = {"params": params_of(model, x)}
    read = jax.jit(lambda x, state: model.apply(params, x, None, state))
    whole, end = read(x, None)
    first, state = read(x[:, :4], jax.tree.map(np.zeros_like, start_of(model)))
    second, final = read(x[:, 4:], state)
    assert_close((np.concatenate([first, second], 1), final), (whole, end), atol=1e-6)


@pytest.mark.parametrize("kind", [LSTM, pytest.param(GRU, marks=pytest.mark.slow)])
def test_one_mask_a_row_for_all_steps(kind):
    """The masks that were drawn, and that the loops with these masks give the same."""
    model, x = kind(FEATURES, 2, True, dropout=0.5, recurrent_dropout=0.25), np.abs(inputs(64))
    params = params_of(model, x)

    @jax.jit
    def sampled(params, x):
        return model.apply(
            {"params": params},
            x,
            train=True,
            rngs={"dropout": KEY},
            capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
        )

    result, kept = sampled(params, x)
    seen = {k: np.asarray(v["__call__"][0]) for k, v in kept["intermediates"].items()}
    names = [f"{side}_{layer}_dropout" for side in ("forward", "backward") for layer in (0, 1)]
    assert seen.keys() == {"dropout_0", "dropout_1", *names}

    ratio = seen["dropout_0"] / x.swapaxes(0, 1)  # (T, B, D): what became of each number
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape), rtol=1e-6)
    drops = {name: seen[name] for name in names} | {"dropout_0": ratio[0]}
    second = seen["dropout_1"] != 0
    assert (second == second[:1]).all()  # outputs are never 0, so what is was dropped
    drops["dropout_1"] = second[0] * 2.0
    for name, keep in drops.items():
        scale = 2 if name in ("dropout_0", "dropout_1") else 4 / 3
        np.testing.assert_allclose(np.unique(keep), [0, scale], rtol=1e-6)
        assert abs((keep > 0).mean() - 1 / scale) < 4 * np.sqrt(0.25 / keep.size)
        assert len(np.unique(keep > 0, axis=0)) > 10  # rows differ, of at most 32 that there are
    assert_close(result, by_loops(model, params, x, np.full(64, STEPS), drops=drops), atol=1e-5)

    plain = jax.jit(model.apply)({"params": params}, x)  # nothing is dropped, and no key is wanted
    assert_close(plain, by_loops(model, params, x, np.full(64, STEPS)), atol=1e-5)


def test_products_in_16_bits():
    exact, low = (LSTM(FEATURES, compute=c) for c in ("float32", "bfloat16"))
    x = inputs()
    params = params_of(exact, x)
    grads = [
        jax.jit(jax.grad(lambda p: m.apply({"params": p}, x)[0].sum()))(params)
        for m in (exact, low)
    ]
    for name, want in grads[0].items():
        error = np.linalg.norm(grads[1][name] - want) / np.linalg.norm(want)
        assert error < 0.03, name


@pytest.mark.parametrize(
    ("x", "segments", "initial", "message"),
    [
        (np.ones((3, 4)), None, None, r"x must be \(rows, steps, features\), got \(3, 4\)"),
        (inputs(), np.ones((3, 6)), None, r"segments must be \(3, 9\), got \(3, 6\)"),
        (inputs(), None, np.ones((1, 3, 5)), r"initial must .* \(\(1, 3, 5\), .*, got \(1, 3, 5\)"),
        (
            inputs(),
            None,
            (np.ones((1, 3, 4)),) * 2,
            r"initial must .*, got \(\(1, 3, 4\), \(1, 3, 4\)\)",
        ),
    ],
)
def test_shapes_that_do_not_fit(x, segments, initial, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: LSTM(FEATURES).init(KEY, x, segments, initial))


def test_embed_drops_words_from_a_whole_row():
    embed, tokens = (
        Embed(6, 4, dropout=0.5),
        jnp.asarray(np.random.default_rng(0).integers(0, 6, (50, 40))),
    )
    vectors, params = jax.jit(embed.init_with_output)(KEY, tokens)
    table = np.asarray(params["params"]["embedding"])
    np.testing.assert_array_equal(vectors, table[tokens])
    drop = jax.jit(lambda p, t: embed.apply(p, t, train=True, rngs={"dropout": KEY}))
    dropped = np.asarray(drop(params, tokens))
    ratio = dropped / table[tokens]
    np.testing.assert_allclose(np.unique(ratio.round(5)), [0, 2])
    shares = []
    for row, words in zip(ratio, np.asarray(tokens), strict=True):
        for word in np.unique(words):
            assert np.ptp(row[words == word]) < 1e-5  # wherever it stands
            shares.append(row[words == word][0, 0] > 0)
    assert abs(np.mean(shares) - 0.5) < 0.1 and len(shares) > 280

    x = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(embed.apply(params, x, method="attend"), x @ table.T, atol=1e-6)
