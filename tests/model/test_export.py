"""Exports: what runs without jaxops answers as jaxops does, and nothing wrong is run."""

import dataclasses
import datetime
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from exports import assert_close, exported, forecaster, in_a_clean_process
from small import TASK, compilations, filled, images

import jaxops as jo
from jaxops import forecast, language, nn, recommend, tabular, text, vision
from jaxops.data import Tokenizer, columns, words
from jaxops.data.columns import read_with_dates
from jaxops.model.exported import run, tables, texts
from jaxops.model.exported.tables import read_table
from jaxops.model.exported.texts import read_texts
from jaxops.model.selection import Blend
from jaxops.tabular.data import days_since
from jaxops.task import example

pytest.importorskip("flatbuffers")

ITEMS = 30
WORDS = ["Lost", "card", "don't", "3.14", "a_b", "it's", "x:y", "1,000", "e.g.", "99", "#1", "."]


def untrained(task, reader=None, **changes):
    """A model of random parameters: its answers are as good as any."""
    params, extra = filled(task.init, example(task.columns))
    state = jo.TrainState(jnp.int32(0), params, (), extra, jax.random.key(0))
    return jo.Model(task, state._replace(**changes), reader)


# -- tables


def rows_of(count, seed):
    """A table as people write it: gaps, booleans, numbers in text, values never seen, dates."""
    rng = np.random.default_rng(seed)

    def cells(*choices):
        return [choices[i] for i in rng.integers(0, len(choices), count)]

    moments = [datetime.datetime(2020, 1, 1) + datetime.timedelta(hours=int(h))
               for h in rng.integers(0, 40_000, count)]  # fmt: skip
    return {
        "id": [f"c{i}" for i in range(count)],
        "age": rng.normal(40, 12, count).round(1),
        "visits": cells(1, 2.0, "3", " 4 ", None, float("nan"), "NA", "1e2", "007", ""),
        "plan": cells("a", "b ", "new", None, "", "c", "N/A"),
        "code": cells(1, 2.0, "3", 4.5, None, True),
        "member": cells(True, False, None),
        "city": cells(*"defghijk", "l", None),
        "joined": [m if i % 3 else None if i % 2 else str(m.date()) for i, m in enumerate(moments)],
        "left": [f"{m:%Y-%m-%d %H:%M:%S}+02:00" for m in moments],
    }


def encoder_of(seed=0, **options):
    """What `fit_encoder` learns of such a table, with a rare text, and the reader of it."""
    table = rows_of(200, seed)
    table["visits"] = np.where(np.arange(200) % 3, np.arange(200) % 7 / 2, np.nan)
    read, dates = read_with_dates(
        {n: c for n, c in table.items() if n != "id"}, text=("code", "member")
    )
    read |= days_since(read, dates, "joined")
    encoder = tabular.fit_encoder(read, **options)._replace(label="y", classes=["no", "so", "yes"])
    return tabular.TableReader(encoder, "id", dates, since="joined")


def plain_of(reader):
    task = SimpleNamespace(classes=tuple(reader.encoder.classes))
    return json.loads(json.dumps(reader.exported(jo.Model(task, reader=reader))))


def table_model(**options):
    reader = encoder_of(**options)
    module = tabular.MLP((8,), outputs=3)
    task = tabular.classifier(module, len(reader.encoder.names), ("no", "so", "yes"))
    return untrained(task, reader)


@pytest.mark.parametrize(
    "options",
    [
        {"bins": 6},
        {"scale": "quantile", "codes": 3, "least": 20},
        {"scale": "robust", "most": 3},
        {},
    ],
)
def test_rows_become_the_same_features(options):
    reader = encoder_of(**options)
    plain = plain_of(reader)
    for seed in range(1, 6):
        rows = rows_of(40, seed)
        ids, columns = reader.columns(rows)
        for given in (rows, [dict(zip(rows, row)) for row in zip(*rows.values())]):
            found_ids, found = read_table(plain, given)
            assert found_ids.tolist() == ids.tolist()
            np.testing.assert_array_equal(found["features"], columns["features"])


def test_columns_as_arrays_of_numpy():
    reader = encoder_of()
    plain = plain_of(reader)
    rows = rows_of(30, 9)
    rows["age"] = np.ma.array(rows["age"].astype(np.float32), mask=np.arange(30) % 5 == 0)
    rows["visits"] = np.arange(30, dtype=np.uint8)
    rows["member"] = np.ma.array(np.arange(30) % 2 == 0, mask=np.arange(30) % 4 == 1)
    rows["plan"] = np.ma.array(np.resize(["a", "b ", "?"], 30), mask=np.arange(30) % 7 == 0)
    rows["code"] = np.arange(30) / 2
    joined = np.datetime64("2021-01-01", "ns") + np.arange(30) * np.timedelta64(7, "h")
    rows["joined"] = np.ma.array(joined, mask=np.arange(30) % 6 == 0)
    rows["id"] = np.arange(30)
    ids, columns = reader.columns(rows)
    found_ids, found = read_table(plain, rows)
    assert found_ids.dtype == ids.dtype and found_ids.tolist() == ids.tolist()
    np.testing.assert_array_equal(found["features"], columns["features"])


