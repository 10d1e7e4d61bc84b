"""Decisions from forecasts and logs: order quantities, ordering policies, offers and prices."""

from jaxops.decide.bandits import Bandit, Choice, beta_thompson, explore, linucb, thompson
from jaxops.decide.data import Costs
from jaxops.decide.inference import Observation, Policy, Trajectory, simulate
from jaxops.decide.models import LevelNetwork
from jaxops.decide.newsvendor import (
    Order,
    newsvendor_normal,
    newsvendor_poisson,
    newsvendor_quantiles,
    newsvendor_samples,
    total_quantiles,
)
from jaxops.decide.off_policy import (
    Value,
    direct_method,
    doubly_robust,
    estimated_propensity,
    ips,
    snips,
)
from jaxops.decide.policies import (
    base_stock,
    hindsight,
    order_up_to,
    quantile_rule,
    reorder,
    reorder_each,
)
from jaxops.decide.prices import demand_curve
from jaxops.decide.s_s import Levels, s_s_discrete, s_s_poisson
from jaxops.decide.serial import (
    SerialOptimum,
    SerialTrajectory,
    fit_serial,
    optimal_serial,
    simulate_serial,
)
from jaxops.decide.tasks import ordering

__all__ = [
    "Bandit",
    "Choice",
    "Costs",
    "LevelNetwork",
    "Levels",
    "Observation",
    "Order",
    "Policy",
    "SerialOptimum",
    "SerialTrajectory",
    "Trajectory",
    "Value",
    "base_stock",
    "beta_thompson",
    "demand_curve",
    "direct_method",
    "doubly_robust",
    "estimated_propensity",
    "explore",
    "fit_serial",
    "hindsight",
    "ips",
    "linucb",
    "newsvendor_normal",
    "newsvendor_poisson",
    "newsvendor_quantiles",
    "newsvendor_samples",
    "optimal_serial",
    "order_up_to",
    "ordering",
    "quantile_rule",
    "reorder",
    "reorder_each",
    "s_s_discrete",
    "s_s_poisson",
    "simulate",
    "simulate_serial",
    "snips",
    "thompson",
    "total_quantiles",
]
