"""A data set: named columns in named splits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxops._optional import require
from jaxops.data import images, npy_files, tables
from jaxops.data import tfds as tfds_files
from jaxops.data.checks import check_lists, rows
from jaxops.data.encoders import label_texts

Columns = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Named columns in named splits, held in memory.

    A split is also an attribute: `digits.train["image"]`.

    Attributes:
        splits: split -> column -> array with a leading axis of rows.
        classes: names of the classes in the order of their numbers, or empty.
        source: one line that says where the data came from.
        scaling: column -> (mean, std), by which `standardize` scaled it.

    >>> data = Dataset.from_arrays(x=np.arange(10.0), label=np.arange(10) % 2)
    >>> data = data.split(test=0.2, seed=0, stratify="label").standardize("x")
    >>> data.train["x"].shape, data.test["label"].tolist()
    ((8,), [0, 1])
    """

    splits: dict[str, Columns]
    classes: tuple[str, ...] = ()
    source: str = ""
    scaling: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = next((name for name in self.splits if name in _NAMES or hasattr(Dataset, name)), "")
        if taken:
            raise ValueError(f"a split must have a name that Dataset does not use, got {taken!r}")

    def __getattr__(self, name: str) -> Columns:
        # "splits" itself is missing while a copy is being unpickled
        if name != "splits" and not name.startswith("__") and name in self.splits:
            return self.splits[name]
        splits = ", ".join(self.__dict__.get("splits", {}))
        raise AttributeError(f"Dataset has no split or attribute {name!r}; its splits: {splits}")

    def __repr__(self) -> str:
        splits = ", ".join(f"{name}: {rows(columns):,}" for name, columns in self.splits.items())
        names = ", ".join(next(iter(self.splits.values()), {}))
        return f"Dataset({splits}; columns: {names}; source: {self.source or 'unknown'})"

    @classmethod
    def from_arrays(cls, **columns: Any) -> Self:
        """From arrays by name, or `**frame` of pandas or polars: one split, "train".

        Arrays and columns of NumPy's dtypes are not changed. Other columns of a frame become arrays
        as in `from_parquet`: categories become text, also if they are numbers.

        Raises:
            ValueError: no columns, columns of unequal length, or masked values that have no NaN.
        """
        arrays = {name: tables.as_array(name, value) for name, value in columns.items()}
        rows(arrays)
        return cls({"train": arrays}, source="arrays")

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        columns: Sequence[str] | None = None,
        encoding: str = "utf-8",
        missing: Sequence[str] = ("", "nan", "NaN"),
        text: Sequence[str] = (),
        separator: str | None = None,
        header: Sequence[str] | None = None,
    ) -> Self:
        """From a CSV file, plain or gzipped (.gz): one split, "train".

        Whole numbers and booleans become int64. Other numbers, and columns with missing values,
        become float64 with NaN. Everything else becomes an object array of `str`, with "" where
        missing. Whole numbers with leading zeros are text. Columns without a name, such as the
        index of pandas, are left out.

        Args:
            path: the file.
            columns: the columns to read, all by default.
            encoding: the text encoding; UTF-16 and UTF-32 are recognised by their byte-order mark.
            missing: the texts that stand for a missing value.
            text: columns to keep as text, such as zip codes; in them only "" is missing.
            separator: the separator of the fields; by default a comma, or a semicolon or a tab if
                the header has it and no comma. " " stands for any number of spaces.
            header: the names of the columns, for a file without a header line.

        Raises:
            ValueError: an empty file; a column that is not there; a line with more or fewer fields
                than the header; a quote that is not closed; bytes that are not in the encoding;
                numbers that int64 or float64 cannot hold, or with decimal commas.
        """
        check_lists(columns=columns, text=text)
        for name in text:
            if columns is not None and name not in columns:
                raise ValueError(f"text must be among {', '.join(columns)}, got {name!r}")
        frame = tables.csv_frame(path, columns, encoding, missing, text, separator, header)
        return cls({"train": tables.from_frame(path, frame)}, source=str(path))

    @classmethod
    def from_parquet(cls, path: str | Path, columns: Sequence[str] | None = None) -> Self:
        """From a Parquet file, with the dtypes of `from_csv`: one split, "train".

        float32 stays float32, categories become text, and times become datetime64 in UTC.

        Raises:
            ValueError: a broken file; no rows; a column that is not there; or whole numbers that
                int64 (or with missing values float64) cannot hold.
        """
        frame = tables.parquet_frame(path, columns)
        return cls({"train": tables.from_frame(path, frame)}, source=str(path))

    @classmethod
    def from_npy(cls, path: str | Path, label: int | None = None) -> Self:
        """From a NumPy file, .npy or .npz, without unpickling: one split, "train".

        An .npz and a structured array give a column for each name. A plain 2-D table gives
        `features` float32 (N, d). If `label` is the index of a column (-1 is the last), it also
        gives `label` (N,), which is int64 if all values are whole numbers.

        Args:
            path: the file.
            label: index of a plain table's target column; `None` takes all columns as features.

        Raises:
            ValueError: a broken file, one with Python objects, or an array of another rank.
        """
        columns = npy_files.read_npy(path, label)
        if rows(columns) == 0:
            raise ValueError(f"{path} must have at least 1 row, got 0")
        return cls({"train": columns}, source=str(path))

    @classmethod
    def from_tfds(cls, name: str | Path, data_dir: str | Path | None = None) -> Self:
        """From a prepared TFDS data set, with its own splits; TensorFlow is not needed.

        Args:
            name: the set's name, or the directory of one version of it.
            data_dir: where TFDS sets are kept; by default `TFDS_DATA_DIR` or TFDS's own folder.

        Raises:
            FileNotFoundError: there is no version of it that can be read by row.
            ValueError: a column whose rows have several shapes.
        """
        directory: Path | None = Path(name)
        if not Path(name, "dataset_info.json").exists():
            dirs = [data_dir] if data_dir else tfds_files.default_dirs()
            directory = tfds_files.prepared(str(name), dirs)
        if directory is None or not tfds_files.readable(directory):
            raise FileNotFoundError(
                f"{name} must be a TFDS set prepared as array_record or parquet, got none in "
                f"{directory or ', '.join(map(str, dirs))}; prepare it: tfds.builder({str(name)!r},"
                ' file_format="array_record").download_and_prepare()'
            )
        splits, classes = tfds_files.read_tfds(directory)
        return cls(splits, classes, source=f"TFDS, {directory}")

    @classmethod
    def from_image_folder(cls, path: str | Path, size: tuple[int, int], channels: int = 3) -> Self:
        """From one folder of images for each class, in `path` or in `path/train`, `path/test`.

        The columns are `image` uint8 (N, height, width, channels) and `label` int32 (N,), the index
        of the folder's name among the sorted names. Images are turned upright and resized.

        Args:
            path: the folder that holds the class folders; or a folder with train/ and perhaps test/
                and validation/ (or val/, valid/), which hold the class folders and become the
                splits.
            size: (height, width) in pixels.
            channels: 3 for colour, 1 for grey.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: no class folders; a class folder without images, or with only folders; a
                broken image, which the message names; a class that is not in train; other folders
                next to the splits; or `size` or `channels` that no image can have.
        """
        path = Path(path)
        images.check_shape(size, channels)
        folders = images.split_folders(path)
        classes = images.class_names(folders["train"])
        splits = {
            name: images.read_folder(folder, size, channels, classes)
            for name, folder in folders.items()
        }
        return cls(splits, classes, source=str(path))

    def split(self, *, seed: int = 0, stratify: str | None = None, **fractions: float) -> Self:
        """Cut new splits off the train split: `split(validation=0.1, test=0.2, seed=42)`.

        A fraction refers to the train split before the call. With one fraction, the rows are the
        same as in scikit-learn's `train_test_split(test_size=fraction, random_state=seed)`.

        Args:
            seed: the seed of the shuffling.
            stratify: a column whose values keep their proportions in every split.
            **fractions: new split -> fraction of the rows; the other rows stay in train.

        Raises:
            ValueError: a split that would be empty or that exists, a class with too few rows to
                stratify, or columns that are already standardised.
        """
        selection = require("sklearn.model_selection", extra="data")

        if self.scaling:
            raise ValueError(
                "split must be called before standardize, which uses only the train rows"
            )
        count = rows(self.train)
        sizes = {name: math.ceil(fraction * count) for name, fraction in fractions.items()}
        for name, fraction in fractions.items():
            if name in self.splits:
                raise ValueError(f"{name} must be a new split, got one of {[*self.splits]}")
            if not 0 < fraction < 1:
                raise ValueError(f"{name} must be a fraction in (0, 1), got {fraction}")
        if sum(sizes.values()) >= count:
            raise ValueError(f"fractions must leave rows for train, got {sizes} of {count} rows")
        if stratify is not None and stratify not in self.train:
            raise ValueError(f"stratify must be one of {', '.join(self.train)}, got {stratify!r}")
        rest = np.arange(count)
        splits = dict(self.splits)
        for name, size in sizes.items():
            labels = None if stratify is None else self.train[stratify][rest]
            try:
                rest, cut = selection.train_test_split(
                    rest, test_size=size, random_state=seed, stratify=labels
                )
            except ValueError as error:
                raise ValueError(f"split {name} by {stratify}: {error}") from None
            splits[name] = take(self.train, cut)
        return replace(self, splits={**splits, "train": take(self.train, rest)})

    def standardize(self, *columns: str) -> Self:
        """Replace x by (x - mean) / std in all splits; mean and std are those of the train rows.

        Each entry of a row has its own mean and standard deviation, which `scaling` keeps. The
        standard deviation of a constant is replaced by 1.

        Args:
            *columns: names of columns of numbers; they become float32.

        Raises:
            ValueError: a column that is not there, that does not have finite numbers, or that is
                already standardised.
        """
        splits = {name: dict(split) for name, split in self.splits.items()}
        scaling = dict(self.scaling)
        for name in columns:
            if name not in self.train:
                raise ValueError(f"columns must be among {', '.join(self.train)}, got {name!r}")
            if name in scaling:
                raise ValueError(f"{name} must not be standardised twice")
            mean, std = scaling[name] = _statistics(name, self.train[name])
            for split in splits.values():
                split[name] = ((split[name] - mean) / std).astype(np.float32)
        return replace(self, splits=splits, scaling=scaling)


