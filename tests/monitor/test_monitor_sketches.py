"""Sketches beside NumPy on the same rows; counted in programs, on devices, in files."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import jaxops as jo
from jaxops import cli, monitor, tabular, text, vision
from jaxops.data.encoders import encode, fit_encoder
from jaxops.model import predictors
from jaxops.model.selection import Blend
from jaxops.monitor import observing
from jaxops.monitor.sketches import learned, withdrawn
from jaxops.monitor.views import NumberPart, TablePart, VectorPart, parts_of
from jaxops.text import jobs

ROWS = 1000
PLANS = np.array(["basic", "gold", "plus"], object)


def made(rng, rows, moved=0.0):
    """A table with whole numbers, numbers that are missing, a long tail, and texts."""
    age = rng.integers(18, 80, rows).astype(float)
    return {
        "age": age,
        "rate": np.where(rng.random(rows) < 0.1, np.nan, rng.normal(3 + moved, 2, rows)),
        "income": np.exp(rng.normal(10 + moved, 1, rows)),
        "plan": PLANS[rng.integers(0, 3, rows)],
        "left": np.where(age + rng.normal(0, 20, rows) < 40, "yes", "no"),
    }


@pytest.fixture(scope="module")
def table():
    return made(np.random.default_rng(0), ROWS)


@pytest.fixture(scope="module")
def model(table):
    """A network of numbers in bins and indicators, with the reference of all rows."""
    fitted = tabular.fit(table, tabular.MLP((4,)), label="left", epochs=1, progress=False)
    assert 100 < fitted.reference.sketch.counts[0] < 200  # of the validation rows
    return monitor.with_reference(fitted, table)


def check_numbers(found, values):
    """A histogram, moments and missing values beside NumPy's, float64."""
    known = values[~np.isnan(values)]
    edges = np.concatenate([[-np.inf], found.edges, [np.inf]])
    np.testing.assert_array_equal(found.counts, np.histogram(known, edges)[0])
    assert found.missing == np.isnan(values).sum() and found.rows == len(values)
    moments = found.mean, found.std, found.low, found.high
    wanted = known.mean(), known.std(), known.min(), known.max()
    np.testing.assert_allclose(moments, wanted, rtol=1e-6, atol=1e-6 * known.std())


def test_the_reference_is_numpy_s_histograms_moments_and_counts(model, table):
    found = monitor.told(model.reference, model.reference.sketch)
    assert [*found] == ["age", "rate", "income", "prediction", "plan"]
    for name in ("age", "rate", "income"):
        check_numbers(found[name], table[name])
        assert (found[name].counts[[0, -1]] == 0).all()  # nothing is out of its own range
    # each of the ten bins has a tenth of the rows, where values are all different
    assert np.abs(found["income"].counts[1:-1] - 100).max() <= 1
    names, counts = np.unique(table["plan"].astype(str), return_counts=True)
    assert found["plan"].names == tuple(names) and found["plan"].unseen == 0
    np.testing.assert_array_equal(found["plan"].counts, counts)
    p = model.predict(table).probabilities[:, 1].astype(np.float64)
    check_numbers(found["prediction"], p)


