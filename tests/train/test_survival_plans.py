"""A run that goes on on other devices, and one that an earlier version of jaxops began."""

import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from small import SETTINGS, assert_close, assert_equal, images

import jaxops as jo
from jaxops import vision
from jaxops.devices.plans import data_parallel
from jaxops.state import state_shapes
from jaxops.train.checkpoint import abstract
from jaxops.train.run import Run

FIXTURES = Path(__file__).parents[1] / "fixtures"
sys.path.insert(0, str(FIXTURES))
import make  # noqa: E402

TASK = vision.classifier(vision.MLP((16,), classes=3, batch_norm=True), **SETTINGS)
ADAM = jo.optim.adam(1e-2, eps=1e-2)  # a smaller eps makes large steps of a zero's rounding


def sharded(count):
    """Matrices and their moments split over the devices: fully sharded."""
    return jo.devices.fsdp(min_size=8, devices=jax.local_devices()[:count])


def both(data, fsdp):
    """Copies of what is split: "data" by "fsdp"."""
    devices = jax.local_devices()[: data * fsdp]
    return jo.devices.plan(data=data, fsdp=fsdp, min_size=8, devices=devices)


def assert_split(state, plan):
    """Each device holds its share of a matrix and of its moments, or all of it."""
    mesh = (plan or jo.devices.single()).mesh
    leaves = jax.tree_util.tree_leaves_with_path(state)
    kernels = [leaf for path, leaf in leaves if "'logits'" in str(path) and leaf.ndim == 2]
    assert len(kernels) == 3
    for kernel in kernels:
        assert len(kernel.devices()) == mesh.size
        assert kernel.addressable_shards[0].data.size == kernel.size // mesh.shape.get("fsdp", 1)


def fit(plan, steps, directory=None, **changes):
    return jo.fit(
        TASK,
        images(48, noise=0.3),
        optimizer=ADAM,
        batch_size=16,
        steps=steps,
        plan=plan,
        checkpoints=directory and jo.Checkpoints(directory, every=6),
        progress=False,
        **changes,
    )


def saved(directory):
    """The newest checkpoint's state, on one device."""
    with jo.Checkpointer(directory) as checkpoints:
        shapes = state_shapes(TASK, ADAM, images(1))
        wanted = abstract(shapes, jo.devices.single().state_shardings(shapes))
        return checkpoints.restore({"state": wanted})["state"]


@pytest.mark.slow  # a shorter run is continued under other plans below
@pytest.mark.parametrize(
    "plans",
    [
        pytest.param(
            [data_parallel(jax.local_devices()[:4]), None, sharded(8), both(2, 2)],
            id="4-1-sharded-both",
        ),
        pytest.param(
            [both(2, 2), data_parallel(), sharded(2), None],
            id="both-8-sharded-1",
        ),
    ],
)
def test_a_run_goes_on_under_other_plans(tmp_path, plans):
    for i, plan in enumerate(plans, 1):
        state = fit(plan, 6 * i, tmp_path)
        at = saved(tmp_path)
        assert at.step == 6 * i
        assert_equal(at, state)
        assert_split(state, plan)
        if i < len(plans):  # nothing is left to train: what comes back is what was saved
            again = fit(plans[i], 6 * i, tmp_path)
            assert_equal(again, state)
            assert_split(again, plans[i])
    # sums in another order; a bias before a normalisation moves by its rounding alone
    assert_close(state, fit(None, 6 * len(plans)), rtol=1e-5, atol=5e-6)


@pytest.mark.slow
def test_the_best_state_is_split_and_goes_on_under_other_plans(tmp_path):
    # the largest loss is the first one, so the best state is none of the newest
    changes = {
        "validation": images(17, seed=1),
        "early_stopping": jo.EarlyStopping("loss", 99, "max"),
    }
    first = fit(sharded(4), 6, tmp_path, **changes)
    assert first.step == 3
    assert_split(first, sharded(4))
    for plan in (both(2, 4), None, sharded(4)):
        best = fit(plan, 6, tmp_path, **changes)
        assert_equal(best, first)
        assert_split(best, plan)
    again = fit(both(2, 4), 9, tmp_path, **changes)  # and steps made after that leave it alone
    assert_equal(again, first)
    assert_split(again, both(2, 4))


def test_each_kind_of_plan_has_its_own_form_of_a_step(tmp_path):
    for i, (plan, form) in enumerate([(sharded(2), False), (None, True), (sharded(2), False)], 1):
        fit(plan, 3 * i, tmp_path)
        with jo.Checkpointer(tmp_path) as checkpoints:
            (looped,) = checkpoints.meta()["looped"].values()
        assert looped == form


@pytest.mark.optimized  # with the sums in the order in which they were then
@pytest.mark.parametrize("name", sorted(p.parent.name for p in FIXTURES.glob("*/checkpoints")))
def test_what_earlier_versions_wrote_is_read(tmp_path, name, monkeypatch):
    monkeypatch.delattr(Run, "_loops_well")  # the form of a step is read, not chosen
    shutil.copytree(FIXTURES / name / "checkpoints", tmp_path / "checkpoints")
    with jo.Checkpointer(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 8
    final = make.fit(20, tmp_path / "checkpoints")
    assert final.step == 20  # the best state, trained here
    with np.load(FIXTURES / name / "final.npz") as file:
        for leaf, file_name in zip(make.leaves(final), file.files, strict=True):
            np.testing.assert_allclose(leaf, file[file_name], rtol=1e-5, atol=1e-6)
    model = jo.load(FIXTURES / name / "small.model")
    assert_close(model.state.params, final.params, rtol=1e-5, atol=1e-6)
    found = model.predict(images(5, seed=2))
    np.testing.assert_allclose(found, np.load(FIXTURES / name / "predictions.npy"), atol=1e-6)
