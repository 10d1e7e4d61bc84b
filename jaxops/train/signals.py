"""Ctrl-C and SIGTERM during a run are noticed at once and acted on between two calls."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxops.devices import hosts

PREEMPTED = 75
"""Exit code of a run that was stopped by SIGTERM and has saved: EX_TEMPFAIL, "try again"."""


@contextmanager
def signals() -> Iterator[list[int]]:
    """A list to which Ctrl-C and SIGTERM add, so that calls are not cut; a second Ctrl-C raises."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
    if hosts.count() > 1:  # JAX's preemption service handles SIGTERM
        numbers = (signal.SIGINT,)
    before = {number: signal.getsignal(number) for number in numbers}

    def on_signal(number: int, _: Any) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])
            if hosts.count() > 1:  # all processes stop together, as on SIGTERM
                os.kill(os.getpid(), signal.SIGTERM)

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
