"""The memory, FLOPs and seconds that a training step needs on a given machine, from its trace."""

import functools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import jax
import optax
from jax.sharding import AbstractMesh, AxisType

from jaxops._table import table
from jaxops.devices.hardware import HARDWARE, Hardware
from jaxops.devices.plans import Plan, Rules, single
from jaxops.nn.product import computing, has_bfloat16
from jaxops.state import TrainState, state_shapes
from jaxops.step import gradients, update
from jaxops.task import Task
from jaxops.train.cost import Cost, cost
from jaxops.transforms import check_accumulate


class Collective(NamedTuple):
    """One kind of communication between the devices in a step.

    Attributes:
        kind: "all-reduce", "all-gather" or "reduce-scatter".
        axes: the mesh axes of the communicating devices.
        content: what is sent, such as "gradients".
        sent: bytes that each device sends, in rings: (n - 1) / n of the whole for a gather or a
            scatter over n devices, twice that for an all-reduce.
        seconds: the time at the full bandwidth, without latency.
    """

    kind: str
    axes: tuple[str, ...]
    content: str
    sent: float
    seconds: float


class Size(NamedTuple):
    """The size of a training step; bytes are those of one device. `print` shows it as tables.

    Attributes:
        hardware: the kind of device.
        mesh: (axis, size) pairs.
        rows: rows of one microbatch on one device.
        accumulate: number of microbatches in a step.
        parameters: number of trained parameters.
        parameter_bytes: bytes of the parameters.
        gradient_bytes: bytes of the gradients.
        optimizer_bytes: bytes of the optimizer's state.
        other_bytes: bytes of the module's other variables and of the batch.
        activation_bytes: the peak of the activations in the forward and backward pass.
        exchanged_bytes: bytes of the largest parameter and its gradient when gathered, if a plan
            splits them; on a CPU also of the summed gradients, which XLA writes to other memory.
        total_bytes: the peak of all of these together. It is less than their sum, because
            activations are freed while gradients are computed.
        flops: FLOPs of the step, on all devices together.
        device_flops: FLOPs of matrix products and convolutions on one device.
        moved_bytes: bytes read from and written to the memory of one device.
        collectives: the communication between the devices.
        compute_seconds: time of the products at the peak rate.
        memory_seconds: time of the moved bytes at the full bandwidth.
        interconnect_seconds: time of all collectives.
    """

    hardware: Hardware
    mesh: tuple[tuple[str, int], ...]
    rows: int
    accumulate: int
    parameters: int
    parameter_bytes: float
    gradient_bytes: float
    optimizer_bytes: float
    other_bytes: float
    activation_bytes: float
    exchanged_bytes: float
    total_bytes: float
    flops: float
    device_flops: float
    moved_bytes: float
    collectives: tuple[Collective, ...]
    compute_seconds: float
    memory_seconds: float
    interconnect_seconds: float

    @property
    def devices(self) -> int:
        """Number of devices in the mesh."""
        return math.prod(size for _, size in self.mesh)

    @property
    def fits(self) -> bool:
        """Whether the step fits into the memory of a device."""
        return self.total_bytes <= self.hardware.memory

    @property
    def _seconds(self) -> dict[str, float]:
        return {
            "compute": self.compute_seconds,
            "memory": self.memory_seconds,
            "interconnect": self.interconnect_seconds,
        }

    @property
    def binds(self) -> str:
        """The limit of the step: which of "compute", "memory" and "interconnect" takes longest."""
        return max(self._seconds, key=lambda name: self._seconds[name])

    @property
    def seconds(self) -> tuple[float, float]:
        """Lower bounds of a step's seconds: if all three overlap, and if none do."""
        return max(self._seconds.values()), sum(self._seconds.values())

    def __str__(self) -> str:
        """The size as tables."""
        mesh = " x ".join(f"{axis} {size}" for axis, size in self.mesh)
        memory = {
            "parameters": self.parameter_bytes,
            "gradients": self.gradient_bytes,
            "optimizer": self.optimizer_bytes,
            "batch and other variables": self.other_bytes,
            "activations": self.activation_bytes,
            "exchanged": self.exchanged_bytes,
            "peak": self.total_bytes,
            "available": self.hardware.memory,
        }
        times = {**self._seconds, "overlapping": self.seconds[0], "in turn": self.seconds[1]}
        rows = [{"memory of a device": k, "bytes": _short(v, "B")} for k, v in memory.items()]
        steps = [{"time of a step": k, "seconds": _short(v, "s")} for k, v in times.items()]
        sent = [
            {
                "collective": f"{c.kind} of {c.content} over {', '.join(c.axes)}",
                "sent by a device": _short(c.sent, "B"),
                "seconds": _short(c.seconds, "s"),
            }
            for c in self.collectives
        ]
        return "\n\n".join(
            [
                f"{self.parameters:,} parameters, {mesh} of {self.hardware.name}, "
                f"{self.rows} rows x {self.accumulate} a device\n"
                f"{_short(self.flops, 'FLOP')} a step, {_short(self.device_flops, 'FLOP')} in "
                f"products and {_short(self.moved_bytes, 'B')} of memory traffic a device",
                table(rows) + ("" if self.fits else "\ndoes not fit"),
                *([table(sent)] if sent else []),
                table(steps) + f"\n{self.binds} binds",
            ]
        )


