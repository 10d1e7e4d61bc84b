"""Retrieval: an index of documents, rankings by words (BM25) and by vectors, and their fusion.

    index = text.index(documents, encode)
    found = text.search(["where is my card?"], index, k=5, encode=encode)
    [documents[i] for i in found.documents[0]]

`encode` turns texts into vectors, for example with a model that `text.contrastive` trained:

    encode = jo.Model(task, state, text.TextReader(read))
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.data.words import words
from jaxops.model.finished import Model
from jaxops.model.topk import top_k
from jaxops.task import recorded

Encode = Callable[[Sequence[str]], Any] | Model
"""A function from texts to vectors (B, D), or a model of `text.contrastive` with a
`text.TextReader`. The larger the product of two vectors, the better the texts match."""

RANK_CONSTANT = 60
"""The constant of reciprocal rank fusion, with its authors' value."""
# the words of an index that was saved without `uax29`
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
BEFORE = re.compile(rf"[{CJK}]|[^\W{CJK}]+")


@recorded(before={"uax29": False})
class BM25(NamedTuple):
    """An inverted index: for each word the documents that contain it, and its BM25 weight there.

    Attributes:
        vocabulary: word -> its number v.
        starts: (V + 1,) int64; the entries of word v are `starts[v]:starts[v + 1]`.
        documents: (E,) int32, the documents of each entry, ascending for each word.
        counts: (E,) int32, how often the document contains the word.
        weights: (E,) float32, added to the document's score for each time that a query contains the
            word.
        lengths: (N,) int32, number of words of each document.
        k1: saturation of repeated words; 0 counts each word once.
        b: normalisation by document length, from 0 (none) to 1 (full).
        uax29: whether words follow Unicode's rules; False in an index of an earlier version, which
            splits texts into other words.

    >>> inverted = index(["my card"]).words
    >>> isinstance(inverted, BM25), inverted.vocabulary
    (True, {'my': 0, 'card': 1})
    """

    vocabulary: dict[str, int]
    starts: np.ndarray
    documents: np.ndarray
    counts: np.ndarray
    weights: np.ndarray
    lengths: np.ndarray
    k1: float
    b: float
    uax29: bool = True


@recorded
@dataclass(frozen=True, eq=False)
class Index:
    """Documents that can be searched.

    Attributes:
        words: the inverted index, see `BM25`.
        vectors: (N, D) float32, placed on the device once; or `None` without an encoder.

    >>> documents = index(["my card"])
    >>> isinstance(documents, Index), documents.vectors
    (True, None)
    """

    words: BM25
    vectors: jax.Array | None = None

    def __post_init__(self) -> None:
        if self.vectors is not None:  # of a model file they are NumPy's
            object.__setattr__(self, "vectors", jnp.asarray(self.vectors))


class Found(NamedTuple):
    """The documents that a search found for each query, best first.

    Attributes:
        scores: (B, k) float32, comparable within a row; -inf where there is no document.
        documents: (B, k) int32, numbers of documents in the index; -1 where there is no document.

    >>> found = by_words("lost card", index(["my card"]), k=1)
    >>> isinstance(found, Found), found.documents.tolist()
    (True, [[0]])
    """

    scores: np.ndarray
    documents: np.ndarray


def _words(text: str, index: BM25) -> list[str]:
    return words(text, signs=False) if index.uax29 else BEFORE.findall(text.casefold())


