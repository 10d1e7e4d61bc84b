"""A finished model in one file: `save` and `load`.

The file is a safetensors file: arrays, and a JSON text that says how the task was made, what its
inputs look like, and which versions wrote it. Nothing in it is run: a name in it is looked up in
jaxops or among modules that are imported already, and only Flax modules, tasks' makers and
augmentations are called.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxops.state import TrainState
from jaxops.task import Column, Task, example

FORMAT = 1
FUNCTIONS = ("jaxops", "jax", "flax")  # whose functions a file may name


class Model(NamedTuple):
    """A finished model.

    Attributes:
        task: what it learned, with `task.classes` and `task.columns`.
        state: its parameters, as `evaluate` and `predict` take them; no optimizer state.
        about: what `save` was given to keep with it.
        versions: of what wrote the file.
    """

    task: Task
    state: TrainState
    about: dict[str, Any]
    versions: dict[str, str]

    def predict(self, inputs: Any, batch_size: int = 1024) -> Any:
        """Predictions for every row: `inputs` are columns by name, or the one input's array."""
        from jaxops.loop import predict

        if not isinstance(inputs, Mapping):
            names = [column.name for column in self.task.columns if not column.target]
            if len(names) != 1:
                raise ValueError(f"inputs: columns by name wanted, {names}; one array found")
            inputs = {names[0]: np.asarray(inputs)}
        return predict(self.task, self.state, inputs, batch_size=batch_size)


def save(
    path: str | Path, task: Task, state: TrainState, about: dict[str, Any] | None = None
) -> None:
    """Write a finished model to one file; it is whole, or not there.

    Args:
        path: the file; one that is there is replaced.
        task: what was learned. Made by jaxops's own functions (or by one marked
            `jaxops.recorded`), it can be loaded from the file alone.
        state: of it; `optim.averaged(state)` where an average was kept.
        about: JSON-like data to keep with it, such as an encoder's tables.

    Raises:
        OSError: the file could not be written; one that was there before is left as it was.
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
        "versions": {
            "jax": jax.__version__,
            "flax": flax.__version__,
            "python": platform.python_version(),
        },
    }
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    tensors = {name: jnp.asarray(leaf) for name, leaf in _named(state.params, state.extra).items()}
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
        task: what it learned, for a task whose maker the file cannot name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, not a jaxops model, of a newer format, names a model that is
            not imported, or does not fit the task given.

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
            header = json.loads((file.metadata() or {}).get("jaxops", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated, or not a model file: {error}") from error
    if not isinstance(header, dict) or "format" not in header:
        raise ValueError(f"{path}: a safetensors file, but not a model that jaxops saved")
    if header["format"] > FORMAT:
        raise ValueError(
            f"{path}: format {header['format']} found, {FORMAT} or older wanted; "
            f"it was written by a newer jaxops ({header.get('versions')}): upgrade to read it"
        )
    if task is None:
        if header["task"] is None:
            raise ValueError(f"{path}: its task was made by hand; wanted: load(path, task=...)")
        task = _decode(header["task"], path)
    state = _restore(path, task, header, tensors)
    return Model(task, state, header["about"], header["versions"])


def _restore(path: Any, task: Task, header: Any, tensors: dict[str, Any]) -> TrainState:
    columns = [Column(**{**c, "shape": tuple(c["shape"])}) for c in header["inputs"]]
    params, extra = jax.eval_shape(task.init, jax.random.key(0), example(tuple(columns)))
    wanted = _named(params, extra)
    for name in sorted(wanted.keys() | tensors.keys()):
        have, want = (
            f"{tree[name].dtype}{list(tree[name].shape)}" if name in tree else "nothing"
            for tree in (tensors, wanted)
        )
        if have != want:
            raise ValueError(f"{path}: {name}: {have} found, {want} wanted by the model")
    leaves = [tensors[name] for name in wanted]
    params, extra = jax.tree.unflatten(jax.tree.structure((params, extra)), leaves)
    return TrainState(jnp.int32(header["step"]), params, (), extra, jax.random.key(0))


def _named(params: Any, extra: Any) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path((params, extra))[0]
    kinds = ("params", "extra")
    return {kinds[path[0].idx] + jax.tree_util.keystr(path[1:]): leaf for path, leaf in flat}


def _encode(value: Any) -> Any:
    """A value as JSON; `None` for a task made by hand."""
    if isinstance(value, Task):
        if value.recipe is None:
            return None
        make, recorded = value.recipe
        return {"make": _name(make), "arguments": {k: _encode(v) for k, v in recorded}}
    if isinstance(value, nn.Module) or (dataclasses.is_dataclass(value) and callable(value)):
        arguments = {}
        for field in dataclasses.fields(value):
            argument = getattr(value, field.name)
            # Flax's initializers are functions made in functions: as defaults they go without
            unwritten = argument is field.default and _nameless(argument)
            if field.init and field.name not in ("parent", "name") and not unwritten:
                arguments[field.name] = argument
        return {
            "make": _name(type(value)),
            "arguments": {k: _encode(v) for k, v in arguments.items()},
        }
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return {"tuple": [_encode(v) for v in value]}
    if callable(value) and hasattr(value, "__qualname__") and not _nameless(value):
        return {"function": _name(value)}
    raise ValueError(f"save: a {type(value).__name__} among the task's arguments found: {value!r}")


def _nameless(value: Any) -> bool:
    """A lambda, or a function made in a function: no one can look it up."""
    return "<" in getattr(value, "__qualname__", "")


def _name(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _decode(value: Any, path: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_decode(v, path) for v in value["tuple"])
    if "function" in value:
        function = _find(value["function"], path)
        if value["function"].split(":")[0].split(".")[0] not in FUNCTIONS:
            raise ValueError(f"{path}: a function of {FUNCTIONS} wanted, {value['function']} found")
        return function
    make = _find(value["make"], path)
    allowed = hasattr(make, "makes_task") or (
        isinstance(make, type)
        and (issubclass(make, nn.Module) or make.__module__ == "jaxops.data.augment")
    )
    if not allowed:
        raise ValueError(f"{path}: a Flax module or a task wanted, {value['make']} found")
    return make(**{k: _decode(v, path) for k, v in value["arguments"].items()})


def _find(name: str, path: Any) -> Any:
    module, _, qualname = name.partition(":")
    if module.split(".")[0] in FUNCTIONS:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    found = getattr(sys.modules.get(module), qualname, None)
    if found is None:
        raise ValueError(
            f"{path}: was made by {qualname} of {module}, which is not imported here; "
            "import it first, or give the task: load(path, task=...)"
        )
    return found
