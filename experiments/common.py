"""Shared by all experiments: command line, folders, logs, pictures and the result."""

import dataclasses
import functools
import importlib.metadata
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import optax
import tyro
from tqdm.auto import tqdm

import jaxops as jo
from jaxops.train import clock
from jaxops.trust import report

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Settings:
    """The settings of every experiment."""

    seeds: int = 1
    """how many times to train, with seeds 0, 1, ..."""
    out: Path | None = None
    """where to write; runs/NAME by default"""
    resume: bool = False
    """go on from the checkpoints of a run that was stopped"""
    smoke: bool = False
    """a few seconds on little data: does it run?"""
    record: bool = False
    """keep the result as experiments/results/NAME.json, for the README"""
    cache: bool = True
    """keep compiled programs in ~/.cache/jaxops for the next start"""


S = TypeVar("S", bound=Settings)


class Log:
    """The records of one training: in a list, as JSON lines, and for TensorBoard."""

    def __init__(self, folder: Path, resume: bool) -> None:
        lines, step = folder / "metrics.jsonl", None
        if resume and (folder / "checkpoints").exists():
            with jo.Checkpointer(folder / "checkpoints") as checkpoints:
                step = checkpoints.latest_step() or 0
        self.json = report.JsonLines(lines, resume_step=step)
        self.tensorboard = report.TensorBoard(folder / "tensorboard", resume_step=step)
        self.records = report.read_json_lines(lines) if lines.exists() else []

    def __call__(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.json(record)
        self.tensorboard(record)


def experiment(
    name: str,
    settings_class: type[S],
    run: Callable[[S, int, Path], dict[str, Any]],
    published: dict[str, Any],
    arguments: list[str] | None = None,
) -> dict[str, Any]:
    """Read the command line, run once for each seed, print and write the result.

    Args:
        name: of the experiment; its folder is runs/NAME.
        settings_class: a frozen dataclass; each field is an option.
        run: `(settings, seed, folder) -> metrics`, one training from start to end; where several
            models are compared, also `models`: model -> metrics, which are the result's `rows`.
        published: metric -> the article's or paper's figure, printed beside ours.
        arguments: instead of the command line's.
    """
    settings = tyro.cli(settings_class, args=arguments, prog=f"python -m experiments.{name}")
    if settings.record and settings.smoke:
        raise ValueError("--record must be left out of a smoke test, got --smoke --record")
    if settings.cache:
        try:
            jo.compilation_cache()
        except (OSError, RuntimeError) as error:  # no home, or one that cannot be written to
            print(f"compiled programs are not kept: {error}")
    out = settings.out or Path("runs") / name
    start = time.perf_counter()
    if not settings.resume:
        for earlier in out.glob("seed-*"):
            print(f"removed: {earlier}, of an earlier run")
            shutil.rmtree(earlier)
    results = []
    for seed in range(settings.seeds):
        folder = out / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        results.append(run(settings, seed, folder))
        if seed > 0:
            results[-1].pop("first_step_seconds", None)  # only the first seed compiles
    rows = [r.pop("models", {}) for r in results]
    result: dict[str, Any] = {
        "experiment": name,
        "metrics": _summaries(results),
        "rows": {
            model: _summaries([r[model] for r in rows if model in r])
            for model in dict.fromkeys(model for r in rows for model in r)
        },
        "published": published,
        "seconds": time.perf_counter() - start,
        "peak_memory_bytes": clock.peak_memory(),
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if k != "out"},
        "versions": versions(),
        "hardware": hardware(),
    }
    text = json.dumps(result, indent=2, default=str) + "\n"
    files = [out / "result.json", *([RESULTS / f"{name}.json"] if settings.record else [])]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    print(f"\n{name}: {settings.seeds} seed(s), {result['seconds']:.1f} s")
    if result["metrics"]:  # tables of trees alone have none
        print(report.table(_rows(result)))
    if result["rows"]:
        print(report.table(_models(result["rows"])))
    written = [*files, *sorted((out / f"seed-{settings.seeds - 1}").iterdir())]
    print("written:", *written, sep="\n  ")
    return result


def each_set(
    sets: Mapping[str, Callable[[Any, int], Any]], settings: Any, seed: int, folder: Path
) -> Iterator[tuple[str, Any]]:
    """(name, what its function tells) of the data sets in `settings.only`, or of all.

    What is told is kept as JSON, so that `--resume` goes on.

    Raises:
        ValueError: `settings.only` names a data set that is not there.
    """
    unknown = set(settings.only) - set(sets)
    if unknown:
        raise ValueError(f"only must be some of {', '.join(sets)}, got {', '.join(unknown)}")
    for name in settings.only or sets:
        done = folder / f"{name}.json"
        if not (settings.resume and done.exists()):
            done.write_text(json.dumps(sets[name](settings, seed)))
        yield name, json.loads(done.read_text())


