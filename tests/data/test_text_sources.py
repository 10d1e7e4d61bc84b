import gzip
import json

import numpy as np
import pytest

from jaxops.data import load


@pytest.fixture
def folder(tmp_path):
    bank, clinc, poet = (tmp_path / n for n in ("banking77", "clinc150", "tinyshakespeare"))
    for each in (bank, clinc, poet):
        each.mkdir()
    (bank / "categories.json").write_text('["lost", "arrival"]')
    (bank / "train.csv").write_text('text,category\nwhere is it?,arrival\n"gone,\nnow",lost\n')
    (bank / "test.csv").write_text("text,category\nit’s gone,lost\n", encoding="utf-8")
    pairs = {key: [["hi", "greet"], ["bye", "leave"]] for key in ("train", "val", "test")}
    outside = {f"oos_{key}": [[f"{key}?", "oos"]] for key in pairs}
    with gzip.open(clinc / "data_full.json.gz", "wt") as file:
        json.dump({**pairs, **outside}, file)
    (poet / "input.txt").write_text("0123456789" * 2)
    return tmp_path


def test_files_as_they_are(folder):
    bank = load("banking77", folder)
    assert bank.classes == ("lost", "arrival") and str(folder) in bank.source
    assert bank.train["text"].tolist() == ["where is it?", "gone,\nnow"]
    assert bank.train["text"].dtype == object and bank.train["label"].dtype == np.int32
    assert bank.train["label"].tolist() == [1, 0]
    assert bank.test["text"].tolist() == ["it’s gone"]

    clinc = load("clinc150", folder)
    assert clinc.classes == ("greet", "leave")
    assert clinc.validation["label"].tolist() == [0, 1]
    assert clinc.test_out_of_scope["text"].tolist() == ["test?"]
    assert clinc.train_out_of_scope.keys() == {"text"}

    poet = load("tinyshakespeare", folder)
    assert poet.train["text"].tolist() == ["012345678901234567"]
    assert poet.validation["text"].tolist() == ["89"]


def test_files_that_are_not_there_or_damaged(folder, monkeypatch):
    monkeypatch.delenv("JAXOPS_DATA_DIR", raising=False)
    with pytest.raises(FileNotFoundError, match=r"JAXOPS_DATA_DIR \(not set\); get train.csv, tes"):
        load("banking77")
    (folder / "banking77" / "categories.json").write_text('["lost"]')
    with pytest.raises(ValueError, match=r"train.csv: label must be one of 1 names, got 'arrival'"):
        load("banking77", folder)
    (folder / "banking77" / "train.csv").write_text("text,intent\n")
    with pytest.raises(
        ValueError, match=r"train.csv must have the columns text and category, got .*'intent'"
    ):
        load("banking77", folder)
    (folder / "banking77" / "train.csv").write_bytes(b"text,category\ncaf\xe9,lost\n")
    with pytest.raises(ValueError, match=r"train.csv must be UTF-8, got 0xe9 at byte 17"):
        load("banking77", folder)
    path = folder / "clinc150" / "data_full.json.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"data_full.json.gz must be a whole file"):
        load("clinc150", folder)
    path.write_bytes(gzip.compress(b"{"))
    with pytest.raises(ValueError, match=r"data_full.json.gz must be JSON"):
        load("clinc150", folder)


@pytest.mark.data("banking77", "clinc150", "tinyshakespeare")
@pytest.mark.parametrize(
    ("name", "rows", "classes"),
    [
        ("banking77", {"train": 10_003, "test": 3_080}, 77),
        (
            "clinc150",
            {
                "train": 15_000,
                "validation": 3_000,
                "test": 4_500,
                "train_out_of_scope": 100,
                "validation_out_of_scope": 100,
                "test_out_of_scope": 1_000,
            },
            150,
        ),
        ("tinyshakespeare", {"train": 1, "validation": 1}, 0),
    ],
)
def test_the_real_ones(name, rows, classes):
    data = load(name)
    assert {split: len(columns["text"]) for split, columns in data.splits.items()} == rows
    assert len(data.classes) == classes
    assert all(isinstance(text, str) for text in data.train["text"])
    if classes:
        counts = np.bincount(data.test["label"], minlength=classes)
        assert (counts == counts[0]).all()  # balanced
        assert set(data.train["label"]) == set(range(classes))
    else:
        assert len(data.train["text"][0]) == 1_003_854  # nanoGPT's
