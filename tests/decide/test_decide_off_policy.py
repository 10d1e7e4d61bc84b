"""Off-policy evaluation: unbiased over many logs, and right on a randomised campaign."""

import gzip
import os
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from jaxops import decide
from jaxops.decide import off_policy
from jaxops.trust.intervals import interval

ROWS, ARMS, LOGS = 400, 3, 200


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def draw(rng, p):
    return (rng.random((len(p), 1)) > p.cumsum(1)).sum(1)


class World:
    """Rewards that depend on arm and context, and a running policy that follows the context."""

    rng = np.random.default_rng(0)
    weights, running, other = rng.normal(size=(3, 2, ARMS))

    def log(self, rng, rows=ROWS):
        x = rng.normal(size=(rows, 2))
        p = 0.1 / ARMS + 0.9 * softmax(x @ self.running)
        arm, mean = draw(rng, p), 3 + x @ self.weights
        reward = mean[np.arange(rows), arm] + 0.5 * rng.normal(size=rows)
        return x, softmax(2 * x @ self.other), arm, reward, p, mean


@pytest.fixture(scope="module")
def logs():
    """Of each estimator its means over logs; the truth, of each log's own contexts."""
    world, rng, found = World(), np.random.default_rng(1), []
    with pytest.MonkeyPatch.context() as patch:  # 2,000 would take a minute
        patch.setattr(off_policy, "interval", partial(interval, resamples=300))
        for _ in range(LOGS):
            found.append(estimates(world, rng))
    return pd.DataFrame(found)


def estimates(world, rng):
    x, policy, arm, reward, p, mean = world.log(rng)
    taken = p[np.arange(ROWS), arm]
    true, bad = mean, mean + 1 + x[:, :1] * np.array([[1.0, 0, -1]])
    off = np.full(ROWS, 1 / ARMS)  # propensities that are wrong
    return {
        "truth": (policy * mean).sum(1).mean(),
        "ips": decide.ips(policy, arm, reward, p),
        "snips": decide.snips(policy, arm, reward, taken),
        "clipped": decide.ips(policy, arm, reward, taken, clip=2.0),
        "direct, bad model": decide.direct_method(policy, bad),
        "dr": decide.doubly_robust(policy, arm, reward, taken, true),
        "dr, bad model": decide.doubly_robust(policy, arm, reward, taken, bad),
        "dr, bad propensities": decide.doubly_robust(policy, arm, reward, off, true),
        "ips, bad propensities": decide.ips(policy, arm, reward, off),
    }


def mean_and_error(logs, name):
    errors = np.array([v.mean for v in logs[name]]) - logs["truth"].to_numpy()
    return errors.mean(), errors.std(ddof=1) / np.sqrt(len(errors)), errors.std(ddof=1)


@pytest.mark.parametrize("name", ["ips", "dr", "dr, bad model", "dr, bad propensities"])
def test_unbiased(logs, name):
    bias, error, _ = mean_and_error(logs, name)
    assert abs(bias) < 3 * error


def test_snips_bias_is_small_beside_its_spread(logs):
    bias, _, spread = mean_and_error(logs, "snips")
    assert abs(bias) < 0.15 * spread


@pytest.mark.parametrize("name", ["clipped", "direct, bad model", "ips, bad propensities"])
def test_biased(logs, name):
    bias, error, _ = mean_and_error(logs, name)
    assert abs(bias) > 10 * error
    assert name != "clipped" or bias < 0  # rewards of about 3, cut


def test_doubly_robust_is_the_narrowest(logs):
    spread = {name: mean_and_error(logs, name)[2] for name in logs if name != "truth"}
    assert spread["dr"] < 0.9 * spread["snips"] < 0.8 * spread["ips"]
    assert spread["clipped"] < spread["ips"]


@pytest.mark.parametrize("name", ["ips", "snips", "dr"])
def test_intervals_hold_the_truth(logs, name):
    """The value of the policy over all contexts, not over a log's: by a log of 400,000."""
    _, policy, *_, mean = World().log(np.random.default_rng(2), 400_000)
    truth = (policy * mean).sum(1).mean()
    covered = np.mean([v.low <= truth <= v.high for v in logs[name]])
    assert 0.88 < covered < 0.99


