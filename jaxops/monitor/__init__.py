"""Whether what a model sees and says is still what it was: sketches, and tests of them.

    model = jaxops.monitor.with_reference(model, validation_rows)  # `tabular.fit` has done so
    model = jaxops.monitor.observed(model)
    model.predict(rows)  # counts these rows inside the program that predicts
    jaxops.monitor.psi_of(model.reference, model.observer.sketch())

A sketch has a histogram and the moments of each column of numbers, and the counts of each column of
categories, of what goes in and what comes out. It holds no row.
"""

from jaxops.monitor.embeddings import lsdd, mmd
from jaxops.monitor.estimated import (
    DirectLoss,
    Estimated,
    Labelled,
    confidence_based,
    with_labels,
)
from jaxops.monitor.observing import (
    History,
    Observed,
    Observer,
    observed,
    reference_of,
    with_reference,
)
from jaxops.monitor.reading import (
    Categories,
    Numbers,
    missing_rates,
    out_of_range_rates,
    psi_of,
    told,
    vector_mean,
)
from jaxops.monitor.reporting import Report, compared, report
from jaxops.monitor.retraining import Retrained, retrain
from jaxops.monitor.sequential import anytime_p, categories_changed, mean_changed
from jaxops.monitor.sketches import Reference, Sketch, across, empty, merge, update
from jaxops.monitor.snapshots import Snapshot, read_snapshots, write_snapshot
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
from jaxops.monitor.webhook import post

__all__ = [
    "Alarms",
    "Categories",
    "Comparison",
    "DirectLoss",
    "Estimated",
    "History",
    "Labelled",
    "Numbers",
    "Observed",
    "Observer",
    "Reference",
    "Report",
    "Retrained",
    "Sketch",
    "Snapshot",
    "Window",
    "across",
    "adwin",
    "anytime_p",
    "categories_changed",
    "chi_squared",
    "compared",
    "confidence_based",
    "ddm",
    "empty",
    "jensen_shannon",
    "ks",
    "lsdd",
    "mean_changed",
    "merge",
    "missing_rates",
    "mmd",
    "observed",
    "out_of_range_rates",
    "page_hinkley",
    "pooled",
    "post",
    "psi",
    "psi_of",
    "rate_changed",
    "read_snapshots",
    "reference_of",
    "report",
    "retrain",
    "told",
    "update",
    "vector_mean",
    "wasserstein",
    "with_labels",
    "with_reference",
    "write_snapshot",
]
