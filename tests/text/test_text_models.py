import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

import jaxops as jo
from jaxops import nn, text

CONFIG = nn.TransformerConfig(
    vocabulary=40, context=24, depth=1, heads=2, width=16, causal=False, dropout=0.1
)
MODELS = [
    text.TextCNN(40, classes=3, width=8, filters=6),
    text.NGramBag(40, classes=3, width=8),
    text.TransformerClassifier(CONFIG, classes=3),
    text.TransformerClassifier(CONFIG, classes=3, pooling="first"),
]


def some(rows=5, length=12, seed=0):
    """Tokens in rows of 1 to `length`, with padding behind them."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 40, (rows, length)).astype(np.int32)
    lengths = rng.integers(1, length + 1, rows)
    lengths[:3] = 1, 4, length
    return np.where(np.arange(length) < lengths[:, None], tokens, 0).astype(np.int32)


def variables(model, tokens, seed=1):
    """Parameters that are nowhere zero, so that nothing hides."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    rng = np.random.default_rng(seed)
    draw = lambda leaf: (rng.normal(size=leaf.shape) * 0.3).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: f"{type(m).__name__}")
def test_padding_changes_nothing(model):
    tokens = some()
    v, apply = variables(model, tokens), jax.jit(model.apply)
    logits = apply(v, tokens)
    assert logits.shape == (5, 3) and logits.dtype == jnp.float32
    wider = np.pad(tokens, ((0, 0), (0, 7)))
    np.testing.assert_allclose(apply(v, wider), logits, atol=1e-5)
    one = apply(v, tokens[1:2, :4])  # a row by itself, without any
    np.testing.assert_allclose(one[0], logits[1], atol=1e-5)
    assert np.ptp(np.asarray(logits), 0).min() > 1e-3  # and the texts change something


def test_a_bag_and_a_cnn_side_by_side():
    """The members are the two modules; the task averages their losses and their probabilities."""
    both = text.BagAndCNN(40, 3, words=6, word_vocabulary=40, width=8, filters=4, dropout=0.0)
    tokens, label = some(), np.array([0, 1, 2, 0, 1], np.int32)
    v = variables(both, tokens)
    bag = text.NGramBag(40, classes=3).apply({"params": v["params"]["bag"]}, tokens[:, 6:])
    cnn = text.TextCNN(40, 3, width=8, widths=(1, 2, 3), filters=4)
    members = [bag, cnn.apply({"params": v["params"]["cnn"]}, tokens[:, :6])]
    logits = both.apply(v, tokens)
    np.testing.assert_allclose(logits, np.stack(members, 1), atol=1e-6)
    p = [np.asarray(jax.nn.softmax(one)) for one in members]
    task = text.classifier(both, 12, 3)
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, {"tokens": tokens})
    state = state._replace(params=v["params"])
    np.testing.assert_allclose(
        jo.predict(task, state, {"tokens": tokens}), np.mean(p, axis=0), atol=1e-6
    )
    scored = jo.evaluate(task, state, {"tokens": tokens, "label": label})
    wanted = np.mean([log_loss(label, one, labels=range(3)) for one in p])
    assert scored["loss"] == pytest.approx(wanted, abs=1e-5)
    assert scored["accuracy"] == pytest.approx((np.mean(p, axis=0).argmax(1) == label).mean())
    task = text.classifier(both, 12, 3, many=True)
    several = np.eye(3, dtype=np.int32)[label]
    scored = jo.evaluate(task, state, {"tokens": tokens, "label": several})
    of_each = [several * np.logaddexp(0, -one) + (1 - several) * np.logaddexp(0, one)
               for one in members]  # fmt: skip
    assert scored["loss"] == pytest.approx(np.mean(of_each, axis=0).sum(1).mean(), abs=1e-5)


