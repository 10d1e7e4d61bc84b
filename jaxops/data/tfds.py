"""TensorFlow Datasets without TensorFlow: prepared data sets are read into arrays."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxops._optional import require


def prepared(name: str, data_dirs: Sequence[str | Path]) -> Path | None:
    """The directory of the newest prepared version of a TFDS set that can be read by row."""
    for data_dir in data_dirs:
        infos = Path(data_dir).expanduser().joinpath(name).rglob("dataset_info.json")
        for info in sorted(infos, key=lambda p: _version(p.parent.name), reverse=True):
            if not info.parent.name.startswith("incomplete") and readable(info.parent):
                return info.parent
    return None


def _version(name: str) -> list[int]:
    return [int(part) if part.isdigit() else -1 for part in name.split(".")]


def readable(directory: Path) -> bool:
    """Whether the set is in a format with random access; tfrecord is not, and needs TensorFlow."""
    return any(
        ".array_record" in file.name or ".parquet" in file.name for file in directory.iterdir()
    )


def default_dirs() -> list[str]:
    """The directories of TFDS's data sets: `TFDS_DATA_DIR`, or ~/tensorflow_datasets."""
    tfds = require("tensorflow_datasets", extra="data")

    return [tfds.core.constants.DATA_DIR]


def read_tfds(directory: Path) -> tuple[dict[str, dict[str, np.ndarray]], tuple[str, ...]]:
    """All splits of a prepared set as columns, and the class names of its `label`, if any."""
    tfds = require("tensorflow_datasets", extra="data")

    builder = tfds.builder_from_directory(str(directory))
    features = builder.info.features
    splits = {}
    for split in builder.info.splits:
        source = builder.as_data_source(split=split)
        # all records in one call, because reading them one by one is several times slower
        records = source.__getitems__(range(len(source)))
        if not records:
            raise ValueError(f"{directory}: split {split} must have at least 1 row, got 0")
        splits[split] = {
            name: _column(f"{directory}: {name}", [record[name] for record in records], feature)
            for name, feature in features.items()
        }
    names = getattr(features["label"], "names", None) if "label" in features else None
    return splits, tuple(names or ())


def _column(where: str, values: list[Any], feature: Any) -> np.ndarray:
    if isinstance(values[0], bytes):
        return np.array([value.decode() for value in values], dtype=object)
    if isinstance(values[0], dict) or len({np.shape(value) for value in values}) > 1:
        raise ValueError(f"{where} must have rows of one shape, got several, or named parts")
    return np.asarray(values, feature.np_dtype)
