"""One call a job: `fit` a customer base to a log, and `evaluate` it on what came after."""

from dataclasses import replace
from typing import Any

import numpy as np

from jaxops.customers.cutoffs import outcome, summary
from jaxops.customers.data import Period, Purchases, Refunds, purchases
from jaxops.customers.inference import CustomerBase, outlook
from jaxops.customers.measures import normalized_gini, value_scores
from jaxops.customers.models.beta_geometric import BGNBD
from jaxops.customers.models.gamma_gamma import GammaGamma
from jaxops.customers.reader import LogReader, reader_of
from jaxops.customers.tasks import estimate
from jaxops.data.tables import Source
from jaxops.model.finished import Model, fingerprint
from jaxops.trust.evaluation import Evaluation


def fit(
    data: Source | Purchases,
    method: Any = None,
    *,
    horizon: float,
    customer: str = "customer",
    time: str = "time",
    amount: str | None = None,
    cutoff: Any = None,
    unit: Period | None = None,
    period: Period | None = None,
    refunds: Refunds = "error",
    covariates: Source | None = None,
) -> Model:
    """Fit to a log how often its customers buy, whether they still do, and what they bring.

    Purchases are of `BGNBD`, amounts of `GammaGamma`, which is fitted to the customers with a
    purchase after the first and a mean amount above 0.

    Args:
        data: a log of events; see `purchases`. `Purchases` know their columns and period.
        method: of purchases: `BGNBD()`, `MBGNBD()`, `ParetoNBD()` or `BGBB()`.
        horizon: units ahead that `predict` and `evaluate` tell by default, above 0.
        customer: the column of ids.
        time: the column of times.
        amount: the column of amounts; without it no value is told.
        cutoff: the last period that is seen; by default that of the last purchase. What comes later
            is not used, and is there for `evaluate`.
        unit: of time, by default days: "hour", "day", "week", "month" or "year".
        period: within which a customer's rows are one purchase; see `purchases`.
        refunds: what to do with negative amounts; see `purchases`.
        covariates: a table with the column `customer` and columns of numbers that do not change
            with time, which multiply the pace of a customer; see `estimate`. `predict` and
            `evaluate` then need such a table too. Not for `BGBB`.

    Returns:
        A model; `model.predict(log)` gives an `Outlook`. `about` has the log-likelihood, and with
        amounts the correlation of frequency and mean amount, which `GammaGamma` takes to be 0.

    Raises:
        ValueError: a log that cannot be read, with column and row; no customer with a second
            purchase; amounts whose mean is infinite.

    Warns:
        UserWarning: the likelihood has no maximum at finite parameters.

    >>> import jaxops as jo
    >>> rng = np.random.default_rng(0)
    >>> born, rate = rng.uniform(0, 50, 300), rng.gamma(0.8, 0.1, 300)
    >>> gaps = rng.exponential(1 / rate[:, None], (300, 40))
    >>> times = born[:, None] + np.cumsum(np.append(0 * born[:, None], gaps, 1), 1)
    >>> leaves = rng.uniform(size=(300, 39)) < rng.beta(1, 4, (300, 1))
    >>> alive = np.cumprod(np.append(np.ones((300, 2)), 1 - leaves, 1), 1)
    >>> kept = (times < 100) & (alive > 0)
    >>> log = {"customer": np.repeat(np.arange(300), kept.sum(1)), "time": times[kept]}
    >>> model = fit(log, horizon=30, cutoff=70)
    >>> scored = evaluate(model, log, end=100)
    >>> bool(abs(scored.parts["expected"].sum() / scored.parts["actual"].sum() - 1) < 0.3)
    True
    """
    if not horizon > 0 or not np.isfinite(horizon):
        raise ValueError(f"horizon must be finite and above 0, got {horizon}")
    log = purchases(
        data, customer=customer, time=time, amount=amount, period=period, refunds=refunds
    )
    until = log.at(cutoff)
    known = summary(log, cutoff, unit)
    again = known.frequency > 0
    if not again.any():
        raise ValueError(
            f"data must have a customer with a second purchase up to {log.date(until)}, got "
            f"{len(again):,} customers with one each"
        )
    method = BGNBD() if method is None else method
    seen = float(until) if log.period is None else log.date(until)
    read = LogReader(*log.names, log.period, log.refunds, unit, seen, float(horizon))
    given = read.covariates(covariates, known.ids)
    if given and not method.scaled:
        raise ValueError(f"covariates must be None for {type(method).__name__}, got a table")
    found = estimate(method, known.frequency, known.recency, known.T, covariates=given)
    names = tuple(given or ())
    base = CustomerBase(method, found.values, found.covariance, covariates=names)
    about: dict[str, Any] = {
        "data": fingerprint({"x": known.frequency, "recency": known.recency, "T": known.T}),
        "customers": len(again),
        "customers with a second purchase": int(again.sum()),
        "log_likelihood": found.log_likelihood,
    }
    if known.monetary_value is not None:
        spent = again & (known.monetary_value > 0)
        base, of_spend = _with_spend(base, known.frequency[spent], known.monetary_value[spent])
        about |= of_spend
    return Model(base, None, read, about)


