"""One run of `fit`: its calls of many steps, and the reports and checkpoints between them."""

import functools
import math
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxops._shapes import next_power_of_two
from jaxops.devices import hosts
from jaxops.devices.plans import Plan
from jaxops.optim import EmaState, states_of
from jaxops.state import TrainState
from jaxops.task import Task
from jaxops.train import pace
from jaxops.train.checkpoint import Checkpointer, abstract
from jaxops.train.evaluation import Evaluation
from jaxops.train.feed import Stream
from jaxops.train.fingerprints import described
from jaxops.train.pace import Pace
from jaxops.train.profile import Profile
from jaxops.train.program import loops_well, train_program
from jaxops.train.resident import Resident
from jaxops.train.settings import Checkpoints, EarlyStopping, Reports
from jaxops.train.signals import PREEMPTED, signals
from jaxops.train.tally import Call, Tally

# Settings that checkpoints of earlier versions do not store, and the values they had.
OLDER = {"compute": "float32", "accumulate": 1, "processes": 1}
OLDER |= {"whole_batches": False, "drawn": False}


class RunSettings(NamedTuple):
    """The checked arguments of `fit`, which stay the same during a run.

    Attributes:
        task: what to learn.
        optimizer: the optimizer.
        plan: the devices.
        compute: the dtype of products.
        accumulate: number of microbatches in a batch.
        source: the training batches.
        period: steps in an epoch.
        total: total number of steps.
        validate: computes the validation metrics of a state.
        early_stopping: when to stop.
        checkpoints: where and how often the run is saved.
        reports: the functions that get reports, and how often.
        progress: whether a progress bar is shown.
    """

    task: Task
    optimizer: optax.GradientTransformation
    plan: Plan
    compute: str
    accumulate: int
    source: Resident | Stream
    period: int
    total: int
    validate: Evaluation | None = None
    early_stopping: EarlyStopping | None = None
    checkpoints: Checkpoints | None = None
    reports: Reports = Reports()
    progress: bool = False

    @property
    def save_every(self) -> int:
        """Steps between checkpoints; 0 if there are none."""
        return (self.checkpoints.every or self.period) if self.checkpoints else 0

    @property
    def length(self) -> int:
        """The largest number of steps in a call: a power of two, so that few programs compile."""
        return min(pace.MAX_STEPS_PER_CALL, next_power_of_two(self.total))

    @property
    def platform(self) -> str:
        """The platform of the devices, such as "cpu"."""
        return self.plan.mesh.devices.flat[0].platform

    @property
    def form(self) -> str:
        """The key under which a checkpoint stores whether a call loops over many steps.

        It is the platform, with "fsdp" added for a plan that has this axis.
        """
        return self.platform + " fsdp" * ("fsdp" in self.plan.mesh.axis_names)

    def identity(self) -> dict[str, Any]:
        """The settings that must be the same in a resumed run and in its checkpoint."""
        rule = self.early_stopping
        by = {} if rule is None else {"early_stopping": [rule.metric, rule.mode]}
        how = {"compute": self.compute, "accumulate": self.accumulate}
        return {**self.source.identity(), **how, **by}


