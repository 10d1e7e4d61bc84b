"""Texts: classification, sentence vectors, search among documents, and answers from them.

`jobs` has one function for each job: `fit`, `evaluate`, `update`. `data` turns texts into columns,
and `readers` reads a user's tables of texts. `models` has the Flax modules, and `tasks` says what
to learn. `inference` and `answers` have the functions for a finished model: `classify`, `search`
and `answer`. `retrieval` has the index of `search`, and its metrics.
"""

from jaxops.text.answers import Answer, Answers, PassageReader, answer, best_span
from jaxops.text.data import (
    NGrams,
    Passages,
    Reader,
    Tokens,
    WordsAndNGrams,
    labels,
    partners,
)
from jaxops.text.inference import Decision, DocumentReader, Hits, calibrate, classify, search
from jaxops.text.jobs import evaluate, fit, recipe, update
from jaxops.text.models import (
    BagAndCNN,
    BagEncoder,
    LinearBag,
    NGramBag,
    Recurrent,
    SpanReader,
    TextCNN,
    TransformerClassifier,
)
from jaxops.text.readers import Classes, TextReader, Vectors
from jaxops.text.retrieval import (
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
)
from jaxops.text.tasks import classifier, contrastive, info_nce, spans
from jaxops.trust.calibration import (
    Reliability,
    ece,
    plot_reliability,
    refusal,
    reliability,
    scaled,
    temperature,
)

__all__ = [
    "BM25",
    "Answer",
    "Answers",
    "BagAndCNN",
    "BagEncoder",
    "Classes",
    "Decision",
    "DocumentReader",
    "Found",
    "Hits",
    "Index",
    "LinearBag",
    "NGramBag",
    "NGrams",
    "PassageReader",
    "Passages",
    "Reader",
    "Recurrent",
    "Reliability",
    "SpanReader",
    "TextCNN",
    "TextReader",
    "Tokens",
    "TransformerClassifier",
    "Vectors",
    "WordsAndNGrams",
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
    "evaluate",
    "fit",
    "fuse",
    "hit_rate",
    "index",
    "info_nce",
    "labels",
    "mrr",
    "partners",
    "plot_reliability",
    "recall",
    "recipe",
    "refusal",
    "reliability",
    "scaled",
    "search",
    "spans",
    "temperature",
    "update",
]
