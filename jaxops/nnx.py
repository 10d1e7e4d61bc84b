"""A user's Flax NNX module in a task: `from_nnx`."""

import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from flax.core import meta

from jaxops._modules import FLAGS, flags
from jaxops.task import Key

STATE = "state"


def from_nnx(module: nnx.Module) -> Any:
    """Adapt a Flax NNX module, so that `jaxops.supervised` and the tasks of the rooms can take it.

    The module is split once, into its structure and plain dictionaries of arrays. Training changes
    copies of these dictionaries, and the module itself does not change. Its `nnx.Param` variables
    are `params`; all others (such as batch statistics) are in `extra`. The adapter switches between
    training and evaluation as `module.train()` and `module.eval()` do. The module's `__call__` may
    also name `mask`, and `train` or another flag that `supervised` knows.

    Two things differ from a linen module. Training starts from the parameters that the module
    already has, so `seed` does not change them; `seed` still changes dropout, the order of the rows
    and everything else. A model file cannot name the module, so load the file with
    `jaxops.load(path, task=...)`.

    Args:
        module: any module whose `__call__` takes the inputs.

    Returns:
        An object with the `init` and `apply` of a linen module. Each random stream gets its own
        key, derived from that of the "dropout" stream.

    Raises:
        TypeError: `module` is not an NNX module.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> class Linear(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.dropout = nnx.Dropout(0.1, rngs=rngs)
    ...         self.output = nnx.Linear(3, 1, rngs=rngs)
    ...
    ...     def __call__(self, x):
    ...         return self.output(self.dropout(x))
    >>> task = tabular.classifier(from_nnx(Linear(nnx.Rngs(0))), features=3)
    >>> params, extra = task.init(jax.random.key(0), jo.task.example(task.columns))
    >>> jax.tree.map(jnp.shape, params)
    {'output': {'bias': (1,), 'kernel': (3, 1)}}
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(f"module must be a flax.nnx.Module, got {type(module).__name__}")
    return _Adapter(module)


class _Adapter:
    """`init` and `apply` as linen has them, for one NNX module."""

    def __init__(self, module: nnx.Module) -> None:
        call = inspect.signature(type(module).__call__)
        self._flags = flags(call.parameters)
        names = [p for name, p in call.parameters.items() if name not in ("self", *FLAGS)]
        switch = inspect.Parameter("train", inspect.Parameter.KEYWORD_ONLY)
        self.__signature__ = call.replace(parameters=[*names, switch])
        copy = nnx.clone(module)  # its modes are set below
        self._structures = {}
        for train in (True, False):
            (copy.train if train else copy.eval)()
            self._structures[train], *parts = nnx.split(copy, nnx.Param, nnx.RngState, ...)
        self._params, self._streams, self._others = parts
        kept = jax.tree.leaves(nnx.split(module, nnx.BatchStat, ...)[1])
        self.statistics = (STATE,) if kept else ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs with the module's original parameters."""
        return self.apply(self.init(None), *args, **kwargs)

    def init(self, key: Key | None, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The module's values as `{"params": ..., "state": ...}`; `key` has no effect."""
        variables = {"params": _arrays(self._params), STATE: _arrays(self._others)}
        return {name: tree for name, tree in variables.items() if tree}

    def apply(
        self,
        variables: Any,
        *args: Any,
        train: bool = False,
        rngs: dict[str, Key] | None = None,
        mutable: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The outputs; with `mutable` also the new variables that are not parameters."""
        kwargs |= {name: train is FLAGS[name] for name in self._flags}
        module: Any = nnx.merge(
            self._structures[train],
            _state(self._params, meta.unbox(variables.get("params", {}))),
            self._streams if rngs is None else _seeded(self._streams, rngs["dropout"]),
            _state(self._others, variables.get(STATE, {})),
            copy=True,  # else batch norm changes a variable of the trace outside the gradient's
        )
        outputs = module(*args, **kwargs)
        if mutable is None:
            return outputs
        others = _arrays(nnx.split(module, nnx.Param, nnx.RngState, ...)[-1])
        return outputs, {STATE: others} if others else {}


def _paths(state: Any) -> list[tuple[str, ...]]:
    """The path of each leaf as names, in the order in which JAX flattens a state."""
    return [tuple(map(str, path)) for path, _ in nnx.to_flat_state(state)]


def _arrays(state: Any) -> Any:
    """A state as a plain nested dictionary of arrays."""
    leaves = jax.tree.leaves(state)
    return traverse_util.unflatten_dict(dict(zip(_paths(state), leaves, strict=True)))


def _state(like: Any, arrays: Any) -> Any:
    """The state whose plain dictionary is `arrays`."""
    flat = traverse_util.flatten_dict(arrays)
    leaves = [flat[path] for path in _paths(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _seeded(streams: Any, key: Key) -> Any:
    """Every random stream with a key of its own, and its count at zero."""
    leaves, structure = jax.tree.flatten(streams)
    keys = (
        jax.random.fold_in(key, i)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros_like(leaf)
        for i, leaf in enumerate(leaves)
    )
    return jax.tree.unflatten(structure, list(keys))
