"""DLinear and PatchTST beside PyTorch, in turns: `python -m benchmarks.forecasting [train] [many]`.

train: windows a second on ETTh1 (or a series made like it), 7 channels to 7: DLinear from 336 to 96
steps in batches of 32, PatchTST from 512 to 96 in batches of 128, Adam. First both sides' losses of
the same windows, with the same weights, must agree. PyTorch's forms: see
`benchmarks.torch_forecasting`.
many: 100,000 series forecast in one call, seconds and memory.

Each form is a process of its own, and sleeps while others work. Run it on an otherwise idle
machine. Without `--smoke` about ten minutes on two cores.
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

from benchmarks import figures, forecasting_data
from benchmarks.forecasting_data import SIZES, Size
from benchmarks.process import Others, Worker, WorkerError
from experiments import common
from jaxops.nn.product import has_bfloat16
from jaxops.trust import report

KINDS = ("train", "many")
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Options:
    """What the command line sets."""

    kinds: tyro.conf.Positional[tuple[str, ...]] = KINDS
    """train, many; both by default"""
    rounds: int = 6
    """turns that each form takes"""
    seconds: float = 4.0
    """of one turn of training, about"""
    series: int = 100_000
    """forecast in one call"""
    out: Path = Path("runs", "benchmarks", "forecasting.json")
    torch_python: Path = Path(sys.executable)
    """the interpreter of PyTorch's side"""
    smoke: bool = False
    """tiny sizes: does it run?"""


class Bench:
    """Shared by the parts: options, a folder for each network."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.rounds = 2 if options.smoke else options.rounds
        self.seconds = 0.2 if options.smoke else options.seconds
        values, self.source = forecasting_data.etth1()
        for name, size in SIZES.items():
            if options.smoke:
                size = Size(name, 48, horizon=8, batch=16, train=300)
            (folder / name).mkdir()
            forecasting_data.write(folder / name, values, size)

    def worker(self, side: str, form: str, network: str) -> Worker:
        python = sys.executable if side == "jaxops" else str(self.options.torch_python)
        return Worker(f"{side} forecasting", form, self.folder / network, python)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def train(bench: Bench) -> dict[str, Any]:
    """Both networks, all forms in turns."""
    return {"data": bench.source, **{name: in_turns(bench, name) for name in SIZES}}


def in_turns(bench: Bench, network: str) -> dict[str, Any]:
    """One network: first the check that all forms agree, then rounds in turns."""
    computes = ("float32", "bfloat16") if has_bfloat16() else ("float32",)
    forms = [("jaxops", c) for c in computes]
    forms += [("torch", form) for form in ("plain", "careful", "compiled")]
    found: dict[str, Any] = {"forms": {}, "missing": {}}
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for side, form in forms:
            name = f"{side} {form}"
            say(f"train, {network}: {name}: settings")
            worker = stack.enter_context(bench.worker(side, f"train {form}", network))
            try:
                facts = {"first_step_seconds": worker("first")} if workers else {}
                if not workers:  # its first step is timed in a process of its own
                    worker("weights")
                    with bench.worker(side, f"train {form}", network) as alone:
                        facts = {"first_step_seconds": alone("first")}
                facts |= {"loss": worker("check", windows=64)}
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
            if abs(facts["loss"] / wanted - 1) > TOLERANCE:
                raise ValueError(
                    f"{name}: loss must be {wanted} (jaxops float32), got {facts['loss']}"
                )
        for i in range(bench.rounds):
            say(f"train, {network}: round {i + 1}")
            for name, worker in workers.items():
                busy = Others(worker.process.pid)
                rates[name].append(worker("measure", seconds=bench.seconds))
                found["forms"][name].setdefault("other_processes_cpu", []).append(busy.share())
    for name, values in rates.items():
        found["forms"][name]["windows_per_second"] = figures.summary(values)
    found["ratios"] = {
        name: figures.ratio(rates["jaxops float32"], rates[name], name)
        for name in rates
        if name.startswith("torch")
    }
    best = max(found["ratios"], key=lambda n: found["forms"][n]["windows_per_second"]["median"])
    found["best"] = found["ratios"][best]
    return found


def many(bench: Bench) -> dict[str, Any]:
    """All series in one call; the sides are processes of their own, in turns."""
    count = 300 if bench.options.smoke else bench.options.series
    found: dict[str, Any] = {"series": count}
    for network in SIZES:
        for side in ("jaxops", "torch"):
            say(f"many: {network}, {side}")
            with bench.worker(side, "many", network) as worker:
                found[f"{side} {network}"] = worker("run", series=count, repeats=3)
    return found


def rows(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The tables."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for network in SIZES if "train" in results else ():
        found = results["train"][network]
        tables[f"train, {network}"] = [
            {
                "form": name,
                "windows/s": f"{facts['windows_per_second']['median']:,.0f}",
                "jaxops float32 over it": figures.shown(found["ratios"].get(name)),
                "first step, s": f"{facts['first_step_seconds']:.1f}",
                "peak MB": f"{facts['peak_memory'] / 1e6:,.0f}",
                "loss": f"{facts['loss']:.4f}",
                "chosen": facts["chosen"],
            }
            for name, facts in found["forms"].items()
        ]
    if "many" in results:
        tables[f"{results['many']['series']:,} series in one call"] = [
            {
                "form": name,
                "seconds": f"{facts['seconds']:.3f}",
                "memory rose, MB": f"{facts['bytes'] / 1e6:,.0f}",
            }
            for name, facts in results["many"].items()
            if name != "series"
        ]
    return tables


def run(options: Options) -> dict[str, Any]:
    """Measure, print, write."""
    unknown = sorted(set(options.kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"names must be of {', '.join(KINDS)}, got {', '.join(unknown)}")
    results: dict[str, Any] = {}
    parts = {"train": train, "many": many}
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
    for network in SIZES if "train" in results else ():
        best = results["train"][network]["best"]
        print(f"{network}: jaxops float32 over {best['over']}: {figures.shown(best)}")
    print(f"\nwritten: {options.out}")
    return results


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__, prog="python -m benchmarks.forecasting"))