@pytest.mark.parametrize(
    ("name", "cells", "message"),
    [
        (
            "age",
            ["old", 3],
            "column 'age' must be numbers, as in the train rows, got 'old' in row 0",
        ),
        ("age", [3, True], "column 'age' must be numbers, .* got True in row 1"),
        ("age", [3, 1e39], "column 'age' must be finite numbers that float32 holds, .* in row 1"),
        ("age", [3, [4]], "column 'age' must be numbers, .* row 1"),
        ("joined", ["2024-01-01", "soon"], "column 'joined' must be dates .* got 'soon' in row 1"),
        ("joined", ["2024-01-01", 5], "column 'joined' must be dates .* got 5 in row 1"),
        ("left", ["2024-01-01", "2024-01-01T00:00Z"], "an offset from UTC in every row or in none"),
        ("plan", [np.datetime64("2024-01-01")] * 2, "column 'plan' must be text, "),
        ("plan", ["a"], "raw must have as many rows in each column"),
    ],
)
def test_cells_that_are_refused(name, cells, message):
    reader = encoder_of()
    plain = plain_of(reader)
    with pytest.raises(ValueError, match=message):
        read_table(plain, rows_of(2, 3) | {name: cells})


def test_a_column_that_is_not_there():
    reader = encoder_of()
    plain = plain_of(reader)
    rows = rows_of(2, 3)
    del rows["plan"]
    with pytest.raises(ValueError, match="raw must have a column 'plan', got id, age"):
        read_table(plain, rows)
    with pytest.raises(ValueError, match=r"raw must be columns by name, .* got str"):
        read_table(plain, "rows.csv")


@pytest.mark.parametrize("cells", ["ab", b"ab", 31, {"a": 1}, np.float32(3), np.array(3)])
def test_columns_that_are_no_lists(cells):
    with pytest.raises(ValueError, match="column 'plan' must be a list or an array, got"):
        read_table(plain_of(encoder_of()), rows_of(2, 3) | {"plan": cells})


def test_rules_that_are_copies():
    assert (tables.MISSING, f"^{tables.DATE}$") == (columns.MISSING, columns.DATE)
    assert tables.JUDGED == columns.JUDGED
    assert texts.TOGETHER == words.TOGETHER


def test_values_that_the_train_rows_never_had():
    reader = encoder_of()
    rows = rows_of(20, 3) | {"plan": ["never"] * 20}
    with pytest.warns(UserWarning, match="plan should have values") as wanted:
        reader.columns(rows)
    with pytest.warns(UserWarning, match="plan should have values") as found:
        read_table(plain_of(reader), rows)
    assert [str(one.message) for one in found] == [str(one.message) for one in wanted]


# -- texts


def some_texts(seed, count=60, more=""):
    rng = np.random.default_rng(seed)
    signs = [*WORDS, *"?!:;,'\"()-_\t\x1c", "  ", "a1b", *more]
    parts = [[signs[i] for i in rng.integers(0, len(signs), n)] for n in rng.integers(1, 9, count)]
    return [("x" + rng.choice(["", " "])).join(["q", *part]) for part in parts]


def readers():
    words = Tokenizer.train(some_texts(0), kind="word", vocabulary=60)
    lower = Tokenizer.train(some_texts(0), kind="word", vocabulary=60, lowercase=True)
    letters = Tokenizer.train(some_texts(0), kind="character", lowercase=True)
    grams = text.NGrams(40, 2**12)
    return {
        "n-grams": grams,
        "n-grams of before": text.NGrams(30, 2**12, characters=(2, 3), uax29=False),
        "words": text.Tokens(words, 12),
        "characters": text.Tokens(letters, 70),
        "words and n-grams": text.WordsAndNGrams(text.Tokens(lower, 5), grams),
        "byte": text.Tokens(Tokenizer.train(some_texts(0), kind="byte", vocabulary=300), 40),
    }


def plain_text(read):
    return {"kind": "texts", "text": "text", "id": None, "read": read.exported()}


@pytest.mark.filterwarnings("ignore:texts must")
@pytest.mark.parametrize("more", ["", "é’ЖЛ카🙂मा"])
def test_texts_become_the_same_tokens(more):
    for name, read in readers().items():
        plain = json.loads(json.dumps(plain_text(read)))
        for seed in range(1, 4):
            texts = some_texts(seed, more=more)
            _, found = read_texts(plain, texts)
            np.testing.assert_array_equal(found["tokens"], read(texts)["tokens"], err_msg=name)


