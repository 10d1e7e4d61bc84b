"""Plans: how a state and a batch lie on the devices. A module never mentions a mesh."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxops.devices import hosts

Rule = Callable[[str, Any], PartitionSpec]
MIN_SIZE = 2**16


def replicated(path: str, leaf: Any) -> PartitionSpec:
    """The rule of data parallelism: every device holds the whole leaf.

    >>> tuple(replicated("params/hidden/kernel", jax.ShapeDtypeStruct((784, 512), "float32")))
    ()
    """
    return PartitionSpec()


class Rules(NamedTuple):
    """The rule of `plan`: first the splits of the user's rules, then those of "fsdp".

    Attributes:
        named: (regular expression, PartitionSpec) pairs; the first that matches a path applies.
        shards: number of devices along "fsdp"; with 1, "fsdp" splits nothing.
        min_size: leaves of fewer elements are not split by "fsdp".

    >>> tuple(Rules(shards=8)("params/hidden/kernel", jax.ShapeDtypeStruct((784, 512), "float32")))
    ('fsdp', None)
    """

    named: tuple[tuple[str, PartitionSpec], ...] = ()
    shards: int = 1
    min_size: int = MIN_SIZE

    def __call__(self, path: str, leaf: Any) -> PartitionSpec:
        """The mesh axes of a leaf; "fsdp" gets its largest free axis that divides evenly."""
        spec = next((spec for pattern, spec in self.named if re.search(pattern, path)), ())
        # an optimizer may keep a leaf of another rank under a parameter's name, as Adafactor does
        axes = [*spec, *[None] * (leaf.ndim - len(spec))] if len(spec) <= leaf.ndim else []
        free = [i for i, axis in enumerate(axes) if not axis and not leaf.shape[i] % self.shards]
        # any device may read any part of an array that is not trained, such as a forecast's series
        trained = not path.startswith("extra/")
        sharded = trained and self.shards > 1 and leaf.size >= self.min_size
        if sharded and free and "fsdp" not in jax.tree.leaves(axes):
            axes[max(free, key=lambda i: leaf.shape[i])] = "fsdp"
        return PartitionSpec(*axes)


class Plan(NamedTuple):
    """A mesh, the axes that split a batch, and a rule that places each leaf of a state.

    Equal plans share their compiled programs, so define your own rule at the top level of a module.

    Attributes:
        mesh: the devices by named axes.
        batch_axes: the mesh axes over which the rows of a batch are split.
        rule: `(path, leaf) -> PartitionSpec` for each leaf of the state; the path reads like
            "params/logits/kernel" or "opt_state/0/mu/logits/kernel".
    """

    mesh: Mesh
    batch_axes: tuple[str, ...]
    rule: Rule = replicated

    @property
    def batch_shards(self) -> int:
        """Number of parts that a batch is split into."""
        return math.prod(self.mesh.shape[axis] for axis in self.batch_axes)

    def padded(self, rows: int, accumulate: int = 1) -> int:
        """`rows`, rounded up to a multiple of devices times microbatches."""
        parts = self.batch_shards * accumulate
        return -(-rows // parts) * parts

    def state_shardings(self, state: Any) -> Any:
        """A tree of shardings for a state, abstract or not, by the rule.

        Raises:
            ValueError: the rule does not fit the parameters.
        """
        paths, tree = jax.tree_util.tree_flatten_with_path(state)
        leaves = [
            (jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in paths
        ]
        if isinstance(self.rule, Rules):
            _check_names(self.rule.named, leaves)
        shardings = [NamedSharding(self.mesh, self._spec(*leaf)) for leaf in leaves]
        return jax.tree.unflatten(tree, shardings)

    def _spec(self, path: str, leaf: Any) -> PartitionSpec:
        spec = self.rule(path, leaf)
        for i, axes in enumerate(spec):
            names = axes if isinstance(axes, tuple) else (axes,) if axes else ()
            shards = math.prod(self.mesh.shape[name] for name in names)
            if leaf.shape[i] % shards and not path.startswith("params/"):
                return PartitionSpec()  # an optimizer's array may have another shape
            if leaf.shape[i] % shards:
                raise ValueError(
                    f"{path}: axis {i} must be a multiple of {shards} for the rule {spec}, got "
                    f"shape {leaf.shape}"
                )
        return spec

    def batch_sharding(self, leading: int = 0) -> NamedSharding:
        """Rows split over the batch axes; `leading` axes before them stay whole."""
        return NamedSharding(self.mesh, PartitionSpec(*[None] * leading, self.batch_axes))

    def whole(self) -> NamedSharding:
        """The sharding of an array that is whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())


def _check_names(named: tuple[tuple[str, PartitionSpec], ...], leaves: Any) -> None:
    """Check that each expression matches a parameter with as many axes as the rule names."""
    params = [(path, leaf) for path, leaf in leaves if path.startswith("params/")]
    for pattern, spec in named if params else ():
        matches = [(path, leaf) for path, leaf in params if re.search(pattern, path)]
        if not matches:
            names = ", ".join(path for path, _ in params[:10])
            raise ValueError(
                f"rules must each match a parameter, got {pattern!r}, which matches none of "
                f"{names}{', ...' * (len(params) > 10)}"
            )
        for path, leaf in matches:
            if len(spec) > leaf.ndim:
                raise ValueError(
                    f"{path} must have {len(spec)} axes for the rule {spec}, got shape {leaf.shape}"
                )


