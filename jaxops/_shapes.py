"""Shapes that few compilations serve."""


def next_power_of_two(count: int, least: int = 1) -> int:
    """The smallest power of two that is at least `count` and `least`.

    >>> [next_power_of_two(n) for n in (0, 1, 5, 8)], next_power_of_two(3, least=64)
    ([1, 1, 8, 8], 64)
    """
    return 1 << (max(count, least, 1) - 1).bit_length()
