"""One run of `fit`: calls of many steps, and what happens between them."""

import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxops import metrics as m
from jaxops.devices import hosts
from jaxops.devices.plans import Plan
from jaxops.optim import averaged
from jaxops.state import TrainState
from jaxops.task import Task
from jaxops.train.checkpoint import Checkpointer, abstract
from jaxops.train.clock import Clock
from jaxops.train.feed import Resident, Stream
from jaxops.train.profile import Profile
from jaxops.train.program import loops_well, train_program
from jaxops.train.settings import EarlyStopping, Record
from jaxops.train.signals import PREEMPTED, signals

# Several CPU devices deadlock beyond 32 executions in flight; two are enough to hide the host's
# work behind a call of many steps, a few more are wanted where a call is one step.
CALLS_IN_FLIGHT = {True: 2, False: 16}
SECONDS_PER_CALL = 0.5
# The room for rows' numbers and metrics in a call, used or not. It binds where a step takes less
# than 2 ms; then the fixed price of a call (0.1 to 0.3 ms) is about 1 us a step, and stays small.
MAX_STEPS_PER_CALL = 256
# Metrics stay on the devices until something is reported; but a loss that is not finite has to be
# found within some seconds, and the metrics of many small calls take memory.
SECONDS_UNREAD = 10.0
CALLS_UNREAD, BYTES_UNREAD = 256, 64 << 20
# What is in flight has to end before a run that is to stop can save.
SECONDS_IN_FLIGHT = 2.0
# Skipping is for a bad batch now and then; where every step is bad, the run is.
MAX_SKIPPED_IN_A_ROW = 100
# Several processes agree on the length of a call while it grows; later that would only cost time.
CALLS_AGREED = 12


class Call(NamedTuple):
    """A call that was made: the step it ended at, its steps and rows, its stacked metrics."""

    step: int
    steps: int
    examples: int
    metrics: Any


