"""One call a job on logs: fit, predict, evaluate, the file, the command line."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import jaxops as jo
from jaxops import cli, customers, tabular

RNG = np.random.default_rng(0)
COUNT = 400


def simulated(count=COUNT, days=240):
    """A log of a shop: rates, chances to leave and mean amounts differ by customer."""
    born = RNG.uniform(0, 120, count)[:, None]
    rate = RNG.gamma(0.9, 0.08, count)[:, None]
    times = born + np.cumsum(np.pad(RNG.exponential(1 / rate, (count, 60)), ((0, 0), (1, 0))), 1)
    leave = RNG.uniform(size=(count, 59)) < RNG.beta(1, 5, count)[:, None]
    leave = np.pad(leave, ((0, 0), (2, 0)))  # not after the first purchase, as BG/NBD has it
    kept = (times < days) & (np.cumsum(leave, 1) == 0)
    times[:, 0] = born[:, 0]
    amount = RNG.gamma(5, 1, (count, 61)) * (30 / RNG.gamma(4, 1, count))[:, None]
    who = np.broadcast_to(np.arange(count)[:, None] + 1000, times.shape)
    day = np.datetime64("2023-01-01") + np.floor(times[kept]).astype("timedelta64[D]")
    return pd.DataFrame({"customer": who[kept], "day": day, "paid": amount[kept].round(2)})


LOG = simulated()
SEEN = LOG[LOG["day"] <= "2023-05-31"]
NAMES = {"time": "day", "amount": "paid", "unit": "week", "horizon": 12, "cutoff": "2023-05-31"}


@pytest.fixture(scope="module")
def model():
    return customers.fit(LOG, **NAMES)


def test_what_it_tells(model):
    answer = model.predict(LOG, cutoff="2023-05-31")
    assert answer.ids.tolist() == sorted(SEEN["customer"].unique())
    assert answer.frame().columns.tolist() == ["id", "alive", "returns", "purchases", "value"]
    assert ((answer.alive > 0) & (answer.alive <= 1)).all()
    assert (answer.purchases > 0).all() and (answer.value > 0).all()
    # the same of a summary, and by hand
    known = customers.summary(
        customers.purchases(LOG, time="day", amount="paid"), "2023-05-31", "week"
    )
    for given in (known, SEEN):  # by default the cut-off is that of training
        again = model.predict(given)
        np.testing.assert_allclose(again.purchases, answer.purchases, rtol=1e-5)
    base = model.task
    each = base.spend.mean(base.of_spend, known.frequency, known.monetary_value)
    np.testing.assert_allclose(answer.value, answer.purchases * each, rtol=1e-5)
    longer = model.predict(known, horizon=24)
    assert (longer.purchases > answer.purchases).all()
    np.testing.assert_array_equal(longer.alive, answer.alive)
    less = model.predict(known, horizon=24, discount=0.05)
    assert (less.value < longer.value).all()
    assert (model.predict(known, horizon=np.inf, discount=0.05).value > less.value).all()


def test_one_customer_alone_is_told_as_among_all(model):
    whole = model.predict(SEEN)
    who = whole.ids[whole.alive.argmin()]
    one = model.predict(SEEN[SEEN["customer"] == who])
    assert one.alive[0] == pytest.approx(whole.alive.min(), rel=1e-4) and one.alive[0] < 0.5
    with pytest.raises(
        ValueError, match=r"cutoff must be given, as the log goes on to 2023-08-\d\d, .*2023-05-31"
    ):
        model.predict(LOG)


def test_a_log_that_is_read_already():
    table = LOG.rename(columns={"customer": "who"})
    log = customers.purchases(table, customer="who", time="day", period="week")
    weeks = customers.fit(log, horizon=60, cutoff="2023-05-28")
    assert (weeks.reader.customer, weeks.reader.time) == ("who", "day")
    assert weeks.reader.period == "week" and weeks.reader.unit is None
    answer = weeks.predict(table, cutoff="2023-05-28")
    np.testing.assert_allclose(answer.alive, weeks.predict(log, cutoff="2023-05-28").alive)
    days = customers.purchases(table, customer="who", time="day")
    with pytest.raises(ValueError, match=r"log must have the period 'week', .* got 'day'"):
        weeks.predict(days)
    with pytest.raises(ValueError, match="refunds must be left out for Purchases"):
        customers.fit(log, horizon=60, refunds="drop")


def test_its_facts(model):
    about = model.about
    assert about["customers"] == len(model.predict(LOG, cutoff="2023-05-31").ids)
    assert (
        np.isfinite(about["log_likelihood"])
        and abs(about["correlation of frequency and mean amount"]) < 0.3
    )
    table = model.task.estimates()
    assert table["name"].tolist() == ["r", "alpha", "a", "b", "p", "q", "v"]
    assert (table["low"] < table["value"]).all() and (table["value"] < table["high"]).all()
    assert model.room == "customers" and model.reader.cutoff == "2023-05-31"


def test_what_came_after(model):
    scored = customers.evaluate(model, LOG)
    whole = LOG.assign(week=(LOG["day"] - pd.Timestamp("2023-05-31")).dt.days / 7)
    later = whole[(whole["week"] > 0) & (whole["week"] <= 12)]
    money = later.groupby("customer")["paid"].sum().reindex(scored.ids, fill_value=0)
    number = later.groupby("customer")["day"].nunique().reindex(scored.ids, fill_value=0)
    np.testing.assert_allclose(scored.parts["actual"], money, atol=1e-9)
    np.testing.assert_array_equal(scored.parts["actual_purchases"], number)
    figures = scored.figures()
    expected = scored.parts["expected"]
    stats, metrics = pytest.importorskip("scipy.stats"), pytest.importorskip("sklearn.metrics")
    assert figures["mae"] == pytest.approx(np.abs(expected - money).mean())
    assert figures["spearman"] == pytest.approx(stats.spearmanr(expected, money).statistic)
    assert figures["total_error"] == pytest.approx(expected.sum() - money.sum())
    assert figures["total_ratio"] == pytest.approx(expected.sum() / money.sum())
    auc = metrics.roc_auc_score(number > 0, scored.parts["returns"])
    assert figures["return_auc"] == pytest.approx(auc)
    squared = (scored.parts["returns"] - (number > 0)) ** 2
    assert figures["return_brier"] == pytest.approx(squared.mean())
    low, high = scored.interval("total_ratio")[1:]
    assert low < 1 < high and figures["gini"] > 0.3
    purchases = customers.evaluate(customers.fit(LOG, **NAMES | {"amount": None}), LOG)
    assert purchases.figures()["spearman"] > 0.2 and "purchases_mae" not in purchases.figures()


CHILD = """
import sys, numpy as np, jaxops as jo
answer = jo.load(sys.argv[1]).predict(sys.argv[2])
np.savez(sys.argv[3], **{name: x for name, x in answer._asdict().items()})
"""


@pytest.mark.parametrize("method", ["BGNBD", pytest.param("ParetoNBD", marks=pytest.mark.slow)])
def test_the_file_answers_the_same_in_a_new_process(method, model, tmp_path):
    if method == "ParetoNBD":
        model = customers.fit(LOG, customers.ParetoNBD(), **NAMES)
    jo.save(tmp_path / "m.safetensors", model)
    SEEN.to_parquet(tmp_path / "log.parquet")
    arguments = [tmp_path / "m.safetensors", tmp_path / "log.parquet", tmp_path / "a.npz"]
    subprocess.run([sys.executable, "-c", CHILD, *map(str, arguments)], check=True, timeout=120)
    wanted, got = model.predict(SEEN), np.load(tmp_path / "a.npz")
    assert got["ids"].tolist() == wanted.ids.tolist()
    for name in ("alive", "returns", "purchases", "value"):
        np.testing.assert_allclose(got[name], getattr(wanted, name), rtol=1e-5)
    again = jo.load(tmp_path / "m.safetensors")
    assert again.reader == model.reader and again.task.method == model.task.method
    assert again.about == model.about


@pytest.mark.slow
def test_covariates(model, tmp_path):
    who = np.unique(LOG["customer"])
    table = pd.DataFrame({"customer": who, "old": who % 2, "income": RNG.normal(size=len(who))})
    paced = customers.fit(LOG, covariates=table, **NAMES)
    assert paced.task.covariates == ("old", "income")
    assert paced.task.estimates()["name"].tolist()[4:6] == ["old", "income"]
    assert paced.about["log_likelihood"] >= model.about["log_likelihood"] - 1e-2
    answer = paced.predict(SEEN, covariates=table.sample(frac=1, random_state=0))
    jo.save(tmp_path / "m.safetensors", paced)
    again = jo.load(tmp_path / "m.safetensors").predict(SEEN, covariates=table)
    np.testing.assert_allclose(again.value, answer.value, rtol=1e-6)
    figures = customers.evaluate(paced, LOG, covariates=table).figures()
    assert figures["total_ratio"] == pytest.approx(1, abs=0.5)
    for call, message in [
        (lambda: paced.predict(SEEN), "covariates must be old, income, as in training, got None"),
        (lambda: model.predict(SEEN, covariates=table), "covariates must be None, as in training"),
        (lambda: paced.predict(SEEN, covariates=table[3:]), "a row for every customer, got 1000"),
        (lambda: paced.predict(SEEN, covariates=table.assign(old="x")), "'old' must be numbers"),
        (lambda: paced.predict(SEEN, covariates=pd.concat([table, table])), "must be distinct"),
        (
            lambda: paced.predict(SEEN, covariates=table.assign(old="2020-01-01")),
            "column 'old' must be numbers, got dates",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.slow
def test_opportunities():
    months = customers.fit(
        LOG,
        customers.BGBB(),
        time="day",
        unit="month",
        period="month",
        horizon=2,
        cutoff="2023-05-31",
    )
    answer = months.predict(LOG, cutoff="2023-05-31")
    assert answer.value is None and (answer.purchases <= 2).all()
    with pytest.raises(ValueError, match=r"horizon must be a whole number for BGBB, got 1\.5"):
        months.predict(LOG, horizon=1.5, cutoff="2023-05-31")
    with pytest.raises(
        ValueError, match=r"recency must be whole numbers .* read the log with period"
    ):
        customers.fit(LOG, customers.BGBB(), time="day", unit="week", horizon=2)


def test_the_command_line(tmp_path, capsys):
    LOG.to_csv(tmp_path / "log.csv", index=False)
    data, file, out = (str(tmp_path / name) for name in ("log.csv", "base.safetensors", "told.csv"))
    own = ["--customer", "customer", "--time", "day", "--amount", "paid", "--unit", "week"]
    own += ["--horizon", "12", "--cutoff", "2023-05-31"]
    assert cli.main(["fit", "customers", data, *own, "--out", file]) == 0
    assert cli.main(["predict", file, data, "--out", out]) == 1  # the log goes on
    assert cli.main(["predict", file, data, "--out", out, "--cutoff", "2023-08-31"]) == 0
    told = pd.read_csv(out)
    assert told.columns.tolist() == ["id", "alive", "returns", "purchases", "value"]
    assert len(told) == LOG["customer"].nunique()
    assert cli.main(["evaluate", file, data]) == 0
    assert cli.main(["show", file]) == 0
    printed = capsys.readouterr().out
    assert "customers" in printed and "spearman" in printed and "log_likelihood" in printed


def test_a_snapshot_is_a_table_for_the_tabular_room():
    log = customers.purchases(LOG, time="day", amount="paid")
    # the labels of training end before the cut-off of the test
    table = customers.snapshots(log, ["2023-03-15", "2023-05-01"], 8, unit="week", label="returned")
    later = customers.snapshots(log, ["2023-06-30"], 8, unit="week", label="returned")
    model = tabular.fit(
        table, tabular.MLP((8,)), label="returned", groups="customer", drop=["cutoff"],
        epochs=15, progress=False,
    )  # fmt: skip
    assert tabular.evaluate(model, later).figures()["auc"] > 0.6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: customers.fit(LOG, **NAMES | {"horizon": 0}),
            "horizon must be finite and above 0, got 0",
        ),
        (
            lambda: customers.fit(LOG.drop_duplicates("customer"), **NAMES),
            "a customer with a second purchase",
        ),
        (lambda: customers.fit(LOG.assign(paid=0.0), **NAMES), "amount must be above 0"),
        (
            lambda: customers.evaluate(customers.fit(LOG, **NAMES), LOG, horizon=60),
            "cutoff must be at most",
        ),
        (lambda: customers.outlook(jo.Model("other"), None, 1.0), "of the customers room"),
    ],
)
def test_what_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_outlook_that_cannot_be(model):
    known = model.reader.summary(SEEN)
    for options, message in [
        ({"horizon": np.inf}, "finite without a discount, got inf"),
        ({"horizon": -1}, "horizon must be above 0"),
        ({"discount": -0.1}, "discount must be at least 0"),
        ({"cutoff": "2023-05-31"}, "cutoff must be None for a Summary"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.predict(known, **options)
    with pytest.raises(ValueError, match="monetary_value must be given"):
        model.predict(known._replace(monetary_value=None))


def test_amounts_without_a_mean():
    level = dict(zip(range(1000, 1000 + COUNT), np.exp(4 * RNG.normal(size=COUNT)), strict=True))
    heavy = LOG.assign(paid=LOG["customer"].map(level) * RNG.gamma(3, 1, len(LOG)) + 1e-3)
    with pytest.raises(ValueError, match="amount must have a finite mean over customers"):
        customers.fit(heavy, **NAMES)
