"""Checksums of a checkpoint's files, kept among them: Orbax itself checks only some."""

import hashlib
import json
from pathlib import Path
from typing import Any

NAME = "checksums.json"
METADATA = "_CHECKPOINT_METADATA"  # Orbax's; our own record is in it


def write(folder: Path) -> None:
    """Write `checksums.json`, before the commit: path -> SHA-256 of every file, and its own."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in files}
    (folder / NAME).write_text(json.dumps({"files": digests, "own": _digest_of(digests)}, indent=0))


def damage(folder: Path) -> str | None:
    """Which file of a checkpoint is damaged, and how; `None` where all are as they were written.

    A checkpoint of before there were checksums is taken as it is.
    """
    path = folder / METADATA
    try:
        record = _metadata(path).get("custom_metadata") or {}
        path = folder / NAME
        if not record.get("checksums") and not path.exists():
            return None
        kept = json.loads(path.read_text())
        if _digest_of(kept["files"]) != kept["own"]:
            return f"{path}: damaged: its checksum is another than its own"
        for name, digest in kept["files"].items():
            path = folder / name
            if _digest(path) != digest:
                return f"{path}: damaged: its checksum is another than in {NAME}"
        return None
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        return f"{path}: damaged: {error}"


def _digest(path: Path) -> str:
    if path.name == METADATA:
        return _digest_of(_metadata(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _metadata(path: Path) -> Any:
    """What Orbax writes down, without the time of the commit: it adds that afterwards."""
    content = json.loads(path.read_text())
    committed = content.pop("commit_timestamp_nsecs", None)
    if not isinstance(committed, int | None):
        raise ValueError(f"commit_timestamp_nsecs: {committed!r} found, an integer wanted")
    return content
