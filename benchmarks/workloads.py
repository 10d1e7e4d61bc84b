"""What is measured, as plain values: both sides read this file (NumPy and the standard library)."""

import itertools
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

Columns = dict[str, np.ndarray]

SEED = 0
FIRST_LOSSES = 20
CHECKED = 16
"""predictions that are compared, at least"""
ORDERS = 4
"""How many orders of the rows a form may try in the check: see `figures.different`."""
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""relative, for each of the first losses; absolute, for probabilities"""
ACCURACY_TOLERANCE = {"float32": 0.005, "bfloat16": 0.01}
FINAL_LOSS_TOLERANCE = {"float32": 0.01, "bfloat16": 0.02}
"""relative; where a task has no accuracy"""
LEARNING_RATE, EPSILON = 1e-3, 1e-8
PROMPT, NEW_TOKENS = 16, 200
"""of a generation"""
TORCH_FORMS = ("article", "careful", "compiled")


@dataclass(frozen=True)
class MLP:
    """Dense layers with ReLU; one output is a yes/no network with binary cross-entropy.

    The first `numbers` features get periodic embeddings (PLR) with the defaults of
    `tabular.Periodic` and of rtdl_num_embeddings: 24 values from 48 frequencies.
    """

    widths: tuple[int, ...]
    mean: float = 0.0
    std: float = 1.0
    numbers: int = 0

    @property
    def parameters(self) -> int:
        """Of the embeddings; kernels and biases."""
        widths = (self.widths[0] + 23 * self.numbers, *self.widths[1:])
        dense = sum((a + 1) * b for a, b in itertools.pairwise(widths))
        return dense + self.numbers * (48 + 96 * 24 + 24)


@dataclass(frozen=True)
class CNN:
    """C03: convolution 3x3 without padding, ReLU, max-pool 2x2, dense, ReLU, dense."""

    features: int = 32
    hidden: int = 128
    mean: float = 0.0
    std: float = 1.0

    @property
    def parameters(self) -> int:
        """Kernels and biases."""
        flat = 13 * 13 * self.features
        return 10 * self.features + (flat + 1) * self.hidden + (self.hidden + 1) * 10


@dataclass(frozen=True)
class GPT:
    """Pre-norm blocks, learned positions, GELU (tanh), no dropout, an output layer of its own."""

    depth: int = 4
    width: int = 128
    heads: int = 4
    context: int = 64
    vocabulary: int = 65

    @property
    def parameters(self) -> int:
        """Of embeddings, blocks (12 w^2 + 13 w), the last norm, and the output without a bias."""
        w = self.width
        blocks = self.depth * (12 * w * w + 13 * w)
        return (2 * self.vocabulary + self.context) * w + blocks + 2 * w


@dataclass(frozen=True)
class TabM:
    """TabM-mini: `members` perceptrons that share their layers; binary cross-entropy of each."""

    features: int
    width: int = 512
    depth: int = 3
    members: int = 32

    @property
    def parameters(self) -> int:
        """Signs, shared layers, and an output layer for each member."""
        w = self.width
        shared = (self.features + 1) * w + (self.depth - 1) * (w + 1) * w
        return self.members * self.features + shared + self.members * (w + 1)


Network = MLP | CNN | GPT | TabM


@dataclass(frozen=True)
class Workload:
    """One line of the table.

    Attributes:
        name: as the command line has it.
        network: what is trained or asked.
        data: "mnist", "churn", "adult" (numbers in bins), "adult, standard" or "shakespeare".
        batch_size: rows in one update, or in one question.
        kind: "train", "predict" (NumPy in, NumPy out), "generate" (prompts of `PROMPT` tokens in,
            the `NEW_TOKENS` most probable ones out; an example is a token) or "sweep" (32 seeds at
            once, jaxops alone).
        check_steps: updates on given batches before both sides are tested.
        targets: ratio -> what the project wants of it on two CPU cores; see `benchmarks.figures`.
        gpu: measured by default only where there is a GPU.
        bfloat16: measured in bfloat16 as well.
    """

    name: str
    network: Network
    data: str
    batch_size: int
    kind: str = "train"
    check_steps: int = 300
    targets: tuple[tuple[str, float], ...] = ()
    gpu_targets: tuple[tuple[str, float], ...] = ()
    gpu: bool = False
    bfloat16: bool = False


C01 = MLP((784, 128, 10), mean=0.5, std=0.5)
C02 = MLP((784, 128, 10))
C03 = CNN()
C08 = MLP((784, 256, 128, 10), mean=0.5, std=0.5)
SMALL_GPT = GPT()
LARGE_GPT = GPT(depth=6, width=384, heads=6, context=256)
CHURN = MLP((46, 128, 64, 1))
"""C04; how many features it has, the data say, as of those on Adult"""
ADULT = MLP((227, 512, 512, 1))
ADULT_PLR = MLP((100, 512, 512, 1), numbers=6)
ADULT_TABM = TabM(227)

_ARTICLE = (("article", 8.0), ("best", 3.0))
_GPT = (("best", 1.0), ("fastest", 1.5))
_MLP_GPU = (("best", 2.0),)

WORKLOADS = (
    Workload("C01", C01, "mnist", 64, targets=_ARTICLE, gpu_targets=_MLP_GPU, bfloat16=True),
    Workload("C02", C02, "mnist", 32, targets=_ARTICLE),
    Workload(
        "C03", C03, "mnist", 32, check_steps=200, targets=(("article", 3.0), ("best", 1.5)),
        gpu_targets=(("best", 1.3),), bfloat16=True,
    ),
    Workload("C04", CHURN, "churn", 32, targets=_ARTICLE),
    Workload("C08", C08, "mnist", 64, targets=_ARTICLE, gpu_targets=_MLP_GPU, bfloat16=True),
    Workload(
        "C01-1024", C01, "mnist", 1024, targets=(("best", 1.2),),
        gpu_targets=_MLP_GPU, bfloat16=True,
    ),
    Workload("C02-1024", C02, "mnist", 1024),
    Workload(
        "C03-1024", C03, "mnist", 1024, check_steps=40, targets=(("best", 1.2),),
        gpu_targets=(("best", 1.3),), bfloat16=True,
    ),
    Workload("C04-1024", CHURN, "churn", 1024),
    Workload("C08-1024", C08, "mnist", 1024, gpu_targets=_MLP_GPU, bfloat16=True),
    Workload("gpt-12", SMALL_GPT, "shakespeare", 12, check_steps=40, targets=_GPT, bfloat16=True),
    Workload("gpt-64", SMALL_GPT, "shakespeare", 64, check_steps=30, targets=_GPT, bfloat16=True),
    Workload(
        "gpt-large", LARGE_GPT, "shakespeare", 64, check_steps=30,
        gpu_targets=(("fastest", 1.1),), gpu=True, bfloat16=True,
    ),
    Workload("adult-mlp", ADULT, "adult", 256, targets=(("best", 2.5),), bfloat16=True),
    Workload("adult-plr", ADULT_PLR, "adult, standard", 256, targets=(("best", 2.5),)),
    Workload(
        "adult-tabm", ADULT_TABM, "adult", 256, check_steps=24,
        targets=(("article", 2.5), ("best", 1.5), ("fastest", 1.9)), bfloat16=True,
    ),
    Workload("C01-predict-1", C01, "mnist", 1, "predict", targets=(("best", 1.5),)),
    Workload("C01-predict-1024", C01, "mnist", 1024, "predict", targets=(("best", 1.0),)),
    Workload("C03-predict-1", C03, "mnist", 1, "predict", targets=(("best", 1.5),)),
    Workload("C03-predict-1024", C03, "mnist", 1024, "predict", targets=(("best", 1.0),)),
    Workload("gpt-generate-1", LARGE_GPT, "shakespeare", 1, "generate", targets=(("best", 1.0),)),
    Workload("gpt-generate-16", LARGE_GPT, "shakespeare", 16, "generate", targets=(("best", 1.0),)),
    Workload("C01-sweep", C01, "mnist", 64, "sweep", gpu=True),
)  # fmt: skip
BY_NAME = {workload.name: workload for workload in WORKLOADS}


def chosen(names: tuple[str, ...], gpu: bool) -> tuple[list[Workload], list[Workload]]:
    """The workloads of these names; without names all: those to run, those that want a GPU.

    >>> [w.name for w in chosen(("C03", "C01"), gpu=False)[0]]
    ['C03', 'C01']
    """
    for name in names:
        if name not in BY_NAME:
            raise ValueError(f"names must be of {', '.join(BY_NAME)}, got {name}")
    if names:
        return [BY_NAME[name] for name in names], []
    here = [workload for workload in WORKLOADS if gpu or not workload.gpu]
    return here, [workload for workload in WORKLOADS if workload not in here]


def forms(workload: Workload, compute: tuple[str, ...], gpu: bool = False) -> dict[str, list[str]]:
    """Side -> its forms, in the order in which they take turns.

    Args:
        workload: a line of the table.
        compute: of jaxops: "float32" and, where wanted, "bfloat16".
        gpu: PyTorch's form "graphed" wants one.
    """
    if workload.kind == "sweep":
        return {"jaxops": ["vmapped", "one at a time"], "torch": []}
    if workload.kind == "generate":
        return {"jaxops": ["float32"], "torch": ["careful", "compiled", "transformers"]}
    if workload.kind == "predict":
        return {"jaxops": ["float32"], "torch": [f for f in TORCH_FORMS if f != "article"]}
    more = ["graphed"] * gpu + ["bfloat16"] * workload.bfloat16
    return {
        "jaxops": [c for c in compute if c == "float32" or workload.bfloat16],
        "torch": [*TORCH_FORMS, *more],
    }


def write(folder: Path, workload: Workload, columns: Columns, steps: int) -> Workload:
    """Put into a folder what both sides read: the workload, the data, the batches of the check.

    Args:
        folder: made where missing.
        workload: a network on a table gets its number of features from the data.
        columns: "train_x", "test_x" and, but for text, "train_y", "test_y".
        steps: batches of the check.

    Returns:
        The workload as written.
    """
    network, shape = workload.network, columns["train_x"].shape
    if workload.data.startswith(("churn", "adult")) and isinstance(network, MLP):
        network = replace(network, widths=(shape[1], *network.widths[1:]))
    elif isinstance(network, TabM):
        network = replace(network, features=shape[1])
    workload = replace(workload, network=network)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "workload.pickle").write_bytes(pickle.dumps(workload, protocol=4))
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
    rows = checked_rows(len(columns["train_x"]), workload.batch_size)
    epochs = -(-steps * workload.batch_size // len(rows))
    orders = []
    for i in range(ORDERS):
        # as `jaxops.fit` orders data in memory with this seed, so that its own loop is checked
        randoms = [np.random.default_rng((SEED + i, epoch)) for epoch in range(epochs)]
        order = np.concatenate([rows[random.permutation(len(rows))] for random in randoms])
        orders.append(order[: steps * workload.batch_size])
    batches = np.stack(orders).reshape(ORDERS, steps, workload.batch_size)
    np.save(folder / "batches.npy", batches)
    return workload


def checked_rows(rows: int, batch_size: int) -> np.ndarray:
    """The rows of the check's data: whole batches, more than the first losses in an epoch.

    >>> checked_rows(7, 2)[:12]  # 3 batches are too few, so rows come again
    array([0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4])
    """
    return np.arange(max(rows // batch_size, FIRST_LOSSES + 1) * batch_size) % rows


def read_workload(folder: Path) -> Workload:
    """The workload as written."""
    workload: Workload = pickle.loads((folder / "workload.pickle").read_bytes())
    return workload


def read(folder: Path) -> tuple[Workload, Columns, np.ndarray]:
    """The workload, its columns, and the rows (orders, steps, batch) of the check's batches."""
    columns = {file.stem: np.load(file) for file in folder.glob("t*_[xy].npy")}
    return read_workload(folder), columns, np.load(folder / "batches.npy")
