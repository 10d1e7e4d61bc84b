"""The command line: fit, predict, evaluate, show, export, serve, monitor, explain, audit models.

    jaxops fit tabular customers.csv --label left --out churn.safetensors
    jaxops predict churn.safetensors new.csv --out scores.parquet
    jaxops predict churn.safetensors big.parquet --out scores/
    jaxops evaluate churn.safetensors test.csv
    jaxops show churn.safetensors
    jaxops card churn.safetensors test.csv --protected sex --out card.html
    jaxops bench churn.safetensors new.csv
    jaxops size churn.safetensors --hardware H100
    jaxops export churn.safetensors out/ --platforms cpu,cuda,tpu
    jaxops compress churn.safetensors small.safetensors --structured 0.5
    jaxops serve churn.safetensors --port 8000
    jaxops monitor churn.safetensors --sketches sketches/ --out report/
    jaxops retrain churn.safetensors --data new.parquet --out better.safetensors
    jaxops explain churn.safetensors few.csv --out why.html
    jaxops audit churn.safetensors test.csv --protected sex --out audit.html

An error is printed as one line on stderr, and the exit code is 1; `--debug` adds the traceback.
Exit code 2 means that the command line could not be parsed, 3 that `monitor` has an alert or that
`retrain` keeps the model, and 130 that it was interrupted.
"""

import ast
import dataclasses
import hashlib
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax

from jaxops import _table
from jaxops._optional import require
from jaxops.cli_audit import Audit
from jaxops.cli_compress import Compress
from jaxops.cli_explain import Explain
from jaxops.cli_fairness import Card
from jaxops.cli_monitor import Monitor, Retrain
from jaxops.cli_rooms import (
    Customers,
    Forecast,
    Language,
    Recommend,
    Survival,
    Tabular,
    Text,
    Vision,
)
from jaxops.cli_serve import Key, Serve
from jaxops.model.describing import described
from jaxops.model.export import export
from jaxops.model.files import load, save
from jaxops.model.finished import Model
from jaxops.model.scoring import answers, score, whole, write
from jaxops.monitor.observing import observed
from jaxops.monitor.snapshots import write_snapshot
from jaxops.optim import adam
from jaxops.task import example
from jaxops.train.clock import peak_memory
from jaxops.train.size import size
from jaxops.trust.page import page

if TYPE_CHECKING:
    import tyro
else:
    tyro = require("tyro", extra="cli")


@dataclass(frozen=True)
class Fit:
    """Train a model and write its file."""

    room: Tabular | Survival | Customers | Text | Vision | Recommend | Forecast | Language

    def run(self) -> None:
        """Train, and print where the model file is."""
        module = importlib.import_module(f"jaxops.{type(self.room).__name__.lower()}")
        arguments = {f.name: getattr(self.room, f.name) for f in dataclasses.fields(self.room)}
        data, out = arguments.pop("data"), arguments.pop("out")
        made = method(module, arguments.pop("method"))
        arguments = {name: value for name, value in arguments.items() if value is not None}
        out.parent.mkdir(parents=True, exist_ok=True)
        save(out, module.fit(data, made, **arguments))
        print(f"written: {out}")


@dataclass(frozen=True)
class Predict:
    """Write a model's answers for a file of data, as Parquet or CSV."""

    model: tyro.conf.Positional[Path]
    """the model file"""
    data: tyro.conf.Positional[str]
    """the data to predict for; see the room's `predict`"""
    out: str
    """the file to write, .parquet or .csv; or a folder (end it with /), which survives a kill"""
    cutoff: str | None = None
    """for models of customers: the last day of events to use, by default that of training"""
    ray: int | None = None
    """on a Ray cluster, into a folder: number of actors, each with a model"""
    sketches: Path | None = None
    """a folder for the sketch of the rows, for a report of drift"""

    def run(self) -> None:
        """Predict and write part by part if rows are independent, and all at once if not."""
        out = Path(self.out)
        folder = self.out.endswith("/") or not out.suffix
        if not folder and out.suffix not in (".parquet", ".csv"):
            raise ValueError(f"out must end in .parquet, .csv or / (a folder), got {out}")
        if self.ray is not None:
            if not folder:
                raise ValueError(f"ray must be left out for one file, {out}, got {self.ray}")
            if self.ray < 1:
                raise ValueError(f"ray must be at least 1, got {self.ray}")
            jax.config.update("jax_platforms", "cpu")  # the actors need the accelerators
        model = load(self.model)
        room_of(model, self.model)
        options: dict[str, Any] = {} if self.cutoff is None else {"cutoff": self.cutoff}
        if options and model.room != "customers":
            raise ValueError(f"cutoff must be left out for {model.room}, got {self.cutoff}")
        if folder:
            print(score(self.model, self.data, out, self.ray, self.sketches))
            return
        watched: Any = model if self.sketches is None else observed(model)
        with whole(out) as beside:
            rows = write(beside, answers(watched, self.data, **options))
        if self.sketches is not None:
            write_snapshot(self.sketches, watched.observer, self.model.stem)
        print(f"written: {out}, {rows:,} rows")