_NAMES = tuple(field.name for field in fields(Dataset))


def take(columns: Columns, index: np.ndarray) -> Columns:
    """Return the rows at `index` of every column.

    Args:
        columns: name -> array (N, ...).
        index: (B,) integers in [0, N).

    >>> take({"x": np.array([10, 20, 30])}, np.array([2, 0]))["x"].tolist()
    [30, 10]
    """
    return {name: value[index] for name, value in columns.items()}


def _statistics(name: str, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if value.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers, got {value.dtype} ({value[0]!r} in row 0)")
    mean, std = value.mean(0, dtype=np.float64), value.std(0, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise ValueError(f"{name} must be finite in the train rows, got NaN or infinity")
    # the values are compared, because the rounded std of equal numbers is not always 0
    constant = value.max(0) == value.min(0)
    return np.where(constant, value[0], mean), np.where(constant, 1.0, std)


def k_fold(
    labels_or_count: Any, folds: int = 5, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices of cross-validation: every row is in the validation part of one fold.

    Args:
        labels_or_count: the number of rows, or an array of labels (N,). Labels that are text,
            booleans or integers keep their proportions in every fold.
        folds: number of folds.
        seed: the seed of the shuffling.

    Returns:
        (train index, validation index) for each fold, int64.

    Raises:
        ValueError: there are fewer than two folds, fewer rows than folds, or fewer rows of a class
            than folds.

    >>> [validation.tolist() for _, validation in k_fold(np.array([0, 0, 1, 1]), folds=2)]
    [[1, 2], [0, 3]]
    """
    selection = require("sklearn.model_selection", extra="data")

    labels = np.asarray(labels_or_count)
    count = len(labels) if labels.ndim else int(labels)
    if not 2 <= folds <= count:
        raise ValueError(f"folds must be in [2, {count}] (the number of rows), got {folds}")
    if labels.ndim != 1 or labels.dtype.kind not in "biuOUT":
        return list(selection.KFold(folds, shuffle=True, random_state=seed).split(np.zeros(count)))
    if labels.dtype.kind in "OUT":
        labels = np.array(label_texts("labels", labels), object)
    values, counts = np.unique(labels, return_counts=True)
    if counts.min() < folds:
        raise ValueError(
            f"folds must be at most {counts.min()} (the rows of label {values[counts.argmin()]}), "
            f"got {folds}"
        )
    splitter = selection.StratifiedKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(count), labels))
