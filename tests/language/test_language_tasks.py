import functools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import assert_close, assert_equal, filled

import jaxops as jo
from jaxops import language, nn
from jaxops.language.token_tasks import read_rows, read_rows_with_keys
from jaxops.nn.attention import document_positions

VOCABULARY = 40
SMALL = {"vocabulary": VOCABULARY, "context": 12, "depth": 1, "heads": 2, "width": 16}
DECODER = nn.Transformer(nn.TransformerConfig(**SMALL))
ENCODER = nn.Transformer(nn.TransformerConfig(**SMALL, causal=False))
BOTH = nn.EncoderDecoder(nn.TransformerConfig(**SMALL, position="relative"))
NEXT, MASKED = language.next_token(DECODER), language.masked_tokens(ENCODER, mask=39)
SPANS = language.span_corruption(BOTH, length=12)
ANSWERS = language.sequence_to_sequence(BOTH, target_length=5)
KEY = jax.random.key(0)
SEEN = []


class Spy(flax.linen.Module):
    """Remembers what it is asked, and answers with its parameter."""

    config: nn.TransformerConfig

    @flax.linen.compact
    def __call__(self, *arguments, train=False):
        SEEN.append(arguments)
        return self.get_variable("params", "logits")


@functools.lru_cache
def asking(task, train):
    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def ask(params, batch, key):
        total, out = task.loss(params, {}, batch, key, train)
        return total, (SEEN.pop(), out.weight)

    return ask


def spied(make, length, batch, key=KEY, train=True, causal=True, **settings):
    """What a task asks of a model: the arguments, the targets and their weights.

    The gradient with respect to logits of zero is `weight * (1 / V - onehot(target))`.
    """
    config = nn.TransformerConfig(**{**SMALL, "context": 512, "causal": causal, **settings})
    task = make(Spy(config))
    logits = jnp.zeros((len(batch["tokens"]), length, config.vocabulary))
    found = asking(task, train)({"logits": logits}, batch, key)
    grads, (arguments, weight) = jax.device_get(found)
    told = grads["logits"]
    weights = -told.min(-1) / (1 - 1 / config.vocabulary)
    assert weight == pytest.approx(weights.sum())
    return arguments, told.argmin(-1), weights


def texts(count, longest, seed=0, shortest=1, above=2):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(shortest, longest + 1, count)
    return [rng.integers(above, VOCABULARY - 5, n).astype(np.int32) for n in sizes]


PACKED = language.pack(texts(12, 13), 13).columns  # one shape, so one compilation, for several


def in_one_shape(texts):
    """Each in a row of its own, among rows that do not count, for the program of `PACKED`."""
    tokens, segments = (np.zeros_like(PACKED["tokens"]) for _ in range(2))
    for row, text in enumerate(texts):
        tokens[row, : len(text)], segments[row, : len(text)] = text, 1
    return {"tokens": tokens, "segments": segments, "mask": segments.any(1).astype(np.float32)}


def alone(text):
    return {"tokens": text[None], "segments": np.ones((1, len(text)), np.int32)}


@functools.lru_cache
def program(function, grads=False):
    """Compiled once a shape: operation by operation these would take minutes."""
    if grads:
        return jax.jit(jax.value_and_grad(function, has_aux=True), static_argnums=4)
    return jax.jit(function)


def sums(task, params, batch, train=False):
    (total, out), grads = program(task.loss, grads=True)(params, {}, batch, KEY, train)
    return float(total), float(out.weight), grads


def begun(task, batch, size=0.3):
    """Parameters that are far from even guesses."""
    return filled(task.init, batch, size=size)[0]


def state_of(task, batch):
    return jo.TrainState(np.int32(0), begun(task, batch), (), {}, KEY)


def test_a_packed_batch_has_the_loss_and_gradient_of_its_documents_one_by_one():
    documents = [t[:n] for n, t in zip((8, 8, 5, 5, 5), texts(5, 13, shortest=13), strict=True)]
    packed = language.pack(documents, 13).columns
    assert len(packed["tokens"]) == 3
    more = len(PACKED["tokens"]) - 3
    packed = {name: np.pad(column, ((0, more), (0, 0))) for name, column in packed.items()}
    params = begun(NEXT, PACKED)
    mask = (np.arange(3 + more) < 3).astype(np.float32)
    total, weight, grads = sums(NEXT, params, {**packed, "mask": mask})
    parts = [sums(NEXT, params, in_one_shape([d])) for d in documents]
    assert weight == sum(p[1] for p in parts) == sum(len(d) - 1 for d in documents)
    assert total == pytest.approx(sum(p[0] for p in parts), rel=1e-5)
    added = jax.tree.map(lambda *leaves: sum(leaves), *(p[2] for p in parts))
    assert_close(grads, added, rtol=1e-3, atol=1e-4)


