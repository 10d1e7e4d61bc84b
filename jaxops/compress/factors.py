"""Low rank: the kernel of a dense layer as the product of two factors, by its singular values."""

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from jaxops.compress.networks import Network, changed
from jaxops.model.finished import Model
from jaxops.nn.product import Dense, matmul
from jaxops.task import Array, Params, recorded

FIRST, SECOND = "in_kernel", "out_kernel"


def low_rank(model: Model, rank: int | None = None, energy: float | None = None) -> Model:
    """Replace kernels of dense layers by two factors: the truncated singular value decomposition.

    A kernel W (n, m) becomes A (n, r) times B (r, m), the nearest matrix of rank r in squared
    error. The layer then computes (x A) B, with r (n + m) products in place of n m. A kernel for
    which that is not less stays as it is. Only two-dimensional kernels of dense layers are
    replaced; embeddings, convolutions and the shared kernels of `scan` stay.

    The model has a `Factored` module, so it can be trained further, saved and exported as before.

    Args:
        model: a model of any room that has a network.
        rank: r of each kernel. Give this or `energy`.
        energy: the share of the sum of the squared singular values that each kernel keeps, in
            (0, 1); r is the smallest that does.

    Returns:
        The model. `about["compressed"]` has the ranks by layer, and the number of parameters
        before and after.

    Raises:
        ValueError: neither or both of `rank` and `energy`, or out of range; a model without a
            network, or with no kernel for which this saves anything.

    References:
        Eckart and Young 1936, doi:10.1007/BF02288367; Denton et al. 2014, arXiv:1404.0736.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> task = tabular.classifier(tabular.MLP((16,)), features=16)
    >>> rows = {"features": np.ones((1, 16), np.float32)}
    >>> model = Model(task, jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=rows))
    >>> small = low_rank(model, rank=2)
    >>> {name: leaf.shape for name, leaf in small.state.params["hidden_0"].items()}
    {'bias': (16,), 'in_kernel': (16, 2), 'out_kernel': (2, 16)}
    >>> small.about["compressed"][0]["ranks"]
    {'hidden_0': 2}
    """
    if (rank is None) == (energy is None):
        raise ValueError(f"one of rank and energy must be given, got {rank=} and {energy=}")
    if rank is not None and (not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank must be a number of at least 1, got {rank}")
    if energy is not None and not 0 < energy < 1:
        raise ValueError(f"energy must be in (0, 1), got {energy}")
    counts, told = [0, 0], dict[str, int]()

    def smaller(part: Network) -> Network:
        if part.module is None:
            raise ValueError("model must have a task of a module, got one made by hand")
        ranks = _ranks(part.params, rank, energy)
        told.update(ranks)
        before = part.module
        known = before.ranks if isinstance(before, Factored) else ()
        inner = before.inner if isinstance(before, Factored) else before
        module = Factored(inner, (*known, *ranks.items()))
        params = jax.device_put(_factored(part.params, tuple(ranks.items()), np))
        counts[0] += sum(leaf.size for leaf in jax.tree.leaves(part.params))
        counts[1] += sum(leaf.size for leaf in jax.tree.leaves(params))
        return part._replace(module=module, params=params)

    asked = {"rank": rank} if energy is None else {"energy": energy}
    done: dict[str, Any] = {"method": "low_rank", **asked}
    new = changed(model, smaller, done)
    done |= {"ranks": told, "parameters": counts}
    return new


@recorded
@dataclass(frozen=True)
class Factored:
    """A module of which some dense layers have two factors in place of their kernel.

    It stands in for the module: it has its attributes and methods, and is called like it. The
    factors are parameters of the layer, `in_kernel` (inputs, rank) and `out_kernel` (rank,
    features).

    Attributes:
        inner: the Flax module.
        ranks: (path of a layer, its rank) pairs.

    >>> from jaxops import vision
    >>> module = Factored(vision.MLP((8,), classes=2), (("hidden_0", 1),))
    >>> shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 3, 3, 1)))
    >>> shapes["params"]["hidden_0"]["in_kernel"].shape, module.classes
    ((9, 1), 2)
    """

    inner: Any
    ranks: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "__signature__", inspect.signature(self.inner))

    def __getattr__(self, name: str) -> Any:
        if name == "inner" or name.startswith("__"):  # while it is copied it has no attributes
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs, where the module is a part of another one."""
        with nn.intercept_methods(_run_factors):
            return self.inner(*args, **kwargs)

    def init(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Variables of the module, with the factors of its initial kernels."""
        variables = dict(self.inner.init(*args, **kwargs))
        return variables | {"params": _factored(variables["params"], self.ranks, jnp)}

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's own `apply` returns."""
        with nn.intercept_methods(_run_factors):
            return self.inner.apply(*args, **kwargs)

    def clone(self, **changes: Any) -> "Factored":
        """The same with other attributes of the module."""
        return dataclasses.replace(self, inner=self.inner.clone(**changes))


