"""How the loops are compiled: once per machine, or where nothing can be kept between runs once per process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """numba's `njit` without Python's lock, its machine code kept for later runs.

    An installation that can't be written to, of a user without a home of one's own, has no place for that; numba then
    refuses to compile at all, where compiling anew only takes seconds.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, nogil=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            return njit(nogil=True, **options)(function)

    return decorate
