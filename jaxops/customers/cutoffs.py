"""Customers at a cut-off: summaries, labelled snapshots and histories.

The cut-off is the last period that is seen; nothing but a label is of later purchases.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxops.customers.data import Period, Purchases
from jaxops.model.exported.customers import check_customers
from jaxops.model.finished import frame

Label = Literal["value", "purchases", "returned", "time"]


class Summary(NamedTuple):
    """What the closed forms read of C customers: recency, frequency, age and monetary value.

    Attributes:
        ids: (C,) the customers.
        frequency: (C,) float64, the number of purchases after the first.
        recency: (C,) float64, time from the first purchase to the last, in units.
        T: (C,) float64, time from the first purchase to the cut-off: the customer's age.
        monetary_value: (C,) float64, the mean amount of the purchases after the first, 0 where
            there are none; None without amounts.

    >>> one = Summary(np.array(["a"]), np.ones(1), np.array([3.0]), np.array([9.0]), None)
    >>> one.frame().columns.tolist()
    ['id', 'frequency', 'recency', 'T']
    """

    ids: np.ndarray
    frequency: np.ndarray
    recency: np.ndarray
    T: np.ndarray
    monetary_value: np.ndarray | None

    def frame(self) -> Any:
        """One row a customer."""
        rest = {name: x for name, x in self._asdict().items() if name != "ids" and x is not None}
        return frame({"id": self.ids, **rest})

    def check(self) -> None:
        """Check that the columns can be those of customers.

        Raises:
            ValueError: other lengths, or a row that cannot be; names column and row.
        """
        given = {n: np.asarray(x) for n, x in self._asdict().items() if x is not None}
        for name, value in given.items():
            if value.shape != np.shape(self.ids):
                raise ValueError(
                    f"{name} must have shape {np.shape(self.ids)}, as ids, got {value.shape}"
                )
        check_customers({name: value for name, value in given.items() if name != "ids"})


def summary(log: Purchases, cutoff: Any = None, unit: Period | None = None) -> Summary:
    """Recency, frequency, age and monetary value of the customers known at a cut-off.

    These are the numbers of `summary_data_from_transaction_data` of the package lifetimes.

    Args:
        log: see `purchases`.
        cutoff: the last period that is seen, as a date (of a week, month or year its last day); by
            default that of the last purchase.
        unit: of recency and T, by default days.

    Raises:
        ValueError: a cut-off before all purchases; a unit that does not fit the log's period.

    >>> from jaxops import customers
    >>> table = {"customer": ["a"] * 3, "time": [0.0, 4.0, 9.0], "paid": [1.0, 2.0, 4.0]}
    >>> log = customers.purchases(table, amount="paid")
    >>> print(summary(log, cutoff=10).frame().to_string(index=False))
    id  frequency  recency    T  monetary_value
     a        2.0      9.0 10.0             3.0
    """
    until, per = log.at(cutoff), log.per_unit(unit)
    counts = log.counts(until)
    known = _known(log, counts, until)
    start, n = log.starts[:-1][known], counts[known]
    first, last = log.time[start], log.time[start + n - 1]
    value = None
    if log.amount is not None:
        value = log.money(np.minimum(counts, 1), counts)[known] / np.maximum(n - 1, 1)
    recency, age = (last - first) / per, (until - first) / per
    return Summary(log.customers[known], (n - 1).astype(np.float64), recency, age, value)


def _known(log: Purchases, counts: np.ndarray, until: Any) -> np.ndarray:
    known = counts > 0
    if not known.any():
        raise ValueError(
            f"cutoff must be at least {log.date(log.time.min())} (the first purchase), got "
            f"{log.date(until)}"
        )
    return known


def outcome(
    log: Purchases, until: Any, horizon: float, gap: float, per: float, end: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The first and last number of each customer's purchases in the time after a cut-off.

    Args:
        log: the purchases.
        until: the cut-off, as a time of the log.
        horizon: length of the time, in units.
        gap: units left out between the cut-off and that time.
        per: periods in a unit.
        end: the last period that the log covers.

    Raises:
        ValueError: a time that the log does not cover.
    """
    low, high = _ahead(until, horizon, gap, per)
    if high > end:
        raise ValueError(
            f"cutoff must be at most {log.date(end - (gap + horizon) * per)} (gap and horizon "
            f"before {log.date(end)}, the log's end), got {log.date(until)}"
        )
    return log.counts(low), log.counts(high)


