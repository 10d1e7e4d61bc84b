"""Calibration of a classifier's probabilities, and refusal of rows that are out of scope."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxops.trust._figures import BLUE, GREY, PathLike, new_figure, open_frame, save_figure
from jaxops.trust.intervals import Interval

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

    def squared(self, debiased: bool = True) -> float:
        """The squared calibration error: Σ (n_b / N) (accuracy_b - confidence_b)².

        Args:
            debiased: subtract accuracy_b (1 - accuracy_b) / (n_b - 1) from each square, which is
                what chance alone adds. The mean is then right, and the value may be below 0; bins
                of one row do not count. Without it, few rows look worse than they are.

        References:
            Bröcker 2012, Estimating reliability and resolution of probability forecasts; Kumar,
            Liang and Ma 2019, arXiv:1909.10155.

        >>> one = Reliability(np.array([0.75]), np.array([0.5]), np.array([5.0]))
        >>> one.squared(debiased=False), one.squared()
        (0.0625, 0.0)
        """
        known = self.rows > (1 if debiased else 0)
        rows, share = self.rows[known], self.accuracy[known]
        squares = (share - self.confidence[known]) ** 2
        if debiased:
            squares = squares - share * (1 - share) / (rows - 1)
        return float((squares * rows).sum() / self.rows.sum())

    def band(self, coverage: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Where the accuracy of each bin would lie if the probabilities were right, (bins,) each.

        The rows of a bin that are right are then binomial, with the confidence as probability. An
        accuracy outside the band says that the classifier is too sure of itself, or not enough.

        Args:
            coverage: of the band of one bin.

        References:
            Bröcker and Smith 2007, Increasing the reliability of reliability diagrams.

        >>> low, high = Reliability(np.array([0.5]), np.array([0.9]), np.array([10.0])).band()
        >>> low.tolist(), high.tolist()
        ([0.2], [0.8])
        """
        from scipy.stats import binom  # takes half a second to import

        tails = (1 - coverage) / 2, (1 + coverage) / 2
        low, high = (binom.ppf(tail, self.rows, self.confidence) / self.rows for tail in tails)
        return low, high


class Brier(NamedTuple):
    """The Brier score and its parts: score = reliability - resolution + uncertainty + within.

    Attributes:
        score: the mean over rows of Σ_c (p_c - 1{y = c})²; 0 is perfect, 2 is worst.
        reliability: how far the probabilities of a bin are from the shares of the classes; 0 is
            perfect.
        resolution: how far these shares differ from bin to bin; larger is better.
        uncertainty: Σ_c of share (1 - share) over all rows, which no classifier changes.
        within: the variance of the probabilities within bins, less twice their covariance with what
            happens; 0 where all probabilities of a bin are equal.

    >>> one = Brier(0.2, 0.02, 0.3, 0.48, 0.0)
    >>> round(one.reliability - one.resolution + one.uncertainty + one.within, 9) == one.score
    True
    """

    score: float
    reliability: float
    resolution: float
    uncertainty: float
    within: float


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
    probabilities, labels = check_pair(probabilities, labels)
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
    confidence, right, place = _binned(*check_pair(probabilities, labels), bins)
    count = np.bincount(place, minlength=bins).astype(float)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        sure, share = (np.bincount(place, value, bins) / count for value in (confidence, right))
    return Reliability(sure, share, count)


