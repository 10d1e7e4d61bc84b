"""Eight CPU devices, strict JAX: set before any backend starts."""

import os
from pathlib import Path

# with fewer threads than twice the devices, collectives of several CPU devices can deadlock
os.environ.setdefault("NPROC", "16")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forget compiled programs before they take all of a process's 65,530 memory maps.

    XLA's CPU compiler ends the process with a segmentation fault when there are no more.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
