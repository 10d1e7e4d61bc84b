"""Each module against the same thing written with NumPy."""

import itertools

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxops import tabular
from jaxops.tabular.models import neighbours
from jaxops.tabular.models.real_mlp import cosines, flat_cosine

X = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
KEY = jax.random.key(0)


def initial(module, *inputs, seed=0):
    """Variables of a module, of which nothing is constant; batch statistics are above 0."""
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(module.init, KEY, *inputs)
    drawn = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)
    return {
        name: drawn[name] if name == "params" else jax.tree.map(lambda x: abs(x) + 0.1, drawn[name])
        for name in drawn
    }


def applied(module, variables, *inputs):
    return np.asarray(jax.jit(module.apply)(variables, *inputs))


def relu(x):
    return np.maximum(x, 0)


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def assert_near(found, wanted, tolerance=2e-5):
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=tolerance)


def waves(x, frequencies):
    angle = 2 * np.pi * x[..., None] * frequencies
    return np.concatenate([np.cos(angle), np.sin(angle)], -1)


@pytest.mark.parametrize("lite", [False, True])
def test_periodic_embeddings(lite):
    module = tabular.Periodic(width=4, frequencies=3, scale=0.5, lite=lite)
    variables = initial(module, X[:, :2])
    p = variables["params"]
    y = waves(X[:, :2], p["frequency"])
    each = [
        dense(p["dense"], y[:, i]) if lite else y[:, i] @ p["kernel"][i] + p["bias"][i]
        for i in range(2)
    ]
    assert_near(applied(module, variables, X[:, :2]), relu(np.concatenate(each, 1)))


def test_the_initial_frequencies():
    module = tabular.Periodic(frequencies=500, scale=0.2)
    params = jax.jit(module.init)(jax.random.key(0), X)["params"]
    frequencies = np.asarray(params["frequency"])
    assert abs(frequencies).max() < 0.6 and frequencies.std() == pytest.approx(0.2, rel=0.05)


def test_piecewise_linear_embeddings():
    edges = ((-1.0, 0.0, 0.5, 2.0), (0.0, 1.0))
    module = tabular.PiecewiseLinear(width=4, edges=edges)
    variables = initial(module, X[:, :2])
    p = variables["params"]
    wanted = []
    for i, column in enumerate(edges):
        x, last = X[:, i], len(column) - 2
        bins = []
        for b, (low, high) in enumerate(itertools.pairwise(column)):
            share = (x - low) / (high - low)
            share = np.maximum(share, 0) if b else share
            bins.append(np.minimum(share, 1) if b < last else share)
        own = np.stack(bins, 1) @ p["kernel"][i, : len(bins)]
        wanted.append(x[:, None] * p["weight"][i] + p["bias"][i] + own)
    assert_near(applied(module, variables, X[:, :2]), np.concatenate(wanted, 1))
    plain = jax.jit(module.init)(jax.random.key(0), X[:, :2])
    y = applied(module, plain, X[:, :2]).reshape(7, 2, 4)
    q = plain["params"]
    assert_near(
        y, X[:, :2, None] * np.asarray(q["weight"]) + np.asarray(q["bias"])
    )  # at first linear


def test_an_embedding_has_to_know_the_numbers():
    module = tabular.MLP((4,), embedding=tabular.Periodic())
    with pytest.raises(
        ValueError, match=r"numbers must be in \[1, 5\] .*, got 0; tabular.fit sets"
    ):
        module.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="edges must be of 5 columns, got 0; tabular"):
        tabular.PiecewiseLinear().init(jax.random.key(0), X)


def test_mlp_with_an_embedding():
    module = tabular.MLP((6,), embedding=tabular.Periodic(4, 3, 0.5), numbers=2, outputs=2)
    variables = initial(module, X)
    p = variables["params"]
    numbers = applied(module.embedding, {"params": p["embedding"]}, X[:, :2])
    x = np.concatenate([numbers, X[:, 2:]], 1)
    wanted = dense(p["logits"], relu(dense(p["hidden_0"], x)))
    assert_near(applied(module, variables, X), wanted)


