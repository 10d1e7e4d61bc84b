"""Monitoring: whether what a model sees and says is still what it was."""

from jaxops.monitor.embeddings import lsdd, mmd
from jaxops.monitor.estimated import (
    DirectLoss,
    Estimated,
    Labelled,
    confidence_based,
    with_labels,
)
from jaxops.monitor.sequential import anytime_p, categories_changed, mean_changed
from jaxops.monitor.statistics import (
    Comparison,
    chi_squared,
    jensen_shannon,
    ks,
    pooled,
    psi,
    rate_changed,
    wasserstein,
)
from jaxops.monitor.streams import Alarms, Window, adwin, ddm, page_hinkley

__all__ = [
    "Alarms",
    "Comparison",
    "DirectLoss",
    "Estimated",
    "Labelled",
    "Window",
    "adwin",
    "anytime_p",
    "categories_changed",
    "chi_squared",
    "confidence_based",
    "ddm",
    "jensen_shannon",
    "ks",
    "lsdd",
    "mean_changed",
    "mmd",
    "page_hinkley",
    "pooled",
    "psi",
    "rate_changed",
    "wasserstein",
    "with_labels",
]
