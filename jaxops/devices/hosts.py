"""Runs of several processes: how they start, and how they stay synchronised.

Every process runs the same script, makes the same calls in the same order, and holds a part of
each array that spans the processes. If a clock, a signal or a file decides which call comes next,
the processes must therefore agree on it first. In a single process all of this does nothing and
costs nothing.
"""

import builtins
import functools
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, Sharding

# environment variable -> the cluster software that sets it, in the order in which JAX looks
_CLUSTERS = {"OMPI_MCA_orte_hnp_uri": "Open MPI", "SLURM_JOB_ID": "SLURM"}


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int = 60,
) -> None:
    """Connect the processes of this run. Call it in each process, before any other use of JAX.

    On Cloud TPU, under SLURM (`srun`) and under Open MPI (`mpirun`), JAX detects the processes.
    Elsewhere give the arguments, here or in the environment. If no cluster is detected and no
    argument is given, the run has one process and this function does nothing, so the same script
    also runs on a laptop.

    Args:
        coordinator: "host:port" of process 0, which every process can reach; by default the
            environment variable JAX_COORDINATOR_ADDRESS.
        processes: number of processes; by default JAX_NUM_PROCESSES.
        process: number of this process, from 0; by default JAX_PROCESS_ID.
        timeout: seconds without a heartbeat after which a process counts as dead and the others
            end with an error. At the start, processes wait five minutes for each other.

    Raises:
        ValueError: JAX's devices are in use already, or only some of the arguments are given.
        RuntimeError: the other processes did not start in time.

    >>> start(processes=1)  # nothing to do
    """
    if jax.distributed.is_initialized():
        return
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    processes = _number(processes, "JAX_NUM_PROCESSES")
    process = _number(process, "JAX_PROCESS_ID")
    if processes == 1:
        return
    arguments = {"coordinator": coordinator, "processes": processes, "process": process}
    named = ", ".join(f"{name} {value}" for name, value in arguments.items())
    if coordinator and ":" not in coordinator:
        raise ValueError(f'coordinator must be "host:port", got {coordinator!r}')
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    except ValueError as error:
        if set(arguments.values()) == {None} and "coordinator_address" in str(error):
            return  # there is no cluster
        raise ValueError(
            "coordinator, processes and process (in 0 to processes - 1) must all be given, or the "
            f"cluster must be one that JAX knows, got {named or 'none of them'} ({error})"
        ) from error
    except RuntimeError as error:
        if "must be called before" in str(error):
            raise ValueError(
                "devices.start must be called before anything uses JAX's devices, got a process "
                "that already uses them; make it the first call of the script"
            ) from error
        raise
    if first():
        by = next((name for key, name in _CLUSTERS.items() if key in os.environ), "JAX's detection")
        by = "their addresses" if coordinator else by
        kind = jax.devices()[0].device_kind
        print(f"{count()} processes by {by}, {jax.device_count()} devices ({kind})", flush=True)