def members_of_tabm(p, form, x, member):
    """The outputs of one member, computed alone."""
    m, depth = member, sum(name.startswith("hidden") for name in p)
    if form == "mini":
        # a perceptron of its own: its first kernel has scaled rows
        first = np.diag(p["signs"][m]) @ p["hidden_0"]["kernel"]
        x = relu(x @ first + p["hidden_0"]["bias"])
        x = relu(dense(p["hidden_1"], x))
    elif form == "full":
        for name in ("hidden_0", "hidden_1"):
            kernel = np.diag(p[f"{name}_r"][m]) @ p[name]["kernel"] @ np.diag(p[f"{name}_s"][m])
            x = relu(x @ kernel + p[f"{name}_bias"][m])
    else:
        assert depth == 4
        for name in ("hidden_0", "hidden_1"):
            x = relu(x @ p[f"{name}_kernel"][m] + p[f"{name}_bias"][m])
    return x @ p["kernel"][m] + p["bias"][m]


@pytest.mark.parametrize("form", ["mini", "full", "packed"])
def test_tabm_is_an_ensemble_of_perceptrons(form):
    module = tabular.TabM((6, 4), outputs=2, members=3, form=form)
    variables = initial(module, X)
    found = applied(module, variables, X)
    own = np.random.default_rng(1).normal(size=(7, 3, 5)).astype(np.float32)
    of_members = applied(module, variables, own)
    assert found.shape == of_members.shape == (7, 3, 2)
    for m in range(3):
        assert_near(found[:, m], members_of_tabm(variables["params"], form, X, m))
        assert_near(of_members[:, m], members_of_tabm(variables["params"], form, own[:, m], m))


def test_how_the_members_of_tabm_begin():
    params = jax.jit(tabular.TabM((6,), members=3, form="full").init)(jax.random.key(0), X)[
        "params"
    ]
    assert set(np.unique(params["hidden_0_r"])) == {-1, 1}
    assert (params["hidden_0_s"] == 1).all()
    assert np.ptp(params["hidden_0_bias"], axis=0).max() == 0 < np.ptp(params["hidden_0_bias"])
    module = tabular.TabM((6,), members=3, embedding=tabular.Periodic(4, 3), numbers=2)
    signs = jax.jit(module.init)(jax.random.key(0), X)["params"]["signs"]
    assert signs.shape == (3, 2 * 4 + 3)  # one factor for each number, not for each of its features
    assert len(np.unique(signs[:, :8])) == 6 and len(np.unique(signs[:, 8:])) == 9
    with pytest.raises(ValueError, match="form must be one of mini, full, packed, got 'half'"):
        tabular.TabM(form="half").init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="own_batches must be False in a task, got True"):
        tabular.classifier(tabular.TabM(own_batches=True), features=5)


def batch_norm(p, stats, x):
    return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * p["scale"] + p["bias"]


def test_resnet():
    module = tabular.ResNet(width=6, hidden=8, depth=2, outputs=2)
    variables = initial(module, X)
    stats, p = variables["batch_stats"], variables["params"]
    x = dense(p["first"], X)
    for i in range(2):
        y = batch_norm(p[f"block_{i}_norm"], stats[f"block_{i}_norm"], x)
        x = x + dense(p[f"block_{i}_out"], relu(dense(p[f"block_{i}_hidden"], y)))
    wanted = dense(p["logits"], relu(batch_norm(p["norm"], stats["norm"], x)))
    assert_near(applied(module, variables, X), wanted)


