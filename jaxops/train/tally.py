"""The metrics of a run's calls: kept on the devices, read together, and added up by epoch."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxops import metrics as m
from jaxops.devices import hosts
from jaxops.train import pace

# Metrics stay on the devices until something is reported. They are read earlier after this time,
# this number of calls or these bytes, so that a loss that is not finite is found soon, and memory
# stays small.
SECONDS_UNREAD = 10.0
CALLS_UNREAD, BYTES_UNREAD = 256, 64 << 20
# `skip_not_finite` is for a bad batch now and then. After so many skipped steps in a row, the run
# ends with an error.
MAX_SKIPPED_IN_A_ROW = 100


class Call(NamedTuple):
    """A call that was made.

    Attributes:
        step: the step at which it ended.
        steps: number of steps it made.
        examples: number of rows it used, without padding.
        metrics: the metric states of its steps, stacked, on the devices.
    """

    step: int
    steps: int
    examples: int
    metrics: Any


@dataclass
class Tally:
    """Metrics of the calls that have ended, added up over the present epoch and window.

    Attributes:
        period: steps in an epoch.
        every: steps in a window; `None` for no windows.
        report: called as `report("steps", step, values)` at the end of a window.
        epoch: metric states by name.
        window: the same.
        skipped: number of steps in a row that the optimizer has skipped, up to the last one.
        unread: calls whose metrics are still on the devices.
        read_at: when metrics were last read, in seconds of `time.monotonic`.
    """

    period: int
    every: int | None
    report: Callable[[str, int, dict[str, Any]], Any]
    epoch: dict[str, Any] = field(default_factory=dict)
    window: dict[str, Any] = field(default_factory=dict)
    skipped: int = 0
    unread: list[Call] = field(default_factory=list)
    read_at: float = field(default_factory=time.monotonic)

    def add(self, call: Call) -> float | None:
        """Take the metrics of a call that has ended, and `read` them if that is due."""
        self.unread.append(call)
        window_ends = self.every and call.step % self.period % self.every == 0
        long_ago = time.monotonic() - self.read_at > SECONDS_UNREAD
        if hosts.count() > 1:  # not by the clock, so that all find a bad loss at the same call
            long_ago = len(self.unread) * pace.SECONDS_PER_CALL > SECONDS_UNREAD
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(call.metrics))
        many = len(self.unread) >= min(CALLS_UNREAD, BYTES_UNREAD // size)
        return self.read() if window_ends or long_ago or many else None

    def read(self) -> float | None:
        """Fetch the metrics of all unread calls at once; return the mean loss of the last call."""
        calls, self.unread, self.read_at = self.unread, [], time.monotonic()
        loss = None
        if calls:
            fetched = m.to_host([call.metrics for call in calls])
            for call, stacked in zip(calls, fetched, strict=True):
                loss = self._add(call.step, call.steps, stacked)
        return loss

    def _add(self, step: int, count: int, stacked: Any) -> float:
        stacked = jax.tree.map(lambda leaf: leaf[:count], stacked)
        _check_losses(step - count, stacked["loss"].total)
        if "skipped" in stacked:
            self._check_skipped(step - count, stacked["skipped"].total)
        part = m.fold(stacked)
        self.epoch = _merged(self.epoch, part)
        if self.every:
            self.window = _merged(self.window, part)
            position = step % self.period
            if position and position % self.every == 0:
                self.report("steps", step, m.summarize(self.window))
            if position % self.every == 0:  # a window ends with its epoch at the latest
                self.window = {}
        return float(part["loss"].compute())

    def _check_skipped(self, step: int, skipped: np.ndarray) -> None:
        for i, bad in enumerate(skipped, 1):
            self.skipped = self.skipped + 1 if bad else 0
            if self.skipped == MAX_SKIPPED_IN_A_ROW:
                raise FloatingPointError(
                    f"the loss or its gradient is not finite in all steps from "
                    f"{step + i + 1 - self.skipped} to {step + i}"
                )

    def end_epoch(self) -> dict[str, Any]:
        """Return the epoch's values, and begin the next epoch."""
        values = m.summarize(self.epoch)
        self.epoch, self.window = {}, {}
        return values

    def saved(self) -> dict[str, Any]:
        """JSON-like data for a checkpoint, which keeps the numbers exactly."""
        return {
            "skipped": self.skipped,
            "epoch_metrics": _plain(self.epoch),
            "window_metrics": _plain(self.window),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue from what `saved` returned."""
        self.skipped = saved.get("skipped", 0)
        self.epoch = saved["epoch_metrics"]
        self.window = saved["window_metrics"] if self.every else {}


def _check_losses(step: int, losses: np.ndarray) -> None:
    if not np.isfinite(losses).all():
        bad = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise FloatingPointError(
            f"the loss is {losses[bad]} at step {step + bad + 1}; "
            "a smaller learning rate or clipping (optim.clip_by_global_norm) may help"
        )


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(state)]
        for name, state in metrics.items()
    }


def _merged(total: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Merge two states; `total` may be empty, or in the form that `_plain` returns."""
    if not total:
        return part
    total = {
        name: jax.tree.unflatten(jax.tree.structure(part[name]), [np.asarray(x) for x in state])
        if isinstance(state, list)
        else state
        for name, state in total.items()
    }
    return m.merge(total, part)
