import math

import jax
import numpy as np
import pytest

import jaxops as jo
from jaxops import text
from jaxops.data.words import words

DOCUMENTS = [
    "Where is my card? My card!",
    "I lost the card",
    "exchange rate",
    "the Exchange took the money, and the rate was wrong",
    "money money money",
    "I lost the card",
]
VOCABULARY = ["where", "is", "my", "card", "lost", "exchange", "rate", "the", "money", "unheard"]


def brute_force(query, documents, k1, b):
    """BM25 by its formula, one document and one word at a time."""
    split = [[w.strip("?!,").lower() for w in d.split()] for d in documents]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for d in split:
        score = 0.0
        for w in query.lower().split():
            n = sum(w in other for other in split)
            idf = math.log(1 + (len(split) - n + 0.5) / (n + 0.5))
            f = d.count(w)
            if f:
                score += idf * f * (k1 + 1) / (f + k1 * (1 - b + b * len(d) / mean))
        scores.append(score)
    return np.array(scores)


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.9, 0.4), (0.0, 0.0), (2.0, 1.0)])
def test_bm25_is_its_formula(k1, b):
    rng = np.random.default_rng(0)
    index = text.index(DOCUMENTS, k1=k1, b=b)
    for _ in range(20):
        query = " ".join(rng.choice(VOCABULARY, 4))  # a word may come twice
        wanted = brute_force(query, DOCUMENTS, k1, b)
        np.testing.assert_allclose(text.bm25(query, index.words), wanted, rtol=1e-6)


def test_bm25_ranks_a_large_corpus_as_its_formula():
    rng = np.random.default_rng(1)
    names = [f"w{i}" for i in range(50)]
    draw = lambda low, high: " ".join(rng.choice(names, rng.integers(low, high)))  # noqa: E731
    documents, queries = [draw(1, 12) for _ in range(300)], [draw(1, 5) for _ in range(20)]
    found = text.search(queries, text.index(documents), k=15)
    for query, scores, order in zip(queries, *found, strict=True):
        wanted = brute_force(query, documents, 1.2, 0.75)
        np.testing.assert_allclose(scores, np.sort(wanted)[::-1][:15], rtol=1e-6)
        np.testing.assert_allclose(wanted[order], scores, rtol=1e-6)


def test_equal_documents_are_in_order_and_others_are_not_found():
    found = text.search(["lost", "unheard of"], text.index(DOCUMENTS), k=4)
    assert found.documents.tolist() == [[1, 5, -1, -1], [-1] * 4]
    assert found.scores[0, 0] == found.scores[0, 1] > 0
    assert np.isneginf(found.scores[0, 2:]).all() and np.isneginf(found.scores[1]).all()
    assert found.documents.dtype == np.int32 and found.scores.dtype == np.float32


def test_words_have_no_case_and_signs_are_words():
    assert words("Straße STRASSE, don't_stop", signs=False) == ["strasse", "strasse", "don't_stop"]
    index = text.index(["我的卡丢了", "汇率是多少"])
    assert text.search("卡在哪里", index, k=1).documents.tolist() == [[0]]


def encode(texts):
    """Vectors by length and first letter: nothing to learn, all to check."""
    return np.array([[len(t), ord(t[0].lower()) - 96, 1] for t in texts], np.float32)


def test_documents_added_are_as_all_at_once():
    once = text.index(DOCUMENTS, encode, k1=1.5, b=0.5)
    more = text.add(text.index(DOCUMENTS[:2], encode, k1=1.5, b=0.5), DOCUMENTS[2:5], encode)
    more = text.add(more, DOCUMENTS[5:], encode)
    assert more.words.vocabulary == once.words.vocabulary
    for a, b in zip(more.words[1:], once.words[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(more.vectors, once.vectors)
    first = text.index(DOCUMENTS[:2])
    before = dict(first.words.vocabulary)
    text.add(first, DOCUMENTS[2:])
    assert first.words.vocabulary == before  # an index stays as it is


def test_vectors_of_a_saved_index_are_placed_once(tmp_path):
    index = text.index(DOCUMENTS, encode)
    jo.save(tmp_path / "index.safetensors", jo.Model(index))
    loaded = jo.load(tmp_path / "index.safetensors").task
    assert isinstance(loaded.vectors, jax.Array)
    np.testing.assert_array_equal(loaded.vectors, encode(DOCUMENTS))


def test_by_vectors_is_the_product():
    index = text.index(DOCUMENTS, encode)
    queries = ["xyz", "a", "my card is lost"]
    found = text.by_vectors(queries, index, encode, k=6, at_once=2)
    scores = encode(queries) @ encode(DOCUMENTS).T
    order = np.argsort(-scores, axis=1, kind="stable")
    np.testing.assert_array_equal(found.documents, order)
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, order, 1))


