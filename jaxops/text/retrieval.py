"""Search: documents found by their words (BM25), by their vectors, and by both.

    index = text.index(documents, encode)
    found = text.search(["where is my card?"], index, k=5, encode=encode)
    [documents[i] for i in found.documents[0]]

`encode` makes vectors of texts, for example those of a model that `text.contrastive` trained:

    encode = lambda texts: jo.predict(task, state, tokenizer.encode(texts))
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.model.topk import top_k

Encode = Callable[[Sequence[str]], Any]
"""Texts to vectors (B, D); queries and documents whose product is large belong together."""

FUSED = 60
"""The constant of reciprocal rank fusion, as its authors chose it."""
DEPTH = 100
"""So many documents of each ranking are fused, at least."""
# a run of letters and digits is a word; so is, as in Lucene's standard analyzer, each sign of a
# script that puts no blanks between words
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+")


class BM25(NamedTuple):
    """Documents by their words: for each word the documents that hold it, and what it adds there.

    Attributes:
        vocabulary: word -> its number.
        starts: (V + 1,) int64; the entries of word v are `starts[v]:starts[v + 1]`.
        documents: (E,) int32, ascending for each word.
        counts: (E,) int32, how often the document holds the word.
        weights: (E,) float32, what one such word of a query adds to the document's score.
        lengths: (N,) int32, words of each document.
        k1: how soon another occurrence of a word adds nothing more.
        b: how much the length of a document counts, 0 to 1.
    """

    vocabulary: dict[str, int]
    starts: np.ndarray
    documents: np.ndarray
    counts: np.ndarray
    weights: np.ndarray
    lengths: np.ndarray
    k1: float
    b: float


class Index(NamedTuple):
    """Documents, ready to be searched.

    Attributes:
        words: see `BM25`.
        vectors: (N, D) float32, on the device, or `None`.
    """

    words: BM25
    vectors: jax.Array | None = None


class Found(NamedTuple):
    """What a search found, best first.

    Attributes:
        scores: (B, k) float32, comparable within a row; -inf where there is no document.
        documents: (B, k) int32, their places in the index, and -1 where a query has no more.
    """

    scores: np.ndarray
    documents: np.ndarray


def words(text: str) -> list[str]:
    """The words of a text: runs of letters and digits without case, and single CJK signs.

    >>> words("Where's my CARD? 卡在哪")
    ['where', 's', 'my', 'card', '卡', '在', '哪']
    """
    return WORD.findall(text.casefold())


def index(
    documents: Sequence[str], encode: Encode | None = None, k1: float = 1.2, b: float = 0.75
) -> Index:
    """Documents, ready to be searched by their words and, with `encode`, by their vectors.

    A document d that holds a word w f times adds to the score of a query, for each w in it,
    idf(w) f (k1 + 1) / (f + k1 (1 - b + b |d| / mean |d|)), idf(w) = log(1 + (N - n + 1/2) /
    (n + 1/2)), where n of the N documents hold w: Okapi BM25 with the idf of Lucene, which is
    never negative (Robertson and Zaragoza 2009, doi:10.1561/1500000019).

    Args:
        documents: texts, each with a word at least.
        encode: makes their vectors; `search` wants the same one for queries.
        k1: 0 or more.
        b: 0 to 1.

    Raises:
        ValueError: no documents, one without a word, or constants out of range.

    >>> found = search(["a red card"], index(["my card", "red card", "a bank"]), k=2)
    >>> found.documents.tolist(), [f"{score:.3f}" for score in found.scores[0]]
    ([[1, 2]], ['1.451', '0.981'])
    """
    if k1 < 0 or not 0 <= b <= 1:
        raise ValueError(f"k1, b: {k1}, {b} found; k1 of 0 or more and b from 0 to 1 wanted")
    empty = np.zeros(0, np.int32)
    nothing = BM25({}, np.zeros(1, np.int64), empty, empty, empty, empty, k1, b)
    start = Index(nothing, None if encode is None else jnp.zeros((0, 0), np.float32))
    return add(start, documents, encode)


def add(index: Index, documents: Sequence[str], encode: Encode | None = None) -> Index:
    """A new index that holds more documents, behind those it has.

    It is the index of all of them at once: how rare words are, and how long a document is on
    average, is counted anew.

    Args:
        index: stays as it is.
        documents: see `index`.
        encode: the one the index was made with, if any.

    Raises:
        ValueError: no documents, one without a word, an encoder where there was none, none where
            there was one, or one whose vectors have another length.

    >>> more = add(index(["my card"]), ["red card"])
    >>> search(["red card"], more, k=2).documents.tolist()
    [[1, 0]]
    """
    _check_texts("documents", documents)
    had, old = index.vectors, index.words
    if (encode is None) != (had is None):
        found, wanted = ("none", "one") if encode is None else ("one", "none")
        raise ValueError(f"encode: {found} found, {wanted} wanted, as the index was made")
    split = [words(text) for text in documents]
    for row, found_words in enumerate(split):
        if not found_words:
            raise ValueError(
                f"documents: no word found in row {row} ({documents[row][:40]!r}), at least one "
                "wanted; leave it out"
            )
    vocabulary = dict(old.vocabulary)
    ids = [vocabulary.setdefault(word, len(vocabulary)) for text in split for word in text]
    lengths = np.concatenate([old.lengths, [len(text) for text in split]]).astype(np.int32)
    new_rows = np.repeat(np.arange(len(old.lengths), len(lengths)), lengths[len(old.lengths) :])
    before = np.repeat(np.arange(len(old.starts) - 1), np.diff(old.starts))
    terms = np.concatenate([np.repeat(before, old.counts), ids]).astype(np.int64)
    rows = np.concatenate([np.repeat(old.documents, old.counts), new_rows])
    vectors = None
    if encode is not None and had is not None:
        vectors = jnp.asarray(_vectors("documents", encode, documents))
        if had.size and had.shape[1] != vectors.shape[1]:
            raise ValueError(
                f"encode: vectors of {vectors.shape[1]} numbers found, {had.shape[1]} wanted"
            )
        vectors = jnp.concatenate([had.reshape(-1, vectors.shape[1]), vectors])
    return Index(_bm25(vocabulary, terms, rows, lengths, old.k1, old.b), vectors)


def _bm25(
    vocabulary: dict[str, int],
    terms: np.ndarray,
    rows: np.ndarray,
    lengths: np.ndarray,
    k1: float,
    b: float,
) -> BM25:
    """From each occurrence of a word: its number and its document's."""
    count = len(lengths)
    keys, counts = np.unique(terms * count + rows, return_counts=True)
    term, document = np.divmod(keys, count)
    starts = np.searchsorted(term, np.arange(len(vocabulary) + 1))
    holding = np.diff(starts)
    idf = np.log1p((count - holding + 0.5) / (holding + 0.5))
    norm = k1 * (1 - b + b * lengths / lengths.mean())
    weights = idf[term] * counts * (k1 + 1) / (counts + norm[document])
    return BM25(
        vocabulary,
        starts,
        document.astype(np.int32),
        counts.astype(np.int32),
        weights.astype(np.float32),
        lengths,
        k1,
        b,
    )


