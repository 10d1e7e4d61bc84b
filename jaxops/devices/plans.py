"""How a state and a batch lie on the devices: `Plan`. No model mentions a mesh."""

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
    """The rule of data parallelism: every device holds the whole leaf."""
    return PartitionSpec()


class Rules(NamedTuple):
    """The rule of `plan`: first what is asked for by name, then what is left for `fsdp`.

    Attributes:
        named: (regular expression, PartitionSpec); the first that is found in a path counts.
        shards: the devices along "fsdp"; 1 splits nothing more.
        min_size: a leaf of fewer elements is not split by "fsdp".

    >>> tuple(Rules(shards=8)("params/hidden/kernel", jax.ShapeDtypeStruct((784, 512), "float32")))
    ('fsdp', None)
    """

    named: tuple[tuple[str, PartitionSpec], ...] = ()
    shards: int = 1
    min_size: int = MIN_SIZE

    def __call__(self, path: str, leaf: Any) -> PartitionSpec:
        """The axes of a leaf: the largest free one that divides goes to "fsdp"."""
        asked = next((spec for pattern, spec in self.named if re.search(pattern, path)), ())
        # an optimizer may keep a leaf of another rank by a parameter's name (Adafactor does)
        axes = [*asked, *[None] * (leaf.ndim - len(asked))] if len(asked) <= leaf.ndim else []
        free = [i for i, axis in enumerate(axes) if not axis and not leaf.shape[i] % self.shards]
        # what is not trained, such as the series of a forecast, is read anywhere by any device
        trained = not path.startswith("extra/")
        wanted = trained and self.shards > 1 and leaf.size >= self.min_size
        if wanted and free and "fsdp" not in jax.tree.leaves(axes):
            axes[max(free, key=lambda i: leaf.shape[i])] = "fsdp"
        return PartitionSpec(*axes)


