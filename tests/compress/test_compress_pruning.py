import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from small import filled

import jaxops as jo
from jaxops import compress, optim, recommend, vision
from jaxops.model.selection import Blend
from jaxops.recommend.models.sequence import SequenceModel
from jaxops.recommend.recommenders import Recommender
from jaxops.task import example

TASK = vision.classifier(vision.MLP((32, 16), classes=3), **small.SETTINGS)


def model_of(task, seed=0, **about):
    params, extra = filled(task.init, example(task.columns), seed=seed)
    state = jo.TrainState(jnp.int32(0), params, (), extra, jax.random.key(0))
    return jo.Model(task, state, about=about)


def kernels(model):
    return [np.asarray(layer["kernel"]) for _, layer in sorted(model.state.params.items())]


def zeros(model):
    return [np.flatnonzero(kernel == 0) for kernel in kernels(model)]


def smallest(values, share):
    return np.sort(np.argsort(abs(values).ravel(), kind="stable")[: round(share * values.size)])


def test_global_zeros_are_the_smallest_of_all_kernels():
    model = model_of(TASK)
    pruned = compress.prune(model, 0.7)
    every = np.concatenate([k.ravel() for k in kernels(model)])
    found = np.concatenate([k.ravel() for k in kernels(pruned)])
    wanted = every.copy()
    wanted[smallest(every, 0.7)] = 0
    assert np.array_equal(found, wanted)
    for name, layer in model.state.params.items():
        assert np.array_equal(layer["bias"], pruned.state.params[name]["bias"])
    assert len({len(z) / k.size for z, k in zip(zeros(pruned), kernels(pruned))}) > 1


def test_zeros_by_layer_are_the_smallest_of_each():
    model = model_of(TASK)
    pruned = compress.prune(model, 0.7, by="layer")
    for before, after in zip(kernels(model), zeros(pruned)):
        assert np.array_equal(after, smallest(before, 0.7))


def test_two_of_four_keeps_the_two_largest_along_the_inputs():
    task = vision.classifier(vision.MLP((6, 8), classes=3), **small.SETTINGS)
    model = model_of(task)
    pruned = compress.prune(model, pattern="2:4")
    for name in ("hidden_0", "logits"):
        before, after = (np.asarray(m.state.params[name]["kernel"]) for m in (model, pruned))
        for column in range(before.shape[1]):
            for first in range(0, before.shape[0], 4):
                four = before[first : first + 4, column]
                wanted = np.where(abs(four) >= np.sort(abs(four))[2], four, 0)
                assert np.array_equal(after[first : first + 4, column], wanted)
    same = (np.asarray(m.state.params["hidden_1"]["kernel"]) for m in (model, pruned))
    assert np.array_equal(*same)
    assert pruned.about["compressed"][0]["dense"] == ["hidden_1/kernel"]


def test_the_schedule_is_that_of_the_paper():
    final, start, steps = 0.9, 0.2, 40
    share = compress.cubic(final, steps, start)
    for step in range(0, 60, 7):
        done = min(step, steps) / steps
        wanted = final + (start - final) * (1 - done) ** 3  # equation 1 of Zhu and Gupta
        assert float(share(step)) == pytest.approx(wanted, abs=1e-6)