@dataclass(frozen=True)
class Evaluate:
    """Score a model on data with known labels; each figure has its interval."""

    model: tyro.conf.Positional[Path]
    """the model file"""
    data: tyro.conf.Positional[str]
    """the data to score on; see the room's `evaluate`"""

    def run(self) -> None:
        """Print the figures."""
        model = load(self.model)
        scored = room_of(model, self.model).evaluate(model, self.data)
        print(f"{len(scored):,} {scored.unit}s\n{scored}")


@dataclass(frozen=True)
class Show:
    """Print what a model file holds: inputs, classes, validation figures, versions."""

    model: tyro.conf.Positional[Path]
    """the model file"""
    html: Path | None = None
    """also write an HTML page to this file"""
    data: str | None = None
    """data to score on; the page then has figures and pictures of them"""

    def run(self) -> None:
        """Print what the model is and its validation figures, and write the page."""
        if self.data is not None and self.html is None:
            raise ValueError(f"data must be left out without --html, got {self.data}")
        model = load(self.model)
        tables = described(model)
        print("\n\n".join(_table.table(rows) for rows in tables.values()))
        if self.html is None:
            return
        scored = None
        if self.data is not None:
            scored = room_of(model, self.model).evaluate(model, self.data)
        classes = getattr(model.task, "classes", ())
        self.html.parent.mkdir(parents=True, exist_ok=True)
        self.html.write_text(page(self.model.name, tables, scored, classes), encoding="utf-8")
        print(f"written: {self.html}")


@dataclass(frozen=True)
class Bench:
    """Measure how fast a model answers on this machine."""

    model: tyro.conf.Positional[Path]
    """the model file"""
    data: tyro.conf.Positional[str]
    """the data to predict for"""
    rounds: int = 5
    """number of calls that are timed after the first call, which compiles"""

    def run(self) -> None:
        """Print the seconds of the first call, the median of the later calls, and the memory."""
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        model, seconds = load(self.model), []
        room_of(model, self.model)
        for _ in range(1 + self.rounds):
            start = time.perf_counter()
            rows = sum(len(frame) for frame in answers(model, self.data))
            seconds.append(time.perf_counter() - start)
        first, *rest = seconds
        median = statistics.median(rest)
        row = {
            "rows": f"{rows:,}",
            "first call, s": f"{first:.3g}",
            "median, s": f"{median:.3g}",
            "rows/s": f"{rows / median:,.0f}",
            "peak memory, MB": f"{peak_memory() / 1e6:,.0f}",
        }
        print(_table.table([row]))