def test_next_token_is_asked_within_documents():
    batch = {
        "tokens": np.array([[5, 6, 7, 8, 9, 0], [5, 6, 7, 8, 9, 10]]),
        "segments": np.array([[1, 1, 1, 2, 2, 0], [1, 1, 2, 3, 3, 3]]),
    }
    (tokens, segments, places), targets, weights = spied(language.next_token, 5, batch)
    assert np.array_equal(tokens, batch["tokens"][:, :-1])
    assert np.array_equal(segments, batch["segments"][:, :-1])
    assert places.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 1]]
    assert weights.round(6).tolist() == [[1, 1, 0, 1, 0], [1, 0, 0, 1, 1]]
    assert (targets == batch["tokens"][:, 1:])[weights > 0].all()
    plain = functools.partial(language.next_token, packed=False)
    assert len(spied(plain, 5, batch)[0]) == 1


def test_loss_accuracy_perplexity_and_predictions_are_those_of_numpy():
    batch, params = PACKED, begun(NEXT, PACKED)
    tokens, segments = batch["tokens"], batch["segments"]
    places = document_positions(jnp.asarray(segments[:, :-1]))
    apply = program(DECODER.apply)
    logits = apply({"params": params}, tokens[:, :-1], segments[:, :-1], places)
    logits = np.asarray(logits, np.float64)
    own = np.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
    losses = np.log(np.exp(logits).sum(-1)) - own
    counts = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    mask = (np.arange(len(tokens)) != 1).astype(np.float32)
    counted = counts & (mask > 0)[:, None]
    (total, out), _ = program(NEXT.loss, grads=True)(
        params, {}, {**batch, "mask": mask}, KEY, False
    )
    assert total == pytest.approx(losses[counted].sum(), rel=1e-5) and out.weight == counted.sum()
    read = jo.metrics.summarize(out.metrics)
    assert read["accuracy"] == pytest.approx((logits.argmax(-1) == tokens[:, 1:])[counted].mean())
    assert read["perplexity"] == pytest.approx(np.exp(losses[counted].mean()), rel=1e-4)
    foretold = program(NEXT.predict)(params, {}, batch)
    np.testing.assert_allclose(foretold, np.where(counts, -losses, 0), rtol=1e-3, atol=1e-4)


def test_windows_begin_anywhere_and_each_token_is_evaluated_once():
    text = np.arange(95)
    rows = language.windows(text, 8)
    starts = []
    draw = jax.jit(lambda key: read_rows(rows, 8, 1, key))
    for seed in range(60):
        tokens, segments = jax.device_get(draw(jax.random.key(seed)))
        assert tokens.shape == (12, 9)
        assert (np.diff(tokens, axis=1)[segments[:, 1:] > 0] == 1).all()
        starts.append(tokens[:, 0])
        assert segments[:-1].min() == 1  # only the text's end is shorter than a window
    counts = np.bincount(np.concatenate(starts)[:], minlength=95)
    assert (counts[:86] > 0).all() and counts[:80].max() < 30  # 7.5 on average
    plain = functools.partial(language.next_token, context=8)
    (tokens, *_), targets, weights = spied(plain, 8, rows, train=False, vocabulary=100)
    assert sorted(targets[weights > 0].tolist()) == list(range(1, 95))
    assert tokens[1].tolist() == list(range(8, 16))


def test_where_a_window_begins_is_drawn_apart_from_what_is_hidden_in_it():
    rows = language.windows(np.arange(95), 8)
    tokens, segments, keys = read_rows_with_keys(rows, 8, KEY)
    place, draw = jax.random.split(KEY)
    assert_equal((tokens, segments), read_rows(rows, 8, 0, place))
    drawn = jax.random.split(draw, len(tokens))
    assert_equal(jax.random.key_data(keys), jax.random.key_data(drawn))


@pytest.mark.slow
def test_a_long_text_is_learned_and_evaluated_in_windows():
    task = language.next_token(DECODER, context=8, packed=False)
    text = np.random.default_rng(0).integers(0, 5, 59).astype(np.uint8)
    rows = language.windows(text, 8)
    state = jo.fit(
        task, rows, optimizer=jo.optim.adam(1e-2), batch_size=4, steps=20, progress=False
    )
    apply, losses = program(DECODER.apply), []
    for start in range(0, 58, 8):
        seen = np.pad(text[start : start + 9], (0, 9))[:9].astype(np.int32)
        logits = np.asarray(apply({"params": state.params}, seen[None, :-1]), np.float64)[0]
        own = np.take_along_axis(logits, seen[1:, None], -1)[:, 0]
        losses.extend((np.log(np.exp(logits).sum(-1)) - own)[: 58 - start])
    assert len(losses) == 58
    loss = jo.evaluate(task, state, rows)["loss"]
    assert loss == pytest.approx(np.mean(losses), rel=1e-5) and loss < 2  # log(40) is 3.7