def test_every_sign_before_every_letter():
    signs = [chr(one) for one in range(33, 127)]
    given = [f"q {a}{b} is {a}open{b}1{a}i, d{a}e" for a in signs for b in "aeiouyxE1_'."]
    read = text.NGrams(80, 2**12)
    _, found = read_texts(plain_text(read), given)
    np.testing.assert_array_equal(found["tokens"], read(given)["tokens"])


@pytest.mark.parametrize("name", ["words", "characters", "n-grams", "words and n-grams"])
@pytest.mark.parametrize("said", ["Zebra yak", "Zebra ÿ"])
def test_texts_of_unknown_words(name, said):
    read = readers()[name]
    with warnings.catch_warnings(record=True, action="always") as wanted:
        read(["card", said, "99"])
    with warnings.catch_warnings(record=True, action="always") as found:
        read_texts(plain_text(read), ["card", said, "99"])
    assert [str(one.message) for one in found] == [str(one.message) for one in wanted]
    assert len(wanted) == (name in ("words", "characters"))


def test_an_apostrophe_before_a_vowel_in_older_versions_of_regex():
    # what `words` gives with regex 2024.5.10
    said = "is it 'open' or ''a 1'a a'e 'you"
    wanted = ["is", "it", "'open", "'", "or", "'", "'a", "1", "'a", "a'e", "'", "you"]
    assert texts.QUOTED.findall(said) == wanted
    assert texts.WORDS.findall(said)[2:5] == ["'", "open", "'"]


@pytest.mark.parametrize(
    ("raw", "got"), [("one", "str"), (3, "int"), ({"t"}, "set"), (np.array("one"), "str")]
)
def test_what_is_no_list_of_texts(raw, got):
    with pytest.raises(ValueError, match=f"raw must be texts or columns by name, got {got}"):
        read_texts(plain_text(readers()["words"]), raw)


def test_a_column_and_a_frame_of_pandas():
    pd = pytest.importorskip("pandas")
    read = readers()["words"]
    frame = pd.DataFrame({"text": ["card 99", "Lost"]}, index=[7, 9])
    _, found = read_texts(plain_text(read), frame["text"])
    np.testing.assert_array_equal(found["tokens"], read(["card 99", "Lost"])["tokens"])
    with pytest.raises(ValueError, match="raw must be texts or columns by name, got DataFrame"):
        read_texts(plain_text(read), frame)
    with pytest.raises(ValueError, match="column 'text' must be a list or an array, got 'lost'"):
        read_texts(plain_text(read), {"text": "lost"})


def test_texts_that_need_a_package_say_so(monkeypatch):
    named = {name: plain_text(read) for name, read in readers().items()}
    monkeypatch.setitem(sys.modules, "regex", None)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for name, package, given in (
        ("n-grams", "regex", "ça va"),
        ("words", "tokenizers", "ça va"),
        ("byte", "tokenizers", "ca va"),
    ):
        with pytest.raises(ImportError, match=f"{package} must be installed .* '{given}'"):
            read_texts(named[name], [given])
    assert read_texts(named["words"], ["card lost"])[1]["tokens"].any()
    with pytest.raises(ValueError, match="texts must be str and not empty, got ' ' in row 1"):
        read_texts(named["words"], ["a", " "])


# -- a model of each kind, in this process


def text_model(read, many=False, **settings):
    module = text.NGramBag(read.vocabulary, 3, width=4)
    task = text.classifier(module, read.context, ("a", "b", "c"), many)
    return untrained(task, text.TextReader(read, **settings))


def image_model():
    task = vision.classifier(vision.CNN(classes=3), (8, 8, 1), ("ant", "bee", "cat"), 0.4, 0.2)
    return untrained(task, vision.ImageReader((8, 8), 1))


def recommender(model):
    names = np.array([f"item {i}" for i in range(ITEMS)])
    if hasattr(model, "fit"):
        rng = np.random.default_rng(3)
        user = np.repeat(np.arange(20), 8)
        item = [*names, *names[rng.integers(0, ITEMS, len(user) - ITEMS)]]
        return recommend.fitted(model, recommend.events({"user": user, "item": item}, time=None))
    ones = np.ones((1, 6), np.int32)
    params = filled(partial(model.module.init, method="hidden"), ones, ones, ones)["params"]
    return recommend.Recommender(model, params, names, np.arange(ITEMS, dtype=float))


def test_a_table_of_several_labels(tmp_path):
    reader = encoder_of()
    pairs = {"left": ["no", "yes"], "angry": ["calm", "furious"]}
    encoder = reader.encoder._replace(classes=[])
    reader = dataclasses.replace(reader, encoder=encoder, target="labels", labels=pairs)
    task = tabular.multilabel(tabular.MLP((8,), outputs=2), len(encoder.names), tuple(pairs))
    model = untrained(task, reader)
    rows, wanted = rows_of(20, 1), model.predict(rows_of(20, 1))
    found = run.load(jo.export(model, tmp_path / "labels")).predict(rows)
    np.testing.assert_allclose(found["probabilities"], wanted.probabilities, atol=1e-6)
    assert found["labels"].tolist() == wanted.labels.tolist()
    assert found["classes"] == pairs


