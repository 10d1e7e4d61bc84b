"""A finished model in one file: `save` and `load`.

The file is a safetensors file. It holds arrays, and a JSON text that says how the task was made,
what its inputs look like, how raw input is read, and which versions wrote it. It has no code, only
names of code in installed packages; see `jaxops.model.encoding`. `load` calls the named functions
with the recorded arguments, and traces the task's `init`.
"""

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops._version import __version__
from jaxops.devices import hosts
from jaxops.model import encrypted
from jaxops.model.encoding import decode, encode
from jaxops.model.finished import Model
from jaxops.nn.packed import STORED, Packed, is_packed
from jaxops.state import TrainState
from jaxops.task import Column, Task, example

FORMAT = 2
DTYPES = {"BF16": "bfloat16", "BOOL": "bool"} | {
    f"{letter}{bits}": f"{kind}{bits}"
    for letter, kind in {"F": "float", "I": "int", "U": "uint"}.items()
    for bits in (8, 16, 32, 64)
}


def save(path: str | Path, model: Model, key: bytes | str | None = None) -> None:
    """Write a finished model to one file; an interrupted write leaves no partial file.

    With several processes all of them must call this, and the first writes the file.

    Args:
        path: the file; an existing file is replaced.
        model: the model; `Model(task, state)` after `jaxops.fit`. If a function of jaxops made the
            task (or one marked by `jaxops.recorded`), the file alone is enough to load the model.
        key: 32 bytes or their 64 hexadecimal digits, to encrypt the file with AES-256-GCM; needs
            the extra `encrypt`.

    Raises:
        ValueError: the argument is not a `Model`; or the task or the reader has an argument that a
            file cannot hold; or another key.
        OSError: the file could not be written; an existing file is left unchanged.
    """
    import safetensors.numpy
    from safetensors import SafetensorError

    if not isinstance(model, Model):
        raise ValueError(
            f"model must be a jo.Model, got {type(model).__name__}; make one by "
            "jo.Model(task, state) or jo.Model(closed_form)"
        )
    if key is not None:
        key = encrypted.key_bytes(key)
    arrays: dict[str, Any] = {}
    task, state = model.task, model.state
    by_hand = isinstance(task, Task) and not task.recipe
    header = {
        "format": FORMAT,
        "task": None if by_hand else encode(task, arrays, "task"),
        "reader": encode(model.reader, arrays, "reader"),
        "reference": encode(model.reference, arrays, "reference"),
        "about": model.about,
        "versions": _versions(),
    }
    named: dict[str, Any] = {}
    if state is not None:
        columns = [column._asdict() for column in task.columns]
        header |= {"inputs": columns, "classes": task.classes, "step": int(state.step)}
        header["packed"] = _packed((state.params, state.extra))
        named = _named(*hosts.gathered((state.params, state.extra)))
    if not hosts.first():
        return
    path = Path(os.path.realpath(path))  # if it is a link, its target is replaced
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    tensors = {k: np.asarray(v, order="C") for k, v in jax.device_get(named | arrays).items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        mode = beside.stat().st_mode  # that of the umask; safetensors allows only the user to read
        text = {"jaxops": json.dumps(header, default=plain)}
        if key is None:
            safetensors.numpy.save_file(tensors, beside, text)
        else:
            with open(beside, "wb") as file:
                encrypted.write(file, safetensors.numpy.save(tensors, text), key)
        beside.chmod(mode)
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path}: the model could not be written: {error}") from error
    finally:
        beside.unlink(missing_ok=True)


def load(path: str | Path, task: Task | None = None, key: bytes | str | None = None) -> Model:
    """Read a model that `save` wrote.

    An encrypted file is decrypted in memory; no copy of it is written.

    Args:
        path: the file.
        task: the task, if the file cannot name how it was made.
        key: the key of an encrypted file; by default that in the environment variable
            `JAXOPS_MODEL_KEY`, if the file is encrypted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the path is a folder; the file is truncated, is not a model of jaxops, has a
            newer format, names a module that is not imported, contradicts itself, or does not fit
            the given task. Or it is encrypted, and there is no key or another one, or it was
            changed; or there is a `key`, and it is not encrypted.

    >>> import tempfile
    >>> from jaxops import tabular
    >>> from jaxops.state import init_state
    >>> from jaxops.optim import sgd
    >>> task = tabular.classifier(tabular.MLP(), features=3, classes=("stays", "leaves"))
    >>> state = init_state(task, sgd(0.1), seed=0, batch=example(task.columns))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/customers.safetensors", Model(task, state))
    ...     model = load(f"{folder}/customers.safetensors")
    >>> model.task.classes, model.predict(np.zeros((2, 3), np.float32)).shape
    (('stays', 'leaves'), (2,))
    """
    hosts.check_fork()
    if os.path.isdir(path):
        raise ValueError(f"path must be a model file, got the folder {path}")
    with _opened(path, key) as (text, tensors):
        try:
            return _read(text, tensors, task)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        except Exception as error:  # a text that somebody changed may fail anywhere
            raise ValueError(
                f"path must be a model file, got {path}, whose text does not describe a model: "
                f"{error!r}"
            ) from error