def test_masked_tokens_are_chosen_and_hidden_as_in_bert():
    vocabulary, rows, length = 300, 100, 200
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(4, vocabulary, (rows, length)),
        "segments": np.repeat([[1] * 150 + [0] * 50], rows, 0),
    }
    batch["tokens"][:, ::10] = 3
    make = functools.partial(language.masked_tokens, mask=2, special=(3,))
    ask = functools.partial(spied, make, length, batch, causal=False, vocabulary=vocabulary)
    (shown, segments, _), targets, weights = ask()
    chosen, tokens = weights > 0.5, batch["tokens"]
    assert np.array_equal(segments, batch["segments"])
    assert not chosen[:, 150:].any() and not chosen[:, ::10].any()
    assert np.array_equal(targets[chosen], tokens[chosen])

    def near(found, count, share):  # four standard deviations
        assert abs(found - count * share) < 4 * (count * share * (1 - share)) ** 0.5

    near(chosen.sum(), rows * 150 * 0.9, 0.15)
    near((shown[chosen] == 2).sum(), chosen.sum(), 0.8)
    near((shown[chosen] == tokens[chosen]).sum(), chosen.sum(), 0.1)
    others = shown[chosen][(shown[chosen] != 2) & (shown[chosen] != tokens[chosen])]
    near(len(others), chosen.sum(), 0.1)
    near((others < vocabulary / 2).sum(), len(others), 0.5)
    there = segments > 0
    assert np.array_equal(shown[there & ~chosen], tokens[there & ~chosen])

    assert not np.array_equal(ask(key=jax.random.key(1))[2], weights)
    one, two = ask(train=False), ask(train=False, key=jax.random.key(1))
    assert np.array_equal(one[0][0], two[0][0]) and np.array_equal(one[2], two[2])


def restored(source, target, vocabulary, sentinels, end):
    """The text, from what is left of it and what was cut out; and the lengths of the spans."""
    source, target = list(source), list(target)
    first = vocabulary - sentinels
    spans, text, used = {}, [], []
    for token in target[: target.index(end)]:
        if token >= first:
            used.append(int(token))
            spans[token] = []
        else:
            spans[used[-1]].append(token)
    for token in source[: source.index(end)]:
        text += spans.pop(token) if token >= first else [token]
    assert not spans and used == list(range(vocabulary - 1, vocabulary - 1 - len(used), -1))
    return text


def test_a_text_is_restored_from_source_and_target_spans():
    rng = np.random.default_rng(0)
    batch = {"tokens": rng.integers(2, 400, (40, 64)).astype(np.int32)}
    sizes = np.array([0, 1, 2, 3, 64, *rng.integers(2, 65, 35)])
    batch["segments"] = (np.arange(64) < sizes[:, None]).astype(np.int32)
    make = functools.partial(language.span_corruption, length=64)
    seen = {}
    for seed, train in ((0, True), (1, True), (0, False), (1, False)):
        (source, known, there), target, weights = spied(
            make, 14, batch, jax.random.key(seed), train, vocabulary=500
        )
        assert np.array_equal(there, source != 0)
        assert np.array_equal(known[:, 1:], np.where(weights > 0, target, 0)[:, :-1])
        assert (known[:, 0] == 0).all() and weights[0].sum() == 0
        for i, n in enumerate(sizes):
            if n == 0:
                continue
            told = np.where(weights[i] > 0, target[i], 0)
            assert restored(source[i], told, 500, 3, end=1) == batch["tokens"][i, :n].tolist()
            cut = max(1, round(n * 0.15)) if n > 1 else 0
            spans = max(1, round(cut / 3)) if n > 1 else 0
            assert (told >= 497).sum() == spans and weights[i].sum() == cut + spans + 1
            assert (source[i] != 0).sum() == n - cut + spans + 1
        seen[seed, train] = source
    assert not np.array_equal(seen[0, True], seen[1, True])
    assert np.array_equal(seen[0, False], seen[1, False])


