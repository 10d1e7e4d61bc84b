"""Rounds: equal to plain loops, whatever the devices and blocks; participation, privacy, resume."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from small import (
    SETTINGS,
    TASK,
    assert_close,
    assert_equal,
    compilations,
    counting,
    images,
    numbered,
    regression,
)

import jaxops as jo
from jaxops import federation, optim, privacy, vision
from jaxops.nn import BatchNorm
from jaxops.train import pace

RATE = 0.1
LINEAR = regression(nn.Dense(1, use_bias=False))
SIZES = (5, 1, 8, 3, 6, 2)


def one_row_each(sizes=SIZES, seed=0):
    """Clients whose rows are copies of one, so that their order does not matter."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(len(sizes), 3)), rng.normal(size=(len(sizes), 1))
    rows = {"x": x, "y": y}
    rows = {k: np.repeat(v, sizes, axis=0).astype(np.float32) for k, v in rows.items()}
    parts, _ = federation.by_id(np.repeat(np.arange(len(sizes)), sizes))
    return federation.Clients(rows, parts)


def fit(clients, task=LINEAR, **changes):
    settings = {"client_optimizer": optim.sgd(RATE), "rounds": 4, "progress": False}
    settings["clients_per_round"] = min(3, len(clients))
    return federation.fit(task, clients, **{**settings, **changes})


def start(clients, task=LINEAR, seed=0):
    """The first weights (3,) in float64."""
    row = {k: v[:1] for k, v in clients.columns.items()}
    return np.asarray(jo.init_state(task, optim.sgd(1.0), seed, row).params["kernel"], float)[:, 0]


def weights(state):
    return np.asarray(state.params["kernel"])[:, 0]


def drawn(clients, number, seed=0, per_round=3):
    return np.random.default_rng((seed, number)).choice(len(clients), per_round, replace=False)


def gradient(clients, client, w):
    rows = clients.parts[client]
    x, y = clients.columns["x"][rows].astype(float), clients.columns["y"][rows, 0].astype(float)
    return x.T @ (x @ w - y) / len(rows)


class Line(nn.Module):
    """Parameters whose gradient is the row itself, whatever they are."""

    names: tuple[str, ...] = ("w",)

    @nn.compact
    def __call__(self, x):
        zeros, shape = nn.initializers.zeros, (1, x.shape[-1])
        return sum((x * self.param(name, zeros, shape)).sum(-1) for name in self.names)


def line(features, *names):
    return jo.supervised(
        Line(names or ("w",)),
        lambda batch, key: batch["x"],
        lambda y, batch, train: -y,
        lambda y, b, w: {},
        lambda y: y,
        (jo.Column("x", (features,)),),
    )


# Against plain loops


@pytest.mark.slow
def test_one_client_is_plain_gradient_descent():
    data = {"x": np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)}
    data["y"] = data["x"].sum(1, keepdims=True)
    found = fit(federation.Clients(data, [np.arange(20)]), rounds=3, epochs=4)
    plain = jo.fit(LINEAR, data, optimizer=optim.sgd(RATE), batch_size=20, steps=12, progress=False)
    assert_close(found.params, plain.params, atol=1e-6)
    assert found.step == 3


@pytest.mark.slow
def test_one_local_step_of_all_clients_is_a_step_on_all_rows():
    data = images(43)
    clients = federation.Clients(data, federation.dirichlet(data["label"], 7, 0.5))
    assert len(set(clients.weights)) > 2
    found = fit(clients, TASK, rounds=3, clients_per_round=7)
    plain = jo.fit(TASK, data, optimizer=optim.sgd(RATE), batch_size=43, steps=3, progress=False)
    assert_close(found.params, plain.params, atol=1e-6)