@dataclass(frozen=True)
class Size:
    """Compute how much memory and how many seconds a training step of the model needs."""

    model: tyro.conf.Positional[Path]
    """the model file"""
    batch_size: int = 256
    """number of rows in a step"""
    hardware: str = "H100"
    """the hardware: a name in `jaxops.devices.hardware.HARDWARE`"""
    compute: str = "float32"
    """the dtype of matrix products: float32, bfloat16 or float16"""

    def run(self) -> None:
        """Trace one step with Adam, without running it, and print the figures."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        task, _ = load(self.model).trained()
        rows = {
            name: jax.ShapeDtypeStruct((self.batch_size, *column.shape[1:]), column.dtype)
            for name, column in example(task.columns).items()
        }
        print(size(task, rows, optimizer=adam(1e-3), compute=self.compute, hardware=self.hardware))


@dataclass(frozen=True)
class Export:
    """Write a model as a program that needs JAX alone, with a `run.py` that loads it."""

    model: tyro.conf.Positional[Path]
    """the model file"""
    out: tyro.conf.Positional[Path]
    """the folder to write"""
    batch: int | Literal["any"] = "any"
    """rows of a call"""
    platforms: str = "cpu"
    """what it is for, such as cpu,cuda,tpu"""
    compile_for: tuple[int, ...] = ()
    """numbers of rows for which compiled programs are kept beside, for machines like this one"""
    length: int | Literal["any"] = "any"
    """length of the columns that have a free one; a language model needs a number"""
    k: int | None = None
    """of a recommender: how many items"""
    exclude_seen: bool | None = None
    """of a recommender: leave out the items of the history"""
    levels: tuple[float, ...] | None = None
    """of a forecast: the levels of its quantiles"""

    def run(self) -> None:
        """Write the folder, and say how large it is."""
        platforms = [one.strip() for one in self.platforms.split(",")]
        given = {"k": self.k, "exclude_seen": self.exclude_seen, "levels": self.levels}
        options: Any = {name: one for name, one in given.items() if one is not None}
        export(
            load(self.model),
            self.out,
            self.batch,
            platforms,
            self.length,
            self.compile_for,
            **options,
        )
        size = sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file())
        print(f"written: {self.out}, {size / 1e3:,.0f} kB")
        digest = hashlib.sha256((self.out / "manifest.json").read_bytes()).hexdigest()
        print(f"SHA-256 of manifest.json, for load(folder, sha256): {digest}")


def room_of(model: Model, path: Any) -> Any:
    """The module of the room that a model belongs to.

    Raises:
        ValueError: a model without a reader.
    """
    if not model.room:
        raise ValueError(
            f"model must have a reader, as models from ROOM.fit do, got {path}, which reads arrays"
        )
    return importlib.import_module(f"jaxops.{model.room}")


def method(room: Any, text: str) -> Any:
    """The object that a text such as "EASE(l2=100)" describes: a call of a public name of the room.

    Args:
        room: the module of a room.
        text: a name, or a call of it whose arguments are numbers, strings, tuples of them, or
            such calls.

    Raises:
        ValueError: any other text, a name that the room does not have, or arguments that the named
            class or function refuses; the message repeats its own error.

    >>> from jaxops import tabular
    >>> method(tabular, "MLP((8, 4), dropout=0.1)").widths
    (8, 4)
    >>> method(tabular, "MLP((8,), embedding=Periodic(width=4))").embedding.width
    4
    """
    if not text:
        return None
    try:
        make = _parsed(room, ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError):
        raise ValueError(
            f'method must be such as "MLP(dropout=0.1)", of {room.__name__}, got {text}'
        ) from None
    try:
        return make()
    except TypeError as error:
        raise ValueError(f"method must have arguments that fit, got {text}: {error}") from None


def _parsed(room: Any, tree: Any) -> Callable[[], Any]:
    """A function that makes the object which an expression describes: a public name, or its call.

    Raises:
        ValueError: another expression.
    """
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    if name not in room.__all__:
        raise ValueError(f"a name of {room.__name__} is wanted, got {name!r}")

    def value(part: Any) -> Callable[[], Any]:
        if isinstance(part, ast.Call):
            return _parsed(room, part)
        constant = ast.literal_eval(part)
        return lambda: constant

    args = [value(arg) for arg in call.args]
    named = {str(k.arg): value(k.value) for k in call.keywords}
    make = getattr(room, name)
    return lambda: make(*(arg() for arg in args), **{k: arg() for k, arg in named.items()})


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code.

    >>> main(["show", "nothing.safetensors"])
    1
    """
    given = sys.argv[1:] if argv is None else argv
    arguments = [word for word in given if word != "--debug"]
    command: Any = tyro.cli(
        Fit
        | Predict
        | Evaluate
        | Show
        | Card
        | Bench
        | Size
        | Export
        | Compress
        | Serve
        | Key
        | Monitor
        | Retrain
        | Explain
        | Audit,
        args=arguments,
        prog="jaxops",
        description=__doc__,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    try:
        code: int | None = command.run()
    except Exception as error:
        if len(arguments) < len(given):
            raise
        print(f"jaxops: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("jaxops: interrupted", file=sys.stderr)
        return 130
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
