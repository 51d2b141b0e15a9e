"""`side_by_side`: the items of a batch on the threads of a CPU, a network call each.

The threads of torch meet after every operator and wait there for the last one, spinning. Beside another busy process
every such meeting costs a turn of the scheduler: a pass of thousands of operators then takes ten times as long as on
one thread. Items of a batch have nothing to do with each other until the call is over.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

Result = TypeVar("Result")
_making = threading.Lock()


def side_by_side(call: Callable[[int], Result], count: int) -> list[Result]:
    """Return call(0) ... call(count - 1), made without gradients on as many threads as torch has.

    The first exception among the calls is raised; calls that have not begun then are not made.
    """
    threads = torch.get_num_threads()
    workers = min(count, threads)
    if workers < 2:
        with torch.no_grad():
            return [call(item) for item in range(count)]
    with _making:
        pool = _pool(workers, threads // workers, threads)
    return list(pool.map(torch.no_grad()(call), range(count)))


@lru_cache(maxsize=8)
def _pool(workers: int, threads_of_each: int, threads: int) -> ThreadPoolExecutor:
    """Workers that have set how many threads torch's operators may use for them."""
    pool = ThreadPoolExecutor(workers, "udse-fast item")
    started = threading.Barrier(workers)

    def start(_: int) -> None:
        torch.get_num_threads()  # a thread takes the setting for threads to come when it first looks at its own
        torch.set_num_threads(threads_of_each)
        started.wait()

    list(pool.map(start, range(workers)))
    # a setting of each thread, but the last one set is that of threads to come: another thread sets it
    last = threading.Thread(target=torch.set_num_threads, args=(threads,))
    last.start()
    last.join()
    return pool


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has no threads but the one that forked
