"""The transformer: against NumPy, what a token sees, its scan, its cache, its config."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy_transformer as reference
import pytest
from small import assert_close
from transformers_small import (
    PLACES,
    REAL,
    SEGMENTS,
    TOKENS,
    WEIGHT,
    config_of,
    each_kind,
    learned,
    logits_of,
    pair_logits,
    pair_of,
    params_of,
    run,
    stacked,
)

import jaxops as jo
from jaxops import language
from jaxops.nn import EncoderDecoder, Transformer, empty_cache


def wide(params):
    return jax.tree.map(lambda p: np.asarray(p, np.float64), params)


def by_numpy(config, params):
    rows = zip(TOKENS, SEGMENTS, PLACES, strict=True)
    return np.stack([reference.transformer(config, params, *row) for row in rows])


@each_kind
def test_logits_and_gradient_are_those_of_numpy(kind):
    """The gradient along a random direction against a difference, in float64."""
    config = config_of(kind)
    logits, value, gradient = learned(config)
    params = wide(params_of(config))
    np.testing.assert_allclose(logits * REAL, by_numpy(config, params) * REAL, atol=1e-4)
    rng = np.random.default_rng(2)
    way = jax.tree.map(lambda p: rng.normal(size=p.shape), params)

    def moved(step):
        there = jax.tree.map(lambda p, w: p + step * w, params, way)
        return (by_numpy(config, there) * WEIGHT).sum()

    want = (moved(1e-6) - moved(-1e-6)) / 2e-6
    got = sum(jax.tree.leaves(jax.tree.map(lambda g, w: (g * w).sum(), gradient, way)))
    assert got == pytest.approx(want, rel=1e-3)
    assert value == pytest.approx(moved(0), rel=1e-3)


@pytest.mark.parametrize(
    "kind", ["llama", "t5 decoder", pytest.param("gpt2", marks=pytest.mark.slow)]
)
def test_encoder_decoder_is_that_of_numpy(kind):
    config = config_of(kind)
    params = pair_of(config)
    source, target, sources = TOKENS, TOKENS[:, ::-1][:, :7], SEGMENTS
    targets = np.array([[1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 2, 2]], np.int32)
    got = pair_logits(config, params, source, target, sources, targets)
    p = wide(params)
    encoder = dataclasses.replace(config, causal=False, window=None)
    own, others = np.arange(7), np.arange(source.shape[1])
    places = np.array([[0, 1, 2, 0, 1, 2, 0], [0, 1, 2, 3, 4, 0, 1]])
    for b in range(2):
        memory = reference.embed(config, p["embedding"], source[b], PLACES[b])
        memory = reference.stack(encoder, p["encoder"], memory, others, sources[b])
        x = reference.embed(config, p["embedding"], target[b], places[b])
        x = reference.stack(config, p["stack"], x, own, targets[b], memory, sources[b])
        want = reference.logits(config, p["embedding"], x)
        real = (targets[b] > 0)[:, None]
        np.testing.assert_allclose(got[b] * real, want * real, atol=1e-4)


@pytest.mark.parametrize(
    "kind", ["t5 decoder", *(pytest.param(k, marks=pytest.mark.slow) for k in ("gpt2", "vaswani"))]
)
def test_an_encoder_decoder_reads_packed_documents_as_one_by_one(kind):
    config = config_of(kind)
    params = pair_of(config)
    source, target = TOKENS, TOKENS[::-1, :7]
    sources = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 0, 0]] * 2, np.int32)
    targets = np.array([[1, 1, 1, 2, 2, 2, 0]] * 2, np.int32)
    packed = pair_logits(config, params, source, target, sources, targets)[0]
    rows = np.stack([source[0, :4], source[0, 4:8]]), np.stack([target[0, :3], target[0, 3:6]])
    first, second = jax.jit(EncoderDecoder(config).apply)({"params": params}, *rows)
    np.testing.assert_allclose(packed[:3], first, atol=1e-5)
    np.testing.assert_allclose(packed[3:6], second, atol=1e-5)


@pytest.mark.parametrize("window", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_no_token_learns_from_a_later_one(window):
    """d logits_t / d embedding_s: 0 for s > t, and beyond what two layers of windows reach."""
    config = config_of("llama", tied=False, window=window)
    tokens = jnp.arange(6)[None]  # each once, so that a row of the table is a place

    @jax.jit
    def sums(table):
        params = params_of(config)
        params = {**params, "embedding": {**params["embedding"], "tokens": table}}
        logits = Transformer(config).apply({"params": params}, tokens)[0]
        return logits @ jnp.arange(1.0, 12.0)

    jacobian = np.abs(jax.jacobian(sums)(params_of(config)["embedding"]["tokens"])).max(-1)
    back = np.arange(6)[:, None] - np.arange(6)[None]
    reach = 6 if window is None else config.depth * (window - 1)
    np.testing.assert_array_equal(jacobian[:, :6] > 0, (back >= 0) & (back <= reach))


def test_an_encoder_sees_both_sides():
    config = config_of("t5 encoder")
    tokens = jnp.arange(6)[None]

    def last(table):
        params = params_of(config)
        params = {**params, "embedding": {**params["embedding"], "tokens": table}}
        return Transformer(config).apply({"params": params}, tokens)[0, 0].sum()

    gradient = jax.jit(jax.grad(last))(params_of(config)["embedding"]["tokens"])
    assert (np.abs(gradient[:6]).max(-1) > 0).all()


@each_kind
def test_packed_padded_or_alone(kind):
    """A document's logits are the same in a row of several, and with anything as padding."""
    config = config_of(kind)
    assert set(SEGMENTS[0, 4:9]) == {2}
    padded = np.array([[7] * 10, [3] * 10], np.int32)
    padded[:, :5] = TOKENS[0, 4:9]
    alone = logits_of(config, padded, np.array([[1] * 5 + [0] * 5] * 2, np.int32))
    np.testing.assert_allclose(learned(config)[0][0, 4:9], alone[0, :5], atol=1e-5)
    np.testing.assert_array_equal(alone[0, :5], alone[1, :5])


