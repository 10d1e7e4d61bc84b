"""Texts: how they are read, networks, decisions to trust, search among texts, answers from them."""

from jaxops.text.answer import Answer, Passages, SpanReader, answer, best_span, spans
from jaxops.text.calibration import (
    Reliability,
    ece,
    plot_reliability,
    refusal,
    reliability,
    scaled,
    temperature,
)
from jaxops.text.classify import Classifier, Decision, calibrate, classify, load, save
from jaxops.text.data import NGrams, Reader, Tokens, labels, reader
from jaxops.text.embed import BagEncoder, contrastive, info_nce, partners
from jaxops.text.models import NGramBag, TextCNN, TransformerClassifier
from jaxops.text.recurrent import Recurrent
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
)
from jaxops.text.tasks import classifier

__all__ = [
    "BM25",
    "Answer",
    "BagEncoder",
    "Classifier",
    "Decision",
    "Found",
    "Index",
    "NGramBag",
    "NGrams",
    "Passages",
    "Reader",
    "Recurrent",
    "Reliability",
    "SpanReader",
    "TextCNN",
    "Tokens",
    "TransformerClassifier",
    "add",
    "answer",
    "best_span",
    "bm25",
    "by_vectors",
    "by_words",
    "calibrate",
    "classifier",
    "classify",
    "contrastive",
    "ece",
    "fuse",
    "hit_rate",
    "index",
    "info_nce",
    "labels",
    "load",
    "mrr",
    "partners",
    "plot_reliability",
    "reader",
    "recall",
    "refusal",
    "reliability",
    "save",
    "scaled",
    "search",
    "spans",
    "temperature",
]
