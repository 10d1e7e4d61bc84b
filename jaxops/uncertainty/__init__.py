"""How far a finished model can be trusted: calibration, conformal prediction, rows out of scope.

    model = uncertainty.calibrated(model, rows, labels, method="isotonic")
    model = uncertainty.conformal(model, other_rows, their_labels, coverage=0.9)
    model.predict(new_rows).sets  # with 90 % the true class is among them

Both take a model of any room that answers with classes, values or quantiles, and give a model that
predicts, saves, loads and serves as before. The functions of arrays are those of
`jaxops.trust.conformal`, `jaxops.trust.calibration` and their neighbours.
"""

from jaxops.trust.calibration import (
    Brier,
    Reliability,
    brier,
    classwise_ece,
    ece,
    ece_interval,
    plot_reliability,
    refusal,
    reliability,
)
from jaxops.trust.calibrators import Beta, Calibrator, Isotonic, Platt, Temperature, Vector
from jaxops.trust.conformal import (
    Adaptive,
    Bounds,
    adaptive,
    aps_scores,
    conformal_quantiles,
    controlled,
    cv_plus,
    group_margins,
    label_threshold,
    lac_scores,
    margin,
    margins_of,
    own_scores,
    quantile_offsets,
    quantile_scores,
    rows_needed,
    shift_weights,
    split_conformal,
    weighted_margins,
)
from jaxops.uncertainty.covered import CoveredReader, Intervals, Sets, conformal
from jaxops.uncertainty.layers import Hidden, hidden
from jaxops.uncertainty.out_of_scope import Detection, Mahalanobis, Neighbours, detection, energy
from jaxops.uncertainty.recalibrated import CalibratedReader, calibrated

__all__ = [
    "Adaptive",
    "Beta",
    "Bounds",
    "Brier",
    "CalibratedReader",
    "Calibrator",
    "CoveredReader",
    "Detection",
    "Hidden",
    "Intervals",
    "Isotonic",
    "Mahalanobis",
    "Neighbours",
    "Platt",
    "Reliability",
    "Sets",
    "Temperature",
    "Vector",
    "adaptive",
    "aps_scores",
    "brier",
    "calibrated",
    "classwise_ece",
    "conformal",
    "conformal_quantiles",
    "controlled",
    "cv_plus",
    "detection",
    "ece",
    "ece_interval",
    "energy",
    "group_margins",
    "hidden",
    "label_threshold",
    "lac_scores",
    "margin",
    "margins_of",
    "own_scores",
    "plot_reliability",
    "quantile_offsets",
    "quantile_scores",
    "refusal",
    "reliability",
    "rows_needed",
    "shift_weights",
    "split_conformal",
    "weighted_margins",
]
