"""What a finished model was given, beside what it was finished on: sketches, counted as it answers.

    model = jaxops.monitor.with_reference(model, validation_rows)  # `tabular.fit` has done so
    model = jaxops.monitor.observed(model)
    model.predict(rows)  # counts these rows inside the program that predicts
    jaxops.monitor.psi_of(model.reference, model.observer.sketch())

A sketch has a histogram and the moments of each column of numbers, and the counts of each column of
categories, of what goes in and what comes out. It holds no row.
"""

from jaxops.monitor.observing import Observed, Observer, observed, reference_of, with_reference
from jaxops.monitor.reading import Categories, Numbers, missing_rates, psi_of, told, vector_mean
from jaxops.monitor.sketches import Reference, Sketch, across, empty, merge, update
from jaxops.monitor.snapshots import Snapshot, read_snapshots, write_snapshot

__all__ = [
    "Categories",
    "Numbers",
    "Observed",
    "Observer",
    "Reference",
    "Sketch",
    "Snapshot",
    "across",
    "empty",
    "merge",
    "missing_rates",
    "observed",
    "psi_of",
    "read_snapshots",
    "reference_of",
    "told",
    "update",
    "vector_mean",
    "with_reference",
    "write_snapshot",
]