def _number(value: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if value is not None or text is None:
        return value
    if not text.isdecimal():
        raise ValueError(f"{variable} must be a whole number, got {text!r}")
    return int(text)


def count() -> int:
    """Number of processes; before `start` it initialises no device."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """The number of this process, from 0."""
    return jax.process_index() if count() > 1 else 0


def first() -> bool:
    """Whether this is process 0, which writes and prints."""
    return index() == 0


def every(value: Any) -> list[Any]:
    """A small JSON-like value from each process, in their order; every process must call this."""
    if count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    room = max(64, 1 << (int(sizes.max()) - 1).bit_length())  # few sizes, few compilations
    rows = multihost_utils.process_allgather(np.pad(text, (0, room - len(text))))
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def agreed(value: Any) -> Any:
    """Process 0's value, in every process."""
    return every(value)[0]


def by_first(call: Callable[[], Any]) -> None:
    """Call a function in process 0 only; an exception there is raised in every process."""
    error: Exception | None = None
    if first():
        try:
            call()
        except Exception as raised:
            error = raised
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    raised_first = agreed(None if error is None else [kinds[0], str(error)])
    if error is not None:
        raise error
    if raised_first is not None:
        kind, message = raised_first
        raise getattr(builtins, kind)(message)


def check_same(**values: Any) -> None:
    """Raise `ValueError` in every process if any process has another value than process 0."""
    all_values = every(values)
    for process, theirs in enumerate(all_values):
        for name, value in theirs.items():
            first_value = all_values[0][name]
            if value != first_value:
                raise ValueError(
                    f"{name} must be the same in every process, got {first_value} in process 0 and "
                    f"{value} in process {process}"
                )


_first_process: int | None = None  # the id of the process that first used JAX


def check_fork() -> None:
    """Raise `RuntimeError` in a process that was forked from one in which JAX was used."""
    global _first_process
    _first_process = _first_process or os.getpid()
    if _first_process != os.getpid():
        raise RuntimeError(
            f"JAX must not be used in a process that is forked from one that uses it, got a fork "
            f"of process {_first_process}, in which calls would wait forever; start processes by "
            'multiprocessing\'s "spawn", and load models after a fork (gunicorn without --preload)'
        )


def check_started() -> None:
    """Raise `ValueError` if there are several processes, as on a TPU pod, without `start`."""
    if not jax.distributed.is_initialized() and jax.process_count() > 1:
        raise ValueError(
            f"the {jax.process_count()} processes must be connected; "
            "call devices.start() first in each of them"
        )


def check_mesh(mesh: Mesh) -> None:
    """Raise `ValueError` if a process has no device in `mesh`.

    The other processes would continue without it.
    """
    check_fork()
    check_started()
    processes = {device.process_index for device in mesh.devices.flat}
    if len(processes) < count():
        raise ValueError(
            f"plan must have devices of all {count()} processes, got devices of {len(processes)}; "
            "devices.data_parallel() is such a plan"
        )


def put(tree: Any, shardings: Any) -> Any:
    """Place arrays that every process holds in full on the devices of all processes.

    Args:
        tree: NumPy arrays, JAX arrays of this process, or arrays that already span the processes.
        shardings: one for all leaves, or a tree of them.
    """
    if count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, Sharding):
        return jax.tree.map(lambda leaf: _put(leaf, shardings), tree)
    return jax.tree.map(_put, tree, shardings)


def _put(leaf: Any, sharding: Sharding) -> jax.Array:
    if isinstance(leaf, jax.Array):
        if not leaf.is_fully_addressable:
            return _moved(sharding)(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = _put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.lru_cache(maxsize=256)
def _moved(sharding: Sharding) -> Any:
    """A program that moves arrays to another sharding over the processes; `device_put` cannot."""
    return jax.jit(lambda leaf: leaf, out_shardings=sharding)


def rows_here(sharding: NamedSharding, size: int) -> np.ndarray:
    """Indices of the rows of a batch that lie on this process's devices, ascending."""
    here = np.zeros(size, bool)
    for rows in sharding.addressable_devices_indices_map((size,)).values():
        here[rows] = True
    return np.flatnonzero(here)


def put_shares(tree: Any, sharding: NamedSharding, size: int, axis: int = 0) -> Any:
    """Global arrays, for which each process gives its share of the rows.

    Args:
        tree: NumPy arrays whose `axis` has the `rows_here` of this process.
        sharding: the sharding of the global arrays.
        size: length of the global arrays along `axis`.
        axis: the axis of the rows.
    """
    if count() == 1:
        return jax.device_put(tree, sharding)

    def put_leaf(leaf: np.ndarray) -> jax.Array:
        shape = (*leaf.shape[:axis], size, *leaf.shape[axis + 1 :])
        return jax.make_array_from_process_local_data(sharding, leaf, shape)

    return jax.tree.map(put_leaf, tree)


def gathered(tree: Any) -> Any:
    """Arrays that span the processes, as whole NumPy arrays; every process must call this."""

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, tree)


def preempted(steps: range) -> bool:
    """Whether every process has to stop now, because one of them received SIGTERM.

    JAX's preemption service picks a step that no process has passed. Therefore every process must
    call this for each step once, in order.
    """
    reached = multihost_utils.reached_preemption_sync_point
    return count() > 1 and any(reached(step) for step in steps)
