"""Both sides compute the same, step for step, for every network."""

import dataclasses
import functools
import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar

import jax
import numpy as np
import pytest

import jaxops as jo
from benchmarks import data, figures, jax_side, measure, workloads
from benchmarks.process import WorkerError
from benchmarks.workloads import BY_NAME, GPT, WORKLOADS, TabM
from jaxops.train import resident

TINY = GPT(depth=2, width=32, heads=4, context=16, vocabulary=11)


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
        if workload.data.startswith(("churn", "adult")):
            x = (random.normal(size=(n, 20)) + label[:, None]).astype(np.float32)
        else:
            x = random.integers(0, 256, (n, 28, 28, 1)).astype(np.uint8)
        found |= {f"{split}_x": x, f"{split}_y": label}
    return found


def workload(name):
    size = 1 if name.endswith("predict-1") else 24 if "predict" in name else 8
    found = dataclasses.replace(BY_NAME[name], batch_size=size)
    tiny = {"gpt": TINY, "adult-tabm": TabM(20, width=16, depth=2, members=3)}
    network = next((n for start, n in tiny.items() if name.startswith(start)), found.network)
    return dataclasses.replace(found, network=network)


def sides(name, folder, form):
    torch_side = pytest.importorskip("torch") and pytest.importorskip("benchmarks.torch_side")
    needed = {"adult-tabm": "tabm", "adult-plr": "rtdl_num_embeddings"}
    if name in needed:
        pytest.importorskip(needed[name])
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
        ("C01", {"graph": True}),  # without a GPU nothing is recorded; its batches are copied in
        ("C02", {}),
        ("C03", {}),
        ("C03", {"channels_last": True, "bytes": True}),
        ("C04", {}),
        ("C08", {}),
        ("gpt-12", {}),
        ("gpt-large", {}),
        ("adult-mlp", {}),
        ("adult-plr", {}),
        ("adult-tabm", {}),
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
        assert "the first losses must differ by at most" in figures.different(
            wanted, found, "float32"
        )


@pytest.mark.parametrize("form", ["careful"])
@pytest.mark.parametrize("name", ["C01-predict-1", "C03-predict-1", "C03-predict-1024"])
def test_probabilities_agree(name, form, tmp_path):
    written, ours, theirs = sides(name, tmp_path, form)
    ours.setup()
    ours.weights()
    theirs.setup()
    wanted, found = ours.check(0), theirs.check(0)
    size = written.batch_size
    assert len(wanted["outputs"]) == 10 * max(16, size)  # all that are timed
    assert sum(wanted["outputs"][:10]) == pytest.approx(1, abs=1e-5)
    assert figures.different(wanted, found, "float32") == ""


@pytest.mark.parametrize("form", ["careful", "transformers"])
def test_generated_tokens_agree(form, tmp_path, monkeypatch):
    if form == "transformers":
        pytest.importorskip("transformers")
    monkeypatch.setattr(workloads, "PROMPT", 5)
    monkeypatch.setattr(workloads, "NEW_TOKENS", 11)
    _, ours, theirs = sides("gpt-generate-16", tmp_path, form)
    ours.setup()
    ours.weights()
    theirs.setup()
    wanted, found = ours.check(0), theirs.check(0)
    assert len(wanted["outputs"]) == 8 * 11 and len(set(wanted["outputs"])) > 2
    assert found["outputs"] == wanted["outputs"]
    if form == "careful":  # and with the slots that are not filled yet masked
        theirs.ask = theirs.answerer(theirs.settings, traced=True)
        assert theirs.check(0)["outputs"] == wanted["outputs"]


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
    for i, order in enumerate(batches):  # 256 rows: an epoch is 32 batches, the next begins anew
        assert sorted(order[:32].ravel()) == sorted(order[32:64].ravel()) == list(range(256))
        ours = resident.Order(256, 8, workloads.SEED + i)  # that of the loop that is timed
        assert all((order[step] == ours.rows_of(step)).all() for step in range(100))
    assert (batches[0] != batches[1]).any()


def test_the_suite_has_what_the_issue_names():
    names = {w.name for w in workloads.chosen((), gpu=False)[0]}
    assert names == {
        *("C01", "C02", "C03", "C04", "C08", "gpt-12", "gpt-64"),
        *("adult-mlp", "adult-plr", "adult-tabm"),
        *(f"C0{i}-1024" for i in (1, 2, 3, 4, 8)),
        *(f"{c}-predict-{n}" for c in ("C01", "C03") for n in (1, 1024)),
        *(f"gpt-generate-{n}" for n in (1, 16)),
    }
    everywhere = {w.name for w in workloads.chosen((), gpu=True)[0]}
    assert everywhere - names == {"gpt-large", "C01-sweep"}
    assert {w.name for w in workloads.chosen((), gpu=False)[1]} == {"gpt-large", "C01-sweep"}
    large = BY_NAME["gpt-large"]  # nanoGPT's
    assert large.network == GPT(depth=6, width=384, heads=6, context=256)
    assert large.batch_size == 64 and large.bfloat16
    sizes = {n: BY_NAME[n].batch_size for n in ("C01", "C02", "C03", "C04", "C08")}
    assert sizes == {"C01": 64, "C02": 32, "C03": 32, "C04": 32, "C08": 64}


