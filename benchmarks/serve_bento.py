"""The service of `benchmarks.serve_peers` that BentoML's own command starts, with its batches."""

import os
from typing import Any

import bentoml

from benchmarks.serve_torch import make


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class Bento:
    """Rows of JSON to answers."""

    def __init__(self) -> None:
        self.case = make(os.environ["SERVE_CASE"], os.environ["SERVE_FOLDER"])

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=100)
    def predict(self, rows: list[Any]) -> list[Any]:
        """One answer for each row."""
        return self.case(rows)
