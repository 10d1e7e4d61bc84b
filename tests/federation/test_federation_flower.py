"""The client under a real Flower server, over loopback."""

import contextlib
import importlib.util
import socket
import threading
import time

import flax.linen as nn
import numpy as np
import pytest
from small import regression

import jaxops as jo
from jaxops import federation, optim

LINEAR = regression(nn.Dense(1, use_bias=False))
RATE = 0.1


def rows(count, seed):
    x = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    return {"x": x, "y": x.sum(1, keepdims=True) + 0.1}


PARTS = rows(5, 1), rows(9, 2)
BOTH = {name: np.concatenate([part[name] for part in PARTS]) for name in ("x", "y")}
SETTINGS = {"epochs": 3, "batch_size": None}


def plain():
    """The same two rounds by `fit`."""
    clients = federation.Clients(BOTH, [np.arange(5), np.arange(5, 14)])
    return federation.fit(
        LINEAR, clients, rounds=2, clients_per_round=2, client_optimizer=optim.sgd(RATE),
        progress=False, **SETTINGS,
    )  # fmt: skip


def start():
    return jo.init_state(LINEAR, optim.sgd(1.0), 0, {k: v[:1] for k, v in BOTH.items()})


def test_arrays_of_a_state_and_back():
    state = start()
    again = federation.from_arrays(state, federation.to_arrays(state))
    np.testing.assert_array_equal(again.params["kernel"], state.params["kernel"])
    with pytest.raises(ValueError, match=r"arrays must have the shapes \[\(3, 1\)\] of the state"):
        federation.from_arrays(state, [np.zeros(3)])


def test_what_a_client_would_get_wrong_is_refused():
    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(1)(nn.BatchNorm(use_running_average=not train)(x))

    weighted = {**PARTS[0], "mask": np.ones(5, np.float32)}
    for changes, message in (
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"proximal": -0.1}, "proximal must be at least 0"),
        ({"optimizer": 0.1}, "optimizer must be an optax transformation"),
        ({"task": regression(Norm())}, "module must take `mask`"),
        ({"data": weighted}, "data must have no column mask"),
        ({"validation": weighted}, "validation must have no column mask"),
    ):
        given = {"task": LINEAR, "data": PARTS[0], "optimizer": optim.sgd(RATE), **changes}
        with pytest.raises(ValueError, match=message):
            federation.flower_client(**given)


@pytest.mark.skipif(importlib.util.find_spec("flwr") is not None, reason="flwr is installed")
def test_without_flower_the_extra_is_named():
    with pytest.raises(ImportError, match=r"flwr must be installed; pip install .*\[flower\]"):
        federation.flower_client(LINEAR, PARTS[0], optimizer=optim.sgd(RATE))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_clients_and_a_server_on_loopback():
    flwr = pytest.importorskip("flwr")
    from flwr.client import start_client
    from flwr.server import ServerConfig, start_server
    from flwr.server.strategy import FedAvg

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    found = []

    class Kept(FedAvg):
        def aggregate_fit(self, server_round, results, failures):
            assert not failures
            done = super().aggregate_fit(server_round, results, failures)
            found.append(flwr.common.parameters_to_ndarrays(done[0]))
            return done

    strategy = Kept(
        min_fit_clients=2, min_available_clients=2, min_evaluate_clients=2,
        initial_parameters=flwr.common.ndarrays_to_parameters(federation.to_arrays(start())),
    )  # fmt: skip
    clients = [
        federation.flower_client(LINEAR, part, optimizer=optim.sgd(RATE), **SETTINGS)
        for part in PARTS
    ]

    def run(client):
        while True:  # until the server listens
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        start_client(server_address=address, client=client.to_client(), insecure=True)

    threads = [threading.Thread(target=run, args=(one,), daemon=True) for one in clients]
    for thread in threads:
        thread.start()
    history = start_server(
        server_address=address,
        config=ServerConfig(num_rounds=2, round_timeout=60),
        strategy=strategy,
    )
    for thread in threads:
        thread.join(30)
    state = federation.from_arrays(start(), found[-1])
    np.testing.assert_allclose(state.params["kernel"], plain().params["kernel"], atol=1e-6)
    loss = jo.evaluate(LINEAR, state, BOTH)["loss"]
    assert history.losses_distributed[-1][1] == pytest.approx(loss, rel=1e-5)
