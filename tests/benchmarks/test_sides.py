"""Both sides compute the same, step for step, for every network."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import data, figures, jax_side, workloads
from benchmarks.workloads import BY_NAME, GPT, WORKLOADS

TINY = GPT(layers=2, width=32, heads=4, context=16, vocabulary=11)


def columns(workload, rows=256):
    random = np.random.default_rng(0)
    if workload.data == "shakespeare":
        size = workload.network
        shape = (rows + 64, size.context + 1)
        tokens = random.integers(0, size.vocabulary, shape, np.int32)
        return {"train_x": tokens[:rows], "test_x": tokens[rows:]}
    found = {}
    for split, n in (("train", rows), ("test", 64)):
        label = random.integers(0, 2, n).astype(np.int32)
        if workload.data == "churn":
            x = (random.normal(size=(n, 20)) + label[:, None]).astype(np.float32)
        else:
            x = random.integers(0, 256, (n, 28, 28, 1)).astype(np.uint8)
        found |= {f"{split}_x": x, f"{split}_y": label}
    return found


def workload(name):
    found = dataclasses.replace(BY_NAME[name], batch_size=8)
    return dataclasses.replace(found, network=TINY) if name == "gpt-12" else found


def sides(name, folder, form):
    torch_side = pytest.importorskip("torch") and pytest.importorskip("benchmarks.torch_side")
    written = workloads.write(folder, workload(name), columns(workload(name)), 24)
    ours = jax_side.make("float32", str(folder), 0.0)
    theirs = torch_side.make(form, str(folder), 0.0)
    theirs.settings = theirs.settings._replace(threads=1)  # two pools in one process: slow
    return written, ours, theirs


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("C01", {}),
        ("C01", {"bytes": True, "adam": "foreach"}),
        ("C02", {}),
        ("C03", {}),
        ("C03", {"channels_last": True, "bytes": True}),
        ("C04", {}),
        ("C08", {}),
        ("gpt-12", {}),
    ],
)
def test_twenty_losses_agree(name, settings, tmp_path):
    _, ours, theirs = sides(name, tmp_path, "careful")
    ours.weights()
    theirs.settings = theirs.settings._replace(**settings)
    theirs.start(theirs.settings)
    wanted, found = ours.check(0), theirs.check(0)
    assert len(wanted["losses"]) == 20 and wanted["losses"][0] != wanted["losses"][-1]
    assert figures.different(wanted, found, "float32") == ""
    np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=1e-3)
    again = theirs.check(0)  # from the initial weights once more, whatever was trained between
    assert again["losses"] == pytest.approx(found["losses"], rel=1e-5)


def test_the_check_finds_another_network(tmp_path):
    _, ours, theirs = sides("C08", tmp_path, "careful")
    ours.weights()
    weights = dict(np.load(tmp_path / "weights.npz"))
    weights["hidden_1/kernel"] = weights["hidden_1/kernel"] * 1.01
    np.savez(tmp_path / "weights.npz", **weights)
    theirs.start(theirs.settings)
    for order in range(workloads.ORDERS):
        wanted, found = ours.check(order), theirs.check(order)
        assert "the first losses differ" in figures.different(wanted, found, "float32")


@pytest.mark.parametrize("form", ["careful"])
@pytest.mark.parametrize("name", ["C01-predict-1", "C03-predict-1"])
def test_probabilities_agree(name, form, tmp_path):
    _, ours, theirs = sides(name, tmp_path, form)
    ours.setup()
    ours.weights()
    theirs.setup()
    wanted, found = ours.check(0), theirs.check(0)
    assert len(wanted["outputs"]) == 160
    assert sum(wanted["outputs"][:10]) == pytest.approx(1, abs=1e-5)
    assert figures.different(wanted, found, "float32") == ""


def test_the_articles_loop_sees_every_example_and_the_careful_one_whole_batches(tmp_path):
    _, ours, article = sides("C04", tmp_path, "article")
    ours.weights()
    from benchmarks import torch_side

    article.raw = {k: v[:20] for k, v in article.raw.items()}
    article.start(article.settings)
    assert [next(article.running) for _ in range(4)] == [8, 8, 4, 8]
    careful = torch_side.make("careful", str(tmp_path), 0.0)
    careful.raw = article.raw
    careful.start(careful.settings)
    assert [next(careful.running) for _ in range(4)] == [8, 8, 8, 8]


@pytest.mark.parametrize("name", [w.name for w in WORKLOADS if w.data != "churn"])
def test_parameter_counts(name):
    network = BY_NAME[name].network
    task = jax_side.task_of(network)
    column = task.columns[0]
    batch = {column.name: np.zeros((1, *column.shape), np.int32)}
    shapes = jax.eval_shape(task.init, jax.random.key(0), batch)[0]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == network.parameters


def test_parameter_counts_of_the_articles(tmp_path):
    known = {"C01": 101_770, "C02": 101_770, "C03": 693_962, "C08": 235_146}
    assert {name: BY_NAME[name].network.parameters for name in known} == known
    written = workloads.write(tmp_path, workload("C04"), columns(workload("C04")), 4)
    assert written.network.parameters == 128 * 20 + 8_449


def test_what_is_written_is_read(tmp_path):
    written = workloads.write(tmp_path, workload("C04"), columns(workload("C04")), 100)
    found, read, batches = workloads.read(tmp_path)
    assert found == written and set(read) == {"train_x", "train_y", "test_x", "test_y"}
    assert batches.shape == (workloads.ORDERS, 100, 8)
    for order in batches:  # 256 rows: an epoch is 32 batches, the next begins anew
        assert sorted(order[:32].ravel()) == sorted(order[32:64].ravel()) == list(range(256))
    assert (batches[0] != batches[1]).any()


def test_the_suite_has_what_the_issue_names():
    names = {w.name for w in workloads.chosen((), gpu=False)}
    assert names == {
        *("C01", "C02", "C03", "C04", "C08", "gpt-12", "gpt-64"),
        *(f"C0{i}-1024" for i in (1, 2, 3, 4, 8)),
        *(f"{c}-predict-{n}" for c in ("C01", "C03") for n in (1, 1024)),
    }
    everywhere = {w.name for w in workloads.chosen((), gpu=True)}
    assert everywhere - names == {"gpt-large", "C01-sweep"}
    sizes = {n: BY_NAME[n].batch_size for n in ("C01", "C02", "C03", "C04", "C08")}
    assert sizes == {"C01": 64, "C02": 32, "C03": 32, "C04": 32, "C08": 64}


def test_forms():
    torch = ["article", "careful", "compiled"]
    both = ("float32", "bfloat16")
    assert workloads.forms(BY_NAME["C02"], both) == {"jaxops": ["float32"], "torch": torch}
    low = workloads.forms(BY_NAME["gpt-12"], both)
    assert low == {"jaxops": list(both), "torch": [*torch, "bfloat16"]}
    assert workloads.forms(BY_NAME["C01-sweep"], both)["torch"] == []


def test_text_windows_overlap_by_one():
    windows = data._windows(np.arange(10), context=3)
    assert windows.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]


def test_pytorchs_side_needs_neither_jax_nor_jaxops():
    pytest.importorskip("torch")
    code = "import sys, benchmarks.torch_side; print({'jax', 'jaxops'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_end_to_end(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    # the compiled form takes half a minute, and a C++ compiler
    monkeypatch.setattr(workloads, "TORCH_FORMS", ("article", "careful"))
    from benchmarks.measure import How, measure

    said = []
    pythons = {"jaxops": sys.executable, "torch": sys.executable}
    how = How(2, 0.05, pythons, ("float32",), {"float32": 1e11}, False, said.append)
    small = dataclasses.replace(workload("C02"), check_steps=24)
    result = measure(small, columns(small), tmp_path / "new", how)
    assert "failed" not in result, result["failed"]
    assert list(result["forms"]) == ["jaxops float32", "torch article", "torch careful"]
    assert result["parameters"] == 101_770
    ours = result["forms"]["jaxops float32"]
    assert len(ours["examples_per_second"]["rounds"]) == 2 and ours["share_of_peak"] > 0
    assert ours["first_step_seconds"] > 0.1 and ours["peak_memory_bytes"] > 1e8
    assert result["ratios"]["article"]["over"] == "torch article"
    row = figures.ratio_row({**result, "targets": {"article": 1e-9}})
    assert row["workload"] == "C02" and "article" in row["targets"]


@pytest.mark.slow
def test_a_sweep_of_seeds(tmp_path):
    small = workload("C01-sweep")
    workloads.write(tmp_path, small, columns(small), 4)
    sweep = jax_side.make("vmapped", str(tmp_path), 0.0)
    sweep.setup()
    kernels = sweep.states.params["hidden_0"]["kernel"]
    assert kernels.shape == (32, 784, 128) and sweep.states.step.tolist() == [32] * 32
    assert float(abs(kernels[0] - kernels[1]).max()) > 0.01  # another seed, another network
    assert sweep.measure(0.05) > 0


def answering(answers):
    """A worker's stand-in: its losses in each order."""

    def ask(do, order):
        assert do == "check"
        return {"losses": [answers[order]], "loss": 1.0, "accuracy": 0.5}

    return ask


def test_a_form_may_try_other_orders_and_one_must_agree():
    from benchmarks import measure

    def checked(theirs):
        forms = {name: {"dtype": "float32"} for name in ("jaxops float32", "torch careful")}
        result = {"kind": "train", "forms": forms}
        workers = {"jaxops float32": answering([1, 2, 3, 4]), "torch careful": answering(theirs)}
        measure._check_equal(workers, result)
        return result

    found = checked([1.1, 2, 9, 9])
    assert "failed" not in found and found["forms"]["torch careful"]["check"]["order"] == 1
    assert found["forms"]["jaxops float32"]["check"]["order"] == 0
    failed = checked([1.1, 2.2, 3.3, 4.4])["failed"]
    assert failed.startswith("torch careful: the first losses differ by 0.1") and "4.4" in failed
