"""The profit of a campaign, by scores of customers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy
from scipy.special import betainc

from jaxops.customers.measures import by_score, pair, samples, up_to
from jaxops.model.exported.tables import none_such
from jaxops.model.finished import frame
from jaxops.trust._figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PathLike,
    new_figure,
    open_frame,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 20  # of a profit curve


class ProfitCurve(NamedTuple):
    """The profit of contacting the customers of the highest scores.

    Attributes:
        contacted: (M,) numbers of customers.
        profit: (M,) money.
        low: (M,) bound of its 95 % bootstrap interval.
        high: (M,) likewise.
        best: the number of contacts of the highest profit, of all numbers.
        best_profit: the profit there. Chosen on the same customers, it promises too much: decide
            the number on other customers, or by `worth_contacting`.
        best_low: bound of the 95 % bootstrap interval of the highest profit, at the best number of
            each sample.
        best_high: likewise.

    >>> curve = ProfitCurve(np.arange(2), np.array([0, 5]), np.zeros(2), np.full(2, 9), 1, 5, 0, 9)
    >>> curve.frame().shape
    (2, 4)
    """

    contacted: np.ndarray
    profit: np.ndarray
    low: np.ndarray
    high: np.ndarray
    best: int
    best_profit: float
    best_low: float
    best_high: float

    def frame(self) -> Any:
        """One row a number of contacts."""
        names = ("contacted", "profit", "low", "high")
        return frame({name: getattr(self, name) for name in names})


def profit_curve(score: Any, outcome: Any, benefit: Any, cost: Any) -> ProfitCurve:
    """The profit of a campaign against the number of customers that it contacts.

    Contacting a customer costs `cost`, and brings `benefit` if the outcome is 1, such as a customer
    who would leave and is kept. Customers of equal scores count with their mean, so that their
    order is no matter, and `best` is no number that would part them. Intervals are of 500 samples
    of the customers.

    Args:
        score: (N,), the customers of the highest are contacted first.
        outcome: (N,) of 0 and 1, or shares between.
        benefit: money, one number or (N,).
        cost: money of a contact, one number or (N,).

    Raises:
        ValueError: other shapes, values that are not finite, outcomes outside [0, 1], or a cost
            below 0.

    >>> curve = profit_curve([0.9, 0.8, 0.3, 0.1], [1, 1, 0, 0], benefit=10, cost=2)
    >>> curve.best, curve.best_profit
    (2, 16.0)
    """
    score, outcome = pair(score=score, outcome=outcome)
    _within("outcome", outcome)
    benefit, cost = _money(benefit, cost, len(score))
    order, ends = by_score(score)
    gain = (outcome * benefit - cost)[order]
    total = np.append(0.0, np.cumsum(gain))[ends]
    places = np.unique(np.round(np.linspace(0, len(gain), POINTS + 1)).astype(int))
    curves, highest = [], []
    for drawn in samples(len(gain)):
        each = drawn * gain
        curves.append(up_to(places, ends, each))
        highest.append(np.append(0.0, np.cumsum(each))[ends].max())
    low, high = np.quantile(curves, (0.025, 0.975), axis=0)
    bounds = np.quantile(highest, (0.025, 0.975)).tolist()
    best = int(total.argmax())
    profit = up_to(places, ends, gain)
    return ProfitCurve(places, profit, low, high, int(ends[best]), float(total[best]), *bounds)


def worth_contacting(probability: Any, benefit: Any, cost: Any) -> np.ndarray:
    """The customers whose expected benefit is above the cost of a contact, (N,) bool.

    Args:
        probability: (N,) calibrated probabilities of the outcome that brings the benefit.
        benefit: money, one number or (N,).
        cost: money of a contact, one number or (N,).

    Raises:
        ValueError: probabilities outside [0, 1], or a cost below 0.

    >>> worth_contacting([0.9, 0.1], benefit=10, cost=2).tolist()
    [True, False]
    """
    p = np.asarray(probability, np.float64)
    if p.ndim != 1:
        raise ValueError(f"probability must have shape (N,), got {p.shape}")
    _within("probability", p)
    benefit, cost = _money(benefit, cost, len(p))
    return np.asarray(p * benefit > cost)


def plot_profit(
    curves: ProfitCurve | Mapping[str, ProfitCurve], path: PathLike | None = None
) -> "Figure":
    """Profit against the number of contacts, with 95 % bands.

    Args:
        curves: of `profit_curve`; or several by name, at most 3.
        path: where to write the picture; None writes nothing.

    >>> curve = profit_curve(np.arange(50), np.arange(50) > 30, benefit=10, cost=2)
    >>> len(plot_profit(curve).axes[0].lines)
    2
    """
    named = curves if isinstance(curves, Mapping) else {"": curves}
    figure = new_figure(5, 3.2)
    axes = figure.subplots()
    for (name, one), color in zip(named.items(), (BLUE, ORANGE, GREEN), strict=False):
        axes.plot(one.contacted, one.profit, color=color, label=name)
        axes.fill_between(one.contacted, one.low, one.high, color=color, alpha=0.2, linewidth=0)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("customers contacted")
    axes.set_ylabel("profit")
    if "" not in named:
        axes.legend()
    open_frame(axes)
    return save_figure(figure, path)


class MaximumProfit(NamedTuple):
    """The expected maximum profit of a campaign against churn, for each customer of the base.

    Attributes:
        profit: money for each customer of the base, contacted or not.
        contacted: the share of customers to contact, in the mean over who accepts.
        low: bound of the 95 % bootstrap interval of the profit, each sample at its own best.
        high: likewise.

    >>> MaximumProfit(1.2, 0.1, 1.0, 1.4).profit
    1.2
    """

    profit: float
    contacted: float
    low: float
    high: float


def expected_maximum_profit(
    score: Any,
    churned: Any,
    *,
    value: float = 200.0,
    offer: float = 10.0,
    contact: float = 1.0,
    accepts: tuple[float, float] = (6.0, 14.0),
) -> MaximumProfit:
    """EMPC: the profit of a campaign against churn at its best number of contacts.

    Contacting a customer costs `contact`. Customers who would leave accept the offer with
    probability γ and stay, which is worth `value` less `offer`. Those who would stay take the offer
    for certain. The best number of contacts depends on γ; the profit is its mean over
    γ ~ Beta(*accepts). The interval is of 500 samples of the customers.

    Args:
        score: (N,), higher for customers who will leave.
        churned: (N,) of 0 and 1.
        value: of a customer who stays.
        offer: its cost.
        contact: the cost of a contact.
        accepts: of the beta distribution of γ.

    Raises:
        ValueError: other shapes; churners or stayers alone; costs out of range.

    References:
        Verbraken, Verbeke and Baesens 2013, A novel profit maximizing metric for measuring
        classification performance of customer churn prediction models, IEEE TKDE 25.

    >>> best = expected_maximum_profit([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0])
    >>> round(best.profit, 2), round(best.contacted, 2)
    (28.0, 0.5)
    """
    score, churned = pair(score=score, churned=churned)
    if not np.isin(churned, (0, 1)).all() or np.ptp(churned) == 0:
        raise ValueError(
            "churned must be 0 and 1, both, got " + str(np.unique(churned)[:5].tolist())
        )
    if not (value > offer >= 0 and contact >= 0 and min(accepts) > 0):
        raise ValueError(
            "value must be above offer, offer and contact at least 0 and accepts above 0, got "
            f"{value}, {offer}, {contact} and {accepts}"
        )
    _, group = np.unique(-score, return_inverse=True)

    def best(times: np.ndarray) -> tuple[float, float]:
        """Profit and share of contacts, with each customer so many times."""
        size = np.bincount(group, times)
        hits = np.bincount(group, times * churned)[size > 0]
        return _at_best(size[size > 0], hits, value - offer, offer, contact, accepts)

    low, high = np.quantile([best(times)[0] for times in samples(len(score))], (0.025, 0.975))
    return MaximumProfit(*best(np.ones(len(score))), float(low), float(high))


def _at_best(
    size: np.ndarray,
    hits: np.ndarray,
    gain: float,
    offer: float,
    contact: float,
    accepts: tuple[float, float],
) -> tuple[float, float]:
    """Profit and share of contacts of groups by decreasing score, with the churners in each."""
    # the convex hull of the ROC curve: its slopes are those of the best decreasing fit
    hull = scipy.optimize.isotonic_regression(hits / size, weights=size, increasing=False).blocks
    ends, gone = (np.append(0.0, np.cumsum(x))[hull] / size.sum() for x in (size, hits))
    stayed = ends - gone  # shares of all customers
    cost = (offer + contact) * np.diff(stayed) + contact * np.diff(gone)
    gained = gain * np.diff(gone)
    # the γ from which on it pays to go on to the next: never where none left, 0 where that is free
    never = np.where(cost > 0, 1.0, 0.0)
    gamma = np.divide(cost, gained, out=never, where=gained > 0)
    edges = np.concatenate([[0.0], np.clip(gamma, 0, 1), [1.0]])
    a, b = accepts
    chance = np.diff(betainc(a, b, edges))
    mean = np.diff(betainc(a + 1, b, edges)) * a / (a + b)
    profit = gain * gone * mean - (contact * gone + (offer + contact) * stayed) * chance
    return float(profit.sum()), float((ends * chance).sum())


def _within(name: str, values: np.ndarray) -> None:
    none_such(~((values >= 0) & (values <= 1)), values, f"{name} must be in [0, 1]")


def _money(benefit: Any, cost: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for name, value in (("benefit", benefit), ("cost", cost)):
        array = np.asarray(value, np.float64)
        if array.shape not in ((), (count,)):
            raise ValueError(f"{name} must be one number or ({count},), got shape {array.shape}")
        none_such(~np.isfinite(array).ravel(), array.ravel(), f"{name} must be finite")
        found.append(np.broadcast_to(array, (count,)))
    if (found[1] < 0).any():
        raise ValueError(f"cost must be at least 0, got {found[1].min():g}")
    return found[0], found[1]
