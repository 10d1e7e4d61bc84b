"""The number of steps in a call, and of calls in flight, chosen by the seconds they take."""

from dataclasses import dataclass, field

from jaxops.devices import hosts
from jaxops.train.clock import Clock

# Several CPU devices deadlock beyond 32 executions in flight; two are enough to hide the host's
# work behind a call of many steps; more are needed if a call is one step.
CALLS_IN_FLIGHT = {True: 2, False: 16}
SECONDS_PER_CALL = 0.5
# Every call has space for the row indices and metrics of this many steps. The limit applies if a
# step takes less than 2 ms; the fixed time of a call (0.1 to 0.3 ms) is then about 1 us a step.
MAX_STEPS_PER_CALL = 256
# A run that has to stop can save only after the calls in flight have ended.
SECONDS_IN_FLIGHT = 2.0
# Several processes agree on the length of a call while it grows; later that would only cost time.
CALLS_AGREED = 12


@dataclass
class Pace:
    """Chooses calls that are long enough to hide the host's work, and short enough to interrupt.

    Attributes:
        steps: the largest number of steps in the next call.
        in_flight: number of calls that may be in flight.
        ended: number of calls that have ended.
        clock: counts only the time of training.
    """

    steps: int = 1
    in_flight: int = 2
    ended: int = 0
    clock: Clock = field(default_factory=Clock)

    def tick(self, steps: int, examples: int, looped: bool) -> None:
        """Record the end of a call with these numbers; `looped`: a call makes many steps."""
        seconds = self.clock.tick(examples)
        self.ended += 1
        if not seconds:  # the first call compiles
            return
        if hosts.count() == 1 or (looped and self.ended <= CALLS_AGREED):
            most = max(1, min(int(SECONDS_PER_CALL * steps / seconds), 4 * self.steps))
            self.steps = hosts.agreed(most)
        if hosts.count() == 1:
            self.in_flight = max(2, min(CALLS_IN_FLIGHT[looped], int(SECONDS_IN_FLIGHT / seconds)))
