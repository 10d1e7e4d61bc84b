"""A linear model of texts that joins the networks: fitted by liblinear, weighted by validation."""

import warnings
from typing import Any, NamedTuple

import numpy as np

from jaxops._optional import require
from jaxops.state import TrainState
from jaxops.task import Task
from jaxops.trust.calibration import scaled, temperature

WEIGHTS = (0, 1, 2, 6, 18)  # possible weights of the model; each of the two networks has weight 1
CHARACTERS = (0.5, 1.0)  # possible weights of n-grams of characters; those of words have weight 1
COST = 4e-8  # seconds for each n-gram of a text and each class, measured on one core


class Fitted(NamedTuple):
    """The linear member of a model.

    Attributes:
        weight: its weight; each of the two networks has weight 1.
        scale: factor that turns its scores into logits.
        characters: weight of n-grams of characters; those of words have weight 1.
    """

    weight: int = 0
    scale: float = 1.0
    characters: float = 1.0


def cost(tokens: np.ndarray, classes: int) -> float:
    """About how many seconds a fit takes.

    >>> round(cost(np.ones((10_000, 200), np.int32), 77), 1)
    6.2
    """
    return COST * int(np.count_nonzero(tokens)) * classes


def parameters(
    tokens: np.ndarray, label: np.ndarray, vocabulary: int, classes: int, characters: float = 1.0
) -> dict[str, np.ndarray]:
    """The parameters of `LinearBag`: a linear SVM on the tf-idf of n-grams, one class versus rest.

    Args:
        tokens: (N, T) integers, the numbers of distinct n-grams; 0 is padding.
        label: (N,) integers in [0, classes).
        vocabulary: the upper limit of the numbers.
        classes: number of classes.
        characters: see `Fitted`.

    Returns:
        `idf` (V,), `kernel` (V, C) and `bias` (C,), float32. A class without texts is never
        predicted.
    """
    from scipy import sparse

    exceptions = require("sklearn.exceptions", extra="data")
    svm = require("sklearn.svm", extra="data")

    row, column = np.nonzero(tokens)
    number = tokens[row, column]
    idf = np.log((1 + len(tokens)) / (1 + np.bincount(number, minlength=vocabulary))) + 1
    value, upper = idf[number], number >= vocabulary // 2
    norm = np.sqrt(np.bincount(2 * row + upper, value**2, minlength=2 * len(tokens)))
    value = value / norm[2 * row + upper] * np.where(upper, characters, 1.0)
    features = sparse.csr_matrix((value, (row, number)), (len(tokens), vocabulary))
    machine = svm.LinearSVC(random_state=0)
    with warnings.catch_warnings():  # scores are usable also if the fit has not converged
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        machine.fit(features, label)
    kernel = np.zeros((vocabulary, classes), np.float32)
    bias = np.full(classes, -10.0, np.float32)
    coefficients, intercept = machine.coef_, machine.intercept_
    if len(coefficients) == 1:  # with two classes there is only the score of the second
        coefficients, intercept = np.r_[-coefficients, coefficients], np.r_[-intercept, intercept]
    kernel[:, machine.classes_], bias[machine.classes_] = coefficients.T, intercept
    kernel[vocabulary // 2 :] *= characters
    return {"idf": idf.astype(np.float32), "kernel": kernel, "bias": bias}


def chosen(networks: np.ndarray, linear: dict[float, np.ndarray], label: np.ndarray) -> Fitted:
    """The weights of the linear model with the best validation accuracy, then log loss.

    Args:
        networks: (N, C), the mean probabilities of the two networks.
        linear: weight of n-grams of characters -> (N, C), the softmax of the model's scores.
        label: (N,) integers in [0, C).

    >>> networks, linear = np.array([[0.6, 0.4], [0.6, 0.4]]), np.array([[0.8, 0.2], [0.2, 0.8]])
    >>> chosen(networks, {1.0: linear}, np.array([0, 1])).weight > 0
    True
    """
    qualities = {}
    for characters, alone in linear.items():
        scale = 1 / temperature(alone, label)
        for weight in WEIGHTS:
            p = (2 * networks + weight * scaled(alone, 1 / scale)) / (2 + weight)
            own = np.log(np.maximum(p[np.arange(len(p)), label], 1e-30))
            right = float((p.argmax(1) == label).mean())
            qualities[Fitted(weight, float(scale), characters)] = right, float(own.mean())
    return max(qualities, key=lambda fitted: qualities[fitted])


def joined(
    task: Task, state: TrainState, linear: dict[str, np.ndarray], fitted: Fitted
) -> tuple[Task, TrainState]:
    """The task and state of a `BagAndCNN` with the linear model as a member."""
    if fitted.weight == 0:
        return task, state
    scores = {name: linear[name] * fitted.scale for name in ("kernel", "bias")}
    params = {**state.params, "linear": {"idf": linear["idf"], **scores}}
    return weighted(task, fitted.weight), state._replace(params=params)


def weighted(task: Task, weight: int) -> Task:
    """The task of a `BagAndCNN` in which the linear model has this weight; 0 leaves it out."""
    if task.recipe is None:
        raise ValueError("task must be made by text.classifier, got one made by hand")
    make, arguments = task.recipe
    given: dict[str, Any] = dict(arguments)
    return make(**{**given, "module": given["module"].clone(linear=weight)})