def test_a_table(tmp_path):
    model = table_model()
    found = exported(model, tmp_path / "out")
    assert found.manifest["room"] == "tabular" and found.manifest["platforms"] == ["cpu"]
    rows = rows_of(37, 4)
    assert_close(found.predict(rows), model.predict(rows))
    columns = found.columns(rows)
    np.testing.assert_allclose(found.apply(columns), model.outputs(columns), atol=1e-6)
    for wrong, message in (
        ({}, "columns must include 'features', got $"),
        ({"features": columns["features"][:, 1:]}, r"features must have rows of shape \("),
        ({"features": columns["features"] * np.nan}, "features must be finite in float32, got nan"),
        (
            {"features": np.full((2, *columns["features"].shape[1:]), 1e39)},
            "features must be finite in float32, got",
        ),
        ({"features": columns["features"].astype(str)}, "features must be float32, got <U"),
        ({"features": columns["features"][:0]}, "columns must have equal numbers of rows, at lea"),
    ):
        with pytest.raises(ValueError, match=message):
            found.apply(wrong)


@pytest.mark.parametrize("target", ["number", "quantiles"])
def test_numbers_of_a_table(tmp_path, target):
    reader = encoder_of()
    reader = tabular.TableReader(reader.encoder._replace(classes=[]), None, reader.dates, target,
                                 (0.1, 0.9) * (target == "quantiles"), "joined")  # fmt: skip
    features = len(reader.encoder.names)
    task = tabular.regressor(tabular.MLP((4,)), features, 3.0, 2.0)
    if target == "quantiles":
        task = tabular.quantiles(tabular.MLP((4,), outputs=2), features, (0.1, 0.9), 3.0, 2.0)
    model = untrained(task, reader)
    assert_close(
        exported(model, tmp_path / "out").predict(rows_of(9, 1)), model.predict(rows_of(9, 1))
    )


def test_a_blend_of_two_classes(tmp_path):
    encoder = encoder_of().encoder._replace(classes=["no", "yes"])
    reader = tabular.TableReader(encoder, None, ("joined", "left"), since="joined")
    tasks = [
        tabular.classifier(tabular.MLP((w,)), len(encoder.names), ("no", "yes")) for w in (4, 6)
    ]
    models = [untrained(task) for task in tasks]
    blend = Blend.of(models, (0.25, 0.75), temperature=1.5)
    model = jo.Model(blend, None, reader)
    assert_close(
        exported(model, tmp_path / "out").predict(rows_of(9, 1)), model.predict(rows_of(9, 1))
    )


