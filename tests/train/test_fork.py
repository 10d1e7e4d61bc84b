"""A process that is forked from one which uses JAX gets an error, where each call would hang."""

import os

import numpy as np
import pytest
from small import TASK, images

import jaxops as jo

ROWS = images(3)


def in_a_fork(call):
    """What `call` raises in a forked process, as text."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            call()
            text = "nothing"
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.filterwarnings("ignore:os.fork")
def test_in_a_fork(tmp_path):
    state = jo.init_state(TASK, jo.optim.sgd(0.1), 0, ROWS)
    jo.save(tmp_path / "m", jo.Model(TASK, state))
    image = {"image": ROWS["image"]}
    one = jo.predictor(TASK, state, image)
    settings = {"optimizer": jo.optim.sgd(0.1), "batch_size": 3, "steps": 1, "progress": False}
    for call in (
        lambda: one(image),
        lambda: jo.predict(TASK, state, image),
        lambda: jo.evaluate(TASK, state, ROWS),
        lambda: jo.fit(TASK, ROWS, **settings),
        lambda: jo.load(tmp_path / "m"),
    ):
        assert in_a_fork(call).startswith("RuntimeError: JAX must not be used in a process that is")
    np.testing.assert_allclose(one(image), jo.predict(TASK, state, image), rtol=1e-5)