def test_what_a_program_counts_of_other_rows_is_what_numpy_counts(model, monkeypatch):
    """Rows that are moved, of new texts, in batches with padding, whose sketch is taken often."""
    monkeypatch.setattr(observing, "KEPT", 2)
    rng = np.random.default_rng(2)
    given = made(rng, 333, moved=1.0)
    given["plan"] = np.where(np.arange(333) < 19, "silver", given["plan"])
    watched = monitor.observed(model)
    one, other = watched.predict(given, batch_size=64), model.predict(given, batch_size=64)
    np.testing.assert_array_equal(one.probabilities, other.probabilities)
    sketch = watched.observer.sketch()
    found = monitor.told(model.reference, sketch)
    for name in ("age", "rate", "income"):
        check_numbers(found[name], given[name])
    assert found["income"].counts[-1] == (given["income"] > found["income"].edges[-1]).sum() > 0
    check_numbers(found["prediction"], one.probabilities[:, 1].astype(np.float64))
    assert found["plan"].unseen == 19
    assert found["plan"].counts.tolist() == [(given["plan"] == name).sum() for name in PLANS]
    rates = monitor.missing_rates(found)
    assert rates["rate"] == np.isnan(given["rate"]).mean() and rates["age"] == 0
    outside, high = monitor.out_of_range_rates(found), found["income"].edges[-1]
    assert outside["plan"] == 19 / 333
    assert outside["income"] == found["income"].counts[[0, -1]].sum() / 333
    assert outside["income"] >= (given["income"] > high).mean() > 0
    drift, before = monitor.psi_of(model.reference, sketch), model.reference.sketch
    p, q = (monitor.told(model.reference, s)["plan"] for s in (before, sketch))
    p, q = np.array([*p.counts, 0.5]) / (ROWS + 0.5), np.array([*q.counts, 19]) / 333
    assert drift["plan"] == pytest.approx(((q - p) * np.log(q / p)).sum())
    assert drift["income"] > 0.25 > 0.1 > drift["age"]
    watched.observer.clear()
    assert watched.observer.sketch().counts.sum() == 0


def test_what_training_never_lacked_is_counted_where_it_is_missing(model, table):
    given = {name: column[:100].copy() for name, column in table.items()}
    given["age"][:7], given["income"][3:6] = np.nan, np.nan
    watched = monitor.observed(model)
    watched.predict(given)
    for found in (watched.observer.sketch(), watched.observer.window()[2]):
        found = monitor.told(model.reference, found)
        for name, count in {"age": 7, "income": 3}.items():
            known = given[name][~np.isnan(given[name])]
            edges = np.concatenate([[-np.inf], found[name].edges, [np.inf]])
            np.testing.assert_array_equal(found[name].counts, np.histogram(known, edges)[0])
            assert found[name].missing == count and found[name].rows == 100
            assert found[name].mean == pytest.approx(known.mean(), rel=1e-6)
            assert found[name].std == pytest.approx(known.std(), rel=1e-5)
    assert watched.observer.window()[2].counts.sum() == 0  # nothing since


@pytest.mark.parametrize("shift, scale", [(1e6, 50.0), (0.0, 1e-6), (1e-20, 1e-21)])
def test_numbers_of_any_size_have_ten_bins_and_are_counted_alike(shift, scale):
    """Large numbers close together, and small ones; by the host and by a device."""
    x = (shift + scale * np.random.default_rng(0).normal(size=2000)).astype(np.float32)
    reference = learned((NumberPart("x"),), {"x": x}, None)
    own = monitor.told(reference, reference.sketch)["x"]
    assert np.abs(own.counts[1:-1] - 200).max() <= 1 + 40 * (shift > 0)  # of equal numbers
    program = jax.jit(monitor.update, static_argnums=0)
    found = program(reference, monitor.empty(reference), {"x": x}, None, np.ones(2000))
    np.testing.assert_array_equal(found.counts, reference.sketch.counts)
    told = monitor.told(reference, observing.on_host(found))["x"]
    assert told.mean == pytest.approx(x.mean(dtype=np.float64), abs=1e-5 * scale)
    assert told.std == pytest.approx(x.std(dtype=np.float64), rel=1e-5)


def test_a_missing_number_whose_stand_in_would_be_an_edge():
    """The mean of a balanced column of 0 and 1 is half-way between its values."""
    encoder = fit_encoder({"x": np.repeat([0.0, 1.0], 50)})
    shares = np.repeat([0.0, 1.0], [40, 70])
    reference = learned((TablePart(encoder),), encode(encoder, {"x": shares}), None)
    rows = encode(encoder, {"x": np.array([0.0, 1.0, np.nan, np.nan])})
    sketch = monitor.update(reference, None, rows, None, np.ones(4), np)
    sketch = monitor.merge(sketch, withdrawn(reference, {"x": 2}))
    found = monitor.told(reference, sketch)["x"]
    assert found.counts.tolist() == [0, 1, 1, 0] and found.missing == 2


