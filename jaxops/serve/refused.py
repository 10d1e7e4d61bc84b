"""`Refused`: a request that gets no answer."""

from typing import Any


class Refused(Exception):
    """A request that gets no answer, with the HTTP status and one sentence that says why.

    Args:
        status: of HTTP, 400 to 599.
        sentence: for the client.
        **headers: of the response; `_` stands for `-`.

    >>> raise Refused(429, "the queue must have room, got 256 requests waiting", retry_after=1)
    Traceback (most recent call last):
    jaxops.serve.refused.Refused: the queue must have room, got 256 requests waiting
    """

    def __init__(self, status: int, sentence: str, **headers: Any) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = {name.replace("_", "-"): str(value) for name, value in headers.items()}


def short(value: Any) -> str:
    """A value as a message shows it: at most 40 characters.

    >>> short("a" * 100)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa..."
    """
    kinds: dict[type, str] = {dict: "an object", list: "a list", type(None): "null"}
    text = kinds.get(type(value)) or repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 40 else f"{text[:37]}..."
