"""The peers of `benchmarks.serve`: a server of PyTorch's network, with the interpreter of a venv.

    python -m benchmarks.serve_peers fastapi C01 FOLDER PORT

It needs torch, tabm and the server's own package: fastapi with uvicorn (and its fast parts uvloop
and httptools) and orjson, litserve, bentoml, or mlflow. Each has the settings that its own
documents name for low latency, and answers one row or several.
"""

import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.serve_torch import make

BATCH, DELAY = 64, 0.001  # rows and seconds of servers that join requests


def fastapi(case: str, folder: str, port: int) -> None:
    """A route by hand: orjson, no validation, computed in the event loop; and one of bytes."""
    import orjson
    import uvicorn
    from fastapi import FastAPI, Request, Response

    answers, app = make(case, folder), FastAPI(openapi_url=None)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        rows = orjson.loads(await request.body())["rows"]
        return Response(orjson.dumps({"answer": answers(rows)}), media_type="application/json")

    @app.post("/bytes")
    async def of_bytes(request: Request) -> Response:
        found = answers.bytes(await request.body())
        return Response(found, media_type="application/octet-stream")

    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False, log_level="warning")


def litserve(case: str, folder: str, port: int) -> None:
    """One worker beside the server, which joins requests."""
    from litserve import LitServer

    from benchmarks.serve_lit import API

    server = LitServer(API(case, folder, BATCH, DELAY), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


def bentoml(case: str, folder: str, port: int) -> None:
    """Its own command, on the service in `benchmarks.serve_bento`."""
    os.environ |= {"SERVE_CASE": case, "SERVE_FOLDER": folder, "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", "serve", "benchmarks.serve_bento:Bento"]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(port)])


def mlflow(case: str, folder: str, port: int) -> None:
    """Its own command, on a pyfunc model of the network without a signature, one worker."""
    import mlflow.pyfunc
    from mlflow.pyfunc import PythonModel

    class Network(PythonModel):
        """Rows of JSON to answers."""

        def load_context(self, context: Any) -> None:
            self.case = make(case, folder)

        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            rows = list(model_input)
            if isinstance(rows[0], dict):  # whose values are arrays of no axis
                rows = [{name: value.item() for name, value in row.items()} for row in rows]
            return self.case(rows)

    path = Path(folder) / f"mlflow-{port}"
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    mlflow.pyfunc.save_model(path, python_model=Network(), pip_requirements=[])  # none inferred
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(path)]
    more = ["-h", "127.0.0.1", "-p", str(port), "--env-manager", "local", "--workers", "1"]
    os.execv(sys.executable, [*command, *more])


SERVERS = {"fastapi": fastapi, "litserve": litserve, "bentoml": bentoml, "mlflow": mlflow}

if __name__ == "__main__":
    server, given, place, number = sys.argv[1:]
    SERVERS[server](given, place, int(number))
