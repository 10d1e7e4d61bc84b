"""What is wrong in a call is said before anything compiles: the input, and words of the message."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import TASK, assert_equal, compilations, images

import jaxops as jo
from jaxops import language, optim, vision

ROWS = images(40)
ADAM = optim.adam(1e-2)
PAIR = (ROWS["image"], ROWS["label"])
FLOATS = {"x": np.ones((40, 2))}
LINE = jo.supervised(
    vision.MLP((), classes=2),
    lambda batch, key: batch["x"],
    lambda out, batch, train: jnp.square(out[:, 0]),
    lambda out, batch, weights: {},
    lambda out: out,
    (jo.Column("x", (2,)),),
)
ANY = LINE._replace(columns=())


class Tuples:
    def __iter__(self):
        yield PAIR


@pytest.fixture(scope="module")
def state():
    return jo.init_state(TASK, ADAM, 0, images(1))


def confusion(p, batch):
    return jo.metrics.confusion(p.argmax(1), batch["label"], 3, jo.row_weights(batch))


FIT = [
    ({"task": vision.MLP((2,))}, "task must be a jo.Task, .* got MLP"),
    ({"optimizer": "adam"}, "optimizer must be an optax transformation, .* got 'adam'"),
    ({"optimizer": optax.adam}, "optimizer must be an optax transformation, .* got <function"),
    ({"optimizer": 1e-3}, "optimizer must be an optax transformation, .* got 0.001"),
    ({"batch_size": 32.0}, "batch_size must be a whole number, got 32.0"),
    ({"batch_size": True}, "batch_size must be a whole number, got True"),
    ({"epochs": 2.5}, "epochs must be a whole number, got 2.5"),
    ({"epochs": "3"}, "epochs must be a whole number, got '3'"),
    ({"epochs": -1}, "epochs must be at least 0, got -1"),
    ({"seed": None}, "seed must be a whole number, got None"),
    ({"reports": jo.Reports(every=0)}, "reports.every must be at least 1, got 0"),
    ({"reports": "log.txt"}, "reports must be a function or several, got 'log.txt'"),
    ({"reports": jo.Reports([print, 3])}, "reports must be a function or several, got 3"),
    ({"metrics": {"c": confusion}}, "validation must be given for metrics, got None"),
    ({"data": PAIR}, "data must be columns by name, .* got tuple"),
    ({"data": [PAIR]}, "data must be columns by name, .* got list"),
    ({"data": ROWS["image"]}, "data must be columns by name, .* got ndarray"),
    ({"data": lambda: iter([ROWS])}, "data must be columns by name, .* got a function; call it"),
    ({"data": Tuples()}, "a batch must be columns by name, .* got tuple"),
    ({"validation": PAIR}, "validation must be columns by name, .* got tuple"),
    ({"data": {**ROWS, "mask": np.zeros(40)}}, "mask of data must be above 0 in some row"),
    (
        {"data": {**ROWS, "mask": np.ma.array(np.ones(40), mask=np.arange(40) < 3)}},
        "mask must have no masked values, got one in row 0",
    ),
    ({"task": LINE, "data": {"x": np.ones((40, 2)) * 1e300}}, "x must be at most 3.4e.38.*1e.300"),
    ({"task": ANY, "data": {"x": np.full(40, "a")}}, "x must be numbers, got <U1"),
    ({"early_stopping": "loss"}, "early_stopping must be a jo.EarlyStopping, got 'loss'"),
    (
        {"early_stopping": jo.EarlyStopping(patience=-1), "validation": ROWS},
        "early_stopping.patience must be at least 0, got -1",
    ),
    (
        {
            "early_stopping": jo.EarlyStopping("confusion"),
            "validation": ROWS,
            "metrics": {"c": confusion},
        },
        r"early_stopping.metric must be one of \['accuracy', 'f1_macro', .*, got 'confusion'",
    ),
    ({"state": {"params": 1}}, "state must be a TrainState, .* got dict"),
    ({"checkpoints": "gs://bucket/run"}, "checkpoints must name .* got the URL gs://bucket/run"),
    ({"checkpoints": "run[1]"}, r"checkpoints must name a directory without \[ \] in its path"),
    (
        {"optimizer": language.frozen(optim.chain(ADAM, optim.ema(0.9)), "hidden")},
        r"optim.ema must average all parameters, .*chain\(language.frozen\(...\), optim.ema",
    ),
    ({"optimizer": optim.chain(optim.ema(0.9), ADAM)}, "optim.ema must be last in its chain"),
    ({"optimizer": optax.lbfgs()}, "optimizer must need only the gradient .* 'value_fn'"),
]


@pytest.mark.parametrize(("changes", "words"), FIT)
def test_of_fit(changes, words):
    settings = {"optimizer": ADAM, "batch_size": 16, "epochs": 1, "progress": False} | changes
    task, data = settings.pop("task", TASK), settings.pop("data", ROWS)
    with compilations() as names, pytest.raises(ValueError, match=words):
        jo.fit(task, data, **settings)
    assert "jit(run)" not in names


def test_an_error_of_the_optimizers_own_is_told_as_it_is(state):
    def broken(*_):
        raise TypeError("my own")

    step = functools.partial(jo.train_step, TASK, optax.GradientTransformation(ADAM.init, broken))
    with pytest.raises(TypeError, match=r"^my own"):
        jax.eval_shape(step, state, images(4))


def test_of_a_state_of_another_optimizer(state):
    other = {"optimizer": optim.sgd(0.1), "batch_size": 16, "epochs": 1, "progress": False}
    with pytest.raises(ValueError, match=r"give state._replace\(opt_state=\(\)\)"):
        jo.fit(TASK, ROWS, state=state, **other)


@pytest.mark.parametrize("verb", [jo.evaluate, jo.predict])
@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (ROWS, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (ROWS, {"batch_size": 2.0}, "batch_size must be a whole number, got 2.0"),
        (ROWS["image"], {}, "data must be columns by name, .* got ndarray"),
        (PAIR, {}, "data must be columns by name, .* got tuple"),
    ],
)
def test_of_evaluate_and_predict(state, verb, data, options, words):
    with pytest.raises(ValueError, match=words):
        verb(TASK, state, data, **options)
    with pytest.raises(ValueError, match=r"task must be a jo.Task, .* got MLP"):
        verb(vision.MLP((2,)), state, data, **options)


def test_of_a_predictor(state):
    with pytest.raises(ValueError, match=r"inputs must be columns by name, .* got ndarray"):
        jo.predictor(TASK, state, ROWS["image"])
    one = {"image": ROWS["image"][:1]}
    call = jo.predictor(TASK, state, one)
    words = r"columns must be image uint8\(1, 4, 4, 1\), got image as a list"
    with pytest.raises(ValueError, match=words):
        call({"image": one["image"].tolist()})
    with pytest.raises(ValueError, match="got a list"):
        call([one["image"]])


@pytest.mark.parametrize("make", [optim.adam, optim.sgd, optim.adamw, optim.lion])
@pytest.mark.parametrize("rate", [-1e-3, float("nan")])
def test_of_a_learning_rate(make, rate):
    with pytest.raises(ValueError, match=f"learning_rate must be at least 0, got {rate}"):
        make(rate)


def test_of_a_checkpoint_directory_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name in ("file", "link", "file/run"):
        with pytest.raises(NotADirectoryError, match=r"must name a directory, got .* link"):
            jo.Checkpointer(tmp_path / name)


def test_numbers_of_numpy_and_big_endian_columns_are_taken(tmp_path, monkeypatch):
    settings = {"batch_size": np.int64(16), "seed": np.int32(1), "accumulate": np.int64(2)}
    monkeypatch.setenv("HOME", str(tmp_path))
    big = {"image": ROWS["image"], "label": ROWS["label"].astype(">i4")}
    states = [
        jo.fit(TASK, data, optimizer=ADAM, epochs=np.int64(1), progress=False, checkpoints=where,
               **settings)
        for data, where in ((ROWS, "~/run"), (big, None))
    ]  # fmt: skip
    assert_equal(*(s.params for s in states))
    assert (tmp_path / "run" / "3").is_dir()