def test_forms():
    torch = ["article", "careful", "compiled"]
    both = ("float32", "bfloat16")
    assert workloads.forms(BY_NAME["C02"], both) == {"jaxops": ["float32"], "torch": torch}
    low = workloads.forms(BY_NAME["gpt-12"], both)
    assert low == {"jaxops": list(both), "torch": [*torch, "bfloat16"]}
    assert workloads.forms(BY_NAME["C01-sweep"], both)["torch"] == []
    generate = workloads.forms(BY_NAME["gpt-generate-1"], both)
    assert generate == {"jaxops": ["float32"], "torch": ["careful", "compiled", "transformers"]}
    gpu = workloads.forms(BY_NAME["gpt-large"], both, gpu=True)
    assert gpu["torch"] == [*torch, "graphed", "bfloat16"]


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
    said = []
    pythons = {"jaxops": sys.executable, "torch": sys.executable}
    how = measure.How(2, 0.05, pythons, ("float32",), {"float32": 1e11}, False, said.append)
    small = dataclasses.replace(workload("C02"), check_steps=24)
    result = measure.measure(small, columns(small), tmp_path / "new", how)
    assert "failed" not in result, result["failed"]
    assert list(result["forms"]) == ["jaxops float32", "torch article", "torch careful"]
    assert result["parameters"] == 101_770
    ours = result["forms"]["jaxops float32"]
    assert len(ours["examples_per_second"]["rounds"]) == 6 and ours["share_of_peak"] > 0
    assert ours["first_step_seconds"] > 0.1 and ours["peak_memory_bytes"] > 1e8
    assert result["ratios"]["article"]["over"] == "torch article"
    row = figures.ratio_row({**result, "targets": {"article": 1e-9}})
    assert row["workload"] == "C02" and "article" in row["targets"]


def test_a_sweep_of_seeds_is_each_seed_alone(tmp_path):
    small = workload("C01-sweep")
    workloads.write(tmp_path, small, columns(small), 4)
    sweep = jax_side.make("vmapped", str(tmp_path), 0.0)
    sweep.steps = 5
    sweep.setup()
    kernels = sweep.states.params["hidden_0"]["kernel"]
    assert kernels.shape == (32, 784, 128) and sweep.states.step.tolist() == [5] * 32
    # its rows, drawn once more, for two of the seeds
    index = np.random.default_rng(workloads.SEED).integers(0, 256, (5, 32, 8), np.int32)
    for seed in (0, 31):
        state = jo.init_state(sweep.task, sweep.optimizer, seed, sweep._batch())
        step = jax.jit(functools.partial(jo.train_step, sweep.task, sweep.optimizer))
        for rows in index[:, seed]:
            state, _ = step(state, {name: v[rows] for name, v in sweep.train.items()})
        alone = jax.tree.leaves(state.params)
        together = jax.tree.leaves(jax.tree.map(lambda leaf: leaf[seed], sweep.states.params))
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert sweep.measure(0.01) > 0


def test_columns_shuffled_once_an_epoch_are_all_there(tmp_path):
    _, ours, careful = sides("C04", tmp_path, "careful")
    ours.weights()
    careful.start(careful.settings._replace(shuffle="epoch"))
    seen, update = [], careful.current.update
    program = careful.current._replace(update=lambda *batch: seen.append(batch) or update(*batch))
    steps = careful.steps(program)
    for _ in range(64):
        next(steps)
    for epoch in (seen[:32], seen[32:]):
        labels = sum(float(y.sum()) for _, y in epoch)
        assert labels == careful.raw["train_y"].sum()  # of the last epoch, whose memory it is
    rows = np.concatenate([x.numpy() for x, _ in seen[32:]])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, careful.raw["train_x"]))
    assert (rows != careful.raw["train_x"]).any()


