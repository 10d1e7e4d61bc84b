"""A run on a stream, to be killed, in a fork: `main(kind, folder, out, workers, log)`."""

import sys
from pathlib import Path

import jax
import numpy as np

import jaxops as jo

sys.path.insert(0, str(Path(__file__).parent / "data"))


def main(kind, folder, out, workers, log):
    from test_stream import TASK, open_stream

    def on_log(record):
        with open(log, "a") as file:
            print(record["step"], file=file, flush=True)

    state = jo.fit(
        TASK,
        open_stream({kind: folder}, kind, workers=workers),
        optimizer=jo.optim.adam(1e-2),
        batch_size=64,
        steps=200,
        checkpoints=jo.Checkpoints(f"{out}/checkpoints", every=20),
        reports=jo.Reports(on_log, every=1),
        progress=False,
    )
    np.savez(f"{out}/final.npz", *map(np.asarray, jax.tree.leaves(state.params)))