def bm25(query: str, words_index: BM25) -> np.ndarray:
    """The score of every document for one query, (N,) float64; 0 where no word is shared.

    >>> bm25("card card", index(["my card", "a bank"]).words).round(3).tolist()
    [1.386, 0.0]
    """
    scores = np.zeros(len(words_index.lengths))
    for word in words(query):
        term = words_index.vocabulary.get(word)
        if term is not None:
            own = slice(words_index.starts[term], words_index.starts[term + 1])
            scores[words_index.documents[own]] += words_index.weights[own]
    return scores


def by_words(queries: str | Sequence[str], index: Index, k: int = 10) -> Found:
    """The documents with the largest BM25 scores; those that share no word are not found.

    The arguments are those of `search`.
    """
    queries = _queries(queries, index, k)
    found = Found(np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1))
    for row, query in enumerate(queries):
        scores = bm25(query, index.words)
        # all that reach the k-th largest, in order; only these are sorted
        best = np.flatnonzero((scores >= np.partition(scores, -k)[-k]) & (scores > 0))
        best = best[np.argsort(-scores[best], kind="stable")][:k]
        found.scores[row, : len(best)] = scores[best]
        found.documents[row, : len(best)] = best
    return found._replace(documents=found.documents.astype(np.int32))


def by_vectors(
    queries: str | Sequence[str], index: Index, encode: Encode, k: int = 10, at_once: int = 1024
) -> Found:
    """The documents whose vectors have the largest products with the query's, exactly.

    The arguments are those of `search`; `at_once` is how many queries are scored at a time.
    """
    queries = _queries(queries, index, k)
    if index.vectors is None:
        raise ValueError("encode: the index has no vectors; make it with index(documents, encode)")
    vectors = _vectors("queries", encode, queries)
    parts = [
        top_k(jnp.asarray(vectors[start : start + at_once]), index.vectors, k)
        for start in range(0, len(queries), at_once)
    ]
    scores, documents = (
        np.concatenate([np.asarray(x) for x in p]) for p in zip(*parts, strict=True)
    )
    return Found(scores, documents)


