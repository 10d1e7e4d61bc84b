"""A run to be killed or interrupted, in a fork: `main(directory, kind, changes)`."""

import json
import time

import jax
from small import train


def main(directory, kind, changes):
    jax.config.update("jax_num_cpu_devices", 8)
    pause = changes.pop("pause")
    with open(f"{directory}/records.jsonl", "a") as log:

        def on_log(record):
            print(json.dumps(record), file=log, flush=True)
            time.sleep(pause)

        train(kind, f"{directory}/checkpoints", on_log, **changes)