def test_formulas_by_hand():
    policy = np.array([[0.5, 0.5], [0.2, 0.8], [1.0, 0.0], [0.6, 0.4]])
    arm, reward = np.array([0, 1, 0, 1]), np.array([1.0, 2.0, 3.0, 4.0])
    propensity = np.array([0.5, 0.4, 0.25, 0.8])
    w = np.array([1.0, 2.0, 4.0, 0.5])
    found = decide.ips(policy, arm, reward, propensity)
    assert found.mean == pytest.approx((1 + 4 + 12 + 2) / 4)
    assert found.effective == pytest.approx(7.5**2 / (1 + 4 + 16 + 0.25))
    assert found.mean_weight == pytest.approx(7.5 / 4) and found.clipped == 0
    many = decide.ips(*(np.concatenate([x] * 10) for x in (policy, arm, reward, propensity)))
    wanted = interval(np.tile(w * reward, 10))
    assert many[:3] == wanted and str(many) == str(wanted)
    assert decide.snips(policy, arm, reward, propensity).mean == pytest.approx(19 / 7.5)
    plus = decide.snips(policy, arm, reward + 10, propensity).mean
    assert plus == pytest.approx(19 / 7.5 + 10)
    cut = decide.ips(policy, arm, reward, propensity, clip=1.5)
    assert cut.mean == pytest.approx((1 + 3 + 4.5 + 2) / 4)
    assert cut.clipped == 0.5 and cut.mean_weight == pytest.approx(7.5 / 4)
    predicted = np.array([[1.0, 2.0], [0.0, 1.0], [2.0, 5.0], [3.0, 3.0]])
    rows = np.array([1.5, 0.8, 2.0, 3.0])
    assert decide.direct_method(policy, predicted).mean == pytest.approx(rows.mean())
    assert decide.direct_method(policy, predicted).effective == 4
    found = decide.doubly_robust(policy, arm, reward, propensity, predicted)
    assert found.mean == pytest.approx((rows + w * np.array([0, 1, 1, 1])).mean())
    exact = decide.doubly_robust(policy, arm, reward, propensity, predicted * 0)
    assert exact.mean == pytest.approx(19 / 4)  # with a model that says 0 it is ips


def test_what_a_bandit_logs_evaluates_another_policy():
    """Thompson sampling learns as it logs; its propensities are exact, and so is IPS on its log."""
    bandit, rates = decide.explore(decide.beta_thompson(3), 0.1), np.array([0.2, 0.4, 0.6])
    choose, update, rng = jax.jit(bandit.choose), jax.jit(bandit.update), np.random.default_rng(0)
    found, policy = [], np.tile([1.0, 0.0, 0.0], (200, 1))  # the worst, which it seldom takes
    for run in range(60):
        state, log = bandit.init(), []
        for step in range(4):
            key = jax.random.fold_in(jax.random.key(run), step)
            arm, p = map(np.asarray, choose(state, np.zeros((50, 0)), key))
            reward = (rng.random(50) < rates[arm]).astype(np.float32)
            state = update(state, np.zeros((50, 0)), arm, reward)
            log.append((arm, reward, p))
        arm, reward, p = map(np.concatenate, zip(*log, strict=True))
        found.append([decide.ips(policy, arm, reward, p).mean, reward[arm == 0].mean()])
    mean, error = np.mean(found, 0), np.std(found, 0, ddof=1) / np.sqrt(60)
    assert abs(mean[0] - 0.2) < 3 * error[0] and error[0] < 0.03


@pytest.fixture(scope="module")
def campaign():
    path = Path(os.environ["JAXOPS_DATA_DIR"], "hillstrom", "hillstrom.csv.gz")
    with gzip.open(path) as file:
        table = pd.read_csv(file)
    arms = ["No E-Mail", "Mens E-Mail", "Womens E-Mail"]
    return table, table["segment"].map(arms.index).to_numpy(), table["visit"].to_numpy(float)


def always(arm, rows):
    return np.tile(np.eye(3)[arm], (rows, 1))


@pytest.mark.data("hillstrom")
def test_hillstrom_arms_and_effects(campaign):
    """Who got which mail was drawn, a third each; `arm`'s own share in place of 1/3 is SNIPS."""
    _, arm, visit = campaign
    assert visit.mean() == pytest.approx(0.14678, abs=5e-6)
    third, found = np.full(len(arm), 1 / 3), []
    for a in range(3):
        policy, own = always(a, len(arm)), np.bincount(arm)[arm] / len(arm)
        value = decide.ips(policy, arm, visit, own)
        assert value.mean == pytest.approx(visit[arm == a].mean(), rel=1e-12)
        assert decide.snips(policy, arm, visit, third).mean == pytest.approx(value.mean, rel=1e-9)
        rough = decide.ips(policy, arm, visit, third)
        assert rough.low < value.mean < rough.high
        assert value.effective == pytest.approx((arm == a).sum())
        found.append(value.mean)
    assert found[1] - found[0] == pytest.approx(0.0766, abs=5e-5)
    assert found[2] - found[0] == pytest.approx(0.0452, abs=5e-5)