@dataclass
class Run:
    """One run of `fit`: what changes while it goes on, beside the state."""

    task: Task
    optimizer: optax.GradientTransformation
    plan: Plan
    compute: str
    accumulate: int
    source: Resident | Stream
    period: int
    total: int
    validate: Callable[[TrainState], Record] | None
    early_stopping: EarlyStopping | None
    log_every: int | None
    on_log: list[Callable[[Record], Any]]
    progress: bool
    profile: Profile | None = None
    looped: bool | None = None  # many steps in one call; `None` until that is chosen
    step: int = 0
    best: TrainState | None = None
    best_value: float | None = None
    worse: int = 0  # validations since the best
    skipped: int = 0  # steps in a row
    epoch_metrics: dict[str, Any] = field(default_factory=dict)
    window_metrics: dict[str, Any] = field(default_factory=dict)
    unread: list[Call] = field(default_factory=list)  # have ended; their metrics are to be read
    read_at: float = 0.0
    clock: Clock = field(default_factory=Clock)
    steps_per_call: int = 1
    calls_in_flight: int = 2
    ended: int = 0  # calls

    @property
    def done(self) -> bool:
        """Whether all steps are made, or early stopping has lost its patience."""
        given_up = self.early_stopping and self.worse > self.early_stopping.patience
        return self.step >= self.total or bool(given_up)

    def train(
        self, state: TrainState, checkpoints: Checkpointer | None = None, every: int = 0
    ) -> TrainState:
        """Call after call, none beyond a step where something is to be reported or saved."""
        if self.done:
            return state if self.best is None else self.best
        program = train_program(
            self.task,
            self.optimizer,
            self.plan,
            self.compute,
            self.source.take,
            self.accumulate,
        )
        arguments = self._arguments
        in_flight: deque[Call] = deque()
        with signals() as asked, self._bar() as bar, self.profile or nullcontext():
            if self.looped is None:  # compiles, so what is asked meanwhile has to be heard
                looped = self.source.many_steps and self._loops_well(program, state)
                self.looped = hosts.agreed(looped)
            length = self._length if self.looped else 1
            if self.profile:
                clock = self.clock
                arguments, program = self.profile.around(self.source, clock, arguments, program)
            for log in self.on_log:
                if checkpoints is not None and hasattr(log, "resume"):
                    log.resume(self.step)
            self.read_at = time.monotonic()
            while not self.done:
                count = min(self.steps_per_call, length, self._until(every))
                given = arguments(count, length)
                with jax.transfer_guard("disallow"):
                    state, metrics = program(state, *given)
                self.step += count
                in_flight.append(Call(self.step, count, self.source.examples, metrics))
                epoch_ends = self.step % self.period == 0 or self.step == self.total
                stopping = list(asked)  # read once: what stops is also saved
                if hosts.count() > 1:
                    reached = hosts.preempted(range(self.step - count + 1, self.step + 1))
                    stopping = (stopping or [signal.SIGTERM]) if reached else []
                saving = bool(stopping) or (every and self.step % every == 0)
                wait = epoch_ends or saving
                while len(in_flight) > (0 if wait else self.calls_in_flight):
                    self._await(in_flight.popleft(), bar)
                if wait:
                    self._read(bar)
                with self.clock.paused() if wait else nullcontext():
                    if epoch_ends:
                        self._end_epoch(state, bar)
                    if (saving or self.done) and not _finite(state.params):
                        raise FloatingPointError(
                            f"a parameter is not finite after step {self.step}"
                        )
                    if checkpoints and (saving or self.done):
                        self._save(state, checkpoints)
                if stopping:
                    self._stop(stopping[0])
        return state if self.best is None else self.best

    def _stop(self, asked: int) -> None:
        if asked == signal.SIGINT:
            raise KeyboardInterrupt(f"stopped after step {self.step}")
        if hosts.first():
            print(f"preempted: stopped after step {self.step}", file=sys.stderr)
        raise SystemExit(PREEMPTED)

    @property
    def _length(self) -> int:
        return min(MAX_STEPS_PER_CALL, self.total)

    def _arguments(self, count: int, length: int) -> tuple[Any, Any, Any]:
        """What the program is given beside the state, on the devices."""
        fed = self.source.feed(self.step, count, length)
        return self.source.fixed, fed, hosts.put(np.int32(count), self.plan.whole())

    def _loops_well(self, program: Any, state: TrainState) -> bool:
        if self._platform != "cpu" or self._length == 1:
            return True
        if "fsdp" in self.plan.mesh.axis_names:
            return False  # in a loop, XLA's CPU puts all parameters together before it uses one
        plain, looped = self._arguments(1, 1), self._arguments(2, self._length)
        return loops_well(program, state, plain, looped)

    def _until(self, every: int) -> int:
        """How many steps there are to the next one where something is due."""
        position = self.step % self.period
        due = [self.period - position, self.total - self.step]
        if self.log_every:
            due.append(self.log_every - position % self.log_every)
        if every:
            due.append(every - self.step % every)
        return min(due)

    def _await(self, call: Call, bar: Any) -> None:
        """Wait for the end of a call; its metrics stay on the devices until they are reported."""
        jax.block_until_ready(call.metrics)
        seconds = self.clock.tick(call.examples)
        self.ended += 1
        agreed = hosts.count() == 1 or (self.looped and self.ended <= CALLS_AGREED)
        if seconds and agreed:
            # long enough a call to hide the host's work, short enough to interrupt
            wanted = int(SECONDS_PER_CALL * call.steps / seconds)
            self.steps_per_call = hosts.agreed(max(1, min(wanted, 4 * self.steps_per_call)))
        if seconds and hosts.count() == 1:
            most = CALLS_IN_FLIGHT[bool(self.looped)]
            self.calls_in_flight = max(2, min(most, int(SECONDS_IN_FLIGHT / seconds)))
        bar.update(call.steps)
        self.unread.append(call)
        window_ends = self.log_every and call.step % self.period % self.log_every == 0
        long_ago = time.monotonic() - self.read_at > SECONDS_UNREAD
        if hosts.count() > 1:  # all find a bad loss at the same call, so not by the clock
            long_ago = len(self.unread) * SECONDS_PER_CALL > SECONDS_UNREAD
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(call.metrics))
        many = len(self.unread) >= min(CALLS_UNREAD, BYTES_UNREAD // size)
        if window_ends or long_ago or many:
            self._read(bar)

    def _read(self, bar: Any) -> None:
        """Bring the metrics of all calls that have ended to the host, at once, and add them up."""
        calls, self.unread, self.read_at = self.unread, [], time.monotonic()
        if not calls:
            return
        fetched = m.to_host([call.metrics for call in calls])
        for call, stacked in zip(calls, fetched, strict=True):
            loss = self._add(call.step, call.steps, stacked)
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    def _add(self, step: int, count: int, stacked: Any) -> float:
        """Add up the metrics of the call that ended at `step`; its mean loss."""
        stacked = jax.tree.map(lambda leaf: leaf[:count], stacked)
        losses = stacked["loss"].total
        if not np.isfinite(losses).all():
            bad = int(np.flatnonzero(~np.isfinite(losses))[0])
            raise FloatingPointError(
                f"the loss is {losses[bad]} at step {step - count + bad + 1}; "
                "a smaller learning rate or clipping (optim.clip_by_global_norm) may help"
            )
        if "skipped" in stacked:
            self._check_skipped(step - count, stacked["skipped"].total)
        part = m.fold(stacked)
        self.epoch_metrics = _merged(self.epoch_metrics, part)
        if self.log_every:
            self.window_metrics = _merged(self.window_metrics, part)
            position = step % self.period
            if position and position % self.log_every == 0:
                self._log("steps", step, m.summarize(self.window_metrics))
            if position % self.log_every == 0:  # a window ends with its epoch at the latest
                self.window_metrics = {}
        return float(part["loss"].compute())

    def _check_skipped(self, step: int, skipped: np.ndarray) -> None:
        for i, bad in enumerate(skipped, 1):
            self.skipped = self.skipped + 1 if bad else 0
            if self.skipped == MAX_SKIPPED_IN_A_ROW:
                raise FloatingPointError(
                    f"the loss or its gradient is not finite in all steps from "
                    f"{step + i + 1 - self.skipped} to {step + i}"
                )

    def _end_epoch(self, state: TrainState, bar: Any) -> None:
        """Report the epoch, validate, and keep the best state."""
        rate = self.clock.examples_per_second
        line = self._log("train", self.step, m.summarize(self.epoch_metrics), rate)
        self.epoch_metrics, self.window_metrics = {}, {}
        if self.validate:
            values = self.validate(averaged(state))
            line += "  validation " + self._log("validation", self.step, values)
            if self.early_stopping:
                self._compare(state, values)
        if self.progress:
            bar.write(f"epoch {self.step / self.period:g}/{self.total / self.period:g}  {line}")

    def _compare(self, state: TrainState, values: Record) -> None:
        assert self.early_stopping
        value = values[self.early_stopping.metric]
        if self.early_stopping.better(value, self.best_value):
            # a copy: the state itself is donated to the next call
            self.best, self.best_value, self.worse = jax.tree.map(jnp.copy, state), value, 0
        else:
            self.worse += 1

    def _log(self, split: str, step: int, values: dict[str, Any], rate: float | None = None) -> str:
        """Hand a record to the loggers; the same in a line to print."""
        record = {"split": split, "step": step, "epoch": step / self.period, **values}
        if split == "train":
            record["examples_per_second"] = rate
            record["first_step_seconds"] = self.clock.first_step_seconds
        for log in self.on_log:
            log(record)
        numbers = {k: v for k, v in values.items() if isinstance(v, float | int)}
        numbers = {"loss": numbers.pop("loss"), **numbers}
        line = " ".join(
            f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value:,}"
            for name, value in numbers.items()
        )
        return f"{line} ({rate:,.0f} examples/s)" if rate else line

    def _save(self, state: TrainState, checkpoints: Checkpointer) -> None:
        trees = {"state": state} if self.best is None else {"state": state, "best": self.best}
        chosen = self.source.many_steps and self._length > 1
        meta = {
            "identity": self._identity(),
            "best_value": self.best_value,
            "worse": self.worse,
            "skipped": self.skipped,
            "looped": {self._form: self.looped} if chosen else {},
            "stream": self.source.state(),
            "epoch_metrics": _plain(self.epoch_metrics),
            "window_metrics": _plain(self.window_metrics),
        }
        checkpoints.save(self.step, trees, meta)

    def restore(self, like: TrainState, checkpoints: Checkpointer) -> TrainState:
        """The state of the newest checkpoint, shaped `like` this; all else goes on from it too."""
        meta = checkpoints.meta()
        older = {
            "compute": "float32",
            "accumulate": 1,
            "processes": 1,
        }  # an older checkpoint does not say
        found = older | meta["identity"]
        wanted = self._identity()
        for name in wanted:
            if found.get(name) != wanted[name]:
                raise ValueError(
                    f"{checkpoints.directory}: a checkpoint of another run: {name}: "
                    f"{found.get(name)} found, {wanted[name]} wanted"
                )
        if self.progress:
            newest = checkpoints.latest_step()
            print(f"resumed at step {newest:,} of {self.total:,} from {checkpoints.directory}")
        wanted_state = abstract(like, self.plan.state_shardings(like))
        trees = {"state": wanted_state}
        if meta["best_value"] is not None:
            trees["best"] = wanted_state
        loaded = checkpoints.restore(trees)
        self.step = checkpoints.latest_step() or 0
        if self.early_stopping:
            self.best = loaded.get("best")
            self.best_value, self.worse = meta["best_value"], meta["worse"]
        self.skipped = meta.get("skipped", 0)
        self.epoch_metrics = meta["epoch_metrics"]
        self.window_metrics = meta["window_metrics"] if self.log_every else {}
        if self.source.many_steps:  # its rounding is that of the form it was begun in
            self.looped = meta.get("looped", {}).get(self._form)
        self.source.restore(meta["stream"], self.step)
        return loaded["state"]

    @property
    def _platform(self) -> str:
        return self.plan.mesh.devices.flat[0].platform

    @property
    def _form(self) -> str:
        """For what a form of the step was chosen: "fsdp" on a CPU has none in a loop."""
        return self._platform + " fsdp" * ("fsdp" in self.plan.mesh.axis_names)

    def _identity(self) -> dict[str, Any]:
        rule = self.early_stopping
        by = {} if rule is None else {"early_stopping": [rule.metric, rule.mode]}
        how = {"compute": self.compute, "accumulate": self.accumulate}
        return {**self.source.identity(), **how, **by}

    def _bar(self) -> Any:
        from tqdm.auto import tqdm

        quiet = {} if sys.stderr.isatty() else {"mininterval": 10.0}  # a log file wants few lines
        return tqdm(
            total=self.total, initial=self.step, unit="step", disable=not self.progress, **quiet
        )


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metric states as JSON, which keeps their numbers exactly."""
    return {
        name: [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(state)]
        for name, state in metrics.items()
    }


def _merged(total: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """The states of both; `total` may be empty, or as `_plain` left it in a checkpoint."""
    if not total:
        return part
    total = {
        name: jax.tree.unflatten(jax.tree.structure(part[name]), [np.asarray(x) for x in state])
        if isinstance(state, list)
        else state
        for name, state in total.items()
    }
    return m.merge(total, part)


_finite = jax.jit(
    lambda tree: jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
)
