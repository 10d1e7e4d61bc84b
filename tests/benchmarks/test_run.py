import json
from pathlib import Path

import pytest

from benchmarks import figures, run

FACTS = {
    "hardware": "a machine",
    "platform": "cpu",
    "compiler_options": {"xla_x": True},
    "versions": {"jaxops": {"jaxops": "1", "jax": "2"}, "torch": {"torch": "3"}},
    "peak_flop_per_second": {"float32": {"jaxops": 1e9, "torch": 2e9}},
}


@pytest.fixture
def measured(monkeypatch):
    """A run that measures nothing: C01 as given."""

    def fake(rates):
        answer = {
            "workload": "C01",
            "targets": {"best": 2.0},
            "forms": {},
            "ratios": figures.ratios(rates),
        }
        monkeypatch.setattr(run, "has_torch", lambda python: True)
        monkeypatch.setattr(run, "machine", lambda options, folder: FACTS)
        monkeypatch.setattr(run, "_each", lambda options, folder, facts: [answer])

    return fake


@pytest.mark.parametrize(("floor", "code"), [(2.5, 0), (3.5, 1)])
def test_check_exits_by_the_floors(measured, monkeypatch, tmp_path, capsys, floor, code):
    measured({"jaxops float32": [3.0] * 6, "torch careful": [1.0] * 6})
    floors = {"cpu": {"C01 best": floor}, "gpu": {"C01 best": 9}}
    (tmp_path / "floors.json").write_text(json.dumps(floors))
    monkeypatch.setattr(run, "HERE", tmp_path)
    options = run.Options(out=tmp_path / "out.json", check=True)
    assert run.run(options) == code
    out = capsys.readouterr().out
    assert ("C01 best must be at least 3.5, got 3.00" in out) == bool(code)
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["results"][0]["ratios"]["best"]["median"] == 3.0
    assert document["compiler_options"] == {"xla_x": True}
    assert document["hardware"] == "a machine" and (tmp_path / "out.png").exists()


def test_a_run_that_is_stopped_has_shown_and_written_what_it_measured(
    measured, monkeypatch, tmp_path, capsys
):
    measured({"jaxops float32": [3.0] * 6, "torch careful": [1.0] * 6})
    (answer,) = run._each(None, None, None)

    def stopped(options, folder, facts):
        yield answer
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_each", stopped)
    with pytest.raises(KeyboardInterrupt):
        run.run(run.Options(out=tmp_path / "out.json"))
    out = capsys.readouterr().out
    assert "a machine; jax 2, torch 3" in out and "C01" in out and "3.00" in out
    assert len(json.loads((tmp_path / "out.json").read_text())["results"]) == 1


def test_without_pytorch_it_says_how_to_get_it(tmp_path, capsys):
    missing = run.Options(torch_python=tmp_path / "no-python", out=tmp_path / "out.json")
    assert run.run(missing) == 2
    captured = capsys.readouterr()
    assert 'pip install "jaxops[bench]"' in captured.out and "--torch-python" in captured.out
    assert captured.err == "" and not (tmp_path / "out.json").exists()


def test_an_unknown_workload_is_told(capsys):
    assert run.run(run.Options(names=("C99",))) == 2
    assert "names must be of C01, " in capsys.readouterr().out


def test_without_a_gpu_the_rest_is_said_not_to_run(monkeypatch):
    monkeypatch.setattr(run, "measure", lambda workload, *_: {"workload": workload.name})
    monkeypatch.setattr(run.data, "columns", lambda workload: ({}, "nowhere"))
    facts = {**FACTS, "bfloat16": False}
    found = list(run._each(run.Options(), Path(), facts))
    assert {r["workload"]: r.get("not_run") for r in found}["C01"] is None
    assert [r["workload"] for r in found if r.get("not_run") == "no GPU"] == [
        "gpt-large",
        "C01-sweep",
    ]
    asked = list(run._each(run.Options(names=("C01-sweep",)), Path(), facts))
    assert [r.get("not_run") for r in asked] == [None]


def test_where_results_go():
    assert run.default_out(FACTS, ()) == Path(run.HERE, "results", "cpu.json")
    gpu = {**FACTS, "platform": "gpu", "hardware": "NVIDIA H100 80GB HBM3"}
    assert run.default_out(gpu, ()).name == "nvidia-h100-80gb-hbm3.json"
    assert "results" not in run.default_out(FACTS, ("C01",)).parts  # a part is not the record