@pytest.mark.data("hillstrom")
def test_hillstrom_doubly_robust_is_narrower(campaign):
    """A linear model by arm, each half of the rows predicted from the other."""
    table, arm, visit = campaign
    names = ["recency", "history", "mens", "womens", "newbie"]
    x = np.column_stack([np.ones(len(table)), table[names].to_numpy(float)])
    half, predicted = np.arange(len(x)) % 2 == 0, np.zeros((len(x), 3))
    for side in (half, ~half):
        for a in range(3):
            fit = side & (arm == a)
            predicted[~side, a] = x[~side] @ np.linalg.lstsq(x[fit], visit[fit], rcond=None)[0]
    third = np.full(len(arm), 1 / 3)
    to_men = always(1, len(arm))
    robust = decide.doubly_robust(to_men, arm, visit, third, predicted)
    plain = decide.ips(to_men, arm, visit, third)
    assert robust.mean == pytest.approx(visit[arm == 1].mean(), abs=0.002)
    assert robust.high - robust.low < 0.97 * (plain.high - plain.low)
    # to each the mail of what they bought: men's, where both, for its effect is the greater
    matched = np.eye(3)[np.where(table["mens"] == 1, 1, 2)]
    matched = decide.doubly_robust(matched, arm, visit, third, predicted)
    assert matched.effective == pytest.approx(len(arm) / 3, rel=0.02)
    assert robust.low < matched.mean < robust.high + 0.01


POLICY, ARM, REWARD, P = np.full((4, 2), 0.5), np.array([0, 1, 0, 1]), np.ones(4), np.full(4, 0.5)
WHOLE = np.array([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0], [0.5, 0.5]])


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"propensity": P * [1, 0, 1, 1]},
            r"propensity must be in \(0, 1\], got 0\.0 for the arm taken in row 1",
        ),
        (
            {"propensity": P * 3},
            r"propensity must be in \(0, 1\], got 1\.5 for the arm taken in row 0",
        ),
        (
            {"propensity": WHOLE},
            r"propensity must be above 0 .*, got 0 for arm 1 in row 2, .* 0\.5 \(1 such",
        ),
        ({"propensity": P[:2]}, r"propensity must have shape \(4,\) or \(4, 2\), got \(2,\)"),
        ({"propensity": P * np.nan}, "propensity must be finite, got NaN or infinity in row 0"),
        (
            {"reward": np.array([1, 1, np.nan, 1])},
            "reward must be finite, got NaN or infinity in row 2",
        ),
        ({"reward": REWARD[:3]}, r"reward must have shape \(4,\), .*, got \(3,\)"),
        ({"arm": ARM + 1}, r"arm must be integers in \[0, 2\), got 1 to 2"),
        ({"arm": ARM / 2}, "arm must be integers, .*, got float64, such as 0.0"),
        ({"arm": ARM.astype(str)}, "arm must be integers, .*, got <U.*, such as '0'"),
        ({"propensity": None}, "propensity must be an array with a number for each row, got None"),
        ({"reward": list("abcd")}, "reward must be numbers, got "),
        (
            {"arm": ARM * 0},
            r"policy must .*, got arm 1 \(50.00% of the time\), which is never in the log",
        ),
        (
            {"policy": np.array([[0, 1.0], [1, 0]] * 2)},
            "policy must take the logged arm in some row",
        ),
        (
            {"policy": POLICY * 2},
            r"policy must be probabilities with sum 1, got \[1.0, 1.0\] in row 0",
        ),
        ({"policy": np.array([[2.0, -1.0]] * 4)}, "policy must be probabilities with sum 1"),
        ({"policy": POLICY[0]}, r"policy must have shape \(N, A\), .*, got \(2,\)"),
        ({"clip": 0}, "clip must be above 0, got 0"),
        ({"predicted": POLICY[:2]}, r"predicted must have shape \(4, 2\), .*, got \(2, 2\)"),
        ({"predicted": POLICY * np.inf}, "predicted must be finite, got NaN or infinity in row 0"),
    ],
)
def test_bad_logs(change, message):
    log = {"policy": POLICY, "arm": ARM, "reward": REWARD, "propensity": P, "predicted": POLICY}
    with pytest.raises(ValueError, match=message):
        decide.doubly_robust(**log | change)
    if "predicted" not in change:
        for estimate in (decide.ips, decide.snips):
            rest = {name: column for name, column in log.items() if name != "predicted"}
            with pytest.raises(ValueError, match=message):
                estimate(**rest | change)