def test_a_program_that_fails_leaves_an_observer_that_counts():
    reference = learned((NumberPart("x"),), {"x": np.arange(3.0)}, None)
    observer = monitor.Observer(reference)

    def fails(sketch):
        jax.tree.map(lambda leaf: leaf.delete(), sketch)  # it was donated
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        observer.run(fails)
    new = monitor.update(reference, None, {"x": np.ones(2)}, None, np.ones(2), np)
    observer.run(lambda sketch: (None, monitor.merge(sketch, new)))
    assert observer.sketch().counts[0] == 2


def test_names_of_predictions_give_way_to_columns():
    task = tabular.classifier(tabular.MLP((2,)), features=3)
    column = task.columns[0]._replace(name="prediction", shape=())
    parts = parts_of(task._replace(columns=(column,)), None, np.ones(2))
    assert [part.numbers for part in parts] == [("prediction",), ("model's prediction",)]


def features(model, table):
    return encode(model.reader.encoder._replace(label=None), table)


def test_merged_parts_are_the_whole_in_any_order(model, table):
    columns = features(model, table)
    p, cuts = model.outputs(columns), [0, 100, 101, 700, ROWS]
    parts = [
        monitor.update(model.reference, None, {"features": columns["features"][a:b]}, p[a:b],
                       np.ones(b - a), np)
        for a, b in itertools.pairwise(cuts)
    ]  # fmt: skip
    a, b, c, d = parts
    one = monitor.merge(monitor.merge(a, b), monitor.merge(c, d))
    other = monitor.merge(d, monitor.merge(b, monitor.merge(c, a)))
    for found in (one, other):
        whole = model.reference.sketch
        np.testing.assert_array_equal(found.counts, whole.counts)
        np.testing.assert_allclose(found.sums, whole.sums, rtol=1e-6, atol=1e-3)
        np.testing.assert_allclose(found.extremes, whole.extremes, rtol=1e-5)


