"""A finished model in one file: what is kept, and what is refused."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax
import pytest
from own_model import Around, Own, activation
from safetensors import safe_open
from safetensors.numpy import save_file
from small import ADAM, SETTINGS, TASK, assert_equal, images, regression

import jaxops as jo
from jaxops import optim, vision
from jaxops.data.augment import Compose, Flip, Rotate, Shift

HERE = Path(__file__).parents[1]
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
    jo.save(tmp_path / "a.model", jo.Model(TASK, state, about={"note": ["kept", 1, {"x": None}]}))
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
    jo.save(tmp_path / "m", jo.Model(task, state))
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
    assert jo.evaluate(model.task, model.state, DATA) == jo.evaluate(task, state, DATA)


def test_what_is_kept(path, state):
    model = jo.load(path)
    assert_equal((model.state.params, model.state.extra), (state.params, state.extra))
    assert model.state.step == 2 and model.state.opt_state == ()
    assert model.about == {"note": ["kept", 1, {"x": None}]}
    assert model.versions == {
        "jaxops": jo.__version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    assert_equal(model.predict(IMAGES), model.predict({"image": IMAGES}))
    assert jo.load(path, TASK).task is TASK


def test_an_average_is_kept(tmp_path):
    tx = optim.chain(ADAM, optim.ema(0.9))
    state = jo.fit(TASK, DATA, optimizer=tx, batch_size=20, steps=4, progress=False)
    jo.save(tmp_path / "m", jo.Model(TASK, optim.averaged(state)))
    assert_equal(jo.load(tmp_path / "m").state.params, optim.averaged(state).params)


def test_an_ensemble(tmp_path):
    several = jo.ensemble(TASK, 2)
    members = [jo.init_state(TASK, ADAM, seed, images(1)) for seed in (0, 1)]
    jo.save(tmp_path / "m", jo.Model(several, jo.stack(members)))
    found = jo.load(tmp_path / "m")
    assert found.task == several
    want = np.mean([jo.predict(TASK, s, DATA) for s in members], 0)
    np.testing.assert_allclose(found.predict(IMAGES), want, atol=1e-6)


def test_half_precision(tmp_path, state):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params)
    path = tmp_path / "m"
    jo.save(path, jo.Model(TASK, state._replace(params=half)))
    with pytest.raises(ValueError, match=r"bias'\] must be float32\[16\] .* got bfloat16\[16\]"):
        jo.load(path)

    def init(key, batch):
        params, extra = TASK.init(key, batch)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), extra

    model = jo.load(path, TASK._replace(init=init))
    assert_equal(model.state.params, half)


def test_a_task_made_by_hand_needs_the_task(tmp_path):
    task = regression(nn.Dense(1))
    state = jo.init_state(task, ADAM, 0, {"x": np.ones((1, 3)), "y": np.ones((1, 1))})
    jo.save(tmp_path / "m", jo.Model(task, state))
    with pytest.raises(
        ValueError, match=r"task must be given .* made by hand, got None; load\(path, task"
    ):
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
    task = vision.classifier(Own(), **SETTINGS)
    state = trained(task)
    jo.save(tmp_path / "m", jo.Model(task, state))
    np.save(tmp_path / "images.npy", IMAGES)
    code, shown, errors = clean_process(
        OWN, tmp_path / "m", tmp_path / "images.npy", tmp_path / "out.npy"
    )
    assert code == 0, errors
    assert (
        "own_model must be imported before its Own is loaded, got no such name; import it" in shown
    )
    want = jo.predict(task, state, {"image": IMAGES})
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), want, atol=1e-6)


@pytest.mark.parametrize("keep", [1, 7, 9, 100, -200, -1])
def test_a_truncated_file(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        ValueError, match=f"path must be a model file, got {path}, which is truncated"
    ):
        jo.load(path)


@pytest.mark.parametrize("content", [b"", b"PK\3\4 a zip", bytes(range(256)) * 50, b"\0" * 64])
def test_a_file_that_is_not_ours(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"path must be a model file, got {path}, which"):
        jo.load(path)


def test_a_missing_file_and_a_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.model"):
        jo.load(tmp_path / "gone.model")
    with pytest.raises(ValueError, match="path must be a model file, got the folder"):
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
    with pytest.raises(
        ValueError, match="must be a model that jaxops saved, got another safetensors file"
    ):
        jo.load(path)


def test_a_newer_format(path):
    rewritten(path, lambda header: header.update(format=99))
    with pytest.raises(ValueError, match=r"format must be at most 2, got 99; a newer jaxops"):
        jo.load(path)


@pytest.mark.parametrize("number", [float("nan"), -1, 0, 1.5, "2", None])
def test_a_format_that_is_no_number_of_one(path, number):
    rewritten(path, lambda header: header.update(format=number))
    with pytest.raises(ValueError, match=f"format must be in 1 to 2, got {number}"):
        jo.load(path)


def test_an_array_that_is_too_large_is_not_read(path):
    """A file with a hole that says it holds 200 GB for a bias of 16 numbers."""
    size = 200 << 30
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [size, size]
            entry["shape"] = [0, *entry["shape"][1:]]
    name = "params['hidden_0']['bias']"
    header[name] |= {"data_offsets": [0, size], "shape": [size // 4]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    with pytest.raises(
        ValueError, match=r"bias'\] must be float32\[16\] .*got float32\[53687091200\]"
    ):
        jo.load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda header: header["classes"].reverse(),
            "classes must be as the task has them, 0, got 2",
        ),
        (lambda header: header["classes"].append("d"), "classes must be .*, nothing, got d"),
        (lambda header: header["inputs"][0].update(dtype="int"), "inputs must be .*dtype='int'"),
        (lambda header: header["inputs"].pop(), "inputs must be .*, got nothing in the file"),
    ],
)
def test_a_text_that_contradicts_its_task(path, change, words):
    rewritten(path, lambda header: change(header) and None)
    with pytest.raises(ValueError, match=words):
        jo.load(path)


def test_a_model_of_other_shapes(path):
    task = vision.classifier(vision.MLP((17,), classes=3), **SETTINGS)
    with pytest.raises(
        ValueError, match=r"hidden_0'\]\['bias'\] must be .*\[17\].*, got float32\[16\]"
    ):
        jo.load(path, task)
    deeper = vision.classifier(vision.MLP((16, 4), classes=3), **SETTINGS)
    with pytest.raises(ValueError, match=r"hidden_1.* must be float32.*, got nothing"):
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
        "jaxops:json",
        "jaxops.os:system",
        "jaxops.model.files:save",
        "jax.numpy:save",
        "jax.distributed:initialize",
        "jax.nn:__loader__",
        "jax._src.nn.functions:gelu",
        "jax.experimental.host_callback:call",
        "flax.serialization:os",
        "flax.linen:jit",
        "flax.linen.linear:Dense",
        "flax.nnx.bridge.wrappers:ToLinen",
        "jaxops.vision:classifier",
        "jaxops.data.augment:dataclass",
        "jaxops.model.files:Path",
        "jaxops.nothing_there:f",
        "nothing.there:f",
    ],
)
@pytest.mark.parametrize("place", ["task", "module", "argument"])
def test_nothing_that_a_file_names_is_run(path, tmp_path, name, place):
    mark = tmp_path / "mark"

    def change(header):
        evil = {"make": name, "arguments": {"command": f"touch {mark}"}}
        if place == "task":
            header["task"] = evil
        elif place == "module":
            header["task"]["arguments"]["module"] = evil
        else:
            header["task"]["arguments"]["augment"] = {"function": name}

    rewritten(path, change)
    with pytest.raises(ValueError, match=f"{path}: .* must be"):
        jo.load(path)
    assert not mark.exists()


@pytest.mark.parametrize("field", ["dot_general_cls", "dot_general", "promote_dtype"])
def test_no_function_runs_in_a_module_of_flax(path, monkeypatch, field):
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: called.append(a))
    model = {
        "make": "flax.linen:Dense",
        "arguments": {"features": 3, field: {"function": "jax.distributed:initialize"}},
    }
    rewritten(path, lambda header: header["task"]["arguments"].update(module=model))
    with pytest.raises(ValueError, match=r"jax\.nn\.initializers, .* got jax\.distributed:init"):
        jo.load(path)
    assert not called


def test_nothing_is_imported_for_a_name(path):
    assert "jax.experimental.ode" not in sys.modules
    model = {"make": "jax.experimental.ode:odeint", "arguments": {}}
    rewritten(path, lambda header: header["task"]["arguments"].update(module=model))
    with pytest.raises(ValueError, match=r"jax\.experimental\.ode must be imported"):
        jo.load(path)
    assert "jax.experimental.ode" not in sys.modules


def in_task(change):
    """A change of the task's arguments in the header."""
    return lambda header: change(header["task"]["arguments"]) and None


