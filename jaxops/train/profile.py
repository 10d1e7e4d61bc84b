"""The time of the parts of a step, for `fit(..., reports=Reports(profile=DIR))`."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from jaxops._table import table
from jaxops.train.clock import Clock
from jaxops.train.feed import Stream
from jaxops.train.resident import Resident

# In the first calls the programs compile, and `Pace` finds the number of steps of a call.
WARM_CALLS, TIMED_CALLS, TRACED_CALLS = 8, 4, 2


class Profile:
    """Makes the first calls of a run one at a time, measures their parts, and traces two of them.

    The parts are "input", the time until the batches are on the devices; "dispatch", until the call
    returns (on a CPU, XLA already computes small programs in this time); "compute", until the
    devices are done; and "fetch", until the metrics are on the host. Without a profile these parts
    overlap, so their sum is longer than a step. The run makes the same calls as without a profile,
    so the parameters are the same to the bit.

    Args:
        directory: the directory of the traces. Read them by `tensorboard --logdir DIRECTORY`, or
            open the file perfetto_trace.json.gz in https://ui.perfetto.dev.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.seconds = dict.fromkeys(("input", "dispatch", "compute", "fetch"), 0.0)
        self.calls = self.timed_calls = self.steps = self.examples = 0
        self._trace = ExitStack()

    def around(
        self,
        source: Resident | Stream,
        clock: Clock,
        arguments: Callable[..., Any],
        program: Callable[..., Any],
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The functions that make a call's arguments and the call, with timing around them.

        The time to start and end a trace is not counted on the run's own clock.
        """

        def part(name: str, function: Callable[..., Any], *args: Any) -> Any:
            start = time.perf_counter()
            with jax.profiler.TraceAnnotation(name):
                result = function(*args)
            if WARM_CALLS <= self.calls < WARM_CALLS + TIMED_CALLS:
                self.seconds[name] += time.perf_counter() - start
            return result

        def timed_arguments(count: int, length: int) -> Any:
            if self.calls == WARM_CALLS + TIMED_CALLS:
                trace = jax.profiler.trace(str(self.directory), create_perfetto_trace=True)
                with clock.paused():
                    self._trace.enter_context(trace)
            made = part("input", lambda: jax.block_until_ready(arguments(count, length)))
            if WARM_CALLS <= self.calls < WARM_CALLS + TIMED_CALLS:
                self.timed_calls += 1
                self.steps, self.examples = self.steps + count, self.examples + source.examples
            return made

        def timed_program(state: Any, *args: Any) -> Any:
            state, metrics = part("dispatch", program, state, *args)
            part("compute", jax.block_until_ready, (state, metrics))
            part("fetch", jax.device_get, metrics)
            self.calls += 1
            if self.calls == WARM_CALLS + TIMED_CALLS + TRACED_CALLS:
                with clock.paused():
                    self._trace.close()
            return state, metrics

        def first(timed: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
            last = WARM_CALLS + TIMED_CALLS + TRACED_CALLS
            return lambda *args: (timed if self.calls < last else plain)(*args)

        return first(timed_arguments, arguments), first(timed_program, program)

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self._trace.close()
        print(self.report())

    def report(self) -> str:
        """The table: each part's milliseconds a step and its share."""
        if not self.timed_calls:
            return f"profile: must have more than {WARM_CALLS} calls to measure, got {self.calls}"
        total = sum(self.seconds.values())
        rows = [
            {"part": name, "ms a step": 1e3 * value / self.steps, "share": f"{value / total:.1%}"}
            for name, value in (*self.seconds.items(), ("all", total))
        ]
        untraced = WARM_CALLS + TIMED_CALLS
        return (
            f"profile: {self.timed_calls} calls of {self.steps / self.timed_calls:g} steps, "
            f"{self.examples / total:,.0f} examples/s one call at a time\n{table(rows)}\n"
            + (
                f"traces: {self.directory}"
                if self.calls > untraced
                else f"no traces: must have more than {untraced} calls, got {self.calls}"
            )
        )
