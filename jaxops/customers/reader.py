"""The reader that a file of a finished customer base keeps: how a user's log is read."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxops.customers.cutoffs import Summary, summary
from jaxops.customers.data import Period, Purchases, Refunds, covariates_of, purchases
from jaxops.customers.inference import Outlook, outlook
from jaxops.data.tables import Source
from jaxops.model.finished import Model, inside
from jaxops.task import recorded


@recorded
@dataclass(frozen=True)
class LogReader:
    """What a finished customer base knows of its logs.

    Attributes:
        customer: the column of ids.
        time: the column of times.
        amount: the column of amounts, or None.
        period: within which a customer's rows are one purchase; None where times are numbers.
        refunds: what to do with negative amounts; see `purchases`.
        unit: of time; see `summary`.
        cutoff: the last period that training saw, a date or a number.
        horizon: units ahead that `predict` and `evaluate` tell by default.

    >>> reader = LogReader(customer="who", time="day", period="day", unit="week")
    >>> log = reader.purchases({"who": ["a", "a"], "day": ["2024-01-01", "2024-01-15"]})
    >>> reader.summary(log).recency.tolist()
    [2.0]
    """

    room: ClassVar[str] = "customers"
    customer: str = "customer"
    time: str = "time"
    amount: str | None = None
    period: Period | None = None
    refunds: Refunds = "error"
    unit: Period | None = None
    cutoff: str | float | None = None
    horizon: float = 1.0

    def purchases(self, source: Source | Purchases) -> Purchases:
        """A log; see `purchases`.

        Raises:
            ValueError: a log of another period than that of training.
        """
        if isinstance(source, Purchases):
            log = source
        else:
            log = purchases(
                source,
                customer=self.customer,
                time=self.time,
                amount=self.amount,
                period=self.period,
                refunds=self.refunds,
            )
        if log.period != self.period:
            raise ValueError(
                f"log must have the period {self.period!r}, as in training, got {log.period!r}"
            )
        return log

    def summary(self, source: Source | Purchases | Summary, cutoff: Any = None) -> Summary:
        """The customers of a log at a cut-off, by default that of training.

        Raises:
            ValueError: a cut-off for a `Summary`, which has its own; no cut-off for a log that goes
                on after that of training.
        """
        if isinstance(source, Summary):
            if cutoff is not None:
                raise ValueError(f"cutoff must be None for a Summary, got {cutoff!r}")
            return source
        log = self.purchases(source)
        last = log.time.max()
        if cutoff is None and self.cutoff is not None and last > log.at(self.cutoff):
            raise ValueError(
                f"cutoff must be given, as the log goes on to {log.date(last)}, after that of "
                f"training ({self.cutoff}), got None"
            )
        return summary(log, self.cutoff if cutoff is None else cutoff, self.unit)

    def predict(
        self,
        model: Model,
        data: Source | Purchases | Summary,
        horizon: float | None = None,
        discount: float = 0.0,
        cutoff: Any = None,
        covariates: Source | None = None,
    ) -> Outlook:
        """What is expected of each customer; see `outlook`.

        Args:
            model: the model.
            data: a log, see `purchases`; or a `Summary` in the unit of training.
            horizon: units ahead; by default that of training.
            discount: see `outlook`.
            cutoff: the last period that is seen, by default that of training; a log that goes on
                after that needs one.
            covariates: a table of the customers, where the model has covariates.
        """
        ahead = self.horizon if horizon is None else horizon
        known = self.summary(data, cutoff)
        given = self.covariates(covariates, known.ids)
        return outlook(model, known, ahead, discount, given)

    def covariates(self, source: Source | None, ids: np.ndarray) -> dict[str, np.ndarray] | None:
        """The columns of a table of customers, in the order of the ids; see `covariates_of`."""
        return None if source is None else covariates_of(source, self.customer, ids)

    def exported(self, model: Model) -> dict[str, Any]:
        """What `jaxops.model.exported.customers` is to know: it reads what a `Summary` has."""
        return {"kind": "customers", "horizon": self.horizon}

    def describe(self) -> dict[str, str]:
        """What it reads, for people."""
        given = {"customer": self.customer, "time": self.time, "amount": self.amount or ""}
        unit = self.unit or self.period or "day, or that of the numbers"
        return given | {"unit": unit, "cutoff": str(self.cutoff), "horizon": f"{self.horizon:g}"}


def reader_of(model: Model) -> LogReader:
    """The reader of a model of this room.

    Raises:
        ValueError: a model of another room.
    """
    found: LogReader = inside(
        model, lambda part: isinstance(part, LogReader), "of the customers room"
    )
    return found
