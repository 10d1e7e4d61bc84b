"""The report beside SciPy and the functions it is made of; its webhook; models trained further."""

import functools
import http.server
import itertools
import json
import re
import threading

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jaxops as jo
from jaxops import cli, monitor, tabular
from jaxops.monitor import webhook
from jaxops.trust.evaluation import of_classes

CUSTOMERS = itertools.count()  # no two tables have a customer of the same number


def made(rng, rows, moved=0.0):
    """Rows of which people with a high income and the plan "plus" stay."""
    table = {
        "customer": next(CUSTOMERS) * 10**4 + rng.permutation(rows),
        "age": rng.normal(40 + 15 * moved, 9, rows),
        "income": np.where(rng.random(rows) < 0.05 + 0.2 * moved, np.nan, rng.normal(3, 1, rows)),
        "plan": rng.choice(["basic", "plus"] + ["gold"] * bool(moved), rows),
    }
    score = np.nan_to_num(table["income"], nan=3) - 3 + (table["plan"] == "plus") - 0.5
    return table | {"left": np.where(score + rng.logistic(0, 0.3, rows) < 0, "yes", "no")}


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return {
        "train": made(rng, 2000),
        "held": made(rng, 1000),
        "same": made(rng, 1000),
        "new": made(rng, 1000, 1.0),
    }


@pytest.fixture(scope="module")
def model(rows):
    fitted = tabular.fit(
        rows["train"], tabular.MLP((8,)), label="left", id="customer", epochs=10, progress=False
    )
    return monitor.with_reference(fitted, rows["train"])


@pytest.fixture(scope="module")
def snapshots(model, rows, tmp_path_factory):
    """A folder of three sketches, the last of them of the moved rows."""
    folder = tmp_path_factory.mktemp("sketches")
    watched = monitor.observed(model)
    for some in (rows["held"], rows["same"], rows["new"]):
        watched.predict(some)
        monitor.write_snapshot(folder, watched.observer, "churn")
    return folder


@pytest.fixture(scope="module")
def found(model, rows, snapshots):
    return monitor.report(model, monitor.read_snapshots(snapshots, model.reference), name="churn")


def test_figures_are_those_of_the_functions(model, found, snapshots):
    [whole] = monitor.read_snapshots(snapshots, model.reference, whole=True)
    told = json.loads(json.dumps(found.told, allow_nan=False))
    before = monitor.told(model.reference, model.reference.sketch)
    now = monitor.told(model.reference, whole.sketch)
    assert (told["rows"], told["reference_rows"]) == (3000, 2000)
    p = {"chi_squared": [], "ks": [], "missing": []}
    for name, one in told["columns"].items():
        a, b = before[name].cells, now[name].cells
        assert one["reference"] == a.tolist() and one["current"] == b.tolist()
        both = np.stack([a, b])[:, a + b > 0]
        statistic, chance, *_ = stats.chi2_contingency(both, correction=False)
        np.testing.assert_allclose(one["chi_squared"]["statistic"], statistic, rtol=1e-9)
        p["chi_squared"].append(chance)
        assert one["psi"] == pytest.approx(monitor.psi_of(model.reference, whole.sketch)[name])
        lost = np.array([[x.missing, x.rows - x.missing] for x in (before[name], now[name])])
        p["missing"].append(stats.fisher_exact(lost).pvalue)
        if one["kind"] == "numbers":
            p["ks"].append(monitor.ks(before[name].counts, now[name].counts).p)
    assert p.keys() < {*told["columns"]["age"]}
    for test, values in p.items():
        adjusted = [one[test]["adjusted"] for one in told["columns"].values() if test in one]
        wanted = stats.false_discovery_control(values)
        np.testing.assert_allclose(adjusted, wanted, rtol=1e-6, atol=1e-300)
    assert [name for name, one in told["columns"].items() if one["prediction"]] == ["prediction"]
    over = told["over_time"]
    assert [point["rows"] for point in over] == [1000, 1000, 1000]
    last = monitor.read_snapshots(snapshots, model.reference)[-1]
    assert over[-1]["psi"] == pytest.approx(monitor.psi_of(model.reference, last.sketch))
    assert over[0]["psi"]["age"] < 0.05 < 0.5 < over[-1]["psi"]["age"]


def test_alerts_are_for_what_moved(model, rows, found):
    told = {(one["kind"], one["column"]) for one in found.alerts}
    assert told >= {("drift", "age"), ("missing", "income"), ("outside", "plan")}
    assert ("missing", "age") not in told
    quiet = monitor.report(model, data=rows["same"])
    assert quiet.alerts == [] and quiet.told["rows"] == 1000 and quiet.told["over_time"] == []


