"""Training speed, peak FLOP/s and peak memory. Compilation is never counted as speed."""

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

__all__ = [
    "Clock",
    "flops",
    "peak_flops",
    "peak_memory",
]


class Clock:
    """Measures examples per second, from the end of the first call on.

    Attributes:
        first_step_seconds: the time from the creation of the clock to the end of the first call,
            which includes tracing and compilation; `None` until then.

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
        """Record the end of a call, and return its seconds, or `None` for the first call.

        Args:
            examples: number of rows that the call used, without padding.
        """
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
        """Time spent inside (validation, a checkpoint) is not counted."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    @property
    def examples_per_second(self) -> float | None:
        """Mean over all calls but the first; `None` before the second one."""
        return self._examples / self._seconds if self._seconds > 0 else None


def flops(function: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of one call, as XLA counts them before it optimises.

    The body of a loop is counted once, so use it for one step, not for many. Nothing is compiled
    or run.

    >>> flops(jnp.dot, jnp.ones((8, 16)), jnp.ones((16, 4)))  # 2 * 8 * 16 * 4
    1024.0
    """
    cost = jax.jit(function).lower(*args).cost_analysis()
    return float((cost or {})["flops"])


@functools.cache
def peak_flops(dtype: str = "float32", size: int = 2048) -> float:
    """FLOP/s of this device's matrix product: the fastest of ten (size, size) products.

    This measured peak is lower than that of the data sheet. It is the most that a program can reach
    on this machine. Products of factors with fewer bits than float32 are summed in float32.

    >>> peak_flops(size=128) > 1e6
    True
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
    """Peak memory in bytes, as the device counts it; if it does not, that of this process.

    >>> peak_memory() > 2**20
    True
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    import resource  # does not exist on Windows, so there no peak can be read

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