def test_padding_never_counts_whatever_it_holds(model, table):
    columns = {"features": features(model, table)["features"][:8].copy()}
    p = np.linspace(0, 1, 8, dtype=np.float32)
    update = jax.jit(monitor.update, static_argnums=0)
    start = monitor.empty(model.reference)
    some = update(model.reference, start, {"features": columns["features"][:5]}, p[:5], np.ones(5))
    columns["features"][5:], p[5:] = np.nan, np.inf
    mask = np.array([0.5, 1, 2, 1, 1, 0, 0, 0], np.float32)
    padded = update(model.reference, start, columns, p, mask)
    np.testing.assert_array_equal(padded.counts, some.counts)
    np.testing.assert_allclose(padded.sums, some.sums, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(padded.extremes, some.extremes, rtol=1e-6)


def test_eight_devices_count_what_one_counts(model, table):
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    x = features(model, table)["features"]
    p, mask = model.outputs({"features": x}), (np.arange(ROWS) < 990).astype(np.float32)
    reference, by_row, whole = model.reference, PartitionSpec("rows"), PartitionSpec()

    def count(x, p, mask):
        found = monitor.update(reference, monitor.empty(reference), {"features": x}, p, mask)
        return monitor.across(found, "rows")

    split = jax.shard_map(count, mesh=mesh, in_specs=(by_row,) * 3, out_specs=whole)
    eight = jax.jit(split)(x, p, mask)
    one = monitor.update(reference, None, {"features": x}, p, mask, np)
    np.testing.assert_array_equal(eight.counts, one.counts)
    np.testing.assert_allclose(eight.sums, one.sums, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(eight.extremes, one.extremes, rtol=1e-6)


def test_a_reference_is_in_the_file_and_older_files_have_none(model, table, tmp_path):
    jo.save(tmp_path / "new", model)
    again = jo.load(tmp_path / "new")
    assert again.reference.id == model.reference.id
    for found, wanted in zip(again.reference.sketch, model.reference.sketch, strict=True):
        np.testing.assert_array_equal(found, wanted)
    watched = monitor.observed(again)
    watched.predict(table)
    np.testing.assert_array_equal(watched.observer.sketch().counts, model.reference.sketch.counts)
    lines = [
        ",".join(table),
        *(",".join(map(str, row)) for row in zip(*table.values(), strict=True)),
    ]
    (tmp_path / "rows.csv").write_text("\n".join(lines).replace("nan", ""))
    cli.Predict(tmp_path / "new", str(tmp_path / "rows.csv"), str(tmp_path / "p.csv"),
                sketches=tmp_path / "sketches").run()  # fmt: skip
    [one] = monitor.read_snapshots(tmp_path / "sketches", model.reference)
    assert (one.model, one.version) == ("new", "")
    np.testing.assert_array_equal(one.sketch.counts, model.reference.sketch.counts)
    jo.save(tmp_path / "bare", jo.Model(model.task, model.state, model.reader))
    bare = jo.load(tmp_path / "bare")
    assert bare.reference is None
    with pytest.raises(ValueError, match="model must have a reference to be observed, got none"):
        monitor.observed(bare)


def test_the_last_hour_is_that_of_the_last_rows(monkeypatch):
    """At any time the counts are those of the last rows: of an hour, give or take a minute."""
    rng = np.random.default_rng(0)
    reference = learned((NumberPart("x"),), {"x": np.arange(8.0)}, None)
    observer, now, rows = observing.Observer(reference), [0.0], []
    monkeypatch.setattr(observing.time, "monotonic", lambda: now[0])
    program = jax.jit(lambda sketch, x: (None, observer.update(sketch, {"x": x}, None, x > -9)))
    gaps = [*rng.exponential(200, 60), 3000.0, *rng.exponential(10, 60), 3670.0]
    for at in np.cumsum(gaps):
        now[0] = at
        hour = observer.history().last_hour(at)
        count = int(hour.counts[0])
        assert sum(at - when < 3540 for when, _ in rows) <= count
        assert count <= sum(at - when < 3660 for when, _ in rows)
        x = np.array([0.0, *(one for _, one in rows)], np.float32)
        last = np.arange(len(x)) >= len(x) - count
        wanted = monitor.update(reference, None, {"x": x}, None, last, np)
        np.testing.assert_array_equal(hour.counts, wanted.counts)
        np.testing.assert_allclose(hour.sums, wanted.sums, atol=1e-4)
        new = rng.uniform(-1, 9, 4).astype(np.float32)
        observer.run(program, new)
        rows += [(at, one) for one in new]
    assert count == 0 and int(observer.history().total.counts[0]) == len(rows)
    assert len(observer.history().times) <= 62
    observer.clear()
    assert observer.history().times == ()


def test_a_predictor_answers_bit_for_bit_and_counts(monkeypatch):
    monkeypatch.setattr(predictors, "PREDICTOR_OPTIONS", {})  # the same one for both
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 28, 28, 1)).astype(np.uint8)
    task = vision.classifier(vision.MLP((16,)))
    state = jo.init_state(task, jo.optim.adam(1e-3), 0, {"image": image[:1]})
    model = jo.Model(task, state)
    observer = monitor.Observer(monitor.reference_of(model, {"image": image}))
    plain = jo.predictor(task, state, {"image": image})
    counting = jo.predictor(task, state, {"image": image}, observer)
    p = plain({"image": image})
    np.testing.assert_array_equal(counting({"image": image}), p)
    np.testing.assert_array_equal(counting({"image": image}, 10), p)
    found = monitor.told(observer.reference, observer.sketch())
    twice = np.concatenate([image, image[:10]])
    # four runs of 16 of the 784 pixels, each in the middle of a quarter of them
    places = (np.arange(4)[:, None] * 196 + 90 + np.arange(16)).ravel()
    some = twice.reshape(74, -1)[:, places].astype(np.float64)
    check_numbers(found["image mean"], some.mean(1))
    check_numbers(found["image deviation"], some.std(1))
    both = np.concatenate([p, p[:10]])
    check_numbers(found["largest probability"], both.max(1).astype(np.float64))
    likeliest = np.bincount(both.argmax(1), minlength=10)
    np.testing.assert_array_equal(found["predicted class"].counts, likeliest)
    with pytest.raises(ValueError, match="columns must be image uint8"):
        counting({"image": image[:3]})
    assert observer.sketch().counts[0] == 74  # a refused call counts nothing


