"""The receipt says what is on disk and in memory, and how sure the change of the figures is."""

import functools
import json

import jax
import numpy as np
import pytest

import jaxops as jo
from jaxops import compress, recommend, tabular
from jaxops.compress import receipts as module
from jaxops.trust.evaluation import Evaluation

DRAW = np.random.default_rng(0)
AGE, RATE = DRAW.uniform(20, 60, 300), DRAW.normal(size=300)
TABLE = {"age": AGE, "rate": RATE, "left": np.where(AGE / 40 + RATE > 1, "yes", "no")}


@functools.cache
def whole():
    return tabular.fit(TABLE, tabular.MLP((32,)), label="left", epochs=10, progress=False)


@functools.cache
def bill():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TURNS", 25)
        patch.setattr(module, "SECONDS", 1.0)
        return compress.receipt(whole(), compress.quantise(whole(), 4), TABLE)


def test_the_interval_is_that_of_the_paired_figures():
    small = compress.quantise(whole(), 4)
    before, after = (tabular.evaluate(one, TABLE) for one in (whole(), small))
    for row in bill().figures:
        metric = row["metric"]
        assert row["original"] == pytest.approx(before.figures()[metric])
        assert row["compressed"] == pytest.approx(after.figures()[metric])
        wanted = after.paired(before, metric)
        told = tuple(row[name] for name in ("difference", "low", "high", "p"))
        np.testing.assert_allclose(told, wanted)
        assert row["difference"] == pytest.approx(row["compressed"] - row["original"], abs=1e-12)
    assert {"accuracy", "log_loss", "auc"} <= {row["metric"] for row in bill().figures}


def test_sizes_are_those_of_the_file_and_of_the_arrays(tmp_path):
    sizes = {row["what"]: row for row in bill().sizes}
    for name, one in (("original", whole()), ("compressed", compress.quantise(whole(), 4))):
        jo.save(tmp_path / name, one)
        # dates and versions in the text may differ by some bytes
        assert sizes["bytes on disk"][name] == (tmp_path / name).stat().st_size
        arrays = jax.tree.leaves((one.state.params, one.state.extra))
        assert sizes["bytes in memory"][name] == sum(np.asarray(x).nbytes for x in arrays)
    count = sum(x.size for x in jax.tree.leaves(whole().state.params))
    assert sizes["parameters"]["original"] == sizes["parameters"]["compressed"] == count
    rounded = sizes["parameters that are not 0"]
    assert rounded["compressed"] < rounded["original"] <= count  # some numbers round to 0
    assert sizes["bytes in memory"]["share"] < 0.3


def test_times_are_told_for_each_number_of_rows():
    assert [row["rows"] for row in bill().times] == [1, 64, 1024]
    for row in bill().times:
        assert 20 <= row["calls"] <= 25
        for name in ("original", "compressed"):
            assert 0 < row[f"{name} p50"] <= row[f"{name} p99"]
    assert bill().machine["cores"] >= 1 and bill().machine["platform"] == "cpu"


def test_it_is_written_as_a_table_and_as_json():
    again = json.loads(bill().json())
    assert again["sizes"] == bill().sizes and again["steps"][0]["bits"] == 4
    assert json.loads(compress.Receipt([{"p": np.nan}], [], [], [], {}).json())["figures"] == [
        {"p": None}
    ]
    text = str(bill())
    assert "method quantise, bits 4, scales mse" in text
    assert "| bytes on disk" in text and "compressed p99" in text and "| accuracy" in text


def test_too_few_units_have_no_interval():
    few = Evaluation("row", np.arange(3), {"hit": np.array([1.0, 0.0, 1.0])})
    (row,) = module._figures(few, few)
    assert row["difference"] == 0 and np.isnan(row["low"])


def test_what_it_cannot_know_is_asked_for():
    bare = jo.Model(whole().task, whole().state)
    with pytest.raises(ValueError, match="evaluate must be given for a model without a reader"):
        compress.receipt(bare, bare, TABLE)
    log = {"user": ["a", "b", "a", "b"], "item": ["x", "y", "y", "x"], "time": [1, 1, 2, 2]}
    shop = recommend.fit(log, recommend.Popularity(), progress=False)
    with pytest.raises(ValueError, match="call must be given for this model, got None"):
        compress.receipt(shop, shop, log, evaluate=lambda model, log: None)