def test_dropout_is_of_training_alone():
    tokens, key = some(), {"dropout": jax.random.key(0)}
    for model in (
        text.TextCNN(40, classes=3, width=8, dropout=0.0, word_dropout=0.5),
        text.NGramBag(40, classes=3, width=8, dropout=0.5),
        text.NGramBag(40, classes=3, width=8, hidden_dropout=0.5),
        text.BagAndCNN(40, 3, words=6, word_vocabulary=40, dropout=0.5),
        text.TransformerClassifier(CONFIG, classes=3, dropout=0.5, word_dropout=0.5),
    ):
        v = variables(model, tokens)
        apply = jax.jit(model.apply, static_argnames="train")
        plain, trained = apply(v, tokens), apply(v, tokens, train=True, rngs=key)
        assert np.abs(np.asarray(trained - plain)).max() > 1e-3
        assert np.isfinite(np.asarray(trained)).all()


def test_text_cnn_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    tokens = some(6, 10)
    model = text.TextCNN(40, classes=3, width=8, filters=6)
    v = variables(model, tokens)
    p = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), v["params"])
    embedding = torch.nn.functional.embedding(torch.tensor(tokens).long(), p["tokens"]["embedding"])
    found = jax.jit(model.apply)(v, tokens)
    for row, own in enumerate(tokens):
        count = int((own > 0).sum())
        x = embedding[row : row + 1, :count].swapaxes(1, 2)  # (1, width, count), no padding
        pooled = []
        for k in (3, 4, 5):
            conv = torch.nn.Conv1d(8, 6, k)
            kernel = p[f"conv_{k}"]["kernel"].reshape(k, 8, 6).permute(2, 1, 0)
            conv.weight.data, conv.bias.data = kernel, p[f"conv_{k}"]["bias"]
            short = torch.nn.functional.pad(x, (0, max(k - count, 0)))
            pooled.append(torch.relu(conv(short)).max(-1).values)
        logits = torch.cat(pooled, 1) @ p["logits"]["kernel"] + p["logits"]["bias"]
        np.testing.assert_allclose(found[row], logits[0].detach().numpy(), atol=1e-4)


def test_gradients_of_text_cnn_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    tokens = some(4, 9)
    tokens[tokens == 0] = 1  # no padding: then all rows go through one convolution
    model = text.TextCNN(40, classes=3, width=8, filters=6)
    v = variables(model, tokens)
    slope = jax.grad(lambda p: jnp.square(model.apply({"params": p}, tokens)).sum())
    found = jax.jit(slope)(v["params"])
    p = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), v["params"])
    x = torch.nn.functional.embedding(torch.tensor(tokens).long(), p["tokens"]["embedding"])
    pooled = [
        torch.relu(
            torch.nn.functional.conv1d(
                x.swapaxes(1, 2),
                p[f"conv_{k}"]["kernel"].reshape(k, 8, 6).permute(2, 1, 0),
                p[f"conv_{k}"]["bias"],
            )
        )
        .max(-1)
        .values
        for k in (3, 4, 5)
    ]
    logits = torch.cat(pooled, 1) @ p["logits"]["kernel"] + p["logits"]["bias"]
    logits.square().sum().backward()
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(p), strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-3, atol=1e-3)


def test_text_cnn_by_loops():
    tokens = some(4, 7)
    model = text.TextCNN(40, classes=3, width=5, widths=(2, 3), filters=4)
    v = variables(model, tokens)
    p = jax.tree.map(np.asarray, v["params"])
    for row, logits in zip(tokens, np.asarray(jax.jit(model.apply)(v, tokens)), strict=True):
        words = p["tokens"]["embedding"][row[row > 0]]
        best = []
        for k in (2, 3):
            padded = np.concatenate([words, np.zeros((max(k - len(words), 0), 5))])
            runs = [padded[i : i + k].ravel() for i in range(len(padded) - k + 1)]
            values = [r @ p[f"conv_{k}"]["kernel"] + p[f"conv_{k}"]["bias"] for r in runs]
            best.append(np.maximum(np.max(values, axis=0), 0))
        wanted = np.concatenate(best) @ p["logits"]["kernel"] + p["logits"]["bias"]
        np.testing.assert_allclose(logits, wanted, atol=1e-5)


