"""The newsvendor benchmark from end to end; SciPy stands in for stockpyl."""

import json
import sys

import pytest

from benchmarks import newsvendor

NEWSVENDOR = """
import numpy as np
from scipy import stats

def newsvendor_normal(h, p, mean, sd, lead_time=0):
    z, spread = stats.norm.ppf(p / (h + p)), sd * np.sqrt(lead_time + 1)
    return mean * (lead_time + 1) + spread * z, (h + p) * spread * stats.norm.pdf(z)

def newsvendor_poisson(h, p, mean):
    order, d = stats.poisson.ppf(p / (h + p), mean), np.arange(500)
    return order, stats.poisson.pmf(d, mean) @ np.where(d > order, p * (d - order), h * (order - d))
"""
SS = """
import numpy as np
from scipy import stats

def s_s_discrete_exact(h, p, fixed, poisson, mean):
    d = np.arange(600)
    chance, m = stats.poisson.pmf(d, mean), np.zeros(600)
    m[0] = 1 / (1 - chance[0])
    for k in d[1:]:
        m[k] = chance[1 : k + 1] @ m[k - 1 :: -1] * m[0]
    y = np.arange(-600, 400)[:, None]
    expected = np.where(d > y, p * (d - y), h * (y - d)) @ chance
    best = 0, 0, np.inf
    for high in range(400):
        costs = (fixed + np.cumsum(m * expected[600 + high - d])) / np.cumsum(m)
        if costs.min() < best[2]:
            best = high - costs.argmin() - 1, high, costs.min()
    return best
"""


@pytest.fixture
def stockpyl(tmp_path, monkeypatch):
    package = tmp_path / "site" / "stockpyl"
    package.mkdir(parents=True)
    for name, text in {"__init__": "", "newsvendor": NEWSVENDOR, "ss": SS}.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


def test_both_sides_solve_the_same_problems(stockpyl, tmp_path, capsys):
    settings = newsvendor.Settings(
        sys.executable, problems=40, counts=(40, 40, 10, 2), rounds=1, json=tmp_path / "out.json"
    )
    figures = newsvendor.main(settings)
    assert figures == json.loads((tmp_path / "out.json").read_text())
    assert [row["solved_by_stockpyl"] for row in figures.values()] == [40, 40, 10, 2]
    for row in figures.values():
        assert row["largest_difference_in_levels"] < 0.01
        assert row["largest_relative_difference_in_cost"] < 1e-3
        assert row["times_faster"] == row["stockpyl_seconds"][0] / row["seconds"][0]
    assert capsys.readouterr().out.count("compilation") == 4
