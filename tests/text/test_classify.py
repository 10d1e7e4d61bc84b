import functools

import numpy as np
import pytest

import jaxops as jo
from jaxops import nn, text
from jaxops.data import Tokenizer

CLASSES = ("lost", "arrival", "pin")
KEYS = {"lost": ("lost", "stolen", "gone"), "arrival": ("arrive", "track"), "pin": ("pin", "code")}
OTHERS = ("my", "card", "please", "when", "did", "the", "bank", "is", "it")


def questions(rows, seed=0):
    """Texts with one word that tells the class, among others that tell nothing."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, rows).astype(np.int32)
    texts = []
    for number in label:
        words = list(rng.choice(OTHERS, 5))
        words.insert(rng.integers(0, 6), rng.choice(KEYS[CLASSES[number]]))
        texts.append(" ".join(words))
    return texts, label


def doubtful():
    """Validation rows of which a tenth have another label, so that nobody should be quite sure."""
    texts, label = questions(200, seed=1)
    return texts, np.where(np.arange(200) % 10 == 0, (label + 1) % 3, label)


@functools.cache
def trained(model_of):
    """A classifier, trained once for all tests."""
    read = GRAMS if model_of is bag else WORDS
    texts, label = questions(300)
    task = text.classifier(model_of(read.vocabulary), read.context, CLASSES)
    columns = {**read(texts), "label": label}
    optimizer = jo.optim.adam(0.01)
    state = jo.fit(
        task, columns, optimizer=optimizer, batch_size=100, epochs=8, progress=False, seed=1
    )
    return text.calibrate(jo.Model(task, state, text.TextReader(read)), *doubtful(), keep=0.9)


def cnn(vocabulary):
    return text.TextCNN(vocabulary, 3, width=16, widths=(1, 3), filters=16)


def bag(vocabulary):
    return text.NGramBag(vocabulary, 3, width=8)


def transformer(vocabulary):
    config = nn.TransformerConfig(vocabulary, 12, depth=1, heads=2, width=16, causal=False)
    return text.TransformerClassifier(config, 3)


WORDS = text.Tokens(Tokenizer.train(questions(400)[0], kind="word"), context=12)
GRAMS = text.NGrams(context=120, vocabulary=4096, characters=(2, 3))


@pytest.mark.parametrize("model_of", [cnn, bag, pytest.param(transformer, marks=pytest.mark.slow)])
def test_from_texts_to_decisions_and_back_from_a_file(model_of, tmp_path):
    ours = trained(model_of)
    texts, label = questions(40, seed=2)
    said = text.classify(ours, texts)
    assert np.mean([d.label == CLASSES[n] for d, n in zip(said, label, strict=True)]) > 0.95
    for one, words in zip(said, texts, strict=True):
        assert 1 / 3 <= one.probability <= 1
        assert one.in_scope == (one.probability >= ours.reader.threshold)
        assert [word for word, _ in one.words] == words.split()
    carriers = [max(d.words, key=lambda pair: pair[1])[0] for d in said]
    keys = [word for words in KEYS.values() for word in words]
    assert np.mean([word in keys for word in carriers]) > 0.7

    jo.save(tmp_path / "questions.model", ours)
    again = jo.load(tmp_path / "questions.model")
    assert again.reader == ours.reader
    assert text.classify(again, texts) == said


def test_words_by_leaving_each_out():
    ours = trained(bag)
    one = text.classify(ours, ["is my card lost", "lost"])
    p = ours.predict(["is my card lost"]).probabilities[0]
    best = int(p.argmax())

    def log_odds(p):
        return np.log(p) - np.log(1 - p)

    for word, weight in one[0].words:
        rest = " ".join(w for w in ("is", "my", "card", "lost") if w != word)
        without = ours.predict([rest]).probabilities[0, best]
        assert weight == pytest.approx(log_odds(p[best]) - log_odds(without), rel=1e-4, abs=1e-5)
    single = ours.predict(["lost"]).probabilities[0].max()
    assert one[1].words == (("lost", pytest.approx(log_odds(single) - log_odds(1 / 3))),)
    assert text.classify(ours, ["lost"], words=False)[0].words == ()


def test_calibration_keeps_so_many_in_scope():
    ours = trained(cnn)
    texts, label = doubtful()
    p = ours.predict(texts).probabilities
    assert (p.max(1) >= ours.reader.threshold).mean() == pytest.approx(0.9, abs=0.01)
    assert text.temperature(p, label) == pytest.approx(1, abs=0.01)
    with pytest.raises(ValueError, match=r"keep must be in \(0, 1\], got 1.5"):
        text.calibrate(ours, texts, label, keep=1.5)


def test_many_labels_are_refused():
    texts, label = questions(20)
    task = text.classifier(bag(GRAMS.vocabulary), GRAMS.context, CLASSES, many=True)
    columns = {**GRAMS(texts), "label": np.eye(3, dtype=np.int32)[label]}
    adam = jo.optim.adam(0.01)
    state = jo.fit(task, columns, optimizer=adam, batch_size=20, steps=1, progress=False)
    model = jo.Model(task, state, text.TextReader(GRAMS))
    with pytest.raises(
        ValueError, match=r"task must have one label a text \(many=False\), got many=True"
    ):
        text.calibrate(model, texts, label)
    with pytest.raises(ValueError, match="got many=True"):
        text.classify(model, texts)


def test_what_is_refused():
    ours = trained(cnn)
    for texts, message in (
        ([], "texts must hold at least one text, got none"),
        (["my card", ""], "texts must not be empty, got an empty text in row 1"),
        ([b"my card"], "texts must be str, got bytes in row 0"),
        ("my card", "texts must be a list of texts, got one str"),
    ):
        with pytest.raises(ValueError, match=message):
            text.classify(ours, texts)
    with pytest.warns(UserWarning, match="texts must have at most 12 tokens, got 1 longer"):
        text.classify(ours, ["card " * 20], words=False)

    larger = Tokenizer.train([f"word{i}" for i in range(500)] + ["my card"], kind="word")
    other = jo.Model(ours.task, ours.state, text.TextReader(text.Tokens(larger, 12)))
    with pytest.raises(
        ValueError, match=r"read must have a vocabulary of 2\d \(the module's\), got 50\d"
    ):
        text.classify(other, ["my card"])

    with pytest.raises(ValueError, match="model must be a classifier of texts, got Task"):
        text.classify(jo.Model(ours.task, ours.state), ["my card"])
