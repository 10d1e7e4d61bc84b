"""NPY and NPZ files as columns."""

import zlib
from pathlib import Path

import numpy as np

Columns = dict[str, np.ndarray]


def read_npy(path: str | Path, label: int | None) -> Columns:
    """A .npz of named arrays, a structured .npy, or a plain 2-D .npy table."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                loaded = dict(loaded)
    except FileNotFoundError:
        raise
    except (ValueError, EOFError, OSError, MemoryError, zlib.error) as error:
        raise ValueError(
            f"{path} must be a whole NumPy file of plain arrays, got an error: {error}"
        ) from None
    if not isinstance(loaded, dict) and loaded.dtype.names:
        loaded = {name: np.ascontiguousarray(loaded[name]) for name in loaded.dtype.names}
    if isinstance(loaded, dict):
        if label is not None:
            raise ValueError(
                f"label must be None for named columns {[*loaded]} ({path}), got {label}"
            )
        return loaded
    if loaded.ndim != 2 or loaded.dtype.kind not in "biuf":
        raise ValueError(
            f"{path} must be a 2-D table of numbers, a structured array or an .npz of named "
            f"arrays, got {loaded.dtype} of rank {loaded.ndim}"
        )
    if label is None:
        return {"features": _float32(path, loaded)}
    if not -loaded.shape[1] <= label < loaded.shape[1]:
        width = loaded.shape[1]
        raise ValueError(f"label must be in [{-width}, {width}) (columns of {path}), got {label}")
    target = loaded[:, label]
    if (np.abs(target) < 2**63).all() and (target == np.floor(target)).all():
        target = target.astype(np.int64)
    return {"features": _float32(path, np.delete(loaded, label, axis=1)), "label": target}


def _float32(path: str | Path, table: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = table.astype(np.float32)
    lost = np.argwhere(np.isinf(narrow) & np.isfinite(table))
    if len(lost):
        row, place = lost[0]
        raise ValueError(
            f"{path} must have numbers that float32 holds, got {table[row, place]:g} in row {row}"
        )
    return narrow