def _binned(
    probabilities: np.ndarray, labels: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The confidence of each row, whether it is right, and its bin."""
    confidence = probabilities.max(1).astype(np.float64)
    return confidence, probabilities.argmax(1) == labels, _bin(confidence, bins)


def _bin(p: np.ndarray, bins: int) -> np.ndarray:
    found: np.ndarray = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    return found


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


def ece_interval(
    probabilities: np.ndarray,
    labels: np.ndarray,
    bins: int = 15,
    resamples: int = 1000,
    coverage: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The expected calibration error with its bootstrap interval over the rows.

    Chance alone gives a positive error, and resamples even a larger one. So the bounds are
    reflected: 2 ece - quantile (the basic bootstrap); the upper one is at least the error. The
    lower one is 0 where labels drawn from the probabilities give so large an error in more than
    1 - coverage of the draws. In simulations, intervals at 95 % held the true error in 83 to 93 %.

    Args:
        probabilities: (N, C).
        labels: (N,) integers.
        bins: number of bins of equal width.
        resamples: number of samples of N rows, drawn with replacement.
        coverage: of the interval.
        seed: of the samples.

    Raises:
        ValueError: the shapes differ, or the coverage is outside 0 to 1.

    References:
        Davison and Hinkley 1997, Bootstrap methods and their application, section 5.2; Bröcker and
        Smith 2007, Increasing the reliability of reliability diagrams, for the draws.

    >>> p, label = np.tile([0.75, 0.25], (400, 1)), np.arange(400) % 2
    >>> print(ece_interval(p, label))
    0.2500 [0.2000, 0.2976]
    """
    if not 0 < coverage < 1 or resamples < 1:
        raise ValueError(
            "coverage must be between 0 and 1 and resamples at least 1, got "
            f"{coverage} and {resamples}"
        )
    probabilities, labels = check_pair(probabilities, labels)
    confidence, right, place = _binned(probabilities, labels, bins)
    gap, rows = right - confidence, len(labels)

    def error(gap: np.ndarray, place: np.ndarray) -> float:
        return float(np.abs(np.bincount(place, gap, bins)).sum() / rows)

    rng, found = np.random.default_rng(seed), error(gap, place)
    some = (rng.integers(0, rows, rows) for _ in range(resamples))
    drawn = [error(gap[own], place[own]) for own in some]
    chance = [error((rng.random(rows) < confidence) - confidence, place) for _ in range(resamples)]
    low, high = 2 * found - np.quantile(drawn, [(1 + coverage) / 2, (1 - coverage) / 2])
    low = 0.0 if found <= np.quantile(chance, coverage) else max(low, 0.0)
    return Interval(found, float(low), float(max(high, found)))


def classwise_ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> np.ndarray:
    """The calibration error of each class's probability, (C,): Σ (n_b / N) |share_b - mean p_b|.

    The mean over the classes is what is called the class-wise ECE.

    Args:
        probabilities: (N, C).
        labels: (N,) integers.
        bins: number of bins of equal width.

    Raises:
        ValueError: the shapes differ.

    References:
        Kull et al. 2019, arXiv:1910.12656.

    >>> classwise_ece(np.array([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1])).tolist()
    [0.25, 0.25]
    """
    probabilities, labels = check_pair(probabilities, labels)
    errors = []
    for one in range(probabilities.shape[1]):
        p = np.asarray(probabilities[:, one], np.float64)
        gap = np.bincount(_bin(p, bins), (labels == one) - p, bins)
        errors.append(np.abs(gap).sum() / len(labels))
    return np.array(errors)


def brier(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> Brier:
    """The Brier score, and its decomposition over bins of each class's probability.

    For each class, with n_b rows in bin b, their mean probability p_b, the share o_b of the class
    among them, and its share o among all N rows,

        reliability = Σ n_b (p_b - o_b)² / N, resolution = Σ n_b (o_b - o)² / N,
        uncertainty = o (1 - o),

    and the sums over the classes are returned. Murphy's identity score = reliability - resolution +
    uncertainty holds where all probabilities of a bin are equal; otherwise `within` has what is
    missing, so that the sum is exact.

    Args:
        probabilities: (N, C).
        labels: (N,) integers.
        bins: number of bins of equal width.

    Raises:
        ValueError: the shapes differ.

    References:
        Murphy 1973, A new vector partition of the probability score; Stephenson, Coelho and
        Jolliffe 2008, Two extra components in the Brier score decomposition.

    >>> told = brier(np.array([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1]))
    >>> told.score, told.reliability, told.resolution, told.uncertainty, told.within
    (0.625, 0.125, 0.0, 0.5, 0.0)
    """
    probabilities, labels = check_pair(probabilities, labels)
    total = np.zeros(5)
    for one in range(probabilities.shape[1]):
        p, own = np.asarray(probabilities[:, one], np.float64), (labels == one).astype(float)
        place = _bin(p, bins)
        rows = np.maximum(np.bincount(place, minlength=bins), 1)
        mean, share = ((np.bincount(place, x, bins) / rows)[place] for x in (p, own))
        overall, gap = own.mean(), p - mean
        total += (
            ((p - own) ** 2).mean(),
            ((mean - share) ** 2).mean(),
            ((share - overall) ** 2).mean(),
            overall * (1 - overall),
            (gap**2 - 2 * gap * (own - share)).mean(),
        )
    return Brier(*total.tolist())


def refusal(
    in_scope: np.ndarray,
    right: np.ndarray | None = None,
    out_of_scope: np.ndarray | None = None,
    accuracy: float = 0.9,
) -> tuple[float, float]:
    """The share of out-of-scope rows that are refused at a required accuracy on rows in scope.

    A row is answered if its score is at least the threshold. The threshold is the highest at which
    the share `accuracy` of the rows in scope is still answered correctly. Without `right` every
    answer counts, so that the share 1 - `accuracy` of the rows in scope is refused for nothing.

    Args:
        in_scope: (N,) scores of rows in scope, such as the largest probability.
        right: (N,) bool, whether the answer to the row is correct; None if all of them are.
        out_of_scope: (M,) scores of rows out of scope; None if there are none, as on validation
            rows: the recall is then NaN.
        accuracy: the required share of the rows in scope that are answered correctly.

    Returns:
        The recall (the share of `out_of_scope` that is refused) and the threshold; 0 and -infinity
        if too few answers are correct even without refusal.

    Raises:
        ValueError: no score, one that is NaN, or an accuracy outside (0, 1].

    >>> refusal(np.array([0.9, 0.8, 0.3]), np.array([1, 1, 0]), np.array([0.5, 0.85]), accuracy=0.6)
    (0.5, 0.8)
    """
    for name, values in (("in_scope", in_scope), ("out_of_scope", out_of_scope)):
        if values is not None and (not len(values) or np.isnan(values).any()):
            raise ValueError(f"{name} must have 1 score or more and no NaN, got {values}")
    if not 0 < accuracy <= 1:
        raise ValueError(f"accuracy must be in (0, 1], got {accuracy}")
    right = np.ones(len(in_scope), bool) if right is None else np.asarray(right, bool)
    scores = np.sort(np.asarray(in_scope)[right])[::-1]
    needed = int(np.ceil(accuracy * len(in_scope) - 1e-9))
    if needed > len(scores):
        return 0.0, -np.inf
    threshold = float(scores[needed - 1])
    recall = np.nan if out_of_scope is None else (np.asarray(out_of_scope) < threshold).mean()
    return float(recall), threshold


def plot_reliability(
    probabilities: np.ndarray, labels: np.ndarray, path: PathLike | None = None, bins: int = 15
) -> "Figure":
    """Plot accuracy against confidence, with the number of rows in each bin below.

    The grey band is where the accuracy of a bin lies with 95 % if the probabilities are right, see
    `Reliability.band`.

    Args:
        probabilities: (N, C).
        labels: (N,) integers.
        path: the PNG file; with None no file is written.
        bins: number of bins of equal width.

    Raises:
        ValueError: the shapes differ.
    """
    made = reliability(probabilities, labels, bins)
    figure = new_figure(4.4, 5.2)
    top, below = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    edges = np.arange(bins) / bins
    top.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as sure as right")
    top.bar(edges, np.nan_to_num(made.accuracy), 0.9 / bins, align="edge", color=BLUE, alpha=0.35)
    top.plot(made.confidence, made.accuracy, "o", color=BLUE, markersize=4, label="bins")
    options = {"color": GREY, "linewidth": 3, "alpha": 0.5, "label": "95 % if right"}
    top.vlines(made.confidence, *made.band(), **options)
    below.bar(edges, made.rows, 0.9 / bins, align="edge", color=GREY)
    for axes in (top, below):
        open_frame(axes)
    top.set(ylabel="accuracy", ylim=(0, 1), title=f"reliability, ECE {made.ece():.2%}")
    top.legend(frameon=False, loc="upper left")
    below.set(xlabel="probability of the predicted class", ylabel="rows", xlim=(0, 1))
    return save_figure(figure, path)


def check_pair(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays; raises `ValueError` for other shapes, no probabilities, or no classes."""
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
    low, high = probabilities.min(), probabilities.max()
    if not (low >= 0 and high <= 1 + 1e-3):  # a mean in float32 may be a little above 1
        raise ValueError(f"probabilities must be numbers in [0, 1], got {low} to {high}")
    return probabilities, labels
