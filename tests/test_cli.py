"""The command line, in this process; as a user starts it, in a process each, slowly."""

import base64
import dataclasses
import importlib
import inspect
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import jaxops as jo
from jaxops import __main__, cli, recommend, tabular
from jaxops.model import scoring
from jaxops.model.exported import run as exported

N = 120
AGE = np.arange(N) % 40 + 20
TABLE = {"age": AGE, "plan": np.array(["a", "b"], object)[np.arange(N) % 2], "left": AGE < 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import pandas as pd

    folder = tmp_path_factory.mktemp("cli")
    pd.DataFrame(TABLE).to_csv(folder / "customers.csv", index=False)
    pd.DataFrame(TABLE).drop(columns="left").to_parquet(folder / "new.parquet")
    code = cli.main(
        [
            "fit",
            "tabular",
            f"{folder}/customers.csv",
            "--label",
            "left",
            "--method",
            "MLP((4,))",
            "--budget",
            "20s",
            "--out",
            f"{folder}/models/churn.safetensors",
        ]
    )
    assert code == 0
    return folder


def model_file(folder):
    return str(folder / "models" / "churn.safetensors")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_predict_writes_what_the_model_answers(folder, kind, monkeypatch, capsys):
    import pandas as pd

    monkeypatch.setattr(scoring, "ROWS", 50)  # three parts
    out = folder / f"scores.{kind}"
    assert (
        cli.main(["predict", model_file(folder), f"{folder}/customers.csv", "--out", str(out)]) == 0
    )
    assert f"written: {out}, 120 rows" in capsys.readouterr().out
    read = pd.read_csv(out) if kind == "csv" else pd.read_parquet(out)
    wanted = jo.load(model_file(folder)).predict(folder / "customers.csv").frame()
    assert read.columns.tolist() == wanted.columns.tolist()
    assert read["id"].tolist() == list(range(N))
    assert read["label"].astype(str).tolist() == wanted["label"].tolist()
    np.testing.assert_allclose(read["p(True)"], wanted["p(True)"], atol=1e-6)
    assert [path.name for path in folder.glob(".scores*")] == []


def test_an_error_in_a_part_names_the_rows_of_the_file(folder, tmp_path, monkeypatch, capsys):
    lines = (folder / "customers.csv").read_text().splitlines()
    place = lines[0].split(",").index("age")
    fields = lines[1 + 73].split(",")
    lines[1 + 73] = ",".join([*fields[:place], "old", *fields[place + 1 :]])
    (tmp_path / "odd.csv").write_text("\n".join(lines))
    monkeypatch.setattr(scoring, "ROWS", 50)
    command = ["predict", model_file(folder), f"{tmp_path}/odd.csv", "--out", f"{tmp_path}/o.csv"]
    assert cli.main(command) == 1
    said = capsys.readouterr().err
    assert "odd.csv, of rows 50 to 99: " in said and "got 'old' in row 23" in said


def test_evaluate_show_bench(folder, capsys):
    assert cli.main(["evaluate", model_file(folder), f"{folder}/customers.csv"]) == 0
    printed = capsys.readouterr().out
    scored = tabular.evaluate(jo.load(model_file(folder)), TABLE)
    assert printed == f"120 rows\n{scored}\n"
    assert cli.main(["show", model_file(folder)]) == 0
    printed = capsys.readouterr().out
    for word in (
        "parameters",
        "room",
        "tabular",
        "False, True",
        "features float[",
        "age",
        "jaxops version",
        "auc",
    ):
        assert word in printed
    page = folder / "page.html"
    command = ["show", model_file(folder), "--html", str(page)]
    assert cli.main([*command, "--data", f"{folder}/customers.csv"]) == 0
    shown = page.read_text()
    value = f"{scored.figures()['auc']:.4g}"
    assert "<h2>120 rows</h2>" in shown and f"<td>auc</td><td>{value}</td>" in shown
    pictures = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)"', shown)
    names = ["confusion", "reliability", "ROC curve", "values of the rows"]
    assert [name for name, _ in pictures] == names
    for _, data in pictures:
        image = Image.open(io.BytesIO(base64.b64decode(data))).convert("L")
        assert image.width > 300 and np.ptp(np.asarray(image)) > 100
    assert cli.main(command) == 0 and "<img" not in page.read_text()
    capsys.readouterr()
    assert cli.main(["bench", model_file(folder), f"{folder}/new.parquet", "--rounds", "1"]) == 0
    assert "rows/s" in capsys.readouterr().out
    assert cli.main(["size", model_file(folder), "--hardware", "A100"]) == 0
    assert "A100" in capsys.readouterr().out