def layer_norm(p, x):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def attention(p, name, query, x, heads):
    """One query token and one head after the other."""
    q, k, v = (
        dense(p[f"{name}_{part}"], tokens)
        for part, tokens in (("query", query), ("key", x), ("value", x))
    )
    wide, out = q.shape[-1] // heads, np.zeros_like(q)
    for row in range(len(q)):
        for h in range(heads):
            part = slice(h * wide, (h + 1) * wide)
            for t in range(q.shape[1]):
                scores = k[row, :, part] @ q[row, t, part] / np.sqrt(wide)
                weights = np.exp(scores - scores.max())
                out[row, t, part] = weights / weights.sum() @ v[row, :, part]
    return dense(p[f"{name}_attention_out"], out)


def test_ft_transformer():
    codes = np.array([[0, 1], [2, 3], [1, 0], [2, 2], [0, 0], [1, 3], [2, 1]], np.float32)
    rows = np.concatenate([X[:, :3], codes], 1)
    module = tabular.FTTransformer(width=8, depth=2, heads=2, outputs=2, categories=(3, 4))
    variables = initial(module, rows)
    p = variables["params"]
    table, tokens = p["texts"]["table"], []
    for row in rows:
        of_numbers = row[:3, None] * p["weight"]
        of_texts = [
            table[first + int(code)] if code else np.zeros(8)
            for first, code in zip((0, 3), row[3:], strict=True)
        ]
        tokens.append([p["first"][0], *(np.concatenate([of_numbers, of_texts]) + p["bias"])])
    x = np.array(tokens, np.float32)
    for i in range(2):
        seen = layer_norm(p["block_1_attention_norm"], x) if i else x
        x = x + attention(p, f"block_{i}", seen, seen, heads=2)
        hidden = dense(p[f"block_{i}_hidden"], layer_norm(p[f"block_{i}_norm"], x))
        x = x + dense(p[f"block_{i}_out"], hidden[..., :10] * relu(hidden[..., 10:]))
    assert_near(
        applied(module, variables, rows), dense(p["logits"], relu(layer_norm(p["norm"], x[:, 0])))
    )
    with pytest.raises(ValueError, match=r"width must be a multiple of 3 \(heads\), got 8"):
        tabular.FTTransformer(width=8, heads=3).init(jax.random.key(0), X)


def selu(x):
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def mish(x):
    return x * np.tanh(np.log1p(np.exp(x)))


@pytest.mark.parametrize(("activation", "f"), [("selu", selu), ("mish", mish)])
def test_real_mlp(activation, f):
    codes = np.array([[0], [2], [1], [2], [0], [1], [2]], np.float32)
    rows = np.concatenate([X, codes], 1)
    module = tabular.RealMLP(
        (6,), outputs=2, activation=activation, frequencies=3, numbers=2, categories=(3,)
    )
    variables = initial(module, rows)
    p = variables["params"]
    numbers = []
    for i in range(2):
        angle = 2 * np.pi * X[:, i : i + 1] * p["numbers_frequencies"][i] + p["numbers_phases"][i]
        y = np.cos(angle) @ p["numbers_kernel"][i] + p["numbers_bias"][i]
        numbers.append(np.concatenate([X[:, i : i + 1], y], 1))
    table = np.where(codes > 0, p["texts"]["table"][codes[:, 0].astype(int)], 0)
    x = np.concatenate([X[:, 2:], *numbers, table], 1) * p["scale"]
    x = x @ p["hidden_0_kernel"] / np.sqrt(x.shape[1]) + p["hidden_0_bias"]
    x = x + p["hidden_0_activation"] * (f(x) - x)
    wanted = x @ p["logits_kernel"] / np.sqrt(6) + p["logits_bias"]
    assert_near(applied(module, variables, rows), wanted)
    low, high = np.quantile(wanted, [0.3, 0.6])
    bounded = module.clone(limits=(low, high), dropout=0.0)
    training = jax.jit(lambda variables, x: bounded.apply(variables, x, train=True))
    assert_near(applied(bounded, variables, rows), np.clip(wanted, low, high))
    assert_near(training(variables, rows), wanted)


