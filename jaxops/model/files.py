"""A finished model in one file: `save` and `load`.

The file is a safetensors file: arrays, and a JSON text that says how the task was made, what its
inputs look like, and which versions wrote it. There is no code in it, but names of code that is
here. `load` calls what is named, with the arguments written down, and traces the task's `init`; so
a file may name only Flax modules and what is marked as `recorded`, of jaxops, of `flax.linen` and
of the user's own modules that are imported already, and, among the arguments, the functions of
`jax.nn` and `jax.nn.initializers` and float dtypes. `save` refuses what `load` would.
"""

import contextlib
import dataclasses
import importlib.metadata
import inspect
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxops._version import __version__
from jaxops.devices import hosts
from jaxops.state import TrainState
from jaxops.task import Column, Task, example

FORMAT = 1
FUNCTIONS = {  # and dtypes, that a file may name; the module is the public one
    f"{module.__name__}:{name}": thing
    for module in (jax.nn, jax.nn.initializers)
    for name, thing in vars(module).items()
    if not name.startswith("_") and callable(thing) and thing.__module__.startswith("jax")
} | {
    f"jax.numpy:{name}": getattr(jnp, name)
    for name in ("float16", "bfloat16", "float32", "float64")
}


class Model(NamedTuple):
    """A finished model.

    Attributes:
        task: its task, with `task.classes` and `task.columns`.
        state: its parameters, as `evaluate` and `predict` take them, without optimizer state.
        about: the data that `save` was given to keep with it.
        versions: package -> version, of the program that wrote the file.
    """

    task: Task
    state: TrainState
    about: dict[str, Any]
    versions: dict[str, str]

    def predict(self, inputs: Any, batch_size: int = 1024) -> Any:
        """Predictions for every row; `inputs` are columns by name, or the array of a single one."""
        from jaxops.train.evaluation import predict

        if not isinstance(inputs, Mapping):
            names = [column.name for column in self.task.columns if not column.target]
            if len(names) != 1:
                raise ValueError(f"inputs must be the columns {names} by name, got one array")
            inputs = {names[0]: np.asarray(inputs)}
        return predict(self.task, self.state, inputs, batch_size=batch_size)


def save(
    path: str | Path, task: Task, state: TrainState, about: dict[str, Any] | None = None
) -> None:
    """Write a finished model to one file; an interrupted write leaves no partial file.

    With several processes all of them call this, and the first writes.

    Args:
        path: the file; an existing one is replaced.
        task: the task. If a function of jaxops made it (or one marked by `jaxops.recorded`), the
            file alone is enough to load the model.
        state: its state; `optim.averaged(state)` if `optim.ema` kept an average.
        about: JSON-like data to keep with it, such as an encoder's tables.

    Raises:
        ValueError: the task has an argument that a file cannot hold.
        OSError: the file could not be written; an existing file is left unchanged.
    """
    from safetensors import SafetensorError
    from safetensors.flax import save_file

    header = {
        "format": FORMAT,
        "task": _encode(task),
        "inputs": [column._asdict() for column in task.columns],
        "classes": task.classes,
        "step": int(state.step),
        "about": about or {},
        "versions": _versions(),
    }
    named = _named(*hosts.gathered((state.params, state.extra)))
    if not hosts.first():
        return
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    tensors = {name: jnp.asarray(leaf) for name, leaf in named.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, beside, {"jaxops": json.dumps(header)})
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path}: the model could not be written: {error}") from error
    finally:
        beside.unlink(missing_ok=True)


