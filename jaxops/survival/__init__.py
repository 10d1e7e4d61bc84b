"""Times until an event: one call a job, and below it curves, regressions, networks and metrics."""

from jaxops.survival.aft import AFTFit, aft_regression
from jaxops.survival.cox import CoxFit, breslow, cox_regression, proportionality_test
from jaxops.survival.curves import (
    Curve,
    LogRank,
    aalen_johansen,
    kaplan_meier,
    log_rank,
    nelson_aalen,
)
from jaxops.survival.data import Curves, SurvivalReader
from jaxops.survival.evaluation import brier_interval, score
from jaxops.survival.families import Baseline, Grid, Law
from jaxops.survival.inference import coefficients, probability_before
from jaxops.survival.jobs import evaluate, fit, recipe, update
from jaxops.survival.methods import (
    Cox,
    DeepHit,
    DeepSurv,
    LogisticHazard,
    LogLogisticAFT,
    LogNormalAFT,
    WeibullAFT,
)
from jaxops.survival.metrics import (
    Calibration,
    brier_score,
    calibration,
    censoring_curve,
    concordance,
    concordance_ipcw,
    concordance_td,
    integrated_brier_score,
)
from jaxops.survival.models import MLP, Regression
from jaxops.survival.outcomes import Outcome, outcome
from jaxops.survival.plots import plot_calibration, plot_curves
from jaxops.survival.tasks import cut_times, deep_hit, deep_surv, logistic_hazard

__all__ = [
    "MLP",
    "AFTFit",
    "Baseline",
    "Calibration",
    "Cox",
    "CoxFit",
    "Curve",
    "Curves",
    "DeepHit",
    "DeepSurv",
    "Grid",
    "Law",
    "LogLogisticAFT",
    "LogNormalAFT",
    "LogRank",
    "LogisticHazard",
    "Outcome",
    "Regression",
    "SurvivalReader",
    "WeibullAFT",
    "aalen_johansen",
    "aft_regression",
    "breslow",
    "brier_interval",
    "brier_score",
    "calibration",
    "censoring_curve",
    "coefficients",
    "concordance",
    "concordance_ipcw",
    "concordance_td",
    "cox_regression",
    "cut_times",
    "deep_hit",
    "deep_surv",
    "evaluate",
    "fit",
    "integrated_brier_score",
    "kaplan_meier",
    "log_rank",
    "logistic_hazard",
    "nelson_aalen",
    "outcome",
    "plot_calibration",
    "plot_curves",
    "probability_before",
    "proportionality_test",
    "recipe",
    "score",
    "update",
]