def test_rounds_are_a_loop_over_clients_and_epochs():
    clients, proximal = one_row_each(), 0.7
    w = start(clients)
    for number in range(4):
        total, rows = np.zeros(3), 0
        for client in drawn(clients, number):
            mine = w.copy()
            for _ in range(3 * -(-SIZES[client] // 2)):  # epochs x batches of two rows
                mine -= RATE * (gradient(clients, client, mine) + proximal * (mine - w))
            total, rows = total + SIZES[client] * mine, rows + SIZES[client]
        w = total / rows
    with compilations() as names:
        for _ in range(2):  # the second time nothing is compiled
            found = fit(clients, epochs=3, batch_size=2, proximal=proximal)
    np.testing.assert_allclose(weights(found), w, atol=1e-6)
    assert [name for name in names if "run" in name] == ["jit(run)"], names


def test_scaffold_is_the_papers_algorithm():
    """Karimireddy et al. 2020, algorithm 1 with option II, for clients of equal size."""
    clients, steps = one_row_each((4,) * 5), 6  # 3 epochs of two batches
    w, server, own = start(clients), np.zeros(3), np.zeros((5, 3))
    for number in range(6):
        chosen = drawn(clients, number)
        moves, changes = [], []
        for client in chosen:
            y = w.copy()
            for _ in range(steps):
                y -= RATE * (gradient(clients, client, y) - own[client] + server)
            new = own[client] - server + (w - y) / (steps * RATE)
            moves.append(y - w)
            changes.append(new - own[client])
            own[client] = new
        w = w + np.mean(moves, 0)
        server = server + len(chosen) / 5 * np.mean(changes, 0)
    records = []
    found = fit(
        clients, rounds=6, epochs=3, batch_size=2, scaffold=True, block=2,  # 3 clients and padding
        reports=jo.Reports(records.append, every=6),
    )  # fmt: skip
    # each sends three numbers of the update and three of the control variate
    assert records[-1]["sent_megabytes"] == pytest.approx(3 * 6 * 4 / 1e6)
    np.testing.assert_allclose(weights(found), w, atol=1e-6)
    kept = found.opt_state.clients
    np.testing.assert_allclose(kept["control"]["kernel"][:, 0], server, atol=1e-6)
    np.testing.assert_allclose(kept["controls"]["kernel"][..., 0], own, atol=1e-6)


def test_the_server_makes_a_step_of_its_optimizer():
    """FedAdam, FedAdagrad and FedYogi of Reddi et al. 2021, algorithm 2: the first step of each."""
    steps = {
        "adam": (optim.adam(0.01, eps=1e-3), lambda d: abs(d) + 1e-3),
        "adagrad": (optim.adagrad(0.01, 0.1, eps=0.0), lambda d: np.sqrt(0.1 + d**2)),
        # v begins at 1e-6, which the correction divides by 1 - 0.999
        "yogi": (optax.yogi(0.01, eps=1e-3), lambda d: np.sqrt(1e-3 + d**2) + 1e-3),
    }
    x = np.array([[0.5, -2.0, 0.02], [1.5, 1.0, 0.02], [-0.5, 0.25, -0.1]], np.float32)
    clients = federation.Clients({"x": x}, [[0, 1], [2]])
    server = optax.partition({n: step for n, (step, _) in steps.items()}, {n: n for n in steps})
    found = fit(clients, line(3, *steps), rounds=1, client_optimizer=optim.sgd(1.0),
                server_optimizer=server)  # fmt: skip
    change = x.mean(0)  # of FedAvg
    for name, (_, scale) in steps.items():
        want = 0.01 * change / scale(change)
        np.testing.assert_allclose(found.params[name][0], want, rtol=2e-3)


def test_each_row_of_the_clients_of_a_round_is_seen_once_an_epoch():
    clients = federation.Clients(numbered(23), federation.even(23, clients=5))
    records = []
    fit(clients, counting(23), epochs=2, batch_size=3, rounds=3,
        reports=jo.Reports(records.append, every=1))  # fmt: skip
    for number, record in enumerate(records):
        want = np.zeros(23)
        for client in drawn(clients, number):
            want[clients.parts[client]] = 2
        np.testing.assert_array_equal(record["seen"], want)
    assert len(records) == 3


@pytest.mark.slow
def test_a_mask_column_weighs_rows_and_clients():
    data = images(40)
    half = np.flatnonzero(np.arange(40) % 4 < 2)
    masked = {**data, "mask": (np.arange(40) % 4 < 2).astype(np.float32)}
    parts = [np.arange(0, 10), np.arange(10, 40)]
    some = {k: v[half] for k, v in data.items()}
    kept = [np.flatnonzero(half < 10), np.flatnonzero(half >= 10)]
    settings = {"rounds": 3, "epochs": 2, "clients_per_round": 2}
    found = fit(federation.Clients(masked, parts), TASK, **settings)
    plain = fit(federation.Clients(some, kept), TASK, **settings)
    assert_close(found.params, plain.params, atol=1e-6)


@pytest.mark.slow
def test_other_variables_are_averaged_like_parameters():
    """After one batch the running mean is a tenth of the rows' mean, over all clients."""

    class Standard(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False, mask=None):
            return BatchNorm(name="norm")(x, train=train, mask=mask)[:, :1]

    clients = one_row_each()
    found = fit(clients, regression(Standard()), rounds=1, clients_per_round=len(SIZES))
    mean = found.extra["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(mean, 0.1 * clients.columns["x"].mean(0), atol=1e-6)


# Devices, blocks, calls


class Net(nn.Module):
    """Batch norm, dropout, and a dense layer: no parameter whose gradient is zero."""

    @nn.compact
    def __call__(self, x, *, train=False, mask=None):
        x = BatchNorm(name="norm")(x.reshape(len(x), -1), train=train, mask=mask)
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(3, name="logits")(x)


NET = vision.classifier(Net(), **SETTINGS)


@pytest.fixture
def one_round_a_call(monkeypatch):
    """One program for any number of rounds."""
    monkeypatch.setattr(pace, "MAX_STEPS_PER_CALL", 1)


@functools.cache
def uneven():
    data = images(90)
    return federation.Clients(data, federation.dirichlet(data["label"], 11, 0.5))


@functools.cache
def on(devices, block):
    """The state after two rounds, with dropout, batch norm and momentum."""
    plan = jo.devices.data_parallel(jax.devices()[:devices])
    return fit(
        uneven(), NET, rounds=2, clients_per_round=7, epochs=2, batch_size=4, plan=plan,
        block=block, client_optimizer=optim.sgd(RATE, 0.5),
    )  # fmt: skip


@pytest.mark.parametrize(("devices", "block"), [(2, 2), pytest.param(8, 1, marks=pytest.mark.slow)])
def test_devices_and_blocks_do_not_matter(devices, block):
    one, other = on(1, 1), on(devices, block)
    assert_close((other.params, other.extra), (one.params, one.extra), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_resume_is_exact(tmp_path, one_round_a_call):
    settings = {"epochs": 2, "batch_size": 2, "scaffold": True}
    whole = fit(one_row_each(), rounds=6, **settings)
    saved = jo.Checkpoints(tmp_path, every=2)
    fit(one_row_each(), rounds=4, checkpoints=saved, **settings)
    assert_equal(fit(one_row_each(), rounds=6, checkpoints=saved, **settings), whole)
    with pytest.raises(ValueError, match="task argument 'epochs' must be 2, as in the run"):
        fit(one_row_each(), rounds=6, checkpoints=saved, **{**settings, "epochs": 3})
    other = federation.Clients(one_row_each().columns, federation.even(25, 6))
    with pytest.raises(ValueError, match="checksum of data column 'rows of clients'"):
        fit(other, rounds=6, checkpoints=saved, **settings)


@pytest.mark.slow
def test_a_state_goes_on_with_its_control_variates(one_round_a_call):
    clients = one_row_each((4,) * 3)  # all take part, in any order: only the key's step differs
    whole = fit(clients, rounds=4, epochs=2, scaffold=True)
    half = fit(clients, rounds=2, epochs=2, scaffold=True)
    assert_close(fit(clients, rounds=2, epochs=2, scaffold=True, state=half), whole, atol=1e-6)
    anew = fit(clients, rounds=2, epochs=2, scaffold=True, state=half._replace(opt_state=()))
    assert abs(weights(anew) - weights(whole)).max() > 1e-4


@pytest.mark.slow
def test_the_state_is_one_of_the_task(tmp_path):
    data, records = images(60), []
    state = fit(uneven(), TASK, rounds=30, validation=data, batch_size=5,
                reports=jo.Reports(records.append, every=10))  # fmt: skip
    values = jo.evaluate(TASK, state, data)
    told = [r for r in records if r["split"] == "validation"]
    assert [r["step"] for r in told] == [10, 20, 30]
    assert told[-1]["loss"] == pytest.approx(values["loss"], rel=1e-5)
    assert values["accuracy"] > 0.6
    trained = [r for r in records if r["split"] == "train"]
    assert trained[-1]["loss"] < trained[0]["loss"]
    assert trained[0]["sent_megabytes"] == pytest.approx(3 * 4 * 323 / 1e6)  # 323 parameters
    jo.save(tmp_path / "small.model", jo.Model(TASK, state))
    again = jo.load(tmp_path / "small.model").predict({"image": data["image"]})
    np.testing.assert_allclose(again, jo.predict(TASK, state, data), atol=1e-6)


# Participation and privacy

PRIVATE = federation.Private(1.0, 1.0)


def test_poisson_rounds_have_as_many_clients_as_binomial_draws():
    from jaxops.federation.clients import Rounds

    clients = one_row_each((1,) * 40)
    plan = jo.devices.single()
    rounds = Rounds(clients, clients.columns, 4, 3, plan, block=1, poisson=True)
    counts = np.array([len(rounds._rows_of(step)) for step in range(2000)])
    assert counts.mean() == pytest.approx(4, abs=0.2)  # five standard errors
    assert counts.var() == pytest.approx(40 * 0.1 * 0.9, rel=0.2)
    assert 10 < rounds.padded <= 40
    np.testing.assert_array_equal(rounds._rows_of(7), rounds._rows_of(7))


@pytest.mark.slow
def test_a_round_without_clients_changes_nothing():
    clients = one_row_each((1,) * 3)
    empty = [i for i in range(30)
             if (np.random.default_rng((5, i)).uniform(size=3) >= 1 / 3).all()]  # fmt: skip
    first = empty[0]
    before, after = (
        fit(clients, rounds=n, clients_per_round=1, poisson=True, seed=5)
        for n in (first, first + 1)
    )
    np.testing.assert_array_equal(weights(after), weights(before))


def test_updates_are_clipped_one_by_one():
    x = np.array([[3.0, 4.0], [0.3, 0.4], [-6.0, 8.0]], np.float32)
    clients = federation.Clients({"x": x[[0, 0, 1, 2]]}, [[0, 1], [2], [3]])
    private = federation.Private(clip=1.0, noise_multiplier=1e-9)
    state = fit(clients, line(2), rounds=1, client_optimizer=optim.sgd(1.0), private=private)
    want = np.mean([[0.6, 0.8], [0.3, 0.4], [-0.6, 0.8]], 0)  # each client counts once
    np.testing.assert_allclose(state.params["w"][0], want, atol=1e-6)


@pytest.mark.slow
def test_noise_is_added_once_to_the_sum():
    clients = federation.Clients({"x": np.zeros((10, 4000), np.float32)}, np.arange(10)[:, None])
    private = federation.Private(clip=2.0, noise_multiplier=3.0)
    plan = jo.devices.data_parallel()
    seed = 0
    while (np.random.default_rng((seed, 0)).uniform(size=10) < 0.5).sum() == 5:
        seed += 1  # others than the expected 5 take part, by which the sum is divided
    state = fit(clients, line(4000), rounds=1, clients_per_round=5, private=private, plan=plan,
                poisson=True, seed=seed)  # fmt: skip
    noise = np.asarray(state.params["w"])
    assert noise.std() == pytest.approx(2 * 3 / 5, rel=0.06)  # five standard errors
    assert abs(noise.mean()) < 5 * 1.2 / 4000**0.5


def test_the_servers_optimizer_is_not_told_a_loss_without_noise():
    plateau = optim.chain(optim.sgd(1.0), optim.plateau(0.5, patience=1, every=1))
    with pytest.raises(ValueError, match="optimizer must need only the gradient"):
        fit(one_row_each(), private=PRIVATE, server_optimizer=plateau, clients_per_round=6)


# What is refused

ROWS = {"x": np.ones((4, 3), np.float32), "y": np.ones((4, 1), np.float32)}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([[0], []], "client 1 must have at least 1 row, got 0"),
        ([], "parts must have at least one client"),
        ([[0, 4]], r"client 0 must have rows in \[0, 4\), got 4"),
        ([[0, 1], [1]], "row 1 must be of one client, got clients 0 and 1"),
        ([[2, 2]], "client 0 must have each row once, got row 2 2 times"),
        ([[0.5]], "client 0 must have row numbers"),
    ],
)
def test_clients_that_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        federation.Clients(ROWS, parts)


def test_a_client_of_weight_zero_is_refused():
    with pytest.raises(ValueError, match="client 1 must have a row whose mask is above 0"):
        federation.Clients({**ROWS, "mask": np.array([1.0, 1, 0, 0])}, [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients_per_round": 9}, "clients_per_round must be at most 2"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"proximal": -1.0}, "proximal must be at least 0"),
        ({"client_optimizer": 0.1}, "client_optimizer must be an optax transformation"),
        ({"private": federation.Private(0.0, 1.0)}, "private.clip must be above 0"),
        ({"private": federation.Private(1.0, 0.0)}, "private.noise_multiplier must be above 0"),
        ({"private": federation.Private(1.0, np.inf)}, "must be above 0 and finite, got inf"),
        ({"private": 1.0}, "private must be a federation.Private, got 1.0"),
        ({"private": PRIVATE, "clients_per_round": 1}, "poisson must be True for private="),
        ({"compression": federation.top_k}, "compression must be a federation.Compression"),
        ({"client_optimizer": optim.chain(optim.sgd(0.1), optim.ema(0.9))}, "without optim.ema"),
        ({"private": PRIVATE, "scaffold": True}, "scaffold must be left out for private="),
        ({"private": PRIVATE, "compression": federation.eight_bits()}, "compression must be left"),
        ({"scaffold": True, "compression": federation.top_k(0.1)}, "compression must be None"),
        ({"plan": jo.devices.fsdp()}, "plan must split nothing but the clients"),
        ({"accumulate": 2}, "accumulate must be 1"),
    ],
)
def test_settings_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        fit(federation.Clients(ROWS, [[0, 1], [2]]), **changes)


def test_modules_and_data_that_are_refused():
    bad = federation.Clients({**ROWS, "x": np.full((4, 3), np.nan, np.float32)}, [[0]])
    with pytest.raises(ValueError, match="x must be finite"):
        fit(bad)
    hidden = np.ma.masked_array(ROWS["x"], np.eye(4, 3))
    with pytest.raises(ValueError, match="x must have no masked values, got one in row 0"):
        fit(federation.Clients({**ROWS, "x": hidden}, [[0]]))
    by_rows = privacy.private(LINEAR, clip=1.0, noise_multiplier=1.0, batch_size=2)
    with pytest.raises(ValueError, match=r"task must not be one of privacy\.private"):
        fit(federation.Clients(ROWS, [[0]]), by_rows)
    with pytest.raises(ValueError, match="clients must be federation"):
        federation.fit(LINEAR, ROWS, rounds=1, clients_per_round=1, client_optimizer=optim.sgd(1.0))

    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(1)(nn.BatchNorm(use_running_average=not train)(x))

    with pytest.raises(ValueError, match="module must take `mask`"):
        fit(federation.Clients(ROWS, [[0, 1], [2]]), regression(Norm()))
    with pytest.raises(ValueError, match="variables besides its parameters for private="):
        fit(uneven(), NET, private=PRIVATE, poisson=True)