def index(
    documents: Sequence[str], encode: Encode | None = None, k1: float = 1.2, b: float = 0.75
) -> Index:
    """Index documents for a search by words (Okapi BM25) and, with `encode`, by vectors.

    Words follow Unicode's rules (UAX #29) and are normalised and case-folded; emoji are words too.
    In scripts without spaces between words each character is a word.

    A document d that contains a word w f times adds, for each w in a query,
    `idf(w) f (k1 + 1) / (f + k1 (1 - b + b |d| / mean |d|))` to its score, where
    `idf(w) = log(1 + (N - n + 0.5) / (n + 0.5))` and n of the N documents contain w. This is the
    idf of Lucene, which is never negative.

    Args:
        documents: texts, each with at least one word.
        encode: turns texts into vectors; give the same one to `search`.
        k1: saturation of repeated words, at least 0.
        b: normalisation by document length, in [0, 1].

    Raises:
        ValueError: no documents, one without a word, or constants out of range.

    References:
        Robertson and Zaragoza 2009, doi:10.1561/1500000019.

    >>> found = by_words(["a red card"], index(["my card", "red card", "a bank"]), k=2)
    >>> found.documents.tolist(), [f"{score:.3f}" for score in found.scores[0]]
    ([[1, 2]], ['1.451', '0.981'])
    """
    if k1 < 0 or not 0 <= b <= 1:
        raise ValueError(f"k1 and b must be at least 0 and in [0, 1], got {k1} and {b}")
    empty = np.zeros(0, np.int32)
    nothing = BM25({}, np.zeros(1, np.int64), empty, empty, empty, empty, k1, b)
    start = Index(nothing, None if encode is None else jnp.zeros((0, 0), np.float32))
    return add(start, documents, encode)


def add(index: Index, documents: Sequence[str], encode: Encode | None = None) -> Index:
    """A new index with more documents after the existing ones; equal to an index of all of them.

    Document frequencies and the mean document length are counted anew.

    Args:
        index: the existing index; it is not changed.
        documents: see `text.index`.
        encode: the encoder the index was made with, if any.

    Raises:
        ValueError: there are no documents, or one has no word; an encoder is given for an index
            without vectors, or none for an index with vectors; or its vectors have another size.

    >>> more = add(index(["my card"]), ["red card"])
    >>> by_words(["red card"], more, k=2).documents.tolist()
    [[1, 0]]
    """
    _check_texts("documents", documents)
    vectors, old = index.vectors, index.words
    if (encode is None) != (vectors is None):
        expected, actual = ("given", "None") if encode is None else ("None", "an encoder")
        raise ValueError(f"encode must be {expected}, as when the index was made, got {actual}")
    split = [_words(text, old) for text in documents]
    for row, row_words in enumerate(split):
        if not row_words:
            raise ValueError(
                f"documents must have at least one word each, got {documents[row][:40]!r} in row "
                f"{row}; leave it out"
            )
    vocabulary = dict(old.vocabulary)
    ids = [vocabulary.setdefault(word, len(vocabulary)) for text in split for word in text]
    lengths = np.concatenate([old.lengths, [len(text) for text in split]]).astype(np.int32)
    new_rows = np.repeat(np.arange(len(old.lengths), len(lengths)), lengths[len(old.lengths) :])
    before = np.repeat(np.arange(len(old.starts) - 1), np.diff(old.starts))
    terms = np.concatenate([np.repeat(before, old.counts), ids]).astype(np.int64)
    rows = np.concatenate([np.repeat(old.documents, old.counts), new_rows])
    if encode is not None and vectors is not None:
        new = jnp.asarray(_vectors("documents", encode, documents))
        if vectors.size and vectors.shape[1] != new.shape[1]:
            raise ValueError(
                f"encode must give vectors of {vectors.shape[1]} numbers (as in the index), got "
                f"{new.shape[1]}"
            )
        vectors = jnp.concatenate([vectors.reshape(-1, new.shape[1]), new])
    return Index(_bm25(old, vocabulary, terms, rows, lengths), vectors)


def _bm25(
    old: BM25, vocabulary: dict[str, int], terms: np.ndarray, rows: np.ndarray, lengths: np.ndarray
) -> BM25:
    """The index of all occurrences of words: `terms` are their numbers, `rows` their documents."""
    count, k1, b = len(lengths), old.k1, old.b
    keys, counts = np.unique(terms * count + rows, return_counts=True)
    term, document = np.divmod(keys, count)
    starts = np.searchsorted(term, np.arange(len(vocabulary) + 1))
    holding = np.diff(starts)
    idf = np.log1p((count - holding + 0.5) / (holding + 0.5))
    norm = k1 * (1 - b + b * lengths / lengths.mean())
    weights = idf[term] * counts * (k1 + 1) / (counts + norm[document])
    return old._replace(
        vocabulary=vocabulary,
        starts=starts,
        documents=document.astype(np.int32),
        counts=counts.astype(np.int32),
        weights=weights.astype(np.float32),
        lengths=lengths,
    )


