"""How a user's module is called with its flags and its mask, and whether its layers get them."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
"""Arguments that tell a module whether it trains, with their values in training."""


def flags(parameters: Mapping[str, Any]) -> list[str]:
    """The names in `FLAGS` that a signature has."""
    return [name for name in FLAGS if name in parameters]


class Called:
    """A module as `supervised` calls it: with `mask` and the flags of `FLAGS` that it names.

    Arguments that follow the inputs directly are passed by position, so that the `static_argnums`
    of `flax.linen.remat` apply to them.

    Attributes:
        module: the module.
        flags: the flags of `FLAGS` that its `__call__` names.
        masked: whether its `__call__` names `mask`.
    """

    def __init__(self, module: Any) -> None:
        self.module, self._parameters = module, inspect.signature(module).parameters
        self.flags, self.masked = flags(self._parameters), "mask" in self._parameters
        self._warned = False

    def init(self, key: Any, x: Any, weights: Any) -> dict[str, Any]:
        """The variables of the module.

        Raises:
            ValueError: the module has dropout or batch statistics and names no flag that turns them
                on; or a flag becomes an array before it reaches a layer.
        """
        several, named = self._arguments(x, weights, False)
        seen = _Layers()
        try:
            with nn.intercept_methods(seen.watch):
                variables = dict(self.module.init(key, *several, **named))
        except jax.errors.TracerBoolConversionError as error:
            raise ValueError(
                f"{' or '.join(self.flags) or 'a flag'} must stay a Python bool in the module, got "
                "an array; give nn.remat or nn.jit its position in static_argnums, such as "
                "nn.remat(Module, static_argnums=(2,)), or use jaxops.remat(task) instead"
            ) from error
        layers = seen.random + ["/".join(p) for p in _layers(variables.get("batch_stats", {}))]
        layers = [name for name in layers if name not in seen.meant]
        if layers and not self.flags:
            raise ValueError(
                f"module must name one of {', '.join(FLAGS)} in its __call__, to turn on "
                f"{layers[0]} while it trains, got {type(self.module).__name__}"
                f"({', '.join(map(str, self._parameters.values()))})"
            )
        return variables

    def apply(self, variables: Any, x: Any, weights: Any, train: bool, **kwargs: Any) -> Any:
        """The module's outputs."""
        several, named = self._arguments(x, weights, train)
        return self.module.apply(variables, *several, **named, **kwargs)

    def train(self, variables: Any, x: Any, weights: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        """The outputs in training, and the new variables that are not parameters.

        Warns once if dropout or batch statistics stay off in training.

        Raises:
            ValueError: batch norm over a single value for each channel, or variables that grow from
                step to step.
        """
        extra, seen = {k: v for k, v in variables.items() if k != "params"}, _Layers()
        options = {"rngs": {"dropout": key}, "mutable": list(extra)}
        with nn.intercept_methods(seen.watch):
            outputs, new = self.apply(variables, x, weights, True, **options)
        for name, tree in new.items():
            before: Any = jax.tree.structure(extra[name])
            if before != jax.tree.structure(tree):
                raise ValueError(
                    f"variables {name!r} must have the same structure after a step, got another; "
                    "sow appends a value in each step: return such values with the outputs and "
                    'add them in `loss`, or sow them into "intermediates", which is not kept'
                )
        self._warn(seen, extra, new)
        return outputs, {**extra, **new}

    def _arguments(
        self, x: Any, weights: Any, train: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        several = x if isinstance(x, tuple) else (x,)
        known = {name: train is value for name, value in FLAGS.items()} | {"mask": weights > 0}
        left = list(self._parameters.values())[len(several) :]
        named = {p.name: known[p.name] for p in left if p.name in known}
        for parameter in left:
            if parameter.name not in named or parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
                break
            several += (named.pop(parameter.name),)
        return several, named

    def _warn(self, seen: "_Layers", extra: dict[str, Any], new: dict[str, Any]) -> None:
        after = dict(_leaves(new.get("batch_stats", {})))
        before = _leaves(extra.get("batch_stats", {}))
        moved = {path[:-1] for path, leaf in before if after[path] is not leaf}
        still = {path[:-1] for path, _ in before} - moved
        problems = [f"dropout {name} is off" for name in seen.off]
        problems += [f"batch statistics of {'/'.join(path)} do not change" for path in still]
        if self.masked:
            problems += [f"{name} is not given `mask`, so padding counts" for name in seen.unmasked]
        if problems and self.flags and not self._warned:
            self._warned = True
            given = ", ".join(f"{name}={FLAGS[name]}" for name in self.flags)
            warnings.warn(
                f"in training ({given}) {'; '.join(sorted(problems))}: pass the argument on to the "
                "layers, unless this is intended",
                stacklevel=2,
            )


class _Layers:
    """The paths of layers that matter for the flags, recorded while a module is traced.

    Attributes:
        random: layers with dropout.
        off: layers with dropout that were called with dropout off.
        meant: layers inside a module that takes no flag, so that they are off or on on purpose.
        unmasked: batch norms that computed the statistics of a batch without a mask.
    """

    def __init__(self) -> None:
        self.random: list[str] = []
        self.off: list[str] = []
        self.meant: set[str] = set()
        self.unmasked: list[str] = []

    def watch(self, call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """Record a call; an interceptor for `flax.linen.intercept_methods`."""
        layer = context.module
        if context.method_name == "__call__":
            name = "/".join(layer.path) or type(layer).__name__
            if _takes_no_flag(layer.parent):
                self.meant.add(name)
            if _rate(layer) > 0:
                self.random.append(name)
                if _given(layer, "deterministic", args, kwargs) is True:
                    self.off.append(name)
            if type(layer).__name__ == "BatchNorm" and args:
                self._batch_norm(layer, name, args, kwargs)
        return call(*args, **kwargs)

    def _batch_norm(self, layer: Any, name: str, args: Any, kwargs: Any) -> None:
        running = _given(layer, "use_running_average", args, kwargs)
        if not (running is False or kwargs.get("train") is True):
            return
        if kwargs.get("mask") is None:
            self.unmasked.append(name)
        x, axis = args[0], getattr(layer, "axis", -1)
        if isinstance(axis, int) and x.size == x.shape[axis] and not layer.is_initializing():
            raise ValueError(
                f"batch_size must be at least 2 in each of the parts of `accumulate` for {name}, "
                "which takes the variance of each channel over the rows, got 1"
            )


def _takes_no_flag(parent: Any) -> bool:
    """Whether the module around a layer takes no flag that says whether it trains."""
    if not isinstance(parent, nn.Module):
        return False
    parameters = inspect.signature(type(parent).__call__).parameters
    kinds = {p.kind for p in parameters.values()}
    return not flags(parameters) and inspect.Parameter.VAR_KEYWORD not in kinds


def _rate(layer: Any) -> float:
    """The dropout rate of a Flax layer, 0 for others; layers inside it are not looked at."""
    if isinstance(layer, nn.Dropout):
        return float(layer.rate)
    return float(layer.dropout_rate) if isinstance(layer, nn.MultiHeadDotProductAttention) else 0.0


def _given(layer: Any, name: str, args: Any, kwargs: Any) -> Any:
    """A flag of a layer of Flax: its attribute, else the argument of its call."""
    attribute = getattr(layer, name, None)
    second = args[1] if len(args) > 1 and not hasattr(args[1], "shape") else None
    return kwargs.get(name, second) if attribute is None else attribute


def _leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    """The leaves of nested dictionaries, each with its path as names."""
    return [
        (tuple(str(getattr(key, "key", key)) for key in path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _layers(tree: Any) -> list[tuple[str, ...]]:
    return sorted({path[:-1] for path, _ in _leaves(tree)})
