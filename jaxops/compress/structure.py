"""Structured pruning: whole units, channels and heads go, so that arrays and products shrink."""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxops.compress.factors import Factored
from jaxops.compress.networks import Network, changed, path_of, tuning, with_module
from jaxops.data.checks import prepare, rows
from jaxops.model.finished import Model
from jaxops.model.selection import trained_further
from jaxops.nn.blocks import TransformerConfig
from jaxops.nn.units import Units, units_of_transformer
from jaxops.task import Array, Task, example

KINDS = ("units", "channels", "heads")
AT_ONCE = 256  # rows of a gradient


def structured(
    model: Model,
    share: float = 0.5,
    by: str = "magnitude",
    kinds: Sequence[str] = KINDS,
    data: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Model:
    """Take whole units out of a model: hidden units, channels of convolutions, attention heads.

    The new model has a module with smaller widths, so its file is smaller and it computes less.
    Whether it is faster depends on the programs that XLA has for the new widths. The same share of
    each layer goes; of the blocks of a transformer, as many in each.

    A unit's importance is

    - by "magnitude", the L2 norm of all parameters that make or read it;
    - by "taylor", the mean over batches of |Σ w dL/dw| over the kernels w that read it. For a gate
      of 1 that multiplies the unit, Σ w dL/dw is the loss's derivative by the gate, and so to first
      order the change of the loss when the unit goes.

    A module says by a method `units` which of its parameters belong together, see `nn.Units`; those
    of jaxops with dense or convolutional layers in a row do, and every one with a
    `TransformerConfig` has the units and heads of its blocks.

    Args:
        model: a model of any room that has such a module.
        share: of the units of each layer that go, in (0, 1); at least one unit stays.
        by: "magnitude" or "taylor", which needs data.
        kinds: what goes: some of "units", "channels" and "heads".
        data: columns of the task, as `jaxops.fit` takes them, for "taylor", and on which the
            smaller model is then trained further.
        **settings: of `jaxops.fit`, for training: by default Adam at 1e-3, 5 epochs, 128 rows a
            batch. `epochs=0` does not train.

    Returns:
        The smaller model. `about["compressed"]` says what was done, with the number of parameters
        before and after.

    Raises:
        ValueError: a model whose module has no such units; a share that takes nothing out; "taylor"
            without data, or for a closed form; settings without data; a module in which `low_rank`
            has replaced kernels, which has to come after.

    References:
        Li et al. 2017, arXiv:1608.08710 (magnitude); Molchanov et al. 2017, arXiv:1611.06440, and
        Michel et al. 2019, arXiv:1905.10650 (Taylor, of channels and of heads).

    >>> import jaxops as jo
    >>> from jaxops import vision
    >>> task = vision.classifier(vision.CNN(classes=2, features=4, hidden=8), (6, 6, 1), 2)
    >>> model = Model(task, jo.init_state(task, jo.optim.sgd(0.1), 0, example(task.columns)))
    >>> smaller = structured(model, 0.5)
    >>> smaller.state.params["conv"]["kernel"].shape, smaller.state.params["hidden"]["kernel"].shape
    ((3, 3, 1, 2), (8, 4))
    """
    _check(share, by, kinds, data, settings)
    counts = [0, 0]

    def smaller(part: Network) -> Network:
        groups = _groups(part, kinds)
        arrays = _flat(part)
        if by == "taylor":
            scores = _taylor(part, groups, data or {})
        else:
            scores = [_magnitude(arrays, one) for one in groups]
        new: dict[str, Any] = dict(arrays)
        module = part.module
        for one, score in zip(groups, scores, strict=True):
            stay = max(one.count - round(share * one.count), 1)
            kept = np.sort(np.argsort(-score, kind="stable")[:stay])
            new |= {
                name: _cut(new[name], axis, kept, one) for name, axis in _axes(new, one).items()
            }
            module = one.resized(module, stay)
        if module == part.module:
            raise ValueError(f"share must take out at least one unit of a layer, got {share}")
        params, extra = jax.device_put(_unflat(part, new))
        counts[0] += sum(leaf.size for leaf in jax.tree.leaves(part.params))
        counts[1] += sum(leaf.size for leaf in jax.tree.leaves(params))
        if part.task is not None:
            _check_fits(with_module(part.task, module), params, extra)
        return part._replace(module=module, params=params, extra=extra)

    done = {"method": "structured", "share": share, "by": by, "kinds": list(kinds)}
    new = changed(model, smaller, done)
    done["parameters"] = counts
    chosen = None if data is None else tuning(data, settings)
    if chosen is None or 0 in (chosen.get("epochs"), chosen.get("steps")):
        return new
    return trained_further(new, data or {}, chosen)


def _groups(part: Network, kinds: Sequence[str]) -> list[Units]:
    module = part.module
    if isinstance(module, Factored):
        raise ValueError("model must be one before low_rank, got one whose kernels are factors")
    if hasattr(module, "units"):
        groups = module.units()
    elif isinstance(getattr(module, "config", None), TransformerConfig):
        paths = [path_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(part.params)]
        groups = units_of_transformer(module.config, paths)
    else:
        groups = []
    groups = [one for one in groups if one.kind in kinds]
    if not groups:
        raise ValueError(
            f"model must have a module with {' or '.join(kinds)} that can go, see nn.Units, got "
            f"{'a task made by hand' if module is None else type(module).__name__}"
        )
    return groups


def _flat(part: Network) -> dict[str, Array]:
    """All arrays by "collection:path"."""
    trees = {"params": part.params, **part.extra}
    return {
        f"{name}:{path_of(path)}": leaf
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _unflat(part: Network, arrays: Mapping[str, Array]) -> tuple[Any, Any]:
    trees = {"params": part.params, **part.extra}
    new = {
        name: jax.tree_util.tree_map_with_path(
            lambda path, _, name=name: arrays[f"{name}:{path_of(path)}"], tree
        )
        for name, tree in trees.items()
    }
    return new.pop("params"), new


def _axes(arrays: Mapping[str, Array], units: Units) -> dict[str, int]:
    """The axis that has the units, by the names of the arrays that have one."""
    axes = {}
    for name in arrays:
        path = name.partition(":")[2]
        if re.search(units.own, path):
            axes[name] = -1
        elif re.search(units.read, path):
            axes[name] = -2
    return axes


def _by_unit(array: Array, axis: int, units: Units) -> np.ndarray:
    """The array with axes (parts, count, width) in place of the axis, as the last ones."""
    moved = np.moveaxis(np.asarray(array, np.float64), axis, -1)
    return moved.reshape(*moved.shape[:-1], *_parts(moved.shape[-1], units))


def _parts(size: int, units: Units) -> tuple[int, int, int]:
    """The axes (parts, count, width) of an axis; one of `count` entries has one for each unit."""
    width = 1 if size == units.count else units.width
    return size // (units.count * width), units.count, width


def _sum(by_unit: np.ndarray) -> np.ndarray:
    """The sum of each unit's entries, (count,)."""
    return by_unit.sum(tuple(n for n in range(by_unit.ndim) if n != by_unit.ndim - 2))


def _magnitude(arrays: Mapping[str, Array], units: Units) -> np.ndarray:
    axes = _axes({k: v for k, v in arrays.items() if k.startswith("params:")}, units)
    squares = [_sum(_by_unit(arrays[name], axis, units) ** 2) for name, axis in axes.items()]
    return np.sqrt(np.sum(squares, axis=0))


def _taylor(part: Network, groups: list[Units], data: Mapping[str, Any]) -> list[np.ndarray]:
    if part.task is None:
        raise ValueError('by must be "magnitude" for a closed form, got "taylor"')
    columns = prepare(part.task, data, targets=True)
    gradients, scores = _gradients(part.task), [np.zeros(one.count) for one in groups]
    arrays, batches = _flat(part), math.ceil(rows(columns) / AT_ONCE)
    for first in range(0, rows(columns), AT_ONCE):
        some = {name: column[first : first + AT_ONCE] for name, column in columns.items()}
        grads = gradients(part.params, part.extra, some)
        slopes = _flat(Network(None, grads, {}))
        for one, score in zip(groups, scores, strict=True):
            products = [
                _sum(_by_unit(np.asarray(arrays[name]) * np.asarray(slopes[name]), axis, one))
                for name, axis in _axes(slopes, one).items()
                if axis == -2
            ]
            score += abs(np.sum(products, axis=0)) / batches
    return scores


@functools.lru_cache(maxsize=16)
def _gradients(task: Task) -> Any:
    """`(params, extra, batch) -> gradient` of the mean loss, without dropout."""

    def loss(params: Any, extra: Any, batch: Any) -> Array:
        total, out = task.loss(params, extra, batch, jax.random.key(0), False)
        return total / out.weight

    return jax.jit(jax.grad(loss))


def _cut(array: Any, axis: int, kept: np.ndarray, units: Units) -> np.ndarray:
    size = array.shape[axis]
    places = np.arange(size).reshape(_parts(size, units))[:, kept].ravel()
    return np.take(np.asarray(array), places, axis)


def _check_fits(task: Task, params: Any, extra: Any) -> None:
    wanted = jax.eval_shape(task.init, jax.random.key(0), example(task.columns))
    have, want = (
        {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in ((params, extra), wanted)
    )
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise ValueError(
                f"module.units must name all arrays of a unit: {name} must be {want.get(name)} in "
                f"the smaller module, got {have.get(name)}"
            )


def _check(
    share: float, by: str, kinds: Sequence[str], data: Any, settings: dict[str, Any]
) -> None:
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    if by not in ("magnitude", "taylor"):
        raise ValueError(f'by must be "magnitude" or "taylor", got {by!r}')
    if isinstance(kinds, str) or not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds must be some of {', '.join(KINDS)} in a list, got {kinds!r}")
    if data is None and (settings or by == "taylor"):
        named = ", ".join([*settings, *['by="taylor"'] * (by == "taylor")])
        raise ValueError(f"data must be given for {named}, got None")
