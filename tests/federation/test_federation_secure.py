"""Secure aggregation: exact sums, drop-outs, and what a single message tells."""

import numpy as np
import pytest
from scipy import stats

from jaxops import federation
from jaxops.federation.secure import SecureClient, unmasked_sum


def vectors(clients=6, length=300, seed=0):
    rng = np.random.default_rng(seed)
    return {i: rng.integers(0, 2**32, length, dtype=np.uint32) for i in range(1, clients + 1)}


def plain_sum(given, dropped=()):
    rest = [vector.astype(object) for number, vector in given.items() if number not in dropped]
    return np.array([int(total) % 2**32 for total in sum(rest)], np.uint32)


@pytest.mark.parametrize("dropped", [(), (3,), (1, 5)])
def test_the_sum_is_exact(dropped):
    given = vectors()
    found = federation.secure_sum(given, threshold=4, dropped=dropped)
    np.testing.assert_array_equal(found, plain_sum(given, dropped))


def shared(threshold=3, clients=4):
    """Clients that have shared their secrets: clients, keys, messages."""
    made = {i: SecureClient(i, threshold) for i in range(1, clients + 1)}
    keys = {i: client.public_keys() for i, client in made.items()}
    return made, keys, {i: client.share(keys) for i, client in made.items()}


def masked_by(made, sent, given):
    return {i: c.mask(given[i], {j: sent[j][i] for j in sent}) for i, c in made.items()}


def test_a_masked_vector_is_uniform_and_new_each_time():
    zeros = {i: np.zeros(20_000, np.uint32) for i in range(1, 5)}
    masked = []
    for _ in range(2):
        made, _, sent = shared()
        masked.append(masked_by(made, sent, zeros)[2])
    for one in masked:
        counts = np.bincount(one >> 24, minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6
        assert stats.chisquare(np.bincount(one & 255, minlength=256)).pvalue > 1e-6
    assert (masked[0] == masked[1]).mean() < 0.001


def test_one_who_drops_out_before_sharing_takes_no_part():
    given = vectors(4)
    made, keys, sent = shared()
    del made[4], sent[4]
    masked = masked_by(made, sent, given)
    revealed = {i: made[i].reveal(list(masked)) for i in masked}
    found = unmasked_sum(masked, revealed, keys, threshold=3)
    np.testing.assert_array_equal(found, plain_sum(given, (4,)))


def test_one_who_drops_out_before_revealing_is_in_the_sum():
    given = vectors(4)
    made, keys, sent = shared()
    masked = masked_by(made, sent, given)
    revealed = {i: made[i].reveal(list(masked)) for i in (1, 2, 4)}
    found = unmasked_sum(masked, revealed, keys, threshold=3)
    np.testing.assert_array_equal(found, plain_sum(given))


def test_too_few_survivors_are_refused():
    given = vectors(4)
    with pytest.raises(ValueError, match=r"at least 3 clients .* must remain, got 2"):
        federation.secure_sum(given, threshold=3, dropped=(2, 4))
    made, keys, sent = shared()
    masked = masked_by(made, sent, given)
    revealed = {i: made[i].reveal(list(masked)) for i in (1, 2)}
    with pytest.raises(ValueError, match="must remain, got 2"):
        unmasked_sum(masked, revealed, keys, threshold=3)


def test_a_client_reveals_once_and_to_enough():
    given = vectors(4)
    made, _, sent = shared()
    masked_by(made, sent, given)
    with pytest.raises(ValueError, match="must remain, got 2"):
        made[1].reveal([1, 2])
    with pytest.raises(ValueError, match="arrived must be among"):
        made[1].reveal([1, 2, 9])
    shares = made[1].reveal([1, 2, 3])
    assert sorted(shares.own) == [1, 2, 3] and sorted(shares.keys) == [4]  # never both of one
    with pytest.raises(ValueError, match="arrived must be among"):
        made[1].reveal([1, 2, 4])
    with pytest.raises(ValueError, match="mask must be called once a round"):  # its masks are known
        masked_by(made, sent, given)


def test_messages_that_are_refused():
    from cryptography.exceptions import InvalidTag

    made, keys, sent = shared()
    with pytest.raises(ValueError, match="keys must be of at least 3 clients"):
        made[1].share({1: keys[1], 2: keys[2]})
    with pytest.raises(ValueError, match="got one of two clients"):
        made[1].share({**keys, 3: keys[2]})
    with pytest.raises(ValueError, match="keys must include those of client 1"):
        made[1].share({**keys, 1: SecureClient(1, 3).public_keys()})
    to_first = {j: sent[j][1] for j in sent}
    with pytest.raises(ValueError, match="vector must be uint32"):
        made[1].mask(np.zeros(3), to_first)
    with pytest.raises(InvalidTag):
        made[1].mask(np.zeros(3, np.uint32), {**to_first, 2: sent[2][3]})  # meant for another


def test_updates_in_integers_are_near_their_sum():
    rng = np.random.default_rng(0)
    values = {i: rng.uniform(-0.5, 0.5, 100) for i in range(1, 6)}
    given = {i: federation.to_integers(v, 0.5, 20, clients=5) for i, v in values.items()}
    total = federation.secure_sum(given, threshold=3, dropped=[2])
    found = federation.from_integers(total, 0.5, 20, clients=4)
    want = sum(v for i, v in values.items() if i != 2)
    np.testing.assert_allclose(found, want, atol=4 * 0.5 / (2**20 - 1) + 1e-9)
    with pytest.raises(ValueError, match=r"limit=0\.5 in size, got 0\.6 in entry 1"):
        federation.to_integers(np.array([0.0, 0.6]), 0.5)
    with pytest.raises(ValueError, match="bits must be at most 29 for the sum of 5 clients"):
        federation.to_integers(np.zeros(1), 0.5, 30, clients=5)
    with pytest.raises(ValueError, match="limit must be above 0"):
        federation.to_integers(np.zeros(1), 0.0)
    with pytest.raises(ValueError, match="limit must be above 0 and finite"):
        federation.to_integers(np.zeros(1), np.inf)
