"""How a finished model treats groups of people, and how that is made more equal.

    found = jaxops.fairness.report(model, test_rows, protected=["sex"])
    fair = jaxops.fairness.thresholds(model, validation_rows, protected=["sex"])
    jaxops.fairness.model_card(fair, test_rows, protected=["sex"]).write("card.html")

No measure is right by itself: when the groups' base rates differ, demographic parity, equalised
odds and calibration exclude each other, except for trivial classifiers.
"""

from jaxops.fairness.cards import Card, model_card
from jaxops.fairness.groups import Groups, groups_of
from jaxops.fairness.measures import Report, of_classes, of_numbers
from jaxops.fairness.rates import Figure, Values, difference, rate_of, ratio, wilson
from jaxops.fairness.reductions import Mixture, exponentiated_gradient
from jaxops.fairness.reporting import evaluate, report
from jaxops.fairness.thresholding import ByGroup, chances, optimal_thresholds, thresholds
from jaxops.fairness.training import WorstGroup, adversarial, group_dro, inner_state
from jaxops.fairness.weighing import reweigh

__all__ = [
    "ByGroup",
    "Card",
    "Figure",
    "Groups",
    "Mixture",
    "Report",
    "Values",
    "WorstGroup",
    "adversarial",
    "chances",
    "difference",
    "evaluate",
    "exponentiated_gradient",
    "group_dro",
    "groups_of",
    "inner_state",
    "model_card",
    "of_classes",
    "of_numbers",
    "optimal_thresholds",
    "rate_of",
    "ratio",
    "report",
    "reweigh",
    "thresholds",
    "wilson",
]
