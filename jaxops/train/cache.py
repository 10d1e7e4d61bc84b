"""Compiled programs kept on disk, so that the next process need not compile them."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

import jax
import jaxlib
from jax.experimental.compilation_cache import compilation_cache as jax_cache

MOST_BYTES = 1 << 30


def compilation_cache(directory: str | Path | None = None) -> Path:
    """From now on, read compiled programs from `directory`, and write new ones to it.

    Results are the same to the bit. Without a `directory`, a cache that is already configured, for
    example by the environment variable JAX_COMPILATION_CACHE_DIR, is used. If there is none, the
    cache is a folder in ~/.cache/jaxops (or $XDG_CACHE_HOME/jaxops). The folder is for this
    processor and this jaxlib, because code for another processor may crash (jax issue 38445). If
    the cache grows beyond 1 GiB, the oldest programs are deleted.

    Args:
        directory: made if it does not exist.

    Returns:
        The directory.

    >>> import tempfile
    >>> before = jax.config.jax_compilation_cache_dir
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     compilation_cache(folder) == Path(folder)
    True
    >>> jax.config.update("jax_compilation_cache_dir", before)
    """
    configured = jax.config.values["jax_compilation_cache_dir"]
    if directory is None and configured:
        return Path(configured)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(directory or home / "jaxops" / f"jaxlib-{jaxlib.__version__}-{_processor()}")
    folder.mkdir(parents=True, exist_ok=True)
    _prune(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # by default JAX keeps no program that compiles within a second: on a CPU, nearly all do
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax_cache.reset_cache()  # JAX may have decided at an earlier compilation to use no cache
    return folder


def _processor() -> str:
    """A name for this processor and its features; these may differ between equal models."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    kinds = {x for x in lines if x.startswith(("model name", "flags", "Features", "CPU part"))}
    text = "\n".join(sorted(kinds or lines[:1]))
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _prune(folder: Path) -> None:
    """Delete the oldest programs. JAX itself deletes them only if the filelock package is there."""
    total = 0
    with contextlib.suppress(FileNotFoundError):  # another process may prune at the same time
        for file in sorted(folder.glob("*-cache"), key=os.path.getmtime, reverse=True):
            total += file.stat().st_size
            if total > MOST_BYTES:
                file.unlink(missing_ok=True)
