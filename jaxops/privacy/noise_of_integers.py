"""Noise on whole numbers, drawn exactly: no rounding of a float gives a private value away.

Samplers that compute a Laplace variable in floats leave gaps between the values they can give, by
which two neighbours can be told apart (Mironov 2012). Here every draw is decided by whole numbers.
"""

import random
from fractions import Fraction

Coins = random.Random
"""A source of random bits: `random.SystemRandom`, or `random.Random` with a seed in tests."""


def bernoulli(probability: Fraction, coins: Coins) -> bool:
    """True with this probability.

    >>> sum(bernoulli(Fraction(1, 4), random.Random(0)) for _ in range(3)) in (0, 3)
    True
    """
    return coins.randrange(probability.denominator) < probability.numerator


def bernoulli_exp(x: Fraction, coins: Coins) -> bool:
    """True with probability exp(-x), for x at least 0.

    >>> bernoulli_exp(Fraction(0), random.Random(0))
    True
    """
    while x > 1:
        if not bernoulli_exp(Fraction(1), coins):
            return False
        x -= 1
    k = 1
    while bernoulli(x / k, coins):
        k += 1
    return k % 2 == 1


def discrete_laplace(scale: Fraction, coins: Coins) -> int:
    """A whole number n with probability proportional to exp(-|n| / scale).

    References:
        Canonne, Kamath and Steinke 2020, The discrete Gaussian for differential privacy,
        arXiv:2004.00010, algorithm 2.

    >>> discrete_laplace(Fraction(1, 1000), random.Random(0))
    0
    """
    t, s = scale.numerator, scale.denominator
    while True:
        low = coins.randrange(t)
        if not bernoulli_exp(Fraction(low, t), coins):
            continue
        high = 0
        while bernoulli_exp(Fraction(1), coins):
            high += 1
        size = (low + t * high) // s
        negative = coins.randrange(2) == 1
        if not (negative and size == 0):
            return -size if negative else size
