"""Python values as JSON and arrays, without code: how a model file says how its model was made.

A file may name Flax modules, and functions and classes marked as `recorded`. They may be those of
jaxops, of `flax.linen`, and of the user's own modules if these are imported already. It may also
name functions of `jax.nn` and `jax.nn.initializers`, and float dtypes. Everything else is numbers,
texts, arrays, and tuples, lists and dicts of them. `encode` refuses every value that `decode` would
refuse.
"""

import contextlib
import dataclasses
import importlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxops.task import Task

Arrays = dict[str, np.ndarray]
FUNCTIONS = {  # and dtypes, that a file may name; the module is the public one
    f"{module.__name__}:{name}": thing
    for module in (jax.nn, jax.nn.initializers)
    for name, thing in vars(module).items()
    if not name.startswith("_") and callable(thing) and thing.__module__.startswith("jax")
} | {
    f"jax.numpy:{name}": getattr(jnp, name)
    for name in ("float16", "bfloat16", "float32", "float64")
}


def encode(value: Any, arrays: Arrays, where: str = "task") -> Any:
    """A value as JSON.

    Args:
        value: a value of the kinds that the module's docstring names.
        arrays: a dict to which the arrays of the value are added, by name.
        where: the name of the value in messages.

    Raises:
        ValueError: a value that a file cannot hold; the message names where it is.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Task):
        if not value.recipe:
            raise ValueError(_refusal(where, "a task made by hand"))
        make, arguments = value.recipe
        return _call(make, dict(arguments), arrays, where)
    if isinstance(value, nn.Module) or _is_dataclass(value):
        return _call(type(value), _fields(value), arrays, where)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _call(type(value), value._asdict(), arrays, where)
    if type(value) in (tuple, list):
        items = [encode(v, arrays, f"{where}[{i}]") for i, v in enumerate(value)]
        return {type(value).__name__: items}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {k: encode(v, arrays, f"{where}[{k!r}]") for k, v in value.items()}}
    if name := _function(value):
        return {"function": name}
    if isinstance(value, np.generic):
        return encode(value.item(), arrays, where)
    if isinstance(value, jax.Array | np.ndarray):
        return _array(np.asarray(value), arrays, where)
    raise ValueError(_refusal(where, value))


def decode(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value that `encode` turned into JSON.

    Raises:
        ValueError: the JSON names something that a file may not name.
    """
    if not isinstance(value, dict):
        return value
    if "make" in value:
        make = maker(value["make"])
        arguments = value["arguments"]
        # an old name may mean something else now, so either all names are old ones or none is
        old = arguments.keys() - inspect.signature(make).parameters
        names = getattr(make, "formerly", {}) if old else {}
        given = {names.get(k, k): decode(v, arrays) for k, v in arguments.items()}
        marked = not inspect.isclass(make) or getattr(make, "recorded_class", None) is make
        return make(**{**(getattr(make, "before", {}) if marked else {}), **given})
    if "tuple" in value:
        return tuple(decode(v, arrays) for v in value["tuple"])
    if "list" in value:
        return [decode(v, arrays) for v in value["list"]]
    if "dict" in value:
        return {k: decode(v, arrays) for k, v in value["dict"].items()}
    if "texts" in value:
        return np.array(value["texts"], object)
    if "array" in value:
        array = arrays[value["array"]]
        return array.astype(value["dtype"]) if "dtype" in value else array
    if value["function"] not in FUNCTIONS:
        raise ValueError(
            "a function must be one of jax.nn or jax.nn.initializers, or a float dtype of "
            f"jax.numpy, got {value['function']}"
        )
    return FUNCTIONS[value["function"]]