def test_bag_by_loops():
    tokens = some(5, 9)
    model = text.NGramBag(40, classes=3, width=6)
    v = variables(model, tokens)
    p = jax.tree.map(np.asarray, v["params"])
    for row, logits in zip(tokens, np.asarray(jax.jit(model.apply)(v, tokens)), strict=True):
        total, squares = np.zeros(6), 0.0
        for number in row[row > 0]:
            weight = np.exp(p["gate"][number])
            total += weight * p["embedding"][number]
            squares += weight**2
        x = total / np.sqrt(squares)
        wanted = x @ p["logits"]["kernel"] + p["logits"]["bias"]
        np.testing.assert_allclose(logits, wanted, atol=1e-5)


def test_an_ngram_that_was_never_seen_says_nothing():
    model = text.NGramBag(40, classes=3, width=6)
    task = text.classifier(model, context=4, classes=3)
    columns = {
        "tokens": np.array([[1, 2, 0, 0], [3, 0, 0, 0], [4, 5, 0, 0]] * 8, np.int32),
        "label": np.array([0, 1, 2] * 8, np.int32),
    }
    state = jo.fit(
        task, columns, optimizer=jo.optim.adam(0.05), batch_size=24, epochs=30, progress=False
    )
    assert jo.evaluate(task, state, columns)["accuracy"] == 1
    table = np.asarray(state.params["embedding"])
    assert (table[6:] == 0).all() and (table[1:6] != 0).any(1).all()


def test_hashed_ngrams_by_hand():
    read = text.NGrams(context=40, vocabulary=2**20, words=(1, 2), characters=(2, 3))
    row = read(["A card, a"])["tokens"][0]
    from zlib import crc32

    # words a, card, the comma, pairs without it; of " a ": " a", "a ", " a "; each n-gram once
    words = ["wa", "wcard", "w,", "wa card", "wcard a"]
    wanted = ["c a", "ca ", "c a "]
    wanted += ["c c", "cca", "car", "crd", "cd ", "c ca", "ccar", "card", "crd "]
    wanted += ["c ,", "c, ", "c , "]
    numbers = [1 + crc32(gram.encode()) % (2**19 - 1) for gram in words + wanted]
    numbers[len(words) :] = [2**19 + number for number in numbers[len(words) :]]
    assert row[: len(numbers)].tolist() == numbers and (row[len(numbers) :] == 0).all()
    with pytest.warns(
        UserWarning, match=r"texts must have at most 5 tokens, got 1 longer, .* row 1 \(20\)"
    ):
        cut = text.NGrams(5, 2**20, (1, 2), (2, 3))(["a", "A card, a"])
    assert cut["tokens"][1].tolist() == numbers[:5]
    for texts, message in (([""], "got an empty text in row 0"), ([b"a"], "got bytes in row")):
        with pytest.raises(ValueError, match=message):
            read(texts)


def test_labels():
    with pytest.raises(
        ValueError, match=r"label must be one of 2 classes .*, got 'stolen' in row 1"
    ):
        text.labels(["lost", "stolen"], ("lost", "found"))
    with pytest.raises(ValueError, match=r"label must be .*, got 'stolen' in row 0"):
        text.labels([["lost", "stolen"]], ("lost", "found"), many=True)


@pytest.mark.parametrize(
    ("names", "classes", "many", "message"),
    [
        ([0, 1, 2], (0, 1), False, r"label must be one of 2 classes \(0, 1\), got 2 in row 2"),
        (["a", float("nan")], ("a", "b"), False, "got nan in row 1"),
        (["c"], {"a": 0, "b": 1}.keys(), False, r"classes \(a, b\), got 'c' in row 0"),
        (["a"], ("a", "b", "a"), False, "classes must be distinct names, got 3"),
        ([["A"], "AB"], ("A", "B"), True, "label must be a list of names .*, got 'AB' in row 1"),
    ],
)
def test_labels_that_are_no_names_of_classes(names, classes, many, message):
    with pytest.raises(ValueError, match=message):
        text.labels(names, classes, many)


