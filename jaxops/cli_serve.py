"""The commands of the command line that serve models and make keys."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxops._optional import require
from jaxops.model.files import load

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
    batch_size: int = 64
    """the most rows that requests are joined to"""
    delay: float = 0.001
    """seconds that a request waits for others, at most"""
    queue: int = 256
    """the most requests that wait"""
    timeout: float = 10.0
    """seconds for a request, from its arrival"""
    rows: int = 10_000
    """the most rows of a request"""
    body: int = 2**24
    """the most bytes of a request"""
    certificate: Path | None = None
    """a file of PEM, for HTTPS"""
    certificate_key: Path | None = None
    """the file of its key"""

    def run(self) -> None:
        """Load, compile, and serve until SIGTERM or Ctrl-C."""
        from jaxops.serve.app import Settings, application  # their packages are of another extra
        from jaxops.serve.server import check_host, run

        check_host(self.host, self.keys)  # before anything compiles
        names = [path.stem for path in self.models]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise ValueError(f"models must be files of different names, got {twice!r} twice")
        limits = (self.batch_size, self.delay, self.queue, self.timeout, self.rows, self.body)
        app = application(
            {path.stem: load(path) for path in self.models},
            keys=self.keys,
            folder=self.folder,
            settings=Settings(*limits),
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
        from jaxops.serve.access import add_key  # see `Serve.run`

        print(add_key(self.file, self.name, self.role, self.quota))
