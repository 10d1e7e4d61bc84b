"""`Settings`: the limits of a server."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits of a server.

    Attributes:
        batch_size: the most rows that requests are joined to.
        delay: seconds that a request waits for others, at most.
        queue: the most requests that wait; further ones are refused with 429.
        timeout: seconds from the arrival of a request, which may ask for fewer; then it is answered
            by 504.
        rows: the most rows of a request.
        body: the most bytes of a request.
        slots: the most texts that a language model generates at once; each takes the memory of the
            keys and values of a whole context.

    Raises:
        ValueError: a limit that is not positive.

    >>> Settings(batch_size=16).queue
    256
    """

    batch_size: int = 64
    delay: float = 0.001
    queue: int = 256
    timeout: float = 10.0
    rows: int = 10_000
    body: int = 2**24
    slots: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (value > 0 or (name == "delay" and value == 0)) or not math.isfinite(value):
                raise ValueError(f"{name} must be above 0, got {value}")
