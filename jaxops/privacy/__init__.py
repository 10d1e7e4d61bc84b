"""Learning with differential privacy: what a training and statistics cost, and audits of it."""

from jaxops.privacy.accounting import (
    Ledger,
    Pure,
    Updates,
    epsilon,
    noise_multiplier,
    training_ledger,
)
from jaxops.privacy.auditing import Audit, audit, canary_task, many_runs_bound, one_run_bound
from jaxops.privacy.gaussian import Gaussian, clip_factors, clipped_sum
from jaxops.privacy.noise_of_integers import discrete_laplace
from jaxops.privacy.statistics import Released, bounded, counts, mean, quantile
from jaxops.privacy.tasks import how, private, row_gradients, row_norms
from jaxops.privacy.training import Guarantee, fit

__all__ = [
    "Audit",
    "Gaussian",
    "Guarantee",
    "Ledger",
    "Pure",
    "Released",
    "Updates",
    "audit",
    "bounded",
    "canary_task",
    "clip_factors",
    "clipped_sum",
    "counts",
    "discrete_laplace",
    "epsilon",
    "fit",
    "how",
    "many_runs_bound",
    "mean",
    "noise_multiplier",
    "one_run_bound",
    "private",
    "quantile",
    "row_gradients",
    "row_norms",
    "training_ledger",
]
