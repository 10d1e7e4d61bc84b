"""What LitServe's worker does for `benchmarks.serve_peers`; a process of its own imports it."""

from typing import Any

import litserve
from fastapi import Request

from benchmarks.serve_torch import make


class API(litserve.LitAPI):
    """Rows of JSON, one a request, which are answered together."""

    def __init__(self, case: str, folder: str, batch: int, delay: float) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=delay)
        self.given = case, folder

    def setup(self, device: str) -> None:
        self.case = make(*self.given)

    def decode_request(self, request: Request) -> Any:
        return request["rows"][0]

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, x: list[Any]) -> list[Any]:
        return self.case(x)

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> Any:
        return {"answer": [output]}
