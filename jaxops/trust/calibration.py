"""Calibration of a classifier's probabilities, and refusal of rows that are out of scope."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxops.trust._figures import BLUE, GREY, PathLike, new_figure, open_frame, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


PART = 2**20  # number of values that are copied to float64 at a time


class Reliability(NamedTuple):
    """Rows in bins of equal width of the probability of the predicted class.

    Attributes:
        confidence: (bins,), the mean of that probability; NaN for an empty bin.
        accuracy: (bins,), the share of rows that are predicted correctly.
        rows: (bins,), the number of rows.

    >>> Reliability(np.array([0.75, 0.5]), np.array([0.5, 0.5]), np.array([10.0, 10.0])).ece()
    0.125
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    rows: np.ndarray

    def ece(self) -> float:
        """The expected calibration error: see `ece`."""
        gap = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((gap * self.rows).sum() / self.rows.sum())


def temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T for which softmax(log p / T) has the highest likelihood on validation rows.

    The mean loss is convex in β = 1/T, with the derivative E_β[z] - z_y for z = log p, whose only
    zero is found by bisection. A constant added to z changes nothing, so the function also takes
    the mean probabilities of an ensemble.

    Args:
        probabilities: (N, C) for validation rows.
        labels: (N,) integers in [0, C).

    Returns:
        T in [0.01, 100]; it is above 1 if the classifier is overconfident.

    Raises:
        ValueError: the shapes differ.

    References:
        Guo et al. 2017, arXiv:1706.04599.

    >>> round(temperature(np.array([[0.9, 0.1]] * 4), np.array([0, 0, 0, 1])), 3)
    2.0
    """
    probabilities, labels = _pair(probabilities, labels)
    own = _log(np.take_along_axis(probabilities, labels[:, None], 1)).sum()

    def slope(beta: float) -> float:
        means = ((scaled(p, 1 / beta) * _log(p)).sum() for p in in_parts(probabilities))
        return float(sum(means) - own)

    low, high = np.log(1e-2), np.log(1e2)
    for _ in range(35):  # to a precision of 3e-10
        middle = (low + high) / 2
        low, high = (middle, high) if slope(np.exp(middle)) < 0 else (low, middle)
    return float(np.exp(-low))


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities at another temperature: softmax(log p / T), (N, C).

    >>> scaled(np.array([[0.9, 0.1]]), 2.0).round(3).tolist()
    [[0.75, 0.25]]
    """
    z = _log(probabilities) / temperature
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def in_parts(probabilities: np.ndarray) -> list[np.ndarray]:
    """The rows in parts of at most about a million numbers, so that float64 takes little memory.

    >>> [len(part) for part in in_parts(np.zeros((3, 2**19)))]
    [2, 1]
    """
    rows = max(1, PART // probabilities.shape[1])
    return [probabilities[i : i + rows] for i in range(0, len(probabilities), rows)]


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-30))


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> Reliability:
    """Confidence and accuracy in `bins` bins of equal width, (i / bins, (i + 1) / bins].

    Args:
        probabilities: (N, C).
        labels: (N,) integers.
        bins: number of bins.

    Raises:
        ValueError: the shapes differ.

    >>> reliability(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0]), bins=2).rows.tolist()
    [0.0, 2.0]
    """
    probabilities, labels = _pair(probabilities, labels)
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins).astype(float)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        sure, share = (np.bincount(place, value, bins) / count for value in (confidence, right))
    return Reliability(sure, share, count)


def ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error: Σ (n_b / N) |accuracy_b - confidence_b| over bins.

    Args:
        probabilities: (N, C).
        labels: (N,) integers.
        bins: number of bins of equal width.

    Raises:
        ValueError: the shapes differ.

    References:
        Guo et al. 2017, arXiv:1706.04599.

    >>> round(ece(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1])), 3)
    0.4
    """
    return reliability(probabilities, labels, bins).ece()


def refusal(
    in_scope: np.ndarray, right: np.ndarray, out_of_scope: np.ndarray, accuracy: float = 0.9
) -> tuple[float, float]:
    """The share of out-of-scope rows that are refused at a required accuracy on rows in scope.

    A row is answered if its score is at least the threshold. The threshold is the highest at which
    the share `accuracy` of the rows in scope is still answered correctly.

    Args:
        in_scope: (N,) scores of rows in scope, such as the largest probability.
        right: (N,) bool, whether the answer to the row is correct.
        out_of_scope: (M,) scores of rows out of scope.
        accuracy: the required share of the rows in scope that are answered correctly.

    Returns:
        The recall (the share of `out_of_scope` that is refused) and the threshold; 0 and -infinity
        if too few answers are correct even without refusal.

    >>> refusal(np.array([0.9, 0.8, 0.3]), np.array([1, 1, 0]), np.array([0.5, 0.85]), accuracy=0.6)
    (0.5, 0.8)
    """
    scores = np.sort(np.asarray(in_scope)[np.asarray(right, bool)])[::-1]
    needed = int(np.ceil(accuracy * len(in_scope) - 1e-9))
    if needed > len(scores):
        return 0.0, -np.inf
    threshold = scores[needed - 1] if needed else np.inf
    return float((np.asarray(out_of_scope) < threshold).mean()), float(threshold)


def plot_reliability(
    probabilities: np.ndarray, labels: np.ndarray, path: PathLike | None = None, bins: int = 15
) -> "Figure":
    """Plot accuracy against confidence, with the number of rows in each bin below.

    Args:
        probabilities: (N, C).
        labels: (N,) integers.
        path: the PNG file; with None no file is written.
        bins: number of bins of equal width.

    Raises:
        ValueError: the shapes differ.
    """
    bins_of_rows = reliability(probabilities, labels, bins)
    figure = new_figure(4.4, 5.2)
    top, below = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    edges = np.arange(bins) / bins
    top.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as sure as right")
    top.bar(
        edges,
        np.nan_to_num(bins_of_rows.accuracy),
        0.9 / bins,
        align="edge",
        color=BLUE,
        alpha=0.35,
    )
    top.plot(
        bins_of_rows.confidence, bins_of_rows.accuracy, "o", color=BLUE, markersize=4, label="bins"
    )
    below.bar(edges, bins_of_rows.rows, 0.9 / bins, align="edge", color=GREY)
    for axes in (top, below):
        open_frame(axes)
    top.set(ylabel="accuracy", ylim=(0, 1), title=f"reliability, ECE {bins_of_rows.ece():.2%}")
    top.legend(frameon=False, loc="upper left")
    below.set(xlabel="probability of the predicted class", ylabel="rows", xlim=(0, 1))
    return save_figure(figure, path)


def _pair(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != (len(probabilities),) or not len(labels):
        raise ValueError(
            "probabilities and labels must have shapes (N, C) and (N,), got "
            f"{probabilities.shape} and {labels.shape}"
        )
    classes = probabilities.shape[1]
    wrong = labels[(labels < 0) | (labels >= classes)] if labels.dtype.kind in "iu" else labels
    if wrong.size:
        raise ValueError(
            f"labels must be whole numbers in [0, {classes}), the number of classes, got "
            f"{wrong.tolist()[0]!r}"
        )
    return probabilities, labels