class Plan(NamedTuple):
    """A mesh, the axes that split a batch, and a rule that places each leaf of a state.

    Plans that are equal give equal programs, so a rule of your own is best a function of a module.

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
        """Into how many parts a batch is split."""
        return math.prod(self.mesh.shape[axis] for axis in self.batch_axes)

    def padded(self, rows: int, accumulate: int = 1) -> int:
        """As many rows, or the next number that divides over devices and microbatches."""
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
                return PartitionSpec()  # what an optimizer keeps may have another shape
            if leaf.shape[i] % shards:
                raise ValueError(
                    f"{path}: axis {i} of {leaf.shape} found, a multiple of {shards} wanted by "
                    f"the rule's {spec}"
                )
        return spec

    def batch_sharding(self, leading: int = 0) -> NamedSharding:
        """Rows split over the batch axes, behind `leading` axes that stay whole."""
        return NamedSharding(self.mesh, PartitionSpec(*[None] * leading, self.batch_axes))

    def whole(self) -> NamedSharding:
        """On every device, unsplit."""
        return NamedSharding(self.mesh, PartitionSpec())


def _check_names(named: tuple[tuple[str, PartitionSpec], ...], leaves: Any) -> None:
    """Each expression has to find a parameter, and one with as many axes as it splits."""
    params = [(path, leaf) for path, leaf in leaves if path.startswith("params/")]
    for pattern, spec in named if params else ():
        found = [(path, leaf) for path, leaf in params if re.search(pattern, path)]
        if not found:
            names = ", ".join(path for path, _ in params[:10])
            raise ValueError(
                f"rules: {pattern!r} finds none of {names}{', ...' * (len(params) > 10)}"
            )
        for path, leaf in found:
            if len(spec) > leaf.ndim:
                raise ValueError(f"{path}: {leaf.shape} found, {len(spec)} axes wanted by {spec}")


def plan(
    data: int | None = None,
    fsdp: int | None = None,
    tensor: int | None = None,
    *,
    min_size: int = MIN_SIZE,
    rules: Sequence[tuple[str, Sequence[Any]]] = (),
    devices: Sequence[jax.Device] | None = None,
) -> Plan:
    """Any combination of the three ways to share the work over data * fsdp * tensor devices.

    "data" and "fsdp" split the rows of a batch. "fsdp" splits large parameters too, and the
    optimizer's state with them (Rajbhandari et al. 2020, arXiv:1910.02054, stage 3): each is put
    together when it is used, and not kept (`gathered`). "tensor" splits nothing by itself: rules
    say which axes of which parameters, and XLA splits the products that use them (Shoeybi et al.
    2019, arXiv:1909.08053). The numbers are those of one device.

    Args:
        data: devices along the axis "data", if there is to be one.
        fsdp: devices along "fsdp"; the largest axis that divides and that no rule takes is split.
        tensor: devices along "tensor".
        min_size: a leaf of fewer elements is whole on each device along "fsdp".
        rules: (regular expression, axes), such as `(r"hidden/kernel", (None, "tensor"))` for the
            columns of a matrix or `(r"tokens/embedding", ("tensor",))` for the rows of an
            embedding; the first that is found in a leaf's path counts.
        devices: as many; all of them by default.

    Raises:
        ValueError: the numbers do not multiply to the devices, or a rule names an axis that is
            not there. A rule that does not fit a model's parameters is found when a state is made.

    >>> whole = plan(data=1, devices=jax.devices()[:1])
    >>> whole.mesh.axis_names, whole.batch_shards
    (('data',), 1)
    """
    asked = {"data": data, "fsdp": fsdp, "tensor": tensor}
    sizes = {name: size for name, size in asked.items() if size is not None}
    devices = jax.devices() if devices is None else devices
    product = " * ".join(f"{name}={size}" for name, size in sizes.items())
    if not sizes or min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"plan: {product or 'no axis'} found, numbers with the product {len(devices)} wanted, "
            "the count of the devices; devices= names fewer"
        )
    named = tuple((pattern, PartitionSpec(*axes)) for pattern, axes in rules)
    for pattern, spec in named:
        for axis in jax.tree.leaves(tuple(spec)):
            if axis not in sizes:
                raise ValueError(f"rules: axis {axis!r} of {pattern!r} found, {[*sizes]} wanted")
    axis_types = (AxisType.Auto,) * len(sizes)
    mesh = jax.make_mesh((*sizes.values(),), (*sizes,), axis_types=axis_types, devices=devices)
    batch_axes = tuple(name for name in ("data", "fsdp") if name in sizes)
    if named or fsdp:
        rule = cast(Rule, Rules(named, fsdp or 1, min_size))  # mypy does not call a NamedTuple
        return Plan(mesh, batch_axes, rule)
    return Plan(mesh, batch_axes)


def single(device: jax.Device | None = None) -> Plan:
    """Everything on one device: the first, unless another is named."""
    return data_parallel([device or jax.local_devices()[0]])


def data_parallel(devices: Sequence[jax.Device] | None = None) -> Plan:
    """Each device holds the whole state and an equal share of each batch.

    The gradients are summed by one all-reduce, which XLA places; the numbers are those of one
    device with the whole batch. All devices of all processes, unless some are named.

    >>> data_parallel().batch_shards == jax.device_count()
    True
    """
    devices = jax.devices() if devices is None else devices
    return plan(data=len(devices), devices=devices)


def fsdp(min_size: int = MIN_SIZE, devices: Sequence[jax.Device] | None = None) -> Plan:
    """Each device holds a share of a batch, of the large parameters and of the optimizer's state.

    >>> tuple(fsdp().rule("params/hidden/kernel", jax.ShapeDtypeStruct((784, 512), "float32")))
    ('fsdp', None)
    """
    devices = jax.devices() if devices is None else devices
    return plan(fsdp=len(devices), min_size=min_size, devices=devices)


def tensor(
    rules: Sequence[tuple[str, Sequence[Any]]], devices: Sequence[jax.Device] | None = None
) -> Plan:
    """Each device holds the whole batch and the shares of the parameters that the rules split.

    >>> rows = tensor([("embedding$", ("tensor",))])
    >>> tuple(rows.rule("params/tokens/embedding", jax.ShapeDtypeStruct((1000, 64), "float32")))
    ('tensor', None)
    """
    devices = jax.devices() if devices is None else devices
    return plan(tensor=len(devices), rules=rules, devices=devices)


def default() -> Plan:
    """One device where there is one process, else data parallelism over all processes."""
    return single() if hosts.count() == 1 else data_parallel()