@pytest.mark.slow
def test_texts_vectors_and_blends_are_counted(monkeypatch):
    texts = {"text": ["my card is lost", "a new pin", "the card fell"] * 8,
             "label": ["card", "pin", "card"] * 8}  # fmt: skip
    router = text.fit(texts, text.NGramBag(128, 2, width=4), epochs=1, progress=False)
    tokens = router.reader.read(texts["text"])["tokens"]
    with monkeypatch.context() as patch:  # the model then learns all texts, and those of validation
        patch.setattr(jobs, "_on_all", lambda model, *_: model)
        again = text.fit(texts, text.NGramBag(128, 2, width=4), epochs=1, progress=False)
    np.testing.assert_array_equal(router.reference.sketch.sums, again.reference.sketch.sums)
    found = monitor.told(router.reference, router.reference.sketch)
    assert 0 < found["tokens in a row"].rows == found["predicted class"].rows < 12
    watched = monitor.observed(router)
    watched.predict(texts["text"])
    found = monitor.told(router.reference, watched.observer.sketch())
    check_numbers(found["tokens in a row"], (tokens != 0).sum(1).astype(float))
    middle = [row[np.count_nonzero(row) // 2] for row in tokens]
    middle = np.bincount(np.array(middle) % 32, minlength=32)
    np.testing.assert_array_equal(found["middle of tokens"].counts, middle)
    rng, task = np.random.default_rng(0), tabular.classifier(tabular.MLP((2,)), features=3)
    rows = {"features": rng.normal(size=(50, 3)).astype(np.float32)}
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, rows)
    blend = jo.Model(Blend((task, task), (state.params,) * 2, ({}, {}), (0.5, 0.5)))
    watched = monitor.observed(replace(blend, reference=monitor.reference_of(blend, rows)))
    p = watched.outputs(rows)
    found = monitor.told(watched.reference, watched.observer.sketch())
    check_numbers(found["prediction"], p.astype(np.float64))
    check_numbers(found["features 2"], rows["features"][:, 2].astype(np.float64))
    vectors = rng.normal(size=(20, 100)).astype(np.float32)
    few, parts = (
        {"features": rows["features"][:20]},
        parts_of(task._replace(classes=()), None, vectors),
    )
    assert isinstance(parts[1], VectorPart)
    reference = learned(parts, few, vectors)
    sketch = monitor.update(reference, monitor.empty(reference), few, vectors, jnp.ones(20))
    mean = monitor.vector_mean(reference, sketch)
    np.testing.assert_allclose(mean, vectors.mean(0), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_counted_is_refused(model, table):
    trees = tabular.fit(
        table, tabular.HistGradientBoosting(max_iter=2), label="left", progress=False
    )
    assert trees.reference is None
    with pytest.raises(ValueError, match="must predict by the columns of a task, got a"):
        monitor.with_reference(trees, table)
    other = monitor.Sketch(np.zeros(3, int), np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match="sketch must have shapes"):
        monitor.told(model.reference, other)


def test_a_window_between_rows_and_what_they_lack_has_no_negative_counts(model):
    """The rows are in the window before; merged, both are right."""
    late = monitor.told(model.reference, withdrawn(model.reference, {"age": 2}))["age"]
    assert late.counts.min() == 0 and late.missing == 0 and np.isnan(late.mean)