def _summaries(results: list[dict[str, float]]) -> dict[str, Any]:
    return {
        key: summary([r[key] for r in results if key in r])
        for key in dict.fromkeys(key for r in results for key in r)
    }


def summary(seeds: list[float]) -> dict[str, Any]:
    """Mean and standard deviation of the seeds' figures."""
    std = float(np.std(seeds, ddof=1)) if len(seeds) > 1 else 0
    return {"mean": float(np.mean(seeds)), "std": std, "seeds": seeds}


def _rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "metric": name,
            "mean": f"{value['mean']:.4f}",
            "std": f"{value['std']:.4f}" if len(value["seeds"]) > 1 else "",
            "published": result["published"].get(name, ""),
        }
        for name, value in result["metrics"].items()
    ]


def _models(rows: dict[str, Any]) -> list[dict[str, Any]]:
    def text(value: dict[str, Any]) -> str:
        spread = f" ± {value['std']:.4f}" if len(value["seeds"]) > 1 else ""
        return f"{value['mean']:.4f}{spread}"

    names = dict.fromkeys(name for metrics in rows.values() for name in metrics)
    return [
        {"model": model} | {name: text(metrics[name]) if name in metrics else "" for name in names}
        for model, metrics in rows.items()
    ]


def versions() -> dict[str, str]:
    """Of Python and of what the numbers depend on."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version(), "jaxops": jo.__version__} | {
        name: importlib.metadata.version(name) for name in packages
    }


def hardware() -> str:
    """The processor or accelerator in words."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return f"{jax.local_device_count()} x {device.device_kind}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models) or '?'} cores of {models[0] if models else platform.processor()}"


def speed(
    log: Log,
    task: jo.Task,
    optimizer: optax.GradientTransformation,
    state: jo.TrainState,
    train: dict[str, Any],
    batch_size: int,
) -> dict[str, float]:
    """How fast it went after the first call: also as a share of this device's matrix product."""
    last = [r for r in log.records if r["split"] == "train"][-1]
    if not last["examples_per_second"]:
        return {}  # resumed when there was nothing left to do
    batch = {name: rows[:batch_size] for name, rows in train.items()}
    step = functools.partial(jo.train_step, task, optimizer)
    per_example = clock.flops(step, state, batch) / batch_size
    rate = last["examples_per_second"]
    return {
        "seconds_per_epoch": len(train["label"]) / rate,
        "first_step_seconds": last["first_step_seconds"],
        "gflop_per_second": rate * per_example / 1e9,
        "share_of_peak": rate * per_example / clock.peak_flops(),
    }


def mnist(smoke: bool, validation: float = 0.0) -> jo.data.Dataset:
    """MNIST from the first source there is, which is printed; little of it for a smoke test."""
    digits = jo.data.load("mnist")
    print(f"data: {digits.source}")
    if smoke:
        few = {k: {c: v[:1000] for c, v in rows.items()} for k, rows in digits.splits.items()}
        digits = dataclasses.replace(digits, splits=few)
    return digits.split(validation=validation, stratify="label") if validation else digits


def shakespeare(smoke: bool) -> tuple[str, str]:
    """Train and validation texts of tinyshakespeare; made-up lines for a smoke test."""
    if smoke:
        print("data: made-up lines in place of tinyshakespeare, a smoke test")
        rng = np.random.default_rng(0)
        words = [rng.choice(["king", "speak", "is", "dead"], 6) for _ in range(1500)]
        lines = "".join(f"ROMEO:\n{' '.join(row)}\n" for row in words)
        return lines[:30_000], lines[30_000:]
    data = jo.data.load("tinyshakespeare")
    print(f"data: {data.source}")
    train, validation = (data.splits[name]["text"][0] for name in ("train", "validation"))
    return train, validation


def look_at_test(
    task: jo.Task, state: jo.TrainState, test: dict[str, Any], folder: Path, log: Log
) -> dict[str, float]:
    """Look at the test set, once: metrics, pictures, and the finished model in one file."""
    classes = task.classes

    def confusion(probabilities: Any, batch: Any) -> Any:
        return jo.metrics.confusion(
            probabilities.argmax(-1), batch["label"], len(classes), jo.row_weights(batch)
        )

    values = jo.evaluate(task, state, test, metrics={"confusion": confusion})
    probabilities = jo.predict(task, state, test)
    report.plot_curves(log.records, folder / "curves.png")
    report.plot_confusion(values["confusion"], classes, folder / "confusion.png")
    report.plot_mistakes(
        test["image"], test["label"], probabilities, classes, folder / "mistakes.png"
    )
    jo.save(folder / "model.safetensors", jo.Model(task, state))
    count = len(probabilities)
    say(f"test accuracy {values['accuracy']:.2%} of {count:,} images")
    if count < 10_000:
        say("that is part of MNIST only: not to be compared with figures for the whole of it")
    return {key: values[key] for key in ("accuracy", "loss", "f1_macro")} | {"test_rows": count}


def say(line: str) -> None:
    """Print a line above the progress bar."""
    tqdm.write(line)
