"""Lengths rounded up to one of a few, so that few programs are compiled."""


def next_power_of_two(count: int, least: int = 1) -> int:
    """The smallest power of two that is at least `count` and `least`.

    >>> [next_power_of_two(n) for n in (0, 1, 5, 8)], next_power_of_two(3, least=64)
    ([1, 1, 8, 8], 64)
    """
    return 1 << (max(count, least, 1) - 1).bit_length()


def few_lengths(count: int) -> int:
    """`count` rounded up by at most an eighth, to one of eight numbers between powers of two.

    >>> [few_lengths(n) for n in (5, 16, 17, 200, 208, 209, 257)]
    [5, 16, 18, 208, 208, 224, 288]
    """
    step = max(1, next_power_of_two(count) // 16)
    return -(-count // step) * step
