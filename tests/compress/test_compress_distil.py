import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import small
from small import filled

import jaxops as jo
from jaxops import compress, recommend, tabular, text, vision
from jaxops.compress.distillation import _soft
from jaxops.model.selection import Blend
from jaxops.task import example

RNG = np.random.default_rng(0)
SOFT = jax.jit(_soft, static_argnums=(2, 3))
X = RNG.normal(size=(512, 4)).astype(np.float32)


def model_of(task, seed=0, reader=None):
    params, extra = filled(task.init, example(task.columns), size=1.0, seed=seed)
    state = jo.TrainState(jnp.int32(0), params, (), extra, jax.random.key(0))
    return jo.Model(task, state, reader)


def test_the_loss_is_that_of_hinton_and_its_gradient():
    z, v = RNG.normal(size=(2, 6, 5)) * 3
    for temperature in (1.0, 4.0):
        p = scipy.special.softmax(v, -1)
        student, teacher = (scipy.special.softmax(x / temperature, -1) for x in (z, v))
        wanted = -(temperature**2) * (teacher * np.log(student)).sum(-1)
        arguments = jnp.asarray(z), jnp.asarray(p), temperature, False
        np.testing.assert_allclose(SOFT(*arguments), wanted, rtol=1e-4)
        slope = jax.grad(lambda z, arguments=arguments: _soft(z, *arguments[1:]).sum())(
            arguments[0]
        )
        np.testing.assert_allclose(slope, temperature * (student - teacher), atol=1e-4)


def test_one_logit_and_members_have_the_same_loss_as_two_logits():
    z, p = RNG.normal(size=(7, 1)), RNG.uniform(0.1, 0.9, 7)
    two = jnp.asarray(np.concatenate([np.zeros_like(z), z], 1))
    wanted = SOFT(two, jnp.asarray(np.stack([1 - p, p], -1)), 3.0, False)
    np.testing.assert_allclose(SOFT(jnp.asarray(z), jnp.asarray(p), 3.0, False), wanted, rtol=1e-5)
    members = jnp.asarray(RNG.normal(size=(7, 4, 1)))
    each = [SOFT(members[:, m], jnp.asarray(p), 3.0, False) for m in range(4)]
    found = SOFT(members, jnp.asarray(p), 3.0, False)
    np.testing.assert_allclose(found, np.mean(each, 0), rtol=1e-5)


def test_a_student_of_a_blend_answers_as_it_does_and_not_as_the_labels(tmp_path):
    task = tabular.classifier(tabular.MLP((16,)), features=4)
    blend = jo.Model(Blend.of([model_of(task, seed) for seed in (1, 2)], [0.5, 0.5]))
    p = blend.outputs({"features": X})
    rows = {"features": X, "label": (p < 0.5).astype(np.int32)}  # all wrong
    student = compress.distil(
        blend,
        tabular.MLP((32,)),
        rows,
        hard=0.0,
        epochs=60,
        optimizer=jo.optim.adam(1e-2),
    )
    q = student.outputs({"features": X})
    clear = np.abs(p - 0.5) > 0.2  # the rest is where the two teachers contradict each other
    assert ((q > 0.5) == (p > 0.5))[clear].mean() > 0.97 and clear.mean() > 0.5
    jo.save(tmp_path / "student.safetensors", student)
    read = jo.load(tmp_path / "student.safetensors")
    np.testing.assert_array_equal(read.outputs({"features": X}), q)
    assert read.about["compressed"] == [{"method": "distil", "temperature": 2.0, "hard": 0.0}]


@pytest.mark.slow
def test_a_number_is_learned_from_the_teacher():
    task = tabular.regressor(tabular.MLP((16,)), features=4, mean=3.0, std=2.0)
    teacher = model_of(task)
    answers = teacher.outputs({"features": X})
    rows = {"features": X, "label": RNG.normal(size=512).astype(np.float32)}
    student = compress.distil(
        teacher, tabular.MLP((32,)), rows, hard=0.0, epochs=60, optimizer=jo.optim.adam(1e-2)
    )
    errors = student.outputs({"features": X}) - answers
    assert errors.std() < 0.15 * answers.std()
    assert dict(student.task.recipe[1])["mean"] == 3.0


