"""The recurrent language model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import filled

import jaxops as jo
from jaxops import language
from jaxops.language import Recurrent
from jaxops.nn import GRU, LSTM

KEY = jax.random.key(0)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 9), np.int32)
CELLS = ["lstm", "gru"]


@functools.cache
def made(**settings):
    model = Recurrent(11, width=8, **{"depth": 2, **settings})
    return model, filled(model.init, TOKENS)


@functools.cache
def whole(model):
    """Logits of all tokens at once, compiled once a model."""
    return jax.jit(model.apply)


@pytest.mark.parametrize(
    ("cell", "tied"),
    [
        ("lstm", True),
        ("gru", False),
        pytest.param("lstm", False, marks=pytest.mark.slow),
        pytest.param("gru", True, marks=pytest.mark.slow),
    ],
)
def test_it_is_its_parts(cell, tied):
    model, variables = made(cell=cell, tied=tied)
    params = variables["params"]
    table = params["embedding"]["embedding"]
    layers = {"lstm": LSTM, "gru": GRU}[cell](8, depth=2)
    hidden, _ = jax.jit(layers.apply)({"params": params["recurrence"]}, table[TOKENS])
    hidden = np.asarray(hidden)
    want = hidden @ (table.T if tied else params["head"]["kernel"])
    if not tied:
        want = want + params["head"]["bias"]
    np.testing.assert_allclose(whole(model)(variables, TOKENS), want, atol=1e-5)
    assert table.shape == (11, 8) and ("head" in params) != tied


@pytest.mark.parametrize("cell", ["lstm", pytest.param("gru", marks=pytest.mark.slow)])
def test_it_sees_the_past_alone(cell):
    model, variables = made(cell=cell)
    table = variables["params"]["embedding"]["embedding"]

    @jax.jit
    @jax.grad
    def slope(one_hot, t):  # of the logit at place t of a text whose tokens are mixtures
        inside = lambda module, x: module.recurrence(x)[0][0, t].sum()  # noqa: E731
        return model.apply(variables, one_hot @ table, method=inside)

    text = np.eye(11, dtype=np.float32)[TOKENS[:1]]
    for t in (0, 4):
        moves = np.abs(slope(text, t)).sum((0, 2))
        assert (moves[: t + 1] > 0).all() and not moves[t + 1 :].any()


@pytest.mark.parametrize("cell", CELLS)
def test_token_by_token_it_says_the_same(cell):
    model, variables = made(cell=cell)
    wanted, state, logits = whole(model)(variables, TOKENS), None, []
    advance = jax.jit(functools.partial(model.apply, method="advance"))
    for t in range(TOKENS.shape[1]):
        now, state = advance(variables, TOKENS[:, t : t + 1], state)
        logits.append(now)
    np.testing.assert_allclose(np.concatenate(logits, 1), wanted, atol=1e-5)


def test_packed_documents_have_the_loss_of_each_alone():
    model, variables = made(depth=1)
    documents = [TOKENS[0, :4], TOKENS[1, :3], TOKENS[2, :8]]
    tokens = np.zeros((2, 9), np.int32)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    places = [(0, 0, 1), (0, 4, 2), (1, 0, 1)]
    for document, (row, start, segment) in zip(documents, places, strict=True):
        at = row, slice(start, start + len(document))
        tokens[at], segments[at], positions[at] = document, segment, np.arange(len(document))

    def loss(variables, tokens, segments, positions):
        logits = model.apply(variables, tokens, segments, positions)[:, :-1]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        return jnp.where(same, each, 0).sum()

    slope = jax.jit(jax.value_and_grad(loss))
    packed = slope(variables, tokens, segments, positions)
    single = []
    for document in documents:  # in a row of its own, of which the rest is padding
        row, own = np.zeros_like(tokens), np.zeros_like(tokens)
        row[0, : len(document)], own[0, : len(document)] = document, 1
        places = np.repeat(np.arange(9, dtype=np.int32)[None], 2, 0)
        single.append(slope(variables, row, own, places))
    single = jax.tree.map(lambda *parts: sum(map(np.asarray, parts)), *single)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), packed, single)


def test_every_dropout_has_one_mask_a_row():
    """Rows of one token: what is dropped at the first step is so at all others."""
    model, variables = made(dropout=0.5, recurrent_dropout=0.5, word_dropout=0.5)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)  # a row of nothing says something
    tokens = np.full((40, 6), 3)
    train = functools.partial(model.apply, train=True, capture_intermediates=True)
    _, kept = jax.jit(train)(variables, tokens, rngs={"dropout": KEY})
    (hidden,) = kept["intermediates"]["drop"]["__call__"]
    gone = np.asarray(hidden) == 0
    assert (gone == gone[:, :1]).all() and 0.4 < gone.mean() < 0.6
    assert len(np.unique(gone[:, 0], axis=0)) > 30
    (vectors,) = kept["intermediates"]["embedding"]["__call__"]
    dropped = np.asarray(vectors)[..., 0] == 0
    assert (dropped == dropped[:, :1]).all() and 8 <= dropped[:, 0].sum() <= 32


def test_another_cell():
    with pytest.raises(ValueError, match='cell must be "lstm" or "gru", got \'rnn\''):
        made(cell="rnn")


@pytest.mark.parametrize(
    "adapted", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "lora"]
)
def test_monte_carlo_is_the_mean_and_spread_of_a_loop_with_lora_as_without(adapted):
    model = Recurrent(11, width=8, dropout=0.3, recurrent_dropout=0.3, word_dropout=0.1)
    task = language.next_token(model, context=8)
    rows = language.pack(list(np.asarray(TOKENS)), 9).columns
    state = jo.TrainState(np.int32(0), filled(task.init, rows)[0], (), {}, KEY)
    tokens, segments = rows["tokens"], rows["segments"]

    @jax.jit
    def one(key):
        rngs = {"dropout": key}
        logits = model.apply(
            {"params": state.params}, tokens[:, :-1], segments[:, :-1], train=True, rngs=rngs
        )
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1)
        return own[..., 0]

    draws = [np.asarray(one(jax.random.fold_in(jax.random.key(7), i))) for i in range(5)]
    assert np.ptp(draws, 0).max() > 1e-3  # dropout is on
    if adapted:
        task = language.lora(task, rank=2, targets="recurrence/.*kernel")
        state = language.adapt(task, state)
    found = jo.predict(jo.monte_carlo(task, samples=5, seed=7), state, rows)
    np.testing.assert_allclose(found["mean"], np.mean(draws, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["std"], np.std(draws, 0, ddof=1), rtol=1e-3, atol=1e-6)
