"""Measure jaxops and PyTorch in turns, each form in a process of its own.

Both sides begin with the same weights and see the same batches; a workload whose first 20 losses
or whose accuracy after the check differ is reported as failed and not timed. Then the forms take
turns (A B A B), and what is reported are medians over rounds, and ratios round by round. A ratio
whose median is not known well enough after three times the rounds is printed as unsettled. Use a
machine that does nothing else.

    python -m benchmarks.run                        all of it, about 25 minutes on two cores
    python -m benchmarks.run C01 C03 --rounds 9     some of it, more surely
    python -m benchmarks.run --check                fails if a ratio is below benchmarks/floors.json

Workloads: C01, C02, C03, C04, C08 train the articles' networks at their batch, C01-1024 and so on
at 1,024; gpt-12 and gpt-64 train a small GPT, gpt-large nanoGPT's (by default on a GPU alone);
C01-predict-1, C01-predict-1024, C03-predict-1, C03-predict-1024 ask a model; C01-sweep trains 32
seeds in one program (by default on a GPU alone). Data come from JAXOPS_DATA_DIR.
"""

import datetime
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks import chart, data, figures, workloads
from benchmarks.measure import How, measure
from benchmarks.process import Worker
from experiments import common
from jaxops.trust import report

HERE = Path(__file__).parent
NO_TORCH = """PyTorch is not here, and there is nothing to compare with. Get it:
    pip install "jaxops[bench]"
or name a Python that has it and NumPy:
    python -m benchmarks.run --torch-python path/to/python"""


@dataclass(frozen=True)
class Options:
    """What the command line sets."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """workloads; all that suit this machine by default"""
    rounds: int = 6
    """turns that each form takes; up to three times as many while a ratio is unsettled"""
    seconds: float = 0.7
    """of one turn, about"""
    out: Path | None = None
    """the JSON, beside which the chart goes; benchmarks/results/HARDWARE.json by default, and
    for a run of some workloads runs/benchmarks/HARDWARE.json"""
    torch_python: Path = Path(sys.executable)
    """the interpreter of PyTorch's side, which needs NumPy and PyTorch alone"""
    check: bool = False
    """exit with 1 if a settled ratio is below its floor, or a workload fails"""


def has_torch(python: Path) -> bool:
    """Whether that interpreter could import PyTorch."""
    if python == Path(sys.executable):
        return importlib.util.find_spec("torch") is not None
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    try:
        return subprocess.run([python, "-c", code], check=False).returncode == 0
    except OSError:
        return False


def machine(options: Options, folder: Path) -> dict[str, Any]:
    """Versions of both sides, the hardware, and the peaks of its matrix product."""
    with (
        Worker("jaxops", "machine", folder, sys.executable) as ours,
        Worker("torch", "machine", folder, str(options.torch_python)) as theirs,
    ):
        facts, others = ours("facts"), theirs("facts")
        dtypes = ("float32", "bfloat16")
        peaks = {
            d: {"jaxops": ours("peak", dtype=d), "torch": theirs("peak", dtype=d)} for d in dtypes
        }
    gpu = facts["platform"] != "cpu"
    return {
        "hardware": facts["device"] if gpu else common.hardware(),
        "platform": facts["platform"],
        "bfloat16": facts["bfloat16"],
        "compiler_options": facts["compiler_options"],
        "environment": environment(os.environ),
        "versions": {"jaxops": common.versions(), "torch": others["versions"]},
        "peak_flop_per_second": peaks,
    }


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Those that are known to change speed, as found.

    >>> environment({"XLA_FLAGS": "--x", "HOME": "/root", "MALLOC_ARENA_MAX": "1"})
    {'MALLOC_ARENA_MAX': '1', 'XLA_FLAGS': '--x'}
    """
    pattern = r"XLA_.*|OMP_.*|MKL_.*|MALLOC_.*|GLIBC_TUNABLES|LD_PRELOAD"
    return {name: variables[name] for name in sorted(variables) if re.fullmatch(pattern, name)}


def default_out(facts: dict[str, Any], names: tuple[str, ...]) -> Path:
    """cpu.json, or the accelerator's name."""
    cpu = facts["platform"] == "cpu"
    slug = "cpu" if cpu else re.sub(r"[^a-z0-9]+", "-", facts["hardware"].lower()).strip("-")
    folder = Path("runs", "benchmarks") if names else HERE / "results"
    return folder / f"{slug}.json"