def test_audit_writes_a_page(folder, capsys):
    out = folder / "audit.html"
    command = ["audit", model_file(folder), f"{folder}/customers.csv", "--levels", "5", "--out"]
    assert cli.main([*command, f"{folder}/audit.pdf"]) == 1
    assert "out must end in .html, got " in capsys.readouterr().err
    assert cli.main([*command, str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"given.\nwritten: {out}\n")  # no protected columns
    page = out.read_text()
    accuracy = tabular.evaluate(jo.load(model_file(folder)), TABLE).figures()["accuracy"]
    assert "<h1>Audit of churn</h1>" in page and f"<td>120</td><td>{accuracy:.4g}</td>" in page
    assert "<td>outliers</td><td>5</td>" in page and "<h2>Explanations</h2><div" in page


def test_export_writes_a_program(folder, tmp_path, capsys):
    pytest.importorskip("flatbuffers")
    command = ["export", model_file(folder), f"{tmp_path}/out", "--platforms", "cpu, cuda,tpu"]
    assert cli.main([*command, "--batch", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"written: {tmp_path}/out, " in printed
    found = exported.load(tmp_path / "out", printed.split()[-1])
    assert found.manifest["platforms"] == ["cpu", "cuda", "tpu"] and found.manifest["batch"] == 2
    rows = {name: TABLE[name][:5] for name in ("age", "plan")}
    wanted = jo.load(model_file(folder)).predict(rows).probabilities
    np.testing.assert_allclose(found.predict(rows)["probabilities"], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "MODEL", "x", "--platforms", "gpu"], "platforms must be some of cpu, cuda,"),
        (["export", "MODEL", "x", "--length", "0"], 'length must be "any" or a number of at'),
        (["export", "MODEL", "x", "--k", "3"], "options must be none for this model, got k"),
        (["export", "MODEL", "x", "--levels", "0.5"], "options must be none for this model, got l"),
        (["predict", "MODEL", "none.csv", "--out", "x.csv"], "none.csv"),
        (
            ["predict", "MODEL", "CSV", "--out", "x.txt"],
            "out must end in .parquet, .csv or / (a folder), got x.txt",
        ),
        (["evaluate", "MODEL", "PARQUET"], "must have a column 'left', got age, plan"),
        (["show", "CSV"], "path must be a model file"),
        (["show", "MODEL", "--data", "CSV"], "data must be left out without --html, got"),
        (["bench", "MODEL", "CSV", "--rounds", "0"], "rounds must be at least 1, got 0"),
        (["size", "MODEL", "--hardware", "none"], "hardware must be"),
        (
            ["fit", "tabular", "CSV", "--label", "left", "--out", "m", "--method", "open('x')"],
            "method must be such as \"MLP(dropout=0.1)\", of jaxops.tabular, got open('x')",
        ),
    ],
)
def test_an_error_is_one_line(folder, capsys, arguments, message):
    places = {
        "MODEL": model_file(folder),
        "CSV": f"{folder}/customers.csv",
        "PARQUET": f"{folder}/new.parquet",
    }
    arguments = [places.get(word, word) for word in arguments]
    assert cli.main(arguments) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("jaxops: error: ") and printed.count("\n") == 1
    assert message in printed
    with pytest.raises((ValueError, OSError)):
        cli.main([*arguments, "--debug"])


def test_a_class_says_itself_what_it_refuses():
    with pytest.raises(ValueError, match=r"^l2 must be above 0, got -1"):
        cli.method(recommend, "EASE(l2=-1)")
    with pytest.raises(ValueError, match=r"method must have arguments that fit, .*'breadth'"):
        cli.method(tabular, "MLP((8,), embedding=Periodic(breadth=4))")


@pytest.mark.parametrize(
    "kind",
    [
        cli.Tabular,
        cli.Survival,
        cli.Text,
        cli.Vision,
        cli.Recommend,
        cli.Forecast,
        cli.Language,
        cli.Customers,
    ],
)
def test_the_options_of_a_room_are_those_of_its_fit(kind):
    room = importlib.import_module(f"jaxops.{kind.__name__.lower()}")
    known = inspect.signature(room.fit).parameters
    assert {field.name for field in dataclasses.fields(kind)} - {"out"} <= known.keys()


def test_a_command_that_cannot_be_read():
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fit", "tabular"])
    assert stopped.value.code == 2


def test_without_its_extra_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    monkeypatch.delitem(sys.modules, "jaxops.cli")
    assert __main__.main() == 1
    printed = capsys.readouterr().err
    assert printed.startswith("jaxops: error: ") and printed.count("\n") == 1
    assert "jaxops[cli]" in printed


@pytest.mark.slow
def test_commands_as_processes(tmp_path, folder):
    def run(*words, code=0):
        command = [sys.executable, "-m", "jaxops", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    data, model = folder / "customers.csv", tmp_path / "m.safetensors"
    printed = run(
        "fit", "tabular", data, "--label", "left", "--method", "MLP((4,))", "--out", model
    )
    assert "validation, 18 rows" in printed and f"written: {model}" in printed
    assert "120 rows" in run("predict", model, data, "--out", tmp_path / "scores.parquet")
    assert run("show", data, code=1).startswith("jaxops: error: path must be a model file")
