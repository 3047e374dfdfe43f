"""Independent pieces of work on several threads, each of which computes its piece alone.

PyTorch divides every operation among its threads and waits for the last of them. Work made of many short operations
then waits in each one: beside one other busy process on two cores, an operation of 0.1 ms takes a time slice of 8 ms.
Dividing the work instead, there is nothing to wait for but the end.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")

MOST = 8  # threads: each holds scratch memory of its own

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}


def threads() -> int:
    """How many pieces can be under way at once."""
    return min(torch.get_num_threads(), MOST)


def in_parallel(work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
    """`work(piece)` of each piece, in their order, by as many threads as PyTorch has here (on one, when asked for).

    Only a few pieces are begun ahead of the one that is asked for. `work` has to be safe to call from several threads,
    without gradients. What it raises is raised here.
    """
    count = threads()
    if count == 1:
        yield from map(work, pieces)
        return
    pool = _pool(count)
    waiting: deque[Future[Result]] = deque()
    try:
        for piece in pieces:
            waiting.append(pool.submit(work, piece))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also if nobody asks for the rest
        for future in waiting:
            future.cancel()


def alone(work: Callable[[], Result]) -> Result:
    """`work()`, by one thread that divides nothing."""
    [found] = in_parallel(lambda _: work(), [None])
    return found


def _pool(count: int) -> ThreadPoolExecutor:
    with _lock:
        if count not in _pools:
            _pools[count] = _single_threaded(count)
        return _pools[count]


def _single_threaded(count: int) -> ThreadPoolExecutor:
    """Threads whose operations are not divided any further."""
    before = torch.get_num_threads()
    started = threading.Barrier(count + 1)

    def start() -> None:
        torch.get_num_threads()  # takes the common number, which a thread otherwise does when it first needs one
        torch.set_num_threads(1)  # of this thread, and the common number
        started.wait()

    pool = ThreadPoolExecutor(count, "attention")
    for _ in range(count):
        pool.submit(start)
    started.wait()
    torch.set_num_threads(before)  # the common one again
    return pool


os.register_at_fork(after_in_child=_pools.clear)  # a child process has none of the threads
