"""Known data sets of texts, read from their original files."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxops.data.dataset import Columns, Dataset

FILES = {  # name -> the files, and where to get them
    "banking77": (
        ("train.csv", "test.csv", "categories.json"),
        "https://github.com/PolyAI-LDN/task-specific-datasets (folder banking_data)",
    ),
    "clinc150": (
        ("data_full.json.gz",),
        "https://github.com/clinc/oos-eval (data/data_full.json, gzipped)",
    ),
    "tinyshakespeare": (
        ("input.txt",),
        "https://github.com/karpathy/char-rnn (data/tinyshakespeare)",
    ),
}


def load_texts(name: str, folder: Path | None) -> Dataset:
    """Load one of `FILES`; see `jaxops.data.load`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or has other contents.
    """
    files, home = FILES[name]
    paths = [(folder or Path(name)) / file for file in files]
    missing = next((path for path in paths if folder is None or not path.exists()), None)
    if missing is not None:
        raise FileNotFoundError(
            f"data_dir must hold {missing}, "
            f"got {'no such file' if folder else 'None and JAXOPS_DATA_DIR (not set)'}; get "
            f"{', '.join(files)} from {home}, put it in DIR/{name} and set JAXOPS_DATA_DIR=DIR"
        )
    readers: dict[str, Callable[..., Any]] = {"banking77": _banking77, "clinc150": _clinc150}
    splits, classes = readers.get(name, _whole)(*paths)
    return Dataset(splits, classes, f"{name}, {paths[0].parent}")


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} must be a whole file, got an error: {error}") from None
    except UnicodeDecodeError as error:
        given = f"0x{error.object[error.start]:02x} at byte {error.start}"
        raise ValueError(f"{path} must be UTF-8, got {given}") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be JSON, got an error: {error}") from None


def _labelled(path: Path, pairs: list[tuple[str, str]], classes: tuple[str, ...]) -> Columns:
    number = {name: i for i, name in enumerate(classes)}
    odd = next((label for _, label in pairs if label not in number), None)
    if odd is not None or not pairs:
        raise ValueError(f"{path}: label must be one of {len(classes)} names, got {odd!r}")
    return {
        "text": np.array([text for text, _ in pairs], object),
        "label": np.array([number[label] for _, label in pairs], np.int32),
    }


def _banking77(train: Path, test: Path, names: Path) -> tuple[dict[str, Columns], tuple[str, ...]]:
    classes = tuple(_json(names))
    splits = {}
    for path in (train, test):
        header, *lines = csv.reader(io.StringIO(_read(path), newline=""))
        if header != ["text", "category"] or any(len(line) != 2 for line in lines):
            raise ValueError(f"{path} must have the columns text and category, got {header}")
        splits[path.stem] = _labelled(path, [(line[0], line[1]) for line in lines], classes)
    return splits, classes


def _clinc150(path: Path) -> tuple[dict[str, Columns], tuple[str, ...]]:
    questions = _json(path)
    splits: dict[str, Columns] = {}
    classes = tuple(dict.fromkeys(label for _, label in questions["train"]))  # ordered by domain
    for split, key in (("train", "train"), ("validation", "val"), ("test", "test")):
        splits[split] = _labelled(path, questions[key], classes)
        outside = np.array([text for text, _ in questions[f"oos_{key}"]], object)
        splits[f"{split}_out_of_scope"] = {"text": outside}
    return splits, classes


def _whole(path: Path) -> tuple[dict[str, Columns], tuple[str, ...]]:
    text = _read(path)
    cut = int(0.9 * len(text))
    parts = {"train": text[:cut], "validation": text[cut:]}
    return {name: {"text": np.array([part], object)} for name, part in parts.items()}, ()
