"""Arrays as a server gives them, read without a frame: the same values, and the same refusals."""

import functools
import itertools
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.stats import norm

from jaxops.data import encoders
from jaxops.data.columns import MISSING, read_with_dates
from jaxops.data.encoders import Encoding, encode, fit_encoder
from jaxops.tabular import TableReader

ROWS = 400
NUMBERS = ["age", "spent", "flag", "one"]
TEXTS = ["plan", "city"]
WORDS = [
    "a",
    "b ",
    "\u2003c",
    "\u00e9t\u00e9",
    "1",
    "True",
    "2024-01-01",
    "\x1fd",
    "",
    " ",
    *MISSING,
]
DATES = ["2024-01-31", "2024-01-31 18:30", " 1969-12-31T23:59:59.5", "", "null", "0001-01-01"]
ZONED = ["2024-01-31T18:30:00Z", "2024-01-31 18:30+02:00", "NA", "9999-12-31T00:00:00-01"]
BAD = {
    "age": [1e39, -np.inf, np.inf],
    "plan": ["\ud800", "ok\udfff"],
    "at": [
        "31.12.2024",
        "2024-02-31",
        "2024-01-31T25:00",
        "soon",
        "\u0662024-01-31",
        "2024-01-31Z",
    ],
}


def trained(scale, bins=0, codes=None):
    """The reader of a table of all kinds of columns."""
    rng = np.random.default_rng(0)
    table = {
        "age": rng.normal(40, 15, ROWS),
        "spent": np.where(rng.random(ROWS) < 0.2, np.nan, rng.lognormal(3, 2, ROWS)),
        "flag": rng.integers(0, 2, ROWS).astype(float),
        "one": np.full(ROWS, 7.0),
        "plan": rng.choice(["a", "b", "", "1"], ROWS).astype(object),
        "city": rng.choice([f"c{i}" for i in range(30)], ROWS, p=_falling(30)).astype(object),
        "at": rng.choice(DATES[:2], ROWS).astype(object),
    }
    columns, dates = read_with_dates(table)
    options = {"scale": scale, "bins": bins, "codes": codes, "least": 6}
    return TableReader(fit_encoder(columns, **options), dates=dates, id="id")


def _falling(count):
    shares = 1 / np.arange(1, count + 1)
    return shares / shares.sum()


READERS = [
    trained("standard"),
    trained("quantile", codes=5),
    trained("robust"),
    trained("standard", 16),
]


def drawn(rng):
    """Arrays as `jaxops.serve` makes them of requests: any cells, in a third of tables bad ones."""
    count = int(rng.integers(1, 65))

    def objects(values):
        cells = np.empty(count, object)
        cells[:] = [
            None if i == 0 else values[i - 1] for i in rng.integers(0, len(values) + 1, count)
        ]
        return cells

    table = {name: rng.normal(40, 30, count) for name in NUMBERS}
    table = {n: np.where(rng.random(count) < 0.2, np.nan, x) for n, x in table.items()}
    table["age"] = table["age"].astype(rng.choice(["f4", "f8"]))
    table["flag"] = rng.integers(0, 9, count).astype(rng.choice(["i1", "u2", "i8"]))
    table |= {"plan": objects(WORDS), "city": objects([*WORDS, "c1", "c2", "c29"])}
    table["at"] = objects(DATES if rng.random() < 0.7 else ZONED)
    table["id"] = rng.integers(0, 99, count) if rng.random() < 0.5 else objects(WORDS)
    if rng.random() < 0.33:
        name = str(rng.choice([*BAD]))
        table[name] = table[name].astype("f8") if name == "age" else table[name]
        table[name][rng.integers(count)] = BAD[name][rng.integers(len(BAD[name]))]
    if rng.random() < 0.05:  # of other types, lengths or names than the reader wants
        table["flag"] = [table["flag"][:-1], table["city"], table["flag"] > 3][rng.integers(3)]
    if rng.random() < 0.05:
        del table["one"]
    return table


def told(call):
    """The columns that a call gives, or how it refuses."""
    try:
        first, second = call()
    except ValueError as error:
        return f"{type(error).__name__}: {error}".replace("frame", "arrays")
    return (
        {**first, "dates": np.array(second)} if isinstance(second, tuple) else {"": first, **second}
    )


def assert_same(one, two):
    if isinstance(one, str) or isinstance(two, str):
        assert one == two
        return
    assert [*one] == [*two]
    for name, column in one.items():
        assert column.dtype == two[name].dtype
        np.testing.assert_array_equal(column, two[name])


