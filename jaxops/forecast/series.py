"""Series of one regular frequency, ragged, with their covariates."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Series:
    """S series end to end, R rows in all, C channels each.

    Attributes:
        ids: str (S,), the user's own.
        start: datetime64[s] (S,), or int64 (S,) where time is a count; the time of the first row.
        frequency: a pandas offset alias such as "h", "D", "MS"; or "1" steps where time is a count.
        offsets: int64 (S + 1,); the rows of series s are offsets[s] to offsets[s + 1].
        values: float32 (R, C).
        channels: names of the C channels.
        known: float32 (R, K), covariates whose future is known, such as holidays; K may be 0.
        past: float32 (R, P), covariates that are known up to now only.
        static: float32 (S, Q), one row a series.
        known_names, past_names, static_names: of the covariates' columns.
    """

    ids: np.ndarray
    start: np.ndarray
    frequency: str
    offsets: np.ndarray
    values: np.ndarray
    channels: tuple[str, ...]
    known: np.ndarray
    past: np.ndarray
    static: np.ndarray
    known_names: tuple[str, ...] = ()
    past_names: tuple[str, ...] = ()
    static_names: tuple[str, ...] = ()

    @property
    def lengths(self) -> np.ndarray:
        """int64 (S,), rows of each series."""
        return np.diff(self.offsets)
