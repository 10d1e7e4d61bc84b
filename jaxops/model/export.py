"""A finished model as a program that needs JAX alone: `export`.

The folder that it writes has the program as StableHLO (`program.bin`, see `jax.export`), the
parameters, a plain description of how raw input is read, a manifest with checksums, and `run.py`,
which loads and runs them: the modules of `jaxops.model.exported` as one file.
"""

import hashlib
import inspect
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import export as jax_export
from jax.experimental import serialize_executable

from jaxops._optional import require
from jaxops._version import __version__
from jaxops.data.checks import check_lists
from jaxops.devices import hosts
from jaxops.model import exported
from jaxops.model.exported import run
from jaxops.model.files import plain
from jaxops.model.finished import Model, Program
from jaxops.task import Column, Task, example

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
PARTS = ("tables", "texts", "arrays", "curves", "customers", "run")  # of `run.py`
OWN_IMPORTS = re.compile(r"^from jaxops\.[^\n(]*(\([^)]*\))?\n", re.MULTILINE)


def export(
    model: Model,
    folder: str | Path,
    batch: int | str = "any",
    platforms: Sequence[str] = ("cpu",),
    length: int | str = "any",
    compile_for: Sequence[int] = (),
    **options: Any,
) -> Path:
    """Write a finished model as a program that runs without jaxops, with JAX alone.

    The folder's `run.py` loads it: `load(folder).predict(raw)` answers as `model.predict` does for
    tables, also of times of events, for texts and arrays of images, and for what
    `customers.Summary` has of customers; as `recommend.recommend` for lists of items, and as
    `forecast.forecast` for arrays of series; `apply(columns)` takes encoded columns, as a model of
    language does. It needs the packages jax and flatbuffers. JAX promises to read the program in
    versions that are built up to 180 days later, or 21 days earlier, than those here.

    Not exported are the trees of other libraries than scikit-learn, classical forecasts, `BGBB`,
    and the generation of texts.

    Args:
        model: a task with its parameters; a regression of survival; trees of
            `HistGradientBoosting`; a `Blend` of networks and such trees; a `CustomerBase`; a
            `Recommender`; a `forecast.Forecaster`, or `LogScale`, `Ensemble` or `Conformal` of
            such. Without a reader the program takes encoded columns.
        folder: where to write; what an earlier export wrote there is replaced.
        batch: the number of rows of a call, or "any".
        platforms: what the program is for: "cpu", "cuda", "rocm", "tpu". No such device is needed.
        length: the length of the columns that have a free one, or "any", which not every model can
            be traced for.
        compile_for: numbers of rows for which compiled programs are kept beside, so that a start on
            this kind of machine, with these versions of JAX, compiles nothing for as many rows. A
            call of fewer is filled up to the next of them.
        **options: of the answers, which are fixed by the export: of a recommender `k` (10) and
            `exclude_seen` (True), of a forecast `levels`.

    Returns:
        The folder.

    Raises:
        ValueError: a model, a reader or a platform that cannot be exported; a folder with other
            files; options that the model does not have.
        ImportError: flatbuffers is not installed.

    >>> import tempfile
    >>> from jaxops import init_state, optim, vision
    >>> task = vision.classifier(vision.MLP((4,), classes=2), (2, 2, 1), classes=("cat", "dog"))
    >>> image = np.zeros((3, 2, 2, 1), np.uint8)
    >>> model = Model(task, init_state(task, optim.sgd(0.1), seed=0, batch={"image": image}))
    >>> with tempfile.TemporaryDirectory() as out:
    ...     files = sorted(path.name for path in export(model, f"{out}/pets").iterdir())
    ...     run.load(f"{out}/pets").predict({"image": image}).shape
    (3, 2)
    >>> files
    ['manifest.json', 'parameters.npz', 'program.bin', 'reader.json', 'run.py']
    """
    require("flatbuffers", extra="export")
    folder = Path(os.path.realpath(folder))
    _check(model, folder, {"batch": batch, "length": length}, platforms, compile_for)
    program = _program(model, options)
    described = not program.reader or hasattr(model.reader, "exported")
    reader = (_reader(model) if described else {}) | program.reader
    params = hosts.gathered(program.params)
    if not hosts.first():
        return folder
    leaves, tree = jax.tree_util.tree_flatten_with_path(jax.device_get(params))
    arrays = {
        "params" + jax.tree_util.keystr(path): np.asarray(jnp.asarray(leaf))
        for path, leaf in leaves
    }
    made = _exported(program, list(arrays.values()), tree, batch, length, tuple(platforms))
    manifest = _described(program.columns, arrays, made)
    manifest |= {"batch": batch, "room": model.room, "about": model.about}
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        (beside / "program.bin").write_bytes(made.serialize())
        np.savez(beside / "parameters.npz", **arrays)  # type: ignore[arg-type]
        (beside / "reader.json").write_text(json.dumps(reader), encoding="utf-8")
        (beside / "run.py").write_text(_run(), encoding="utf-8")
        manifest["compiled"] = [
            _compile(beside, made, manifest["inputs"], rows, reader.get("length", 0))
            for rows in compile_for
        ]
        manifest["files"] = _files(beside)
        (beside / "manifest.json").write_text(
            json.dumps(manifest, indent=1, default=plain), encoding="utf-8"
        )
        _put(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _put(made: Path, folder: Path) -> None:
    """Rename a folder to where an earlier one may be, which is deleted when this has worked."""
    aside = made.with_name(f"{made.name}.before")
    if folder.exists():
        folder.rename(aside)
    try:
        made.rename(folder)
    except OSError:
        if aside.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _is_earlier(folder: Path) -> bool:
    """Whether a folder has what an export wrote, and no other file."""
    try:
        own = {
            "manifest.json",
            *run.manifest_of((folder / "manifest.json").read_bytes(), folder)["files"],
        }
    except (OSError, ValueError, TypeError):
        return False
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    names = {path.relative_to(folder).as_posix() for path in paths}
    cached = re.compile(r"__pycache__/run\.[^/]*\.pyc")  # of an import of run.py
    return all(name in own or cached.fullmatch(name) for name in names)


def _check(
    model: Any, folder: Path, sizes: dict[str, Any], platforms: Any, compile_for: Any
) -> None:
    """Check the arguments of `export` before anything is traced."""
    if not isinstance(model, Model):
        raise ValueError(f"model must be a jo.Model, got {type(model).__name__}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder must be a folder, got the file {folder}")
    if folder.exists() and any(folder.iterdir()) and not _is_earlier(folder):
        raise ValueError(
            f"folder must be new, empty, or an earlier export without other files, got {folder}"
        )
    for name, size in sizes.items():
        if size != "any" and not _is_count(size):
            raise ValueError(f'{name} must be "any" or a number of at least 1, got {size!r}')
    check_lists(platforms=platforms)
    odd = next((one for one in platforms if one not in PLATFORMS), None)
    if odd is not None or not platforms:
        raise ValueError(f"platforms must be some of {', '.join(PLATFORMS)}, got {odd or 'none'}")
    for rows in compile_for:
        if not _is_count(rows):
            raise ValueError(f"compile_for must be numbers of rows, got {rows!r}")
        if sizes["batch"] not in ("any", rows):
            raise ValueError(f"compile_for must be {sizes['batch']}, the batch, got {rows}")
    here = jax_export.default_export_platform()
    if compile_for and here not in platforms:
        raise ValueError(f"platforms must include {here}, for which compile_for compiles here")


def _is_count(size: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 1


def _program(model: Model, options: dict[str, Any]) -> Program:
    """What a model computes, of encoded columns."""
    if hasattr(model.task, "exported"):
        try:
            inspect.signature(model.task.exported).bind(**options)
        except TypeError as error:
            raise ValueError(f"options must be of the answers, got {options}: {error}") from error
        program: Program = model.task.exported(**options)
        return program
    if not isinstance(model.task, Task):
        raise ValueError(
            "model must be a network, or another program of JAX, to be exported, got "
            f"{type(model.task).__name__}; answer with jaxops, or fit a network"
        )
    if options:
        raise ValueError(f"options must be none for this model, got {', '.join(options)}")
    task, state = model.trained()
    columns = tuple(column for column in task.columns if not column.target)
    return Program(
        lambda params, batch: task.predict(params[0], params[1], batch),
        (state.params, state.extra),
        columns,
    )


def _reader(model: Model) -> dict[str, Any]:
    """The plain description of a model's reader."""
    if model.reader is None:
        return {"kind": "columns"}
    if not hasattr(model.reader, "exported"):
        raise ValueError(
            "reader must be one of tables, texts, images or customers, got "
            f"{type(model.reader).__name__}; "
            "export(jo.Model(model.task, model.state), ...) exports what takes encoded columns"
        )
    described: dict[str, Any] = model.reader.exported(model)
    return described


def _exported(
    program: Program,
    arrays: list[np.ndarray],
    tree: Any,
    batch: int | str,
    length: int | str,
    platforms: tuple[str, ...],
) -> Any:
    """The function of (list of arrays, columns) as StableHLO.

    It is traced for one row and mapped over the rows, so that a module may ask for the number of
    rows, as by `len(x)`, which a batch of any size does not have.
    """

    def row(leaves: list[Any], columns: Mapping[str, Any]) -> dict[str, Any]:
        params = jax.tree.unflatten(tree, leaves)
        outputs = program.function(params, {name: x[None] for name, x in columns.items()})
        flat, _ = jax.tree_util.tree_flatten_with_path(outputs)
        return {_name(path): leaf[0] for path, leaf in flat}

    symbols = dict(
        zip(("batch", "length"), jax_export.symbolic_shape("batch, length"), strict=True)
    )
    rows = symbols["batch"] if batch == "any" else batch
    free = symbols["length"] if length == "any" else length
    columns = {}
    for column in program.columns:
        shape = rows, *(free if n is None else n for n in column.shape)
        dtype = example((column,))[column.name].dtype
        columns[column.name] = jax.ShapeDtypeStruct(shape, dtype)
    leaves = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
    function = jax.jit(jax.vmap(row, in_axes=(None, 0)))
    try:
        return jax_export.export(function, platforms=platforms)(leaves, columns)
    except Exception as error:  # what JAX raises here has no common class
        why = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"model must be a program that JAX can export for batch={batch!r}, length={length!r} "
            f"and platforms {', '.join(platforms)}, got an error, which numbers in place of 'any' "
            f"may help: {why}"
        ) from error


def _name(path: tuple[Any, ...]) -> str:
    """The name of an output: "outputs" of a single array, else its keys."""
    keys = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return ".".join(map(str, keys)) or "outputs"


def _described(
    columns: tuple[Column, ...], arrays: dict[str, np.ndarray], made: Any
) -> dict[str, Any]:
    """What the manifest says of a program, its inputs, outputs and parameters."""

    def one(name: str, aval: Any) -> dict[str, Any]:
        shape = [n if isinstance(n, int) else str(n) for n in aval.shape]
        return {"name": name, "dtype": str(aval.dtype), "shape": shape}

    (_, taken), _ = jax.tree.unflatten(made.in_tree, made.in_avals)
    given = jax.tree.unflatten(made.out_tree, made.out_avals)
    classes = {column.name: column.classes for column in columns}
    return {
        "format": run.FORMAT,
        "written": datetime.now(UTC).date().isoformat(),
        "jaxops": __version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "calling_convention": made.calling_convention_version,
        "platforms": list(made.platforms),
        "inputs": [{**one(name, x), "classes": classes[name]} for name, x in taken.items()],
        "outputs": [one(name, x) for name, x in given.items()],
        "parameters": [one(name, x) for name, x in arrays.items()],
    }


def _run() -> str:
    """The text of `run.py`."""
    parts = [(Path(exported.__file__).parent / f"{name}.py").read_text("utf-8") for name in PARTS]
    first = f'"""Written by jaxops {__version__}; `load` is near the end."""\n'
    return "\n\n".join([first, *(OWN_IMPORTS.sub("", part) for part in parts)])


def _compile(
    folder: Path, made: Any, inputs: list[dict[str, Any]], rows: int, length: int
) -> dict[str, Any]:
    """Compile for so many rows and this machine, write the program, and say what it is for."""
    free = [one["name"] for one in inputs if "length" in one["shape"]]
    if free and not length:
        raise ValueError(f"compile_for must be () for columns of any length, got {free[0]}")
    sizes = {"batch": rows, "length": length}
    leaves, _ = jax.tree.unflatten(made.in_tree, made.in_avals)[0]
    columns = {
        one["name"]: jax.ShapeDtypeStruct([sizes.get(n, n) for n in one["shape"]], one["dtype"])
        for one in inputs
    }
    leaves = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    compiled = jax.jit(made.call).lower(leaves, columns).compile()
    here = run.machine()
    kind = re.sub(r"\W+", "-", here["device_kind"])
    path = folder / "compiled" / f"{here['platform']}-{kind}-b{rows}.bin"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(serialize_executable.serialize(compiled)[0])
    used = length if free else 0
    return {"file": f"compiled/{path.name}", "rows": rows, "length": used, **here}


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of each file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            found[path.relative_to(folder).as_posix()] = {"bytes": len(content), "sha256": digest}
    return found
