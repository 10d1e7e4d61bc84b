"""The rows at risk at each event, and Cox's partial likelihood with its derivatives, by sorting.

The rows are sorted once. A sum over the rows at risk at an event is then a running sum, read at the
event's place: rows enter it at their time and leave it at their entry, going back in time within a
stratum. A row's sum over the events at which it is at risk is one as well, forward in time. With
w = exp(x b) and the sums S0 of w and S1 of w x over the rows at risk, the negative Hessian is

    sum over rows of A w x x'  -  sum over events of (S1 / S0) (S1 / S0)'

with A the sum of 1 / S0 over the events of a row: two matrix products instead of a running sum of
P x P matrices. Efron's method takes from S0 and S1 of the l-th of m tied events l / m of the sums
over the tied rows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.survival.outcomes import Outcome

Array = jax.Array


class RiskSets(NamedTuple):
    """The order of N rows, M changes of the rows at risk and E events with G distinct times.

    Attributes:
        row: (M,), the row of each change, back in time within a stratum.
        sign: (M,), 1 where it enters the rows at risk, -1 where it leaves them.
        first: (M,), the first change of a stratum.
        event: (E,), the rows with an event, forward in time within a stratum.
        begins: (E,), the first event of a stratum.
        at: (E,), the last change that counts at the event.
        tie: (E,), the number of the event's time.
        share: (E,), l / m of Efron's method, 0 for Breslow's.
        until: (N,), of the events of the row's stratum up to its time, the last, counted from 1; 0
            for none.
        since: (N,), the same of its entry.
        own: (N,), the number of the row's tied events; G for a row without an event.
        sizes: (G,), the number of events at a time.
    """

    row: np.ndarray
    sign: np.ndarray
    first: np.ndarray
    event: np.ndarray
    begins: np.ndarray
    at: np.ndarray
    tie: np.ndarray
    share: np.ndarray
    until: np.ndarray
    since: np.ndarray
    own: np.ndarray
    sizes: np.ndarray


def risk_sets(rows: Outcome, stratum: np.ndarray, efron: bool) -> RiskSets:
    """Sort the rows; see `RiskSets`."""
    N = len(rows.time)
    entry = np.zeros(0) if rows.entry is None else rows.entry
    values, rank = np.unique(np.concatenate([rows.time, entry]), return_inverse=True)
    base = stratum.astype(np.int64) * len(values)
    key, entry_key = base + rank[:N], base[: len(entry)] + rank[N:]
    events = np.flatnonzero(rows.event)
    events = events[np.argsort(key[events], kind="stable")]
    event_key = key[events]
    _, start, tie, sizes = np.unique(
        event_key, return_index=True, return_inverse=True, return_counts=True
    )
    change_key = np.concatenate([key, entry_key])
    order = np.argsort(-change_key, kind="stable")
    row = np.concatenate([np.arange(N), np.arange(len(entry))])[order]
    sign = np.where(order < N, 1.0, -1.0)
    at = np.searchsorted(-change_key[order], -event_key, side="right") - 1
    none = np.searchsorted(event_key, base, side="left")

    def passed(keys: np.ndarray) -> np.ndarray:
        place = np.searchsorted(event_key, keys, side="right")
        return np.where(place > none, place, 0)

    own = np.full(N, len(sizes))
    own[events] = tie
    share = (np.arange(len(events)) - start[tie]) / sizes[tie] * efron
    first = np.diff(stratum[row], prepend=-1) != 0
    begins = np.diff(stratum[events], prepend=-1) != 0
    since = passed(entry_key) if len(entry) else np.zeros(N, np.int64)
    sets = (row, sign, first, events, begins, at, tie, share, passed(key), since, own, sizes)
    return RiskSets(*(x.astype(np.int32) if x.dtype.kind == "i" else x for x in sets))


def _running(xp: Any, values: Any, first: Any) -> Any:
    """The sums (M, K) of the rows of values (M, K) so far, anew from each row that is first."""
    if xp is np:
        total = np.cumsum(values, 0)
        start = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
        return total - (total - values)[start]

    def add(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return a[0] | b[0], jnp.where(b[0], b[1], a[1] + b[1])

    return jax.lax.associative_scan(add, (first[:, None], values))[1]


def of_ties(xp: Any, values: Any, sets: RiskSets) -> Any:
    """The sums (G, K) of values (E, K) over tied events."""
    if xp is np:
        return np.add.reduceat(values, np.cumsum(sets.sizes) - sets.sizes, axis=0)
    return jax.ops.segment_sum(values, sets.tie, len(sets.sizes), indices_are_sorted=True)


def at_risk(xp: Any, values: Any, sets: RiskSets) -> Any:
    """The sums (E, K) of values (N, K) over the rows at risk at each event."""
    sign = sets.sign[:, None].astype(values.dtype)
    return _running(xp, sign * values[sets.row], sets.first)[sets.at]


def of_events(xp: Any, values: Any, sets: RiskSets) -> Any:
    """The sums (N, K) of values (E, K) over the events at which each row is at risk."""
    none = xp.zeros_like(values[:1])
    total = xp.concatenate([none, _running(xp, values, sets.begins)])
    share = sets.share[:, None].astype(values.dtype)
    ties = xp.concatenate([of_ties(xp, values * share, sets), none])
    return total[sets.until] - total[sets.since] - ties[sets.own]


class Slopes(NamedTuple):
    """The log-likelihood and its first derivatives, in the dtype of the features.

    Attributes:
        value: (), the log-likelihood.
        gradient: (P,).
        w: (N,), up to a factor.
        inverse: (E, 1), 1 / S0, up to the same factor.
        hazard: (N,), A.
    """

    value: Any
    gradient: Any
    w: Any
    inverse: Any
    hazard: Any


def slopes(xp: Any, x: Any, sets: RiskSets, b: Any) -> Slopes:
    """See `Slopes`: sums of single numbers."""
    score = x @ b
    largest = score.max()
    w = xp.exp(score - largest)
    inverse = 1 / _of_tied(xp, w[:, None], sets)
    hazard = of_events(xp, inverse, sets)[:, 0]
    value = (score[sets.event] - largest + xp.log(inverse[:, 0])).sum()
    seen = (sets.own < len(sets.sizes)).astype(x.dtype)
    return Slopes(value, (seen - w * hazard) @ x, w, inverse, hazard)


def means(xp: Any, x: Any, sets: RiskSets, at: Slopes) -> Any:
    """S1 / S0 at each event, (E, P)."""
    return _of_tied(xp, at.w[:, None] * x, sets) * at.inverse


def _of_tied(xp: Any, values: Any, sets: RiskSets) -> Any:
    """`at_risk`, less the shares of the tied rows."""
    share = sets.share[:, None].astype(values.dtype)
    ties = of_ties(xp, values[sets.event], sets)[sets.tie]
    return at_risk(xp, values, sets) - share * ties
