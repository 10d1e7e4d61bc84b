"""The commands of the command line that serve models and make keys."""

import functools
import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxops._optional import require
from jaxops.model.encrypted import KEY
from jaxops.model.files import load
from jaxops.serve.access import add_key
from jaxops.serve.app import Service, application
from jaxops.serve.server import check_certificate, check_host, run
from jaxops.serve.settings import Settings
from jaxops.serve.workers import run_workers

if TYPE_CHECKING:
    import tyro
else:
    tyro = require("tyro", extra="cli")


@dataclass(frozen=True)
class Limits(Settings):
    """Limits of a server."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:  # around which tyro would draw a box
            print(f"jaxops: error: {error}", file=sys.stderr)
            sys.exit(2)


@dataclass(frozen=True)
class Serve:
    """Serve models over HTTP; a model has the name of its file."""

    models: tyro.conf.Positional[tuple[Path, ...]]
    """model files"""
    host: str = "127.0.0.1"
    """the address to listen on; beyond this machine it needs keys"""
    port: int = 8000
    """0 takes one that is free"""
    keys: Path | None = None
    """a file of `jaxops key`"""
    folder: Path | None = None
    """of model files that an administrator may load"""
    certificate: Path | None = None
    """a file of PEM, for HTTPS"""
    certificate_key: Path | None = None
    """the file of its key"""
    model_key: Path | None = None
    """a file with the key of the model files, which must then be encrypted; by default the key is
    taken from the environment variable JAXOPS_MODEL_KEY"""
    workers: int = 1
    """processes that answer; with several, models cannot be changed while they are served"""
    sketches: Path | None = None
    """a folder for sketches of what the models are given, for a report of drift"""
    interval: float = 60.0
    """seconds between two sketches of a model"""
    settings: tyro.conf.OmitArgPrefixes[Limits] = field(default_factory=Limits)

    def run(self) -> None:
        """Load, compile, and serve until SIGTERM or Ctrl-C."""
        check_host(self.host, self.keys)  # before anything compiles
        check_certificate(self.certificate, self.certificate_key)
        names = [path.stem for path in self.models]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise ValueError(f"models must be files of different names, got {twice!r} twice")
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if self.workers > 1 and self.folder is not None:
            raise ValueError(f"folder must be left out with several workers, got {self.folder}")
        file = self.model_key
        key = os.environ.get(KEY) or None
        if file is not None:
            key = file.read_text(errors="replace").strip()  # no error repeats a part of it
        make = functools.partial(_made, self.models, self.keys, self.folder, self.settings, key)
        certificate = self.certificate, self.certificate_key
        listening = self.host, self.port, *certificate, self.sketches, self.interval
        if self.workers == 1:
            run(make(), *listening)
        else:
            digests = [_digest(path) for path in self.models]
            unchanged = functools.partial(_unchanged, make, self.models, digests)
            run_workers(unchanged, self.workers, *listening)


def _made(
    models: tuple[Path, ...],
    keys: Path | None,
    folder: Path | None,
    settings: Settings,
    key: str | None,
) -> Service:
    """The application that answers for model files."""
    named = {path.stem: load(path, key=key) for path in models}
    return application(named, keys=keys, folder=folder, settings=settings, model_key=key)


def _unchanged(
    make: Callable[[], Service], models: tuple[Path, ...], digests: list[str]
) -> Service:
    """What `make` makes, if the model files are those of the start: a worker may start later."""
    for path, digest in zip(models, digests, strict=True):
        if _digest(path) != digest:
            raise ValueError(f"{path} must be the file of the start of the server, got another")
    return make()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Key:
    """Make a key for `jaxops serve`: print it, and append its hash to a file."""

    name: tyro.conf.Positional[str]
    """who will hold it"""
    file: Path
    """the file of keys"""
    role: Literal["predict", "metrics", "admin"] = "predict"
    """what it is for; "admin" may do all"""
    quota: int = 0
    """requests a minute; 0 for any number"""

    def run(self) -> None:
        """Print the key, which is kept nowhere."""
        print(add_key(self.file, self.name, self.role, self.quota))