def load(path: str | Path, task: Task | None = None) -> Model:
    """Read a model that `save` wrote.

    Args:
        path: the file.
        task: the task, if the file cannot name how it was made.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, not a model of jaxops or of a newer format; it names a
            module that is not imported; or it does not fit the task given.

    >>> import tempfile
    >>> from jaxops import tabular
    >>> from jaxops.state import init_state
    >>> from jaxops.optim import sgd
    >>> task = tabular.classifier(tabular.MLP(), features=3, classes=("stays", "leaves"))
    >>> state = init_state(task, sgd(0.1), seed=0, batch=example(task.columns))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/customers.safetensors", task, state)
    ...     model = load(f"{folder}/customers.safetensors")
    >>> model.task.classes, model.predict(np.zeros((2, 3), np.float32)).shape
    (('stays', 'leaves'), (2,))
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="flax") as file:
            text = (file.metadata() or {}).get("jaxops", "null")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"path must be a model file, got {path}, which is truncated or of another format: "
            f"{error}"
        ) from error
    try:
        return _read(text, tensors, task)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # a text that was tampered with may fail anywhere
        raise ValueError(
            f"path must be a model file, got {path}, whose text describes no model: {error!r}"
        ) from error


def _read(text: str, tensors: dict[str, Any], task: Task | None) -> Model:
    header = json.loads(text)
    if not isinstance(header, dict) or "format" not in header:
        raise ValueError("must be a model that jaxops saved, got another safetensors file")
    if header["format"] > FORMAT:
        raise ValueError(
            f"format must be at most {FORMAT}, got {header['format']}; a newer jaxops "
            f"({header.get('versions')}) wrote the file: upgrade jaxops to read it"
        )
    if task is None:
        if header["task"] is None:
            raise ValueError(
                "task must be given for a model whose task was made by hand, got None; "
                "load(path, task=...)"
            )
        task = _decode(header["task"])
    state = _restore(task, header, tensors)
    return Model(task, state, header["about"], header["versions"])


def _restore(task: Task, header: Any, tensors: dict[str, Any]) -> TrainState:
    columns = [Column(**{**c, "shape": tuple(c["shape"])}) for c in header["inputs"]]
    params, extra = jax.eval_shape(task.init, jax.random.key(0), example(tuple(columns)))
    expected = _named(params, extra)
    for name in sorted(expected.keys() | tensors.keys()):
        have, want = (
            f"{tree[name].dtype}{list(tree[name].shape)}" if name in tree else "nothing"
            for tree in (tensors, expected)
        )
        if have != want:
            raise ValueError(f"{name} must be {want} for this model, got {have}")
    leaves = [tensors[name] for name in expected]
    params, extra = jax.tree.unflatten(jax.tree.structure((params, extra)), leaves)
    return TrainState(jnp.int32(header["step"]), params, (), extra, jax.random.key(0))


def _named(params: Any, extra: Any) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path((params, extra))[0]
    kinds = ("params", "extra")
    return {kinds[path[0].idx] + jax.tree_util.keystr(path[1:]): leaf for path, leaf in flat}


def _versions() -> dict[str, str]:
    others = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "jaxops": __version__,
        **{name: importlib.metadata.version(name) for name in others},
        "python": platform.python_version(),
    }


def _encode(value: Any, where: str = "task") -> Any:
    """A value as JSON; `None` for a task made by hand."""
    if isinstance(value, Task):
        if value.recipe:
            make, recorded = value.recipe
            return _call(make, dict(recorded), where)
        if where == "task":
            return None
        raise ValueError(_refusal(where, "a task made by hand"))
    if isinstance(value, nn.Module) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    ):
        arguments = {}
        for field in dataclasses.fields(value):
            argument = getattr(value, field.name)
            # Flax's initializers are functions made in functions: as defaults they go without
            nameless = callable(argument) and not isinstance(argument, nn.Module)
            nameless = (nameless and not _function(argument)) or field.name == "name"
            default = argument is field.default and nameless
            if field.init and field.name != "parent" and not default:
                arguments[field.name] = argument
        return _call(type(value), arguments, where)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) is tuple:
        return {"tuple": [_encode(v, f"{where}[{i}]") for i, v in enumerate(value)]}
    if name := _function(value):
        return {"function": name}
    raise ValueError(_refusal(where, value))


def _call(make: Any, arguments: dict[str, Any], where: str) -> Any:
    name = _name(make)
    try:
        same = _maker(name) is make
    except ValueError:
        same = False
    if not same:
        raise ValueError(_refusal(where, name))
    return {
        "make": name,
        "arguments": {k: _encode(v, f"{where}.{k}") for k, v in arguments.items()},
    }


def _refusal(where: str, value: Any) -> str:
    return (
        f"{where} must be made of numbers, strings, tuples, Flax modules at the top of their "
        "files, what is marked by jaxops.recorded, functions of jax.nn or jax.nn.initializers and "
        f"float dtypes of jax.numpy, got {value!r}; or save task._replace(recipe=None) and "
        "load(path, task=...)"
    )


def _function(value: Any) -> str | None:
    return next((name for name, thing in FUNCTIONS.items() if thing is value), None)


def _name(make: Any) -> str:
    """Where it is looked up: for Flax's own modules the public place."""
    public = vars(nn).get(make.__qualname__) is make
    return f"{nn.__name__ if public else make.__module__}:{make.__qualname__}"


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(map(_decode, value["tuple"]))
    if "function" in value:
        if value["function"] not in FUNCTIONS:
            raise ValueError(
                "a function must be one of jax.nn or jax.nn.initializers, or a float dtype of "
                f"jax.numpy, got {value['function']}"
            )
        return FUNCTIONS[value["function"]]
    make = _maker(value["make"])
    arguments = value["arguments"]
    # a name may have come to mean something else, so all are read as old ones or none
    old = arguments.keys() - inspect.signature(make).parameters
    names = getattr(make, "formerly", {}) if old else {}
    return make(**{names.get(k, k): _decode(v) for k, v in arguments.items()})


def _maker(name: str) -> Any:
    """What a file may name: a Flax module, or what is marked as `recorded`."""
    module, _, qualname = name.partition(":")
    root = module.split(".")[0]
    if root == "jaxops" and module != root:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
        if getattr(_attribute(module, qualname), "__module__", None) != module:
            name = _moved(module, qualname)
            module = name.partition(":")[0]
    maker = _attribute(module, qualname)
    if maker is None and root != "jaxops":
        raise ValueError(
            f"{module} must be imported before its {qualname} is loaded, got no such name; "
            "import it first, or give the task: load(path, task=...)"
        )
    if inspect.isclass(maker):
        marked = getattr(maker, "recorded_class", None) is maker
        allowed = issubclass(maker, nn.Module) or marked
    else:
        allowed = inspect.isfunction(maker) and hasattr(maker, "makes_task")
    # by its own name, not where it happens to be imported; of Flax what is public
    if not allowed or name != _name(maker) or (root == "flax" and module != nn.__name__):
        raise ValueError(
            f"what a file names must be a Flax module or recorded, of this jaxops, got {name}"
        )
    return maker


def _attribute(module: str, name: str) -> Any:
    """The attribute of that name in an imported module, or None."""
    return getattr(sys.modules.get(module), "__dict__", {}).get(name)


def _moved(module: str, qualname: str) -> str:
    """The present name of a class that an older jaxops had in another module of the package."""
    package = module.rpartition(".")[0]
    if package == "jaxops":  # what its own modules had, and no room's
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