def bm25(query: str, words_index: BM25) -> np.ndarray:
    """The BM25 score of every document for one query, (N,) float64; 0 where no word is shared.

    Args:
        query: a text; a word that occurs twice counts twice.
        words_index: `words` of an `Index`.

    >>> bm25("card card", index(["my card", "a bank"]).words).round(3).tolist()
    [1.386, 0.0]
    """
    scores = np.zeros(len(words_index.lengths))
    for word in _words(query, words_index):
        term = words_index.vocabulary.get(word)
        if term is not None:
            entries = slice(words_index.starts[term], words_index.starts[term + 1])
            scores[words_index.documents[entries]] += words_index.weights[entries]
    return scores


def by_words(queries: str | Sequence[str], index: Index, k: int = 10) -> Found:
    """The documents with the largest BM25 scores; documents without a common word are not found.

    Args:
        queries: texts, or one text.
        index: made by `text.index`.
        k: number of documents for each query, at most the number of all documents.

    Raises:
        ValueError: no query, an empty query, or `k` outside 1 to N.

    >>> by_words("lost card", index(["my card", "a bank"]), k=2).documents.tolist()
    [[0, -1]]
    """
    queries = check_queries(queries, index, k)
    found = Found(np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1))
    for row, query in enumerate(queries):
        scores = bm25(query, index.words)
        # only documents that reach the k-th largest score are sorted
        best = np.flatnonzero((scores >= np.partition(scores, -k)[-k]) & (scores > 0))
        best = best[np.argsort(-scores[best], kind="stable")][:k]
        found.scores[row, : len(best)] = scores[best]
        found.documents[row, : len(best)] = best
    return found._replace(documents=found.documents.astype(np.int32))


def by_vectors(
    queries: str | Sequence[str], index: Index, encode: Encode, k: int = 10, at_once: int = 1024
) -> Found:
    """The documents whose vectors have the largest products with the query's vector, exactly.

    Args:
        queries: texts, or one text.
        index: made by `text.index` with an encoder.
        encode: the one the index was made with.
        k: number of documents for each query, at most the number of all documents.
        at_once: number of queries that are scored in one call.

    Raises:
        ValueError: there is no query, or one is empty; `k` is outside 1 to N; the index has no
            vectors; or the encoder does not give one finite vector for each text.

    >>> encode = lambda texts: np.array([[len(text), 1.0] for text in texts])
    >>> by_vectors("card", index(["a", "long"], encode), encode, k=2).documents.tolist()
    [[1, 0]]
    """
    queries = check_queries(queries, index, k)
    if index.vectors is None:
        raise ValueError(
            "index must have vectors, got one without; make it by index(documents, encode)"
        )
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
    """Reciprocal rank fusion: a document scores the sum of 1 / (60 + rank) over the rankings.

    Ranks count from 1; a ranking without the document adds nothing. Only ranks count, so the
    scores behind the rankings may have different scales. Of equal sums the lower document number
    comes first.

    Args:
        rankings: (B, K_i) int each, documents best first, each at most once; -1 is no document.
        k: number of documents in the result.

    Raises:
        ValueError: no rankings, or rankings with different numbers of rows.

    References:
        Cormack, Clarke and Buettcher 2009, doi:10.1145/1571941.1572114.

    >>> fuse([np.array([[7, 3, 5]]), np.array([[5, 7, -1]])], k=3).documents.tolist()
    [[7, 5, 3]]
    """
    counts = {len(ranking) for ranking in rankings}
    if len(counts) != 1:
        raise ValueError(f"rankings must have equal numbers of rows, got {sorted(counts)}")
    found = Found(np.full((*counts, k), -np.inf, np.float32), np.full((*counts, k), -1, np.int32))
    for row in range(*counts):
        parts = [np.asarray(ranking[row]) for ranking in rankings]
        shares = [1 / (RANK_CONSTANT + 1 + np.arange(len(part))) for part in parts]
        flat, share = np.concatenate(parts), np.concatenate(shares)
        known, place = np.unique(flat[flat >= 0], return_inverse=True)
        sums = np.bincount(place, share[flat >= 0], len(known))
        best = np.argsort(-sums, kind="stable")[:k]
        found.scores[row, : len(best)] = sums[best]
        found.documents[row, : len(best)] = known[best]
    return found