def _run_factors(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Run a dense layer by its factors if it has them; for `flax.linen.intercept_methods`."""
    layer = context.module
    dense = context.method_name == "__call__" and isinstance(layer, Dense | nn.Dense)
    if not dense or not layer.has_variable("params", FIRST):
        return call(*args, **kwargs)
    (x,) = args
    compute = getattr(layer, "compute", None)
    for name in (FIRST, SECOND):
        x = matmul(x, meta.unbox(layer.get_variable("params", name)), compute)
    if layer.use_bias:
        x += meta.unbox(layer.get_variable("params", "bias")).reshape(*[1] * (x.ndim - 1), -1)
    return x


def _layers(params: Params, path: str = "") -> dict[str, Array]:
    """The kernels of dense layers: those of two axes that are alone, or have a bias beside them."""
    if not isinstance(params, Mapping):
        return {}
    if "kernel" in params and set(params) <= {"kernel", "bias"}:
        kernel = params["kernel"]  # of a quantised layer it is no array
        plain = isinstance(kernel, jax.Array | np.ndarray) and kernel.ndim == 2
        return {path: kernel} if plain and path else {}
    found: dict[str, Array] = {}
    for name, below in params.items():
        found |= _layers(below, f"{path}/{name}" if path else name)
    return found


def _ranks(params: Params, rank: int | None, energy: float | None) -> dict[str, int]:
    """The rank of each layer for which factors are smaller than its kernel."""
    layers, ranks = _layers(params), dict[str, int]()
    for path, kernel in layers.items():
        wanted = _rank_of(np.asarray(kernel), energy) if energy is not None else rank
        if wanted is not None and wanted * sum(kernel.shape) < kernel.size:
            ranks[path] = wanted
    if not ranks:
        most = max((-(-k.size // sum(k.shape)) - 1 for k in layers.values()), default=0)
        asked = "energy must be less" if rank is None else "rank must be less"
        raise ValueError(
            f"{asked} for factors to save anything (ranks up to {most} do, of {len(layers)} dense "
            f"layers), got {energy if rank is None else rank}"
        )
    return ranks


def _rank_of(kernel: np.ndarray, energy: float) -> int:
    squares = np.linalg.svd(kernel, compute_uv=False).astype(float) ** 2
    return int(np.searchsorted(np.cumsum(squares) / squares.sum(), energy)) + 1


def _factored(params: Params, ranks: tuple[tuple[str, int], ...], numpy: Any) -> Params:
    """The parameters with factors in place of the kernels of these layers.

    Args:
        params: the parameters.
        ranks: (path of a layer, its rank) pairs.
        numpy: `numpy`, which compiles nothing, or `jax.numpy`.
    """

    def put(tree: Any, names: list[str], rank: int) -> Any:
        if names:
            return {**tree, names[0]: put(tree[names[0]], names[1:], rank)}
        tree = dict(tree)
        left, values, right = numpy.linalg.svd(tree.pop("kernel"), full_matrices=False)
        root = numpy.sqrt(values[:rank])
        return {**tree, FIRST: left[:, :rank] * root[None], SECOND: root[:, None] * right[:rank]}

    for path, rank in ranks:
        params = put(params, path.split("/"), rank)
    return params
