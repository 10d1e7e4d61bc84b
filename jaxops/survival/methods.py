"""The methods of `survival.fit`, as settings."""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxops.survival.families import Grid
from jaxops.survival.models import MLP
from jaxops.survival.outcomes import Outcome
from jaxops.survival.tasks import cut_times, deep_hit, deep_surv, logistic_hazard
from jaxops.task import Task, recorded


@recorded
@dataclass(frozen=True)
class Cox:
    """Cox's proportional hazards; see `survival.cox_regression`.

    Attributes:
        ties: "efron" or "breslow".
        l2: the weight of half the sum of the squared coefficients of standardised features.
        strata: columns; each combination of their values has a baseline of its own.
        cluster: a column whose equal values tell dependent rows; the errors are then robust.
        robust: robust errors, with each row a cluster.
        l1: the weight of the sum of their absolute values, which makes many of the coefficients 0;
            there are no standard errors then.

    >>> Cox(l2=1.0).ties
    'efron'
    """

    ties: str = "efron"
    l2: float = 0.0
    strata: tuple[str, ...] = ()
    cluster: str | None = None
    robust: bool = False
    l1: float = 0.0


@recorded
@dataclass(frozen=True)
class WeibullAFT:
    """Accelerated failure times of a Weibull law; see `survival.aft_regression`.

    >>> WeibullAFT().law
    'weibull'
    """

    law: ClassVar[str] = "weibull"


@recorded
@dataclass(frozen=True)
class LogNormalAFT:
    """Accelerated failure times of a log-normal law; see `survival.aft_regression`.

    >>> LogNormalAFT().law
    'log-normal'
    """

    law: ClassVar[str] = "log-normal"


@recorded
@dataclass(frozen=True)
class LogLogisticAFT:
    """Accelerated failure times of a log-logistic law; see `survival.aft_regression`.

    >>> LogLogisticAFT().law
    'log-logistic'
    """

    law: ClassVar[str] = "log-logistic"


@dataclass(frozen=True)
class DeepSurv:
    """Proportional hazards with a network; see `survival.deep_surv`.

    Attributes:
        module: (B, d) to (B, 1), such as `tabular.MLP()`; `survival.MLP()` by default. An attribute
            `outputs` is set to what the method needs.

    >>> DeepSurv(MLP((8,))).module.widths
    (8,)
    """

    module: Any = None

    def task(self, features: int, rows: Outcome) -> tuple[Task, None]:
        """The task; its curves take a baseline, which is known after training."""
        return deep_surv(_sized(self.module, 1), features, rows.entry is not None), None


@dataclass(frozen=True)
class LogisticHazard:
    """Discrete hazards with a network; see `survival.logistic_hazard`.

    Attributes:
        module: (B, d) to (B, intervals); see `DeepSurv`.
        intervals: at most so many; see `survival.cut_times`.

    >>> LogisticHazard(intervals=10).intervals
    10
    """

    module: Any = None
    intervals: int = 20

    def task(self, features: int, rows: Outcome) -> tuple[Task, Grid]:
        """The task and the grid of its curves."""
        cuts = cut_times(rows.time, rows.event, self.intervals)
        module = _sized(self.module, len(cuts))
        return logistic_hazard(module, features, cuts.tolist()), Grid(cuts)


@dataclass(frozen=True)
class DeepHit:
    """The law of time and cause with a network; see `survival.deep_hit`.

    Attributes:
        module: (B, d) to (B, causes * intervals); see `DeepSurv`.
        intervals: at most so many; see `survival.cut_times`.
        alpha: the weight of the likelihood beside the ranking, in [0, 1].
        sigma: of the ranking.

    >>> DeepHit().alpha
    0.2
    """

    module: Any = None
    intervals: int = 20
    alpha: float = 0.2
    sigma: float = 0.1

    def task(self, features: int, rows: Outcome) -> tuple[Task, Grid]:
        """The task and the grid of its curves."""
        cuts = cut_times(rows.time, rows.event, self.intervals)
        causes = int(rows.event.max())
        module = _sized(self.module, causes * len(cuts))
        made = deep_hit(module, features, cuts.tolist(), causes, self.alpha, self.sigma)
        return made, Grid(cuts)


NETWORKS = (DeepSurv, LogisticHazard, DeepHit)
AFT = (WeibullAFT, LogNormalAFT, LogLogisticAFT)
CLOSED = (Cox, *AFT)


def _sized(module: Any, outputs: int) -> Any:
    module = MLP() if module is None else module
    return module.clone(outputs=outputs) if hasattr(module, "outputs") else module
