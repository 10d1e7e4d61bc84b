import doctest
import json
import math

import numpy as np
import pytest

from benchmarks import chart, figures, workloads


def result(name, rates, **more):
    return {
        "workload": name,
        "targets": {},
        "forms": {},
        "ratios": figures.ratios(rates),
        **more,
    }


STEADY = {
    "jaxops float32": [30.0, 33.0, 27.0] * 2,
    "torch article": [10.0, 11.0, 9.0] * 2,
    "torch careful": [15.0, 15.0, 15.0] * 2,
    "torch compiled": [20.0, 22.0, 18.0] * 2,
    "torch bfloat16": [60.0, 66.0, 54.0] * 2,
}


def test_ratios_are_made_round_by_round_and_best_is_the_highest_median_in_float32():
    found = figures.ratios(STEADY)
    assert [found[k]["median"] for k in ("article", "careful", "compiled")] == [3.0, 2.0, 1.5]
    assert (found["best"]["over"], found["best"]["median"]) == ("torch compiled", 1.5)
    assert (found["fastest"]["over"], found["fastest"]["median"]) == ("torch bfloat16", 0.5)
    assert found["careful"]["min"] == 27 / 15 and found["careful"]["max"] == 33 / 15
    assert "bfloat16" not in found  # jaxops has none here


def test_fastest_takes_the_faster_form_of_each_side():
    found = figures.ratios({**STEADY, "jaxops bfloat16": [90.0, 99.0, 81.0] * 2})
    assert (found["fastest"]["of"], found["fastest"]["median"]) == ("jaxops bfloat16", 1.5)
    assert found["bfloat16"]["median"] == 1.5
    assert found["best"]["of"] == "jaxops float32"


def test_a_sweep_has_no_torch():
    rates = {"jaxops vmapped": [4.0], "jaxops one at a time": [2.0]}
    assert {k: v["median"] for k, v in figures.ratios(rates).items()} == {"vmapped": 2.0}


@pytest.mark.parametrize(
    ("rounds", "k", "confidence"),
    # of the binomial distribution's table: 1 - 2 P(X < k), the largest k with 95 % or more
    [(6, 1, 0.9688), (8, 1, 0.9922), (9, 2, 0.9609), (12, 3, 0.9614), (18, 5, 0.9691)],
)
def test_the_interval_of_a_median(rounds, k, confidence):
    values = np.random.default_rng(0).permutation(np.arange(1.0, rounds + 1))
    assert figures.median_interval(values) == (k, rounds + 1 - k)
    # and that is how often it holds the median of what was drawn, of whatever shape
    drawn = np.sort(np.random.default_rng(1).exponential(size=(20_000, rounds)), axis=1)
    held = (drawn[:, k - 1] <= math.log(2)) & (math.log(2) <= drawn[:, -k])
    assert held.mean() == pytest.approx(confidence, abs=0.005)


def test_five_rounds_are_too_few_for_an_interval():
    found = figures.ratio([1.0] * 5, [1.0] * 5, "torch careful")
    assert found["interval"] is None and not found["settled"]
    assert figures.ratio([1.0] * 6, [1.0] * 6, "torch careful")["settled"]


def test_more_rounds_settle_a_ratio_whose_extremes_widen():
    rates = np.random.default_rng(0).lognormal(sigma=0.25, size=60)
    found = [figures.ratio(rates[:n], np.ones(n), "torch careful") for n in (6, 18, 60)]
    spread = [f["max"] - f["min"] for f in found]
    width = [f["interval"][1] - f["interval"][0] for f in found]
    assert spread[0] < spread[1] < spread[2] and width[0] > width[1] > width[2]
    assert [f["settled"] for f in found] == [False, True, True]


@pytest.mark.parametrize(("last", "settled"), [(1.09, True), (1.12, False)])
def test_an_interval_wider_than_a_quarter_is_unsettled(last, settled):
    found = figures.ratio([0.85, 1.0, 1.0, 1.0, 1.0, last], [1.0] * 6, "torch careful")
    assert found["interval"] == [0.85, last]
    assert found["settled"] is settled
    assert figures.shown(found).startswith("unsettled") is not settled
    row = figures.ratio_row(
        {"workload": "C01", "targets": {"best": 0.5}, "ratios": {"best": found}}
    )
    assert row["targets"] == ("best 0.5x met" if settled else "best 0.5x unsettled")


def test_a_settled_ratio_below_its_floor_is_named():
    good = result("C01", STEADY)
    assert figures.below_floor([good], {"C01 best": 1.4, "C02 best": 9.0}) == []
    assert figures.below_floor([good], {"C01 best": 1.6, "C01 article": 2.9}) == [
        "C01 best must be at least 1.6, got 1.50"
    ]


