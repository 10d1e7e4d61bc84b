"""Secure aggregation: the server learns the sum of the clients' vectors, and nothing else of them.

The protocol of Bonawitz et al. 2017 for a server and clients that follow it, some of which drop
out. Its messages are values for any transport, such as Flower's; nothing here opens a connection.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxops._optional import require
from jaxops.train.settings import whole

HALF = 16  # bytes of a secret that the library shares at a time
SEED = 32  # bytes of a secret: two halves
NONCE = 12  # bytes; zeros, since each key has one message


class PublicKeys(NamedTuple):
    """The public keys of a client: `masks` to agree on masks, `shares` to encrypt shares.

    >>> PublicKeys(b"m", b"s").masks
    b'm'
    """

    masks: bytes
    shares: bytes


class Revealed(NamedTuple):
    """What a client tells after the masked vectors have come in.

    Attributes:
        own: client -> a share of its own mask's seed, of each client whose vector came.
        keys: client -> a share of its private key, of each client whose vector did not come.

    >>> Revealed(own={1: b"share", 2: b"share"}, keys={3: b"share"}).keys
    {3: b'share'}
    """

    own: dict[int, bytes]
    keys: dict[int, bytes]


class SecureClient:
    """One client in one round; its methods are called once, in the order below.

    Args:
        number: the client's number, from 1 on.
        threshold: how many clients must remain to the end. Fewer together learn nothing of another.

    Raises:
        ValueError: a number out of range.

    References:
        Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine
        Learning", CCS; the keys are X25519 with HKDF-SHA256, the masks ChaCha20, the shares
        Shamir's in GF(2^128).

    >>> clients = {i: SecureClient(i, threshold=2) for i in (1, 2, 3)}
    >>> keys = {i: client.public_keys() for i, client in clients.items()}
    >>> sent = {i: client.share(keys) for i, client in clients.items()}
    >>> vectors = {i: np.full(2, i, np.uint32) for i in clients}
    >>> masked = {i: clients[i].mask(vectors[i], {j: sent[j][i] for j in sent}) for i in clients}
    >>> del masked[3]  # drops out
    >>> revealed = {i: clients[i].reveal(list(masked)) for i in masked}
    >>> unmasked_sum(masked, revealed, keys, threshold=2).tolist()
    [3, 3]
    """

    def __init__(self, number: int, threshold: int) -> None:
        self.number = whole("number", number, 1)
        self.threshold = whole("threshold", threshold, 2)
        x25519 = require("cryptography.hazmat.primitives.asymmetric.x25519", extra="federation")
        self._masks, self._shares = (x25519.X25519PrivateKey.generate() for _ in range(2))
        self._seed, self._masked = os.urandom(SEED), False
        self._keys: dict[int, PublicKeys] = {}
        self._held: dict[int, tuple[bytes, bytes]] = {}

    def public_keys(self) -> PublicKeys:
        """The keys that the server passes on to all clients."""
        return PublicKeys(*(k.public_key().public_bytes_raw() for k in (self._masks, self._shares)))

    def share(self, keys: Mapping[int, PublicKeys]) -> dict[int, bytes]:
        """Shares of the client's secrets, each encrypted for the client that gets it.

        Args:
            keys: client -> public keys, of all clients of the round, also this one's.

        Returns:
            client -> message, also one to itself.

        Raises:
            ValueError: fewer clients than the threshold, a key of two clients, or keys without
                this client's own.
        """
        if len(keys) < self.threshold:
            raise ValueError(
                f"keys must be of at least {self.threshold} clients (the threshold), got "
                f"{len(keys)}"
            )
        if len({key for pair in keys.values() for key in pair}) < 2 * len(keys):
            raise ValueError("keys must differ between clients, got one of two clients")
        if keys.get(self.number) != self.public_keys():
            raise ValueError(f"keys must include those of client {self.number} itself")
        self._keys = dict(keys)
        secrets = self._masks.private_bytes_raw(), self._seed
        parts = [_split(secret, self.threshold, sorted(keys)) for secret in secrets]
        return {
            number: self._cipher(number, self.number, number).encrypt(
                bytes(NONCE), b"".join(part[number] for part in parts), None
            )
            for number in keys
        }

    def mask(self, vector: np.ndarray, messages: Mapping[int, bytes]) -> np.ndarray:
        """The vector with its masks, modulo 2^32.

        Args:
            vector: uint32 (n,), such as `to_integers` makes.
            messages: client -> its message to this one; clients that sent none take no part.

        Returns:
            uint32 (n,), which alone is as good as random.

        Raises:
            ValueError: a vector of another kind; messages of fewer clients than the threshold.
            cryptography.exceptions.InvalidTag: a message that was changed.
        """
        if vector.dtype != np.uint32 or vector.ndim != 1:
            raise ValueError(
                f"vector must be uint32 (n,), got {vector.dtype}{list(vector.shape)}; "
                "see to_integers"
            )
        if self._masked:  # two vectors with the same masks would tell their difference
            raise ValueError("mask must be called once a round, got a second vector")
        if len(messages) < self.threshold:
            raise ValueError(
                f"messages must be of at least {self.threshold} clients (the threshold), got "
                f"{len(messages)}"
            )
        for number, message in messages.items():
            cipher = self._cipher(number, number, self.number)
            shares = cipher.decrypt(bytes(NONCE), message, None)
            self._held[number] = shares[:SEED], shares[SEED:]
        self._masked = True
        masked = vector + _stream(self._seed, len(vector))
        for number in messages:
            if number != self.number:
                seed = _agreed(self._masks, self._keys[number].masks, b"mask")
                masked += _signed(self.number, number, _stream(seed, len(vector)))
        return masked

    def reveal(self, arrived: Sequence[int]) -> Revealed:
        """What the server needs to take the masks out of the sum.

        Of each client it is either a share of the seed of its own mask, if its vector came, or a
        share of its private key; never both, since both would uncover its vector.

        Args:
            arrived: the clients whose masked vectors came.

        Raises:
            ValueError: fewer clients than the threshold, one that takes no part, or a second call.
        """
        numbers = set(arrived)
        _check_threshold(numbers, self.threshold)
        if not numbers <= self._held.keys():
            raise ValueError(
                f"arrived must be among the clients {sorted(self._held)}, got "
                f"{sorted(numbers - self._held.keys())}"
            )
        held, self._held = self._held, {}
        own = {number: held[number][1] for number in numbers}
        return Revealed(own, {n: key for n, (key, _) in held.items() if n not in numbers})

    def _cipher(self, other: int, sender: int, receiver: int) -> Any:
        """The cipher of the one message from a client to another, which has a key of its own."""
        aead = require("cryptography.hazmat.primitives.ciphers.aead", extra="federation")
        use = f"shares from {sender} to {receiver}".encode()
        return aead.ChaCha20Poly1305(_agreed(self._shares, self._keys[other].shares, use))


def unmasked_sum(
    masked: Mapping[int, np.ndarray],
    revealed: Mapping[int, Revealed],
    keys: Mapping[int, PublicKeys],
    threshold: int,
) -> np.ndarray:
    """The sum of the vectors that came, modulo 2^32, exactly.

    Args:
        masked: client -> its masked vector, uint32 (n,), of those that did not drop out.
        revealed: client -> what it revealed.
        keys: client -> public keys.
        threshold: as in the clients.

    Returns:
        uint32 (n,).

    Raises:
        ValueError: fewer clients than the threshold have sent their vector or their shares; shares
            that are not of the client's key.
    """
    _check_threshold(masked, threshold)
    _check_threshold(revealed, threshold)
    x25519 = require("cryptography.hazmat.primitives.asymmetric.x25519", extra="federation")
    total = np.add.reduce(list(masked.values()), dtype=np.uint32)
    chosen = sorted(revealed)[:threshold]
    for number in masked:
        seed = _joined({n: revealed[n].own[number] for n in chosen})
        total -= _stream(seed, len(total))
    gone = {number for of in revealed.values() for number in of.keys}
    for number in gone:
        secret = _joined({n: revealed[n].keys[number] for n in chosen})
        private = x25519.X25519PrivateKey.from_private_bytes(secret)
        if private.public_key().public_bytes_raw() != keys[number].masks:
            raise ValueError(f"the shares of client {number} must join to its key, got another")
        for other in masked:  # their masks with the client that is gone are still in the sum
            seed = _agreed(private, keys[other].masks, b"mask")
            total -= _signed(other, number, _stream(seed, len(total)))
    return total


def secure_sum(
    vectors: Mapping[int, np.ndarray], threshold: int, dropped: Sequence[int] = ()
) -> np.ndarray:
    """The whole protocol in one process: to try it, and to simulate.

    Args:
        vectors: client, from 1 on -> uint32 (n,).
        threshold: how many clients must remain to the end.
        dropped: clients that drop out after they have shared their secrets, and before their
            vector comes.

    Returns:
        uint32 (n,): the sum of the other clients' vectors, modulo 2^32.

    Raises:
        ValueError: fewer clients than the threshold remain.

    >>> vectors = {i: np.array([i, 2**32 - 1], np.uint32) for i in (1, 2, 3, 4)}
    >>> secure_sum(vectors, threshold=3, dropped=[2]).tolist()
    [8, 4294967293]
    """
    clients = {number: SecureClient(number, threshold) for number in vectors}
    keys = {number: client.public_keys() for number, client in clients.items()}
    sent = {number: client.share(keys) for number, client in clients.items()}
    masked = {
        number: client.mask(vectors[number], {other: sent[other][number] for other in sent})
        for number, client in clients.items()
        if number not in dropped
    }
    revealed = {number: clients[number].reveal(list(masked)) for number in masked}
    return unmasked_sum(masked, revealed, keys, threshold)


def to_integers(vector: np.ndarray, limit: float, bits: int = 16, clients: int = 1) -> np.ndarray:
    """A vector in integers from 0 to 2^bits - 1, whose sums over clients are exact.

    A value x becomes round((x + limit) / (2 limit) * (2^bits - 1)), so it is kept up to
    limit / (2^bits - 1).

    Args:
        vector: float (n,), such as a client's clipped update.
        limit: the largest absolute value of an entry.
        bits: of an entry, 1 to 32.
        clients: how many vectors are added up.

    Returns:
        uint32 (n,).

    Raises:
        ValueError: an entry beyond the limit, or sums that do not fit in 32 bits.

    >>> to_integers(np.array([-1.0, 0.0, 1.0]), limit=1.0, bits=8).tolist()
    [0, 128, 255]
    """
    most = _most(bits, clients)
    vector = np.asarray(vector, np.float64)
    if not 0 < limit < math.inf:
        raise ValueError(f"limit must be above 0 and finite, got {limit}")
    if not (np.abs(vector) <= limit).all():
        bad = int(np.flatnonzero(~(np.abs(vector) <= limit))[0])
        raise ValueError(
            f"vector must be at most limit={limit:g} in size, got {vector[bad]:g} in entry {bad}; "
            "clip it first"
        )
    return np.rint((vector + limit) / (2 * limit) * most).astype(np.uint32)


def from_integers(total: np.ndarray, limit: float, bits: int = 16, clients: int = 1) -> np.ndarray:
    """The sum of vectors from the sum of their integers.

    Args:
        total: uint32 (n,), the sum of what `to_integers` made.
        limit: as there.
        bits: as there.
        clients: how many vectors were added up.

    Returns:
        float64 (n,), the sum of the vectors up to clients * limit / (2^bits - 1).

    >>> values = np.array([0.5, -0.25]), np.array([0.25, 0.25])
    >>> integers = [to_integers(value, 1.0, 16, clients=2) for value in values]
    >>> from_integers(integers[0] + integers[1], 1.0, 16, clients=2).round(3).tolist()
    [0.75, 0.0]
    """
    most = _most(bits, clients)
    return np.asarray(total, np.float64) * (2 * limit / most) - clients * limit


def _most(bits: int, clients: int) -> int:
    bits, clients = whole("bits", bits, 1), whole("clients", clients, 1)
    if clients * (2**bits - 1) >= 2**32:
        raise ValueError(
            f"bits must be at most {(2**32 // clients).bit_length() - 1} for the sum of {clients} "
            f"clients to fit in 32 bits, got {bits}"
        )
    return 2**bits - 1


def _check_threshold(numbers: Any, threshold: int) -> None:
    if len(numbers) < threshold:
        raise ValueError(
            f"at least {threshold} clients (the threshold) must remain, got {len(numbers)}: "
            f"{sorted(numbers)}"
        )


def _agreed(private: Any, public: bytes, use: bytes) -> bytes:
    """The 32 bytes on which two clients agree by their keys."""
    x25519 = require("cryptography.hazmat.primitives.asymmetric.x25519", extra="federation")
    hkdf = require("cryptography.hazmat.primitives.kdf.hkdf", extra="federation")
    hashes = require("cryptography.hazmat.primitives.hashes", extra="federation")
    shared = private.exchange(x25519.X25519PublicKey.from_public_bytes(public))
    return hkdf.HKDF(hashes.SHA256(), SEED, salt=None, info=b"jaxops " + use).derive(shared)


def _stream(seed: bytes, length: int) -> np.ndarray:
    """uint32 (length,) of ChaCha20's key stream."""
    ciphers = require("cryptography.hazmat.primitives.ciphers", extra="federation")
    cipher = ciphers.Cipher(ciphers.algorithms.ChaCha20(seed, bytes(16)), mode=None)
    stream = cipher.encryptor().update(bytes(4 * length))
    return np.frombuffer(stream, "<u4").astype(np.uint32)


def _signed(own: int, other: int, stream: np.ndarray) -> np.ndarray:
    """The mask of a pair, which one of them adds and the other subtracts."""
    return stream if own < other else -stream


def _split(secret: bytes, threshold: int, numbers: list[int]) -> dict[int, bytes]:
    """client -> its share of a secret of 32 bytes, in two halves of 16 bytes."""
    shamir = require("Crypto.Protocol.SecretSharing", extra="federation").Shamir
    halves = [shamir.split(threshold, max(numbers), secret[at : at + HALF]) for at in (0, HALF)]
    by_number = [dict(half) for half in halves]
    return {number: by_number[0][number] + by_number[1][number] for number in numbers}


def _joined(shares: Mapping[int, bytes]) -> bytes:
    shamir = require("Crypto.Protocol.SecretSharing", extra="federation").Shamir
    halves = [{n: share[at : at + HALF] for n, share in shares.items()} for at in (0, HALF)]
    return b"".join(shamir.combine(list(half.items())) for half in halves)