@pytest.mark.parametrize(
    "change",
    [
        lambda header: {"format": 1},
        lambda header: {**header, "format": "x"},
        lambda header: {**header, "format": None},
        lambda header: {**header, "task": {}},
        lambda header: {**header, "task": 3},
        lambda header: {**header, "inputs": [{"shape": 3}]},
        lambda header: {**header, "inputs": []},
        lambda header: {**header, "step": "x"},
        lambda header: {k: v for k, v in header.items() if k != "about"},
        in_task(lambda arguments: arguments.update(nothing=1)),
        in_task(lambda arguments: arguments.update(classes={"tuple": 3})),
        in_task(lambda arguments: arguments.update(module={"make": 3})),
        in_task(lambda arguments: arguments.update(module={"function": [1]})),
        in_task(lambda arguments: arguments["module"]["arguments"].update(depth=2)),
        in_task(lambda arguments: arguments["module"]["arguments"].update(widths=None)),
        in_task(lambda arguments: arguments["module"]["arguments"].update(initializer="none")),
    ],
)
def test_a_malformed_text(path, change):
    rewritten(path, change)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        jo.load(path)


@pytest.mark.parametrize("text", ["{", "", "x", "[" * 100_000, "NaN", "1"])
def test_a_text_that_is_not_json(path, text):
    save_file({"w": np.ones(3)}, path, {"jaxops": text})
    with pytest.raises(ValueError, match=re.escape(str(path))):
        jo.load(path)