@pytest.mark.slow
def test_features_of_a_layer_are_learned_by_a_map():
    """A linear map of the student's layer is nearly the teacher's layer."""
    data = small.images(256)
    task = vision.classifier(vision.MLP((8,), classes=3), **small.SETTINGS)
    teacher = model_of(task, reader=vision.data.ImageReader((4, 4), 1))
    student = compress.distil(
        teacher,
        vision.MLP((24, 4)),  # the room's own default of 10 classes becomes 3
        data,
        features=("hidden_0", "hidden_0"),
        epochs=150,
        optimizer=jo.optim.adam(1e-2),
        validation=data,
    )
    assert student.task.classes == task.classes and student.reader is teacher.reader
    assert set(student.state.params) == {"hidden_0", "hidden_1", "logits"}
    flat = (data["image"].reshape(256, -1) / 255).astype(np.float32)
    wanted, found = (
        flat @ m.state.params["hidden_0"]["kernel"] + m.state.params["hidden_0"]["bias"][None]
        for m in (teacher, student)
    )
    linear, *_ = np.linalg.lstsq(found, wanted, rcond=None)
    left = wanted - found @ linear
    assert (left**2).sum() < 0.1 * ((wanted - wanted.mean(0)) ** 2).sum()
    with pytest.raises(ValueError, match=r"features must be layers among .*hidden_0.*, got 'body'"):
        compress.distil(teacher, vision.MLP((4,)), data, features=("hidden_0", "body"))


@pytest.mark.slow
def test_a_text_classifier_of_many_labels_is_distilled():
    task = text.classifier(text.NGramBag(20, 3, width=8), 5, ("a", "b", "c"), many=True)
    teacher = model_of(task)
    tokens = RNG.integers(1, 20, (256, 5)).astype(np.int32)
    p = teacher.outputs({"tokens": tokens})
    rows = {"tokens": tokens, "label": RNG.integers(0, 2, (256, 3)).astype(np.int32)}
    student = compress.distil(
        teacher, text.TextCNN(9, 9, width=8, filters=16, widths=(1,), dropout=0.0), rows,
        hard=0.0, epochs=60, optimizer=jo.optim.adam(1e-2), temperature=1.0,
    )  # fmt: skip
    assert (student.outputs({"tokens": tokens}).round() == p.round()).mean() > 0.9
    assert dict(student.task.recipe[1])["module"].vocabulary == 20


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 0.0}, r"temperature must be above 0, got 0\.0"),
        ({"hard": 1.0}, r"hard must be in \[0, 1\), got 1\.0"),
        ({"student": "MLP"}, "module must be a Flax module"),
    ],
)
def test_what_makes_no_sense_is_refused(given, message):
    task = tabular.classifier(tabular.MLP((4,)), features=4)
    rows = {"features": X, "label": np.zeros(512, np.int32)}
    with pytest.raises(ValueError, match=message):
        compress.distil(model_of(task), **{"student": tabular.MLP((2,)), "data": rows, **given})


def test_a_temperature_without_effect_and_a_teacher_of_another_kind_are_refused():
    teacher = model_of(tabular.regressor(tabular.MLP((4,)), features=4))
    with pytest.raises(ValueError, match="temperature must be left out for a target that is a nu"):
        compress.distil(teacher, tabular.MLP((2,)), {}, temperature=4.0)
    log = recommend.events({"user": list("aab"), "item": list("xyx")}, time=None)
    model = jo.Model(recommend.fitted(recommend.Popularity(), log))
    with pytest.raises(ValueError, match="teacher must have a task, or be a blend with one"):
        compress.distil(model, tabular.MLP((2,)), {})
