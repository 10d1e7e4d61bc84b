"""`fit` with the noise that a target epsilon needs."""

import secrets
from typing import Any, NamedTuple

import optax

from jaxops.data.checks import rows
from jaxops.privacy import accounting
from jaxops.privacy.gaussian import check_positive
from jaxops.privacy.tasks import private
from jaxops.state import TrainState
from jaxops.task import Task
from jaxops.train import loop
from jaxops.train.settings import whole


class Guarantee(NamedTuple):
    """What a private training promises: (epsilon, delta)-differential privacy for each row.

    Whatever is done with the parameters, and whoever knows all other rows: the probability of any
    outcome with a row is at most exp(epsilon) times that without it, plus delta.

    Attributes:
        epsilon: of the steps that were made.
        delta: as it was given.
        noise_multiplier: see `private`.
        rate: the probability with which a step draws a row.
        steps: number of updates.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    rate: float
    steps: int