def _short(value: float, unit: str) -> str:
    """A number with four digits and a unit prefix.

    >>> _short(12_345_678, "B"), _short(0.00042, "s"), _short(0.0, "s")
    ('12.35 MB', '420 us', '0 s')
    """
    prefixes = {5: "P", 4: "T", 3: "G", 2: "M", 1: "k", 0: "", -1: "m", -2: "u", -3: "n"}
    power = max(-3, min(5, math.floor(math.log10(value) / 3))) if value else 0
    return f"{value / 1000**power:.4g} {prefixes[power]}{unit}"


def size(
    task: Task,
    batch: Mapping[str, Any],
    plan: Plan | None = None,
    *,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    compute: str = "float32",
    hardware: str | Hardware = "H100",
    mesh: Mapping[str, int] | None = None,
) -> Size:
    """The memory and time that one `train_step` needs; nothing is allocated, compiled or run.

    The memory is that of the values which the traced gradient stores. It is assumed that cheap
    elementwise results are computed where they are used, and that results are freed after their
    last use. Seconds are lower bounds, with peak rates, full bandwidths and no latency (but caches
    may be faster than the memory). The collectives do not include the statistics of batch norm,
    the metrics and the communication of rows.
    Blocks in `flax.linen.remat` count as recomputed, although `fit` stores their activations under
    "fsdp" (`jo.gathered`).

    Args:
        task: the task.
        batch: columns, or their shapes (`jax.ShapeDtypeStruct`), of all devices together.
        plan: how the state and the batch are placed; one device by default.
        optimizer: the optimizer, see `fit`.
        accumulate: number of microbatches in a step.
        compute: the compute dtype, see `fit`.
        hardware: a name in `jaxops.devices.hardware.HARDWARE`, or a `Hardware`.
        mesh: sizes of the plan's axes, which replace those of the plan's own devices. So you can
            compute the size for more devices than there are.

    Raises:
        ValueError: unknown hardware, or a mesh that lacks an axis of the plan.

    References:
        Rings: Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002. Fsdp: Rajbhandari et al.
        2020, arXiv:1910.02054. Tensor parallelism: Shoeybi et al. 2019, arXiv:1909.08053.

    >>> from jaxops import optim, vision
    >>> images = {"image": jax.ShapeDtypeStruct((64, 28, 28, 1), "uint8"),
    ...           "label": jax.ShapeDtypeStruct((64,), "int32")}
    >>> needs = size(vision.classifier(vision.MLP()), images, optimizer=optim.adam(1e-3))
    >>> needs.parameters, needs.optimizer_bytes, needs.binds
    (101770, 814164.0, 'memory')
    """
    device = _hardware(hardware)
    check_accumulate(task, accumulate)
    plan = plan or single()
    if mesh is not None:
        plan = _over(plan, mesh)
    axes = dict(plan.mesh.shape)
    rows = next(iter(batch.values())).shape[0]
    local = plan.padded(rows, accumulate) // (plan.batch_shards * accumulate)
    micro = {
        name: jax.ShapeDtypeStruct((local, *v.shape[1:]), jax.dtypes.canonicalize_dtype(v.dtype))
        for name, v in batch.items()
    }
    state = state_shapes(task, optimizer, micro)
    placed = plan.state_shardings(state)
    held = {name: _bytes(getattr(state, name), getattr(placed, name)) for name in state._fields}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    whole = _bytes(state.params)
    with computing(compute):
        one = _gradient(task, state, placed, micro, plan, device.platform)
    after = _update(task, optimizer, state, micro)
    collectives = _collectives(state.params, placed.params, plan, one, accumulate, device)
    largest, summed = _exchanged(state.params, placed.params, plan, device)
    other = held["extra"] + accumulate * _bytes(micro)
    total = held["params"] + held["opt_state"] + other + largest
    total += max(one.alive, held["params"] + summed)  # gradients are summed when all are computed
    moved = accumulate * one.moved + 3 * held["params"] + 2 * held["opt_state"]
    if accumulate > 1:  # the sum of the gradients so far
        total += held["params"]
        moved += 2 * accumulate * held["params"]
    share = held["params"] / whole if whole else 0.0
    products = defaultdict(float, {k: v * accumulate for k, v in one.products.items()})
    for dtype, flops in after.products.items():
        products[dtype] += share * flops
    return Size(
        device, tuple(axes.items()), local, accumulate, parameters,
        held["params"], held["params"], held["opt_state"], other,
        one.activations, largest + summed, total,
        one.flops * plan.batch_shards * accumulate + after.flops, sum(products.values()), moved,
        collectives,
        sum(flops / _rate(device, dtype, compute) for dtype, flops in products.items()),
        moved / device.bandwidth,
        sum(c.seconds for c in collectives),
    )  # fmt: skip


