"""Model files that 0.1 wrote, of every public kind, give the answers they gave then."""

import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from safetensors import safe_open

import jaxops as jo
from jaxops import forecast, recommend
from jaxops.model.encoding import encode
from jaxops.nn.product import has_bfloat16

FOLDER = Path(__file__).parents[1] / "fixtures" / "v0_1"
ANSWERS = np.load(FOLDER / "answers.npz")
ALONE = ("ensemble", "monte", "remat", "decide", "language", "task")
NAMES = sorted(path.stem for path in FOLDER.glob("*.model"))
TEXTS = ["where is my card", "what is my balance", "my card is lost"]


def stored(name, part):
    prefix = f"{name}/{part}/"
    return {key.removeprefix(prefix): ANSWERS[key] for key in ANSWERS if key.startswith(prefix)}


def series(values, known):
    """The three series that were forecast, with the covariates that some networks read."""
    cuts, more = np.cumsum([14, 12]), {}
    if known.size:
        more["known"] = {"price": np.split(known[:, 0], cuts)}
        more["static"] = {"size": [1.0, 2.0, 3.0]}
    return forecast.from_arrays(
        ["a", "b", "c"],
        np.split(values[:, 0], cuts),
        start="2024-01-01",
        frequency="D",
        **more,
    )


def answered(name, path):
    kind = name.split("_")[0]
    if kind == "decisions":
        return jo.load(path).predict(TEXTS).probabilities
    if kind == "recommend":
        users = {"age": np.array([1.0, 2.0, 3.0])} if name == "recommend_two_tower" else None
        model = jo.load(path)
        lists = recommend.recommend(model, [["i3", "i5"], ["i0"], []], k=5, user_features=users)
        return lists.places, lists.scores
    if kind == "forecast":
        history, model = series(**stored(name, "in")), jo.load(path)
        levels = (0.2, 0.5, 0.8) if model.task.has_quantiles else ()
        future = np.ones((3, 4, 1), np.float32) if history.known_names else None
        told = forecast.forecast(model, history, future=future, levels=levels)
        return told.mean, told.quantiles
    model = jo.load(path)
    assert model.about == ({} if kind == "task" else {"note": name})
    return model.predict(stored(name, "in"))


def test_there_is_one_of_every_kind():
    """Every module and task of jaxops that a file of 0.1 could name stands in some file."""
    named = set()
    for name in NAMES:
        with safe_open(FOLDER / f"{name}.model", framework="numpy") as file:
            _makers(json.loads(file.metadata()["jaxops"])["task"], named)
    assert len(NAMES) >= 55 and len(named) >= 65
    assert {"jaxops.vision.tasks:classifier", "jaxops.ensemble:ensemble"} <= named
    assert {"jaxops.forecast.mixer:TSMixer", "jaxops.recommend.two_tower:TwoTower"} <= named


def test_a_process_that_has_imported_nothing_else_loads_them():
    """`jo.load` itself imports what a file names, and not only where a test has done so before."""
    files = [str(path) for path in FOLDER.glob("*.model") if path.stem.split("_")[0] in ALONE]
    code = "import sys, jaxops\nfor path in sys.argv[1:]: jaxops.load(path)"
    root = str(Path(jo.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", code, *files],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert len(files) >= 6 and run.returncode == 0, run.stderr


def _makers(value, named):
    if isinstance(value, dict):
        named |= {value["make"]} if "make" in value else set()
        for one in value.values():
            _makers(one, named)
    elif isinstance(value, list):
        for one in value:
            _makers(one, named)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_0_1_loads_and_can_be_saved_again(name, tmp_path):
    """Every module is found, the parameters fit it, and the new names are read as they are."""
    model = jo.load(FOLDER / f"{name}.model")
    jo.save(tmp_path / "again.model", model)
    again = jo.load(tmp_path / "again.model")
    assert again.reader == model.reader and again.about == model.about
    if model.state is None:  # a closed form
        parts = [{}, {}]
        texts = [encode(one.task, held) for one, held in zip((model, again), parts, strict=True)]
        assert texts[0] == texts[1]
        chex.assert_trees_all_equal(*parts)
    else:
        assert again.task is model.task
        chex.assert_trees_all_equal(again.state.params, model.state.params)


# of models of histories, the files of recommenders hold the same modules
ANSWERED = [name for name in NAMES if not name.startswith("task_") or name == "task_sasrec"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWERED)
def test_a_file_of_0_1_gives_its_answers(name):
    if name.endswith("bfloat16") and not has_bfloat16():
        pytest.skip("this processor multiplies in float32, the file's answers are of bfloat16")
    found = jax.tree.leaves(answered(name, FOLDER / f"{name}.model"))
    wanted = [*stored(name, "out").values()]
    if name.startswith("recommend"):  # equal scores may stand in another order by the last bit
        found, wanted = (
            [np.take_along_axis(x, y[0].argsort(1), 1) for x in y] for y in (found, wanted)
        )
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
