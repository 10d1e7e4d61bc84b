"""The table of `benchmarks.statistical`, of made-up hours and the quick methods."""

import numpy as np

from benchmarks import statistical


def test_a_line_for_each_method(monkeypatch, capsys):
    day = 10 + np.sin(np.arange(24) / 24 * 2 * np.pi)
    hours = {"train": np.tile(day, 6), "test": np.tile(day, 2)}
    noise = np.random.default_rng(0).normal(size=(3, 192)).astype(np.float32) / 10
    made = {
        "train": [
            hours["train"][24 * (i % 2) :] + x[24 * (i % 2) : 144] for i, x in enumerate(noise)
        ],
        "test": [hours["test"] + x[144:] for x in noise],
    }
    quick = {"seasonal naive", "naive 2"}
    ours = statistical.ours
    monkeypatch.setattr(statistical, "hourly", made.get)
    monkeypatch.setattr(
        statistical, "ours", lambda *a: {n: form for n, form in ours(*a).items() if n in quick}
    )
    perfect = lambda *_: {"statsforecast's": lambda: np.stack(made["test"])}  # noqa: E731
    monkeypatch.setattr(statistical, "theirs", perfect)
    statistical.main(statistical.Settings())
    said, *table = capsys.readouterr().out.splitlines()
    assert said == "3 series, 48 hours ahead"
    rows = {line.split("|")[1].strip(): line.split("|") for line in table}
    assert quick < set(rows) and float(rows["statsforecast's"][2]) == 0
    assert 0 < float(rows["seasonal naive"][2]) < 3 and not rows["naive 2"][4].strip()