def test_one_row_that_decides_gives_no_interval():
    """2,000 rows of an arm that pays 0.3, and one row with a propensity of a millionth."""
    rng = np.random.default_rng(0)
    arm, policy = rng.integers(0, 2, 2001), np.tile([0.0, 1.0], (2001, 1))
    reward = (rng.random(2001) < 0.3).astype(float)
    propensity = np.full(2001, 0.5)
    sound = decide.snips(policy, arm, reward, propensity)
    assert sound.low < 0.3 < sound.high < 0.4 and "effective" not in str(sound)
    arm[-1], reward[-1], propensity[-1] = 1, 1, 1e-6
    predicted = np.full((2001, 2), 0.3)
    for value in (
        decide.ips(policy, arm, reward, propensity),
        decide.snips(policy, arm, reward, propensity),
        decide.doubly_robust(policy, arm, reward, propensity, predicted),
    ):
        assert (value.low, value.high) == (-np.inf, np.inf)
        assert str(value).endswith("[-inf, inf] of 1.0 effective rows")
    assert np.isfinite(decide.snips(policy, arm, reward, propensity, clip=10).high)


def test_estimated_propensities_are_those_of_logistic_regression():
    """Of two folds, each fitted by scikit-learn to the other; columns of any size."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, _, arm, *_ = World().log(np.random.default_rng(3), 300)
    arm, far = np.where(arm == 1, 3, arm), x * np.array([1.0, 1e4]) + 50
    found = decide.estimated_propensity(far, arm, arms=5, folds=2)
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found[:, [1, 4]] == 0).all()
    scaled = (far - far.mean(0)) / far.std(0)
    matched = np.zeros(300, int)
    order = np.random.default_rng(0).permutation(300)
    order = order[np.argsort(arm[order], kind="stable")]
    for half in (0, 1):
        mine = order[half::2]
        others = np.setdiff1d(np.arange(300), mine)
        model = linear_model.LogisticRegression(tol=1e-8).fit(scaled[others], arm[others])
        wanted = model.predict_proba(scaled[mine])
        np.testing.assert_allclose(found[mine][:, [0, 2, 3]], wanted, atol=2e-3)
        matched[mine] += 1
    assert (matched == 1).all()


def test_a_row_does_not_move_its_own_estimate():
    """Of a coin, 60 columns that say nothing fit 80 rows; not those that were held out."""
    rng = np.random.default_rng(4)
    x, arm = rng.normal(size=(80, 60)), rng.integers(0, 2, 80)
    found = decide.estimated_propensity(x, arm, arms=2)
    own = off_policy.softmax(x @ off_policy._logistic(x, arm, 2), 1)
    rows = np.arange(80)
    assert found[rows, arm].mean() < 0.6 and own[rows, arm].mean() > 0.8


def test_values_with_estimated_propensities_are_right():
    """Of one arm for all, in the log of a logistic policy; not with one propensity for all."""
    world, rng, errors = World(), np.random.default_rng(5), []
    policy = np.tile(np.eye(ARMS)[2], (ROWS, 1))
    for _ in range(20):
        x, *_, mean = world.log(rng)
        arm = draw(rng, softmax(0.5 * x @ world.running))
        reward = mean[np.arange(ROWS), arm] + 0.5 * rng.normal(size=ROWS)
        truth, estimate = (policy * mean).sum(1).mean(), decide.estimated_propensity(x, arm, ARMS)
        values = []
        for propensity in (estimate, np.full(ROWS, 1 / ARMS)):
            log = off_policy._log(policy, arm, reward, propensity, np.inf)  # without intervals
            values.append(log.weight @ log.reward / log.weight.sum() - truth)
        errors.append(values)
    bias, error = np.mean(errors, 0), np.std(errors, 0, ddof=1) / np.sqrt(len(errors))
    assert abs(bias[0]) < 3 * error[0] and abs(bias[1]) > 10 * error[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": np.ones(6)}, r"must have shapes \(N, D\) and \(N,\), got \(6,\)"),
        (
            {"context": np.full((6, 1), np.nan)},
            "context must be finite, got NaN or infinity in row 0",
        ),
        ({"arm": np.array([0, 0, 0, 0, 0, 1])}, "got 2 arms, and arm 1 in 1 rows"),
        ({"arm": np.zeros(6, int)}, "at least 2 arms, .* got 1 arms"),
        ({"arms": 1}, r"arm must be integers in \[0, 1\), got 0 to 1"),
        ({"folds": 1}, "folds must be at least 2, got 1"),
    ],
)
def test_propensities_that_cannot_be_estimated(change, message):
    given = {"context": np.ones((6, 1)), "arm": np.array([0, 0, 0, 1, 1, 1]), "arms": 2}
    with pytest.raises(ValueError, match=message):
        decide.estimated_propensity(**given | change)
