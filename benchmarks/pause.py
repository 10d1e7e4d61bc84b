"""What a checkpoint costs the loop: `python -m benchmarks.pause`.

`fit` saves at the end of each epoch, its default. The loop waits while the arrays are copied to the
host; they are written while training continues. The pause is the time of the copy, its share that
of the time between two saves. The next columns are the seconds of all epochs but the first with
checkpoints and without: their difference is what writing takes from the training beside it (on few
cores), and the noise of the machine. An epoch here is 12,800 images; with MNIST's 60,000 the share
is a fifth.
"""

import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np

import jaxops as jo
from jaxops import optim, vision


def timed(
    task: jo.Task, data: Any, epochs: int, directory: str | None
) -> tuple[list[float], float]:
    """The seconds of each save in `fit`, and those of all epochs but the first."""
    pauses, ends = [], []
    save = jo.Checkpointer.save

    def measured(self: Any, *args: Any) -> None:
        start = time.perf_counter()
        save(self, *args)
        pauses.append(time.perf_counter() - start)

    jo.Checkpointer.save = measured  # type: ignore[method-assign, assignment]
    try:
        jo.fit(
            task,
            data,
            optimizer=optim.adam(1e-3),
            batch_size=64,
            epochs=epochs,
            checkpoints=directory,
            reports=lambda record: ends.append(time.perf_counter()),
            progress=False,
        )
    finally:
        jo.Checkpointer.save = save  # type: ignore[method-assign]
    return pauses, ends[-1] - ends[0]


def main(rows: int = 12_800, epochs: int = 4) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (rows, 28, 28, 1), np.uint8)
    data = {"image": image, "label": rng.integers(0, 10, rows).astype(np.int32)}
    tasks = {
        "C03's network": vision.classifier(vision.CNN(classes=10)),
        "three layers of 2,000": vision.classifier(vision.MLP((2000, 2000, 2000))),
    }
    print("| state | MB | save to save, s | pause, ms: median (most) | share | all, s | without |")
    print("|---|---|---|---|---|---|---|")
    for name, task in tasks.items():
        state = jo.init_state(task, optim.adam(1e-3), 0, {k: v[:1] for k, v in data.items()})
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state[:-1])) / 1e6
        with tempfile.TemporaryDirectory() as folder:
            pauses, seconds = timed(task, data, epochs, folder)
        _, without = timed(task, data, epochs, None)
        interval, pause = seconds / (epochs - 1), statistics.median(pauses)
        print(
            f"| {name} | {size:.0f} | {interval:.2f} | {1e3 * pause:.0f} ({1e3 * max(pauses):.0f}) "
            f"| {pause / interval:.1%} | {seconds:.1f} | {without:.1f} |"
        )


if __name__ == "__main__":
    main()
