"""How a state and a batch lie on the devices: `Plan`. No model mentions a mesh."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxops import hosts
from jaxops.hosts import start as start

Rule = Callable[[str, jax.ShapeDtypeStruct], PartitionSpec]


def replicated(path: str, leaf: jax.ShapeDtypeStruct) -> PartitionSpec:
    """The rule of data parallelism: every device holds the whole leaf."""
    return PartitionSpec()


class Plan(NamedTuple):
    """A mesh, the axes that split a batch, and a rule that places each leaf of a state.

    Attributes:
        mesh: the devices by named axes.
        batch_axes: the mesh axes over which the rows of a batch are split.
        rule: `(path, leaf) -> PartitionSpec` for each leaf of the state; the path reads like
            ".params['logits']['kernel']".
    """

    mesh: Mesh
    batch_axes: tuple[str, ...]
    rule: Rule = replicated

    @property
    def batch_shards(self) -> int:
        """Into how many parts a batch is split."""
        count = 1
        for axis in self.batch_axes:
            count *= self.mesh.shape[axis]
        return count

    def state_shardings(self, state: Any) -> Any:
        """A tree of shardings for a state, abstract or not, by the rule."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: NamedSharding(
                self.mesh, self.rule(jax.tree_util.keystr(path), leaf)
            ),
            state,
        )

    def batch_sharding(self, leading: int = 0) -> NamedSharding:
        """Rows split over the batch axes, behind `leading` axes that stay whole."""
        return NamedSharding(self.mesh, PartitionSpec(*[None] * leading, self.batch_axes))

    def whole(self) -> NamedSharding:
        """On every device, unsplit."""
        return NamedSharding(self.mesh, PartitionSpec())

    def check_batch_size(self, batch_size: int) -> None:
        """Raise `ValueError` where a batch does not divide over the devices."""
        if batch_size % self.batch_shards:
            low = batch_size - batch_size % self.batch_shards
            raise ValueError(
                f"batch_size: {batch_size} rows do not divide over {self.batch_shards} devices; "
                f"wanted a multiple of {self.batch_shards}, such as {low + self.batch_shards}"
            )


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
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    return Plan(mesh, ("data",))


def default() -> Plan:
    """One device where there is one process, else data parallelism over all processes."""
    return single() if hosts.count() == 1 else data_parallel()
