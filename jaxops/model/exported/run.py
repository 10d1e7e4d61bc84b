"""Loads and runs an exported model with the standard library, JAX, and what JAX needs, alone.

    from run import load
    model = load("out")
    model.predict({"age": [31, None], "plan": ["a", "b"]})

`jaxops.export` writes this file beside each program, joined with the modules that it imports here:
nothing of jaxops is imported there. `python run.py rows.csv` writes the answers for a table or for
texts to the standard output, as CSV. JAX reads a program by the package `flatbuffers`.
"""

import csv
import hashlib
import io
import json
import logging
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
from jax import export as jax_export
from jax.experimental import serialize_executable

from jaxops.model.exported.arrays import (
    of_columns,
    of_histories,
    of_windows,
    read_columns,
    read_histories,
    read_images,
    read_windows,
)
from jaxops.model.exported.curves import of_survival, read_survival
from jaxops.model.exported.customers import of_customers, read_customers
from jaxops.model.exported.tables import Columns, of_classes, of_table, read_table
from jaxops.model.exported.texts import of_texts, read_texts

FORMAT = 1
KEYS = (
    *("jax", "jaxlib", "calling_convention", "platforms", "batch"),
    *("inputs", "outputs", "parameters", "compiled", "files"),
)
FILES = ("program.bin", "parameters.npz", "reader.json")
SIZES = [2**power for power in range(11)]  # rows of a call: so few programs are compiled
KINDS: dict[str, tuple[Any, Any]] = {
    "columns": (read_columns, of_columns),
    "table": (read_table, of_table),
    "texts": (read_texts, of_texts),
    "images": (read_images, of_classes),
    "histories": (read_histories, of_histories),
    "windows": (read_windows, of_windows),
    "survival": (read_survival, of_survival),
    "customers": (read_customers, of_customers),
}
"""Kind of reader -> how raw input becomes ids and columns, and outputs become answers."""
log = logging.getLogger("jaxops.exported")


def load(folder: str | Path, sha256: str | None = None) -> "Exported":
    """Read an export, after a check of the files that its manifest lists.

    Args:
        folder: what `jaxops.export` wrote. A file that was cut off, lost or mixed up is found, and
            so is one that was changed. A changed `manifest.json` is not, without `sha256`.
        sha256: of `manifest.json`, kept elsewhere: then a change of any of the files is found but
            one of `run.py` itself, which does the checks and has run by then.

    Raises:
        FileNotFoundError: no export, or one that lacks a file.
        ValueError: a file that was changed or cut off; another `sha256`; an export of a newer
            format, of a version of JAX that this one does not read, or for other platforms.
    """
    folder, path = Path(folder), Path(folder) / "manifest.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: folder must be an export of jaxops, got none")
    content = path.read_bytes()
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256.lower():
        raise ValueError(
            f"{path} must have the SHA-256 {sha256}, got {hashlib.sha256(content).hexdigest()}"
        )
    manifest = manifest_of(content, path)
    names = {*FILES, *manifest["files"], *(one["file"] for one in manifest["compiled"])}
    # each is read once, so that what is run is what was checked
    contents = {name: _content(folder, name, manifest["files"].get(name)) for name in names}
    _check_versions(folder, manifest)
    return Exported(manifest, contents)


def manifest_of(content: bytes, path: Path) -> Columns:
    """The manifest of an export, from its bytes.

    Raises:
        ValueError: another text, or a newer format.
    """
    try:
        manifest = json.loads(content)
        newer = manifest["format"] > FORMAT
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path} must describe an export of jaxops, got another text") from None
    if newer:
        raise ValueError(
            f"{path}: format must be at most {FORMAT}, got {manifest['format']}; the run.py beside "
            "it reads it, or a newer jaxops"
        )
    missing = [key for key in KEYS if key not in manifest]
    if missing:
        raise ValueError(f"{path} must have {missing[0]!r}, got {', '.join(manifest)}")
    return dict(manifest)


def _content(folder: Path, name: str, known: Any) -> bytes:
    """The bytes of a file, which are those of the export."""
    path = folder / name
    if known is None or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{folder}/manifest.json must list the files of the export, got {name!r}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the export lacks this file")
    content = path.read_bytes()
    if len(content) != known["bytes"]:
        raise ValueError(
            f"{path} must have {known['bytes']:,} bytes, got {len(content):,}; copy it again"
        )
    found = hashlib.sha256(content).hexdigest()
    if found != known["sha256"]:
        raise ValueError(
            f"{path} must have the SHA-256 {known['sha256'][:12]}..., got {found[:12]}...; it was "
            "changed after the export"
        )
    return content


