"""Training over clients: `fit`."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import optax

from jaxops.data.checks import prepare
from jaxops.devices.plans import Plan, default, replicated
from jaxops.federation.clients import Clients, Rounds
from jaxops.federation.local import check_local, local_of
from jaxops.federation.rounds import Method, Private, federated
from jaxops.federation.updates import Compression
from jaxops.optim import sgd
from jaxops.state import TrainState
from jaxops.task import Task
from jaxops.train import loop
from jaxops.train.feed import Data
from jaxops.train.settings import whole

BLOCK = 16  # clients together on an accelerator


class Carried(NamedTuple):
    """The optimizer's state of a `TrainState` whose method keeps more than the model.

    Attributes:
        optimizer: the state of the server's optimizer.
        clients: "control" and "controls" of SCAFFOLD, each client's "left" of feedback; see `fit`.

    >>> import numpy as np
    >>> Carried((), {"left": {"w": np.zeros((3, 2))}}).clients["left"]["w"].shape
    (3, 2)
    """

    optimizer: optax.OptState
    clients: dict[str, Any]


def fit(
    task: Task,
    clients: Clients,
    *,
    rounds: int,
    clients_per_round: int,
    client_optimizer: optax.GradientTransformation,
    epochs: int = 1,
    batch_size: int | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    proximal: float = 0.0,
    scaffold: bool = False,
    private: Private | None = None,
    compression: Compression | None = None,
    poisson: bool = False,
    block: int | None = None,
    validation: Data = None,
    seed: int = 0,
    plan: Plan | None = None,
    state: TrainState | None = None,
    **settings: Any,
) -> TrainState:
    """Train over clients in rounds, many rounds in one call, and return the last state.

    In a round some clients are drawn. Each starts from the server's parameters, trains some epochs
    on its own rows, and sends the difference. The server takes the mean of the differences, weighed
    by the clients' rows, as the negative of a gradient, and makes a step of its optimizer. With SGD
    at a rate of 1 this is FedAvg; with `optim.adam`, `optax.yogi` or `optim.adagrad` it is FedAdam,
    FedYogi or FedAdagrad.

    The whole round is one program, in which the clients are split over the devices. All is run by
    `jaxops.fit`, whose step is a round. So the same holds as there: checkpoints, exact resumption,
    reports, validation, early stopping. The result does not depend on the devices, on `block`, or
    on how the rounds were split into calls, up to rounding.

    Args:
        task: what to learn; any task.
        clients: the columns, and which rows each client has.
        rounds: number of rounds.
        clients_per_round: number of clients in a round; with `poisson` the expected number.
        client_optimizer: the optimizer of each client; it starts anew in each round.
        epochs: passes of a client over its rows in a round.
        batch_size: rows in a client's batch; by default all its rows.
        server_optimizer: any optax transformation; by default `optim.sgd(1.0)`.
        proximal: mu of FedProx: mu / 2 |w - w_server|^2 is added to a client's loss.
        scaffold: correct each gradient by the control variates of SCAFFOLD, c - c_k. For c_k the
            mean of the client's gradients in the last round it took part in is kept, which for SGD
            at a constant rate is option II of the paper. c is their mean, weighed by the clients'
            rows. The variates of all clients are in the state: the size of the parameters for each.
        private: clip the update of each client, and add noise once to their sum. The server's
            optimizer is then not told the loss, which has no noise. It needs `poisson`, unless all
            clients take part in each round.
        compression: `eight_bits` or `top_k`, applied to each client's update. With feedback, what
            the messages of a client have left out is in the state: the size of the parameters for
            each.
        poisson: each client takes part in a round with equal probability, independently of the
            others, as accountants of privacy assume; by default a fixed number is drawn.
        block: number of clients that are computed together on a device; by default 1 on a CPU and
            16 on an accelerator. It bounds the memory, and does not change the result.
        validation: columns for validation, every `reports.every` rounds (100 by default).
        seed: determines the initial parameters, the clients of each round, the order of their rows
            and the noise.
        plan: the devices, `devices.data_parallel`; by default the first device.
        state: start from a copy of this state, which may be the result of an earlier call, or have
            an `opt_state` of (), as that of a loaded model.
        **settings: `checkpoints`, `reports`, `metrics`, `early_stopping`, `compute` and `progress`
            of `jaxops.fit`. Records have, besides the task's metrics over the clients' batches,
            "sent_megabytes": what the clients sent to the server in a round, on average: updates,
            other variables, and the changes of control variates.

    Returns:
        The state, for `jaxops.evaluate` and `jaxops.Model`. With `scaffold` or feedback its
        `opt_state` is `Carried`, with what `state=` needs to go on.

    Raises:
        ValueError: before anything compiles, for invalid data or arguments.

    References:
        McMahan et al. 2017, arXiv:1602.05629 (FedAvg); Li et al. 2020, arXiv:1812.06127 (FedProx);
        Reddi et al. 2021, arXiv:2003.00295 (FedAdam); Karimireddy et al. 2020, arXiv:1910.06378
        (SCAFFOLD).

    >>> import numpy as np
    >>> import jaxops as jo
    >>> from jaxops import federation, tabular
    >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    >>> rows = {"features": x, "label": (x.sum(1) > 0).astype(np.int32)}
    >>> clients = federation.Clients(rows, federation.dirichlet(rows["label"], 6, 1.0))
    >>> task = tabular.classifier(tabular.MLP(()), features=3)
    >>> state = federation.fit(task, clients, rounds=20, clients_per_round=3, batch_size=4,
    ...                        client_optimizer=jo.optim.sgd(0.3), progress=False)
    >>> jo.evaluate(task, state, rows)["accuracy"] > 0.9
    True
    """
    plan = plan or default()
    local = local_of(task, client_optimizer, epochs, batch_size, proximal, "client_optimizer")
    method = Method(local, bool(scaffold), private, compression)
    columns = _checked(task, clients, method, plan)
    rounds = whole("rounds", rounds, 0)
    clients_per_round = _taking_part(clients, clients_per_round, private, poisson)
    if block is None:
        block = 1 if plan.mesh.devices.flat[0].platform == "cpu" else BLOCK
    block = min(whole("block", block, 1), -(-clients_per_round // plan.batch_shards))
    server = sgd(1.0) if server_optimizer is None else server_optimizer
    server = _without_loss(server) if private else server
    check_local(task, local, columns)
    if isinstance(validation, Mapping):
        validation = prepare(task, validation, targets=True)
    shapes = tuple((name, v.shape[1:]) for name, v in columns.items() if name != "mask")
    federation = federated(
        task, method, (*shapes, ("mask", ())), len(clients), clients_per_round, plan, block
    )
    trained = loop.fit(
        federation,
        _Feed(clients, columns, block, bool(poisson)),
        optimizer=server,
        batch_size=clients_per_round,
        steps=rounds,
        validation=validation,
        seed=seed,
        plan=plan,
        state=None if state is None else _wrapped(state, method, len(clients)),
        **settings,
    )
    kept = trained.extra["clients"]
    opt_state = Carried(trained.opt_state, kept) if kept else trained.opt_state
    return trained._replace(opt_state=opt_state, extra=trained.extra["model"])


def _taking_part(clients: Clients, per_round: int, private: Private | None, poisson: bool) -> int:
    """The number of clients in a round; `ValueError` for one that does not fit."""
    per_round = whole("clients_per_round", per_round, 1)
    if per_round > len(clients):
        raise ValueError(
            f"clients_per_round must be at most {len(clients)} (the number of clients), got "
            f"{per_round}"
        )
    if private and not poisson and per_round < len(clients):
        raise ValueError(
            "poisson must be True for private=, as the accountants of jaxops.privacy assume, got "
            f"False and {per_round} of {len(clients)} clients in a round"
        )
    return per_round


@functools.lru_cache(maxsize=32)
def _without_loss(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer, which is not told the loss of a round, as that has no noise."""

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        return optimizer.update(grads, state, params)

    return optax.GradientTransformation(optimizer.init, update)