def hit_rate(hits: np.ndarray, k: int) -> float:
    """The share of queries with a relevant document among the first `k`; with k = 1 the precision.

    If each query has one relevant document, this is the recall at k.

    Args:
        hits: bool (B, K), whether the document at this rank is relevant.
        k: number of ranks that count, at most K.

    >>> hit_rate(np.array([[0, 1, 0], [0, 0, 0], [1, 1, 0]], bool), k=2) == 2 / 3
    True
    """
    return float(_first(hits, k).any(1).mean())


def recall(hits: np.ndarray, good: np.ndarray, k: int) -> float:
    """The mean share of a query's relevant documents that are among the first `k`.

    Args:
        hits: bool (B, K), see `hit_rate`.
        good: int (B,), number of relevant documents of each query, at least 1.
        k: number of ranks that count, at most K.

    Raises:
        ValueError: `k` is outside 1 to K; `good` has another shape; or a query has no relevant
            document.

    >>> recall(np.array([[0, 1, 1], [1, 0, 0]], bool), np.array([4, 1]), k=3)
    0.75
    """
    good = np.asarray(good)
    if good.shape != (len(hits),) or good.min() < 1:
        raise ValueError(
            f"good must be ({len(hits)},) of at least 1, got {good.shape} with least {good.min()}"
        )
    return float((_first(hits, k).sum(1) / good).mean())


def mrr(hits: np.ndarray) -> float:
    """The mean reciprocal rank of the first relevant document; 0 for a query without one.

    Args:
        hits: bool (B, K), see `hit_rate`.

    >>> mrr(np.array([[0, 1, 0], [0, 0, 0], [1, 1, 0]], bool))
    0.5
    """
    hits = _first(hits, np.shape(hits)[-1])
    return float((hits.any(1) / (hits.argmax(1) + 1)).mean())


def _first(hits: np.ndarray, k: int) -> np.ndarray:
    hits = np.asarray(hits, bool)
    if hits.ndim != 2 or not 1 <= k <= hits.shape[1]:
        raise ValueError(f"hits must be (B, K) and k in 1 to K, got {hits.shape} and {k}")
    return hits[:, :k]


def check_queries(queries: str | Sequence[str], index: Index, k: int) -> Sequence[str]:
    """The queries as a list.

    Raises:
        ValueError: no query, an empty query, or `k` outside 1 to the number of documents.
    """
    queries = [queries] if isinstance(queries, str) else queries
    _check_texts("queries", queries)
    count = len(index.words.lengths)
    if not 1 <= k <= count:
        raise ValueError(f"k must be in 1 to {count:,} (the number of documents), got {k}")
    return queries


def _check_texts(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str) or len(texts) == 0:
        given = "one text" if isinstance(texts, str) else "0 texts"
        raise ValueError(f"{name} must be a list of at least one text, got {given}")
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} must be texts with words, got {text!r} in row {row}")


def _vectors(name: str, encode: Encode, texts: Sequence[str]) -> np.ndarray:
    found = encode.predict(texts).vectors if isinstance(encode, Model) else encode(texts)
    vectors = np.asarray(found, np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        finite = "" if np.isfinite(vectors).all() else " with NaN or infinity"
        raise ValueError(
            f"encode must give finite vectors ({len(texts)}, D), got {vectors.shape}{finite} for "
            f"{name}"
        )
    return vectors