def _with_spend(
    base: CustomerBase, x: np.ndarray, mean: np.ndarray
) -> tuple[CustomerBase, dict[str, float]]:
    if len(x) == 0:
        raise ValueError(
            "amount must be above 0 in a customer's second purchase or later, got none"
        )
    found = estimate(GammaGamma(), x, mean)
    q = found.values[1]
    if q <= 1:
        raise ValueError(
            f"amount must have a finite mean over customers (q above 1), got q {q:.3g}; a few very "
            "large amounts do this: bound them, or fit without amount"
        )
    both = len(x) > 1 and np.ptp(x) > 0 and np.ptp(mean) > 0
    about = {
        "log_likelihood of amounts": found.log_likelihood,
        "correlation of frequency and mean amount": float(np.corrcoef(x, mean)[0, 1])
        if both
        else 0,
    }
    made = replace(
        base,
        spend=GammaGamma(),
        spend_params=found.values,
        spend_covariance=found.covariance,
    )
    return made, about


def evaluate(
    model: Model,
    data: Source | Purchases,
    *,
    cutoff: Any = None,
    horizon: float | None = None,
    end: Any = None,
    covariates: Source | None = None,
) -> Evaluation:
    """Compare what is expected of each customer with what came after a cut-off.

    Args:
        model: of `fit`.
        data: a log that goes on to the cut-off plus the horizon.
        cutoff: the last period that is seen; by default that of training.
        horizon: units ahead; by default that of training.
        end: the last period that the log covers; by default that of its last purchase.
        covariates: a table of the customers, where the model has covariates.

    Returns:
        `value_scores` of the value, or of the number of purchases without amounts; and, with
        amounts, "purchases_mae". "return_auc" is the area under the ROC curve of `Outlook.returns`,
        and "return_brier" the mean of its squared errors. The parts are "expected", "actual",
        "alive", "returns", "frequency", "expected_purchases" and "actual_purchases".

    Raises:
        ValueError: a log that cannot be read, that ends too early, or of another period.

    Printing the evaluation draws 500 samples of the customers for each interval. `figures()` draws
    none, and is much faster for many customers.
    """
    reader = reader_of(model)
    log = reader.purchases(data)
    ahead = reader.horizon if horizon is None else horizon
    cutoff = reader.cutoff if cutoff is None else cutoff
    known = summary(log, cutoff, reader.unit)
    until, per = log.at(cutoff), log.per_unit(reader.unit)
    low, high = outcome(log, until, ahead, 0.0, per, log.at(end, "end"))
    there = log.counts(until) > 0
    told = outlook(model, known, ahead, covariates=reader.covariates(covariates, known.ids))
    bought = (high - low)[there].astype(np.float64)
    money = bought if told.value is None else log.money(low, high)[there]
    of_value = value_scores(known.ids, told.purchases if told.value is None else told.value, money)
    returned, again = (bought > 0).astype(np.float64), told.returns.astype(np.float64)
    values = {"return_brier": (again - returned) ** 2}
    if told.value is not None:
        values["purchases_mae"] = np.abs(told.purchases - bought)

    def auc(rows: np.ndarray) -> float:
        return (normalized_gini(again[rows], returned[rows]) + 1) / 2

    parts = {
        "alive": told.alive,
        "returns": again,
        "frequency": known.frequency,
        "expected_purchases": told.purchases.astype(np.float64),
        "actual_purchases": bought,
    }
    return replace(
        of_value,
        values=of_value.values | values,
        wholes=of_value.wholes | {"return_auc": auc},
        smaller=of_value.smaller | values.keys(),
        parts=of_value.parts | parts,
    )
