"""Keyed pseudonyms: the same id always gives the same name, and only who has the key finds it.

A hash without a key hides nothing: who can list the ids hashes them all.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxops._optional import require
from jaxops.data.tables import as_texts

SHORTEST_KEY = 16  # bytes
LENGTH = 32  # hexadecimal digits: 128 bits, of which no two ids of a table are alike


class Pseudonyms:
    """Names for ids by HMAC-SHA256, under keys that change.

    A pseudonym begins with the name of its key: "2025:9f86d0...". Ids are read as text without
    surrounding spaces, so 7 and "7" have the same. A missing id stays missing.

    Keep the keys apart from the table, and use another set of keys for each receiver: under one
    key, tables of two receivers can be joined. Pseudonyms alone make no table anonymous; see
    `reidentification` for what the other columns give away.

    Args:
        keys: name -> secret, at least 16 random bytes such as `secrets.token_bytes(32)`.
        current: the name of the key for new pseudonyms.

    Raises:
        ValueError: no such key, one that is too short, or a name that is empty or has a colon.

    References:
        Krawczyk, Bellare and Canetti 1997, HMAC: keyed-hashing for message authentication,
        RFC 2104.

    >>> of = Pseudonyms({"2025": b"16 secret bytes!"}, current="2025")
    >>> of(["anna", "ben", "anna"]).tolist()[0]
    '2025:3dbb29bdae3060908c5ffb5c727d7ffd'
    """

    def __init__(self, keys: Mapping[str, bytes], current: str) -> None:
        for name, key in keys.items():
            if not name or ":" in name:
                raise ValueError(f"keys must have names without a colon, got {name!r}")
            if not isinstance(key, bytes) or len(key) < SHORTEST_KEY:
                size = len(key) if isinstance(key, bytes) else type(key).__name__
                raise ValueError(
                    f"key {name!r} must be bytes, at least {SHORTEST_KEY} of them, got {size}"
                )
        if current not in keys:
            raise ValueError(f"current must be one of {', '.join(keys)}, got {current!r}")
        self._keys, self.current = dict(keys), current

    def __repr__(self) -> str:
        """Without the keys."""
        return f"Pseudonyms({', '.join(self._keys)}; current={self.current!r})"

    def __call__(self, ids: Any, key: str | None = None) -> np.ndarray:
        """The pseudonyms of ids, (N,) of `str` objects, None where missing.

        Args:
            ids: (N,), text or whole numbers.
            key: the name of the key; the current one by default.

        Raises:
            ValueError: no such key.
        """
        name = self.current if key is None else key
        if name not in self._keys:
            raise ValueError(f"key must be one of {', '.join(self._keys)}, got {name!r}")
        texts = as_texts(ids).to_pylist()
        of = {text: self._of(name, text) for text in dict.fromkeys(texts)}
        return np.array([*map(of.__getitem__, texts), None], object)[:-1]

    def _of(self, name: str, text: str | None) -> str | None:
        if text is None:
            return None
        digest = hmac.new(self._keys[name], text.encode(), hashlib.sha256).hexdigest()
        return f"{name}:{digest[:LENGTH]}"

    def renewed(self, pseudonyms: Any, ids: Any) -> np.ndarray:
        """Pseudonyms of any of the keys, under the current key.

        Args:
            pseudonyms: (N,), as `self` made them.
            ids: those that may be behind them, in any order: nobody can turn a pseudonym back.

        Returns:
            (N,) of `str` objects.

        Raises:
            ValueError: a pseudonym of an unknown key, or of none of the ids; names the row.

        >>> old = Pseudonyms({"2024": b"an old secret 16"}, current="2024")
        >>> both = Pseudonyms({"2024": b"an old secret 16", "2025": b"16 secret bytes!"}, "2025")
        >>> both.renewed(old(["ben"]), ["anna", "ben"]) == both(["ben"])
        array([ True])
        """
        pd = require("pandas", extra="data")
        given = as_texts(pseudonyms).to_pylist()
        known: dict[Any, str | None] = {None: None}
        candidates = pd.unique(pd.Series(as_texts(ids).to_pylist(), dtype=object))
        new = self(candidates)
        for name in {text.partition(":")[0] for text in given if text is not None}:
            if name not in self._keys:
                row = next(
                    i for i, t in enumerate(given) if t is not None and t.partition(":")[0] == name
                )
                raise ValueError(
                    f"pseudonyms must be of the keys {', '.join(self._keys)}, got {name!r} in row "
                    f"{row} (counted from 0)"
                )
            known |= dict(zip(self(candidates, name).tolist(), new.tolist(), strict=True))
        row = next((i for i, text in enumerate(given) if text not in known), -1)
        if row >= 0:
            raise ValueError(
                f"ids must have the one behind every pseudonym, got none for {given[row]!r} in row "
                f"{row} (counted from 0)"
            )
        return np.array([*map(known.__getitem__, given), None], object)[:-1]