def _check_versions(folder: Path, manifest: Columns) -> None:
    low = jax_export.minimum_supported_calling_convention_version
    high = jax_export.maximum_supported_calling_convention_version
    version, made = manifest["calling_convention"], manifest["jax"]
    if not low <= version <= high:
        raise ValueError(
            f"{folder}: the calling convention must be {low} to {high} for jax {jax.__version__}, "
            f"got {version}, of jax {made}; install that jax, or export the model again"
        )
    backend, given = jax.default_backend(), manifest["platforms"]
    wanted = {"gpu": ("cuda", "rocm")}.get(backend, (backend,))
    if not {*wanted} & {*given}:
        raise ValueError(
            f"{folder}: platforms must include that of this machine, {' or '.join(wanted)}, got "
            f"{', '.join(given)}; export the model again for it"
        )
    here = f"jax {jax.__version__} and jaxlib {jaxlib.__version__}"
    wrote = f"jax {made} and jaxlib {manifest['jaxlib']}"
    if here != wrote:
        log.warning(
            "%s: %s wrote it, and %s read it; JAX promises so for versions built up to 180 days "
            "later, or 21 days earlier",
            *(folder, wrote, here),
        )


class Exported:
    """An exported model, as `load` returns it.

    Attributes:
        manifest: `manifest.json`: versions, platforms, inputs, outputs, and `about` the model.
        reader: `reader.json`: what is to be known of raw input, and of answers.
    """

    def __init__(self, manifest: Columns, contents: dict[str, bytes]) -> None:
        self.manifest, self._program = manifest, contents["program.bin"]
        self.reader = json.loads(contents["reader.json"])
        with np.load(io.BytesIO(contents["parameters.npz"]), allow_pickle=False) as stored:
            arrays = [(stored[one["name"]], one["dtype"]) for one in manifest["parameters"]]
        # NumPy keeps the bits of bfloat16 alone
        self._parameters = [jax.device_put(x.view(jax.numpy.dtype(dtype))) for x, dtype in arrays]
        self._programs = _compiled(manifest, contents, self._parameters)
        compiled = sorted({rows for rows, _ in self._programs})
        self._sizes = [*compiled, *(size for size in SIZES if size > max(compiled, default=0))]
        if manifest["batch"] != "any":
            self._sizes = [manifest["batch"]]
        self._traced: Any = None

    def predict(self, raw: Any) -> Any:
        """The answers for raw input by name, with the fields of what `predict` of jaxops gives.

        Args:
            raw: of a table columns by name, or a list of rows by name; of texts also a list of
                texts. Of customers `frequency`, `recency`, `T`, with amounts `monetary_value`, and
                the covariates, as `jaxops.customers.Summary` has them; `id` and `horizon`, which is
                by default that of training, may be missing. Of images uint8 (N, H, W, C), or
                (N, H, W) where they are grey. Of histories the items' ids of each user, oldest
                first, in a list or by the user's id; the answer is `users`, `items` (their ids,
                best first) and `scores`. Of series by name `values`, arrays (T,) or (T, C), `id`,
                and the covariates of the model, `past` (T, P), `known` (T + H, K) and `static` (Q,)
                of each series. Without a reader the columns of `apply`.

        Raises:
            ValueError: input that the model cannot read, with column and row.
            ImportError: texts that need a package which is not installed.
        """
        read, answer = KINDS[self.reader["kind"]]
        ids, columns = read(self.reader, raw)
        return answer(self.reader, ids, self.apply(columns))

    def columns(self, raw: Any) -> Columns:
        """The encoded columns of raw input, which `apply` takes; see `predict`."""
        columns: Columns = KINDS[self.reader["kind"]][0](self.reader, raw)[1]
        return columns

    def apply(self, columns: Mapping[str, Any]) -> Any:
        """What the program computes of encoded columns: an array (N, ...), or several by name.

        A call of the program has one of a few numbers of rows, and is filled up with the last row.

        Args:
            columns: name -> array (N, ...), as `manifest["inputs"]` says.

        Raises:
            ValueError: columns of another shape or dtype, numbers that are not finite, or integers
                out of range.
        """
        columns = {one["name"]: _checked(one, columns) for one in self.manifest["inputs"]}
        counts = {name: len(column) for name, column in columns.items()}
        count = max(counts.values())
        if min(counts.values()) != count or count == 0:
            raise ValueError(f"columns must have equal numbers of rows, at least 1, got {counts}")
        parts, start = [], 0
        while start < count:
            size = next((s for s in self._sizes if s >= count - start), self._sizes[-1])
            rows = np.minimum(np.arange(start, start + size), count - 1)
            outputs = self._call(size, {name: column[rows] for name, column in columns.items()})
            parts.append({name: np.asarray(x)[: count - start] for name, x in outputs.items()})
            start += size
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return joined["outputs"] if joined.keys() == {"outputs"} else joined

    def _call(self, rows: int, columns: Columns) -> Columns:
        lengths = [
            columns[one["name"]].shape[one["shape"].index("length")]
            for one in self.manifest["inputs"]
            if "length" in one["shape"]
        ]
        if len({*lengths}) > 1:
            raise ValueError(f"columns must be of one length, got {lengths}")
        key = rows, lengths[0] if lengths else 0
        if key not in self._programs:
            if self._traced is None:
                program = jax_export.deserialize(bytearray(self._program))
                self._traced = jax.jit(program.call)
            log.info("compiled here for %d rows%s", rows, f" of {key[1]}" if lengths else "")
            self._programs[key] = self._traced
        outputs: Columns = self._programs[key](self._parameters, columns)
        return outputs


