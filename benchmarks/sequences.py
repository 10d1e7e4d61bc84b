"""SASRec beside PyTorch, in turns: `python -m benchmarks.sequences [train] [score] [loss]`.

train: users a second on Amazon Beauty (or histories generated like it) at width 64, depth 2,
context 50, steps of 128 users, with the cross-entropy over all 54,542 items and with one random
negative. First both sides' losses of the same users, with the same weights, must agree; with a
random negative they differ by chance and are only printed. PyTorch's forms: see
`benchmarks.torch_sasrec`. jaxops packs several histories into a row; PyTorch pads.
score: users a second who were not in training, for the exact ten best of 20,000 items that they
have not seen; memory for 10,000 and for 100,000 users; 1,000,000 items.
loss: seconds and memory of the cross-entropy and its gradients for 128 x 50 places of 54,542 items.

Each form is a process of its own, and sleeps while others work. Run it on an otherwise idle
machine. Without `--smoke` about 15 minutes on two cores, of which train takes most.
"""

import datetime
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks import figures, sequence_data
from benchmarks.process import Others, Worker, WorkerError
from benchmarks.sequence_data import Size
from experiments import common
from jaxops.nn.product import has_bfloat16
from jaxops.trust import report

KINDS = ("train", "score", "loss")
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Options:
    """What the command line sets."""

    kinds: tyro.conf.Positional[tuple[str, ...]] = KINDS
    """train, score, loss; all by default"""
    rounds: int = 6
    """turns that each form takes"""
    seconds: float = 4.0
    """of one turn of training, about"""
    out: Path = Path("runs", "benchmarks", "sequences.json")
    torch_python: Path = Path(sys.executable)
    """the interpreter of PyTorch's side"""
    smoke: bool = False
    """tiny sizes: does it run?"""