def test_a_shuffle_is_charged_by_the_example(tmp_path, monkeypatch):
    _, ours, careful = sides("C04", tmp_path, "careful")
    ours.weights()
    careful.start(careful.settings)
    now = [0.0]
    monkeypatch.setattr("benchmarks.torch_train.time.perf_counter", lambda: now[0])

    def steps():  # an epoch of 256 rows: 32 steps of a second; before it 8 seconds of shuffling
        while True:
            for i in range(32):
                if i == 0:
                    now[0] += 8.0
                    careful.last_shuffle = 8.0
                    careful.shuffling += 8.0
                now[0] += 1.0
                yield 8

    for seconds in (3.0, 20.0, 100.0):
        assert careful.rate(steps(), seconds) == pytest.approx(256 / 40)


def test_without_a_compiler_bfloat16_is_measured_eager(tmp_path, monkeypatch):
    _, ours, low = sides("C04", tmp_path, "bfloat16")
    ours.weights()
    from benchmarks import torch_train

    def broken(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch_train.torch, "compile", broken)
    monkeypatch.setattr(torch_train, "ALL_THREADS", 1)
    monkeypatch.setattr(torch_train, "TRIAL_SECONDS", 0.01)
    found = low.tune(0.01)
    assert found["settings"]["compile"] == "" and low.measure(0.01) > 0
    assert found["failed_trials"]["{'compile': 'default'}"] == "no C++ compiler"


class Fake:
    """A worker's stand-in, whose rates are those of a table."""

    rates: ClassVar[dict[str, list[float]]] = {}
    broken: ClassVar[set[str]] = set()

    def __init__(self, side, form, folder, python):
        self.name, self.folder, self.python = f"{side} {form}", folder, python
        self.process = SimpleNamespace(pid=-1)
        self.turns = 0

    def __call__(self, do, **_):
        if do == "setup":
            if self.name in self.broken:
                raise WorkerError(f"{self.name}: 'setup' failed:\nError: no C++ compiler")
            return {"first_step_seconds": 1.0, "peak_memory": 1}
        if do == "check":
            return {"losses": [1.0] * 20, "loss": 1.0, "accuracy": 0.5}
        if do == "measure":
            self.turns += 1
            return self.rates.get(self.name, [1.0] * 6)[(self.turns - 1) % 6]
        return {"facts": {"flops_per_example": 1.0}, "tune": {"steps": 1}}.get(do)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def measured(folder, monkeypatch, name, rates, broken=()):
    monkeypatch.setattr(measure, "Worker", Fake)
    monkeypatch.setattr(Fake, "rates", rates)
    monkeypatch.setattr(Fake, "broken", set(broken))
    peaks = {"float32": 1.0, "bfloat16": 1.0}
    pythons = {"jaxops": "", "torch": ""}
    how = measure.How(6, 0.1, pythons, ("float32", "bfloat16"), peaks, False, lambda line: None)
    return measure.measure(workload(name), columns(workload(name)), folder, how)


def rounds_of(result):
    return {len(form["examples_per_second"]["rounds"]) for form in result["forms"].values()}


@pytest.mark.parametrize(
    ("rates", "rounds", "settled"),
    [
        ([2.0] * 6, 6, True),
        ([2.0, 2.0, 2.1, 2.0, 9.0, 2.0], 9, True),  # one bad round: three more settle it
        ([1.0, 2.0, 3.0, 1.0, 2.0, 3.0], 18, False),
    ],
)
def test_rounds_go_on_till_the_ratios_settle(rates, rounds, settled, tmp_path, monkeypatch):
    result = measured(tmp_path / "new", monkeypatch, "C02", {"jaxops float32": rates})
    assert rounds_of(result) == {rounds}
    assert result["ratios"]["best"]["settled"] is settled


def test_forms_that_want_a_compiler_are_missing_and_the_others_stand(tmp_path, monkeypatch):
    broken = {"torch compiled", "torch bfloat16"}
    result = measured(tmp_path / "new", monkeypatch, "C01", {}, broken)
    names = ["jaxops float32", "jaxops bfloat16", "torch article", "torch careful"]
    assert list(result["forms"]) == names and set(result["missing"]) == broken
    assert "no C++ compiler" in figures.form_rows(result)[-1]["form"]
    assert result["ratios"]["best"]["median"] == 1.0
    check = result["forms"]["torch careful"]["check"]
    assert check == {"order": 0, "difference": 0.0, "loss": 1.0, "accuracy": 0.5}
    failed = measured(tmp_path / "other", monkeypatch, "C01", {}, {"torch careful"})
    assert "torch careful" in failed["failed"]


def answering(answers):
    """A worker's stand-in: its losses in each order."""

    def ask(do, order):
        assert do == "check"
        return {"losses": [answers[order]], "loss": 1.0, "accuracy": 0.5}

    return ask


def test_a_form_may_try_other_orders_and_one_must_agree():
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
    assert failed.startswith("torch careful: the first losses must differ by at most")
    assert "got 0.1" in failed and "4.4" in failed
