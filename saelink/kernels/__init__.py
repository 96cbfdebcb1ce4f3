"""Compiled inner loops, a file for each: what they compute is said, and computed plainly, where they are called.

The loops are single-threaded and release the interpreter's lock; `in_parts` runs them on every core. They are
imported where they are used: compiling takes seconds, once per machine.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def in_parts(n: int, step: int, work: Callable[[int, int], object]) -> None:
    """work(first, last) for consecutive ranges of at most `step` that make up 0..n, on torch's number of threads.

    The ranges don't depend on the number of threads, so neither does what `work` writes.
    """
    ranges = [(first, min(first + step, n)) for first in range(0, n, step)]
    threads = min(torch.get_num_threads(), len(ranges))
    if threads <= 1:
        for first, last in ranges:
            work(first, last)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda bounds: work(*bounds), ranges):
            pass