class Bench:
    """Shared by the parts: options, a folder, and progress lines for the user."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.rounds = 2 if options.smoke else options.rounds
        self.seconds = 0.2 if options.smoke else options.seconds

    def worker(self, side: str, form: str, folder: Path) -> Worker:
        python = sys.executable if side == "jaxops" else str(self.options.torch_python)
        return Worker(f"{side} SASRec", form, folder, python)

    def data(self, name: str, histories: sequence_data.Histories, size: Size) -> Path:
        folder = self.folder / name.replace(" ", "-")
        folder.mkdir()
        sequence_data.write(folder, histories, size)
        return folder


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def train(bench: Bench) -> dict[str, Any]:
    """Both losses, all forms in turns."""
    if bench.options.smoke:
        histories, source = sequence_data.generated(400, 300), "generated"
        size = Size(items=300, context=10, width=8, batch=32)
    else:
        histories, source = sequence_data.beauty()
        size = Size()
    folder = bench.data("train", sequence_data.last(histories, size.context + 1), size)
    return {"data": source, **{loss: in_turns(bench, folder, loss) for loss in ("full", "binary")}}


def in_turns(bench: Bench, folder: Path, loss: str) -> dict[str, Any]:
    """One loss: first the check that all forms agree, then rounds in turns."""
    computes = ("float32", "bfloat16") if has_bfloat16() else ("float32",)
    forms = [("jaxops", c) for c in computes]
    forms += [("torch", form) for form in ("plain", "careful", "compiled")]
    found: dict[str, Any] = {"forms": {}, "missing": {}}
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for side, form in forms:
            name = f"{side} {form}"
            say(f"train, {loss}: {name}: settings")
            worker = stack.enter_context(bench.worker(side, f"train {loss} {form}", folder))
            try:
                if not workers:
                    worker("weights")
                users = 50 if bench.options.smoke else 200
                facts = {"loss": worker("check", users=users)}
                facts |= worker("tune", seconds=bench.seconds)
            except WorkerError as error:
                if form != "compiled":  # which wants a C++ compiler
                    raise
                # not the traceback, which is full of the machine's own paths
                lines = reversed(str(error).splitlines())
                found["missing"][name] = next((x for x in lines if "Error: " in x), "it died")
                continue
            workers[name], found["forms"][name], rates[name] = worker, facts, []
        wanted = found["forms"]["jaxops float32"]["loss"]
        for name, facts in found["forms"].items():
            if loss == "full" and abs(facts["loss"] / wanted - 1) > TOLERANCE:
                raise ValueError(
                    f"{name}: loss must be {wanted} (jaxops float32), got {facts['loss']}"
                )
        for i in range(bench.rounds):
            say(f"train, {loss}: round {i + 1}")
            for name, worker in workers.items():
                busy = Others(worker.process.pid)
                rates[name].append(worker("measure", seconds=bench.seconds))
                found["forms"][name].setdefault("other_processes_cpu", []).append(busy.share())
    for name, values in rates.items():
        found["forms"][name]["users_per_second"] = figures.summary(values)

    def best(side: str) -> str:
        medians = {name: figures.summary(values)["median"] for name, values in rates.items()}
        return max((name for name in rates if name.startswith(side)), key=lambda n: medians[n])

    ours, theirs = best("jaxops"), best("torch")
    found["ratios"] = {
        name: figures.ratio(rates["jaxops float32"], rates[name], name)
        for name in rates
        if name.startswith("torch")
    }
    found["best over best"] = {"of": ours, **figures.ratio(rates[ours], rates[theirs], theirs)}
    return found


def score(bench: Bench) -> dict[str, Any]:
    """Users a second, and memory."""
    few, many, items = (100, 300, 200) if bench.options.smoke else (10_000, 100_000, 20_000)
    million = 3000 if bench.options.smoke else 1_000_000
    asked = {f"{items:,} items": (items, (few, many)), f"{million:,} items": (million, (few // 5,))}
    found: dict[str, Any] = {}
    for name, (count, numbers) in asked.items():
        size = Size(items=count)
        histories = sequence_data.last(sequence_data.generated(max(numbers), count), size.context)
        folder = bench.data(f"score {name}", histories, size)
        for users in numbers:
            say(f"score: {users:,} users, {name}")
            rates: dict[str, list[float]] = {"jaxops": [], "torch": []}
            with ExitStack() as stack:
                workers = {
                    side: stack.enter_context(bench.worker(side, "score", folder)) for side in rates
                }
                for i in range(1 + bench.rounds // 2):
                    for side, worker in workers.items():
                        answer = worker("score", users=users)
                        if i == 0:  # later the memory is there already
                            found[f"{side}, {users:,} users, {name}"] = {"bytes": answer["bytes"]}
                        else:
                            rates[side].append(answer["users_per_second"])
            for side, values in rates.items():
                row = found[f"{side}, {users:,} users, {name}"]
                row["users_per_second"] = figures.summary(values)
    return found


def loss(bench: Bench) -> dict[str, Any]:
    """Whole and by chunks, a process each, so that one's memory is not the other's."""
    size, rows = (Size(items=500, context=5), 4) if bench.options.smoke else (Size(), 128)
    folder = bench.data("loss", sequence_data.generated(4, size.items), size)
    found = {}
    for side in ("jaxops", "torch"):
        for form in ("whole", "chunked"):
            say(f"loss: {side} {form}")
            with bench.worker(side, f"loss {form}", folder) as worker:
                found[f"{side} {form}"] = worker("run", rows=rows, repeats=3)
    return found


def rows(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The tables."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for kind in ("full", "binary"):
        found = results.get("train", {}).get(kind)
        if found:
            tables[f"train, {kind}"] = [
                {
                    "form": name,
                    "users/s": f"{facts['users_per_second']['median']:,.0f}",
                    "jaxops float32 over it": figures.shown(found["ratios"].get(name)),
                    "loss": f"{facts['loss']:.4f}",
                    "peak MB": f"{facts['peak_memory'] / 1e6:,.0f}",
                    "chosen": facts["chosen"],
                }
                for name, facts in found["forms"].items()
            ]
    if "score" in results:
        tables["score"] = [
            {
                "what": name,
                "users/s": f"{facts['users_per_second']['median']:,.0f}",
                "memory rose, MB": f"{facts['bytes'] / 1e6:,.0f}",
            }
            for name, facts in results["score"].items()
        ]
    if "loss" in results:
        tables["loss"] = [
            {
                "form": name,
                "seconds": f"{facts['seconds']:.3f}",
                "memory rose, MB": f"{facts['bytes'] / 1e6:,.0f}",
            }
            for name, facts in results["loss"].items()
        ]
    return tables


def run(options: Options) -> dict[str, Any]:
    """Measure, print, write."""
    unknown = sorted(set(options.kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"names must be of {', '.join(KINDS)}, got {', '.join(unknown)}")
    results: dict[str, Any] = {}
    parts = {"train": train, "score": score, "loss": loss}
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(options, Path(temporary))
        for kind in options.kinds:
            results[kind] = parts[kind](bench)
            document = {
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "hardware": common.hardware(),
                "versions": common.versions(),
                "cores": os.cpu_count(),
                **results,
            }
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(document, indent=1) + "\n")  # now: it may be cut off
    for name, table in rows(results).items():
        print(f"\n{name}\n{report.table(table)}")
    for kind in ("full", "binary"):
        if best := results.get("train", {}).get(kind, {}).get("best over best"):
            print(f"{kind}: {best['of']} over {best['over']}: {figures.shown(best)}")
    print(f"\nwritten: {options.out}")
    return results


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__, prog="python -m benchmarks.sequences"))