def fuse(rankings: Sequence[np.ndarray], k: int = 10) -> Found:
    """One ranking of several by reciprocal rank: a document scores the sum of 1 / (60 + rank).

    Ranks count from 1; what a ranking does not hold gets nothing from it. Scores themselves do not
    count, so rankings with scores of any scale go together. Of equal sums the lower number comes
    first. Cormack, Clarke and Buettcher 2009, doi:10.1145/1571941.1572114.

    Args:
        rankings: (B, K_i) int each, documents best first, each once; -1 is none.
        k: how many to give.

    Raises:
        ValueError: no rankings, or of different numbers of rows.

    >>> fuse([np.array([[7, 3, 5]]), np.array([[5, 7, -1]])], k=3).documents.tolist()
    [[7, 5, 3]]
    """
    counts = {len(ranking) for ranking in rankings}
    if len(counts) != 1:
        raise ValueError(f"rankings: {sorted(counts)} rows found, one number of rows wanted")
    found = Found(np.full((*counts, k), -np.inf, np.float32), np.full((*counts, k), -1, np.int32))
    for row in range(*counts):
        parts = [np.asarray(ranking[row]) for ranking in rankings]
        shares = [1 / (FUSED + 1 + np.arange(len(part))) for part in parts]
        flat, share = np.concatenate(parts), np.concatenate(shares)
        known, place = np.unique(flat[flat >= 0], return_inverse=True)
        sums = np.bincount(place, share[flat >= 0], len(known))
        best = np.argsort(-sums, kind="stable")[:k]
        found.scores[row, : len(best)] = sums[best]
        found.documents[row, : len(best)] = known[best]
    return found


def search(
    queries: str | Sequence[str], index: Index, k: int = 10, encode: Encode | None = None
) -> Found:
    """The best documents for each query: by words, or with `encode` by words and vectors, fused.

    Fused are the best 100 (or k) of `by_words` and of `by_vectors`, see `fuse`.

    Args:
        queries: texts, or one.
        index: made by `index`.
        k: how many documents, at most all.
        encode: the one the index was made with.

    Raises:
        ValueError: an empty query, `k` outside 1 to N, or an index without vectors.
    """
    if encode is None:
        return by_words(queries, index, k)
    _queries(queries, index, k)
    depth = min(max(k, DEPTH), len(index.words.lengths))
    each = by_words(queries, index, depth), by_vectors(queries, index, encode, depth)
    return fuse([found.documents for found in each], k)


def hit_rate(hits: np.ndarray, k: int) -> float:
    """The share of queries with a good document among the first `k`; at k = 1 the precision.

    Where each query has one good document this is the recall at k.

    Args:
        hits: bool (B, K): is the document that was found in this place a good one?
        k: at most K.

    >>> hit_rate(np.array([[0, 1, 0], [0, 0, 0], [1, 1, 0]], bool), k=2) == 2 / 3
    True
    """
    return float(_first(hits, k).any(1).mean())


def recall(hits: np.ndarray, good: np.ndarray, k: int) -> float:
    """The mean share of a query's good documents that are among the first `k`.

    Args:
        hits: bool (B, K), see `hit_rate`.
        good: int (B,), how many good documents there are in all, at least 1 for each query.
        k: at most K.

    >>> recall(np.array([[0, 1, 1], [1, 0, 0]], bool), np.array([4, 1]), k=3)
    0.75
    """
    good = np.asarray(good)
    if good.shape != (len(hits),) or good.min() < 1:
        raise ValueError(
            f"good: {good.shape} of least {good.min()} found, ({len(hits)},) of 1 or more wanted"
        )
    return float((_first(hits, k).sum(1) / good).mean())


def mrr(hits: np.ndarray) -> float:
    """The mean reciprocal rank of the first good document, 0 where there is none among the K.

    >>> mrr(np.array([[0, 1, 0], [0, 0, 0], [1, 1, 0]], bool))
    0.5
    """
    hits = _first(hits, np.shape(hits)[-1])
    return float((hits.any(1) / (hits.argmax(1) + 1)).mean())


def _first(hits: np.ndarray, k: int) -> np.ndarray:
    hits = np.asarray(hits, bool)
    if hits.ndim != 2 or not 1 <= k <= hits.shape[1]:
        raise ValueError(f"hits, k: {hits.shape} and {k} found, (B, K) and k from 1 to K wanted")
    return hits[:, :k]


def _queries(queries: str | Sequence[str], index: Index, k: int) -> Sequence[str]:
    queries = [queries] if isinstance(queries, str) else queries
    _check_texts("queries", queries)
    if not 1 <= k <= len(index.words.lengths):
        count = len(index.words.lengths)
        raise ValueError(f"k: {k} found, 1 to {count:,} (all documents) wanted")
    return queries


def _check_texts(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str) or len(texts) == 0:
        found = "one text" if isinstance(texts, str) else "0 texts"
        raise ValueError(f"{name}: {found} found, a list of at least one text wanted")
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name}: {text!r} found in row {row}, a text wanted")


def _vectors(name: str, encode: Encode, texts: Sequence[str]) -> np.ndarray:
    vectors = np.asarray(encode(texts), np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        finite = "" if np.isfinite(vectors).all() else " with NaN or infinity"
        raise ValueError(
            f"encode: {vectors.shape}{finite} found for {name}, finite ({len(texts)}, D) wanted"
        )
    return vectors
