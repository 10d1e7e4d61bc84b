"""A round as a task: the gradient of its loss is the clients' average update, with a minus."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxops.devices.plans import Plan
from jaxops.federation.clients import Chosen
from jaxops.federation.local import Local, train_client
from jaxops.federation.updates import Compression, plain_size
from jaxops.metrics import Mean, fold
from jaxops.privacy.gaussian import Gaussian, clipped_sum
from jaxops.task import Array, Batch, Extra, Key, Out, Params, Task


class Private(NamedTuple):
    """Privacy of whole clients: each update is clipped, and noise is added once to their sum.

    With updates u_k of the clients that take part, the server's update is
    (sum_k u_k min(1, clip / |u_k|) + Normal(0, (noise_multiplier * clip)^2)) / m, where m is the
    (expected) number of clients in a round. All clients count equally, however many rows they have.
    The epsilon of `privacy.epsilon` is about clients that are drawn independently (`poisson`).

    Attributes:
        clip: the largest norm of a client's update, over all parameters, above 0.
        noise_multiplier: the standard deviation of the noise, in units of `clip`, above 0.

    References:
        McMahan et al. 2018, arXiv:1710.06963.

    >>> Private(clip=1.0, noise_multiplier=0.8)
    Private(clip=1.0, noise_multiplier=0.8)
    """

    clip: float
    noise_multiplier: float


class Method(NamedTuple):
    """How a round goes.

    Attributes:
        local: what a client does.
        scaffold: whether control variates correct the clients' gradients.
        private: clipping and noise, or `None`.
        compression: of the clients' updates, or `None`.
    """

    local: Local
    scaffold: bool = False
    private: Private | None = None
    compression: Compression | None = None

    @property
    def remembers(self) -> bool:
        """Whether clients remember what their messages have left out."""
        return self.compression is not None and self.compression.feedback

    def start(self, params: Params, clients: int) -> dict[str, Params]:
        """What the server and the clients keep from round to round besides the model.

        Returns:
            With `scaffold`, "control" like the parameters, and "controls" of each client; with
            feedback, "left" of each client: what its messages have left out. All zero.
        """

        def of_each() -> Params:
            return jax.tree.map(lambda p: jnp.zeros((clients, *p.shape), p.dtype), params)

        kept: dict[str, Params] = {}
        if self.scaffold:
            kept |= {"control": jax.tree.map(jnp.zeros_like, params), "controls": of_each()}
        if self.remembers:
            kept["left"] = of_each()
        return kept


class Sums(NamedTuple):
    """Sums over clients.

    Attributes:
        update: of weight * (client's parameters - server's).
        extra: the same of the other variables.
        control: of the client's share of all weight * the change of its control variate.
        weight: of the weights.
        clients: the number of clients.
    """

    update: Params
    extra: Extra
    control: Params
    weight: Array
    clients: Array


@functools.lru_cache(maxsize=32)
def federated(
    task: Task,
    method: Method,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    clients: int,
    expected: int,
    plan: Plan,
    block: int,
) -> Task:
    """The task whose training step is a round, so that `jaxops.fit` runs the rounds.

    Its batch is the `Chosen` clients of a round. Its loss is the mean of the clients' losses, and
    the gradient of the loss is minus the average update. So SGD at a rate of 1 makes the server's
    step of FedAvg, and any other optimizer that of Reddi et al. Evaluations and predictions are
    those of `task`. The variables in its `extra` are "model", those of the task, and "clients",
    see `Method.start`.

    Args:
        task: what to learn.
        method: how.
        shapes: (name, shape of a row) of each column, and of `mask`.
        clients: the number of all clients.
        expected: the expected number of clients in a round.
        plan: the devices; the clients of a round are split over them.
        block: number of clients that are computed together on a device.
    """
    axes = plan.batch_axes
    one = functools.partial(_client, task, method, shapes, clients)
    over_devices = jax.shard_map(
        functools.partial(_on_a_device, one, block, axes),
        mesh=plan.mesh,
        in_specs=(PartitionSpec(), PartitionSpec(axes), PartitionSpec()),
        out_specs=(PartitionSpec(), PartitionSpec(axes), PartitionSpec()),
        check_vma=False,
    )

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        params, extra = task.init(key, batch)
        if method.private and jax.tree.leaves(extra):
            raise ValueError(
                "task must have no variables besides its parameters for private=, got "
                f"{', '.join(sorted(extra))}: they would leave the clients without noise"
            )
        return params, {"model": extra, "clients": method.start(params, clients)}

    def loss(params: Params, extra: Extra, batch: Any, key: Key, train: bool) -> tuple[Array, Out]:
        if not train:
            return task.loss(params, extra["model"], batch, key, False)
        server = jax.lax.stop_gradient(params)
        key, noise_key = jax.random.split(key)
        kept = extra["clients"]
        own = {name: _rows(kept[name], batch.client) for name in kept if name != "control"}
        given = server, extra["model"], kept.get("control", ())
        sums, own, metrics = over_devices(given, (batch, own), key)
        update, weight = sums.update, sums.weight
        if method.private:
            update = Gaussian(*method.private, batch_size=1)(update, noise_key)
            weight = jnp.float32(expected)
        new = {
            "model": _averaged(extra["model"], sums.extra, sums.weight),
            "clients": _kept(kept, sums.control, own, batch.client),
        }
        own_loss = metrics.pop("loss")
        total = own_loss.total * weight / jnp.where(own_loss.weight > 0, own_loss.weight, 1.0)
        size = method.compression.size(params) if method.compression else plain_size(params)
        size += plain_size((extra["model"], kept.get("control", ())))
        metrics["sent_megabytes"] = Mean(size / 1e6 * sums.clients, jnp.ones(()))
        return total + _with_gradient(params, update), Out(weight, metrics, new)

    def predict(params: Params, extra: Extra, batch: Batch) -> Any:
        return task.predict(params, extra["model"], batch)

    recipe = {"task": task, **method.local._asdict(), **method._asdict()}
    del recipe["local"]
    made = federated, tuple(recipe.items())
    # coupled: the parts of a batch of clients are taken here, not by `accumulate`
    return Task(init, loss, predict, classes=task.classes, recipe=made, coupled=True)


def _rows(tree: Any, index: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _with_gradient(params: Params, update: Params) -> Array:
    """Zero, whose gradient by the parameters is `-update`."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(update), strict=True)
    line = -sum((p * jax.lax.stop_gradient(u)).sum() for p, u in pairs)
    return line - jax.lax.stop_gradient(line)


