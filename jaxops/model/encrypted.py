"""Model files that are encrypted with AES-256-GCM, and read without a copy on the disk.

Such a file is `MAGIC`, a nonce of its own, and the safetensors file that it would otherwise be,
encrypted, with the 16 bytes of the tag behind it. The tag holds for all of them.
"""

import json
import os
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from jaxops._optional import require

KEY = "JAXOPS_MODEL_KEY"  # the environment variable with a key
MAGIC = b"JAXOPSE1"  # no safetensors file begins so: it would have a head of 10^18 bytes
NONCE, TAG = 12, 16  # bytes
MOST = 2**36 - 32  # bytes that GCM allows with one nonce
PART = 2**26  # bytes that are encrypted at a time


def is_encrypted(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as encrypted model files do."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def key_of(path: str | os.PathLike[str]) -> str | None:
    """The key in the environment for what comes of a file; None if the file is not encrypted."""
    return os.environ.get(KEY) if is_encrypted(path) else None


def key_bytes(key: bytes | str) -> bytes:
    """The 32 bytes of a key.

    Args:
        key: the bytes, or their 64 hexadecimal digits.

    Raises:
        ValueError: another length, or other signs; the message does not repeat them.

    >>> key_bytes("00" * 32) == bytes(32)
    True
    """
    try:
        found = bytes.fromhex(key) if isinstance(key, str) else bytes(key)
    except ValueError:
        found = b""
    if len(found) != 32:
        raise ValueError("key must be 32 bytes or 64 hexadecimal digits, got something else")
    return found


def write(file: BinaryIO, data: bytes, key: bytes | str) -> None:
    """Write an encrypted model file.

    Args:
        file: to write to.
        data: a safetensors file.
        key: see `key_bytes`.

    Raises:
        ValueError: another key, or data of more than 64 GiB.
    """
    if len(data) > MOST:
        raise ValueError(f"a model must have at most {MOST:,} bytes, got {len(data):,}")
    nonce, view = os.urandom(NONCE), memoryview(data)
    encryptor = _cipher(key, nonce).encryptor()
    encryptor.authenticate_additional_data(MAGIC)
    file.write(MAGIC + nonce)
    for start in range(0, len(data), PART):
        file.write(encryptor.update(view[start : start + PART]))
    file.write(encryptor.finalize() + encryptor.tag)


def read(path: str | os.PathLike[str], key: bytes | str) -> bytes:
    """The safetensors file of an encrypted model file, in memory.

    Raises:
        ValueError: another key than it was saved with, or a file that was changed or cut.
    """
    invalid = require("cryptography.exceptions", extra="encrypt").InvalidTag
    with open(path, "rb") as file:
        magic, nonce, rest = file.read(len(MAGIC)), file.read(NONCE), memoryview(file.read())
    try:
        if magic != MAGIC or len(nonce) < NONCE or len(rest) < TAG:
            raise invalid
        decryptor = _cipher(key, nonce).decryptor()
        decryptor.authenticate_additional_data(magic)
        found, end = bytearray(), len(rest) - TAG
        for start in range(0, end, PART):
            found += decryptor.update(rest[start : min(start + PART, end)])
        found += decryptor.finalize_with_tag(bytes(rest[end:]))
    except invalid:
        raise ValueError(
            f"{path} must be as it was saved, and the key that of then, got a changed file or "
            "another key"
        ) from None
    return bytes(found)


def _cipher(key: bytes | str, nonce: bytes) -> Any:
    ciphers = require("cryptography.hazmat.primitives.ciphers", extra="encrypt")
    return ciphers.Cipher(ciphers.algorithms.AES(key_bytes(key)), ciphers.modes.GCM(nonce))


class Arrays(dict[str, np.ndarray]):
    """The arrays of a safetensors file in memory, by name, and its `metadata`.

    Args:
        data: the file.
        dtypes: safetensors' names of dtypes -> NumPy's.
    """

    def __init__(self, data: bytes, dtypes: dict[str, str]) -> None:
        from safetensors import deserialize

        size = int.from_bytes(data[:8], "little")
        self.metadata: dict[str, str] = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        for name, one in deserialize(data):
            dtype = jnp.dtype(dtypes.get(one["dtype"], one["dtype"]))
            self[name] = np.frombuffer(one["data"], dtype).reshape(one["shape"])

    def kind(self, name: str) -> str:
        """Dtype and shape."""
        return f"{self[name].dtype}{[*self[name].shape]}"
