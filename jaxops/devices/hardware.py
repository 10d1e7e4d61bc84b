"""Peak rates of accelerators, from the manufacturers' pages, and measured rates of this machine."""

import functools
import os
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxops.train import clock

__all__ = [
    "HARDWARE",
    "Hardware",
    "this_machine",
]


class Hardware(NamedTuple):
    """The rates of one device; all bandwidths are in bytes/s.

    Attributes:
        name: its key in `HARDWARE`.
        platform: "cpu", "cuda" or "tpu", as JAX names it.
        bfloat16: FLOP/s of dense matrix products with bfloat16 or float16 factors.
        float32: FLOP/s of JAX's float32 products at their default precision: TF32 on NVIDIA's
            tensor cores, one pass of bfloat16 factors on a TPU.
        memory: size of the memory in bytes.
        bandwidth: bandwidth of the memory.
        interconnect: bytes/s it can send to the devices of its island, over all links together.
        island: number of devices that the fast interconnect joins.
        network: bytes/s it can send to other islands.

    >>> HARDWARE["H100"].memory, HARDWARE["H100"].island
    (80000000000.0, 8)
    """

    name: str
    platform: str
    bfloat16: float
    float32: float
    memory: float
    bandwidth: float
    interconnect: float
    island: int
    network: float


# NVIDIA's data sheets give the rate of sparse products, which is twice the dense rate, and the sum
# of both directions of NVLink. The network is that of a DGX, with one adapter for each GPU.
# Google's pages give the interconnect as the sum of all links in both directions, and the data
# centre network of a whole pod, which is divided here by the number of chips.
HARDWARE = {
    device.name: device
    for device in (
        # nvidia.com/en-us/data-center/h100, SXM: 1,979 and 989 TFLOPS (sparse bfloat16, TF32),
        # 80 GB, 3.35 TB/s, NVLink 900 GB/s; DGX H100: 8 adapters of 400 Gb/s
        Hardware("H100", "cuda", 989e12, 494e12, 80e9, 3.35e12, 450e9, 8, 50e9),
        # nvidia.com/en-us/data-center/h200, SXM: an H100 with 141 GB, 4.8 TB/s
        Hardware("H200", "cuda", 989e12, 494e12, 141e9, 4.8e12, 450e9, 8, 50e9),
        # NVIDIA A100 data sheet, 80 GB SXM: 312 and 156 TFLOPS (dense), 2,039 GB/s, NVLink
        # 600 GB/s; DGX A100: 8 adapters of 200 Gb/s
        Hardware("A100", "cuda", 312e12, 156e12, 80e9, 2.039e12, 300e9, 8, 25e9),
        # cloud.google.com/tpu/docs/v4: 275 TFLOPS, 32 GiB, 1,200 GB/s, pods of 4,096; links:
        # jax-ml.github.io/scaling-book/tpus, six of 45 GB/s each way; network: 6.25 GB/s a chip
        Hardware("v4", "tpu", 275e12, 275e12, 32 * 2**30, 1.2e12, 270e9, 4096, 6.25e9),
        # cloud.google.com/tpu/docs/v5e: 197 TFLOPS, 16 GB, 819 GB/s, 400 GB/s both ways, pods of
        # 256 with 6.4 Tb/s
        Hardware("v5e", "tpu", 197e12, 197e12, 16e9, 819e9, 200e9, 256, 3.125e9),
        # cloud.google.com/tpu/docs/v5p: 459 TFLOPS, 95 GiB, 2,765 GB/s, 1,200 GB/s both ways, pods
        # of 8,960, 50 Gb/s a chip
        Hardware("v5p", "tpu", 459e12, 459e12, 95 * 2**30, 2.765e12, 600e9, 8960, 6.25e9),
        # cloud.google.com/tpu/docs/v6e: 918 TFLOPS, 32 GB, 1,600 GB/s, 800 GB/s both ways, pods of
        # 256 with 25.6 Tb/s
        Hardware("v6e", "tpu", 918e12, 918e12, 32e9, 1.6e12, 400e9, 256, 12.5e9),
    )
}


@functools.cache
def this_machine() -> Hardware:
    """The first device of this process, with measured FLOP/s and memory bandwidth.

    Several CPU devices share one memory, and they also communicate through it.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    memory = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rate = _bandwidth()
    return Hardware(
        "this machine",
        "cuda" if device.platform == "gpu" else device.platform,
        clock.peak_flops("bfloat16"),
        clock.peak_flops(),
        float(memory),
        rate,
        rate,
        jax.device_count(),
        rate,
    )


def _bandwidth(count: int = 2**25) -> float:
    """Bytes/s of reading and writing arrays larger than any cache: the best of ten additions."""
    add = jax.jit(lambda x: x + 1)
    x = jnp.ones(count, jnp.float32)
    add(x).block_until_ready()
    times = []
    for _ in range(10):
        start = time.perf_counter()
        add(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 8 * count / min(times)
