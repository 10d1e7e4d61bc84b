"""What a training with noise, and statistics with noise, cost together: epsilon at a delta.

Neighbours are two tables of which one has one row more (add or remove one row). With
`rows_per_user=m` they are two logs of which one has the rows of one user more, at most m of them.
The figures are those of Google's dp-accounting.
"""

import functools
import math
from typing import Any, NamedTuple

import scipy

from jaxops._optional import require

ACCOUNTANTS = ("pld", "rdp")
TOLERANCE = 0.001  # of a noise multiplier that is searched for


class Updates(NamedTuple):
    """The updates of a training: Gaussian mechanisms on Poisson samples of the rows.

    Attributes:
        noise_multiplier: standard deviation of the noise, divided by the clipping norm.
        rate: probability with which each row enters an update, batch_size / rows.
        steps: number of updates.
        rows_per_user: most rows of one user; 1 where every row is protected for itself.

    >>> Updates(noise_multiplier=1.1, rate=0.01, steps=100, rows_per_user=1).steps
    100
    """

    noise_multiplier: float
    rate: float
    steps: int
    rows_per_user: int

    @property
    def mixed(self) -> bool:
        """Whether chance decides how many rows of a user enter an update."""
        return self.rows_per_user > 1 and self.rate < 1


class Pure(NamedTuple):
    """A mechanism that is epsilon-differentially private with delta 0, such as a private count.

    Attributes:
        epsilon: of the mechanism.
    """

    epsilon: float


class Ledger(NamedTuple):
    """What was computed from the same rows, so far; ledgers add up.

    Attributes:
        spent: one entry for each mechanism.

    >>> first, second = Ledger((Pure(0.5),)), Ledger((Pure(0.25),))
    >>> (first + second).spent
    (Pure(epsilon=0.5), Pure(epsilon=0.25))
    """

    spent: tuple[Updates | Pure, ...] = ()

    def __add__(self, other: Any) -> "Ledger":
        """Both, one after the other; the second may depend on the results of the first."""
        if not isinstance(other, Ledger):
            return NotImplemented
        return Ledger(self.spent + other.spent)

    def epsilon(self, delta: float, accountant: str = "pld") -> float:
        """The epsilon that all entries have together, at this delta.

        Args:
            delta: probability in (0, 1), well below 1 / rows.
            accountant: "pld" composes the distributions of the privacy loss (Koskela et al. 2020),
                which is tight; "rdp" adds Rényi divergences (Mironov 2017), which is faster and
                gives a larger epsilon.

        Raises:
            ValueError: delta or the accountant is not one of the above; or the accountant is "rdp"
                for entries that it has no bound for.

        >>> round(training_ledger(noise_multiplier=4.0, rate=1, steps=1).epsilon(1e-5), 2)
        0.93
        """
        _check_delta(delta)
        return float(_spent_on(self, accountant).get_epsilon(delta))


NOTHING = Ledger()


