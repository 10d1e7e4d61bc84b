"""Alerts to a webhook."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

TRIES, TIMEOUT, WAIT = 3, 10.0, 1.0  # the times in seconds


def post(url: str, content: Mapping[str, Any]) -> None:
    """Send JSON to a webhook, in at most three tries of ten seconds.

    Messages name the host of the address alone, because paths and queries may hold secrets.

    Args:
        url: of http or https.
        content: JSON-like.

    Raises:
        ValueError: another address.
        OSError: every try has failed.

    >>> post("file:///tmp/alerts", {})
    Traceback (most recent call last):
    ValueError: webhook must be an address of http or https, got file
    """
    host = check_webhook(url)
    body = json.dumps(content, allow_nan=False).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    for again in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT):
                return
        except OSError as error:
            reason: Any = error
            if isinstance(error, urllib.error.HTTPError):
                reason = f"HTTP {error.code}"
                error.close()
            if again == TRIES - 1:
                raise OSError(
                    f"webhook at {host} must accept the alerts, got {reason} in {TRIES} tries"
                ) from None
            time.sleep(WAIT)


def check_webhook(url: str) -> str:
    """The host of an address of http or https.

    Raises:
        ValueError: another address.

    >>> check_webhook("https://hooks.example/secret?key=1")
    'hooks.example'
    """
    address = urllib.parse.urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(
            f"webhook must be an address of http or https, got {address.scheme or 'no scheme'}"
        )
    return address.hostname