class _Feed(NamedTuple):
    """What `fit` of jaxops asks for the clients of each round."""

    clients: Clients
    columns: dict[str, Any]
    block: int
    poisson: bool

    def as_source(self, batch_size: int, seed: int, plan: Plan) -> Rounds:
        return Rounds(self.clients, self.columns, batch_size, seed, plan, self.block, self.poisson)


def _wrapped(state: TrainState, method: Method, clients: int) -> TrainState:
    """The state as the task of the rounds has it."""
    opt_state = state.opt_state
    if isinstance(opt_state, Carried):
        opt_state, kept = opt_state
    else:
        kept = method.start(state.params, clients)
    return state._replace(opt_state=opt_state, extra={"model": state.extra, "clients": kept})


def _checked(task: Task, clients: Any, method: Method, plan: Plan) -> dict[str, Any]:
    """The columns that the task names; `ValueError` for settings that do not fit."""
    if not isinstance(clients, Clients):
        raise ValueError(
            f"clients must be federation.Clients(columns, parts), got {type(clients).__name__}"
        )
    private, kinds = method.private, {"private": Private, "compression": Compression}
    for name, kind in kinds.items():
        given = getattr(method, name)
        if given is not None and not isinstance(given, kind):
            raise ValueError(f"{name} must be a federation.{kind.__name__}, got {given!r}")
    for name, value in zip(Private._fields, private or (), strict=False):
        if not 0 < value < math.inf:
            raise ValueError(f"private.{name} must be above 0 and finite, got {value}")
    if private and (method.scaffold or method.compression):
        other = "scaffold" if method.scaffold else "compression"
        raise ValueError(
            f"{other} must be left out for private=, got both: what it sends has no noise"
        )
    if method.scaffold and method.compression:
        raise ValueError(
            "compression must be None for scaffold=True, whose control variates are sent too, got "
            "both"
        )
    if plan.mesh.axis_names != plan.batch_axes or plan.rule is not replicated:
        raise ValueError(
            "plan must split nothing but the clients, such as devices.data_parallel(), got the "
            f"axes {plan.mesh.axis_names}"
        )
    return prepare(task, clients.columns, targets=True)
