"""The file `jaxops.json` of a checkpoint: a record, and a checksum of every file.

Orbax itself checks only some files. `jaxops.json` is written before the checkpoint is moved into
its place.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

NAME = "jaxops.json"
METADATA = "_CHECKPOINT_METADATA"  # Orbax still writes to it after the checksums are made


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write the record, the SHA-256 of every file in `folder` by path, and a checksum of both."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != METADATA)
    digests = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    content = {"record": record, "files": digests}
    (folder / NAME).write_text(json.dumps({**content, "own": _digest_of(content)}))


def read(folder: Path) -> dict[str, Any] | None:
    """The record; `None` for a checkpoint of an earlier version, which has no record."""
    path = folder / NAME
    return json.loads(path.read_text())["record"] if path.exists() else None


def damage(folder: Path) -> str | None:
    """A message that says which file of a checkpoint is damaged; `None` if all files are intact.

    A checkpoint of an earlier version, without checksums, is not checked.
    """
    from orbax.checkpoint import v1 as ocp  # slow to import

    path = folder / METADATA
    try:
        metadata = json.loads(path.read_text())
        path = folder / NAME
        if not (metadata["custom_metadata"] or {}).get("checksums") and not path.exists():
            return None
        content = json.loads(path.read_text())
        if content.pop("own") != _digest_of(content):
            return f"{path}: damaged: its checksum differs"
        for name, digest in content["files"].items():
            path = folder / name
            if sha256(path) != digest:
                return f"{path}: damaged: its checksum differs from that in {NAME}"
        path = folder / METADATA  # all others are intact, so an error of Orbax concerns this one
        ocp.checkpointables_metadata(folder)
        return None
    except Exception as error:  # a damaged file may cause any error
        return f"{path}: damaged: {error!r}"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
