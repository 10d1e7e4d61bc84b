"""Fair classification by a game of weights: `exponentiated_gradient`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy

from jaxops.fairness.groups import Groups, binary, check_rows, groups_of

EVENTS = {
    "demographic parity": lambda y: {"all": np.ones(len(y), bool)},
    "equal opportunity": lambda y: {"1": y},
    "equalised odds": lambda y: {"0": ~y, "1": y},
}
FEWEST = 5  # iterations before it may end
SLOWER, OFTEN, ENOUGH = 0.8, 1.6, 0.8  # of the step, if the gap has not shrunk so far since
SAME = 1e-8

Fit = Callable[[np.ndarray, np.ndarray], tuple[Any, Any]]


class Mixture(NamedTuple):
    """Classifiers of which one is drawn for each row; of `exponentiated_gradient`.

    Attributes:
        members: what `fit` has made; True stands for "every row is of class 1", False for none.
        shares: with which each is drawn, sum 1.
        error: on the train rows, expected over the draw.
        violation: the largest distance of a group's rate from that of all rows, on these rows.
        gap: how far the Lagrangian is from its saddle point at most; the error is at most twice
            that above the best under the constraint, if `fit` finds the best classifier.
        fits: how often `fit` was called.

    >>> mixed = Mixture((np.array([1, 0]), True), (0.25, 0.75), 0.0, 0.0, 0.0, 1)
    >>> mixed.chances(lambda member: member, rows=2).tolist()
    [1.0, 0.75]
    """

    members: tuple[Any, ...]
    shares: tuple[float, ...]
    error: float
    violation: float
    gap: float
    fits: int

    def chances(self, decide: Callable[[Any], Any], rows: int) -> np.ndarray:
        """The chance of each row to be of class 1, float64 (N,).

        Args:
            decide: a member -> (N,) of 0 and 1.
            rows: N.
        """
        found = np.zeros(rows)
        for member, share in zip(self.members, self.shares, strict=True):
            found += share * (float(member) if isinstance(member, bool) else decide(member))
        return found


def exponentiated_gradient(
    fit: Fit,
    label: Any,
    protected: Mapping[str, Any],
    constraint: str = "demographic parity",
    bound: float = 0.01,
    iterations: int = 50,
) -> Mixture:
    """A mixture of classifiers with the least error under a bound on the groups' rates.

    A player puts prices on the violated constraints and raises them by exponentiated gradient; the
    other answers with the classifier that is best at these prices, which is one of weighted rows
    with some labels turned round. After each turn the best mixture of all classifiers so far is
    found by a linear program. It ends when the gap is below half a standard error of the first
    classifier's error, or with the iterations.

    Args:
        fit: `(label int32 (N,), weights float64 (N,)) -> (member, decisions (N,) of 0 and 1)`:
            trains on the train rows with other labels and weights, and decides on the same rows.
        label: (N,) of 0 and 1.
        protected: see `groups_of`.
        constraint: "demographic parity" (the selection rates), "equal opportunity" (the true
            positive rates) or "equalised odds" (these and the false positive rates).
        bound: how far each group's rate may be from that of all rows, in (0, 1); so two groups are
            at most twice as far apart.
        iterations: at most.

    Raises:
        ValueError: another constraint, or a number out of range; a group without rows of a class
            whose rate is bounded; decisions other than 0 and 1.

    References:
        Agarwal et al. 2018, arXiv:1803.02453.

    >>> x, sex = np.array([0, 1, 2, 3] * 2), np.array(["f"] * 4 + ["m"] * 4)
    >>> label = (x + 2 * (sex == "m") > 2).astype(int)
    >>> def fit(label, weights):  # the best of all thresholds on x
    ...     wrong = [(weights * ((x > t) != label)).sum() for t in range(-1, 4)]
    ...     return np.argmin(wrong) - 1, x > np.argmin(wrong) - 1
    >>> exponentiated_gradient(fit, label, {"sex": sex}, bound=0.05).violation
    0.0
    """
    if constraint not in EVENTS:
        raise ValueError(f"constraint must be one of {', '.join(EVENTS)}, got {constraint!r}")
    if not 0 < bound < 1 or iterations < 1:
        raise ValueError(
            f"bound must be in (0, 1) and iterations at least 1, got {bound} and {iterations}"
        )
    y, groups = binary("label", label), groups_of(protected)
    check_rows({"label": y}, groups)
    game = _Game(fit, y, _moments(y, groups, constraint), bound)
    prices, theta = np.zeros(game.count), np.zeros(game.count)
    picked: list[int] = []
    best, close, step, checked, least, before = None, 0.0, 2.0 * bound, 5, np.inf, np.inf
    for turn in range(iterations):
        price = np.exp(theta - theta.max(initial=0))
        price /= bound * (np.exp(-theta.max(initial=0)) + price.sum())
        prices += price
        picked.append(game.answer(price))
        if turn == 0:
            close = 0.5 * float(np.std(game.wrong[0], ddof=1)) / np.sqrt(len(y))
        shares = np.bincount(picked, minlength=len(game.errors)) / len(picked)
        own = game.gap(shares, prices / (turn + 1))
        least = min(least, own)
        found = (own, shares)
        if turn:
            shares, price = game.solved()
            other = game.gap(shares, price)
            found = (other, shares) if other <= own else found
        if best is None or found[0] <= best[0] + SAME:
            best = found
        if found[0] < close and turn >= FEWEST:
            break
        if turn >= checked * OFTEN:
            step *= SLOWER if least > before * ENOUGH else 1.0
            checked, before = turn, least
        theta += step * (game.violations[picked[-1]] - bound)
    assert best is not None
    return game.mixture(*best)


def _moments(y: np.ndarray, groups: Groups, constraint: str) -> np.ndarray:
    """(N, K): the mean over rows of a column times decisions is a group's rate less that of all."""
    columns = []
    for event, rows in EVENTS[constraint](y).items():
        for g, name in enumerate(groups.names):
            own = rows & (groups.place == g)
            if not own.any():
                raise ValueError(
                    f"protected must have rows of class {event} in each group for {constraint}, "
                    f"got none in {name}; join groups"
                )
            columns.append(len(y) * (own / own.sum() - rows / rows.sum()))
    return np.stack(columns, -1)