def _checked(wanted: Columns, columns: Mapping[str, Any]) -> np.ndarray:
    """One encoded column, with the dtype of the program."""
    name, shape, dtype = wanted["name"], wanted["shape"][1:], np.dtype(wanted["dtype"])
    if not isinstance(columns, Mapping) or name not in columns:
        names = ", ".join(columns) if isinstance(columns, Mapping) else type(columns).__name__
        raise ValueError(f"columns must include {name!r}, got {names}")
    value: Any = np.asarray(columns[name])
    given = value.shape[1:]
    if len(shape) != len(given) or any(
        w not in ("length", g) for w, g in zip(shape, given, strict=True)
    ):
        raise ValueError(f"{name} must have rows of shape {tuple(shape)}, got {given}")
    if value.dtype.kind not in {"f": "fiu", "i": "iu"}.get(dtype.kind, dtype.kind):
        raise ValueError(f"{name} must be {dtype}, got {value.dtype}")
    with np.errstate(over="ignore"):
        cast = value.astype(dtype)
    if dtype.kind in "fb":
        right, told = np.isfinite(cast), f"finite in {dtype}"
    else:
        ends: Any = np.iinfo(dtype.name)
        low, high = ends.min, ends.max
        if wanted["classes"] is not None:
            low, high = 0, wanted["classes"] - 1
        right, told = (value >= low) & (value <= high), f"in {low} to {high}"
    if not right.all():
        row = np.argwhere(~right)[0]
        raise ValueError(f"{name} must be {told}, got {value[tuple(row)]} in row {row[0]}")
    return cast


def machine() -> dict[str, str]:
    """What a compiled program is for: versions, device, and on a CPU its model and instructions."""
    info, cpu = Path("/proc/cpuinfo"), platform.processor()
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = repr(sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))}))
    backend, kind = jax.default_backend(), jax.devices()[0].device_kind
    on = f"{platform.machine()} {hashlib.sha256(cpu.encode()).hexdigest()[:16]}"
    return {
        **{"platform": backend, "device_kind": kind, "cpu": on if backend == "cpu" else ""},
        **{"jax": jax.__version__, "jaxlib": jaxlib.__version__},
    }


def _compiled(
    manifest: Columns, contents: dict[str, bytes], parameters: Any
) -> dict[tuple[int, int], Any]:
    """The compiled programs of the export that are for this machine, by rows and length."""
    here, found = machine(), {}
    inputs = {column["name"]: 0 for column in manifest["inputs"]}
    taken: Any = jax.tree.structure(((parameters, inputs), {}))
    given: Any = jax.tree.structure({output["name"]: 0 for output in manifest["outputs"]})
    for one in manifest["compiled"]:
        other = [f"{name} {one[name]}" for name in here if one[name] != here[name]]
        if other:
            log.info("%s is not used, as it is for %s", one["file"], ", ".join(other))
            continue
        try:
            found[one["rows"], one["length"]] = serialize_executable.deserialize_and_load(
                contents[one["file"]],
                taken,
                given,
                execution_devices=jax.devices()[:1],
            )
        except Exception as error:  # XLA raises nothing narrower
            log.warning("%s cannot be used, and is compiled here: %s", one["file"], error)
    return found


def read_csv(path: str) -> dict[str, list[str]]:
    """The columns of a CSV file.

    Raises:
        ValueError: no header, a line with more or fewer cells, or wrong quotes.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, strict=True)
        try:
            (names, _), *lines = [(row, rows.line_num) for row in rows] or [([], 0)]
        except csv.Error as error:
            raise ValueError(f"{path} must be CSV, got line {rows.line_num}: {error}") from None
    if not names or len({*names}) < len(names):
        raise ValueError(f"{path} must begin with the names of columns, got {names}")
    count = len(names)
    for row, line in lines:
        if len(row) != count:
            raise ValueError(
                f"{path} must have {count} cells a line, got {len(row)} in line {line}"
            )
    return {name: [row[i] for row, _ in lines] for i, name in enumerate(names)}


def main(path: str) -> None:
    """Write the answers for a CSV file, of rows or of texts, to the standard output."""
    exported = load(Path(__file__).parent)
    if exported.reader["kind"] not in ("table", "texts", "survival", "customers"):
        raise ValueError(
            "model must be of a table, survival, customers or texts to answer a CSV file, got "
            f"{exported.reader['kind']}"
        )
    answer = exported.predict(read_csv(path))
    arrays = {name: value for name, value in answer.items() if isinstance(value, np.ndarray)}
    for cause in range(arrays["incidence"].shape[1] if "incidence" in arrays else 0):
        arrays[f"incidence {cause + 1}"] = arrays["incidence"][:, cause]
    arrays.pop("incidence", None)
    columns: Columns = {}
    for name, value in arrays.items():
        if value.ndim == 2:
            ends = next((answer[n] for n in ("classes", "levels", "times") if answer.get(n)), None)
            ends = range(value.shape[1]) if ends is None else ends
            columns |= {f"{name} {end}": value[:, i] for i, end in enumerate(ends)}
        else:
            columns[name] = value
    writer = csv.writer(sys.stdout)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