def test_images_of_any_number_and_of_four(tmp_path):
    model = image_model()
    image = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 1), np.uint8)
    wanted = model.predict(image)
    for batch in ("any", 4):
        found = exported(model, tmp_path / "out", batch=batch)
        assert found.manifest["inputs"][0]["shape"][0] == ("batch" if batch == "any" else 4)
        assert_close(found.predict(image), wanted)
        assert_close(found.predict({"image": image[..., 0]}), wanted)
    with pytest.raises(ValueError, match="raw must have a column 'image', got picture"):
        found.predict({"picture": image})
    with pytest.raises(ValueError, match=r"images must be an array uint8 .* got <U"):
        found.predict(["cat.png"])
    with pytest.raises(
        ValueError, match=r"image must have rows of shape \(8, 8, 1\), got \(8, 8, 3\)"
    ):
        found.predict(np.zeros((2, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("many", [False, True])
def test_labels_of_texts(tmp_path, many):
    model = text_model(
        readers()["n-grams"], many, temperature=1.7, threshold=0.4, id="no", text="t"
    )
    found = exported(model, tmp_path / "out")
    table = {"no": [5, 6, 7], "t": ["It's lost", "my card", "x:y 99"]}
    assert_close(found.predict(table), model.predict(table))
    assert_close(
        found.predict(table["t"]) | {"ids": model.predict(table).ids}, model.predict(table)
    )


def test_vectors_of_texts(tmp_path):
    read = readers()["words"]
    task = text.contrastive(text.BagEncoder(read.vocabulary, 4), read.context)
    model = untrained(task, text.TextReader(read))
    assert_close(
        exported(model, tmp_path / "out").predict(["lost card"]), model.predict(["lost card"])
    )


HISTORIES = [["item 3", "item 4", "never"], [], ["item 9"] * 70, ["never"], ["item 1"]]


@pytest.mark.parametrize(
    ("model", "exclude_seen"),
    [
        (recommend.SequenceModel(recommend.sasrec(ITEMS, 6, 8, 1, 2, 0.0)), True),
        (recommend.ItemKNN(), True),
        (recommend.EASE(), False),
        (recommend.Popularity(), True),
    ],
)
def test_items_for_histories(tmp_path, model, exclude_seen):
    made = jo.Model(recommender(model), None, recommend.LogReader())
    options = {"k": 5, "exclude_seen": exclude_seen}
    found = exported(made, tmp_path / "out", **options)
    wanted = recommend.recommend(made, HISTORIES, **options)
    answer = found.predict(HISTORIES)
    assert answer["items"] == wanted.ids()
    np.testing.assert_allclose(answer["scores"], wanted.scores, rtol=2e-6, atol=1e-6)
    named = found.predict(dict(zip("vwxyz", HISTORIES)))
    assert named["items"] == wanted.ids() and named["users"].tolist() == [*"vwxyz"]
    assert found.predict([iter(row) for row in HISTORIES])["items"] == wanted.ids()
    frame = SimpleNamespace(columns=["user", "item"])
    for raw, message in (
        (frame, "by user, got a log with user and item"),
        (["item 1"], "histories must be lists of ids, got 'item 1' in row 0"),
        ([{"user": "v", "item": "item 1"}], r"histories must be lists of ids, got \{'user'"),
        ({"user": ["v"], "item": ["item 1"]}, "by user, got a log with user and item"),
        ("item 1", "raw must be a list or an array, got 'item 1'"),
    ):
        with pytest.raises(ValueError, match=message):
            found.predict(raw)


def test_items_of_a_blend_that_reads_fewer_of_them(tmp_path):
    parts = [recommender(model) for model in (recommend.ItemKNN(context=2), recommend.ItemKNN())]
    made = recommend.blend(parts, (0.4, 0.6))
    assert made.model.context is None  # so the length of histories is free
    found = exported(jo.Model(made), tmp_path / "out", k=4).predict(HISTORIES)
    wanted = recommend.recommend(made, HISTORIES, 4)
    assert found["items"] == wanted.ids()
    np.testing.assert_allclose(found["scores"], wanted.scores, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("output", "kind", "covariates"),
    [
        (forecast.Quantiles((0.1, 0.5, 0.9)), "series", True),
        (forecast.Point(), "global", False),
    ],
)
def test_steps_of_series(tmp_path, output, kind, covariates):
    _, method = forecaster(output, kind, covariates, lengthens=True)
    found = exported(jo.Model(method), tmp_path / "out")
    rng = np.random.default_rng(8)
    lengths = {"a": 12, "new": 20, "short": 5}
    values = [rng.gamma(2.0, size=(n, 2)) for n in lengths.values()]
    raw, more, future = {"id": [*lengths], "values": values}, {}, None
    if covariates:
        known = [rng.normal(size=(n + 4, 2)).astype(np.float32) for n in lengths.values()]
        past = [rng.normal(size=n) for n in lengths.values()]
        raw |= {"known": known, "past": past, "static": [[3.0], [1.0], [2.0]]}
        more = {
            "known": {name: [x[:-4, i] for x in known] for i, name in enumerate(("price", "sale"))},
            "past": {"rain": past},
            "static": {"size": [3.0, 1.0, 2.0]},
        }
        future = np.stack([x[-4:] for x in known])
    history = forecast.from_arrays([*lengths], values, channels=("x", "y"), **more)
    wanted = forecast.forecast(method, history, future=future)
    assert_close(found.predict(raw), wanted)
    with pytest.raises(ValueError, match=r"values must have shape \(T, 2\) for series 0"):
        found.predict({"values": [[[1.0]]]})


def test_steps_with_calibrated_quantiles_of_a_log_scale(tmp_path):
    _, inner = forecaster(forecast.Point(), "series", covariates=False)
    offsets = np.random.default_rng(1).normal(size=(4, 2, 3))
    method = forecast.Conformal(forecast.LogScale(inner), (0.2, 0.5, 0.8), offsets, 10, 3)
    values = [np.random.default_rng(2).gamma(2.0, size=(n, 2)) for n in (12, 30)]
    history = forecast.from_arrays(["b", "new"], values, channels=("x", "y"))
    found = exported(jo.Model(method), tmp_path / "out")
    assert_close(
        found.predict({"id": ["b", "new"], "values": values}), forecast.forecast(method, history)
    )
    with pytest.raises(ValueError, match="id must be a list or an array, got 'bc'"):
        found.predict({"id": "bc", "values": values})
    with pytest.raises(
        ValueError, match="values must have more than 3 rows, a season, for series 0"
    ):
        found.predict({"values": [values[0][:3]]})


@pytest.mark.parametrize(("output", "steps"), [("Point", 1), ("Quantiles", 2)])
def test_fewer_steps_were_calibrated_than_the_model_has(tmp_path, output, steps):
    output = getattr(forecast, output)(*[(0.2, 0.8)] * (output == "Quantiles"))
    _, inner = forecaster(output, covariates=False)
    offsets = np.random.default_rng(1).normal(size=(steps, 2, 2))
    method = forecast.Conformal(inner, (0.2, 0.8), offsets, 10, 3)
    values = np.random.default_rng(2).gamma(2.0, size=(1, 12, 2))
    history = forecast.from_arrays(["b"], values, channels=("x", "y"))
    found = exported(jo.Model(method), tmp_path / "out").predict({"id": ["b"], "values": values})
    assert found["mean"].shape == (1, steps, 2)
    assert_close(found, forecast.forecast(method, history, horizon=steps))


def test_tokens_of_a_fixed_length(tmp_path):
    config = nn.TransformerConfig(vocabulary=11, context=8, depth=1, heads=2, width=8)
    reader = language.TokenReader(Tokenizer.train(["my card"], kind="character"), context=8)
    model = untrained(language.next_token(nn.Transformer(config)), reader)
    tokens = np.random.default_rng(0).integers(1, 11, (3, 9))
    tokens[1, 0] = 10
    rows = {"tokens": tokens.astype(np.int32), "segments": np.ones((3, 9), np.int32)}
    found = exported(model, tmp_path / "out", length=9)
    np.testing.assert_allclose(found.predict(rows), model.outputs(rows), atol=1e-6)
    with pytest.raises(ValueError, match="tokens must be in 0 to 10, got 11 in row 1"):
        found.predict(rows | {"tokens": tokens + (np.arange(3) == 1)[:, None]})
    with pytest.raises(ValueError, match="numbers in place of 'any' may help"):
        jo.export(model, tmp_path / "other")


def test_parameters_of_two_bytes(tmp_path):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), untrained(TASK).state.params)
    model = untrained(TASK, params=half)
    found = exported(model, tmp_path / "out")
    assert {one["dtype"] for one in found.manifest["parameters"]} == {"bfloat16"}
    image = images(5)["image"]
    np.testing.assert_allclose(found.predict({"image": image}), model.predict(image), atol=1e-2)


# -- in a clean process


@pytest.mark.filterwarnings("ignore:texts must")
def test_a_process_without_jaxops_answers_the_same(tmp_path):
    _, method = forecaster(forecast.Quantiles((0.1, 0.9)), "series", covariates=False)
    made = recommender(recommend.ItemKNN())
    values = [np.random.default_rng(2).gamma(2.0, size=(12, 2))]
    cases = {
        "table": (table_model(bins=6), rows_of(20, 1)),
        "text": (text_model(readers()["n-grams"]), some_texts(1)),
        "vision": (image_model(), np.arange(192, dtype=np.uint8).reshape(3, 8, 8)),
        "recommend": (jo.Model(made, None, recommend.LogReader()), HISTORIES),
        "forecast": (jo.Model(method), {"id": ["a"], "values": values}),
    }
    for name, (model, _) in cases.items():
        jo.export(model, tmp_path / name)
        assert "jaxops." not in _imports(tmp_path / name / "run.py")
    found = in_a_clean_process(tmp_path, {name: raw for name, (_, raw) in cases.items()})
    for name in ("table", "text", "vision"):
        assert_close(found[name], cases[name][0].predict(cases[name][1]))
    wanted = recommend.recommend(made, HISTORIES, 10)
    assert found["recommend"]["items"] == wanted.ids()
    history = forecast.from_arrays(["a"], values, channels=("x", "y"))
    levels = (0.1, 0.5, 0.9)
    assert_close(found["forecast"], forecast.forecast(method, history, levels=levels))


def _imports(path):
    lines = path.read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith(("import ", "from ")))


