"""Randomised smoothing: the class that a classifier gives most often under noise, certified."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from scipy.special import ndtri

from jaxops._shapes import few_lengths
from jaxops.data.checks import prepare
from jaxops.optim import averaged
from jaxops.robustness.attacks import input_of
from jaxops.state import TrainState
from jaxops.task import Array, Batch, Extra, Key, Params, Task
from jaxops.train.resident import pad
from jaxops.train.settings import whole


class Certified(NamedTuple):
    """The classes of N rows under noise, and how far each holds.

    Attributes:
        labels: `str` objects (N,), the class; "" where it abstains.
        radius: float64 (N,): no change of the row that is shorter, in the unit of the column,
            changes the class; 0 where it abstains, NaN of `Smoothed.predict`.
        share: float64 (N,), the lower bound of the probability of the class under noise; NaN of
            `Smoothed.predict`.

    >>> one = Certified(np.array(["a", ""], object), np.array([0.7, 0.0]), np.array([0.9, 0.4]))
    >>> one.accuracy(["a", "a"]), one.accuracy(["a", "a"], radius=1.0)
    (0.5, 0.0)
    """

    labels: np.ndarray
    radius: np.ndarray
    share: np.ndarray

    def accuracy(self, labels: Any, radius: float = 0.0) -> float:
        """The share of rows with the right class that holds at least this far.

        Args:
            labels: (N,) names of classes.
            radius: 0 for the accuracy of the smoothed classifier.

        Raises:
            ValueError: another number of labels; a radius for labels that are not certified.
        """
        given = np.asarray(labels).astype(str)
        if given.shape != self.labels.shape:
            raise ValueError(f"labels must have shape {self.labels.shape}, got {given.shape}")
        if radius and np.isnan(self.radius).any():
            raise ValueError(f"radius must be 0 for rows that are not certified, got {radius}")
        held = self.radius >= radius if radius else self.labels != ""
        return float((held & (self.labels == given)).mean())


@dataclass(frozen=True, eq=False)
class Smoothed:
    """A classifier that gives the class which another gives most often under noise; of `smoothed`.

    Attributes:
        task: the task of the other one.
        state: its state.
        sigma: the standard deviation of the noise.
        column: the column that gets the noise.

    >>> from jaxops import init_state, optim, tabular
    >>> task, x = tabular.classifier(tabular.MLP(()), features=2), np.eye(2, dtype=np.float32)
    >>> state = init_state(task, optim.sgd(0.1), seed=0, batch={"features": x})
    >>> Smoothed(task, state, 0.5, "features").predict({"features": x}, draws=50).labels.shape
    (2,)
    """

    task: Task
    state: TrainState
    sigma: float
    column: str

    def predict(
        self,
        data: Mapping[str, Any],
        *,
        draws: int = 1000,
        alpha: float = 0.001,
        seed: int = 0,
        batch_size: int = 256,
    ) -> Certified:
        """The class that most draws give, or none.

        It abstains where the two commonest classes may be equally likely, by a two-sided binomial
        test. The class is not the likeliest one with a probability of at most `alpha`.

        Args:
            data: the columns of N rows.
            draws: of noise, for each row.
            alpha: the level of the test.
            seed: of the noise.
            batch_size: rows in one call.

        Raises:
            ValueError: rows that do not fit the task, or a number out of range.
        """
        _check_level(alpha)
        counts = self.counts(data, draws, seed, batch_size)
        order = np.sort(counts, axis=1)
        first, both = order[:, -1], order[:, -1] + order[:, -2]
        p = np.minimum(1.0, 2 * scipy.stats.binom.sf(first - 1, both, 0.5))
        unknown = np.full(len(counts), np.nan)
        return Certified(self._names(counts.argmax(1), p <= alpha), unknown, unknown)

    def certify(
        self,
        data: Mapping[str, Any],
        *,
        first_draws: int = 100,
        draws: int = 10_000,
        alpha: float = 0.001,
        seed: int = 0,
        batch_size: int = 256,
    ) -> Certified:
        """The class, and a radius within which it cannot change, with probability 1 - alpha each.

        The class is the commonest of `first_draws`. Its probability p has the lower bound of
        Clopper and Pearson, by other draws. Above 1/2 the radius is sigma * Phi^-1(p), in the
        Euclidean norm; otherwise it abstains. More draws make the bound tighter: of 10,000 that
        agree it is 0.9993, and the radius 3.2 sigma.

        Args:
            data: the columns of N rows.
            first_draws: of noise, by which the class is chosen.
            draws: of noise, by which it is certified.
            alpha: the probability that a radius is too large.
            seed: of the noise.
            batch_size: rows in one call.

        Raises:
            ValueError: rows that do not fit the task, or a number out of range.
        """
        _check_level(alpha)
        chosen = self.counts(data, first_draws, seed, batch_size).argmax(1)
        counts = self.counts(data, draws, seed, batch_size, other=1)
        hits = counts[np.arange(len(counts)), chosen]
        share = _lower(hits, draws, alpha)
        sure = share > 0.5
        radius = np.where(sure, self.sigma * ndtri(np.where(sure, share, 0.5)), 0.0)
        return Certified(self._names(chosen, sure), radius, share)

    def counts(
        self,
        data: Mapping[str, Any],
        draws: int,
        seed: int = 0,
        batch_size: int = 256,
        other: int = 0,
    ) -> np.ndarray:
        """How many draws of noise give each class, int (N, C).

        Args:
            data: see `predict`.
            draws: see `predict`.
            seed: see `predict`.
            batch_size: see `predict`.
            other: another number gives other draws.
        """
        columns = prepare(self.task, data, False)
        draws, rows = whole("draws", draws, 1), len(columns[self.column])
        size = min(whole("batch_size", batch_size, 1), few_lengths(rows))
        state, parts = averaged(self.state), []
        start = jax.random.fold_in(jax.random.key(seed), other)
        names = tuple(column.name for column in self.task.columns if not column.target)
        for first in range(0, rows, size):
            some = {name: np.asarray(columns[name])[first : first + size] for name in names}
            key, count = jax.random.fold_in(start, first), len(some[self.column])
            made = _counts(
                (self.task.predict, self.column, len(self.task.classes)),
                (state.params, state.extra),
                pad(some, size), key, draws, self.sigma,
            )  # fmt: skip
            parts.append(np.asarray(made)[:count])
        return np.concatenate(parts)

    def _names(self, number: np.ndarray, sure: np.ndarray) -> np.ndarray:
        return np.where(sure, np.array(self.task.classes, object)[number], "")


@functools.partial(jax.jit, static_argnums=0)
def _counts(
    form: tuple[Callable[[Params, Extra, Batch], Array], str, int],
    variables: tuple[Params, Extra],
    batch: Batch,
    key: Key,
    draws: Array,
    sigma: Array,
) -> Array:
    """The classes of draws, counted, int32 (B, C); one draw of all rows at a time."""
    predict, column, classes = form
    x = jnp.asarray(batch[column], jnp.float32)

    def add(number: Array, counts: Array) -> Array:
        noise = jax.random.normal(jax.random.fold_in(key, number), x.shape)
        p = predict(*variables, {**batch, column: x + sigma * noise})
        best = (p >= 0.5).astype(jnp.int32) if p.ndim == 1 else p.argmax(1)
        return counts + jax.nn.one_hot(best, classes, dtype=jnp.int32)

    return jax.lax.fori_loop(0, draws, add, jnp.zeros((len(x), classes), jnp.int32))


def _lower(hits: np.ndarray, draws: int, alpha: float) -> np.ndarray:
    """Clopper and Pearson's lower bound of a probability, at the level 1 - alpha; 0 of no hits."""
    some = np.maximum(hits, 1)
    return np.where(hits > 0, scipy.stats.beta.ppf(alpha, some, draws - some + 1), 0.0)


