"""The functions of compress one after the other, and models that later steps have to know of."""

import functools
import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from small import filled

import jaxops as jo
from jaxops import cli, compress, forecast, tabular, vision
from jaxops.compress.networks import module_of, walked
from jaxops.forecast.conformal import Conformal
from jaxops.model import encrypted
from jaxops.nn.packed import Packed, is_packed, unpacked
from jaxops.task import example

TASK = vision.classifier(vision.MLP((64, 48), classes=3), **small.SETTINGS)
IMAGE = small.images(9)["image"]
FIRST = {
    "structured": lambda model: compress.structured(model, 0.25),
    "low_rank": lambda model: compress.low_rank(model, rank=8),
    "prune": lambda model: compress.prune(model, 0.5),
}


@functools.cache
def model():
    params, extra = filled(TASK.init, example(TASK.columns))
    state = jo.TrainState(jnp.int32(0), params, (), extra, jax.random.key(0))
    return jo.Model(TASK, state, about={"validation": {"loss": 1.0}, "id": 7}, reference={"a": 1})


def floats(one):
    return walked(one, lambda part: part._replace(
        params=jax.tree.map(unpacked, part.params, is_leaf=is_packed)))  # fmt: skip


@pytest.mark.parametrize("name", FIRST)
def test_what_another_function_made_is_quantised(name, tmp_path):
    before = FIRST[name](model())
    after = compress.quantise(before, scales="max")
    jo.save(tmp_path / "model", after)
    read = jo.load(tmp_path / "model")
    np.testing.assert_array_equal(read.predict(IMAGE), after.predict(IMAGE))
    np.testing.assert_allclose(after.predict(IMAGE), floats(after).predict(IMAGE), atol=1e-6)
    assert np.abs(after.predict(IMAGE) - before.predict(IMAGE)).max() < 0.02
    assert [step["method"] for step in read.about["compressed"]] == [name, "quantise"]
    assert read.about["id"] == 7 and not {"validation"} & (before.about.keys() | read.about.keys())
    assert before.reference is None  # its answers are others
    kernels = [x for x in jax.tree.leaves(after.state.params, is_leaf=is_packed) if is_packed(x)]
    factors = after.state.params["hidden_0"].get("in_kernel")
    assert len(kernels) >= 2 and (name != "low_rank" or isinstance(factors, Packed) or
                                  factors.size < 256)  # fmt: skip
    if name == "prune":  # a zero stays one
        zero = np.asarray(before.state.params["hidden_0"]["kernel"]) == 0
        assert (np.asarray(after.state.params["hidden_0"]["kernel"].unbox())[zero] == 0).all()
    for again in FIRST.values():
        with pytest.raises(ValueError, match=r"so quantise it last, got hidden_0/.*kernel in int8"):
            again(after)


def test_rounding_keeps_the_reference_and_drops_the_figures():
    small_ = compress.quantise(model())
    assert small_.reference == model().reference and "validation" not in small_.about
    assert "validation" not in compress.aware(model()).about


def test_the_command_makes_all_steps_and_quantises_last(tmp_path, capsys):
    jo.save(tmp_path / "model", replace(model(), reference=None))
    out = tmp_path / "small"
    command = ["compress", str(tmp_path / "model"), str(out), "--quantise", "8", "--prune", "0.5"]
    assert cli.main([*command, "--structured", "0.25"]) == 0
    assert f"structured, prune, quantise; written: {out}" in capsys.readouterr().out
    wanted = compress.quantise(compress.prune(compress.structured(model(), 0.25), 0.5))
    read = jo.load(out)
    np.testing.assert_array_equal(read.predict(IMAGE), wanted.predict(IMAGE))
    assert [step["method"] for step in read.about["compressed"]][-1] == "quantise"
    assert out.stat().st_size < 0.5 * (tmp_path / "model").stat().st_size
    assert cli.main(["compress", str(out), str(out), "--quantise", "4"]) == 1
    assert "quantise it last, got hidden_0/kernel in int8" in capsys.readouterr().err


def test_the_command_writes_an_encrypted_file_of_an_encrypted_one(tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    key = os.urandom(32)
    jo.save(tmp_path / "model", replace(model(), reference=None), key=key)
    monkeypatch.setenv(encrypted.KEY, key.hex())
    names = str(tmp_path / "model"), str(tmp_path / "small")
    assert cli.main(["compress", *names, "--quantise", "bf16"]) == 0
    assert encrypted.is_encrypted(tmp_path / "small")
    assert jo.load(tmp_path / "small").about["compressed"][0]["bits"] == "bf16"


def test_a_task_that_knows_of_the_rounding_is_saved_and_stays_one(tmp_path):
    known = compress.aware(replace(model(), reference=None), bits=4, scales="max")
    jo.save(tmp_path / "known", known)
    read = jo.load(tmp_path / "known")
    assert read.task is jo.load(tmp_path / "known").task
    np.testing.assert_array_equal(read.predict(IMAGE), known.predict(IMAGE))
    assert np.abs(known.predict(IMAGE) - model().predict(IMAGE)).max() > 1e-3
    less = compress.structured(read, 0.25)  # a module within a task within a task
    assert module_of(less.task).widths == (48, 36)
    small_ = compress.quantise(less, 4, scales="max")
    assert small_.task.recipe[0] is vision.classifier
    np.testing.assert_allclose(less.predict(IMAGE), small_.predict(IMAGE), atol=1e-5)


@pytest.mark.slow
def test_an_update_of_numbers_beyond_the_limits_keeps_the_rounding():
    x = np.linspace(0, 1, 64)
    rows = {"x": x, "y": np.sin(6 * x)}
    module = tabular.RealMLP((16, 16))
    first = tabular.fit(rows, module, label="y", epochs=1, progress=False)
    known = compress.aware(first, 4, scales="max")
    further = tabular.update(known, {"x": x, "y": rows["y"] * 9}, epochs=1, progress=False)
    limits = [module_of(one.task).limits for one in (known, further)]
    assert limits[1][1] > 2 * limits[0][1]
    exact = compress.quantise(further, 4, scales="max").predict(rows)
    np.testing.assert_allclose(further.predict(rows).values, exact.values, atol=1e-4)


@pytest.mark.slow
def test_members_that_read_a_table_are_made_smaller():
    x = np.linspace(0, 1, 60)
    rows = {"x": x, "left": np.where(x > 0.5, "yes", "no")}
    folds = tabular.fit(rows, tabular.MLP((32,)), label="left", folds=2, epochs=1, progress=False)
    less = compress.structured(folds, 0.5)
    widths = [module_of(member.task).widths for member in less.task.tasks]
    assert widths == [(16,), (16,)] and less.predict(rows).probabilities.shape == (60, 2)
    assert len(less.about["compressed"]) == 1


@pytest.mark.slow
def test_conformal_margins_of_other_forecasts_are_refused():
    series = forecast.from_arrays(["a"], [np.sin(np.arange(80.0))])
    one = forecast.fit(series, forecast.NLinear(16, 4), horizon=4, epochs=1, progress=False)
    assert isinstance(one.task, Conformal)
    with pytest.raises(
        ValueError, match=r"conformal margins, .* got Conformal; replace the task by"
    ):
        compress.prune(one)
    bare = compress.prune(replace(one, task=one.task.model), 0.5)
    found = forecast.forecast(bare, series).mean
    assert np.abs(found - forecast.forecast(one, series).mean).max() > 0
