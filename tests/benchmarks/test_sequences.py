import time

import numpy as np
import pytest

from benchmarks import jax_sasrec, sequence_data
from benchmarks.rise import Rise
from benchmarks.sequence_data import Histories, Size

torch = pytest.importorskip("torch")


@pytest.fixture
def folder(tmp_path):
    size = Size(items=50, context=8, width=8, batch=16)
    histories = sequence_data.last(sequence_data.generated(60, 50), 9)
    sequence_data.write(tmp_path, histories, size)
    jax_sasrec.make("train full float32", tmp_path, 0.0).weights()
    return tmp_path


def test_last_items_of_those_who_have_two():
    found = sequence_data.last(Histories(np.arange(7), np.array([0, 4, 5, 7])), 3)
    assert found.items.tolist() == [1, 2, 3, 5, 6] and found.starts.tolist() == [0, 3, 5]


def test_both_sides_compute_the_same_loss_packed_and_padded(folder):
    from benchmarks import torch_sasrec

    wanted = jax_sasrec.make("train full float32", folder, 0.0).check(users=40)
    for form in ("plain", "careful"):
        side = torch_sasrec.make(f"train full {form}", folder, 0.0)
        assert side.check(users=40) == pytest.approx(wanted, rel=1e-5)
    by_chance = torch_sasrec.make("train binary careful", folder, 0.0).check(users=40)
    ours = jax_sasrec.make("train binary float32", folder, 0.0).check(users=40)
    assert by_chance == pytest.approx(ours, rel=0.02)  # near 2 log 2, before anything is learned


def test_chunks_have_the_gradient_of_the_whole(folder):
    from benchmarks import torch_sasrec

    _, size = sequence_data.read(folder)
    model = torch_sasrec.SASRec(size).eval()
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 51, (4, 9)))
    x, y = rows[:, :-1], rows[:, 1:]
    grads = []
    for chunk in (None, 3):
        model.zero_grad()
        if chunk is None:
            torch_sasrec.cross_entropy_everywhere(model, x, y).backward()
        else:
            real = y < 50
            torch_sasrec.by_chunks(model(x)[real], model, y[real], chunk)
        grads.append([p.grad.clone() for p in model.parameters()])
    for whole, chunked in zip(*grads, strict=True):
        torch.testing.assert_close(chunked, whole)


def test_rise_sees_memory_that_is_given_back():
    with Rise() as rise:
        held = np.ones(20_000_000)
        time.sleep(0.1)
        del held
    assert 150e6 < rise.bytes < 250e6
    with Rise(iter([10, 25]).__next__) as rise:
        pass
    assert rise.bytes == 15