def _hardware(hardware: str | Hardware) -> Hardware:
    if isinstance(hardware, Hardware):
        return hardware
    if hardware not in HARDWARE:
        raise ValueError(f"hardware must be one of {', '.join(HARDWARE)}, got {hardware!r}")
    return HARDWARE[hardware]


def _over(plan: Plan, mesh: Mapping[str, int]) -> Plan:
    """The plan with a mesh of other sizes, whose devices need not exist."""
    if set(plan.mesh.axis_names) != set(mesh):
        raise ValueError(f"mesh must have the axes {[*plan.mesh.axis_names]}, got {[*mesh]}")
    sizes = tuple(mesh[axis] for axis in plan.mesh.axis_names)
    abstract = AbstractMesh(sizes, plan.mesh.axis_names, axis_types=(AxisType.Auto,) * len(sizes))
    rule: Any = plan.rule
    if isinstance(rule, Rules):
        rule = rule._replace(shards=mesh.get("fsdp", 1))
    return plan._replace(mesh=cast(Any, abstract), rule=rule)


def _bytes(tree: Any, shardings: Any = None) -> float:
    """Bytes of all leaves, or of one device's part of them."""
    leaves = jax.tree.leaves(tree)
    places = jax.tree.leaves(shardings) if shardings is not None else [None] * len(leaves)
    return float(
        sum(
            math.prod(place.shard_shape(leaf.shape) if place else leaf.shape) * leaf.dtype.itemsize
            for leaf, place in zip(leaves, places, strict=True)
            if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)  # the key: 8 bytes
        )
    )


def _axes(sharding: Any) -> list[tuple[str, ...]]:
    """For each axis of an array, the mesh axes that split it."""
    return [a if isinstance(a, tuple) else (a,) if a else () for a in sharding.spec]


