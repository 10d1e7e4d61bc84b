"""How fast, how much of the peak, how much memory. Compilation is never counted as speed."""

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp


class Clock:
    """Counts examples against seconds, from the end of the first call on.

    Attributes:
        first_step_seconds: from the clock's making to the end of the first call: tracing,
            compilation and the call itself; `None` until then.

    >>> clock = Clock()
    >>> clock.tick(64), clock.examples_per_second  # the first call is not speed
    (None, None)
    >>> seconds = clock.tick(64)
    >>> clock.examples_per_second == 64 / seconds
    True
    """

    def __init__(self) -> None:
        self.first_step_seconds: float | None = None
        self._since = time.perf_counter()
        self._seconds = self._examples = 0.0

    def tick(self, examples: int) -> float | None:
        """A call that used so many examples has ended: its seconds; `None` for the first one."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        if self.first_step_seconds is None:
            self.first_step_seconds = seconds
            return None
        self._seconds += seconds
        self._examples += examples
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside (validation, a checkpoint) takes no time on this clock."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    @property
    def examples_per_second(self) -> float | None:
        """Of all calls but the first; `None` before there is a second one."""
        return self._examples / self._seconds if self._seconds > 0 else None


def flops(function: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of one call, as XLA counts them before it optimises.

    Loops are counted once, so give it one step and not many. Nothing is compiled or run.

    >>> flops(jnp.dot, jnp.ones((8, 16)), jnp.ones((16, 4)))  # 2 * 8 * 16 * 4
    1024.0
    """
    cost = jax.jit(function).lower(*args).cost_analysis()
    return float((cost or {})["flops"])


@functools.cache
def peak_flops(dtype: str = "float32", size: int = 2048) -> float:
    """FLOP/s of this device's matrix product, measured: the best of ten (size, size) products.

    A measured peak is lower than the data sheet's and is what a program here can hope for. The
    product is float32, or sums in float32 what is of fewer bits.
    """
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
    product(a, a).block_until_ready()
    times = []
    for _ in range(10):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def peak_memory() -> int:
    """The most bytes held so far: the device's own count, or this process's where it has none."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    import resource  # not on Windows, whose users have no peak to read

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