def _ahead(until: Any, horizon: float, gap: float, per: float) -> tuple[Any, Any]:
    """When the time after a cut-off begins, and when it ends."""
    for name, value, least in (("horizon", horizon, "above 0"), ("gap", gap, "at least 0")):
        if not (value > 0 or (name == "gap" and value == 0)) or not np.isfinite(value):
            raise ValueError(f"{name} must be finite and {least}, got {value}")
    low = until + gap * per
    return low, low + horizon * per


def snapshots(
    log: Purchases,
    cutoffs: Sequence[Any],
    horizon: float,
    *,
    label: Label = "value",
    gap: float = 0.0,
    windows: Sequence[float] | None = None,
    unit: Period | None = None,
    end: Any = None,
) -> dict[str, np.ndarray]:
    """Customers as they were at each cut-off, and what they did after it: a table to learn from.

    A row is a customer known at a cut-off. All columns but the label are of purchases up to the
    cut-off. With several cut-offs a customer has several rows: keep them together in validation,
    as with `tabular.fit(table, label="value", groups="customer", drop=["cutoff"])`. What is learned
    is tested honestly on a cut-off at or after the last one of training plus gap and horizon; on an
    earlier one, labels of training are of the time that is told.

    The label "time" makes a table for `survival.fit(table, time="time", event="returned")`: the
    time until the first purchase after the cut-off, and whether it was seen. A customer who did not
    come back within the horizon, or by the end of the log, is censored there. So late cut-offs
    serve as well, whose time is not over yet; with the cut-off of the test as `end` nothing of what
    is told is in training. The survival curve at t is the probability that a customer stays away
    for t: that of churn, where leaving is not seen.

    Args:
        log: see `purchases`.
        cutoffs: the last periods that are seen, as dates.
        horizon: the time over which the label is counted, in units.
        label: "value" (the amount of the purchases), "purchases" (their number), "returned"
            (whether there was one; a customer who did not return has churned), or "time", of which
            there are two columns, "time" and "returned".
        gap: units between the cut-off and the time of the label, in which an action takes effect.
        windows: lengths of time before the cut-off whose purchases are counted on their own, by
            default a quarter of the horizon, a half, and the horizon; distinct and above 0.
        unit: of all times, by default days.
        end: the last period that the log covers; by default that of its last purchase.

    Returns:
        Columns: "customer", "cutoff", features, and the label.

    Raises:
        ValueError: a cut-off with no customer before it, or whose time of the label is not in the
            log (of "time" no part of it); cut-offs or windows that are repeated; a label that needs
            amounts.

    >>> from jaxops import customers
    >>> log = customers.purchases({"customer": list("aaab"), "time": [0.0, 2.0, 11.0, 5.0]})
    >>> table = snapshots(log, [4, 6], horizon=5, label="returned", windows=[3])
    >>> table["customer"].tolist(), table["purchases in 3"].tolist(), table["returned"].tolist()
    (['a', 'a', 'b'], [1, 0, 1], [False, True, False])
    >>> spells = snapshots(log, [4, 6, 9], horizon=5, label="time")
    >>> spells["time"].tolist(), spells["returned"].tolist()
    ([5.0, 5.0, 5.0, 2.0, 2.0], [False, True, False, True, False])
    """
    if label not in ("value", "purchases", "returned", "time"):
        raise ValueError(f'label must be "value", "purchases", "returned" or "time", got {label!r}')
    if label == "value" and log.amount is None:
        raise ValueError('label must be another without amounts, got "value"')
    if isinstance(cutoffs, str) or len(cutoffs) == 0:
        raise ValueError(f"cutoffs must be a list of at least 1 date, got {cutoffs!r}")
    per = log.per_unit(unit)
    lengths = [horizon / 4, horizon / 2, horizon] if windows is None else list(windows)
    names = [f"{length:g}" for length in lengths]
    fine = all(0 < x < np.inf for x in lengths) and len(set(names)) == len(names)
    if windows is not None and not fine:
        raise ValueError(f"windows must be finite, above 0 and distinct, got {', '.join(names)}")
    last, times = log.at(end, "end"), [log.at(c, "cutoffs") for c in cutoffs]
    if len(set(times)) < len(times):
        raise ValueError(f"cutoffs must be distinct, got {', '.join(map(log.date, times))}")
    tables = [_snapshot(log, time, horizon, label, gap, lengths, per, last) for time in times]
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def _snapshot(
    log: Purchases, until: Any, horizon: float, label: Label, gap: float, windows: list[float],
    per: float, end: Any,
) -> dict[str, np.ndarray]:  # fmt: skip
    counts = log.counts(until)
    known = _known(log, counts, until)
    start, n = log.starts[:-1][known], counts[known]
    first, last = log.time[start], log.time[start + n - 1]
    recency, age = (last - first) / per, (until - first) / per
    at: Any = until if log.period is None else log.date(until)
    table = {
        "customer": log.customers[known],
        "cutoff": np.full(len(n), at, float if log.period is None else object),
        "frequency": n - 1,
        "recency": recency,
        "age": age,
        "since last": age - recency,
        "mean gap": np.where(n > 1, recency / np.maximum(n - 1, 1), np.nan),
    }
    zero = np.zeros_like(counts)
    if log.amount is not None:
        table["total amount"] = log.money(zero, counts)[known]
        table["mean amount"] = table["total amount"] / n
        table["first amount"], table["last amount"] = log.amount[start], log.amount[start + n - 1]
    for length in windows:
        before = log.counts(until - length * per)
        table[f"purchases in {length:g}"] = (counts - before)[known]
        if log.amount is not None:
            table[f"amount in {length:g}"] = log.money(before, counts)[known]
    if label == "time":
        return table | _until_next(log, known, until, horizon, gap, per, end)
    low, high = outcome(log, until, horizon, gap, per, end)
    if label == "value":
        table["value"] = log.money(low, high)[known]
    else:
        number = (high - low)[known]
        table[label] = number if label == "purchases" else number > 0
    return table


