"""Decisions taken from forecasts and logs: order quantities, stock policies, offers."""

from jaxops.decide.bandits import (
    Bandit,
    Choice,
    beta_thompson,
    explore,
    linucb,
    thompson,
)
from jaxops.decide.off_policy import Value, direct, doubly_robust, ips, snips
from jaxops.decide.prices import demand_curve

__all__ = [
    "Bandit",
    "Choice",
    "Value",
    "beta_thompson",
    "demand_curve",
    "direct",
    "doubly_robust",
    "explore",
    "ips",
    "linucb",
    "snips",
    "thompson",
]