@pytest.mark.slow
def test_a_csv_file_in_a_process_of_its_own(tmp_path):
    model = table_model()
    jo.export(model, tmp_path / "out")
    import pandas as pd

    pd.DataFrame(rows_of(6, 2)).to_csv(tmp_path / "rows.csv", index=False)
    command = [sys.executable, "-I", "out/run.py", "rows.csv"]
    printed = subprocess.check_output(command, cwd=tmp_path, timeout=300)
    (tmp_path / "found.csv").write_bytes(printed)
    found, wanted = pd.read_csv(tmp_path / "found.csv"), model.predict(tmp_path / "rows.csv")
    assert found.columns.tolist() == ["ids", "labels", *(f"probabilities {c}" for c in
                                                         ("no", "so", "yes"))]  # fmt: skip
    assert found["ids"].tolist() == wanted.ids.tolist()
    np.testing.assert_allclose(found.iloc[:, 2:], wanted.probabilities, atol=1e-6)


# -- what is refused


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The export of a small model, to be spoiled."""
    return jo.export(
        untrained(TASK), tmp_path_factory.mktemp("export") / "out", platforms=("cpu", "tpu")
    )


def spoiled(small, tmp_path, **changes):
    """A copy, with changes of its manifest."""
    folder = shutil.copytree(small, tmp_path / "copy")
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("name", ["program.bin", "parameters.npz", "reader.json", "run.py"])
def test_a_file_that_was_changed_cut_off_or_lost(small, tmp_path, name):
    folder = spoiled(small, tmp_path)
    path, content = folder / name, (folder / name).read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(
        ValueError, match=f"{name} must have the SHA-256 .*changed after the export"
    ):
        run.load(folder)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"{name} must have {len(content):,} bytes, got"):
        run.load(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: the export lacks this file"):
        run.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format must be at most 1, got 2"),
        ({"format": None}, "must describe an export of jaxops"),
        ({"calling_convention": 99}, "calling convention must be 9 to .*, got 99, of jax"),
        ({"calling_convention": 1}, "calling convention must be 9 to .*, got 1, of jax"),
        ({"platforms": ["tpu"]}, "platforms must include that of this machine, cpu, got tpu"),
        ({"files": {}}, "must list the files of the export, got '"),
        (
            {"files": {"../x": {"bytes": 1, "sha256": ""}}},
            "must list the files of the export, got '",
        ),
    ],
)
def test_a_manifest_of_another_kind(small, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run.load(spoiled(small, tmp_path, **changes))


def test_what_is_no_export(small, tmp_path):
    with pytest.raises(FileNotFoundError, match="folder must be an export of jaxops, got none"):
        run.load(tmp_path)
    folder = spoiled(small, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["inputs"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="must have 'inputs', got format"):
        run.load(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="must describe an export of jaxops"):
        run.load(folder)


def test_other_versions_are_told_of(small, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "jaxops.exported"):
        run.load(small)
        assert not caplog.records
        run.load(spoiled(small, tmp_path, jax="0.0.1", jaxlib="0.0.2"))
    assert "jax 0.0.1 and jaxlib 0.0.2 wrote it" in caplog.text
    assert f"jax {jax.__version__} and jaxlib {jaxlib.__version__} read it" in caplog.text


def test_a_manifest_that_was_changed(small, tmp_path):
    digest = hashlib.sha256((small / "manifest.json").read_bytes()).hexdigest()
    run.load(small, digest.upper())
    folder = spoiled(small, tmp_path, batch=3)
    run.load(folder)  # it has no checksum of its own
    with pytest.raises(ValueError, match=f"manifest.json must have the SHA-256 {digest}, got"):
        run.load(folder, digest)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", "must have 2 cells a line, got 1 in line 3"),
        ("a,b\n1,2,3\n", "must have 2 cells a line, got 3 in line 2"),
        ("a,b\n1,2\n\n3,4\n", "must have 2 cells a line, got 0 in line 3"),
        ("a,a\n1,2\n", "must begin with the names of columns, got .'a', 'a'"),
        ('a\n"1"2\n', "must be CSV, got line 2: "),
        ("", "must begin with the names of columns, got "),
    ],
)
def test_csv_files_that_are_refused(tmp_path, text, message):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        run.read_csv(f"{tmp_path}/rows.csv")


def test_csv_files_of_tables_and_texts_alone(small, tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text('\ufeffa,b\n1,"x, ""y"""\n2,\n', "utf-8")
    found = run.read_csv(f"{tmp_path}/rows.csv")
    assert found == {"a": ["1", "2"], "b": ['x, "y"', ""]}
    monkeypatch.setattr(run, "__file__", f"{small}/run.py")
    with pytest.raises(ValueError, match=r"model must be of a table, .* a CSV file, got columns"):
        run.main(f"{tmp_path}/rows.csv")


