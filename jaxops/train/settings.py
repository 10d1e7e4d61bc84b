"""Settings of `fit`: early stopping, checkpoints and reports."""

import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Record = dict[str, Any]
"""One report: "split" ("train", "steps", "validation"), "step", "epoch", and metrics by name."""

Logs = Callable[[Record], Any] | Sequence[Callable[[Record], Any]]
"""A function that is called with each record, or several."""


class EarlyStopping(NamedTuple):
    """Stop when a validation metric no longer improves, and return the best state.

    Attributes:
        metric: the name of the metric in the validation record.
        patience: number of validations without improvement before stopping.
        mode: "min" or "max": the direction of improvement.
        min_delta: smallest difference that counts as an improvement.
        seconds: after this time, validate and stop. With one process this happens also within an
            epoch. The result then depends on the speed of the machine. By default there is no
            limit.

    >>> EarlyStopping("auc", mode="max").better(0.9, best=0.8)
    True
    """

    metric: str = "loss"
    patience: int = 3
    mode: str = "min"
    min_delta: float = 0.0
    seconds: float = math.inf

    def better(self, value: float, best: float | None) -> bool:
        """Whether `value` improves on the best so far; NaN never does."""
        sign = {"min": 1.0, "max": -1.0}[self.mode]
        return not math.isnan(value) and (best is None or sign * (best - value) > self.min_delta)


class Checkpoints(NamedTuple):
    """Where and how often `fit` saves, for `fit(..., checkpoints=...)`.

    Attributes:
        directory: one directory for each run. With several processes, all of them must see it.
        every: steps between checkpoints; by default one at the end of each epoch.
        resume: continue from the newest checkpoint in the directory, if there is one. With False
            a directory that already has checkpoints is an error.

    >>> Checkpoints("runs/mine", every=100)
    Checkpoints(directory='runs/mine', every=100, resume=True)
    """

    directory: str | Path
    every: int | None = None
    resume: bool = True

    @classmethod
    def of(cls, argument: "Checkpoints | str | Path | None") -> "Checkpoints | None":
        """The argument of `fit` as `Checkpoints`; a directory has the default settings."""
        if argument is None:
            return None
        made = argument if isinstance(argument, Checkpoints) else cls(argument)
        every = None if made.every is None else whole("checkpoints.every", made.every, 1)
        return made._replace(every=every)


class Reports(NamedTuple):
    """What `fit` reports in addition to its progress bar, for `fit(..., reports=...)`.

    Attributes:
        on_log: a function or several, called with each `Record`, in the first process only. With
            checkpoints, if the object has a method `resume` (as `report.JsonLines` has), that is
            called first, with the step from which the run continues.
        every: report the mean over every `every` steps, in addition to each epoch.
        profile: directory for traces of a few steps, which TensorBoard and Perfetto can read. `fit`
            then also prints the time of the parts of a step; see `jaxops.train.profile`.

    >>> records = []
    >>> Reports(records.append, every=100).every
    100
    """

    on_log: Logs = ()
    every: int | None = None
    profile: str | Path | None = None

    @classmethod
    def of(cls, argument: "Reports | Logs") -> "Reports":
        """The argument of `fit` as `Reports`; functions become its `on_log`."""
        made = argument if isinstance(argument, Reports) else cls(argument)
        every = None if made.every is None else whole("reports.every", made.every, 1)
        made = made._replace(every=every)
        odd = next((log for log in made.functions() if not callable(log)), None)
        if odd is not None:
            raise ValueError(f"reports must be a function or several, got {odd!r}")
        return made

    def functions(self) -> list[Callable[[Record], Any]]:
        """The functions in `on_log`, as a list."""
        logs: Any = self.on_log
        return list(logs) if isinstance(logs, list | tuple) else [logs]


def whole(name: str, value: Any, least: int) -> int:
    """The argument as an `int`, also if it is a NumPy integer.

    Raises:
        ValueError: the argument is not a whole number, or less than `least`.

    >>> whole("batch_size", 0, 1)
    Traceback (most recent call last):
    ValueError: batch_size must be at least 1, got 0
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def chosen(defaults: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Defaults of `fit` with options that replace them; `epochs` and `steps` replace each other.

    >>> chosen({"epochs": 5, "seed": 0}, {"steps": 3})
    {'seed': 0, 'steps': 3}
    """
    if {"epochs", "steps"} & options.keys():
        defaults = {k: v for k, v in defaults.items() if k not in ("epochs", "steps")}
    return defaults | options


def check_one_directory(options: dict[str, Any], trainings: int) -> None:
    """Raise `ValueError` if several trainings would write checkpoints into one directory."""
    if trainings > 1 and options.get("checkpoints") is not None:
        raise ValueError(
            f"checkpoints must be None where {trainings} trainings follow each other, got "
            f"{options['checkpoints']!r}; give one method, or call jaxops.fit for each"
        )