def _check_level(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")


def smoothed(task: Task, state: TrainState, sigma: float, *, column: str | None = None) -> Smoothed:
    """A classifier whose answers are certified against changes of the input (Euclidean norm).

    It answers with the class that the task's classifier gives most often when the input has normal
    noise. So it needs a classifier that bears such noise: one that was trained with it.

    Args:
        task: a classifier with one class a row, whose input has numbers or bytes.
        state: its trained state.
        sigma: the standard deviation of the noise, in the unit of the column: 64 for 0.25 of an
            image of bytes. The noise is not clipped.
        column: the column that gets the noise; needed if the task has several of numbers.

    Raises:
        ValueError: a task without classes or such an input, or sigma that is not above 0.

    References:
        Cohen, Rosenfeld and Kolter 2019, arXiv:1902.02918.

    >>> from jaxops import init_state, optim, tabular
    >>> task, x = tabular.classifier(tabular.MLP(()), features=1), np.ones((1, 1), np.float32)
    >>> state = init_state(task, optim.sgd(0.1), seed=0, batch={"features": x})
    >>> line = {"kernel": np.ones((1, 1)), "bias": np.zeros(1)}  # class 1 of all x above 0
    >>> told = smoothed(task, state._replace(params={"logits": line}), sigma=0.5).certify(
    ...     {"features": x}, draws=2000)
    >>> told.labels[0], bool(0.8 < told.radius[0] <= 1)
    ('1', True)
    """
    targets = [one for one in task.columns if one.target]
    if not task.classes or any(one.shape for one in targets):
        raise ValueError("task must have classes and one of them for each row, got another task")
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma must be a number above 0, got {sigma}")
    return Smoothed(task, state, float(sigma), input_of(task, column).name)
