"""Counts, quantiles and values that are often zero, against SciPy and scikit-learn."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss, mean_pinball_loss, mean_poisson_deviance

from jaxops import tabular
from jaxops.optim import sgd
from jaxops.state import init_state
from jaxops.tabular.scores import METRICS, loss_of, scores_of
from jaxops.train.evaluation import evaluate

RNG = np.random.default_rng(0)
N = 60
ENCODER = tabular.fit_encoder({"x": [1.0, 2.0]})


class Given(nn.Module):
    """The features as outputs; of several members where there are `members`."""

    members: int = 0

    @nn.compact
    def __call__(self, x):
        """(B, d) to (B, d), or (B, members, d / members)."""
        return x.reshape(len(x), self.members, -1) if self.members else x


def losses(task, outputs, label):
    """The loss of each row, and what is predicted."""

    @jax.jit
    def both(batch):
        one = {name: value[:, None] for name, value in batch.items()}
        total = jax.vmap(lambda row: task.loss({}, {}, row, jax.random.key(0), True)[0])
        return total(one), task.predict({}, {}, batch)

    batch = {"features": np.asarray(outputs, np.float32), "label": np.asarray(label, np.float32)}
    return [np.asarray(found) for found in both(batch)]


def figures_of(target, predicted, y, levels=()):
    reader = tabular.TableReader(ENCODER, target=target, levels=levels)
    assert loss_of(reader, predicted, y) == pytest.approx(
        scores_of(reader, predicted, y).figures()[METRICS[target]]
    )
    return scores_of(reader, predicted, y).figures()


def test_counts_are_poisson():
    z, y = RNG.normal(size=(N, 1)), RNG.poisson(2.0, N)
    task = tabular.counts(Given(), 1, mean=1.7)
    found, predicted = losses(task, z, y)
    rate = 1.7 * np.exp(z[:, 0])
    np.testing.assert_allclose(found, -stats.poisson.logpmf(y, rate), rtol=2e-5)
    np.testing.assert_allclose(predicted, rate, rtol=1e-5)
    wanted = mean_poisson_deviance(y, predicted)
    assert figures_of("counts", predicted, y)["deviance"] == pytest.approx(wanted, rel=1e-6)
    rows = {"features": z.astype(np.float32), "label": y.astype(np.float32)}
    told = evaluate(task, init_state(task, sgd(0.1), 0, rows), rows)
    assert told["deviance"] == pytest.approx(wanted, rel=1e-5)
    assert told["loss"] == pytest.approx(found.mean(), rel=1e-5)


def test_quantiles_have_the_pinball_loss_and_do_not_cross():
    z, y = RNG.normal(size=(N, 3)), RNG.normal(5, 2, N)
    levels = (0.1, 0.5, 0.9)
    found, predicted = losses(tabular.quantiles(Given(), 3, levels, 5.0, 2.0), z, y)
    each = [mean_pinball_loss((y - 5) / 2, z[:, i], alpha=level) for i, level in enumerate(levels)]
    assert found.mean() == pytest.approx(np.mean(each), rel=1e-5)
    np.testing.assert_allclose(predicted, 5 + 2 * np.sort(z, 1), rtol=1e-5)
    each = [mean_pinball_loss(y, predicted[:, i], alpha=a) for i, a in enumerate(levels)]
    inside = (predicted[:, 0] <= y) & (y <= predicted[:, 2])
    wanted = {
        "pinball": np.mean(each),
        "coverage": inside.mean(),
        "width": (predicted[:, 2] - predicted[:, 0]).mean(),
    }
    assert figures_of("quantiles", predicted, y, levels) == pytest.approx(wanted, rel=1e-6)
    assert list(figures_of("quantiles", predicted[:, :1], y, (0.1,))) == ["pinball"]


def test_zero_inflated_values_are_log_normal():
    z = RNG.normal(size=(N, 3))
    y = np.where(RNG.random(N) < 0.4, 0, RNG.lognormal(2, 1, N))
    found, predicted = losses(tabular.zero_inflated(Given(), 3, 2.0, 1.5), z, y)
    p = 1 / (1 + np.exp(-z[:, 0]))
    m, s = 2 + 1.5 * z[:, 1], 1.5 * (np.log1p(np.exp(z[:, 2])) + 1e-3)
    density = stats.lognorm.logpdf(np.where(y > 0, y, 1), s, scale=np.exp(m))
    wanted = -np.where(y > 0, np.log(p) + density, np.log1p(-p))
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-5)
    mean = p * stats.lognorm.mean(s, scale=np.exp(m))
    np.testing.assert_allclose(predicted, mean, rtol=1e-4)
    figures = figures_of("zero_inflated", predicted, y)
    assert figures["spearman"] == pytest.approx(stats.spearmanr(predicted, y)[0], rel=1e-9)


def test_several_labels_have_the_mean_binary_cross_entropy():
    z, y = RNG.normal(size=(N, 3)), RNG.integers(0, 2, (N, 3))
    p, share = 1 / (1 + np.exp(-z)), 0.1
    for smoothing in (0.0, share):
        target = y * (1 - smoothing) + smoothing / 2
        wanted = -(target * np.log(p) + (1 - target) * np.log1p(-p)).mean(1)
        task = tabular.multilabel(Given(), 3, ("a", "b", "c"), smoothing)
        found, predicted = losses(task, z, y)
        np.testing.assert_allclose(found, wanted, rtol=2e-5)
        np.testing.assert_allclose(predicted, p, rtol=1e-5)
    rows = {"features": z.astype(np.float32), "label": y.astype(np.int32)}
    told = evaluate(task, init_state(task, sgd(0.1), 0, rows), rows)
    right = ((p > 0.5) == (y > 0)).all(1).mean()
    plain = np.mean([log_loss(y[:, i], p[:, i]) for i in range(3)])
    assert told == pytest.approx({"accuracy": right, "loss": plain}, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "outputs"),
    [
        (lambda m, d: tabular.counts(m, d), 1),
        (lambda m, d: tabular.quantiles(m, d, (0.2, 0.8)), 2),
        (lambda m, d: tabular.zero_inflated(m, d), 3),
        (lambda m, d: tabular.regressor(m, d), 1),
        (lambda m, d: tabular.classifier(m, d), 1),
        (lambda m, d: tabular.classifier(m, d, ("a", "b", "c")), 3),
        (lambda m, d: tabular.multilabel(m, d, ("a", "b")), 2),
    ],
)
def test_members_are_averaged(make, outputs):
    z, y = RNG.normal(size=(5, 4, outputs)), np.array([0, 1, 1, 0, 1])
    y = np.stack([y, 1 - y], 1) if make.__code__.co_names[-1] == "multilabel" else y
    dtype = np.int32 if make.__code__.co_names[-1] == "classifier" else np.float32

    one, several = make(Given(), outputs), make(Given(4), 4 * outputs)

    @jax.jit
    def run(z, y):
        def of(task, features, label):
            batch = {"features": features, "label": label}
            total, out = task.loss({}, {}, batch, jax.random.key(0), True)
            return total, task.predict({}, {}, batch), out.metrics

        alone = [of(one, z[:, m], y) for m in range(4)]
        own = of(several, z, jnp.stack([y] * 4, 1))
        return alone, of(several, z.reshape(5, -1), y), own

    alone, together, own = jax.device_get(run(z.astype(np.float32), y.astype(dtype)))
    assert together[0] == pytest.approx(np.mean([one[0] for one in alone]), rel=1e-5)
    np.testing.assert_allclose(together[1], np.mean([one[1] for one in alone], 0), rtol=1e-5)
    assert own[0] == pytest.approx(together[0], rel=1e-6) and own[2] == {}


def test_smoothed_labels_in_training_alone():
    z = RNG.normal(size=(5, 3))
    y, share = np.array([0, 2, 1, 1, 0]), 0.1
    batch = {"features": z.astype(np.float32), "label": y.astype(np.int32)}
    log = z - np.log(np.exp(z).sum(1, keepdims=True))
    own = log[np.arange(5), y]
    three = tabular.classifier(Given(), 3, ("a", "b", "c"), smoothing=share)
    loss = jax.jit(lambda task, batch, train: task.loss({}, {}, batch, jax.random.key(0), train)[0],
                   static_argnums=(0, 2))  # fmt: skip
    for train, wanted in ((False, -own), (True, -(1 - share) * own - share * log.mean(1))):
        assert float(loss(three, batch, train)) == pytest.approx(wanted.sum(), rel=1e-5)
    batch = {"features": batch["features"][:, :1], "label": np.minimum(y, 1).astype(np.int32)}
    p = 1 / (1 + np.exp(-z[:, 0]))
    target = np.minimum(y, 1) * (1 - share) + share / 2
    wanted = -(target * np.log(p) + (1 - target) * np.log1p(-p)).sum()
    total = loss(tabular.classifier(Given(), 1, smoothing=share), batch, True)
    assert float(total) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tabular.counts(Given(), 1, mean=0.0), "mean must be above 0, got 0.0"),
        (lambda: tabular.quantiles(Given(), 1, (0.9, 0.1)), "levels must be rising numbers betw"),
        (lambda: tabular.quantiles(Given(), 1, std=0.0), "std must be above 0, got 0"),
        (lambda: tabular.quantiles(tabular.MLP(), 1), r"module.outputs must be 3, got 1"),
        (lambda: tabular.zero_inflated(Given(), 1, std=0.0), "std must be above 0, got 0"),
        (lambda: tabular.zero_inflated(tabular.MLP(), 1), r"module.outputs must be 3, got 1"),
        (lambda: tabular.classifier(Given(), 1, smoothing=1.0), r"smoothing must be in \[0, 1\)"),
        (lambda: tabular.multilabel(Given(), 1, ()), "labels must be at least 1 name, got none"),
        (lambda: tabular.multilabel(tabular.MLP(), 1, ("a", "b")), "module.outputs must be 2, got"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
