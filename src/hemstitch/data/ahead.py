"""Batches made ahead of being asked for, by threads, in order."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(make: Callable[[int], T], start: int, workers: int = 0) -> Iterator[tuple[T, float]]:
    """make(start), make(start + 1), … without end, each with the seconds that were spent waiting for it.

    workers: threads, each on a step of its own; 0 is one per core, four at most. What is made depends on the step
    alone, so their number changes nothing. An error of `make` is raised in its turn.
    """
    workers = workers or min(4, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batch")
    waiting: deque[Future[T]] = deque()
    step = start
    try:
        while True:
            while len(waiting) <= workers:
                waiting.append(pool.submit(make, step))
                step += 1
            began = time.perf_counter()
            made = waiting.popleft().result()
            yield made, time.perf_counter() - began
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
