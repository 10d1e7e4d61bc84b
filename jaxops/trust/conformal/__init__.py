"""Conformal prediction: intervals and sets with a given coverage around any prediction.

A score says how far a target was from its prediction. A margin is added to a prediction to cover
the next target. Arrays are (N, ...), with N calibration rows on which the model was neither trained
nor chosen. Each position along the other axes, such as step ahead and channel, has its own margin.

Split margins have on average at least the given coverage if calibration rows and test rows are
exchangeable. Windows of a time series are not quite exchangeable: overlapping windows carry less
information than the same number of independent ones, and if the series changes, the coverage falls.
`adaptive` corrects its margins when targets become known; `weighted_margins` are for inputs that
are distributed differently.
"""

from jaxops.trust.conformal.adapting import Adaptive, adaptive
from jaxops.trust.conformal.groups import (
    group_margins,
    margins_of,
    shift_weights,
    weighted_margins,
)
from jaxops.trust.conformal.margins import (
    Bounds,
    check_enough,
    conformal_quantiles,
    margin,
    quantile_offsets,
    quantile_scores,
    rows_needed,
    split_conformal,
)
from jaxops.trust.conformal.resampled import cv_plus
from jaxops.trust.conformal.risk import controlled, label_threshold
from jaxops.trust.conformal.sets import aps_scores, lac_scores, own_scores

__all__ = [
    "Adaptive",
    "Bounds",
    "adaptive",
    "aps_scores",
    "check_enough",
    "conformal_quantiles",
    "controlled",
    "cv_plus",
    "group_margins",
    "label_threshold",
    "lac_scores",
    "margin",
    "margins_of",
    "own_scores",
    "quantile_offsets",
    "quantile_scores",
    "rows_needed",
    "shift_weights",
    "split_conformal",
    "weighted_margins",
]