@pytest.mark.parametrize(
    "inner",
    [
        nn.Dense(3, name="x"),
        nn.Dense(3, kernel_init=nn.initializers.ones, param_dtype=jnp.bfloat16),
        nn.Sequential((nn.Dense(4), nn.gelu, nn.Dense(3))),
    ],
)
def test_modules_of_flax_in_a_module(tmp_path, inner):
    task = vision.classifier(Around(inner, act=nn.silu), **SETTINGS)
    state = jo.init_state(task, ADAM, 0, images(1))
    jo.save(tmp_path / "m", jo.Model(task, state))
    found = jo.load(tmp_path / "m")
    assert found.task == task
    assert_equal(found.state.params, state.params)
    assert_equal(found.predict(IMAGES), jo.predict(task, state, DATA))


def test_functions_are_named_by_their_public_place(tmp_path):
    task = vision.classifier(Around(nn.Dense(3), act=nn.gelu), **SETTINGS)
    jo.save(tmp_path / "m", jo.Model(task, jo.init_state(task, ADAM, 0, images(1))))
    with safe_open(tmp_path / "m", framework="np") as file:
        text = file.metadata()["jaxops"]
    assert '{"function": "jax.nn:gelu"}' in text and '"make": "flax.linen:Dense"' in text
    assert "_src" not in text


def inside():
    class Hidden(nn.Dense):
        pass

    return Hidden(3)


@pytest.mark.parametrize(
    ("model", "augment", "named"),
    [
        (Own(), lambda key, x: x, r"task\.augment must be made of .* got .*<lambda>"),
        (
            Own(act=activation),
            None,
            r"task\.module\.act must be made of .* got <function activation",
        ),
        (Own(act=jnp.sin), None, r"task\.module\.act must be made of .* got .*sin"),
        (
            Own(kernel_init=nn.initializers.normal(0.1)),
            None,
            r"task\.module\.kernel_init must be made of .* got ",
        ),
        (
            Around(nn.Sequential((nn.Dense(3), activation))),
            None,
            r"inner\.layers\[1\] must be made of .* got <function",
        ),
        (Around(inside()), None, r"task\.module\.inner must be made of .* got .*<locals>\.Hidden"),
    ],
)
def test_what_load_would_refuse_is_refused_by_save(tmp_path, model, augment, named):
    task = vision.classifier(model, **SETTINGS, augment=augment)
    state = jo.init_state(task, ADAM, 0, images(1))
    with pytest.raises(ValueError, match=rf"{named}.*recipe=None"):
        jo.save(tmp_path / "m", jo.Model(task, state))
    assert not list(tmp_path.iterdir())
    jo.save(tmp_path / "m", jo.Model(task._replace(recipe=None), state))  # as the message says
    assert_equal(jo.load(tmp_path / "m", task).state.params, state.params)


def test_an_ensemble_of_a_task_made_by_hand(tmp_path):
    several = jo.ensemble(TASK._replace(recipe=None), 2)
    states = jo.stack([jo.init_state(TASK, ADAM, seed, images(1)) for seed in (0, 1)])
    with pytest.raises(ValueError, match=r"task\.task must be .* got 'a task made by hand'"):
        jo.save(tmp_path / "m", jo.Model(several, states))


def test_what_is_no_finished_model(state, tmp_path):
    with pytest.raises(ValueError, match=r"must be a jo\.Model, got Task; make one by jo\.Model"):
        jo.save(tmp_path / "m", TASK)