def test_the_share_of_zeros_grows_by_the_schedule_and_zeros_stay():
    tx = optim.chain(optim.sgd(0.1), compress.gradual(0.5, steps=10, every=5))
    params = {"kernel": jnp.arange(1.0, 101).reshape(10, 10), "bias": jnp.ones(3)}
    state, shares = tx.init(params), []

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(jnp.ones_like, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(12):
        params, state = step(params, state)
        shares.append(float((params["kernel"] == 0).mean()))
    at_5 = round(100 * float(compress.cubic(0.5, 10)(5))) / 100
    assert shares == pytest.approx([0.0] * 4 + [at_5] * 5 + [0.5] * 3)
    assert np.allclose(params["bias"], 1 - 12 * 0.1)


def test_training_further_recovers_what_pruning_lost():
    data = small.images(512)
    settings = {"optimizer": optim.adam(1e-2), "batch_size": 64, "epochs": 12, "progress": False}
    trained = jo.Model(TASK, jo.fit(TASK, data, **settings))
    once = compress.prune(trained, 0.85)
    tuned = compress.prune(trained, 0.85, data=data, epochs=12, batch_size=64)
    losses = [jo.evaluate(m.task, m.state, data)["loss"] for m in (once, tuned)]
    assert losses[1] < 0.7 * losses[0]
    total = sum(k.size for k in kernels(tuned))
    assert sum(map(len, zeros(tuned))) == round(0.85 * total)
    assert tuned.about["compressed"][0]["zeros"] == pytest.approx(0.85, abs=1 / total)


@pytest.mark.slow
def test_two_of_four_is_kept_while_it_trains():
    before = compress.prune(model_of(TASK), pattern="2:4")
    tuned = compress.prune(model_of(TASK), pattern="2:4", data=small.images(64), epochs=1)
    for old, new, empty in zip(kernels(before), kernels(tuned), zeros(before)):
        assert np.array_equal(np.flatnonzero(new == 0), empty)
        assert not np.array_equal(old, new)


def test_zeros_stay_in_an_update_with_raw_data():
    reader = vision.data.ImageReader((4, 4), 1)
    pruned = compress.prune(jo.Model(TASK, model_of(TASK).state, reader), 0.6)
    tx = optim.chain(optim.adam(1e-3), compress.keep_zeros())
    images = small.images(64)
    raw = {**images, "label": images["label"].astype(str)}
    further = vision.update(pruned, raw, epochs=1, optimizer=tx, progress=False)
    for old, new in zip(kernels(pruned), kernels(further)):
        assert np.array_equal(old == 0, new == 0) and not np.array_equal(old, new)
    assert further.about["compressed"] == pruned.about["compressed"]


def test_it_is_saved_and_pruned_again(tmp_path):
    once = compress.prune(model_of(TASK, validation={"loss": 1.0}), 0.3)
    twice = compress.prune(once, 0.6)
    jo.save(tmp_path / "model.safetensors", twice)
    read = jo.load(tmp_path / "model.safetensors")
    assert [step["sparsity"] for step in read.about["compressed"]] == [0.3, 0.6]
    assert "validation" not in read.about  # of another model
    image = small.images(5)["image"]
    assert np.array_equal(read.predict(image), twice.predict(image))
    for first, second in zip(zeros(once), zeros(read)):
        assert set(first) <= set(second)
    with pytest.raises(ValueError, match=r"sparsity must be at least 0\.5998"):
        compress.prune(twice, 0.3)


@pytest.mark.slow
def test_a_blend_and_a_recommender_are_pruned():
    models = [model_of(TASK, seed=seed) for seed in (0, 1)]
    blend = jo.Model(Blend.of(models, [0.5, 0.5]))
    image = small.images(5)["image"]
    wanted = np.mean([compress.prune(m, 0.5).predict(image) for m in models], 0)
    found = compress.prune(blend, 0.5).outputs({"image": image})
    np.testing.assert_allclose(found, wanted, atol=1e-6)

    module = recommend.sasrec(items=5, context=4, width=8, depth=1)
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    params = filled(module.init, tokens)["params"]
    items = np.arange(5)
    shop = jo.Model(Recommender(SequenceModel(module), params, items, np.ones(5)))
    pruned = compress.prune(shop, 0.5)
    leaves = jax.tree_util.tree_leaves_with_path(pruned.task.params)
    empty = {jax.tree_util.keystr(path): int((leaf == 0).sum()) for path, leaf in leaves}
    of_kernels = sum(count for name, count in empty.items() if "kernel" in name)
    assert of_kernels == sum(empty.values()) > 0
    answers = [recommend.recommend(m, [[1, 2]], k=2).scores for m in (shop, pruned)]
    assert not np.allclose(*answers)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \(0, 1\), got 1\.0"),
        ({"by": "row"}, 'by must be "global" or "layer"'),
        ({"pattern": "1:4"}, 'pattern must be None or "2:4"'),
        ({"pattern": "2:4", "sparsity": 0.7}, "sparsity and by must be left out"),
        ({"epochs": 3}, "data must be given for epochs, got None"),
        ({"kernels": "nothing"}, "kernels must match a float array of 2 axes or more"),
        ({"data": {}, "early_stopping": 1}, "early_stopping must be None"),
    ],
)
def test_what_makes_no_sense_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        compress.prune(model_of(TASK), **given)


def test_a_closed_form_without_a_network_is_refused():
    log = recommend.events({"user": list("aab"), "item": list("xyx")}, time=None)
    model = jo.Model(recommend.fitted(recommend.Popularity(), log))
    with pytest.raises(ValueError, match=r"kernels must match .* the parameters are score, time"):
        compress.prune(model)