def maker(name: str) -> Any:
    """The Flax module, or the `recorded` function or class, that a name in a file stands for.

    Raises:
        ValueError: any other name, or one of a module that is not imported.
    """
    module, _, qualname = name.partition(":")
    root = module.split(".")[0]
    if root == "jaxops" and module != root:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
        if getattr(_attribute(module, qualname), "__module__", None) != module:
            name = _moved(module, qualname)
            module = name.partition(":")[0]
    found = _attribute(module, qualname)
    if found is None and root != "jaxops":
        raise ValueError(
            f"{module} must be imported before its {qualname} is loaded, got no such name; "
            "import it first, or give the task: load(path, task=...)"
        )
    if inspect.isclass(found):
        marked = getattr(found, "recorded_class", None) is found
        allowed = issubclass(found, nn.Module) or marked
    else:
        allowed = inspect.isfunction(found) and hasattr(found, "makes_task")
    # the name must be the object's own, not one under which another module imports it; for Flax
    # it must be public
    if not allowed or name != _name(found) or (root == "flax" and module != nn.__name__):
        raise ValueError(
            f"a name in a file must be a Flax module or recorded, in this jaxops, got {name}"
        )
    return found


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _fields(value: Any) -> dict[str, Any]:
    """The arguments that make a dataclass or a Flax module again."""
    arguments = {}
    for field in dataclasses.fields(value):
        argument = getattr(value, field.name)
        # Flax's initializers are functions made in functions, so as defaults they are not written
        nameless = callable(argument) and not isinstance(argument, nn.Module)
        nameless = (nameless and not _function(argument)) or field.name == "name"
        default = nameless and argument is field.default
        if field.init and field.name != "parent" and not default:
            arguments[field.name] = argument
    return arguments


def _call(make: Any, arguments: dict[str, Any], arrays: Arrays, where: str) -> Any:
    name = _name(make)
    try:
        same = maker(name) is make
    except ValueError:
        same = False
    if not same:
        raise ValueError(_refusal(where, name))
    return {
        "make": name,
        "arguments": {k: encode(v, arrays, f"{where}.{k}") for k, v in arguments.items()},
    }


def _array(value: np.ndarray, arrays: Arrays, where: str) -> Any:
    """The JSON of an array: its name among the arrays; texts become JSON, and times int64."""
    if value.dtype.kind in "OU":
        odd = next((x for x in value.ravel().tolist() if not isinstance(x, str)), None)
        if odd is not None or value.ndim != 1:
            raise ValueError(_refusal(where, value if odd is None else odd))
        return {"texts": value.tolist()}
    dtype = {"dtype": value.dtype.str} if value.dtype.kind == "M" else {}
    arrays[where] = value.view(np.int64) if dtype else value
    return {"array": where, **dtype}


def _refusal(where: str, value: Any) -> str:
    return (
        f"{where} must be made of numbers, strings, arrays, tuples, lists, dicts, Flax modules at "
        "the top level of their files, objects marked by jaxops.recorded, functions of jax.nn or "
        f"jax.nn.initializers and float dtypes of jax.numpy, got {value!r}; or save a model whose "
        "task is task._replace(recipe=None), and load it by load(path, task=...)"
    )


def _function(value: Any) -> str | None:
    return next((name for name, thing in FUNCTIONS.items() if thing is value), None)


def _name(make: Any) -> str:
    """The name under which an object is looked up; for Flax's own modules the public name."""
    public = vars(nn).get(make.__qualname__) is make
    return f"{nn.__name__ if public else make.__module__}:{make.__qualname__}"


def _attribute(module: str, name: str) -> Any:
    """The attribute of that name in an imported module, or None."""
    return getattr(sys.modules.get(module), "__dict__", {}).get(name)


def _moved(module: str, qualname: str) -> str:
    """The present name of a class that an older jaxops had in another of its modules."""
    package = module.rpartition(".")[0]
    if package == "jaxops":  # of the modules outside the rooms
        package = "jaxops.transforms"
    with contextlib.suppress(ImportError):
        importlib.import_module(package)
    names = {
        f"{place}:{qualname}"
        for place, loaded in [*sys.modules.items()]
        if f"{place}.".startswith(f"{package}.")
        and getattr(vars(loaded).get(qualname), "__module__", None) == place
    }
    return names.pop() if len(names) == 1 else f"{module}:{qualname}"