@contextlib.contextmanager
def _opened(path: str | Path, key: bytes | str | None) -> Iterator[tuple[str, Any]]:
    """The text of a file, and its arrays by name."""
    from safetensors import SafetensorError, safe_open

    if encrypted.is_encrypted(path):
        key = os.environ.get(encrypted.KEY) if key is None else key
        if key is None:
            raise ValueError(f"key must be given for {path}, which is encrypted, got None")
        arrays = encrypted.Arrays(encrypted.read(path, key), DTYPES)
        yield arrays.metadata.get("jaxops", "null"), arrays
        return
    if key is not None:
        raise ValueError(f"path must be an encrypted file, as there is a key, got {path}")
    try:
        opened = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(
            f"path must be a model file, got {path}, which is truncated or of another format: "
            f"{error}"
        ) from error
    with opened as file:
        yield (file.metadata() or {}).get("jaxops", "null"), _Tensors(file)


class _Tensors(Mapping[str, np.ndarray]):
    """The arrays of a file by name, each read when it is asked for."""

    def __init__(self, file: Any) -> None:
        self._file, self._names = file, frozenset(file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def kind(self, name: str) -> str:
        """Dtype and shape, from the header; the array is not read."""
        part = self._file.get_slice(name)
        return f"{DTYPES.get(part.get_dtype(), part.get_dtype())}{part.get_shape()}"


def _read(text: str, tensors: Any, task: Task | None) -> Model:
    header = json.loads(text)
    if not isinstance(header, dict) or "format" not in header:
        raise ValueError("must be a model that jaxops saved, got another safetensors file")
    if not isinstance(header["format"], int) or header["format"] < 1:
        raise ValueError(f"format must be in 1 to {FORMAT}, got {header['format']}")
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
        task = decode(header["task"], tensors)
    reader = decode(header.get("reader"), tensors)
    state = None
    if "step" in header:
        state = _restore(task, header, tensors)
    reference = decode(header.get("reference"), tensors)
    model = Model(task, state, reader, header["about"], header["versions"], reference)
    make: Any = task.recipe[0] if isinstance(task, Task) and task.recipe else None
    # before there were readers, the rooms had file formats of their own
    return make.finished(model) if hasattr(make, "finished") else model


def _restore(task: Task, header: Any, tensors: Any) -> TrainState:
    columns = tuple(Column(**{**c, "shape": tuple(c["shape"])}) for c in header["inputs"])
    _check_same("inputs", columns, task.columns)
    _check_same("classes", header["classes"], task.classes)
    shapes = jax.eval_shape(task.init, jax.random.key(0), example(columns))
    params, extra = _packed_shapes(shapes, header.get("packed", {}))
    expected = _named(params, extra)
    kept = {name for name in tensors if name.startswith(("params", "extra"))}
    wanted = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in expected.items()}
    for name in sorted(wanted.keys() | kept):  # check all before reading, which takes memory
        have = tensors.kind(name) if name in kept else "nothing"
        want = wanted.get(name, "nothing")
        if have != want:
            raise ValueError(f"{name} must be {want} for this model, got {have}")
    leaves = [jnp.asarray(tensors[name]) for name in expected]
    params, extra = jax.tree.unflatten(jax.tree.structure((params, extra)), leaves)
    return TrainState(jnp.int32(header["step"]), params, (), extra, jax.random.key(0))


def _check_same(what: str, given: Sequence[Any], wanted: Sequence[Any]) -> None:
    """Raise `ValueError` if the file and the task differ, with the first difference."""
    for have, want in itertools.zip_longest(given, wanted, fillvalue="nothing"):
        if json.dumps(have) != json.dumps(want):  # a file has lists instead of tuples
            raise ValueError(f"{what} must be as the task has them, {want}, got {have} in the file")


def plain(value: Any) -> Any:
    """A scalar of NumPy or JAX in `about` as a number of Python, for `json.dumps(default=)`.

    Raises:
        ValueError: another object.

    >>> json.dumps({"rows": np.int64(3)}, default=plain)
    '{"rows": 3}'
    """
    if hasattr(value, "item") and np.ndim(value) == 0:
        return value.item()
    raise ValueError(f"about must be JSON-like data, got {value!r} of {type(value).__name__} in it")


def _named(params: Any, extra: Any) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path((params, extra))[0]
    return {_name(path): leaf for path, leaf in flat}


def _name(path: Any) -> str:
    """The name of an array in the file, by its path in (params, extra)."""
    return ("params", "extra")[path[0].idx] + jax.tree_util.keystr(path[1:])


def _packed(variables: Any) -> dict[str, dict[str, Any]]:
    """What a file says of the packed arrays in (params, extra), by name."""
    flat = jax.tree_util.tree_flatten_with_path(variables, is_leaf=is_packed)[0]
    return {
        _name(path): {
            "form": leaf.form,
            "scale": None if leaf.scale is None else list(leaf.scale.shape),
            "inputs": leaf.inputs is not None,
        }
        for path, leaf in flat
        if is_packed(leaf)
    }


def _packed_shapes(shapes: Any, packed: dict[str, dict[str, Any]]) -> Any:
    """The shapes of (params, extra) in a file in which some arrays are packed."""

    def one(path: Any, leaf: Any) -> Any:
        if _name(path) not in packed:
            return leaf
        how, float32 = packed[_name(path)], jnp.dtype("float32")
        *rows, length = leaf.shape
        stored = -(-length // 2) if how["form"] == "int4" else length
        values = jax.ShapeDtypeStruct((*rows, stored), STORED[how["form"]])
        scale = how["scale"] and jax.ShapeDtypeStruct(tuple(how["scale"]), float32)
        inputs = jax.ShapeDtypeStruct((), float32) if how["inputs"] else None
        return Packed(values, scale, inputs, how["form"], length)

    return jax.tree_util.tree_map_with_path(one, shapes)


def _versions() -> dict[str, str]:
    others = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "jaxops": __version__,
        **{name: importlib.metadata.version(name) for name in others},
        "python": platform.python_version(),
    }