def test_real_mlp_starts_among_the_rows_that_it_is_given():
    module = tabular.RealMLP((50,), frequencies=3, numbers=2)
    rows = np.random.default_rng(0).normal(3, 4, (300, 5)).astype(np.float32)
    init = jax.jit(module.init)
    p = jax.device_get(init(jax.random.key(0), rows))["params"]
    waves = [
        np.cos(
            2 * np.pi * rows[:, i : i + 1] * p["numbers_frequencies"][i] + p["numbers_phases"][i]
        )
        @ p["numbers_kernel"][i]
        + p["numbers_bias"][i]
        for i in range(2)
    ]
    x = np.concatenate([rows[:, 2:], rows[:, :1], waves[0], rows[:, 1:2], waves[1]], 1)
    x = x @ p["hidden_0_kernel"] / np.sqrt(x.shape[1])
    np.testing.assert_allclose(x.std(0), 1, rtol=1e-3)
    x = x + p["hidden_0_bias"]
    assert (x.min(0) < 0).all() and (x.max(0) > 0).all()
    # the mean of five values with random shares has a variance of 1/3 of theirs
    assert 0.4 < x.mean(0).std() < 0.75 and abs(x.mean()) < 0.3
    equal = init(jax.random.key(0), np.repeat(rows[:1], 300, 0))["params"]
    assert 0.9 < np.std(equal["hidden_0_kernel"]) < 1.1
    assert 0.4 < np.std(equal["hidden_0_bias"]) < 0.75


def test_the_dropout_of_real_mlp_ends():
    module = tabular.RealMLP((400,), dropout=0.5, steps=4, numbers=5)
    variables = {**initial(module, X), "schedule": {"step": np.int32(0)}}
    plain = applied(module, variables, X)

    @jax.jit
    def step(variables, key):
        return module.apply(variables, X, train=True, rngs={"dropout": key}, mutable=["schedule"])

    changed = []
    for i in range(5):
        outputs, new = step(variables, jax.random.key(i))
        variables = {**variables, **new}
        changed.append(not np.allclose(outputs, plain, atol=1e-5))
    assert changed == [True, True, True, True, False]
    assert int(variables["schedule"]["step"]) == 5
    done = np.linspace(0, 1, 9)
    wanted = np.where(done < 0.5, 1, 0.5 + 0.5 * np.cos(np.pi * (2 * done - 1)))
    assert_near(flat_cosine(done), wanted)
    assert_near(cosines(done), 0.5 * (1 - np.cos(2 * np.pi * np.log2(1 + 15 * done))), 1e-4)


def neighbours_of(module, rows=11, outputs=1):
    rng = np.random.default_rng(2)
    variables = initial(module, X, np.full(7, -1))
    targets = rng.normal(size=(rows, outputs)).astype(np.float32)
    if module.probabilities:
        targets = np.eye(max(outputs, 2), dtype=np.float32)[rng.integers(0, max(outputs, 2), rows)]
        targets = targets[:, -outputs:]
    known = {"features": rng.normal(size=(rows, 5)).astype(np.float32), "targets": targets}
    known["weights"] = rng.uniform(0.5, 2, rows).astype(np.float32)
    known["weights"][4] = 0
    return {**variables, "candidates": known}


@pytest.mark.parametrize("outputs", [1, 3])
def test_modern_nca_is_a_softmax_over_distances(outputs, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 4)  # three blocks, and padding in them
    for probabilities in (True, False):
        module = tabular.ModernNCA(
            width=4, hidden=6, depth=1, outputs=outputs, rows=11, embedding=None,
            probabilities=probabilities,
        )  # fmt: skip
        variables = neighbours_of(module, outputs=outputs)
        p, known = variables["params"], variables["candidates"]
        stats = variables["batch_stats"]

        def represent(x, p=p, stats=stats):
            x = batch_norm(p["norms_0"], stats["norms_0"], dense(p["first"], x))
            x = dense(p["outs_0"], relu(dense(p["hiddens_0"], x)))
            return batch_norm(p["norms_1"], stats["norms_1"], x)

        e, of = represent(X), represent(known["features"])
        near = np.exp(-np.sqrt(((e[:, None] - of[None]) ** 2).sum(-1))) * known["weights"]
        mean = near / near.sum(1, keepdims=True) @ known["targets"]
        found = applied(module, variables, X, np.full(7, -1))
        if not probabilities:
            assert_near(found, mean)
        elif outputs == 1:
            assert_near(1 / (1 + np.exp(-found)), mean)
        else:
            assert_near(np.exp(found) / np.exp(found).sum(1, keepdims=True), mean)


