"""One workload: first the check that all forms agree, then rounds in turns."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import figures, workloads
from benchmarks.process import Others, Worker, WorkerError

MORE = 3
OPTIONAL = ("compiled", "bfloat16", "graphed", "transformers")
"""forms of PyTorch whose failure the others survive: some want a C++ compiler, or a package"""


@dataclass(frozen=True)
class How:
    """How a run measures.

    Attributes:
        rounds: turns that each form takes, and up to `MORE` times as many where that settles no
            ratio.
        seconds: of one turn.
        pythons: side -> interpreter.
        compute: of jaxops's forms.
        peaks: dtype -> FLOP/s of this machine's matrix product.
        gpu: whether there is one.
        say: tells the user how far it is.
    """

    rounds: int
    seconds: float
    pythons: dict[str, str]
    compute: tuple[str, ...]
    peaks: dict[str, float]
    gpu: bool
    say: Callable[[str], None]


def measure(
    workload: workloads.Workload, columns: workloads.Columns, folder: Path, how: How
) -> figures.Result:
    """Everything about one workload; "failed" says why where the sides differ.

    Args:
        workload: what to measure.
        columns: its data.
        folder: new, for what the workers share.
        how: rounds, interpreters, peaks.
    """
    workload = workloads.write(folder, workload, columns, workload.check_steps)
    targets = workload.gpu_targets if how.gpu else workload.targets
    result: figures.Result = {
        "workload": workload.name,
        "kind": workload.kind,
        "batch_size": workload.batch_size,
        "network": {"kind": type(workload.network).__name__, **asdict(workload.network)},
        "targets": dict(targets),
        "forms": {},
    }
    with ExitStack() as stack:
        try:
            workers = _start(workload, folder, how, stack, result)
            how.say(f"{workload.name}: equal?")
            _check_equal(workers, result)
            if "failed" not in result:
                _take_turns(workers, result, how)
        except WorkerError as error:
            result["failed"] = str(error)
        if "failed" in result:
            return {**result, "forms": {}}
    for form in result["forms"].values():
        rate = form["examples_per_second"]["median"]
        form["flop_per_second"] = rate * result["flops_per_example"]
        form["share_of_peak"] = form["flop_per_second"] / how.peaks[form["dtype"]]
    rates = {n: f["examples_per_second"]["rounds"] for n, f in result["forms"].items()}
    return {**result, "ratios": figures.ratios(rates)}


def _start(
    workload: workloads.Workload, folder: Path, how: How, stack: ExitStack, result: figures.Result
) -> dict[str, Worker]:
    """Each form's process: its first step, cold and (where it compiles) with a warm cache."""
    workers: dict[str, Worker] = {}
    for side, names in workloads.forms(workload, how.compute, how.gpu).items():
        for form in names:
            name = f"{side} {form}"
            how.say(f"{workload.name}: {name}: first step")
            worker = stack.enter_context(Worker(side, form, folder, how.pythons[side]))
            try:
                facts = _first_step(worker, side, form)
                if not workers:
                    result |= worker("facts")
                    worker("weights")
                how.say(f"{workload.name}: {name}: settings")
                facts |= worker("tune", seconds=how.seconds)
            except WorkerError as error:
                if side != "torch" or form not in OPTIONAL:
                    raise
                result.setdefault("missing", {})[name] = str(error)
                continue
            workers[name], result["forms"][name] = worker, facts
    return workers


def _first_step(worker: Worker, side: str, form: str) -> dict[str, Any]:
    first = worker("setup")
    facts = {
        "dtype": "bfloat16" if form == "bfloat16" else "float32",
        "first_step_seconds": first["first_step_seconds"],
        "peak_memory_bytes": first["peak_memory"],
    }
    if side == "jaxops" or form == "compiled":
        with Worker(side, form, worker.folder, worker.python) as again:
            facts["first_step_seconds_warm"] = again("setup")["first_step_seconds"]
    return facts


def _check_equal(workers: dict[str, Worker], result: figures.Result) -> None:
    """Check that all forms compute the same; otherwise "failed" names those that do not."""
    if result["kind"] == "sweep":
        return
    wanted: list[dict[str, Any]] = []
    problems = []
    for name, worker in workers.items():
        form = result["forms"][name]
        for order in range(workloads.ORDERS if result["kind"] == "train" else 1):
            answer = worker("check", order=order)
            if order == len(wanted):  # jaxops in float32 comes first
                ours = workers["jaxops float32"]
                wanted.append(answer if worker is ours else ours("check", order=order))
            problem = figures.different(wanted[order], answer, form["dtype"])
            if not problem:
                break
        form["check"] = {
            "order": order,
            "difference": figures.difference(wanted[order], answer),
            **{key: answer[key] for key in ("loss", "accuracy") if key in answer},
        }
        if problem:
            problems.append(f"{name}: {problem}")
    if problems:
        result["failed"] = "\n".join(problems)


def _take_turns(workers: dict[str, Worker], result: figures.Result, how: How) -> None:
    """Time each form once in every round while the others sleep, until the ratios settle."""
    rates: dict[str, list[float]] = {name: [] for name in workers}
    others: dict[str, list[float | None]] = {name: [] for name in workers}
    for i in range(MORE * how.rounds):
        found = figures.ratios(rates).values() if i >= how.rounds else ()
        if i >= how.rounds and all(ratio["settled"] for ratio in found):
            break
        how.say(f"{result['workload']}: round {i + 1}")
        for name, worker in workers.items():
            busy = Others(worker.process.pid)
            rates[name].append(worker("measure", seconds=how.seconds))
            others[name].append(busy.share())
    for name, form in result["forms"].items():
        form["examples_per_second"] = figures.summary(rates[name])
        form["other_processes_cpu"] = others[name]
    result["load"] = os.getloadavg() if hasattr(os, "getloadavg") else None
