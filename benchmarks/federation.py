"""Rounds a second of federated averaging, beside Flower's simulation on Ray.

    python -m benchmarks.federation [--rounds 20]

The 2NN of McMahan et al. on MNIST: 100 clients with 600 rows each, 10 in a round, one epoch in
batches of 10. Both sides train by the same compiled function of jaxops (`flower_client` on Flower's
side), so the difference is what a round costs around it. Both have `--cores` cores: jaxops as that
many devices, Flower as that many actors. Its strategy is FedAvg without evaluation. The first
rounds of each side, which compile, are left out; the figure is the median over the others. The load
of the machine is printed: read a loaded machine's figures with care.

Flower needs an environment with `flwr[simulation]`, and is left out without it.
"""

import functools
import importlib.util
import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import tyro

import jaxops as jo
from jaxops import federation, vision
from jaxops.trust import report

CLIENTS, PER_ROUND, BATCH, RATE = 100, 10, 10, 0.1
TASK = vision.classifier(vision.MLP((200, 200)))


@dataclass(frozen=True)
class Settings:
    """How long is measured."""

    rounds: int = 20
    warm_up: int = 5
    """rounds that are left out; each actor of Flower compiles when it has its first client"""
    cores: int = 2
    flower: bool = True


@functools.cache
def clients() -> federation.Clients:
    """The clients; each process reads them once."""
    train = jo.data.load("mnist").train
    return federation.Clients(train, federation.even(len(train["label"]), CLIENTS))


def ours(rounds: int, cores: int) -> list[float]:
    """The time at the end of each round."""
    ends: list[float] = []
    federation.fit(
        TASK,
        clients(),
        rounds=rounds,
        clients_per_round=PER_ROUND,
        client_optimizer=jo.optim.sgd(RATE),
        batch_size=BATCH,
        plan=jo.devices.data_parallel(jax.devices()[:cores]),
        reports=jo.Reports(lambda record: ends.append(time.perf_counter()), every=1),
        progress=False,
    )
    return ends


@functools.cache
def of_flower(number: int) -> Any:
    """A client of Flower; an actor keeps those it has had."""
    rows = clients().parts[number]
    own = {name: column[rows] for name, column in clients().columns.items()}
    return federation.flower_client(
        TASK, own, optimizer=jo.optim.sgd(RATE), batch_size=BATCH, seed=number
    )


def theirs(rounds: int, cores: int) -> list[float]:
    """The time at the end of each round of Flower."""
    from flwr import common
    from flwr.client import ClientApp
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.simulation import run_simulation

    times: list[float] = []
    row = {name: column[:1] for name, column in clients().columns.items()}
    start = federation.to_arrays(jo.init_state(TASK, jo.optim.sgd(RATE), 0, row))

    class Timed(FedAvg):
        """FedAvg that notes the end of each round."""

        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
            """The mean of the clients' parameters."""
            if failures:
                raise RuntimeError(f"all clients must answer, got {failures[0]}")
            done = super().aggregate_fit(server_round, results, failures)
            times.append(time.perf_counter())
            return done

    def server(context: Any) -> Any:
        strategy = Timed(
            fraction_fit=PER_ROUND / CLIENTS,
            fraction_evaluate=0.0,
            min_available_clients=CLIENTS,
            initial_parameters=common.ndarrays_to_parameters(start),
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))

    def client(context: Any) -> Any:
        from benchmarks import federation as here  # in the actor

        return here.of_flower(int(context.node_config["partition-id"])).to_client()

    run_simulation(
        ServerApp(server_fn=server),
        ClientApp(client_fn=client),
        num_supernodes=CLIENTS,
        backend_config={
            "init_args": {"num_cpus": cores},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    return times


def main(settings: Settings) -> None:
    """Print a row for each side."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    jax.config.update("jax_num_cpu_devices", settings.cores)
    sides = {"jaxops": ours}
    if settings.flower and importlib.util.find_spec("flwr") is not None:
        sides["Flower's simulation"] = theirs
    medians, table = {}, []
    for name, side in sides.items():
        ends = side(settings.warm_up + settings.rounds, settings.cores)
        seconds = np.diff(ends)[settings.warm_up - 1 :]
        medians[name] = statistics.median(seconds)
        table.append(
            {
                "side": name,
                "s a round": f"{medians[name]:.3f} [{min(seconds):.3f}, {max(seconds):.3f}]",
                "rounds/s": f"{1 / medians[name]:.2f}",
                "load": f"{os.getloadavg()[0]:.1f}",
            }
        )
    print(report.table(table))
    if len(medians) > 1:
        print(f"jaxops is {medians[name] / medians['jaxops']:.1f} times as fast")


if __name__ == "__main__":
    main(tyro.cli(Settings))
