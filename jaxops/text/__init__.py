"""Texts: classification, sentence vectors, search among documents, and answers from them.

`data` turns texts into columns, `models` holds Flax modules, `tasks` says what to learn, and
`inference` has what users ask of a trained model: `classify`, `answer` and `search`. `retrieval` is
the index behind `search`, with its metrics.
"""

from jaxops.text.data import NGrams, Passages, Reader, Tokens, labels, partners, reader
from jaxops.text.inference import (
    Answer,
    Classifier,
    Decision,
    answer,
    best_span,
    calibrate,
    classify,
    load,
    save,
    search,
)
from jaxops.text.models import (
    BagEncoder,
    NGramBag,
    Recurrent,
    SpanReader,
    TextCNN,
    TransformerClassifier,
)
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