def test_the_page_has_pictures_and_no_address(found):
    text = found.html()
    assert text.count("<img") == 2 and "churn" in text and "corrected p" in text
    pictures = re.findall(r'src="([^"]{0,30})', text)
    assert pictures and all(one.startswith("data:image/png;base64,") for one in pictures)
    bare = re.sub(r"base64,[^\"]*", "", text)
    assert not re.search(r"https?:|//|<script|<link|@import|url\(", bare)


def test_performance_with_and_without_labels(model, rows):
    new, held = rows["new"], rows["held"]
    # the labels of half of the rows, in another order, and one of a row that is none of them
    some = np.random.default_rng(1).permutation(1000)[:500]
    labels = {
        "customer": np.append(new["customer"][some], 10**7),
        "left": np.append(new["left"][some], "no"),
    }
    told = monitor.report(model, data=new, labels=labels, validation=held).told["performance"]
    answer = model.predict(new)
    target = (new["left"][some] == "yes").astype(int)
    wanted = of_classes("row", some, answer.probabilities[some], target).figures()
    one = told["labelled"]
    assert (one["rows"], one["share"], one["unknown"]) == (500, 0.5, 1)
    for name, value in wanted.items():
        assert one["figures"][name]["value"] == pytest.approx(value)
        assert one["figures"][name]["before"] == model.about["validation"][name]
    p, known = model.predict(held).probabilities, (held["left"] == "yes").astype(int)
    estimate = monitor.confidence_based(p, known, answer.probabilities)
    accuracy = told["estimated"]["figures"]["accuracy"]
    assert [accuracy[k] for k in ("value", "low", "high")] == pytest.approx([*estimate.accuracy])


def test_wrong_labels_are_an_alert(model, rows):
    held = rows["held"]
    wrong = {"customer": held["customer"], "left": np.where(held["left"] == "no", "yes", "no")}
    found = monitor.report(model, data=held, labels=wrong)
    told = {one["column"] for one in found.alerts if one["kind"] == "performance"}
    assert told == {"accuracy", "log_loss", "macro_f1", "auc"}
    right = monitor.report(model, data=held, labels={k: held[k] for k in ("customer", "left")})
    assert right.alerts == []


def test_what_cannot_be_reported_is_refused(model, rows):
    with pytest.raises(ValueError, match="snapshots must hold rows where no data are given"):
        monitor.report(model)
    with pytest.raises(ValueError, match="data must be given with labels or validation rows"):
        monitor.report(model, labels=rows["new"])
    with pytest.raises(ValueError, match="alpha must be between 0 and 1, got 5"):
        monitor.report(model, data=rows["new"], alpha=5)
    with pytest.raises(ValueError, match="must have the column 'customer' and one of labels"):
        monitor.report(model, data=rows["new"], labels={"left": ["yes"]})
    odd = {"customer": rows["new"]["customer"][:1], "left": ["perhaps"]}
    with pytest.raises(ValueError, match="left must be one of no, yes, got 'perhaps'"):
        monitor.report(model, data=rows["new"], labels=odd)
    other = {"customer": [-1], "left": ["yes"]}
    with pytest.raises(ValueError, match="must have labels of rows of data, got 1 others"):
        monitor.report(model, data=rows["new"], labels=other)


