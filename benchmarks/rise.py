"""By how much memory rises while something runs."""

import os
import threading
from collections.abc import Callable
from pathlib import Path


def resident() -> int:
    """Bytes that this process holds, as Linux tells; 0 elsewhere."""
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.exists() else 0


class Rise:
    """`with Rise() as rise: ...`, then `rise.bytes`: the most above where it began.

    Looked at every two milliseconds, for the process's own peak may be an earlier one, such as a
    compiler's.

    Args:
        peak: of an accelerator's memory, which is counted there; the process's is looked at
            without one.
    """

    def __init__(self, peak: Callable[[], int] | None = None) -> None:
        self.peak, self.bytes = peak, 0

    def __enter__(self) -> "Rise":
        self.start = self.peak() if self.peak else resident()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        if self.peak is None:
            self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.002):
            self.bytes = max(self.bytes, resident() - self.start)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        if self.peak is None:
            self.thread.join()
        now = self.peak() if self.peak else resident()
        self.bytes = max(self.bytes, now - self.start)