def training_ledger(
    *,
    noise_multiplier: float,
    rate: float,
    steps: int,
    rows_per_user: int = 1,
) -> Ledger:
    """The ledger of a training by DP-SGD with Poisson sampling.

    Args:
        noise_multiplier: standard deviation of the noise on the sum of the clipped gradients,
            divided by the clipping norm.
        rate: probability with which each row enters an update, batch_size / rows.
        steps: number of updates.
        rows_per_user: protects a user with at most so many rows (see `bounded`) instead of one
            row: the number of a user's rows in a step is binomial, and the step is a mixture of
            Gaussian mechanisms (Ganesh 2024, arXiv:2401.10294).

    Raises:
        ValueError: an argument is out of its range, such as a rate above 1.

    >>> training_ledger(noise_multiplier=1.1, rate=256 / 60_000, steps=14_062).spent[0].steps
    14062
    """
    if not (noise_multiplier > 0 and math.isfinite(noise_multiplier)):
        raise ValueError(f"noise_multiplier must be above 0, got {noise_multiplier}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if rows_per_user < 1:
        raise ValueError(f"rows_per_user must be at least 1, got {rows_per_user}")
    if not 0 < rate <= 1:
        raise ValueError(f"rate must be in (0, 1], got {rate}")
    return Ledger((Updates(float(noise_multiplier), float(rate), steps, rows_per_user),))


def epsilon(
    *,
    noise_multiplier: float,
    delta: float,
    rate: float,
    steps: int,
    rows_per_user: int = 1,
    accountant: str = "pld",
) -> float:
    """The epsilon of a training by DP-SGD with Poisson sampling.

    Args:
        noise_multiplier: see `training_ledger`.
        delta: probability in (0, 1), well below 1 / rows.
        rate: see `training_ledger`.
        steps: see `training_ledger`.
        rows_per_user: see `training_ledger`.
        accountant: see `Ledger.epsilon`.

    Raises:
        ValueError: see `training_ledger` and `Ledger.epsilon`.

    The tutorial of TensorFlow Privacy, 60 epochs of MNIST, which prints 3.01 by an older bound:

    >>> rate, steps = 256 / 60_000, 60 * 60_000 // 256
    >>> mnist = dict(noise_multiplier=1.1, delta=1e-5, rate=rate, steps=steps)
    >>> round(epsilon(**mnist, accountant="rdp"), 2), round(epsilon(**mnist), 2)
    (2.6, 2.38)
    """
    ledger = training_ledger(
        noise_multiplier=noise_multiplier, rate=rate, steps=steps, rows_per_user=rows_per_user
    )
    return ledger.epsilon(delta, accountant)


def noise_multiplier(
    *,
    epsilon: float,
    delta: float,
    rate: float,
    steps: int,
    rows_per_user: int = 1,
    accountant: str = "pld",
    beside: Ledger = NOTHING,
) -> float:
    """The least noise with which a training has at most this epsilon, to 0.001.

    Args:
        epsilon: at most this, above 0.
        delta: probability in (0, 1), well below 1 / rows.
        rate: see `training_ledger`.
        steps: see `training_ledger`.
        rows_per_user: see `training_ledger`.
        accountant: see `Ledger.epsilon`.
        beside: what else is computed from the same rows and counts towards epsilon, such as the
            statistics of a reader.

    Raises:
        ValueError: see `training_ledger`; epsilon is not above 0 and finite, or `beside` alone
            exceeds it.

    >>> round(noise_multiplier(epsilon=1.0, delta=1e-5, rate=1, steps=1), 2)
    3.73
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be above 0 and finite, got {epsilon}")
    if beside.spent and beside.epsilon(delta, accountant) >= epsilon:
        raise ValueError(
            f"beside must cost less than {epsilon} (epsilon), got "
            f"{beside.epsilon(delta, accountant):.3f}"
        )

    @functools.cache  # an evaluation takes up to seconds
    def too_much(log_noise: float) -> float:
        trained = training_ledger(
            noise_multiplier=math.exp(log_noise),
            rate=rate,
            steps=steps,
            rows_per_user=rows_per_user,
        )
        return math.log(max((beside + trained).epsilon(delta, accountant), 1e-9) / epsilon)

    # between logarithms the curve is nearly a straight line, which takes few evaluations
    low = high = 0.0
    while too_much(high) > 0:
        low, high = high, high + math.log(2)
    while low == high or too_much(low) <= 0:
        low, high = low - math.log(2), low
    found = scipy.optimize.brentq(too_much, low, high, xtol=TOLERANCE / 2 / math.exp(high))
    return math.exp(found) + TOLERANCE / 2


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta}")


def _spent_on(ledger: Ledger, accountant: str) -> Any:
    """An accountant of dp-accounting that has composed the ledger."""
    if accountant not in ACCOUNTANTS:
        raise ValueError(f"accountant must be one of {', '.join(ACCOUNTANTS)}, got {accountant!r}")
    dp = require("dp_accounting.dp_event", extra="privacy")
    events = [_event(dp, entry) for entry in ledger.spent]
    if accountant == "pld":
        # a coarse grid makes epsilon a little larger; on a fine one mixtures take minutes
        mixed = any(isinstance(event, Updates) and event.mixed for event in ledger.spent)
        pld = require("dp_accounting.pld", extra="privacy")
        made = pld.PLDAccountant(value_discretization_interval=1e-3 if mixed else 1e-4)
    else:
        made = require("dp_accounting.rdp", extra="privacy").RdpAccountant()
        unknown = next((e for e, x in zip(ledger.spent, events, strict=True)
                        if not made.supports(x)), None)  # fmt: skip
        if unknown is not None:
            raise ValueError(f"accountant must be 'pld' for {unknown}, got 'rdp'")
    return made.compose(dp.ComposedDpEvent(events))


def _event(dp: Any, entry: Updates | Pure) -> Any:
    """An entry as dp-accounting names it."""
    if isinstance(entry, Pure):
        # of all mechanisms with this epsilon the one with the greatest loss: exactly ±epsilon
        return dp.DiscreteLaplaceDpEvent(entry.epsilon, 1)
    noise, rate, steps, most = entry
    if entry.mixed:
        counts = range(most + 1)
        chances = scipy.stats.binom.pmf(counts, most, rate).tolist()
        step = dp.MixtureOfGaussiansDpEvent(noise, [float(n) for n in counts], chances)
    else:
        step = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise / most))
    return dp.SelfComposedDpEvent(step, steps)
