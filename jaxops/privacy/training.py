"""`fit` with the noise that a target epsilon needs."""

import secrets
from typing import Any, NamedTuple

import numpy as np
import optax

from jaxops.data.checks import rows
from jaxops.privacy.accounting import epsilon as spent
from jaxops.privacy.accounting import noise_multiplier as needed
from jaxops.privacy.statistics import kept_rows
from jaxops.privacy.tasks import private
from jaxops.state import TrainState
from jaxops.task import Task
from jaxops.train import loop
from jaxops.train.settings import whole


class Guarantee(NamedTuple):
    """What a training promises to each row, or user: (epsilon, delta)-differential privacy.

    The probability of any outcome is at most exp(epsilon) times what it would be without a row, or
    without all rows of a user, plus delta, whatever is known of the other rows.

    Attributes:
        epsilon: of all steps together.
        delta: as it was given.
        noise_multiplier: see `private`.
        rate: the probability with which a step draws a row.
        steps: number of updates.
        rows_per_user: most rows of a user, where users are protected; `None` where rows are.

    A model file keeps it as `jo.Model(task, state, about={"privacy": promise._asdict()})`.

    >>> promise = Guarantee(2.0, 1e-5, noise_multiplier=1.1, rate=0.01, steps=1000)
    >>> promise._asdict()["epsilon"]
    2.0
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    rate: float
    steps: int
    rows_per_user: int | None = None


def fit(
    task: Task,
    data: Any,
    *,
    epsilon: float,
    delta: float,
    clip: float,
    batch_size: int,
    optimizer: optax.GradientTransformation,
    epochs: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    method: str = "auto",
    users: Any = None,
    rows_per_user: int | None = None,
    **settings: Any,
) -> tuple[TrainState, Guarantee]:
    """Train with (epsilon, delta)-differential privacy: `jaxops.fit` on a `private` task.

    The noise is the least that keeps all steps together within epsilon.

    Args:
        task: see `private`.
        data: columns in memory.
        epsilon: the bound, above 0.
        delta: the probability with which the bound may fail, well below 1 / rows.
        clip: see `private`.
        batch_size: the expected number of rows in a batch. Larger batches take less noise for the
            same accuracy.
        optimizer: see `jaxops.fit`.
        epochs: expected number of passes over the data; give this or `steps`.
        steps: number of updates.
        seed: determines the draws and the noise: who knows it can subtract the noise. By default a
            new one is drawn and not kept; with `checkpoints`, give one, so that the run can resume.
        method: see `private`.
        users: (N,), the user of each row, such as of the events of a log. Then epsilon speaks of
            all rows of a user together: neighbours are two logs of which one has one user more.
        rows_per_user: how many rows are kept of each user at most, chosen by chance as in
            `bounded`; `batch_size` and `epochs` are about the rows that are kept. A user's rows are
            clipped one by one, and how many of them a step draws is binomial (see
            `training_ledger`).
        **settings: further arguments of `jaxops.fit`. Early stopping has no part in the guarantee:
            it holds if validation rows are not rows of the data, or of its users.

    Returns:
        The last state, and the guarantee with the epsilon that was spent.

    Raises:
        ValueError: see `private`, `jaxops.fit`, `noise_multiplier` and `bounded`; one of `users`
            and `rows_per_user` without the other.

    >>> import pytest; _ = pytest.importorskip("dp_accounting")
    >>> import numpy as np
    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> x = np.random.default_rng(0).normal(size=(512, 2)).astype(np.float32)
    >>> rows = {"features": x, "label": (x[:, 0] > 0).astype(np.int32)}
    >>> task = tabular.classifier(tabular.MLP(()), features=2)
    >>> state, promise = fit(task, rows, epsilon=3.0, delta=1e-4, clip=1.0, batch_size=512,
    ...                      optimizer=jo.optim.sgd(2.0), steps=1, progress=False)
    >>> 2.99 < promise.epsilon <= 3.0, promise.rate
    (True, 1.0)
    """
    if seed is None and settings.get("checkpoints") is not None:
        raise ValueError("seed must be given for checkpoints, so that the run can resume, got None")
    seed = secrets.randbits(31) if seed is None else seed
    if users is not None or rows_per_user is not None:
        data = _bounded(data, users, rows_per_user, seed)
    count, batch_size = rows(data), whole("batch_size", batch_size, 1)
    if batch_size > count:
        kept = "" if users is None else " that are kept"
        raise ValueError(
            f"batch_size must be at most {count} (the number of rows{kept}), got {batch_size}"
        )
    if (epochs is None) == (steps is None):
        raise ValueError(f"one of epochs and steps must be given, got {epochs=} and {steps=}")
    made = steps if epochs is None else epochs * -(-count // batch_size)
    rate, made = batch_size / count, whole("steps or epochs", made, 1)
    plan: dict[str, Any] = {"rate": rate, "steps": made, "rows_per_user": rows_per_user or 1}
    noise = needed(epsilon=epsilon, delta=delta, **plan)
    hidden = private(task, clip=clip, noise_multiplier=noise, batch_size=batch_size, method=method)
    state = loop.fit(
        hidden,
        data,
        optimizer=optimizer,
        batch_size=batch_size,
        steps=made,
        seed=seed,
        **settings,
    )
    used = spent(noise_multiplier=noise, delta=delta, **plan)
    return state, Guarantee(used, delta, noise, rate, made, rows_per_user)


def _bounded(data: Any, users: Any, rows_per_user: int | None, seed: int) -> dict[str, Any]:
    """The columns with at most so many rows of each user."""
    if users is None or rows_per_user is None:
        got = "rows_per_user=None" if rows_per_user is None else "users=None"
        raise ValueError(f"users and rows_per_user must be given together, got {got}")
    most = whole("rows_per_user", rows_per_user, 1)
    if len(users) != rows(data):
        raise ValueError(
            f"users must have one user for each of {rows(data)} rows, got {len(users)}"
        )
    kept = kept_rows(users, most, seed, "users")
    return {name: np.asarray(column)[kept] for name, column in data.items()}
