"""The losses of networks beside plain loops, and what training by them finds."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxops as jo
from jaxops import survival

RNG = np.random.default_rng(0)
B, D = 24, 3
X = RNG.normal(size=(B, D)).astype(np.float32)
TIME = RNG.integers(1, 9, B).astype(np.float32)
EVENT = (RNG.random(B) < 0.6).astype(np.int32)
CAUSE = (EVENT * RNG.integers(1, 3, B)).astype(np.int32)
CUTS = [2.0, 4.0, 6.5]


class Table(nn.Module):
    """Outputs that are parameters: those of a row for each row."""

    outputs: int
    members: int = 0

    @nn.compact
    def __call__(self, x):
        shape = (self.members, self.outputs) if self.members else (self.outputs,)
        kernel = self.param("kernel", nn.initializers.normal(1.0), (x.shape[-1], *shape))
        return jnp.tensordot(x, kernel, 1)


def started(task, batch):
    params, extra = task.init(jax.random.key(0), batch)

    def loss(params, batch):
        value, out = task.loss(params, extra, batch, jax.random.key(1), False)
        return value / out.weight

    return params, jax.jit(loss)


def batch_of(event, **more):
    return {"features": X, "time": TIME, "event": event, **more}


def check_padding(task, params, loss, batch):
    """Rows of weight 0 change neither the loss nor its gradient, whatever they hold."""
    slopes = jax.jit(jax.value_and_grad(loss))
    value, gradient = slopes(params, batch)
    padded = {name: np.concatenate([column, column[:4] + 1]) for name, column in batch.items()}
    padded["event"][-4:] = 1
    padded["features"][-1] = np.nan
    padded["mask"] = np.concatenate([np.ones(B), np.zeros(4)]).astype(np.float32)
    again, other = slopes(params, padded)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, other
    )
    return float(value), gradient


def test_deep_surv_is_the_partial_likelihood():
    task = survival.deep_surv(Table(1), D)
    params, loss = started(task, batch_of(EVENT))
    value, _ = check_padding(task, params, loss, batch_of(EVENT))
    score = np.asarray(X @ params["kernel"])[:, 0]
    wanted = sum(
        np.log(np.exp(score[TIME[i] <= TIME]).sum()) - score[i] for i in np.flatnonzero(EVENT)
    )
    assert value * B == pytest.approx(wanted, rel=1e-5)
    made = survival.cox_regression(X, TIME, EVENT, ties="breslow")
    best = {"kernel": jnp.asarray(made.coefficients, jnp.float32)[:, None]}
    np.testing.assert_allclose(
        jax.jit(jax.grad(loss))(best, batch_of(EVENT))["kernel"], 0, atol=1e-5
    )
    assert float(loss(best, batch_of(EVENT))) * B == pytest.approx(-made.log_likelihood, rel=1e-5)


@pytest.mark.filterwarnings("ignore:::(lifelines|autograd|pandas|formulaic)")
def test_deep_surv_with_entry_times_is_the_partial_likelihood():
    """Of rows that are at risk from their entry on; times differ, where all methods are one."""
    pd, lifelines = pytest.importorskip("pandas"), pytest.importorskip("lifelines")
    time = TIME + np.arange(B, dtype=np.float32) / 64
    entry = np.where(np.arange(B) % 3 == 0, 0, time * np.linspace(0.1, 0.9, B)).astype(np.float32)
    batch = batch_of(EVENT, time=time, entry=entry)
    task = survival.deep_surv(Table(1), D, entry=True)
    assert [column.name for column in task.columns] == ["features", "time", "event", "entry"]
    params, loss = started(task, batch)
    value, _ = check_padding(task, params, loss, batch)
    score = np.asarray(X @ params["kernel"], np.float64)[:, 0]
    wanted = sum(
        np.log(np.exp(score[(entry < time[i]) & (time[i] <= time)]).sum()) - score[i]
        for i in np.flatnonzero(EVENT)
    )
    assert value * B == pytest.approx(wanted, rel=1e-5)
    made = survival.cox_regression(X, time, EVENT, entry=entry)
    best = {"kernel": jnp.asarray(made.coefficients, jnp.float32)[:, None]}
    slope = jax.jit(jax.grad(loss))(best, batch)["kernel"]
    np.testing.assert_allclose(slope, 0, atol=1e-5)
    assert float(loss(best, batch)) * B == pytest.approx(-made.log_likelihood, rel=1e-5)
    frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(time=time, event=EVENT, entry=entry)
    theirs = lifelines.CoxPHFitter().fit(frame, "time", "event", entry_col="entry")
    assert float(loss(best, batch)) * B == pytest.approx(-theirs.log_likelihood_, rel=1e-5)


def intervals():
    """(outlived, hit) of each row by the definition: interval k is (c_k-1, c_k]."""
    edges = [0.0, *CUTS]
    for t, event in zip(TIME, EVENT, strict=True):
        hit = [k for k in range(3) if event and edges[k] < t <= edges[k + 1]]
        outlived = sum(c < t if event else c <= t for c in CUTS)
        yield outlived, hit[0] if hit else None


def test_logistic_hazard_is_its_likelihood():
    task = survival.logistic_hazard(Table(3), D, CUTS)
    params, loss = started(task, batch_of(EVENT))
    value, _ = check_padding(task, params, loss, batch_of(EVENT))
    hazard = 1 / (1 + np.exp(-np.asarray(X @ params["kernel"], np.float64)))
    total = 0.0
    for h, (outlived, hit) in zip(hazard, intervals(), strict=True):
        total -= np.log(1 - h[:outlived]).sum()
        total -= 0 if hit is None else np.log(h[hit])
    assert value * B == pytest.approx(total, rel=1e-5)
    curves = task.predict(params, {}, {"features": X})
    np.testing.assert_allclose(curves, np.cumprod(1 - hazard, 1), rtol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_deep_hit_is_its_likelihood_and_its_ranking(alpha):
    sigma = 0.2
    task = survival.deep_hit(Table(6), D, CUTS, causes=2, alpha=alpha, sigma=sigma)
    assert task.coupled == (alpha < 1)
    params, loss = started(task, batch_of(CAUSE))
    value, _ = check_padding(task, params, loss, batch_of(CAUSE))
    logits = np.asarray(X @ params["kernel"], np.float64)
    p = np.exp(logits) / (1 + np.exp(logits).sum(1, keepdims=True))
    p = p.reshape(B, 2, 3)
    F = p.cumsum(2)
    places = list(intervals())
    total = 0.0
    for i, (outlived, hit) in enumerate(places):
        own = p[i, CAUSE[i] - 1, hit] if hit is not None else 1 - F[i, :, :outlived].sum() * 0
        if hit is None:
            own = 1 - p[i, :, :outlived].sum()
        total -= alpha * np.log(own)
        if hit is None:
            continue
        for j, (lived, hits) in enumerate(places):
            if hit < lived or (hit == lived and hits is None):
                far = F[j, CAUSE[i] - 1, hit] - F[i, CAUSE[i] - 1, hit]
                total += (1 - alpha) * np.exp(far / sigma) / B
    assert value * B == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(task.predict(params, {}, {"features": X}), F, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "outputs"),
    [
        (lambda module: survival.deep_surv(module, D), 1),
        (lambda module: survival.logistic_hazard(module, D, CUTS), 3),
        (lambda module: survival.deep_hit(module, D, CUTS), 3),
    ],
)
def test_members_are_trained_as_modules_of_their_own(make, outputs):
    batch = batch_of(EVENT)
    together = make(Table(outputs, members=2))
    params, loss = started(together, batch)
    alone = make(Table(outputs))
    _, loss_alone = started(alone, batch)
    parts = [{"kernel": params["kernel"][:, m]} for m in range(2)]
    wanted = np.mean([loss_alone(part, batch) for part in parts])
    np.testing.assert_allclose(loss(params, batch), wanted, rtol=1e-5)
    told = [alone.predict(part, {}, batch) for part in parts]
    np.testing.assert_allclose(together.predict(params, {}, batch), np.mean(told, 0), rtol=1e-5)


def test_a_coupled_loss_is_not_divided():
    task = survival.deep_surv(survival.MLP((4,)), D)
    with pytest.raises(ValueError, match="accumulate must be 1"):
        jo.fit(
            task, batch_of(EVENT), optimizer=jo.optim.sgd(0.1), batch_size=8, steps=1, accumulate=2
        )


def test_cuts_follow_the_survival_curve():
    time = np.arange(1.0, 101)
    assert survival.cut_times(time, np.ones(100), 4).tolist() == [25, 50, 75, 100]
    assert survival.cut_times([1, 1, 1, 5], [1, 1, 1, 1], 20).tolist() == [1, 5]
    assert survival.cut_times([0, 2, 3], [1, 2, 0], 2).tolist() == [2]
    with pytest.raises(ValueError, match="event must be after time 0 in some row"):
        survival.cut_times([0, 2], [1, 0])
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        survival.cut_times([1, 2], [1, 0], 0)


def test_a_grid_is_straight_between_its_cuts():
    grid = survival.Grid(np.array([2.0, 4.0]))
    curve = np.array([[0.7, 0.2]])
    at = grid.survival(curve, np.array([0.0, 1.0, 2.0, 3.0, 9.0]))
    np.testing.assert_allclose(at, [[1, 0.85, 0.7, 0.45, 0.2]])
    assert grid.median(curve)[0] == pytest.approx(2.8)
    assert grid.mean(curve, 3.0)[0] == pytest.approx(1.7 + 0.575)
    assert np.isinf(grid.median(np.array([[0.9, 0.6]]))[0])
    incidence = np.array([[[0.1, 0.3], [0.2, 0.3]]])
    np.testing.assert_allclose(grid.survival(incidence, np.array([1.0, 4.0])), [[0.85, 0.4]])
    np.testing.assert_allclose(grid.incidence(incidence, np.array([3.0])), [[[0.2], [0.25]]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: survival.deep_surv(Table(2), D), "module.outputs must be 1, got 2"),
        (lambda: survival.logistic_hazard(Table(1), D, [2.0, 1.0]), "cuts must be sorted"),
        (lambda: survival.deep_hit(Table(6), D, CUTS, 2, alpha=2.0), r"alpha in \[0, 1\]"),
        (lambda: survival.deep_hit(Table(3), D, CUTS, 2), "module.outputs must be 6, got 3"),
    ],
)
def test_wrong_tasks(call, message):
    with pytest.raises(ValueError, match=message):
        call()
