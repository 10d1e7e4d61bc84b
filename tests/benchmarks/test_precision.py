import json

import numpy as np
import pytest

from benchmarks import precision


@pytest.fixture
def small(monkeypatch):
    """C01 for ten steps, on random digits."""
    random = np.random.default_rng(0)
    columns = {
        f"{split}_{name}": value
        for split in ("train", "test")
        for name, value in (
            ("x", random.integers(0, 256, (128, 28, 28, 1)).astype(np.uint8)),
            ("y", random.integers(0, 10, 128).astype(np.int32)),
        )
    }
    monkeypatch.setattr(precision.data, "columns", lambda workload: (columns, "random"))
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "LENGTH", {"C01": {"steps": 10}})


def test_scores_are_printed_and_written(small, tmp_path, capsys):
    out = tmp_path / "new" / "precision.json"
    precision.run(precision.Options(names=("C01",), seeds=2, out=out))
    (result,) = json.loads(out.read_text())["results"]
    assert (result["workload"], result["score"], result["steps"]) == ("C01", "accuracy", 10)
    for compute in ("float32", "bfloat16"):
        assert len(result[compute]) == 2 and all(0 <= a <= 1 for a in result[compute])
    assert "| C01" in capsys.readouterr().out


def test_a_row_has_means_and_differences_seed_by_seed():
    result = {"workload": "x", "score": "loss", "float32": [1.0, 2.0], "bfloat16": [1.5, 1.9]}
    row = precision.row(result)
    assert row["float32"] == "1.5000 ± 0.7071" and row["bfloat16"] == "1.7000 ± 0.2828"
    assert row["difference"] == "+0.2000 (-0.1000 to +0.5000)"


@pytest.mark.parametrize(
    ("change", "word"), [({"names": ("C99",)}, "C99"), ({"seeds": 1}, "at least 2")]
)
def test_what_cannot_be_meant_is_told(small, change, word):
    with pytest.raises(SystemExit, match=word):
        precision.run(precision.Options(**{"names": ("C01",), **change}))