class Run:
    """The mutable part of a run, except its `TrainState`.

    Attributes:
        step: number of steps made.
        looped: whether a call makes many steps; `None` until that is chosen.
        pace: chooses how many steps a call makes.
        tally: the metrics of the calls.
        logs: functions that are called with each record, in the first process.
        best: the best state so far, or `None`.
        best_value: its validation metric.
        worse: number of validations since the best one.
        averages: whether the optimizer keeps averaged parameters, which are then validated.
        start: a checksum of the state that was given to start from, or "".
        functions: checksums of the functions of a task that was made by hand, before training.
        started: when the run began, in seconds of the monotonic clock.
    """

    def __init__(
        self, settings: RunSettings, start: str = "", functions: dict[str, str] | None = None
    ) -> None:
        self.settings, self.start, self.functions = settings, start, functions or {}
        self.step = 0
        self.looped: bool | None = None
        self.pace = Pace()
        self.tally = Tally(settings.period, settings.reports.every, self._log)
        self.logs = settings.reports.functions() if hosts.first() else []
        self.best: TrainState | None = None
        self.best_value: float | None = None
        self.worse = 0
        self.averages = False
        self.started = time.monotonic()

    @functools.cached_property
    def fingerprint(self) -> dict[str, dict[str, str]]:
        """The task and the data, which a resumed run must have in common with its checkpoint."""
        return {"task": described(self.settings.task), "data": self.settings.source.fingerprint}

    @property
    def done(self) -> bool:
        """Whether all steps are made, or early stopping has run out of patience."""
        rule = self.settings.early_stopping
        return self.step >= self.settings.total or bool(rule and self.worse > rule.patience)

    def train(self, state: TrainState, checkpoints: Checkpointer | None = None) -> TrainState:
        """Train to the end; return the last state, or with early stopping the best state."""
        self.averages = bool(states_of(state.opt_state, EmaState))
        if not self.done:
            settings = self.settings
            program = train_program(
                settings.task,
                settings.optimizer,
                settings.plan,
                settings.compute,
                settings.source.take,
                settings.accumulate,
            )
            arguments, directory = self._arguments, settings.reports.profile
            profile = Profile(directory) if directory is not None and hosts.first() else None
            with signals() as received, self._bar() as bar, profile or nullcontext():
                if self.looped is None:  # this compiles, so signals must be caught meanwhile
                    looped = settings.source.many_steps and self._loops_well(program, state)
                    self.looped = hosts.agreed(looped)
                if profile:
                    arguments, program = profile.around(
                        settings.source, self.pace.clock, arguments, program
                    )
                for log in self.logs:
                    if checkpoints is not None and hasattr(log, "resume"):
                        log.resume(self.step)
                state = self._calls(state, program, arguments, received, bar, checkpoints)
        return state if self.best is None else self.best

    def _calls(
        self,
        state: TrainState,
        program: Callable[..., Any],
        arguments: Callable[..., Any],
        received: list[int],
        bar: Any,
        checkpoints: Checkpointer | None,
    ) -> TrainState:
        """Make calls to the end; a call ends at each step where something is reported or saved."""
        settings, in_flight = self.settings, deque[Call]()
        length = settings.length if self.looped else 1
        self.tally.read_at = time.monotonic()
        # without jit each operation would move its constants to the device
        guard = "allow" if jax.config.values["jax_disable_jit"] else "disallow"
        while not self.done:
            count = min(self.pace.steps, length, self._until_due())
            fed = arguments(count, length)
            with jax.transfer_guard(guard):
                state, metrics = program(state, *fed)
            self.step += count
            in_flight.append(Call(self.step, count, settings.source.examples, metrics))
            stop = self._signal(received, count)
            saves = stop is not None or bool(
                settings.save_every and self.step % settings.save_every == 0
            )
            epoch_ends = self.step % settings.period == 0 or self.step == settings.total
            epoch_ends = epoch_ends or (hosts.count() == 1 and self._late())
            wait = epoch_ends or saves
            while len(in_flight) > (0 if wait else self.pace.in_flight):
                self._await(in_flight.popleft(), bar)
            if wait:
                self._show(self.tally.read(), bar)
                with self.pace.clock.paused():
                    told = self._end_epoch(state) if epoch_ends else []
                    try:  # if a logger raises an error, the epoch must still be saved
                        self._tell(told, bar)
                    finally:
                        if saves or self.done:
                            self._save(state, checkpoints)
            if stop is not None:
                self._stop(stop)
        return state

    def _arguments(self, count: int, length: int) -> tuple[Any, Any, Any]:
        """The program's arguments other than the state, on the devices."""
        source, plan = self.settings.source, self.settings.plan
        fed = source.feed(self.step, count, length)
        return source.fixed, fed, hosts.put(np.int32(count), plan.whole())

    def _loops_well(self, program: Any, state: TrainState) -> bool:
        settings = self.settings
        if settings.platform != "cpu" or settings.length == 1:
            return True
        if "fsdp" in settings.plan.mesh.axis_names:
            return False  # in a loop, XLA's CPU gathers all parameters before it uses one
        plain, looped = self._arguments(1, 1), self._arguments(2, settings.length)
        return loops_well(program, state, plain, looped)

    def _until_due(self) -> int:
        """Number of steps to the next one where something is to be reported or saved."""
        settings = self.settings
        position = self.step % settings.period
        due = [settings.period - position, settings.total - self.step]
        if settings.reports.every:
            due.append(settings.reports.every - position % settings.reports.every)
        if settings.save_every:
            due.append(settings.save_every - self.step % settings.save_every)
        return min(due)

    def _signal(self, received: list[int], count: int) -> int | None:
        """The signal that ends the run after the `count` steps just made, if there is one."""
        numbers = list(received)  # read once, so that the signal that stops the run is saved too
        if hosts.count() > 1:
            reached = hosts.preempted(range(self.step - count + 1, self.step + 1))
            numbers = (numbers or [signal.SIGTERM]) if reached else []
        return numbers[0] if numbers else None

    def _stop(self, number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt(f"stopped after step {self.step}")
        if hosts.first():
            print(f"preempted: stopped after step {self.step}", file=sys.stderr)
        raise SystemExit(PREEMPTED)

    def _await(self, call: Call, bar: Any) -> None:
        """Wait for the end of a call; its metrics stay on the devices until they are reported."""
        jax.block_until_ready(call.metrics)
        self.pace.tick(call.steps, call.examples, bool(self.looped))
        bar.update(call.steps)
        self._show(self.tally.add(call), bar)

    def _show(self, loss: float | None, bar: Any) -> None:
        if loss is not None:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    def _end_epoch(self, state: TrainState) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
        """Validate, keep the best state, and return the reports: split, values, speed."""
        settings, clock = self.settings, self.pace.clock
        rate = clock.examples_per_second
        speed = {"examples_per_second": rate, "first_step_seconds": clock.first_step_seconds}
        told = [("train", self.tally.end_epoch(), speed)]
        if settings.validate:
            values = settings.validate(state)
            told.append(("validation", values, {}))
            if settings.early_stopping:
                self._compare(
                    state, values[settings.early_stopping.metric], settings.early_stopping
                )
        return told

    def _tell(self, told: list[tuple[str, dict[str, Any], dict[str, Any]]], bar: Any) -> None:
        """Give the records of an epoch to the loggers, and print them."""
        settings, lines = self.settings, []
        for split, values, speed in told:
            line = self._log(split, self.step, values, speed)
            rate = speed.get("examples_per_second")
            lines.append(line + (f" ({rate:,.0f} examples/s)" if rate else ""))
        if told and settings.progress:
            epoch, epochs = self.step / settings.period, settings.total / settings.period
            between = "  validation of the averaged parameters " * self.averages or "  validation "
            bar.write(f"epoch {epoch:g}/{epochs:g}  {between.join(lines)}")

    def _compare(self, state: TrainState, value: float, rule: EarlyStopping) -> None:
        if rule.better(value, self.best_value):
            # a copy, because the state itself is donated to the next call
            self.best, self.best_value, self.worse = jax.tree.map(jnp.copy, state), value, 0
        else:
            self.worse += 1
        if self._late():
            self.worse = rule.patience + 1

    def _late(self) -> bool:
        """Whether the time of early stopping is used up, so that this is the last validation."""
        rule = self.settings.early_stopping
        if rule is None or rule.seconds == math.inf:
            return False
        return hosts.agreed(time.monotonic() - self.started > rule.seconds)

    def _log(
        self, split: str, step: int, values: dict[str, Any], speed: dict[str, Any] | None = None
    ) -> str:
        """Give a record to the loggers, and return it as a line to print."""
        record = {"split": split, "step": step, "epoch": step / self.settings.period, **values}
        for log in self.logs:
            log(record | (speed or {}))
        numbers = {k: v for k, v in values.items() if isinstance(v, float | int)}
        numbers = {"loss": numbers.pop("loss"), **numbers}
        return " ".join(
            f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value:,}"
            for name, value in numbers.items()
        )

    def _bar(self) -> Any:
        from tqdm.auto import tqdm

        settings = self.settings
        quiet = {} if sys.stderr.isatty() else {"mininterval": 10.0}  # fewer lines in a log file
        return tqdm(
            total=settings.total,
            initial=self.step,
            unit="step",
            disable=not settings.progress,
            **quiet,
        )

    def _save(self, state: TrainState, checkpoints: Checkpointer | None) -> None:
        """Save the state, if it is finite, and everything else that a resumed run needs."""
        if not _finite(state.params):
            raise FloatingPointError(f"a parameter is not finite after step {self.step}")
        if checkpoints is None:
            return
        settings = self.settings
        trees = {"state": state} if self.best is None else {"state": state, "best": self.best}
        chosen = settings.source.many_steps and settings.length > 1
        meta = {
            "identity": settings.identity(),
            "fingerprint": self.fingerprint,
            "functions": self.functions,
            "start": self.start,
            "best_value": self.best_value,
            "worse": self.worse,
            "looped": {settings.form: self.looped} if chosen else {},
            "stream": settings.source.state(),
            **self.tally.saved(),
        }
        checkpoints.save(self.step, trees, meta)

    def restore(self, shapes: TrainState, checkpoints: Checkpointer) -> TrainState:
        """Continue from the newest checkpoint, and return its state.

        Raises:
            ValueError: another run wrote the checkpoint.
        """
        settings, meta, newest = self.settings, checkpoints.meta(), checkpoints.latest_step() or 0
        self._check_same(checkpoints, meta)
        self._warn_of_others(checkpoints, meta)
        if newest > settings.total:
            raise ValueError(
                f"steps must be at least {newest} (the newest checkpoint in "
                f"{checkpoints.directory}), got {settings.total}; for another run, use another "
                "directory"
            )
        if settings.progress:
            print(f"resumed at step {newest:,} of {settings.total:,} from {checkpoints.directory}")
        tree = abstract(shapes, settings.plan.state_shardings(shapes))
        trees = {"state": tree}
        if meta["best_value"] is not None:
            trees["best"] = tree
        loaded = checkpoints.restore(trees)
        self.step = newest
        if settings.early_stopping:
            self.best = loaded.get("best")
            self.best_value, self.worse = meta["best_value"], meta["worse"]
        self.tally.restore(meta)
        if settings.source.many_steps:  # a loop and single steps may round differently
            self.looped = meta.get("looped", {}).get(settings.form)
        settings.source.restore(meta["stream"], self.step)
        if self.done and hosts.first():
            print(
                f"no step was made: {checkpoints.directory} holds the end of this run, step "
                f"{newest:,}, and fit returns that state; for another run, such as one with "
                "another optimizer, use another directory",
                file=sys.stderr,
            )
        return loaded["state"]

    def _check_same(self, checkpoints: Checkpointer, meta: dict[str, Any]) -> None:
        """Raise `ValueError` if another run wrote the checkpoint, and name what differs."""
        settings = self.settings
        saved, given = OLDER | meta["identity"], settings.identity()
        words = {"task": "task argument", "data": "checksum of data column"}
        same = "; a stream must give the same batches each time it is iterated"
        same *= isinstance(settings.source, Stream)
        for part, before in meta.get("fingerprint", {}).items():
            now = self.fingerprint[part]
            names = sorted(before.keys() | now.keys()) if before and now else ()
            for name in names:  # there are none for a stream in several processes
                saved[f"{words[part]} {name!r}"] = before.get(name, "nothing")
                given[f"{words[part]} {name!r}"] = now.get(name, "nothing")
        for name, value in given.items():
            if saved.get(name) != value:
                raise ValueError(
                    f"{name} must be {saved.get(name)}, as in the run that wrote the checkpoints "
                    f"in {checkpoints.directory}, got {value}; for another run, use another "
                    f"directory{same * name.startswith('checksum')}"
                )

    def _warn_of_others(self, checkpoints: Checkpointer, meta: dict[str, Any]) -> None:
        """Warn if the parts of a task made by hand, or the state to start from, differ."""
        before, now, others = meta.get("functions", {}), self.functions, []
        if before.get("python") == now.get("python"):
            others = [f"`{n}`" for n in sorted(before.keys() & now) if before[n] != now[n]]
        if self.start and meta.get("start") not in (None, "", self.start):
            others.append("the state to start from")
        self.start = meta.get("start") or self.start
        if others:
            warnings.warn(
                f"{' and '.join(others)} should be as in the run that wrote the checkpoints in "
                f"{checkpoints.directory}, which continues; for another run, use another directory",
                stacklevel=4,
            )


_finite = jax.jit(
    lambda tree: jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
)