def _averaged(extra: Extra, sums: Extra, weight: Array) -> Extra:
    """The mean of the clients' variables; whole numbers stay as they are."""
    weight = jnp.where(weight > 0, weight, 1.0)

    def mean(leaf: Array, total: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf + (total / weight).astype(leaf.dtype)

    return jax.tree.map(mean, extra, sums)


def _kept(kept: Any, control: Params, own: Any, client: Array) -> Any:
    """The state of the server and of all clients after the round."""
    new = {
        name: jax.tree.map(lambda all_, rows: all_.at[client].set(rows, mode="drop"),
                           kept[name], own[name])
        for name in own
    }  # fmt: skip
    if "control" in kept:
        new["control"] = jax.tree.map(jnp.add, kept["control"], control)
    return new


def _on_a_device(
    one: Any, block: int, axes: tuple[str, ...], server: Any, clients: Any, key: Key
) -> tuple[Sums, Any, dict[str, Any]]:
    """The clients on this device, `block` at a time; the sums are those over all devices."""
    params, extra, control = server

    def together(part: Any) -> Any:
        if block == 1:  # no vmap, which some operations are slower in
            out = one(server, *jax.tree.map(lambda leaf: leaf[0], part), key)
            return jax.tree.map(lambda leaf: leaf[None], out)
        return jax.vmap(lambda mine: one(server, *mine, key))(part)

    def add(sums: Sums, part: Any) -> tuple[Sums, Any]:
        given, own, metrics = together(part)
        return jax.tree.map(lambda s, g: s + g.sum(0).astype(s.dtype), sums, given), (own, metrics)

    def zeros(tree: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, tree)

    start = Sums(zeros(params), zeros(extra), zeros(control), jnp.zeros(()), jnp.zeros(()))
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, block, *leaf.shape[1:]), clients)
    sums, outs = jax.lax.scan(add, start, parts)
    own, metrics = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), outs)
    metrics = fold(jax.lax.all_gather(fold(metrics), axes))
    return jax.lax.psum(sums, axes), own, metrics


def _client(
    task: Task, method: Method, shapes: Any, clients: int, server: Any, mine: Chosen, own: Any,
    key: Key,
) -> tuple[Sums, dict[str, Params], dict[str, Any]]:  # fmt: skip
    """One client's part of the sums, what it keeps, and its metrics."""
    params, extra, control = server
    there = (mine.client < clients).astype(jnp.float32)
    train_key, key = jax.random.split(jax.random.fold_in(key, mine.client))
    correction = None
    if method.scaffold:
        correction = jax.tree.map(jnp.subtract, control, own["controls"])
    trained = train_client(
        task, method.local, shapes, params, extra, mine.rows, train_key, correction
    )
    update = jax.tree.map(jnp.subtract, trained.params, params)
    change, weight, new = (), mine.rows["mask"].sum(), {}
    if method.scaffold:
        # for SGD this is option II of the paper: c_i - c + (x - y_i) / (K eta)
        new["controls"] = trained.gradient
        moved = jax.tree.map(jnp.subtract, trained.gradient, own["controls"])
        change = jax.tree.map(lambda m: there * mine.share * m, moved)
    if method.private:
        one = jax.tree.map(lambda u: u[None], update)  # not finite, it counts as zero
        update, weight = clipped_sum(one, method.private.clip), there
    if method.compression:
        wanted = jax.tree.map(jnp.add, update, own["left"]) if method.remembers else update
        update = method.compression.compress(key, wanted)
        if method.remembers:
            new["left"] = jax.tree.map(jnp.subtract, wanted, update)
    moved = jax.tree.map(jnp.subtract, trained.extra, extra)
    update, moved = jax.tree.map(lambda leaf: weight * leaf, (update, moved))
    return Sums(update, moved, change, weight, there), new, trained.metrics
