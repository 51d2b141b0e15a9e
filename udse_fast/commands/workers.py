"""Jobs in several processes: one that dies costs its job only, and none outlives the command."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, NoReturn, TypeVar

from udse_fast.errors import UdseError

Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Any], Callable[[Task], Result]]
"""Called once in every process with what the process is to know; returns what is called with every task."""


@dataclass
class _Worker(Generic[Task]):
    process: BaseProcess
    connection: Connection
    task: Task


def run_in_processes(
    work: Work[Task, Result], known: Any, tasks: Sequence[Task], count: int, lost: Callable[[Task, str], Result]
) -> Iterator[Result]:
    """Results as they come.

    Args:
        work: a function of a module, see `Work`; it runs in new processes.
        known: its argument, which can be pickled.
        count: processes at a time.
        lost: result of a task whose process died, given in words how.

    Raises:
        UdseError: what `work` itself raises in a process; what single tasks raise is theirs to return.
    """
    waiting = deque(tasks)
    busy: list[_Worker[Task]] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < count:
                busy.append(_started(work, known, waiting.popleft()))
            for connection in wait([worker.connection for worker in busy]):
                worker = next(worker for worker in busy if worker.connection is connection)
                try:
                    result = worker.connection.recv()
                except (EOFError, OSError):  # it died
                    busy.remove(worker)
                    worker.process.join()
                    yield lost(worker.task, f"its process ended with status {worker.process.exitcode}")
                    continue
                if isinstance(result, UdseError):
                    raise result
                yield result
                if not waiting:
                    busy.remove(worker)
                    worker.connection.close()  # which ends it
                    worker.process.join()
                    continue
                worker.task = waiting.popleft()
                with suppress(BrokenPipeError):  # one that died meanwhile is met at the next recv()
                    worker.connection.send(worker.task)
    finally:
        for worker in busy:
            worker.process.terminate()
        for worker in busy:
            worker.process.join()


def _started(work: Work[Task, Result], known: Any, task: Task) -> _Worker[Task]:
    context = multiprocessing.get_context("spawn")  # a fork would take over locks that threads hold
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work, known), daemon=True)
    process.start()
    theirs.close()
    ours.send(task)
    return _Worker(process, ours, task)


def _serve(connection: Connection, work: Work[Task, Result], known: Any) -> None:
    """Main function of a process: until nobody sends tasks any more, or SIGTERM, which leaves through `finally`."""

    def terminate(*_: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, terminate)
    for number in (signal.SIGINT, signal.SIGHUP):  # the command gets them as well, and ends its processes
        signal.signal(number, signal.SIG_IGN)
    try:
        perform = work(known)
        while True:
            connection.send(perform(connection.recv()))
    except UdseError as error:
        connection.send(error)
    except (EOFError, BrokenPipeError):
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is leaving


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