@pytest.mark.filterwarnings("ignore:.* should have values of the train rows:UserWarning")
def test_random_tables_are_read_and_refused_as_frames_are():
    rng, refused = np.random.default_rng(1), 0
    for turn in range(300):
        table, reader = drawn(rng), READERS[turn % len(READERS)]
        found = told(functools.partial(reader.table, table))
        if len({len(column) for column in table.values()}) > 1:  # no frame can be made of these
            assert "must have shape" in found
        else:
            assert_same(told(functools.partial(reader.table, pd.DataFrame(table))), found)
        refused += isinstance(found, str)
    assert 60 < refused < 160


@pytest.mark.parametrize(
    "options", [{}, {"numbers": ["n"]}, {"text": ["n", "t"]}, {"exact": ["t"]}]
)
def test_a_table_to_learn_from_is_read_as_a_frame_is(options):
    rng, read = np.random.default_rng(2), functools.partial(read_with_dates, **options)
    for texts in (WORDS, DATES, ZONED, ["1", "007", "2"], ["1", "2.5", " 3"], ["1,5", "2,5"], [""]):
        cells = np.array([*rng.choice(texts, 40), None], object)
        whole = rng.integers(0, 9, 41).astype("u1")
        table = {"n": rng.normal(size=41).astype("f4"), "i": whole, "t": cells}
        frame = functools.partial(read, pd.DataFrame(table))
        assert_same(told(frame), told(functools.partial(read, table)))


def test_the_spaces_around_a_text_are_those_of_arrow():
    characters = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    around = pa.array([f"{c}a{c}b{c}" for c in characters])
    wanted = pc.utf8_trim_whitespace(around).to_pylist()
    assert [text.strip() for text in around.to_pylist()] == wanted


@pytest.mark.parametrize("reader", READERS)
def test_features_are_what_the_definition_says_column_by_column(reader, monkeypatch):
    monkeypatch.setattr(encoders, "BLOCK", 1000)  # several blocks
    encoder, rng = reader.encoder, np.random.default_rng(3)
    count = 150
    table = {n: rng.normal(40, 60, count) for n in encoder.mean}
    table = {n: np.where(rng.random(count) < 0.2, np.nan, x) for n, x in table.items()}
    for name in encoder.mean:  # ends and edges too
        for at in (encoder.edges.get(name, []), encoder.quantiles.get(name, [])):
            table[name][: len(at)] = at[:count]
    values = {n: [*encoder.values[n], *encoder.rare.get(n, ()), "new", ""] for n in encoder.values}
    table |= {n: rng.choice(v, count).astype(object) for n, v in values.items()}
    wanted = {}
    for name in encoder.numbers:
        x = table[name]
        if name in encoder.quantiles:
            at = np.array(encoder.quantiles[name])
            share = np.linspace(0, 1, len(at))
            middle = (np.interp(x, at, share) - np.interp(-x, -at[::-1], -share[::-1])) / 2
            middle = np.where(x <= at[0], 0, np.where(x >= at[-1], 1, middle))
            most = norm.ppf(1 - (1e-7 - np.spacing(1)))
            wanted[name] = np.clip(norm.ppf(middle), -most, most)
        else:
            wanted[name] = (x - encoder.mean[name]) / encoder.std[name]
            if encoder.robust:
                wanted[name] = wanted[name] / np.sqrt(1 + np.square(wanted[name] / 3))
        wanted[name] = np.where(np.isnan(x), 0, wanted[name])
    wanted |= {f"{name} missing": np.isnan(table[name]) for name in encoder.missing}
    for name, known in encoder.values.items():
        rare = encoder.rare.get(name, [])
        if name in encoder.codes:
            places = {v: 1 + i for i, v in enumerate(known)} | dict.fromkeys(rare, 1 + len(known))
            wanted[name] = [places.get(text, 0) for text in table[name]]
        else:
            wanted |= {f"{name}={value}": table[name] == value for value in known}
            wanted |= {f"{name} rare": np.isin(table[name], rare)} if rare else {}
    for name, edges in encoder.edges.items():
        for i, (a, b) in enumerate(itertools.pairwise(edges)):
            share = (table[name] - a) / (b - a)
            share = np.where(i > 0, np.maximum(share, 0), share)
            share = np.where(i < len(edges) - 2, np.minimum(share, 1), share)
            wanted[f"{name}>{a:g}"] = np.where(np.isnan(share), 0, share)
    assert wanted.keys() == set(encoder.names)
    right = np.stack([np.asarray(wanted[name], np.float32) for name in encoder.names], 1)
    features = Encoding(encoder)(table)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, right)
    rows = [encode(encoder, {n: x[i : i + 1] for n, x in table.items()}) for i in range(20)]
    np.testing.assert_array_equal(np.concatenate([one["features"] for one in rows]), right[:20])
