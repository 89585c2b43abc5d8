"""Which rows and columns of a map a bin covers, by the paper's two rules; plain integers, no tensors."""

from collections.abc import Iterable


def check_levels(levels: Iterable[int]) -> tuple[int, ...]:
    """Return the levels as a tuple; raises ``TypeError`` or ``ValueError`` if they are not positive integers."""
    if not isinstance(levels, Iterable):
        raise TypeError(f"levels: got {levels!r}, expected a sequence of positive integers such as (6, 3, 2, 1)")
    checked = tuple(levels)
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in checked):
        raise TypeError(f"levels: got {checked!r}, each must be a positive integer, e.g. (6, 3, 2, 1)")
    if not checked or min(checked) < 1:
        raise ValueError(f"levels: got {checked!r}, expected at least one positive integer, e.g. (6, 3, 2, 1)")
    return checked


def bins(levels: Iterable[int]) -> int:
    """Return the number of cells of a pyramid.

    >>> bins((6, 3, 2, 1))
    50
    """
    return sum(n * n for n in levels)


def bin_edges(size: int, n: int) -> list[tuple[int, int]]:
    """Return (start, end) of each of the n adaptive bins of an axis, end exclusive (paper, appendix A).

    Neighbours share an element if n does not divide size, and whole bins repeat if n is larger.

    >>> bin_edges(13, 3)
    [(0, 5), (4, 9), (8, 13)]
    >>> bin_edges(2, 3)
    [(0, 1), (0, 2), (1, 2)]
    """
    return [(i * size // n, ((i + 1) * size + n - 1) // n) for i in range(n)]


def sliding_window(size: int, n: int) -> tuple[int, int]:
    """Return (window, stride) of the paper's training rule for an axis: ceil(size / n), floor(size / n).

    Raises:
        ValueError: it does not give n windows here, as for 47 of the 228 pairs with n <= size <= 32 and n <= 8.

    >>> sliding_window(13, 6)
    (3, 2)
    """
    window, stride = -(-size // n), size // n
    got = (size - window) // stride + 1 if stride else 0
    if got != n:
        raise ValueError(
            f"rule='sliding': a={size}, n={n} gives {got} windows (window {window}, stride {stride}), not {n}; "
            "use rule='adaptive' or another map size"
        )
    return window, stride