def test_rank_fusion_by_hand():
    words, vectors = np.array([[4, 2, 9], [1, -1, -1]]), np.array([[9, 4, 3], [0, 1, 2]])
    found = text.fuse([words, vectors], k=5)
    assert found.documents.tolist() == [[4, 9, 2, 3, -1], [1, 0, 2, -1, -1]]
    s = [1 / (60 + rank) for rank in range(4)]
    wanted = [s[1] + s[2], s[3] + s[1], s[2], s[3]], [s[1] + s[2], s[1], s[3]]
    np.testing.assert_allclose(found.scores[0, :4], wanted[0], rtol=1e-6)
    np.testing.assert_allclose(found.scores[1, :3], wanted[1], rtol=1e-6)
    tied = text.fuse([np.array([[8, 3]]), np.array([[3, 8]])], k=1)
    assert tied.documents.tolist() == [[3]]  # of equal sums the lower number


def test_search_with_vectors_fuses_both():
    index = text.index(DOCUMENTS, encode)
    queries = ["my card", "rate of exchange", "unheard"]
    found = text.search(queries, index, k=3, encode=encode)
    each = text.by_words(queries, index, 6), text.by_vectors(queries, index, encode, 6)
    wanted = text.fuse([part.documents for part in each], k=3)
    np.testing.assert_array_equal(found.documents, wanted.documents)
    np.testing.assert_array_equal(found.scores, wanted.scores)
    assert (found.documents >= 0).all()  # what shares no word is found by its vector
    one = text.search("my card", index, k=3, encode=encode)
    np.testing.assert_array_equal(one.documents, found.documents[:1])


def test_metrics_by_hand():
    hits = np.array([[0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0]], bool)
    assert [text.hit_rate(hits, k) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 0.75]
    assert text.mrr(hits) == pytest.approx((1 / 3 + 0 + 1 + 1 / 2) / 4)
    good = np.array([2, 1, 4, 1])
    assert text.recall(hits, good, 2) == pytest.approx((0 + 0 + 1 / 4 + 1) / 4)
    assert text.recall(hits, good, 4) == pytest.approx((1 + 0 + 1 / 2 + 1) / 4)
    with pytest.raises(ValueError, match=r"k in 1 to K, got \(4, 4\) and 5"):
        text.hit_rate(hits, 5)
    with pytest.raises(ValueError, match=r"good must be \(4,\) of at least 1, got"):
        text.recall(hits, np.array([2, 0, 4, 1]), 2)


def nan(texts):
    return np.full((len(texts), 2), np.nan)


def short(texts):
    return np.zeros((1, 2))


BAD = {
    "documents must be a list of at least one text, got 0 texts": lambda i: text.index([]),
    "documents must be a list of at least one text, got one text": lambda i: text.index("my card"),
    "documents must be texts with words, got '  ' in row 1": lambda i: text.index(
        ["my card", "  "]
    ),
    r"documents must have at least one word each, got '\?!' in row 0": lambda i: text.index(["?!"]),
    "documents must be texts with words, got None in row 0": lambda i: text.index([None]),
    "k1 and b must be .*, got -1 and 0.75": lambda i: text.index(["a"], k1=-1),
    "k1 and b must be .*, got 1.2 and 2": lambda i: text.index(["a"], b=2),
    "queries must be texts with words, got '' in row 0": lambda i: text.search("", i),
    "queries must be texts with words, got ' ' in row 1": lambda i: text.search(
        ["card", " "], i, encode=encode
    ),
    "queries must be a list of at least one text, got 0 texts": lambda i: text.search([], i),
    r"k must be in 1 to 6 \(the number of documents\), got 7": lambda i: text.search(
        "card", i, k=7
    ),
    "k must be in 1 to 6 .*, got 0": lambda i: text.search("card", i, k=0, encode=encode),
    "index must have vectors, got one without": lambda i: text.search(
        "card", i, k=1, encode=encode
    ),
    "encode must be None, .*, got an encoder": lambda i: text.add(i, ["card"], encode),
    "encode must be given, .*, got None": lambda i: text.add(text.index(["a"], encode), ["b"]),
    "encode must give vectors of 3 numbers .*, got 2": lambda i: text.add(
        text.index(["a"], encode), ["b"], lambda texts: np.ones((len(texts), 2))
    ),
    r"encode must give finite .*, got \(2, 2\) with NaN or infinity": lambda i: text.index(
        ["a", "b"], nan
    ),
    r"encode must give finite vectors \(2, D\), got \(1, 2\) for documents": lambda i: text.index(
        ["a", "b"], short
    ),
    r"rankings must have equal numbers of rows, got \[1, 2\]": lambda i: text.fuse(
        [np.zeros((1, 2)), np.zeros((2, 2))]
    ),
    r"rankings must have .*, got \[\]": lambda i: text.fuse([]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(ValueError, match=message):
        BAD[message](text.index(DOCUMENTS))
