"""The web page of a server: the same files on every server, which hold nothing of its models."""

import functools
from pathlib import Path
from typing import Any

from jaxops._optional import require
from jaxops.serve.refused import Refused, short

FOLDER = Path(__file__).with_name("page")
FILES = {"index.html": "text/html", "style.css": "text/css"} | dict.fromkeys(
    ("charts.js", "script.js"), "text/javascript"
)
# No text can become code: scripts are files of this server, and there are none in the page.
POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
)
HEADERS = {
    "Content-Security-Policy": "; ".join(POLICY),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


async def page(request: Any) -> Any:
    """A file of the page; whoever sees it has no key yet, and gets the rest with one."""
    name = request.path_params.get("file", "index.html")
    if name not in FILES:
        raise Refused(404, f"file must be one of {', '.join(FILES)}, got {short(name)}")
    response = require("starlette.responses", extra="serve").Response
    return response(_content(name), 200, HEADERS, FILES[name])


@functools.cache
def _content(name: str) -> bytes:
    return (FOLDER / name).read_bytes()
