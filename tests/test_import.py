"""What the base installation alone can do, and what it says of the rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_architecture import ROOMS, ROOT, declared, imports, parsed, project

import jaxops as jo
from benchmarks import import_time

PROGRAM = """
import importlib, sys
import numpy as np

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import jaxops as jo
heavy = {"jax", "optax", "flax", "orbax", "grain"} & sys.modules.keys()
assert not heavy, heavy
for room in ROOMS:
    importlib.import_module(f"jaxops.{room}")
heavy = {"orbax", "grain", "scipy.stats", "scipy.optimize"} & sys.modules.keys()
assert not heavy, heavy

from jaxops import tabular
x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
rows = {"features": x, "label": (x[:, 0] > 0).astype(np.int32)}
task = tabular.classifier(tabular.MLP((4,)), features=3)
state = jo.fit(
    task, rows, optimizer=jo.optim.adam(0.1), batch_size=20, epochs=10, progress=False
)
assert jo.evaluate(task, state, rows)["accuracy"] > 0.8
jo.save("small.model", jo.Model(task, state))
assert jo.load("small.model").predict(x).shape == (40,)

def said(function, *args):
    try:
        function(*args)
    except ImportError as error:
        return str(error)

open("a.csv", "w").write("a,b")
print(said(jo.data.Dataset.from_csv, "a.csv"))
print(said(jo.data.Tokenizer.train, ["a text"]))
print(said(jo.report.plot_curves, [{"step": 1, "loss": 0.5}], "a.png"))
print(said(jo.report.TensorBoard, "events"))
"""


def test_the_base_installation_trains_from_arrays_and_names_the_extra_of_the_rest(tmp_path):
    blocked = declared(*project()["optional-dependencies"]) - declared() - {"jax"}
    blocked -= {"chex", "array_record"}  # optax and grain bring these
    program = f"BLOCKED, ROOMS = {blocked}, {ROOMS}\n{PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f'{package} must be installed; pip install "jaxops[{extra}]" installs it'
        for package, extra in (
            ("pyarrow", "data"),
            ("tokenizers", "text"),
            ("matplotlib", "plots"),
            ("tensorboardX", "plots"),
        )
    ]


def test_every_public_name_is_the_one_that_a_type_checker_sees():
    typed = {name: module for module, name, _, types in imports(parsed(Path(jo.__file__))) if types}
    assert sorted(typed) == sorted(jo.__all__)
    for name, module in typed.items():
        value = getattr(jo, name)  # a module is imported by this alone
        source = sys.modules.get(f"{module}.{name}") or getattr(sys.modules[module], name)
        assert value is source
    assert set(jo.__all__) <= set(dir(jo))


def test_what_is_no_name_of_jaxops():
    with pytest.raises(AttributeError, match="module 'jaxops' has no attribute 'fitt'"):
        _ = jo.fitt
    with pytest.raises(ImportError, match="cannot import name 'fitt'"):
        from jaxops import fitt  # noqa: F401


def test_the_benchmark_of_imports(monkeypatch, capsys):
    monkeypatch.setattr(import_time, "STATEMENTS", {"json": "import json", "none": "pass"})
    monkeypatch.setattr(import_time.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(import_time.STATEMENTS, "torch", "import time; time.sleep(0.05)")
    times = import_time.main(import_time.Settings(rounds=2))
    assert [len(times[name]) for name in ("json", "none", "torch")] == [2, 2, 2]
    wall, user = zip(*times["torch"], strict=True)
    assert min(wall) >= 0.05 > max(user)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == [*times]
