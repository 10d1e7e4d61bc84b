"""The table of `benchmarks.explain_shap`, of few rows."""

import pytest

from benchmarks import explain_shap


@pytest.mark.slow
@pytest.mark.data("adult")
def test_estimates_are_near_the_exact_values(capsys):
    settings = explain_shap.Settings(
        rows=2, background=4, samples=400, rounds=1, train=500, shap=False
    )
    explain_shap.main(settings)
    (line,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith("| jaxops")]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[2:4] == ["2", "400"] and 0 < float(cells[6]) < 0.1