def test_names_of_classes():
    assert text.classifier(MODELS[1], 12, (0, 1, 2)).classes == ("0", "1", "2")
    for odd, message in (
        (("a", "b", "a"), "classes must be distinct names, got 'a' twice"),
        (("a", float("nan"), "b"), "classes must be a number or names, got nan among them"),
    ):
        with pytest.raises(ValueError, match=message):
            text.classifier(MODELS[1], 12, odd)


class Given(fnn.Module):
    """Logits that are parameters, one row for each token."""

    classes: int
    vocabulary: int = 40

    @fnn.compact
    def __call__(self, tokens):
        return fnn.Embed(self.vocabulary, self.classes, name="rows")(tokens[:, 0])


def test_loss_and_accuracy_of_many_labels_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 4)).astype(np.float32)
    label = (logits + rng.normal(size=(40, 4)) * 0.3 > 0).astype(np.int32)
    task = text.classifier(Given(4), context=1, classes=("a", "b", "c", "d"), many=True)
    columns = {"tokens": np.arange(40, dtype=np.int32)[:, None], "label": label}
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, columns)
    state = state._replace(params={"rows": {"embedding": jnp.asarray(logits)}})
    found = jo.evaluate(task, state, columns)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    wanted = sum(log_loss(label[:, i], p[:, i]) for i in range(4))
    assert found["loss"] == pytest.approx(wanted, rel=1e-5)
    assert found["accuracy"] == pytest.approx(accuracy_score(label, p > 0.5))
    np.testing.assert_allclose(jo.predict(task, state, columns), p, rtol=1e-5)
    with pytest.raises(ValueError, match=r"label must be in .*, got 2 in row 0"):
        jo.evaluate(task, state, {**columns, "label": label + 2 * (label == 0)})


def test_label_smoothing_is_of_training_alone():
    columns = {"tokens": np.array([[7]], np.int32), "label": np.array([1], np.int32)}
    plain, smooth = (
        text.classifier(Given(3), context=1, classes=3, label_smoothing=s) for s in (0.0, 0.3)
    )
    params = {"rows": {"embedding": jnp.tile(jnp.array([[0.0, 2.0, -1.0]]), (40, 1))}}
    log_p = np.array([0, 2, -1]) - np.log(np.exp([0, 2, -1]).sum())

    def loss(task, train):
        run = jax.jit(task.loss, static_argnums=4)
        return float(run(params, {}, columns, jax.random.key(0), train)[0])

    assert loss(smooth, False) == loss(plain, True) == pytest.approx(-log_p[1], rel=1e-5)
    wanted = -(0.7 * log_p[1] + 0.1 * log_p.sum())
    assert loss(smooth, True) == pytest.approx(wanted, rel=1e-5)


def test_refusals():
    model = MODELS[1]
    task = text.classifier(model, context=12, classes=3)
    columns = {"tokens": some(), "label": np.zeros(5, np.int32)}
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, columns)
    jo.evaluate(task, state, columns)
    for change, message in (
        ({"tokens": some() + 36}, r"tokens must be in \[0, 40\), got \d+ in row \d"),
        ({"tokens": some(5, 14)}, r"tokens must have rows of shape \(12,\), got \(14,\)"),
        ({"label": np.full(5, 3)}, r"label must be in .*, got 3 in row 0"),
    ):
        with pytest.raises(ValueError, match=message):
            jo.evaluate(task, state, {**columns, **change})
    with pytest.raises(ValueError, match=r"classes must be 3 \(module.classes\), got 4"):
        text.classifier(model, context=12, classes=4)
    with pytest.raises(ValueError, match="pooling must be 'mean' or 'first', got 'max'"):
        text.TransformerClassifier(CONFIG, 3, pooling="max").init(jax.random.key(0), some())
