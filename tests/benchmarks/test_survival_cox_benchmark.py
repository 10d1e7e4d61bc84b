"""The tables of `benchmarks.survival_cox`, of few rows."""

import pytest

from benchmarks import survival_cox


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_line_for_each_side(capsys):
    pytest.importorskip("lifelines")
    pytest.importorskip("sksurv")
    survival_cox.main(survival_cox.Settings(rows=600, others=300, features=2, rounds=1))
    regressions, concordances = capsys.readouterr().out.split("| concordance")
    assert "lifelines" in concordances
    rows = {line.split("|")[1].strip(): line.split("|") for line in regressions.split("\n") if line}
    assert {"jaxops", "jaxops, 600 rows", "lifelines", "scikit-survival"} < set(rows)
    for other in ("lifelines", "scikit-survival"):
        assert float(rows[other][6]) < 1e-3