def run(options: Options) -> int:
    """Measure, print, write; the exit code."""
    unknown = sorted(set(options.names) - set(workloads.BY_NAME))
    if unknown:
        print(f"names must be of {', '.join(workloads.BY_NAME)}, got {', '.join(unknown)}")
        return 2
    if not has_torch(options.torch_python):
        print(NO_TORCH)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        facts = machine(options, Path(temporary))
        out = options.out or default_out(facts, options.names)
        _print_machine(facts)
        results: list[figures.Result] = []
        for result in _each(options, Path(temporary), facts):
            results.append(result)
            _print_forms(result)  # now, as it is written: a long run may be cut off
            _write(out, options, facts, results)
    print(f"\njaxops over PyTorch\n{report.table([figures.ratio_row(r) for r in results])}\n")
    print(f"written: {out} {out.with_suffix('.png')}")
    if not options.check:
        return 1 if any("failed" in result for result in results) else 0
    floors = json.loads((HERE / "floors.json").read_text()).get(facts["platform"], {})
    problems = figures.below_floor(results, floors)
    print(*problems or ["no settled ratio is below its floor"], sep="\n")
    print(*figures.unjudged(results, floors), sep="\n")
    return 1 if problems else 0


def _each(options: Options, folder: Path, facts: dict[str, Any]) -> Iterator[figures.Result]:
    start = time.perf_counter()

    def say(line: str) -> None:
        print(f"{time.perf_counter() - start:5.0f} s  {line}", file=sys.stderr, flush=True)

    how = How(
        rounds=options.rounds,
        seconds=options.seconds,
        pythons={"jaxops": sys.executable, "torch": str(options.torch_python)},
        compute=("float32", "bfloat16") if facts["bfloat16"] else ("float32",),
        peaks={d: max(of.values()) for d, of in facts["peak_flop_per_second"].items()},
        gpu=facts["platform"] != "cpu",
        say=say,
    )
    here, elsewhere = workloads.chosen(options.names, how.gpu)
    for workload in here:
        columns, source = data.columns(workload)
        result = measure(workload, columns, folder / workload.name, how)
        for key in ("failed", "missing"):
            if key in result:
                print(f"{workload.name}: {key.upper()}: {result[key]}", file=sys.stderr)
        place = os.environ.get("JAXOPS_DATA_DIR")  # of this machine
        yield {**result, "data": source.replace(place, "JAXOPS_DATA_DIR") if place else source}
    for workload in elsewhere:
        yield {"workload": workload.name, "targets": {}, "forms": {}, "not_run": "no GPU"}


def _write(
    out: Path, options: Options, facts: dict[str, Any], results: list[figures.Result]
) -> None:
    document = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **facts,
        "cores": os.cpu_count(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "unsettled_above": figures.UNSETTLED,
        "results": results,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    chart.plot(document, out.with_suffix(".png"))


def _print_machine(facts: dict[str, Any]) -> None:
    versions = facts["versions"]
    jax, torch = versions["jaxops"]["jax"], versions["torch"]["torch"]
    print(f"\n{facts['hardware']}; jax {jax}, torch {torch}")
    for dtype, of in facts["peak_flop_per_second"].items():
        rates = ", ".join(f"{side} {rate / 1e9:,.0f}" for side, rate in of.items())
        print(f"matrix product, {dtype}, GFLOP/s: {rates}")


def _print_forms(result: figures.Result) -> None:
    """One workload's forms, and its ratio to PyTorch."""
    rows = figures.form_rows(result)
    table = f"{report.table(rows)}\n" if rows else ""
    lines = [f"\n{table}{report.table([figures.ratio_row(result)])}", *figures.disturbed([result])]
    print(*lines, sep="\n", flush=True)


def main() -> None:
    """The command line."""
    sys.exit(run(tyro.cli(Options, description=__doc__, prog="python -m benchmarks.run")))


if __name__ == "__main__":
    main()
