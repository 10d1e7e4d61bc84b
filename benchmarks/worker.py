"""One form of one side, in a process of its own: a command a line in, an answer a line out.

It sleeps while the other side works: `readline` waits in the kernel. Answers go to a private copy
of stdout; what anything else prints there goes to stderr.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO


def serve(make: Callable[[], Any], commands: TextIO, answers: TextIO) -> None:
    """Answer each command `{"do": method, **arguments}` by `{"ok": value}` or `{"error": text}`.

    Args:
        make: makes the object whose methods are called, for the first command.
        commands: one JSON object a line.
        answers: likewise.
    """
    worker = None
    for line in iter(commands.readline, ""):
        try:
            command = json.loads(line)
            worker = worker or make()
            answer = {"ok": getattr(worker, command.pop("do"))(**command)}
            text = json.dumps(answer)
        except Exception:
            text = json.dumps({"error": traceback.format_exc()})
        answers.write(text + "\n")
        answers.flush()


def private_stdout() -> TextIO:
    """A copy of stdout for us alone; file descriptor 1 becomes stderr, also for C libraries."""
    sys.stdout.flush()
    private = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return private


SIDES = {
    "jaxops": "jax_side",
    "torch": "torch_side",
    "jaxops SASRec": "jax_sasrec",
    "torch SASRec": "torch_sasrec",
    "jaxops forecasting": "jax_forecasting",
    "torch forecasting": "torch_forecasting",
    "jaxops private": "private_jax",
    "Opacus": "private_opacus",
    "JAX-Privacy": "private_jax_privacy",
}


def make_side(name: str, form: str, folder: str, started: float) -> Any:
    """The side of a command line, one of `SIDES`."""
    side: Any = importlib.import_module(f"benchmarks.{SIDES[name]}")
    return side.make(form, folder, started)


if __name__ == "__main__":
    _answers = private_stdout()
    _side, _form, _folder, _started = sys.argv[1:]
    serve(lambda: make_side(_side, _form, _folder, float(_started)), sys.stdin, _answers)
