"""Encrypted model files: read with their key alone, and never on the disk in the open."""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxops as jo
from jaxops import tabular
from jaxops.model import encrypted, files
from jaxops.task import example

pytest.importorskip("cryptography")
KEY, ROWS = bytes(range(32)), np.ones((2, 3), np.float32)
CHANGED = "must be as it was saved, and the key that of then, got a changed file or another key"


@pytest.fixture(scope="module")
def model():
    task = tabular.classifier(tabular.MLP((2,)), features=3, classes=("stays", "leaves"))
    state = jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=example(task.columns))
    return jo.Model(task, state, about={"secret": "who leaves"})


@pytest.fixture(scope="module")
def paths(model, tmp_path_factory):
    """The model encrypted, and in the open."""
    folder = tmp_path_factory.mktemp("files")
    jo.save(folder / "a", model, key=KEY)
    jo.save(folder / "b", model)
    return folder / "a", folder / "b"


def test_it_loads_with_its_key_and_tells_nothing_without(model, paths, tmp_path):
    closed, opened = (path.read_bytes() for path in paths)
    for key in (KEY, KEY.hex(), KEY.hex().upper()):
        found = jo.load(paths[0], key=key)
        np.testing.assert_array_equal(found.predict(ROWS), model.predict(ROWS))
        assert found.about == model.about and found.task.classes == model.task.classes
    kernel = np.asarray(
        next(x for x in jax.tree.leaves(model.state.params) if x.ndim == 2)
    ).tobytes()
    for part in (b"who leaves", b"jaxops", b"params", kernel):
        assert part in opened and part not in closed
    jo.save(tmp_path / "again", model, key=KEY)
    again = (tmp_path / "again").read_bytes()
    assert again[8:20] != closed[8:20] and again[20:60] != closed[20:60], "a nonce for each file"
    assert (tmp_path / "again").stat().st_mode == paths[1].stat().st_mode


def test_it_is_the_file_in_the_open_by_aes_256_gcm(paths):
    """Another implementation of the format: one call of the package's own AESGCM."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    closed, opened = (path.read_bytes() for path in paths)
    assert AESGCM(KEY).decrypt(closed[8:20], closed[20:], b"JAXOPSE1") == opened


@pytest.mark.parametrize("part", [7, encrypted.PART])
def test_parts_of_any_size_are_one_file(paths, tmp_path, monkeypatch, part):
    monkeypatch.setattr(encrypted, "PART", part)
    with open(tmp_path / "c", "wb") as file:
        encrypted.write(file, paths[1].read_bytes(), KEY)
    assert encrypted.read(tmp_path / "c", KEY) == paths[1].read_bytes()


def test_a_changed_byte_or_a_cut_file_is_refused_wherever_it_is(paths, tmp_path):
    data, file = paths[0].read_bytes(), tmp_path / "changed"
    for place in (*range(8, 64), *range(64, len(data) - 16, 37), *range(len(data) - 16, len(data))):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ValueError, match=CHANGED):
            jo.load(file, key=KEY)
    for kept in (8, 19, 20, 35, 36, len(data) - 1):
        file.write_bytes(data[:kept])
        with pytest.raises(ValueError, match=CHANGED):
            jo.load(file, key=KEY)
    file.write_bytes(data + b"x")
    with pytest.raises(ValueError, match=CHANGED):
        jo.load(file, key=KEY)
    file.write_bytes(b"X" + data[1:])  # no longer one that says that it is encrypted
    with pytest.raises(ValueError, match="path must be an encrypted file, as there is a key"):
        jo.load(file, key=KEY)


def test_keys(paths, tmp_path, monkeypatch, model):
    monkeypatch.delenv("JAXOPS_MODEL_KEY", raising=False)
    with pytest.raises(ValueError, match=rf"{paths[0]} {CHANGED}"):
        jo.load(paths[0], key=bytes(32))
    with pytest.raises(ValueError, match=r"key must be given for .*, which is encrypted, got None"):
        jo.load(paths[0])
    with pytest.raises(ValueError, match="path must be an encrypted file, as there is a key"):
        jo.load(paths[1], key=KEY)
    for key in (b"short", "00" * 31, "x" * 64, "", bytes(33)):
        for call in (
            lambda k: jo.load(paths[0], key=k),
            lambda k: jo.save(tmp_path / "d", model, k),
        ):
            with pytest.raises(ValueError, match="key must be 32 bytes or 64 hex") as caught:
                call(key)
            assert "short" not in str(caught.value) and "xx" not in str(caught.value)
    assert not (tmp_path / "d").exists()
    monkeypatch.setenv("JAXOPS_MODEL_KEY", KEY.hex())
    assert jo.load(paths[0]).about == model.about == jo.load(paths[1]).about


WRITTEN = []  # an audit hook stays for ever


def _hook(event, arguments):
    if event == "open" and WRITTEN and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        WRITTEN.append(str(arguments[0]))


def test_nothing_is_on_the_disk_in_the_open(paths, tmp_path, monkeypatch, model):
    """What is opened to be written is the encrypted file; safetensors, which Python does not see,
    is given no path."""

    def never(*_, **__):
        raise AssertionError("safetensors was given a path")

    monkeypatch.setattr("safetensors.safe_open", never)
    monkeypatch.setattr("safetensors.numpy.save_file", never)
    sys.addaudithook(_hook)
    WRITTEN.append("begin")
    try:
        jo.load(paths[0], key=KEY)
        loaded = [*WRITTEN]
        jo.save(tmp_path / "e", model, key=KEY)
        saved = WRITTEN[len(loaded) :]
    finally:
        WRITTEN.clear()
    assert loaded == ["begin"] and {*saved} == {str(tmp_path / f".e.{os.getpid()}")}
    assert [path.name for path in tmp_path.iterdir()] == ["e"]
    assert b"who leaves" not in (tmp_path / "e").read_bytes()


def test_all_dtypes_are_read():
    import safetensors.numpy

    kinds = (bool, np.uint8, np.int16, np.int64, np.float16, np.float32, np.float64, jnp.bfloat16)
    arrays = {str(i): np.arange(6).reshape(2, 3).astype(kind) for i, kind in enumerate(kinds)}
    arrays["none"] = np.zeros((0, 3), np.float32)
    arrays["one"] = np.array(3.5)
    found = encrypted.Arrays(safetensors.numpy.save(arrays, {"jaxops": "x"}), files.DTYPES)
    assert found.metadata == {"jaxops": "x"} and found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert found.kind(name) == f"{array.dtype}{[*array.shape]}"
