"""Who may ask what: keys of an API, kept hashed in a file of lines, with roles and quotas."""

import contextlib
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import time
from pathlib import Path
from typing import NamedTuple

from jaxops.serve.refused import Refused

ROLES = ("predict", "metrics", "admin")
MINUTE = 60.0
SCRYPT = {"n": 2**12, "r": 8, "p": 1}  # 4 MB, once for each key that is new


class Holder(NamedTuple):
    """Who holds a key: name, role, requests a minute (0 for any number), salt and hash."""

    name: str
    role: str
    quota: int
    salt: bytes
    hash: bytes


class Keys:
    """The keys of a file, and how often each was used.

    Args:
        path: a file that `add_key` has written.

    Raises:
        ValueError: a line of another form; a name twice; no key.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     key = add_key(f"{folder}/keys", "shop", "predict")
    ...     keys = Keys(f"{folder}/keys")
    >>> keys.holder(f"Bearer {key}").name
    'shop'
    """

    def __init__(self, path: str | Path) -> None:
        self._holders = {one.name: one for one in _read(Path(path))}
        self._known: dict[bytes, Holder] = {}  # hash of a key that was right -> its holder
        self._used: dict[str, tuple[float, int]] = {}
        if not self._holders:
            raise ValueError(f"keys must have at least 1 line, got none in {path}")

    @property
    def limited(self) -> list[str]:
        """The names of the holders with a quota."""
        return [name for name, one in self._holders.items() if one.quota]

    def known(self, header: str | None) -> Holder | None:
        """The holder of a key that was right before; see `holder`."""
        return self._known.get(_digest(_key(header)))

    def holder(self, header: str | None) -> Holder:
        """The holder of the key in the header `Authorization: Bearer KEY`.

        A key that is new is hashed, right or wrong, whether or not its name is known.

        Raises:
            Refused: 401 for no key or a wrong one.
        """
        key = _key(header)
        nobody = Holder("", "", 0, b"", bytes(32))
        holder = self._holders.get(key.partition(".")[0], nobody)
        if not hmac.compare_digest(_hash(key, holder.salt), holder.hash) or holder is nobody:
            sentence = "the header Authorization must be Bearer and a key, got none that is known"
            raise Refused(401, sentence, www_authenticate="Bearer")
        self._known[_digest(key)] = holder
        return holder

    def admit(self, holder: Holder, role: str) -> None:
        """Count a use of a key for what needs a role; "" is none, and not counted.

        Raises:
            Refused: 403 for a key of another role, 429 for one used too often in this minute.
        """
        if role not in ("", holder.role) and holder.role != "admin":
            raise Refused(403, f"the key must have the role {role}, got {holder.role}")
        if not role:
            return
        now = time.monotonic()
        begin, count = self._used.get(holder.name, (now, 0))
        begin, count = (begin, count) if now - begin < MINUTE else (now, 0)
        if holder.quota and count >= holder.quota:
            sentence = f"the key must be used at most {holder.quota} times a minute, got more"
            raise Refused(429, sentence, retry_after=int(begin + MINUTE - now) + 1)
        self._used[holder.name] = begin, count + 1


def add_key(path: str | Path, name: str, role: str, quota: int = 0) -> str:
    """Make a key, and append its name, role, quota, salt and hash to a file.

    The key itself is kept nowhere: it has 256 random bits, and cannot be told from the file.

    Args:
        path: the file; a new one is readable by its owner alone.
        name: who will hold the key, of letters, digits, `_` and `-`.
        role: "predict", "metrics" or "admin", who may do all.
        quota: requests a minute; 0 for any number.

    Returns:
        The key, which begins with the name.

    Raises:
        ValueError: a name that the file has already or of other signs, another role, or a negative
            quota.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     key = add_key(f"{folder}/keys", "shop", "predict", quota=600)
    >>> key.partition(".")[0]
    'shop'
    """
    path = Path(path)
    if not re.fullmatch(r"[\w-]{1,64}", name, re.ASCII):
        raise ValueError(f"name must be of letters, digits, _ and -, got {name!r}")
    if role not in ROLES:
        raise ValueError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
    if quota < 0:
        raise ValueError(f"quota must be at least 0, got {quota}")
    key, salt = f"{name}.{secrets.token_urlsafe(32)}", secrets.token_bytes(16)
    line = f"{name} {role} {quota} {salt.hex()} {_hash(key, salt).hex()}\n"
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+") as file:
        with contextlib.suppress(ImportError):  # Windows has none
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)  # two at once would find the same names
        if any(one.name == name for one in _read(path)):
            raise ValueError(f"name must be new in {path}, got {name!r}")
        begun = path.read_text()
        file.write(line if begun == "" or begun.endswith("\n") else f"\n{line}")
    return key


def _key(header: str | None) -> str:
    kind, _, key = (header or "").partition(" ")
    return key if kind.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _hash(key: str, salt: bytes) -> bytes:
    return hashlib.scrypt(key.encode(), salt=salt, dklen=32, **SCRYPT)


def _read(path: Path) -> list[Holder]:
    holders: list[Holder] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(
            rf"([\w-]+) ({'|'.join(ROLES)}) (\d+) ([0-9a-f]{{32}}) ([0-9a-f]{{64}})", line, re.ASCII
        )
        if match is None:
            raise ValueError(
                f"{path} must have lines of `jaxops key`, got another in line {number}"
            )
        name, role, quota, salt, digest = match.groups()
        if any(one.name == name for one in holders):
            raise ValueError(f"{path} must have each name once, got {name!r} twice")
        holders.append(Holder(name, role, int(quota), bytes.fromhex(salt), bytes.fromhex(digest)))
    return holders


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