def test_an_unsettled_ratio_is_no_reason_to_fail_and_a_failed_workload_is():
    wild = result("C01", {"jaxops float32": [1.0, 9.0] * 3, "torch careful": [10.0] * 6})
    assert not wild["ratios"]["best"]["settled"]
    assert figures.below_floor([wild], {"C01 best": 2.0}) == []
    assert figures.unjudged([wild], {"C01 best": 2.0}) == [
        "C01 best: unsettled (0.10-0.90), so not judged by its floor"
    ]
    assert figures.below_floor([{"workload": "C03", "failed": "x"}], {}) == ["C03: failed"]


@pytest.mark.parametrize(("careful", "lines"), [(10.0, 0), (9.0, 1)])
def test_a_careful_loop_slower_than_the_articles_was_disturbed(careful, lines):
    rates = {"torch article": [10.0], "torch careful": [careful]}
    forms = {n: {"examples_per_second": figures.summary(r)} for n, r in rates.items()}
    sweep = {"workload": "C01-sweep", "forms": {"jaxops vmapped": forms["torch article"]}}
    assert len(figures.disturbed([{"workload": "C01", "forms": forms}, sweep])) == lines


def test_floors_name_workloads_and_ratios():
    from benchmarks.run import HERE

    known = {"article", "careful", "compiled", "graphed", "best", "bfloat16", "fastest", "vmapped"}
    floors = json.loads((HERE / "floors.json").read_text())
    for key, floor in floors.pop("cpu").items():
        name, ratio = key.split(" ")
        assert name in workloads.BY_NAME and ratio in known and floor > 0
    assert not floors  # of a GPU nothing is recorded yet


ANSWER = {"losses": [2.0, 1.0], "loss": 0.5, "accuracy": 0.9}


@pytest.mark.parametrize(
    ("change", "dtype", "word"),
    [
        ({}, "float32", ""),
        ({"losses": [2.0, 1.00009]}, "float32", ""),
        ({"losses": [2.0, 1.0002]}, "float32", "1.0002"),
        ({"losses": [2.0, 1.0002]}, "bfloat16", ""),
        ({"losses": [2.0, math.nan]}, "float32", "nan"),
        ({"accuracy": 0.894}, "float32", "0.8940"),
        ({"accuracy": 0.896}, "float32", ""),
        ({"loss": 9.0}, "float32", ""),  # where there is an accuracy, that is what counts
    ],
)
def test_what_is_not_equal_is_told(change, dtype, word):
    told = figures.different(ANSWER, {**ANSWER, **change}, dtype)
    assert (word in told) and bool(told) == bool(word)


def test_without_an_accuracy_the_final_losses_must_agree():
    wanted = {"losses": [2.0], "loss": 2.5, "accuracy": None}
    assert figures.different(wanted, {**wanted, "loss": 2.52}, "float32") == ""
    assert "2.5300" in figures.different(wanted, {**wanted, "loss": 2.53}, "float32")


def test_probabilities_must_agree():
    assert figures.different({"outputs": [0.5]}, {"outputs": [0.50009]}, "float32") == ""
    assert "differ" in figures.different({"outputs": [0.5]}, {"outputs": [0.502]}, "float32")


def test_what_is_missing_or_not_run_has_its_row():
    form = {
        "examples_per_second": figures.summary([1.0]),
        "first_step_seconds": 1.0,
        "peak_memory_bytes": 1e6,
        "flop_per_second": 1e9,
        "share_of_peak": 0.5,
    }
    why = "torch bfloat16: 'setup' failed:\nTraceback:\n  at x\nInvalidCxxCompiler: no g++ found\n"
    partly = {"workload": "C01", "forms": {"jaxops float32": form}, "missing": {"torch low": why}}
    rows = figures.form_rows(partly)
    assert [row["form"] for row in rows] == [
        "jaxops float32",
        "torch low: InvalidCxxCompiler: no g++ found",
    ]
    absent = {"workload": "gpt-large", "targets": {}, "forms": {}, "not_run": "no GPU"}
    assert figures.ratio_row(absent)["targets"] == "not run: no GPU"
    assert figures.form_rows(absent) == []


def test_chart(tmp_path):
    versions = {"jaxops": {"jaxops": "1", "jax": "2"}, "torch": {"torch": "3+cpu"}}
    document = {"versions": versions, "hardware": "a machine", "rounds": 3}
    wild = {"jaxops float32": [1.0, 9.0, 1.0] * 2, "torch careful": [2.0] * 6}
    results = [result("C01", STEADY), result("C02", wild), {"workload": "C03", "failed": "x"}]
    chart.plot({**document, "results": results}, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000
    chart.plot({**document, "results": results[2:]}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("module", [figures, workloads])
def test_doctests(module):
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0