def test_a_row_does_not_see_its_own_target_while_it_trains():
    module = tabular.ModernNCA(
        width=4, rows=11, embedding=None, candidates=1.0, probabilities=False
    )
    variables = neighbours_of(module)
    known = variables["candidates"]
    known["targets"] = np.eye(11, dtype=np.float32)[:, 3:4]

    @jax.jit
    def run(params, known, key, row):
        given = {"params": params, "candidates": known}
        options = {"train": True, "rngs": {"dropout": key}}

        def total(params):
            y = module.apply({**given, "params": params}, known["features"], row, **options)
            return y.sum(), y

        return jax.grad(total, has_aux=True)(params)

    place, seen = np.arange(11), []
    for seed in range(3):
        key = jax.random.key(seed)
        grads, own = run(variables["params"], known, key, place)
        assert own[3, 0] == 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
        seen.append(run(variables["params"], known, key, place * 0 - 1)[1][3, 0])
    assert min(seen) > 0.1  # all candidates are drawn, each once


def test_the_rows_of_a_batch_are_candidates_too():
    module = tabular.ModernNCA(width=4, rows=11, embedding=None, candidates=0.1)
    module = module.clone(probabilities=False)
    variables = neighbours_of(module)
    known, options = (
        variables["candidates"],
        {"train": True, "rngs": {"dropout": jax.random.key(3)}},
    )
    row, mask = np.array([2, 7, 4, 2, -1]), np.array([1, 1, 1, 0, 1], bool)
    x = np.array(known["features"])[row]
    found = jax.jit(lambda variables: module.apply(variables, x, row, mask=mask, **options))(
        variables
    )
    e = dense(variables["params"]["first"], x)
    near = np.exp(-np.sqrt(((e[:, None] - e[None]) ** 2).sum(-1))) * known["weights"][row]
    own = near[:2, :2]
    # one further row is drawn, whose share is what is missing
    others = []
    for drawn in set(range(11)) - {2, 7, 4}:
        of = dense(variables["params"]["first"], known["features"][drawn : drawn + 1])
        far = np.sqrt(((e[:2] - of) ** 2).sum(-1))
        weight = np.exp(-far) * known["weights"][drawn]
        sums = (
            own[[0, 1], [1, 0]] * known["targets"][[7, 2], 0] + weight * known["targets"][drawn, 0]
        )
        others.append(sums / (own[[0, 1], [1, 0]] + weight))
    errors = np.abs(np.array(others) - np.asarray(found)[:2, 0]).max(1)
    assert errors.min() < 1e-4 < np.sort(errors)[1]


def test_modern_nca_refuses():
    with pytest.raises(ValueError, match="rows must be at least 1, got 0; tabular"):
        tabular.ModernNCA().init(jax.random.key(0), X, np.zeros(7, int))
    with pytest.raises(ValueError, match=r"candidates must be in \(0, 1\], got 2"):
        tabular.ModernNCA(candidates=2, rows=3).init(jax.random.key(0), X, np.zeros(7, int))


def test_equal_modules_give_one_task():
    """Also with an embedding and with the way to read inside, so that equal calls compile once."""
    both = [
        tabular.classifier(
            tabular.TabM(
                (4,),
                embedding=tabular.PiecewiseLinear(edges=((0.0, 1.0),)),
                numbers=1,
                reads=tabular.Reads("quantile"),
            ),
            features=5,
        )
        for _ in range(2)
    ]
    assert both[0] is both[1]
    assert isinstance(tabular.ModernNCA().embedding, nn.Module)
