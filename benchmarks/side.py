"""Shared by both sides: the workload, its data and its batches, as the suite wrote them."""

from pathlib import Path

from benchmarks import workloads


class Side:
    """One form of one side; its methods answer the commands of `benchmarks.worker`.

    NumPy is all that it needs, since the sides may run under different interpreters.

    Args:
        form: of that side, such as "float32" or "careful".
        folder: what `workloads.write` wrote.
        started: when this process was started, `time.time()`.

    Attributes:
        raw: "train_x" and so on, as written.
        batches: (orders, steps, batch) rows of the check.
    """

    def __init__(self, form: str, folder: str, started: float) -> None:
        self.form, self.folder, self.started = form, Path(folder), started
        self.workload, self.raw, self.batches = workloads.read(self.folder)
