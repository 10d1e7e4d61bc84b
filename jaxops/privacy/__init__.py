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
from jaxops.privacy.noise_of_integers import discrete_laplace
from jaxops.privacy.statistics import Released, bounded, counts, mean, quantile

__all__ = [
    "Audit",
    "Ledger",
    "Pure",
    "Released",
    "Updates",
    "audit",
    "bounded",
    "canary_task",
    "counts",
    "discrete_laplace",
    "epsilon",
    "many_runs_bound",
    "mean",
    "noise_multiplier",
    "one_run_bound",
    "quantile",
    "training_ledger",
]
