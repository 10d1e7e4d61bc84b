"""Popularity, overall or recent: the baseline that every other model has to beat."""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.recommend.data.counts import check_log
from jaxops.recommend.data.events import Events
from jaxops.task import recorded

Array = jax.Array


@recorded
@dataclass(frozen=True)
class Popularity:
    """An item's score is the summed weight of its events, the same for every user.

    With a `half_life` an event counts 2^(-age / half_life), where the age is measured at the log's
    last event. `fit` with parameters adds new events and lowers the weight of older ones.

    Attributes:
        half_life: the time after which an event counts half, in the unit of the log's times, which
            is seconds for dates. None counts all events equally.
        context: 1, the smallest value, because the history does not matter.

    >>> log = Events(np.array([0, 1, 0]), np.array([0, 0, 1]), np.array([0, 0, 7]),
    ...              np.ones(3, np.float32), np.array(["ann", "bob"]), np.array(["tea", "jam"]))
    >>> Popularity().fit(log)["score"].tolist()
    [2.0, 1.0]
    >>> Popularity(half_life=7).fit(log)["score"].tolist()
    [1.0, 1.0]
    """

    half_life: float | None = None
    context: int | None = 1

    answers_empty: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.half_life is not None and not self.half_life > 0:
            raise ValueError(f"half_life must be above 0 or None, got {self.half_life}")

    def fit(self, events: Events, params: Any = None) -> dict[str, Any]:
        """The parameters, or `params` updated with new events.

        Args:
            events: the log.
            params: earlier parameters to update.

        Returns:
            `score` (N,) float32; `time` () float64, the time of the last event.

        Raises:
            ValueError: see `check_log`.

        Warns:
            UserWarning: the times are dates and the half-life is less than 400 seconds; perhaps it
                is meant in days.
        """
        old: Any = np.zeros(0) if params is None else np.asarray(params["score"])
        check_log(events, len(old))
        last = float(np.max(events.time))
        if params is not None:
            last = max(last, float(params["time"]))
            old = old * self._share(last - float(params["time"]))
        weight = events.weight * self._share(last - np.asarray(events.time, np.float64))
        if self.half_life and self.half_life < 400 and 1e8 < last < 1e10:
            warnings.warn(
                f"half_life={self.half_life} is in seconds, because the times are seconds since "
                "1970; a day has 86,400",
                stacklevel=2,
            )
        score = np.bincount(events.item, weight, minlength=len(events.items))
        score[: len(old)] += old
        return {"score": score.astype(np.float32), "time": np.float64(last)}

    def _share(self, age: Any) -> Any:
        return np.exp2(-age / self.half_life) if self.half_life else np.ones_like(age)

    def queries(self, params: Any, history: Array) -> Array:
        """The scores (B, N) float32 of histories (B, L)."""
        score = jnp.asarray(params["score"])
        return jnp.broadcast_to(score[None], (len(history), len(score)))

    def table(self, params: Any) -> None:
        """None: the queries are the scores."""
        return None
