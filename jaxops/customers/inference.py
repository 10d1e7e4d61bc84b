"""What a fitted base of customers tells: who is alive, how often they will buy, what they bring."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxops._optional import require
from jaxops.customers.cutoffs import Summary
from jaxops.customers.tasks import Estimate
from jaxops.model.finished import Model, Program, frame, inside
from jaxops.task import Array, Batch, Column, recorded


class Outlook(NamedTuple):
    """What is expected of C customers within a horizon.

    Attributes:
        ids: (C,) the customers.
        alive: float32 (C,), the probability that the customer still buys at all.
        returns: float32 (C,), the probability of a purchase within the horizon; 1 less that of
            churn.
        purchases: float32 (C,), the expected number of purchases; discounted if that was asked for.
        value: float64 (C,), the expected amount of these purchases; None without amounts.

    >>> one = Outlook(np.array(["a"]), *np.array([[0.5], [0.4], [2.0]]), None)
    >>> one.frame().columns.tolist()
    ['id', 'alive', 'returns', 'purchases']
    """

    ids: np.ndarray
    alive: np.ndarray
    returns: np.ndarray
    purchases: np.ndarray
    value: np.ndarray | None

    def frame(self) -> Any:
        """One row a customer."""
        rest = {name: x for name, x in self._asdict().items() if name != "ids" and x is not None}
        return frame({"id": self.ids, **rest})


@recorded
@dataclass(frozen=True, eq=False)
class CustomerBase:
    """Fitted closed forms of how often customers buy and what they spend.

    Attributes:
        method: of purchases, such as `BGNBD()`.
        params: (K,) its parameters, in the order of `method.names`, then the factors of the
            covariates.
        covariance: (K, K) of their logarithms.
        spend: of amounts, such as `GammaGamma()`; None without amounts.
        spend_params: its parameters, or None.
        spend_covariance: of their logarithms, or None.
        covariates: the names of columns by which the pace of customers differs; see `estimate`.

    >>> from jaxops.customers import BGNBD
    >>> base = CustomerBase(BGNBD(), np.array([0.243, 4.414, 0.793, 2.426]), np.eye(4))
    >>> base.of_purchases["alpha"]
    4.414
    """

    method: Any
    params: np.ndarray
    covariance: np.ndarray
    spend: Any = None
    spend_params: np.ndarray | None = None
    spend_covariance: np.ndarray | None = None
    covariates: tuple[str, ...] = ()

    @property
    def of_purchases(self) -> dict[str, float]:
        """The parameters of `method` by name."""
        return dict(zip(self.method.names, self.params.tolist(), strict=False))

    @property
    def of_spend(self) -> dict[str, float]:
        """The parameters of `spend` by name."""
        if self.spend is None or self.spend_params is None:
            raise ValueError("model must be of a log with amounts, got one without")
        return dict(zip(self.spend.names, self.spend_params.tolist(), strict=True))

    def estimates(self) -> Any:
        """A frame of all parameters: name, value, standard error, and a 95 % interval."""
        pd = require("pandas", extra="data")

        names = (*self.method.names, *self.covariates)
        frames = [Estimate(names, self.params, self.covariance, np.nan, 0).frame()]
        if self.spend_params is not None and self.spend_covariance is not None:
            given = self.spend.names, self.spend_params, self.spend_covariance
            frames.append(Estimate(*given, np.nan, 0).frame())
        return pd.concat(frames, ignore_index=True)

    def pace(self, covariates: Mapping[str, np.ndarray] | None) -> Any:
        """By what the customers' clocks differ, (N,); 1 without covariates.

        Raises:
            ValueError: covariates for a model without, or none for one with them.
        """
        given = tuple(covariates or ())
        if set(given) != set(self.covariates):
            raise ValueError(
                f"covariates must be {', '.join(self.covariates) or 'None'}, as in training, got "
                f"{', '.join(given) or 'None'}"
            )
        factors = self.params[len(self.method.names) :]
        named = zip(self.covariates, np.log(factors), strict=True)
        return np.exp(sum(np.asarray((covariates or {})[n], np.float64) * f for n, f in named))

    def exported(self) -> Program:
        """What is expected of customers within a horizon, without a discount, for `jaxops.export`.

        Raises:
            ValueError: a method that is no function of each customer.
        """
        if not hasattr(self.method, "exported"):
            raise ValueError(
                "model must be of BGNBD, MBGNBD or ParetoNBD to be exported, got "
                f"{type(self.method).__name__}; predict with jaxops, or fit one of these"
            )
        own = self.of_purchases
        # covariates may be far from 0; then alpha and the clocks are out of the range of float32
        unit = own["alpha"] if self.covariates else 1.0
        own |= {name: own[name] / unit for name in self.method.scaled}
        function, arrays, counts = self.method.exported(own)
        params = {"method": arrays}
        columns = [Column("frequency", (), "int", classes=counts)]
        columns += [Column(name, ()) for name in ("recency", "T", "horizon")]
        if self.spend is not None:
            of_spend = self.of_spend
            # q - 1 would lose digits in float32
            params["spend"] = {"p": of_spend["p"], "q - 1": of_spend["q"] - 1, "v": of_spend["v"]}
            columns.append(Column("monetary_value", ()))

        def outlook(params: Any, columns: Batch) -> dict[str, Array]:
            x = columns["frequency"].astype(jnp.float32)
            times = (columns[name] for name in ("recency", "T", "horizon"))
            alive, again, bought = function(params["method"], x, *times)
            found = {"alive": alive, "returns": again, "purchases": bought}
            if "spend" in params:
                p, q_less_1, v = (params["spend"][name] for name in ("p", "q - 1", "v"))
                mean = p * (v + x * columns["monetary_value"]) / (p * x + q_less_1)
                found["value"] = bought * mean
            return found

        factors = np.log(self.params[len(self.method.names) :]).tolist()
        covariates = dict(zip(self.covariates, factors, strict=True))
        reader = {
            "amounts": self.spend is not None,
            "covariates": covariates,
            "log_unit": float(np.log(unit)),
        }
        return Program(outlook, params, tuple(columns), reader)


def base_of(model: Model | CustomerBase) -> CustomerBase:
    """The customer base itself, or the one in a finished model.

    Raises:
        ValueError: a model of another room.
    """
    found: CustomerBase = inside(
        model, lambda part: isinstance(part, CustomerBase), "of the customers room"
    )
    return found


def outlook(
    model: Model | CustomerBase,
    known: Summary,
    horizon: float,
    discount: float = 0.0,
    covariates: Mapping[str, np.ndarray] | None = None,
) -> Outlook:
    """P(alive), P(buys again), expected purchases and value of any customers, in training or not.

    The value is the expected number of purchases times the expected amount of one; repeat purchases
    of amount 0 count as such. With a discount and an infinite horizon it is the discounted expected
    residual lifetime value. Customers are computed in blocks, so that millions fit.

    Args:
        model: of `fit`.
        known: see `summary`, of the same unit of time as in training.
        horizon: length of the time after the cut-off, in units; infinite only with a discount.
        discount: the continuous rate per unit by which money counts less: log(1 + interest).
        covariates: (C,) each by name, where the model has some.

    Raises:
        ValueError: a summary that cannot be; a horizon or discount out of range; a summary without
            amounts for a model with them.

    >>> from jaxops import customers
    >>> base = CustomerBase(customers.BGNBD(), np.array([0.243, 4.414, 0.793, 2.426]), np.eye(4))
    >>> one = Summary(np.array(["a"]), np.array([2.0]), np.array([30.43]), np.array([38.86]), None)
    >>> print(f"{customers.outlook(base, one, horizon=39).purchases[0]:.3f}")
    1.226
    """
    base = base_of(model)
    if not discount >= 0:
        raise ValueError(f"discount must be at least 0, got {discount}")
    if not horizon > 0 or (np.isinf(horizon) and not discount):
        raise ValueError(f"horizon must be above 0, and finite without a discount, got {horizon}")
    known.check()
    columns = (np.asarray(x, np.float64) for x in (known.frequency, known.recency, known.T))
    x, recency, T = columns
    pace, params = base.pace(covariates), base.of_purchases
    usual = np.exp(np.log(pace).mean())  # no covariate need be near 0; clocks are near 1 then
    params |= {name: params[name] / usual for name in base.method.scaled}
    pace = pace / usual
    times = recency * pace, T * pace, horizon * pace, discount / pace
    alive, again, bought = base.method.outlook(params, x, *times)
    value = None
    if base.spend is not None:
        if known.monetary_value is None:
            raise ValueError("monetary_value must be given, as the model has amounts, got None")
        mean = np.asarray(known.monetary_value, np.float64)
        value = bought * base.spend.mean(base.of_spend, x, mean)
    return Outlook(np.asarray(known.ids), alive, again, bought, value)


def expected_purchases(model: Model | CustomerBase, times: Any) -> np.ndarray:
    """The expected purchases after the first of a customer of whom nothing is known yet.

    Covariates are taken to be 0, here and in `purchase_probability`.

    Args:
        model: of `fit`.
        times: (M,) lengths of time after the first purchase, in units, at least 0.

    Returns:
        (M,) float64.

    Raises:
        ValueError: a time below 0.

    >>> from jaxops import customers
    >>> base = CustomerBase(customers.BGNBD(), np.array([0.243, 4.414, 0.793, 2.426]), np.eye(4))
    >>> print(f"{customers.expected_purchases(base, [39.0])[0]:.3f}")
    1.197
    """
    times = np.asarray(times, np.float64)
    if not (times >= 0).all():
        raise ValueError(f"times must be at least 0, got {times.min()}")
    base = base_of(model)
    return np.asarray(base.method.population(base.of_purchases, times))


def purchase_probability(model: Model | CustomerBase, n: Any, time: float) -> np.ndarray:
    """The probability that a new customer buys n times within a time after the first purchase.

    Args:
        model: of `fit`.
        n: (M,) whole numbers of at least 0.
        time: length of the time, in units, above 0.

    Returns:
        (M,) float64.

    Raises:
        ValueError: a number or a time out of range.

    >>> from jaxops import customers
    >>> base = CustomerBase(customers.BGNBD(), np.array([0.243, 4.414, 0.793, 2.426]), np.eye(4))
    >>> round(float(customers.purchase_probability(base, np.arange(60), 39.0).sum()), 3)
    1.0
    """
    n = np.asarray(n)
    if not ((n >= 0) & (n == np.round(n))).all() or not time > 0:
        raise ValueError(
            f"n must be whole numbers of at least 0 and time above 0, got {n} and {time}"
        )
    base = base_of(model)
    return np.asarray(base.method.probability(base.of_purchases, n, time))
