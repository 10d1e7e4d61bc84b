import doctest
import json
import math

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
    "jaxops float32": [30.0, 33.0, 27.0],
    "torch article": [10.0, 11.0, 9.0],
    "torch careful": [15.0, 15.0, 15.0],
    "torch compiled": [20.0, 22.0, 18.0],
    "torch bfloat16": [60.0, 66.0, 54.0],
}


def test_ratios_are_made_round_by_round_and_best_is_the_highest_median_in_float32():
    found = figures.ratios(STEADY)
    assert [found[k]["median"] for k in ("article", "careful", "compiled")] == [3.0, 2.0, 1.5]
    assert (found["best"]["over"], found["best"]["median"]) == ("torch compiled", 1.5)
    assert (found["fastest"]["over"], found["fastest"]["median"]) == ("torch bfloat16", 0.5)
    assert found["careful"]["min"] == 27 / 15 and found["careful"]["max"] == 33 / 15
    assert "bfloat16" not in found  # jaxops has none here


def test_fastest_takes_the_faster_form_of_each_side():
    found = figures.ratios({**STEADY, "jaxops bfloat16": [90.0, 99.0, 81.0]})
    assert (found["fastest"]["of"], found["fastest"]["median"]) == ("jaxops bfloat16", 1.5)
    assert found["bfloat16"]["median"] == 1.5
    assert found["best"]["of"] == "jaxops float32"


def test_a_sweep_has_no_torch():
    rates = {"jaxops vmapped": [4.0], "jaxops one at a time": [2.0]}
    assert {k: v["median"] for k, v in figures.ratios(rates).items()} == {"vmapped": 2.0}


@pytest.mark.parametrize(("last", "settled"), [(1.17, True), (1.40, False)])
def test_rounds_that_spread_by_more_than_35_percent_are_unsettled(last, settled):
    found = figures.ratio([0.85, 1.0, last], [1.0, 1.0, 1.0], "torch careful")
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
        "C01 best: 1.50, at least 1.6 wanted"
    ]


def test_an_unsettled_ratio_is_no_reason_to_fail_and_a_failed_workload_is():
    wild = result("C01", {"jaxops float32": [1.0, 9.0], "torch careful": [10.0, 10.0]})
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

    known = {"article", "careful", "compiled", "best", "bfloat16", "fastest", "vmapped"}
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


def test_chart(tmp_path):
    versions = {"jaxops": {"jaxops": "1", "jax": "2"}, "torch": {"torch": "3+cpu"}}
    document = {"versions": versions, "hardware": "a machine", "rounds": 3}
    wild = {"jaxops float32": [1.0, 9.0, 1.0], "torch careful": [2.0, 2.0, 2.0]}
    results = [result("C01", STEADY), result("C02", wild), {"workload": "C03", "failed": "x"}]
    chart.plot({**document, "results": results}, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000
    chart.plot({**document, "results": results[2:]}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("module", [figures, workloads])
def test_doctests(module):
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0
