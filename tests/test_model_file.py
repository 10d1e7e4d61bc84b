"""A finished model in one file: what is kept, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from small import ADAM, SETTINGS, TASK, assert_equal, images, regression

import jaxops as jo
from jaxops import optim, vision
from jaxops.data.augment import Compose, Flip, Rotate, Shift

HERE = Path(__file__).parent
DATA = images(40)
IMAGES = DATA["image"]


def trained(task):
    tx = optim.sgd(0.1)
    return jo.fit(task, DATA, optimizer=tx, batch_size=20, steps=2, progress=False)


@pytest.fixture(scope="module")
def state():
    return trained(TASK)


@pytest.fixture
def path(tmp_path, state):
    jo.save(tmp_path / "a.model", TASK, state, {"note": ["kept", 1, {"x": None}]})
    return tmp_path / "a.model"


def clean_process(code, *arguments):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


READ = """
import sys
import numpy as np
import jaxops as jo
model, images, out = sys.argv[1:]
np.save(out, jo.load(model).predict(np.load(images)))
"""


def test_a_clean_process_predicts_the_same(tmp_path):
    augment = Compose((Flip(), Shift(1), Rotate(10.0)))
    task = vision.classifier(
        vision.MLP((8,), classes=3, dropout=0.3, batch_norm=True),
        image_shape=(4, 4, 1),
        classes=("ant", "bee", "cat"),
        mean=(0.4,),
        std=(0.2,),
        augment=augment,
        label_smoothing=0.1,
    )
    state = trained(task)
    jo.save(tmp_path / "m", task, state)
    np.save(tmp_path / "images.npy", IMAGES)
    code, _, errors = clean_process(
        READ, tmp_path / "m", tmp_path / "images.npy", tmp_path / "out.npy"
    )
    assert code == 0, errors
    want = jo.predict(task, state, {"image": IMAGES})
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), want, atol=1e-6)
    model = jo.load(tmp_path / "m")
    assert model.task == task  # so that it shares what is compiled, too
    assert model.task.classes == ("ant", "bee", "cat")
    assert jo.evaluate(*model[:2], DATA) == jo.evaluate(task, state, DATA)


def test_what_is_kept(path, state):
    model = jo.load(path)
    assert_equal((model.state.params, model.state.extra), (state.params, state.extra))
    assert model.state.step == 2 and model.state.opt_state == ()
    assert model.about == {"note": ["kept", 1, {"x": None}]}
    assert model.versions["jax"] == jax.__version__
    assert_equal(model.predict(IMAGES), model.predict({"image": IMAGES}))
    assert jo.load(path, TASK).task is TASK


def test_an_average_is_kept(tmp_path):
    tx = optim.chain(ADAM, optim.ema(0.9))
    state = jo.fit(TASK, DATA, optimizer=tx, batch_size=20, steps=4, progress=False)
    jo.save(tmp_path / "m", TASK, optim.averaged(state))
    assert_equal(jo.load(tmp_path / "m").state.params, optim.averaged(state).params)


def test_an_ensemble(tmp_path):
    several = jo.ensemble(TASK, 2)
    members = [jo.init_state(TASK, ADAM, seed, images(1)) for seed in (0, 1)]
    jo.save(tmp_path / "m", several, jo.stack(members))
    found = jo.load(tmp_path / "m")
    assert found.task == several
    want = np.mean([jo.predict(TASK, s, DATA) for s in members], 0)
    np.testing.assert_allclose(found.predict(IMAGES), want, atol=1e-6)


def test_half_precision(tmp_path, state):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params)
    path = tmp_path / "m"
    jo.save(path, TASK, state._replace(params=half))
    with pytest.raises(ValueError, match=r"bias'\]: bfloat16\[16\] found, float32\[16\] wanted"):
        jo.load(path)

    def init(key, batch):
        params, extra = TASK.init(key, batch)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), extra

    model = jo.load(path, TASK._replace(init=init))
    assert_equal(model.state.params, half)


def test_a_task_made_by_hand_needs_the_task(tmp_path):
    import flax.linen as nn

    task = regression(nn.Dense(1))
    state = jo.init_state(task, ADAM, 0, {"x": np.ones((1, 3)), "y": np.ones((1, 1))})
    jo.save(tmp_path / "m", task, state)
    with pytest.raises(ValueError, match=r"made by hand; wanted: load\(path, task"):
        jo.load(tmp_path / "m")
    rows = np.ones((2, 3), np.float32)
    found = jo.load(tmp_path / "m", task).predict(rows)
    np.testing.assert_allclose(found, jo.predict(task, state, {"x": rows}), atol=1e-6)


OWN = """
import sys
import jaxops as jo, numpy as np
from jaxops import vision
path, images, out = sys.argv[1:]
try:
    jo.load(path)