def test_platforms_are_those_of_the_program(small):
    blob = bytearray((small / "program.bin").read_bytes())
    assert jax.export.deserialize(blob).platforms == ("cpu", "tpu")
    assert json.loads((small / "manifest.json").read_text())["platforms"] == ["cpu", "tpu"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, 'batch must be "any" or a number of at least 1, got 0'),
        ({"batch": "some"}, "batch must be"),
        ({"platforms": "cpu"}, r"platforms must be a list of names, got 'cpu'"),
        ({"platforms": ("cpu", "gpu")}, "platforms must be some of cpu, cuda, rocm, tpu, got gpu"),
        ({"compile_for": (0,)}, "compile_for must be numbers of rows, got 0"),
        ({"batch": 2, "compile_for": (1,)}, "compile_for must be 2, the batch, got 1"),
        ({"platforms": ("tpu",), "compile_for": (1,)}, "platforms must include cpu"),
        ({"k": 3}, "options must be none for this model, got k"),
    ],
)
def test_arguments_are_checked_first(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        jo.export(untrained(TASK), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_models_and_folders_that_are_refused(tmp_path, small):
    model = untrained(TASK)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="folder must be new, empty, or an earlier export"):
        jo.export(model, tmp_path)
    with pytest.raises(ValueError, match="folder must be a folder, got the file"):
        jo.export(model, tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"model must be a jo.Model, got Task"):
        jo.export(TASK, tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"model must be a network, or another .* got Baseline; answer with"
    ):
        jo.export(jo.Model(forecast.Baseline("drift")), tmp_path / "out")
    both = forecast.Conformal(forecast.Baseline("drift"), (0.5,), np.zeros((1, 1, 1)), 9, 1)
    with pytest.raises(
        ValueError, match=r"model must be a network \(Forecaster\), .* got Baseline; fore"
    ):
        jo.export(jo.Model(both), tmp_path / "out")
    unread = jo.Model(model.task, model.state, text.PassageReader(None))
    with pytest.raises(ValueError, match=r"reader must be one of tables, .*jo.Model\(model.task"):
        jo.export(unread, tmp_path / "out")
    with pytest.raises(ValueError, match=r"options must be of the answers, got \{'levels'"):
        jo.export(jo.Model(recommender(recommend.Popularity())), tmp_path / "out", levels=(0.5,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]


@pytest.fixture
def page(small, tmp_path):
    """A program for the web, whose manifest is another."""
    (tmp_path / "manifest.json").write_text('{"name": "my app", "icons": []}')
    (tmp_path / "index.html").write_text("mine")
    return tmp_path


def test_a_folder_with_other_files_is_kept(small, page):
    for folder in (page, shutil.copytree(small, page / "copy")):
        (folder / "index.html").write_text("mine")
        before = sorted(folder.rglob("*"))
        with pytest.raises(ValueError, match="an earlier export without other files, got"):
            jo.export(untrained(TASK), folder)
        assert sorted(folder.rglob("*")) == before


def test_an_earlier_export_is_replaced_or_kept(small, tmp_path, monkeypatch):
    folder = shutil.copytree(small, tmp_path / "again")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "run.cpython-311.pyc").write_bytes(b"")
    before = (folder / "manifest.json").read_bytes()

    def fails(path, other, rename=Path.rename):
        if not path.name.endswith(".before") and other == folder:
            raise OSError("no room")
        return rename(path, other)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no room"):
        patched.setattr(Path, "rename", fails)
        jo.export(untrained(TASK), folder)
    assert (folder / "manifest.json").read_bytes() == before
    assert os.listdir(tmp_path) == ["again"]
    jo.export(untrained(TASK), folder)
    assert run.load(folder).manifest["platforms"] == ["cpu"]
    assert os.listdir(tmp_path) == ["again"]


def test_what_is_run_is_what_was_checked(small, tmp_path):
    folder = shutil.copytree(small, tmp_path / "copy")
    image = images(2)["image"]
    wanted = run.load(small).predict({"image": image})
    found = run.load(folder)
    for path in folder.iterdir():  # as another export would, meanwhile
        path.write_bytes(b"")
    np.testing.assert_array_equal(found.predict({"image": image}), wanted)
    compiled = [{"file": "more.bin", "rows": 1, "length": 0}]
    with pytest.raises(ValueError, match=r"must list the files of the export, got 'more.bin'"):
        run.load(spoiled(small, tmp_path / "b", compiled=compiled))


# -- compiled programs beside


def test_a_compiled_program_starts_without_compiling(tmp_path, caplog, monkeypatch):
    model = jo.Model(recommender(recommend.EASE()))
    folder = jo.export(model, tmp_path / "out", compile_for=(1, 4), k=3)
    assert sorted(os.listdir(folder / "compiled")) == ["cpu-cpu-b1.bin", "cpu-cpu-b4.bin"]
    wanted = run.load(jo.export(model, tmp_path / "plain", k=3)).predict(HISTORIES[:2])
    with compilations() as names, caplog.at_level(logging.INFO, "jaxops.exported"):
        answer = run.load(folder).predict(HISTORIES[:2])
    assert not names and not caplog.records
    assert run.load(folder)._sizes == [1, 4, *(2**power for power in range(3, 11))]
    assert answer["items"] == wanted["items"]
    np.testing.assert_allclose(answer["scores"], wanted["scores"], rtol=2e-6, atol=1e-6)
    monkeypatch.setattr(run, "machine", lambda here=run.machine(): here | {"cpu": "another"})
    with caplog.at_level(logging.INFO, "jaxops.exported"):
        again = run.load(folder).predict(HISTORIES[:2])
    assert "cpu-cpu-b1.bin is not used, as it is for cpu" in caplog.text
    assert "compiled here for 2 rows of 64" in caplog.text
    assert again["items"] == wanted["items"]
