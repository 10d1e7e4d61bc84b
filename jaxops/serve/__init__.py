"""Serve finished models over HTTP: the Open Inference Protocol, and JSON of raw input.

    app = jaxops.serve.application({"churn": jo.load("churn.safetensors")})
    jaxops.serve.run(app, port=8000)

An application is an ASGI application, which any ASGI server runs. Requests that come together are
answered together, by programs that were compiled before the first of them. It takes any finished
model by its reader. The extra `serve` installs what it needs.
"""

from jaxops.serve.access import add_key
from jaxops.serve.app import Service, application
from jaxops.serve.server import run
from jaxops.serve.settings import Settings
from jaxops.serve.versions import Models
from jaxops.serve.workers import run_workers

__all__ = ["Models", "Service", "Settings", "add_key", "application", "run", "run_workers"]
