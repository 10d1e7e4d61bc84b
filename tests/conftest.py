"""Eight CPU devices, strict JAX: set before any backend starts."""

import os

# with fewer threads than twice the devices, collectives of several CPU devices can deadlock
os.environ.setdefault("NPROC", "16")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
