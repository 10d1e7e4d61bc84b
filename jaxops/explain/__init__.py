"""Why a model predicts what it does, in the user's terms, with tests of the explanation.

    told = jaxops.explain.explain(model, rows)  # of any room: words, pixels, cells, events, lags
    told.frame(), told.gap  # a value for each, and how far their sum is off
    told.plot(row=0)
    jaxops.explain.checked(model, rows).summary()  # deletion, insertion, random parameters, ...

A method sees a model only as a function of its rows, so that it works for every room.
"""

from jaxops.explain.activations import Maps, feature_maps, grad_cam
from jaxops.explain.checking import (
    Curve,
    Randomisation,
    Sensitivity,
    checked,
    curve,
    max_sensitivity,
    randomisation,
)
from jaxops.explain.explaining import METHODS, explain, occlusion
from jaxops.explain.games import Game, game
from jaxops.explain.gradients import gradient, smooth_grad
from jaxops.explain.integrals import expected_gradients, input_x_gradient, integrated_gradients
from jaxops.explain.results import Attributions, Explanation
from jaxops.explain.shapley import (
    Shares,
    exact_shapley,
    kernel_shap,
    kernel_shap_values,
    shapley_values,
)
from jaxops.explain.tables.dependence import Dependence, ale, partial_dependence
from jaxops.explain.tables.importance import Importance, permutation_importance
from jaxops.explain.tables.recourse import Counterfactuals, counterfactuals
from jaxops.explain.tables.surrogates import Surrogate, surrogate
from jaxops.explain.tracin import influence, self_influence

__all__ = [
    "METHODS",
    "Attributions",
    "Counterfactuals",
    "Curve",
    "Dependence",
    "Explanation",
    "Game",
    "Importance",
    "Maps",
    "Randomisation",
    "Sensitivity",
    "Shares",
    "Surrogate",
    "ale",
    "checked",
    "counterfactuals",
    "curve",
    "exact_shapley",
    "expected_gradients",
    "explain",
    "feature_maps",
    "game",
    "grad_cam",
    "gradient",
    "influence",
    "input_x_gradient",
    "integrated_gradients",
    "kernel_shap",
    "kernel_shap_values",
    "max_sensitivity",
    "occlusion",
    "partial_dependence",
    "permutation_importance",
    "randomisation",
    "self_influence",
    "shapley_values",
    "smooth_grad",
    "surrogate",
]
