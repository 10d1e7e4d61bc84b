"""Pruning by magnitude: the smallest entries of kernels become zero, and stay so in training."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxops import optim
from jaxops.compress.networks import Network, changed, matched, path_of, tuning
from jaxops.data.checks import rows
from jaxops.model.finished import Model
from jaxops.model.selection import trained_further
from jaxops.task import Array, Params

KERNELS = r"kernel[^/]*$"


def prune(
    model: Model,
    sparsity: float = 0.5,
    by: str = "global",
    pattern: str | None = None,
    kernels: str = KERNELS,
    data: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Model:
    """Set the smallest entries of a model's kernels to zero, by their absolute values.

    Zeros alone make nothing faster and no file smaller: products of jaxops are dense, and a model
    file holds every entry. They are worth having for hardware that has 2:4 products, for archives
    that are compressed, and as a step before `structured` and `quantise`.

    With data, the model is trained further. The sparsity grows over the first half of the steps by
    `cubic`; then the zeros stay and the rest is trained. The 2:4 pattern has no such growth.

    Args:
        model: a model of any room that has a network.
        sparsity: the share of entries that are zero afterwards, in (0, 1).
        by: "global" compares the entries of all kernels of a network, "layer" those of each kernel.
        pattern: "2:4" keeps the two largest of each four entries that follow each other along the
            inputs of a kernel. Kernels whose number of inputs is no multiple of 4 stay as they are;
            `about` names them. The sparsity must then be 0.5.
        kernels: a regular expression, searched for in the paths of parameters, that says which are
            pruned, of those with two axes or more. By default these are kernels, without embeddings
            and positions.
        data: columns of the task, as `jaxops.fit` takes them, for training. With raw data, prune
            without data and then call `ROOM.update(model, data, optimizer=...)` with an optimizer
            that ends with `keep_zeros()`.
        **settings: of `jaxops.fit`, for training: by default Adam at 1e-3, 5 epochs, 128 rows a
            batch.

    Returns:
        The model. `about["compressed"]` says what was done, and which share of the entries is zero.

    Raises:
        ValueError: a share outside (0, 1), or smaller than the share that is zero already; a model
            without a network or without such kernels; settings without data; `early_stopping`,
            which might return a state from before all zeros.

    References:
        Han et al. 2015, arXiv:1506.02626; Mishra et al. 2021, arXiv:2104.08378 (2:4).

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> task = tabular.classifier(tabular.MLP((8,)), features=4)
    >>> rows = {"features": np.ones((1, 4), np.float32), "label": np.zeros(1, np.int32)}
    >>> model = Model(task, jo.init_state(task, optim.sgd(0.1), seed=0, batch=rows))
    >>> pruned = prune(model, 0.75)
    >>> int((pruned.state.params["hidden_0"]["kernel"] == 0).sum()
    ...     + (pruned.state.params["logits"]["kernel"] == 0).sum())
    30
    >>> pruned.about["compressed"][0]["zeros"]
    0.75
    """
    _check(sparsity, by, pattern, data, settings)
    counts = [0, 0]
    dense: list[str] = []

    def sparse(part: Network) -> Network:
        found = matched(part.params, kernels)
        if pattern is None:
            _check_more(found, sparsity)
        elif all(leaf.shape[-2] % 4 for leaf in found.values()):
            raise ValueError(
                "pattern must be None for kernels whose inputs are no multiple of 4, got '2:4' for "
                f"{', '.join(f'{name} {leaf.shape}' for name, leaf in found.items())}"
            )
        else:
            dense.extend(name for name, leaf in found.items() if leaf.shape[-2] % 4)
        params = _sparse(part.params, sparsity, by, pattern, kernels)
        new = matched(params, kernels)
        counts[0] += _zeros(new)
        counts[1] += sum(leaf.size for leaf in new.values())
        return part._replace(params=params)

    done: dict[str, Any] = {"method": "prune", "sparsity": sparsity, "by": by}
    if pattern:
        done |= {"by": "2:4", "dense": dense}
    if data is not None and pattern is None:
        model = _grown(model, sparsity, by, kernels, data, settings)
    new = changed(model, sparse, done)
    done["zeros"] = counts[0] / counts[1]
    if data is not None and pattern is not None:
        new = trained_further(new, data, _ending_with(keep_zeros(kernels), tuning(data, settings)))
    return new


def cubic(sparsity: float, steps: int, start: float = 0.0) -> optax.Schedule:
    """The sparsity at a step: `sparsity + (start - sparsity) (1 - step / steps)^3`, then it stays.

    Many entries go at first, when many are superfluous, and fewer and fewer later.

    Args:
        sparsity: the last share of zeros.
        steps: after which it is reached.
        start: the first share.

    References:
        Zhu and Gupta 2017, arXiv:1710.01878, equation 1.

    >>> [round(float(cubic(0.8, steps=100)(step)), 4) for step in (0, 50, 100, 200)]
    [0.0, 0.7, 0.8, 0.8]
    """
    return optax.polynomial_schedule(start, sparsity, 3, steps)


class SparseState(NamedTuple):
    """The number of updates, and the masks by path: False where an entry is zero."""

    step: Array
    masks: dict[str, Array]


@functools.lru_cache(maxsize=64)
def keep_zeros(kernels: str = KERNELS) -> optax.GradientTransformation:
    """Keep the entries of kernels that are zero at the start zero; last in a chain, before `ema`.

    Args:
        kernels: see `prune`.

    >>> params = {"kernel": jnp.array([[0.0, 2.0]])}
    >>> tx = optim.chain(optim.sgd(1.0), keep_zeros())
    >>> updates, _ = tx.update({"kernel": jnp.ones((1, 2))}, tx.init(params), params)
    >>> updates["kernel"].tolist()
    [[0.0, -1.0]]
    """

    def init(params: Params) -> SparseState:
        masks = {name: leaf != 0 for name, leaf in matched(params, kernels).items()}
        return SparseState(jnp.zeros((), jnp.int32), masks)

    def update(updates: Any, state: SparseState, params: Any = None) -> tuple[Any, SparseState]:
        return _masked(updates, state.masks), state

    return optax.GradientTransformation(init, update)


@functools.lru_cache(maxsize=64)
def gradual(
    sparsity: float,
    steps: int,
    every: int = 1,
    start: float = 0.0,
    by: str = "global",
    kernels: str = KERNELS,
) -> optax.GradientTransformation:
    """Set more and more of the smallest entries of kernels to zero; last in a chain, before `ema`.

    The share of zeros is `cubic(sparsity, steps, start)`. Between two choices, and after `steps`,
    the zeros stay.

    Args:
        sparsity: the last share of zeros.
        steps: after which it is reached.
        every: number of updates between choices, each of which sorts the kernels' entries.
        start: the first share.
        by: see `prune`.
        kernels: see `prune`.

    References:
        Zhu and Gupta 2017, arXiv:1710.01878.

    >>> params = {"kernel": jnp.array([[3.0, 1.0, 2.0, 4.0]])}
    >>> tx = gradual(0.5, steps=1)
    >>> updates, _ = tx.update({"kernel": jnp.zeros((1, 4))}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].tolist()
    [[3.0, 0.0, 0.0, 4.0]]
    """
    share = cubic(sparsity, steps, start)

    def init(params: Params) -> SparseState:
        masks = {name: leaf != 0 for name, leaf in matched(params, kernels).items()}
        return SparseState(jnp.zeros((), jnp.int32), masks)

    def update(updates: Any, state: SparseState, params: Any = None) -> tuple[Any, SparseState]:
        new, step = optax.apply_updates(params, updates), state.step + 1
        due = (step <= steps) & ((step % every == 0) | (step == steps))
        masks = jax.lax.cond(
            due,
            lambda: masks_of(new, share(step), by, None, kernels),
            lambda: state.masks,
        )

        def one(path: Any, update: Array, leaf: Array) -> Array:
            name = path_of(path)  # an entry that goes has to be exactly zero after the update
            return jnp.where(masks[name], update, -leaf) if name in masks else update

        updates = jax.tree_util.tree_map_with_path(one, updates, params)
        return updates, SparseState(step, masks)

    return optax.GradientTransformation(init, update)


def masks_of(
    params: Params, sparsity: Any, by: str, pattern: str | None, kernels: str
) -> dict[str, Array]:
    """False where an entry of a kernel goes, by path; () True for a kernel that stays dense.

    Args:
        params: the parameters.
        sparsity: a number, or while a step is traced an array ().
        by: see `prune`.
        pattern: see `prune`.
        kernels: see `prune`.

    >>> masks_of({"kernel": jnp.array([[3.0, -1.0], [2.0, 4.0]])}, 0.5, "global", None, KERNELS)
    {'kernel': Array([[ True, False],
           [False,  True]], dtype=bool)}
    """
    sizes = {name: abs(jnp.asarray(leaf)) for name, leaf in matched(params, kernels).items()}
    if pattern is not None:
        return {name: _two_of_four(size) for name, size in sizes.items()}
    if by == "layer":
        return {name: _but_smallest(size, sparsity) for name, size in sizes.items()}
    flat = _but_smallest(jnp.concatenate([size.ravel() for size in sizes.values()]), sparsity)
    ends = np.cumsum([size.size for size in sizes.values()])[:-1]
    parts = zip(sizes.items(), jnp.split(flat, ends), strict=True)
    return {name: part.reshape(size.shape) for (name, size), part in parts}


def _but_smallest(sizes: Array, share: Any) -> Array:
    """False for the share of entries that are the smallest, of equal ones for the first."""
    count = jnp.round(share * sizes.size).astype(jnp.int32)
    order = jnp.argsort(sizes.ravel(), stable=True)
    kept = jnp.arange(sizes.size) >= count
    return jnp.zeros(sizes.size, bool).at[order].set(kept).reshape(sizes.shape)


def _two_of_four(sizes: Array) -> Array:
    *leading, inputs, outputs = sizes.shape
    if inputs % 4:
        return jnp.ones((), bool)
    fours = sizes.reshape(*leading, inputs // 4, 4, outputs)
    rank = jnp.argsort(jnp.argsort(-fours, axis=-2, stable=True), axis=-2)
    return (rank < 2).reshape(sizes.shape)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _sparse(params: Params, sparsity: float, by: str, pattern: str | None, kernels: str) -> Params:
    return _masked(params, masks_of(params, sparsity, by, pattern, kernels))


def _masked(params: Params, masks: Mapping[str, Array]) -> Params:
    def one(path: Any, leaf: Array) -> Array:
        name = path_of(path)
        return jnp.where(masks[name], leaf, 0) if name in masks else leaf

    return jax.tree_util.tree_map_with_path(one, params)


def _grown(
    model: Model,
    sparsity: float,
    by: str,
    kernels: str,
    data: Mapping[str, Any],
    settings: dict[str, Any],
) -> Model:
    """The model after training in which the zeros become more."""
    starts: list[float] = []

    def measure(part: Network) -> Network:
        found = matched(part.params, kernels)
        _check_more(found, sparsity)
        starts.append(_zeros(found) / sum(leaf.size for leaf in found.values()))
        return part

    # which also leaves out the state of an earlier optimizer
    model = dataclasses.replace(changed(model, measure, {}), about=model.about)
    chosen = tuning(data, settings)
    steps = chosen.get("steps") or chosen["epochs"] * -(-rows(data) // chosen["batch_size"])
    growth = max(steps // 2, 1)
    tx = gradual(sparsity, growth, max(growth // 50, 1), min(starts), by, kernels)
    return trained_further(model, data, _ending_with(tx, chosen))


def _ending_with(tx: optax.GradientTransformation, settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {"optimizer": optim.chain(settings["optimizer"], tx)}


def _zeros(found: Mapping[str, Array]) -> int:
    return sum(int(np.sum(np.asarray(leaf) == 0)) for leaf in found.values())


def _check_more(found: Mapping[str, Array], sparsity: float) -> None:
    zeros, total = _zeros(found), sum(leaf.size for leaf in found.values())
    share = zeros / total
    if zeros > sparsity * total + len(found):  # one a kernel by rounding
        raise ValueError(
            f"sparsity must be at least {share:.4g} (the share that is zero already), got "
            f"{sparsity}"
        )


def _check(
    sparsity: float, by: str, pattern: str | None, data: Any, settings: dict[str, Any]
) -> None:
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity must be in (0, 1), got {sparsity}")
    if by not in ("global", "layer"):
        raise ValueError(f'by must be "global" or "layer", got {by!r}')
    if pattern not in (None, "2:4"):
        raise ValueError(f'pattern must be None or "2:4", got {pattern!r}')
    if pattern is not None and (sparsity != 0.5 or by != "global"):
        raise ValueError(
            f'sparsity and by must be left out for the pattern "2:4", got {sparsity} and {by!r}'
        )
    if data is None and settings:
        raise ValueError(f"data must be given for {', '.join(settings)}, got None")
    if settings.get("early_stopping") is not None:
        raise ValueError(
            "early_stopping must be None, since the best state may be one before all zeros, got "
            f"{settings['early_stopping']}"
        )