def plan(
    data: int | None = None,
    fsdp: int | None = None,
    tensor: int | None = None,
    *,
    min_size: int = MIN_SIZE,
    rules: Sequence[tuple[str, Sequence[Any]]] = (),
    devices: Sequence[jax.Device] | None = None,
) -> Plan:
    """A plan over data * fsdp * tensor devices, which combines three ways to share the work.

    "data" and "fsdp" split the rows of a batch. "fsdp" also splits large parameters and their
    optimizer state (stage 3 of Rajbhandari et al.): each parameter is gathered when it is used,
    and the gathered copy is not kept (`gathered`). "tensor" splits nothing by itself: rules name
    the axes of the parameters to split, and XLA splits the matrix products that use them (Shoeybi
    et al.).
    Results match single-device training to 1e-5.

    Args:
        data: number of devices along the axis "data"; None leaves the axis out.
        fsdp: number of devices along "fsdp". It splits the largest axis of each large parameter
            that divides evenly and that no rule splits.
        tensor: number of devices along "tensor".
        min_size: leaves of fewer elements stay whole on each device along "fsdp".
        rules: (regular expression, axes) pairs, such as `(r"hidden/kernel", (None, "tensor"))` for
            the columns of a matrix or `(r"tokens/embedding", ("tensor",))` for the rows of an
            embedding; the first that matches the path of a parameter applies.
        devices: the devices; all by default.

    Raises:
        ValueError: the product of the sizes is not the number of devices, or a rule names an axis
            that the plan does not have. A rule that does not fit the parameters raises it when a
            state is made.

    References:
        Rajbhandari et al. 2020, arXiv:1910.02054; Shoeybi et al. 2019, arXiv:1909.08053.

    >>> whole = plan(data=1, devices=jax.devices()[:1])
    >>> whole.mesh.axis_names, whole.batch_shards
    (('data',), 1)
    """
    axes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    sizes = {name: size for name, size in axes.items() if size is not None}
    devices = jax.devices() if devices is None else devices
    product = " * ".join(f"{name}={size}" for name, size in sizes.items())
    if not sizes or min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"the sizes of the plan's axes must have the product {len(devices)} (the number of "
            f"devices), got {product or 'no axis'}; devices= chooses fewer devices"
        )
    named = tuple((pattern, PartitionSpec(*axes)) for pattern, axes in rules)
    for pattern, spec in named:
        for axis in jax.tree.leaves(tuple(spec)):
            if axis not in sizes:
                raise ValueError(
                    f"the axis of rule {pattern!r} must be one of {[*sizes]}, got {axis!r}"
                )
    axis_types = (AxisType.Auto,) * len(sizes)
    mesh = jax.make_mesh((*sizes.values(),), (*sizes,), axis_types=axis_types, devices=devices)
    batch_axes = tuple(name for name in ("data", "fsdp") if name in sizes)
    if named or fsdp:
        rule = cast(Rule, Rules(named, fsdp or 1, min_size))  # mypy does not call a NamedTuple
        return Plan(mesh, batch_axes, rule)
    return Plan(mesh, batch_axes)


def single(device: jax.Device | None = None) -> Plan:
    """A plan with everything on one device, by default the first.

    >>> single().batch_shards
    1
    """
    return data_parallel([device or jax.local_devices()[0]])


def data_parallel(devices: Sequence[jax.Device] | None = None) -> Plan:
    """Each device holds the whole state and an equal share of each batch.

    XLA sums the gradients by an all-reduce; results match single-device training to 1e-5.

    Args:
        devices: by default all devices of all processes.

    >>> data_parallel().batch_shards == jax.device_count()
    True
    """
    devices = jax.devices() if devices is None else devices
    return plan(data=len(devices), devices=devices)


def fsdp(min_size: int = MIN_SIZE, devices: Sequence[jax.Device] | None = None) -> Plan:
    """Each device holds a share of a batch, of the large parameters and of the optimizer's state.

    Args:
        min_size: leaves of fewer elements stay whole on each device.
        devices: by default all devices of all processes.

    >>> tuple(fsdp().rule("params/hidden/kernel", jax.ShapeDtypeStruct((784, 512), "float32")))
    ('fsdp', None)
    """
    devices = jax.devices() if devices is None else devices
    return plan(fsdp=len(devices), min_size=min_size, devices=devices)


def tensor(
    rules: Sequence[tuple[str, Sequence[Any]]], devices: Sequence[jax.Device] | None = None
) -> Plan:
    """Each device holds the whole batch and a share of the parameters that the rules split.

    Args:
        rules: see `plan`.
        devices: by default all devices of all processes.

    >>> rows = tensor([("embedding$", ("tensor",))])
    >>> tuple(rows.rule("params/tokens/embedding", jax.ShapeDtypeStruct((1000, 64), "float32")))
    ('tensor', None)
    """
    devices = jax.devices() if devices is None else devices
    return plan(tensor=len(devices), rules=rules, devices=devices)


def default() -> Plan:
    """One device if there is one process, else data parallelism over all processes."""
    return single() if hosts.count() == 1 else data_parallel()