@pytest.mark.parametrize(
    "kind, remat",
    [("fast", False), pytest.param("t5 decoder", True, marks=pytest.mark.slow)],
)
def test_a_scan_is_the_same(kind, remat):
    config = config_of(kind)
    logits, _, gradient = learned(config)
    params = stacked(params_of(config), config.depth)
    scanned = dataclasses.replace(config, scan=True, remat=remat)
    (_, got), dparams = run(scanned, params, TOKENS, SEGMENTS, PLACES)
    np.testing.assert_allclose(got * REAL, logits * REAL, atol=1e-5)
    want = stacked(gradient, config.depth)
    assert_close(dparams, want, atol=1e-3)
    shapes = jax.eval_shape(Transformer(scanned).init, jax.random.key(0), TOKENS)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)


def test_remat_unrolled_is_the_same_and_keeps_less():
    """Of each block its input alone is kept for the gradient."""
    config = config_of("llama")
    again = dataclasses.replace(config, remat=True)
    (*_, want), (*_, got) = learned(config), learned(again)
    assert_close(got, want, atol=1e-3)

    def kept(config):
        def pull(params):
            return jax.vjp(lambda p: Transformer(config).apply({"params": p}, TOKENS), params)[1]

        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(pull, params_of(config))))

    assert kept(again) < 0.7 * kept(config)