def _gradient(
    task: Task, state: TrainState, placed: Any, batch: Any, plan: Plan, platform: str
) -> Cost:
    """Forward and backward pass of one microbatch on one device."""

    traced, shapes = jax.make_jaxpr(
        lambda state, batch: gradients(task, state, batch, state.key), return_shape=True
    )(state, batch)
    splits = []
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True):
        axes = [*_axes(place), *[()] * (leaf.ndim - len(place.spec))]
        splits.append(tuple(bool(set(a) - set(plan.batch_axes)) for a in axes))
    kept = [
        1 / _product(plan, (a for axes in _axes(place) for a in axes if a in plan.batch_axes))
        for place in jax.tree.leaves(placed.params)
    ]
    others = [None] * len(jax.tree.leaves(shapes[:2]))
    parts = _product(plan, (a for a in plan.mesh.axis_names if a not in plan.batch_axes))
    return cost(traced, platform, splits, parts, [*others, *kept])


def _product(plan: Plan, axes: Any) -> int:
    return math.prod(plan.mesh.shape[axis] for axis in axes)


def _update(task: Task, tx: optax.GradientTransformation, state: TrainState, batch: Any) -> Cost:
    """The cost of the optimizer, computed as if it updated whole parameters."""
    total, out, grads = jax.eval_shape(lambda s, b: gradients(task, s, b, s.key), state, batch)
    return cost(jax.make_jaxpr(functools.partial(update, tx))(state, total, out, grads))


def _exchanged(params: Any, placed: Any, plan: Plan, device: Hardware) -> tuple[float, float]:
    """Bytes of the largest parameter that a batch's axes split, and of all summed gradients."""
    largest = summed = 0.0
    for leaf, place in zip(jax.tree.leaves(params), jax.tree.leaves(placed), strict=True):
        axes = [axis for axes in _axes(place) for axis in axes]
        if set(axes) & set(plan.batch_axes):
            left = _product(plan, (a for a in axes if a not in plan.batch_axes))
            largest = max(largest, 2 * leaf.size * leaf.dtype.itemsize / left)
        if device.platform == "cpu" and _product(plan, set(plan.batch_axes) - set(axes)) > 1:
            summed += leaf.size * leaf.dtype.itemsize / _product(plan, axes)
    return largest, summed


def _collectives(
    params: Any, placed: Any, plan: Plan, one: Cost, accumulate: int, device: Hardware
) -> tuple[Collective, ...]:
    """The communication of a step with `accumulate` microbatches."""
    sizes: dict[tuple[str, tuple[str, ...], str], float] = defaultdict(float)
    for leaf, place in zip(jax.tree.leaves(params), jax.tree.leaves(placed), strict=True):
        splits = [axis for axes in _axes(place) for axis in axes]
        size = leaf.size * leaf.dtype.itemsize
        size /= _product(plan, (a for a in splits if a not in plan.batch_axes))
        over = tuple(a for a in plan.batch_axes if a in splits)
        if over:  # gathered for the forward pass, and again for the backward pass
            sizes["all-gather", over, "parameters"] += 2 * size
            sizes["reduce-scatter", over, "gradients"] += size
        rest = tuple(a for a in plan.batch_axes if a not in splits)
        sizes["all-reduce", rest, "gradients"] += 2 * size / _product(plan, over)
    others = tuple(a for a in plan.mesh.axis_names if a not in plan.batch_axes)
    sizes["all-reduce", others, "activations"] += 2 * one.reduced
    return tuple(_rings({k: accumulate * v for k, v in sizes.items()}, plan, device))


def _rings(sizes: Any, plan: Plan, device: Hardware) -> Iterator[Collective]:
    """Each collective as rings within an island, and as rings of its parts between islands."""
    names = list(plan.mesh.axis_names)
    for (kind, axes, of), size in sizes.items():
        count = _product(plan, axes)
        if count == 1 or not size:
            continue
        # neighbours along the last axis are neighbours in the machine
        apart = _product(plan, names[max(map(names.index, axes)) + 1 :])
        near = min(count, max(1, device.island // apart))
        far = count / near
        within, between = size * (near - 1) / near, size * (far - 1) / (far * near)
        seconds = within / device.interconnect + between / device.network
        yield Collective(kind, axes, of, within + between, seconds)


def _rate(device: Hardware, dtype: str, compute: str) -> float:
    """FLOP/s for a dtype; on a host without bfloat16, such products are traced as float32."""
    narrow = compute != "float32" and not has_bfloat16()
    return device.bfloat16 if narrow or dtype in ("bfloat16", "float16") else device.float32