except ValueError as error:
    print(error)
from own_model import Own
task = vision.classifier(Own(), image_shape=(4, 4, 1), classes=3)
given = jo.load(path, task=task).predict(np.load(images))
np.save(out, given)
np.testing.assert_array_equal(jo.load(path).predict(np.load(images)), given)
"""


def test_a_module_of_the_users_own(tmp_path):
    from own_model import Own

    task = vision.classifier(Own(), **SETTINGS)
    state = trained(task)
    jo.save(tmp_path / "m", task, state)
    np.save(tmp_path / "images.npy", IMAGES)
    code, shown, errors = clean_process(
        OWN, tmp_path / "m", tmp_path / "images.npy", tmp_path / "out.npy"
    )
    assert code == 0, errors
    assert "made by Own of own_model, which is not imported here; import it first" in shown
    want = jo.predict(task, state, {"image": IMAGES})
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), want, atol=1e-6)


@pytest.mark.parametrize("keep", [1, 7, 9, 100, -200, -1])
def test_a_truncated_file(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{path}: truncated, or not a model file"):
        jo.load(path)


@pytest.mark.parametrize("content", [b"", b"PK\3\4 a zip", bytes(range(256)) * 50, b"\0" * 64])
def test_a_file_that_is_not_ours(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: "):
        jo.load(path)


def test_a_missing_file_and_a_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.model"):
        jo.load(tmp_path / "gone.model")
    with pytest.raises((ValueError, OSError)):
        jo.load(tmp_path)


def rewritten(path, change):
    """The same file with its JSON text changed by hand."""
    with safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["jaxops"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = change(header) or header
    save_file(tensors, path, {"jaxops": json.dumps(header)})


@pytest.mark.parametrize("metadata", [None, {"other": "x"}, {"jaxops": "[]"}, {"jaxops": "{}"}])
def test_a_foreign_safetensors_file(path, metadata):
    save_file({"w": np.ones(3)}, path, metadata)
    with pytest.raises(ValueError, match="a safetensors file, but not a model that jaxops saved"):
        jo.load(path)


def test_a_newer_format(path):
    rewritten(path, lambda header: header.update(format=99))
    with pytest.raises(ValueError, match=r"format 99 found, 1 or older wanted; it was .* newer"):
        jo.load(path)


def test_a_model_of_other_shapes(path):
    task = vision.classifier(vision.MLP((17,), classes=3), **SETTINGS)
    with pytest.raises(ValueError, match=r"hidden_0'\]\['bias'\]: float32\[16\] found.*\[17\]"):
        jo.load(path, task)
    deeper = vision.classifier(vision.MLP((16, 4), classes=3), **SETTINGS)
    with pytest.raises(ValueError, match=r"hidden_1.* nothing found, float32"):
        jo.load(path, deeper)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:eval",
        "builtins:exec",
        "subprocess:Popen",
        "pathlib:Path",
        "jaxops:fit",
        "jaxops.model_file:save",
        "jax.numpy:save",
        "jaxops.nothing_there:f",
        "nothing.there:f",
    ],
)
@pytest.mark.parametrize("place", ["task", "model", "argument"])
def test_nothing_that_a_file_names_is_run(path, tmp_path, name, place):
    mark = tmp_path / "mark"

    def change(header):
        evil = {"make": name, "arguments": {"command": f"touch {mark}"}}
        if place == "task":
            header["task"] = evil
        elif place == "model":
            header["task"]["arguments"]["model"] = evil
        else:
            header["task"]["arguments"]["augment"] = {"function": name}

    rewritten(path, change)
    if place == "argument" and name in ("jaxops:fit", "jaxops.model_file:save", "jax.numpy:save"):
        jo.load(path)  # a function of jaxops or jax may be named; it is called on arrays at most
    else:
        with pytest.raises(ValueError, match=f"{path}: "):
            jo.load(path)
    assert not mark.exists()


def test_what_cannot_be_written_down_is_named(tmp_path, state):
    task = vision.classifier(vision.MLP((16,), classes=3), **SETTINGS, augment=lambda k, x: x)
    with pytest.raises(ValueError, match=r"save: .*<lambda>"):
        jo.save(tmp_path / "m", task, state)
    assert not list(tmp_path.iterdir())
