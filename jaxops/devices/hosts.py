"""Many processes, one run: how they start, and what keeps them in step.

Every process runs the same script, makes the same calls in the same order, and holds a part of
each array that spans them. Whatever decides what is called next (a clock, a signal, a file) is
therefore agreed on first. In a single process all of this does nothing, and costs nothing.
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

# variable of the environment -> who sets it, in the order in which JAX looks
_CLUSTERS = {"OMPI_MCA_orte_hnp_uri": "Open MPI", "SLURM_JOB_ID": "SLURM"}


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int = 60,
) -> None:
    """Join the other processes of this run; call it first, in each of them.

    On Cloud TPU, under SLURM (`srun`) and Open MPI (`mpirun`) JAX finds the others by itself.
    Elsewhere name them, here or in the environment. Where nothing is found and nothing named, this
    is a run of one process, and nothing is done: the same script runs on a laptop.

    Args:
        coordinator: "host:port" of process 0, which every process can reach, or the environment's
            JAX_COORDINATOR_ADDRESS.
        processes: how many there are, or JAX_NUM_PROCESSES.
        process: the number of this one, from 0, or JAX_PROCESS_ID.
        timeout: seconds without a sign of life after which a process is taken for dead, and the
            others end with an error. For each other to start they wait five minutes.

    Raises:
        ValueError: JAX's devices are in use already; or only some of the arguments are there.
        RuntimeError: the others did not start in time.

    >>> start(processes=1)  # nothing to do
    """
    if jax.distributed.is_initialized():
        return
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    processes = _number(processes, "JAX_NUM_PROCESSES")
    process = _number(process, "JAX_PROCESS_ID")
    if processes == 1:
        return
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    found = ", ".join(f"{name} {value}" for name, value in given.items())
    if coordinator and ":" not in coordinator:
        raise ValueError(f'coordinator: {coordinator!r} found, "host:port" wanted')
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    except ValueError as error:
        if set(given.values()) == {None} and "coordinator_address" in str(error):
            return  # no cluster
        raise ValueError(
            f"{found}: found; wanted all three, with process in 0 to processes - 1, "
            f"or a cluster that JAX knows ({error})"
        ) from error
    except RuntimeError as error:
        if "must be called before" in str(error):
            raise ValueError(
                "start: JAX's devices are in use already; wanted as the first call of the script"
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
        raise ValueError(f"{variable}: {text!r} found, a number wanted")
    return int(text)


def count() -> int:
    """How many processes there are; asks no device before `start`."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """The number of this process, from 0."""
    return jax.process_index() if count() > 1 else 0


def first() -> bool:
    """Whether this process is the one that writes and prints."""
    return index() == 0


def every(value: Any) -> list[Any]:
    """What each process has of a small JSON-like value, by process; all of them take part."""
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
    """Call it in process 0 alone, and raise what it raises, or the like of it, in every process."""
    error: Exception | None = None
    if first():
        try:
            call()
        except Exception as raised:
            error = raised
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    said = agreed(None if error is None else [kinds[0], str(error)])
    if error is not None:
        raise error
    if said is not None:
        raise getattr(builtins, said[0])(said[1])


def check_same(**values: Any) -> None:
    """Raise `ValueError`, in every process, where one has another value than process 0."""
    all_values = every(values)
    for process, theirs in enumerate(all_values):
        for name, found in theirs.items():
            wanted = all_values[0][name]
            if found != wanted:
                raise ValueError(
                    f"{name}: {found} found in process {process}, {wanted} in process 0; "
                    "wanted the same in every process"
                )


def check_started() -> None:
    """Raise `ValueError` where JAX knows several processes, as on a TPU pod, that have not met."""
    if not jax.distributed.is_initialized() and jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes found that do not know each other; "
            "call devices.start() first, in each of them"
        )


def check_mesh(mesh: Mesh) -> None:
    """Raise `ValueError` where a process has no part in the mesh: it would not be waited for."""
    check_started()
    found = {device.process_index for device in mesh.devices.flat}
    if len(found) < count():
        raise ValueError(
            f"plan: devices of {len(found)} of {count()} processes found; wanted devices of all, "
            "such as devices.data_parallel()"
        )


def put(tree: Any, shardings: Any) -> Any:
    """`jax.device_put` of arrays that every process holds whole; each places its own devices' part.

    Args:
        tree: of arrays: NumPy's, this process's own, or some that span the processes already.
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
    """From one plan over the processes to another, which `jax.device_put` refuses."""
    return jax.jit(lambda leaf: leaf, out_shardings=sharding)


def rows_here(sharding: NamedSharding, size: int) -> np.ndarray:
    """Which of a batch's `size` rows lie on this process's devices, in ascending order."""
    here = np.zeros(size, bool)
    for rows in sharding.addressable_devices_indices_map((size,)).values():
        here[rows] = True
    return np.flatnonzero(here)


def put_shares(tree: Any, sharding: NamedSharding, size: int, axis: int = 0) -> Any:
    """One global array of each process's own share of it.

    Args:
        tree: of NumPy arrays whose `axis` has the `rows_here` of this process.
        sharding: of the global arrays.
        size: the global arrays' length along `axis`.
        axis: that of the rows.
    """
    if count() == 1:
        return jax.device_put(tree, sharding)

    def put_leaf(leaf: np.ndarray) -> jax.Array:
        shape = (*leaf.shape[:axis], size, *leaf.shape[axis + 1 :])
        return jax.make_array_from_process_local_data(sharding, leaf, shape)

    return jax.tree.map(put_leaf, tree)


def gathered(tree: Any) -> Any:
    """What spans the processes as whole NumPy arrays in each; all of them take part."""

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, tree)


def preempted(steps: range) -> bool:
    """Whether every process is to stop now, since one of them was sent SIGTERM.

    JAX's preemption service picks a step that none has passed; so it is asked for each step once,
    in order, by every process.
    """
    reached = multihost_utils.reached_preemption_sync_point
    return count() > 1 and any(reached(step) for step in steps)
