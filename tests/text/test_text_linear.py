"""The linear model beside the networks of `text.fit`."""

import jax
import numpy as np
import pytest
from scipy.sparse import hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

import jaxops as jo
from jaxops import text
from jaxops.text import jobs, linear

RNG = np.random.default_rng(0)
WORDS = np.array(["lost", "card", "pin", "my", "new", "blocked", "the", "where"])
NUMBERS = np.arange(1, 9)
LABEL = RNG.integers(0, 3, 60)
# the class's own word, and three others
PLACES = np.stack([np.r_[one, RNG.choice(np.arange(3, 8), 3, replace=False)] for one in LABEL])
TOKENS = np.concatenate([NUMBERS[PLACES], np.zeros((60, 1), int)], 1).astype(np.int32)


def logits(params, tokens, classes):
    module = text.LinearBag(vocabulary=len(params["idf"]), classes=classes)
    return jax.jit(module.apply)({"params": params}, tokens)


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_those_of_scikit_learn(classes):
    rows = classes > LABEL
    texts = [" ".join(WORDS[one]) for one in PLACES[rows]]
    features = TfidfVectorizer().fit(texts)
    machine = LinearSVC(random_state=0).fit(features.transform(texts), LABEL[rows])
    want = machine.decision_function(features.transform(texts))
    want = np.stack([-want, want], 1) if classes == 2 else want
    params = linear.parameters(TOKENS[rows], LABEL[rows], 20, classes)
    # liblinear goes through the features in another order
    np.testing.assert_allclose(logits(params, TOKENS[rows], classes), want, atol=2e-3)


def test_words_and_characters_have_unit_length_each():
    texts = [" ".join(WORDS[one]) for one in PLACES]
    grams = text.NGrams(context=64, vocabulary=2**12, words=(1, 1), characters=(2, 3))
    tokens = grams(texts)["tokens"]
    features = [
        TfidfVectorizer().fit_transform(texts),
        0.5 * TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3)).fit_transform(texts),
    ]
    features[1].data[:] = 1  # a gram that occurs twice in a text counts once
    idf = np.log(61 / (1 + np.asarray((features[1] > 0).sum(0)).ravel())) + 1
    features[1] = 0.5 * normalize(features[1].multiply(idf).tocsr())
    features = hstack(features).tocsr()
    want = LinearSVC(random_state=0).fit(features, LABEL).decision_function(features)
    params = linear.parameters(tokens, LABEL, 2**12, 3, characters=0.5)
    np.testing.assert_allclose(logits(params, tokens, 3), want, atol=5e-3)


def test_a_class_without_texts_is_never_told():
    params = linear.parameters(TOKENS[LABEL > 0], LABEL[LABEL > 0], 9, 3)
    told = logits(params, TOKENS[LABEL > 0], 3).argmax(1)
    np.testing.assert_array_equal(told, LABEL[LABEL > 0])


@pytest.mark.parametrize(("good", "weight"), [(True, 18), (False, 0)])
def test_it_counts_as_much_as_is_best(good, weight):
    right, wrong = np.eye(3)[LABEL] * 0.9 + 0.1 / 3, np.eye(3)[(LABEL + 1) % 3] * 0.9 + 0.1 / 3
    wrong[:20] = right[:20]
    networks, alone = (wrong, right) if good else (right, wrong)
    fitted = linear.chosen(networks, {0.5: wrong, 1.0: alone}, LABEL)
    assert fitted.weight == weight and (not good or fitted.characters == 1.0)


def test_the_default_has_it_as_a_member(monkeypatch, tmp_path):
    small = text.BagAndCNN(512, 2, words=4, word_vocabulary=64, width=4, filters=4)
    monkeypatch.setattr(jobs, "_default", lambda texts, read: small)
    chosen = linear.chosen
    monkeypatch.setattr(linear, "chosen", lambda *args: chosen(*args)._replace(weight=2))
    texts = [" ".join(WORDS[one]) for one in PLACES]
    table = {"text": texts, "label": WORDS[LABEL].tolist()}
    model = text.fit(table, epochs=2, progress=False)
    weight, scale, characters = model.about["linear"]
    assert weight == 2 and scale > 1  # scores of a margin of 1 are no logits yet
    assert characters in linear.CHARACTERS
    # fitted again on all texts, it tells each of them, whatever the networks have learned
    assert dict(model.task.recipe[1])["module"].linear == 2
    assert text.evaluate(model, table).figures()["accuracy"] == 1.0
    jo.save(tmp_path / "model", model)
    again = jo.load(tmp_path / "model").predict(texts)
    np.testing.assert_allclose(again.probabilities, model.predict(texts).probabilities, atol=1e-6)
    of_one = {"text": ["lost card", "my pin"] * 6, "label": ["card", "pin"] * 6, "who": [*"ab"] * 6}
    assert "linear" not in text.fit(of_one, groups="who", epochs=1, progress=False).about
    many = {"text": texts, "label": [[one] for one in table["label"]]}
    assert "linear" not in text.fit(many, epochs=1, progress=False).about
