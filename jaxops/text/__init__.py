"""Texts: how they are read, networks, what to learn, and decisions that can be trusted."""

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
from jaxops.text.models import NGramBag, TextCNN, TransformerClassifier
from jaxops.text.recurrent import Recurrent
from jaxops.text.tasks import classifier

__all__ = [
    "Classifier",
    "Decision",
    "NGramBag",
    "NGrams",
    "Reader",
    "Recurrent",
    "Reliability",
    "TextCNN",
    "Tokens",
    "TransformerClassifier",
    "calibrate",
    "classifier",
    "classify",
    "ece",
    "labels",
    "load",
    "plot_reliability",
    "reader",
    "refusal",
    "reliability",
    "save",
    "scaled",
    "temperature",
]
