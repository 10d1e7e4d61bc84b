"""Packages that only some uses need; each belongs to an extra of jaxops."""

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: the module, such as "pyarrow.parquet".
        extra: the extra of jaxops that installs its package.

    Raises:
        ImportError: the package is not installed; names the extra.

    >>> require("pyarrow_not_installed.parquet", extra="data")
    Traceback (most recent call last):
    ImportError: pyarrow_not_installed must be installed; pip install "jaxops[data]" installs it
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:  # the package is there, and a package that it needs is not
            raise
        raise ImportError(
            f'{package} must be installed; pip install "jaxops[{extra}]" installs it', name=package
        ) from error
