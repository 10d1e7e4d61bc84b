"""Model cards: made of the file and the rows, with what is unknown named."""

import json

import numpy as np
import pandas as pd
import pytest

import jaxops as jo
from jaxops import cli, compress, fairness, tabular
from jaxops.model.finished import Model

SECTIONS = [  # of Mitchell et al. 2019, in their order
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Evaluation data",
    "Training data",
    "Quantitative analyses",
    "Ethical considerations",
    "Caveats and recommendations",
]


def headings(card):
    return [*dict.fromkeys(heading.split(":")[0] for heading in card.sections)]


def test_a_card_without_rows_names_what_is_not_given(model):
    card = fairness.model_card(model)
    assert headings(card) == SECTIONS
    for name in ("Intended use", "Factors", "Evaluation data", "Ethical considerations"):
        assert card.sections[name] == "Not given."
    told = {row["what"]: row["value"] for row in card.sections["Training data"]}
    assert told["fingerprint"] == model.about["data"] and told["rows"] == str(model.about["rows"])
    figures = card.sections["Quantitative analyses: validation"]
    assert {row["metric"]: row["value"] for row in figures} == model.about["validation"]
    limits = card.sections["Caveats and recommendations"]
    assert "nothing is known of groups" in limits and "have no intervals" in limits
    (age,) = [row for row in card.sections["Training data: columns, on the validation rows"]
              if row["column"] == "age"]  # fmt: skip
    assert 30 < age["mean"] < 50 and age["missing"] == 0


@pytest.mark.slow
def test_a_card_of_rows_has_intervals_and_groups(model, table, tmp_path, capsys):
    table = table | {"sex": np.r_[["x"] * 4, table["sex"][4:]]}
    pd.DataFrame(table).to_csv(tmp_path / "rows.csv", index=False)
    fair = fairness.thresholds(model, table, protected=["sex"])
    jo.save(tmp_path / "plain.safetensors", model)
    arguments = [tmp_path / "plain.safetensors", tmp_path / "rows.csv", "--protected", "sex",
                 "--use", "To call customers.", "--out", tmp_path / "plain.md"]  # fmt: skip
    assert cli.main(["card", *map(str, arguments)]) == 0
    assert "written:" in capsys.readouterr().out
    text = (tmp_path / "plain.md").read_text()
    assert text.startswith("# Model card: plain.safetensors\n\n## Model details\n")
    scored = tabular.evaluate(model, table)
    low, high = scored.interval("auc")[1:]
    assert f"{low:.4g}" in text and f"{high:.4g}" in text
    found = fairness.report(model, table, protected=["sex"])
    one = found.figures["true positive rate"]["f"]
    assert f"{one.value:.4f} [{one.low:.4f}, {one.high:.4f}]" in text
    assert "To call customers." in text and "x (4 rows)" in text
    assert f"{found.disparities['demographic parity difference'].value:.4f}" in text
    card = fairness.model_card(fair, table, protected=["sex"])
    other, page = card.markdown(), card.html()
    assert "thresholds for" in other and "demographic parity" in other
    assert page.count("<img") == len(card.figures) > 1
    assert page.count("<h2>") == len(card.sections) + len(card.figures)
    assert json.loads(json.dumps(card.sections["Factors"])).startswith("Groups by sex: f (")


def test_a_card_tells_of_compression_and_of_bare_tasks(model):
    small = fairness.model_card(compress.quantise(model))
    told = {row["what"]: row["value"] for row in small.sections["Model details"]}
    assert told["compressed by"] == "quantise"
    bare = fairness.model_card(Model(model.task, model.state))
    assert headings(bare) == SECTIONS and bare.sections["Training data"] == "Not given."
    assert "drift of its input cannot be seen" in bare.sections["Caveats and recommendations"]


def test_cards_refuse(model, table, tmp_path, capsys):
    with pytest.raises(ValueError, match="rows must be given for the groups of sex, got None"):
        fairness.model_card(model, protected=["sex"])
    with pytest.raises(ValueError, match="rows must be left out for a model without a reader"):
        fairness.model_card(Model(model.task, model.state), table)
    with pytest.raises(ValueError, match=r"out must end in .md or .html, got card.pdf"):
        fairness.model_card(model).write("card.pdf")
    jo.save(tmp_path / "m.safetensors", model)
    pd.DataFrame(table).to_csv(tmp_path / "rows.csv", index=False)
    names = [tmp_path / "m.safetensors", tmp_path / "rows.csv"]
    options = ["--protected", "race", "--out", tmp_path / "card.md"]
    assert cli.main(["card", *map(str, [*names, *options])]) == 1
    assert "must have a column 'race'" in capsys.readouterr().err