class Hook(http.server.BaseHTTPRequestHandler):
    """Refuses the first `refused` requests, and keeps the bodies of the others."""

    def __init__(self, kept, refused, *args):
        self.kept, self.refused = kept, refused
        super().__init__(*args)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.kept.append((self.path, body))
        self.send_response(503 if len(self.kept) <= self.refused else 204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def hook(monkeypatch):
    """`start(refused)` gives an address and the requests that arrive there."""
    monkeypatch.setattr(webhook, "WAIT", 0.0)
    servers = []

    def start(refused):
        kept = []
        handler = functools.partial(Hook, kept, refused)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/hook/path?key=secret", kept

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.slow
def test_the_command_writes_posts_and_returns_3(model, rows, snapshots, hook, tmp_path, capsys):
    jo.save(tmp_path / "churn.safetensors", model)
    address, kept = hook(2)
    words = ["monitor", str(tmp_path / "churn.safetensors"), "--out", str(tmp_path / "report")]
    assert cli.main([*words, "--sketches", str(snapshots), "--webhook", address]) == 3
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [f"alert: {one['message']}" for one in told["alerts"]]
    assert lines[-1].endswith(f"3,000 rows, {len(told['alerts'])} alerts")
    assert "<img" in (tmp_path / "report" / "report.html").read_text()
    assert [path for path, _ in kept] == ["/hook/path?key=secret"] * 3
    assert json.loads(kept[-1][1])["alerts"] == told["alerts"]
    pd.DataFrame(rows["same"]).to_parquet(tmp_path / "same.parquet")
    assert cli.main([*words, "--data", str(tmp_path / "same.parquet"), "--webhook", address]) == 0
    assert len(kept) == 3  # nothing to tell
    (tmp_path / "none").mkdir()
    assert cli.main([*words, "--sketches", str(tmp_path / "none")]) == 1
    assert "must have sketches of" in capsys.readouterr().err


def test_a_webhook_that_fails_is_named_without_its_secrets(hook):
    address, kept = hook(9)
    with pytest.raises(
        OSError, match=r"webhook at 127\.0\.0\.1 must accept .*got HTTP 503"
    ) as told:
        monitor.post(address, {"alerts": []})
    assert len(kept) == 3 and "secret" not in str(told.value) and "hook/" not in str(told.value)
    with pytest.raises(ValueError, match="must be an address of http or https, got ftp"):
        monitor.post("ftp://hooks.example/secret", {})


def parquet(folder, table):
    pd.DataFrame(table).to_parquet(folder / "new.parquet")
    return str(folder / "new.parquet")


@pytest.mark.slow
def test_a_challenger_of_a_new_world_is_promoted(model, rows, tmp_path, capsys):
    """The plan means the opposite now: who learns it from new rows is better."""
    rng, new = np.random.default_rng(5), rows["new"]
    turned = new | {"left": np.where(new["plan"] == "plus", "yes", "no")}
    jo.save(tmp_path / "old.safetensors", model)
    out = tmp_path / "new.safetensors"
    words = ["retrain", str(tmp_path / "old.safetensors"), "--data", parquet(tmp_path, turned)]
    assert cli.main([*words, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "200 rows held back" in shown and "champion" in shown and "written" in shown
    again = made(rng, 500, 1.0)
    again["left"] = np.where(again["plan"] == "plus", "yes", "no")
    losses = [tabular.evaluate(jo.load(path), again).figures()["log_loss"]
              for path in (tmp_path / "old.safetensors", out)]  # fmt: skip
    assert losses[1] < losses[0] - 0.1


def test_the_champion_stays_where_labels_are_corrupted(model, rows, tmp_path, capsys):
    """The labels of training are noise; those held back, the latest, are right."""
    same = dict(rows["same"])
    same["day"] = np.arange(1000)
    noise = np.random.default_rng(2).permutation(same["left"][:700])
    same["left"] = np.concatenate([noise, same["left"][700:]])
    jo.save(tmp_path / "old.safetensors", model)
    out = tmp_path / "new.safetensors"
    words = ["retrain", str(tmp_path / "old.safetensors"), "--data", parquet(tmp_path, same)]
    assert cli.main([*words, "--out", str(out), "--time", "day", "--held", "0.3"]) == 3
    assert "300 rows held back" in capsys.readouterr().out and not out.exists()


@pytest.mark.slow
def test_a_challenger_is_the_rooms_update_on_old_and_new_rows(model, rows):
    new = pd.DataFrame(rows["same"]).assign(day=np.arange(1000))
    both = pd.concat([pd.DataFrame(rows["train"]), new.iloc[700:900]], join="inner")
    found = monitor.retrain(model, new, both, time="day", epochs=1, progress=False)
    later = new.iloc[800:]
    assert found.left_out == 100  # of the old rows, which have ids of the later ones
    old = pd.concat([both.iloc[:-100], new.iloc[:800]], join="inner")
    wanted = tabular.update(model, old, epochs=1, progress=False)
    assert found.challenger.figures() == tabular.evaluate(wanted, later).figures()
    assert found.champion.figures() == tabular.evaluate(model, later).figures()
    paired = found.challenger.paired(found.champion, "log_loss")
    assert found.difference == paired and found.promoted == (paired.high <= 0)


def test_what_cannot_be_retrained_is_refused(model, rows):
    with pytest.raises(ValueError, match="must be of a room that updates models with tables"):
        monitor.retrain(jo.Model("a closed form"), rows["new"])
    with pytest.raises(ValueError, match=r"held must be a share in \(0, 1\), got 2"):
        monitor.retrain(model, rows["new"], held=2)
    with pytest.raises(ValueError, match="held must leave at least 20 rows, got 10"):
        monitor.retrain(model, rows["new"], held=0.01)
    with pytest.raises(ValueError, match="arrays must have the column 'day'"):
        monitor.retrain(model, rows["new"], time="day")