def test_sentinels_are_those_of_t5_where_its_vocabulary_is_padded():
    batch = alone(np.arange(2, 42, dtype=np.int32))
    make = functools.partial(language.span_corruption, length=40)
    plain, t5 = (
        spied(functools.partial(make, first_sentinel=first), 9, batch, vocabulary=32_128)
        for first in (None, 32_099)  # of T5's tokenizer <extra_id_0>
    )
    assert [t for t in t5[1][0] if t > 41] == [32_099, 32_098]
    for one, two in zip((plain[0][0], plain[1]), (t5[0][0], t5[1]), strict=True):
        assert np.array_equal(one - 28 * (one > 41), two)
    kept = language.span_corruption(BOTH, length=12, first_sentinel=35)
    assert (SPANS.columns[0].classes, kept.columns[0].classes) == (39, 35)


def test_every_place_is_cut_out_as_often():
    batch = alone(np.arange(2, 42, dtype=np.int32))
    batch = {name: np.repeat(column, 2000, 0) for name, column in batch.items()}
    make = functools.partial(language.span_corruption, length=40, share=0.25, mean_span=2.5)
    _, target, weights = spied(make, 15, batch, vocabulary=100)
    told = target[weights > 0]
    counts = np.bincount(told, minlength=100)[2:42] / 2000
    assert counts.sum() == pytest.approx(10)
    # T5's texts begin with what is kept and end with what is cut; between them it is even
    assert counts[0] == 0 and counts[-1] == 1
    assert counts[8:32].min() > 0.17 and counts[8:32].max() < 0.33


def test_padding_and_rows_that_do_not_count_change_nothing():
    batch, params = PACKED, begun(NEXT, PACKED)
    mask = np.ones(len(batch["tokens"]), np.float32)
    mask[1] = 0
    junk = {name: column.copy() for name, column in batch.items()}
    junk["tokens"][1], junk["segments"][1] = 7, 1
    junk["tokens"][batch["segments"] == 0] = 9
    assert not np.array_equal(junk["tokens"][2:], batch["tokens"][2:])
    one, two = (sums(NEXT, params, {**rows, "mask": mask}) for rows in (batch, junk))
    assert one[:2] == pytest.approx(two[:2], rel=1e-6)
    assert_close(one[2], two[2], atol=1e-6)