def _until_next(
    log: Purchases, known: np.ndarray, until: Any, horizon: float, gap: float, per: float, end: Any
) -> dict[str, np.ndarray]:
    """The time until each customer's first purchase in the time after a cut-off, censored."""
    low, high = _ahead(until, horizon, gap, per)
    if low >= end:
        raise ValueError(
            f"cutoffs must be before {log.date(end - gap * per)} (gap before {log.date(end)}, the "
            f"log's end), got {log.date(until)}"
        )
    following = (log.starts[:-1] + log.counts(low))[known]
    there = following < log.starts[1:][known]
    last = min(high, end)
    when = np.where(there, np.append(log.time, last)[following], np.inf)
    return {"time": (np.minimum(when, last) - low) / per, "returned": when <= last}


class Histories(NamedTuple):
    """The purchases of C customers before a cut-off, oldest first, for models of sequences.

    Attributes:
        ids: (C,) the customers.
        starts: (C + 1,) int64: customer c has the purchases starts[c] to starts[c + 1].
        before: (P,) float64, how long before the cut-off, in units.
        amount: (P,) float64, or None.

    >>> one = Histories(np.array(["a"]), np.array([0, 2]), np.array([9.0, 1.0]), None)
    >>> one.of(0)[0].tolist()
    [9.0, 1.0]
    """

    ids: np.ndarray
    starts: np.ndarray
    before: np.ndarray
    amount: np.ndarray | None

    def of(self, customer: int) -> tuple[np.ndarray, np.ndarray | None]:
        """`before` and `amount` of the customer of that number."""
        rows = slice(self.starts[customer], self.starts[customer + 1])
        return self.before[rows], None if self.amount is None else self.amount[rows]


def histories(log: Purchases, cutoff: Any = None, unit: Period | None = None) -> Histories:
    """The purchases up to a cut-off, by customer; of the customers that `summary` has.

    Args:
        log: see `purchases`.
        cutoff: the last period that is seen; see `summary`.
        unit: of time, by default days.

    Raises:
        ValueError: see `summary`.

    >>> from jaxops import customers
    >>> log = customers.purchases({"customer": list("aab"), "time": [0.0, 4.0, 9.0]})
    >>> histories(log, cutoff=5).before.tolist()
    [5.0, 1.0]
    """
    until, per = log.at(cutoff), log.per_unit(unit)
    counts = log.counts(until)
    known = _known(log, counts, until)
    seen = log.time <= until
    starts = np.concatenate([[0], np.cumsum(counts[known])])
    before = (until - log.time[seen]) / per
    amount = None if log.amount is None else log.amount[seen]
    return Histories(log.customers[known], starts, before, amount)