class _Game:
    """The classifiers so far, and what they cost at prices of the 2 K constraints."""

    def __init__(self, fit: Fit, y: np.ndarray, moments: np.ndarray, bound: float) -> None:
        self.fit, self.y, self.moments, self.bound = fit, y, moments, bound
        self.count = 2 * moments.shape[1]
        self.members: list[Any] = []
        self.wrong: list[np.ndarray] = []
        self.errors: list[float] = []
        self.violations: list[np.ndarray] = []
        self.fits = 0

    def answer(self, prices: np.ndarray) -> int:
        """The number of the best classifier at these prices: a new one, or one of those so far."""
        up, down = np.split(prices, 2)
        gain = 2.0 * self.y - 1 - self.moments @ (up - down)  # of deciding for class 1
        wanted = gain > 0
        if wanted.all() or not wanted.any():
            member: Any = bool(wanted[0])
            told = wanted
        else:
            weights = np.abs(gain) * len(gain) / np.abs(gain).sum()
            member, decisions = self.fit(wanted.astype(np.int32), weights)
            told = binary("decisions", decisions)
            if len(told) != len(self.y):
                raise ValueError(
                    f"decisions must have {len(self.y):,} rows, as label, got {len(told):,}"
                )
            self.fits += 1
        rates = self.moments.T @ told / len(told)
        violations, wrong = np.concatenate([rates, -rates]), told != self.y
        cost = wrong.mean() + prices @ violations
        known = [e + prices @ v for e, v in zip(self.errors, self.violations, strict=True)]
        if known and cost >= min(known) - SAME:
            return int(np.argmin(known))
        self.members.append(member)
        self.wrong.append(wrong)
        self.errors.append(float(wrong.mean()))
        self.violations.append(violations)
        return len(known)

    def gap(self, shares: np.ndarray, prices: np.ndarray) -> float:
        """How much either player could gain, if the other stays."""
        up, down = np.split(prices, 2)
        prices = np.concatenate([np.maximum(up - down, 0), np.maximum(down - up, 0)])
        value, (error, over) = self._value(shares, prices), self._of(shares)
        most = error + max(float(over.max()), 0) / self.bound
        answer = self.answer(prices)
        alone = np.zeros(len(self.errors))
        alone[answer] = 1.0
        return max(value - self._value(alone, prices), most - value)

    def _of(self, shares: np.ndarray) -> tuple[float, np.ndarray]:
        """The error of a mixture, and how far each constraint is over its bound."""
        count = len(shares)
        over = shares @ np.array(self.violations[:count]) - self.bound
        return float(shares @ np.array(self.errors[:count])), over

    def _value(self, shares: np.ndarray, prices: np.ndarray) -> float:
        error, over = self._of(shares)
        return error + float(prices @ over)

    def solved(self) -> tuple[np.ndarray, np.ndarray]:
        """The best mixture of the classifiers so far, and the prices at which it is."""
        count = len(self.errors)
        over = np.array(self.violations).T - self.bound
        found = scipy.optimize.linprog(
            np.append(self.errors, 1 / self.bound),
            A_ub=np.hstack([over, -np.ones((self.count, 1))]),
            b_ub=np.zeros(self.count),
            A_eq=np.append(np.ones(count), 0.0)[None],
            b_eq=[1.0],
            method="highs-ds",
        )
        return np.maximum(found.x[:-1], 0), -found.ineqlin.marginals

    def mixture(self, gap: float, shares: np.ndarray) -> Mixture:
        """The members that are drawn at all."""
        kept = np.flatnonzero(shares > SAME)
        shares = shares / shares[kept].sum()
        error, over = self._of(shares)
        members = tuple(self.members[k] for k in kept)
        own = tuple(shares[kept].tolist())
        return Mixture(members, own, error, float(over.max()) + self.bound, gap, self.fits)