@pytest.mark.parametrize(
    "settings_of",
    [
        lambda: {"accumulate": 2},
        pytest.param(lambda: {"plan": jo.devices.data_parallel()}, marks=pytest.mark.slow),
    ],
    ids=["accumulated", "eight-devices"],
)
def test_unequal_parts_of_a_batch_weigh_by_their_tokens(settings_of):
    rows = language.pack(texts(40, 13, shortest=2), 13).columns
    # one text a row: from 1 to 12 targets each
    rows = {"tokens": rows["tokens"], "segments": (rows["segments"] == 1).astype(np.int32)}
    count = len(rows["tokens"]) // 8 * 8
    rows = {name: column[:count] for name, column in rows.items()}
    assert len(set(rows["segments"].sum(1))) > 4
    optimizer = jo.optim.sgd(0.5)

    def trained(**settings):
        state = jo.fit(
            NEXT, rows, optimizer=optimizer, batch_size=8, steps=3, progress=False, **settings
        )
        return state.params

    assert_close(trained(), trained(**settings_of()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings_of",
    [
        lambda: {"batch_size": 8},
        pytest.param(lambda: {"plan": jo.devices.data_parallel()}, marks=pytest.mark.slow),
    ],
    ids=["batches-of-8", "eight-devices"],
)
def test_an_evaluation_is_the_same_in_batches_of_any_size_on_any_devices(settings_of):
    columns = language.pack(texts(60, 12), 12).columns
    state = state_of(MASKED, columns)
    wanted = jo.evaluate(MASKED, state, columns)
    assert wanted["perplexity"] == pytest.approx(np.exp(wanted["loss"]))
    again = jo.evaluate(MASKED, state, columns, **settings_of())
    assert again == pytest.approx(wanted, rel=1e-5)


def test_masked_tokens_are_filled_in():
    batch = alone(np.array([3, 39, 5, 39, 7], np.int32))
    params = begun(MASKED, batch)
    filled = np.asarray(program(MASKED.predict)(params, {}, batch))[0]
    logits = program(ENCODER.apply)({"params": params}, batch["tokens"])
    assert filled.tolist() == [3, logits[0, 1].argmax(), 5, logits[0, 3].argmax(), 7]


def test_answers_are_the_likeliest_tokens_one_after_the_other():
    source = language.padded(texts(20, 9, shortest=3), 9)
    params, _ = program(ANSWERS.init)(KEY, {"source": source, "target": source[:, :5]})
    params = jax.tree.map(lambda leaf: 15 * np.asarray(leaf), params)  # so that answers differ
    found = np.asarray(program(ANSWERS.predict)(params, {}, {"source": source}))
    assert found.shape == (20, 5) and len(np.unique(found)) > 5

    def logits(source, known, *segments):  # without a cache; what is not said yet is not seen
        return np.asarray(program(BOTH.apply)({"params": params}, source, known, *segments))

    there = (source > 0).astype(np.int32)
    known = np.concatenate([np.zeros((20, 1), np.int32), found[:, :-1]], 1)
    ended = np.zeros(20, bool)
    for t in range(5):
        said = np.where(np.arange(5) <= t, known, 7).astype(np.int32)
        wanted = logits(source, said, there)[:, t].argmax(-1)
        assert np.array_equal(found[:, t], np.where(ended, 0, wanted))
        ended |= wanted == 1
    assert ended.any()
    row = int(np.argmax((source > 0).sum(1) < 9))
    short = source[row][source[row] > 0][None]
    np.testing.assert_allclose(
        logits(short, known[row][None]), logits(source, known, there)[[row]], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    "task",
    [
        NEXT,
        pytest.param(SPANS, marks=pytest.mark.slow),
        pytest.param(MASKED, marks=pytest.mark.slow),
        pytest.param(ANSWERS, marks=pytest.mark.slow),
    ],
)
def test_a_model_file_brings_the_task_back(task, tmp_path):
    text = language.padded(texts(4, 5, shortest=5), 5)
    batch = {"tokens": text, "segments": np.ones_like(text), "source": text, "target": text}
    state = state_of(task, batch)
    jo.save(tmp_path / "model", jo.Model(task, state))
    model = jo.load(tmp_path / "model")
    assert_equal(model.state.params, state.params)
    np.testing.assert_array_equal(model.predict(batch), jo.predict(task, state, batch))


ROWS = language.pack(texts(10, 12), 12).columns


def fitted(task, columns):
    jo.fit(task, columns, optimizer=jo.optim.sgd(0.1), batch_size=2, steps=1, progress=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: language.next_token(ENCODER), "module must have causal=True, got causal=False"),
        (
            lambda: language.masked_tokens(DECODER, 3),
            "module must have causal=False, got causal=True",
        ),
        (
            lambda: language.masked_tokens(ENCODER, 40),
            r"mask and special must be in \[0, 40\), got 40",
        ),
        (
            lambda: language.masked_tokens(ENCODER, 3, share=1.0),
            "share must be between 0 and 1, got 1.0",
        ),
        (
            lambda: language.next_token(DECODER, context=13),
            r"context must be at most 12 .*, got 13",
        ),
        (lambda: language.span_corruption(BOTH, length=14), "length must be in 2 to 12 .*, got 14"),
        (
            lambda: language.span_corruption(BOTH, mean_span=0.5),
            "share and mean_span must be .*, got 0.15 and 0.5",
        ),
        (
            lambda: language.span_corruption(BOTH, first_sentinel=40),
            "first_sentinel must be below 40 .*, got 40",
        ),
        (
            lambda: language.span_corruption(BOTH, first_sentinel=0),
            "first_sentinel must be at least 1 .*, got 0",
        ),
        (
            lambda: language.sequence_to_sequence(BOTH, 13),
            "target_length must be in 1 to 12 .*, got 13",
        ),
        (
            lambda: language.sequence_to_sequence(BOTH, 5, end=0),
            "end and padding must be .*, got 0 and 0",
        ),
        (
            lambda: fitted(NEXT, {k: np.repeat(v, 3, 1) for k, v in ROWS.items()}),
            "tokens must be rows of at most 13 .*, got rows of 36",
        ),
        (
            lambda: fitted(NEXT, {**ROWS, "tokens": ROWS["tokens"] + 30}),
            r"tokens must be in \[0, 40\)",
        ),
        (
            lambda: fitted(SPANS, {**ROWS, "tokens": ROWS["tokens"] + 5}),
            r"tokens must be in \[0, 39\)",
        ),
        (
            lambda: fitted(NEXT, {**ROWS, "segments": ROWS["segments"][:, 1:]}),
            "segments must be .*, got",
        ),
        (lambda: fitted(NEXT, {"tokens": ROWS["tokens"]}), "columns must include 'segments'"),
        (
            lambda: fitted(
                ANSWERS, {"source": np.ones((9, 13), int), "target": np.ones((9, 5), int)}
            ),
            "source must be rows of at most 12 tokens .*, got rows of 13",
        ),
    ],
)
def test_what_cannot_be_meant_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
