"""Texts: decisions about them, search among them, answers from them."""

from jaxops.text.answer import Answer, Passages, Reader, answer, best_span, spans
from jaxops.text.embed import BagEncoder, contrastive, info_nce, partners
from jaxops.text.search import (
    BM25,
    Found,
    Index,
    add,
    bm25,
    by_vectors,
    by_words,
    fuse,
    hit_rate,
    index,
    mrr,
    recall,
    search,
    words,
)

__all__ = [
    "BM25",
    "Answer",
    "BagEncoder",
    "Found",
    "Index",
    "Passages",
    "Reader",
    "add",
    "answer",
    "best_span",
    "bm25",
    "by_vectors",
    "by_words",
    "contrastive",
    "fuse",
    "hit_rate",
    "index",
    "info_nce",
    "mrr",
    "partners",
    "recall",
    "search",
    "spans",
    "words",
]