def test_dropout_is_of_training_alone_and_of_its_key():
    config = config_of("llama", dropout=0.5, scan=True)
    params = params_of(config)

    @jax.jit
    def train(key):
        variables, rngs = {"params": params}, {"dropout": key}
        return Transformer(config).apply(variables, TOKENS, train=True, rngs=rngs)

    one, same, other = (train(jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1
    plain = Transformer(dataclasses.replace(config, dropout=0.0))
    both = Transformer(config), plain
    logits = jax.jit(lambda v: [module.apply(v, TOKENS) for module in both])({"params": params})
    np.testing.assert_array_equal(*logits)


CACHED = [
    ("llama", True),
    ("fast", False),
    pytest.param("gpt2", False, marks=pytest.mark.slow),
    pytest.param("t5 decoder", True, marks=pytest.mark.slow),
    pytest.param("vaswani", True, marks=pytest.mark.slow),
    pytest.param("no positions", False, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("kind, scan", CACHED)
def test_a_cache_gives_the_same_logits(kind, scan):
    """Prompts of 5 and 2 tokens, aligned at their ends; then a pair, then a loop of one by one."""
    config = config_of(kind)
    params = jax.tree.map(jnp.asarray, params_of(config))  # tables are read inside a jit
    tokens = np.random.default_rng(3).integers(0, 11, (2, 10), np.int32)
    want = logits_of(config, tokens, np.ones((2, 10), np.int32))
    if scan:
        config = dataclasses.replace(config, scan=True)
        params = stacked(params, config.depth)
    model, empty = Transformer(config), empty_cache(config, 10, jnp.array([0, 3]))
    rows = np.stack([tokens[0], [7, 7, 7, *tokens[1, :7]]])  # 7: padding

    def advance(tokens, cache):
        return model.apply({"params": params}, tokens, cache, method="advance")

    @jax.jit
    def decode(rows):
        prompt, cache = advance(rows[:, :5], empty)
        pair, cache = advance(rows[:, 5:7], cache)
        step = lambda cache, t: advance(t[:, None], cache)[::-1]  # noqa: E731
        return prompt, pair, *jax.lax.scan(step, cache, rows[:, 7:].T)

    prompt, pair, cache, rest = decode(rows)
    assert cache.length == 10
    # so that an empty one can be a loop's carry too
    assert jax.tree.structure(cache) == jax.tree.structure(empty)
    got = np.concatenate([prompt, pair, rest[:, :, 0].swapaxes(0, 1)], 1)
    np.testing.assert_allclose(got[0], want[0], atol=1e-5)
    np.testing.assert_allclose(got[1, 3:], want[1, :7], atol=1e-5)


@pytest.mark.parametrize(
    "kind, scan", [("llama", True), pytest.param("gpt2", False, marks=pytest.mark.slow)]
)
def test_rows_of_a_cache_have_lengths_of_their_own(kind, scan):
    """Row 0 begins at once, row 1 three tokens later, over what was written there before."""
    config = config_of(kind)
    params = jax.tree.map(jnp.asarray, params_of(config))
    tokens = np.random.default_rng(4).integers(0, 11, (2, 10), np.int32)
    want = logits_of(config, tokens, np.ones((2, 10), np.int32))
    if scan:
        config = dataclasses.replace(config, scan=True)
        params = stacked(params, config.depth)
    model, nothing = Transformer(config), jnp.zeros(2, jnp.int32)
    empty = empty_cache(config, 10, nothing)._replace(length=nothing)
    rows = np.stack([tokens[0], [7, 7, 7, *tokens[1, :7]]])

    def step(cache, given):
        token, begins = given
        cache = cache._replace(length=jnp.where(begins, 0, cache.length))
        return model.apply({"params": params}, token[:, None], cache, method="advance")[::-1]

    begins = np.zeros((10, 2), bool)
    begins[3, 1] = True
    cache, got = jax.jit(lambda *given: jax.lax.scan(step, empty, given))(rows.T, begins)
    assert cache.length.tolist() == [10, 7]
    np.testing.assert_allclose(got[:, 0, 0], want[0], atol=1e-5)
    np.testing.assert_allclose(got[3:, 1, 0], want[1, :7], atol=1e-5)


@pytest.mark.parametrize(
    "kind, scan",
    [("t5 decoder", False), ("llama", True), pytest.param("gpt2", False, marks=pytest.mark.slow)],
)
def test_a_cache_of_an_encoder_decoder(kind, scan):
    config = config_of(kind)
    params = jax.tree.map(jnp.asarray, pair_of(config))  # tables are read inside a jit
    target = np.random.default_rng(3).integers(0, 11, (2, 7), np.int32)
    sources = (SEGMENTS > 0).astype(np.int32)
    want = pair_logits(config, params, TOKENS, target, sources, np.ones_like(target))
    if scan:
        config = dataclasses.replace(config, scan=True)
        params = stacked(params, config.depth)
    model, variables = EncoderDecoder(config), {"params": params}
    rows = np.stack([target[0], [5, 5, *target[1, :5]]])
    empty = empty_cache(config, 7, jnp.array([0, 2]))

    @jax.jit
    def decode(rows):
        def step(cache, token):
            return model.apply(variables, token[:, None], cache, method="advance")[::-1]

        begun = TOKENS, sources, rows[:, :4], empty
        y, cache = model.apply(variables, *begun, method="begin")
        return y, jax.lax.scan(step, cache, rows[:, 4:].T)[1]

    y, rest = decode(rows)
    got = np.concatenate([y, rest[:, :, 0].swapaxes(0, 1)], 1)
    np.testing.assert_allclose(got[0], want[0], atol=1e-5)
    np.testing.assert_allclose(got[1, 2:], want[1, :5], atol=1e-5)


# what their authors, or their files, count
COUNTS = [
    (language.gpt2(scan=True), 124_439_808),
    (language.gpt2(scan=True, depth=24, heads=16, width=1024), 354_823_168),
    (language.nanogpt(), 10_745_088),
    (language.bert_base(scan=True), 109_514_298),
    (language.t5_small(), 60_506_624),
    (language.llama_style(), 1_100_048_384),
    (
        language.llama_style(context=4096, depth=32, kv_heads=32, width=4096, hidden=11_008),
        6_738_415_616,
    ),
]


@pytest.mark.parametrize("model, count", COUNTS, ids=[str(count) for _, count in COUNTS])
def test_parameters_are_as_many_as_published(model, count):
    row = jnp.zeros((1, 1), jnp.int32)
    rows = (row, row) if isinstance(model, EncoderDecoder) else (row,)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *rows)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_layer_norms_bias_is_what_nanogpt_leaves_out():
    """nanoGPT prints 10.65M, which leaves out the 256 x 384 positions."""
    assert round((10_745_088 - 256 * 384) / 1e6, 2) == 10.65


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"position": "absolute"}, "position must be one of .*, got 'absolute'"),
        ({"norm": "batch"}, "norm must be one of .*, got 'batch'"),
        ({"activation": "tanh"}, "activation must be one of .*, got 'tanh'"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"width": 18}, r"width must be a multiple of 4 \(heads\), got 18"),
        ({"kv_heads": 3}, r"kv_heads must divide 4 \(heads\), got 3"),
        ({"kv_heads": 0}, "kv_heads must be at least 1, got 0"),
        ({"hidden": -1}, "hidden must be at least 1, got -1"),
        (
            {"position": "rotary", "width": 12},
            "head_width must be even for rotary positions, got 3",
        ),
        (
            {"position": "sinusoidal", "width": 13, "heads": 1},
            "width must be even for sinusoidal positions, got 13",
        ),
        ({"window": 0}, "window must be at least 1 .*, got 0 and True"),
        ({"window": 3, "causal": False}, "causal True, got 3 and False"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_a_config_that_cannot_be_meant(changes, message):
    with pytest.raises(ValueError, match=message):
        config_of("gpt2", **changes)


def test_a_row_that_is_too_long():
    config = config_of("gpt2")
    long = np.zeros((1, 13), np.int32)
    with pytest.raises(
        ValueError, match=r"tokens must be at most 12 in a row \(the context\), got 13"
    ):
        Transformer(config).apply({"params": params_of(config)}, long)
    with pytest.raises(ValueError, match=r"the context\), got 13"):
        EncoderDecoder(config).init(jax.random.key(0), long, long[:, :3])
    with pytest.raises(ValueError, match=r"the context\), got 13"):
        empty_cache(config, 13, jnp.zeros(1, jnp.int32))


def test_an_encoder_has_no_cache():
    config = config_of("bert")
    cache = empty_cache(config, 4, jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match=r"config.causal must be True \(a decoder\), got False"):
        Transformer(config).apply(
            {"params": params_of(config)}, TOKENS[:, :1], cache, method="advance"
        )


@jo.recorded
def copying(model):
    """Each token's own name, as a task: to see one saved."""

    def loss(logits, batch, train):
        taken = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["tokens"][..., None], -1)
        return -taken[..., 0].mean(-1)

    return jo.supervised(
        model,
        inputs=lambda batch, key: batch["tokens"],
        loss=loss,
        metrics=lambda logits, batch, weights: {},
        predict=lambda logits: logits.argmax(-1),
        columns=(jo.Column("tokens", (10,), "int32", classes=11),),
    )


@pytest.mark.slow  # tests/language saves transformers too
def test_a_file_keeps_the_model(tmp_path):
    config = config_of("llama", scan=True)
    task = copying(Transformer(config))
    data = {"tokens": np.random.default_rng(0).integers(0, 11, (16, 10), np.int32)}
    state = jo.fit(task, data, optimizer=jo.optim.adam(1e-2), batch_size=8, steps=2, progress=False)
    jo.save(tmp_path / "copy.model", jo.Model(task, state))
    model = jo.load(tmp_path / "copy.model")
    assert model.task is task
    np.testing.assert_array_equal(model.predict(data["tokens"]), jo.predict(task, state, data))
