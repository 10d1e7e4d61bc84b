"""The commands of the command line that serve models and make keys."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxops._optional import require
from jaxops.model.files import load
from jaxops.serve.access import add_key
from jaxops.serve.app import application
from jaxops.serve.server import check_host, run
from jaxops.serve.settings import Settings

if TYPE_CHECKING:
    import tyro
else:
    tyro = require("tyro", extra="cli")


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
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)

    def run(self) -> None:
        """Load, compile, and serve until SIGTERM or Ctrl-C."""
        check_host(self.host, self.keys)  # before anything compiles
        names = [path.stem for path in self.models]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise ValueError(f"models must be files of different names, got {twice!r} twice")
        app = application(
            {path.stem: load(path) for path in self.models},
            keys=self.keys,
            folder=self.folder,
            settings=self.settings,
        )
        run(app, self.host, self.port, self.certificate, self.certificate_key)


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
