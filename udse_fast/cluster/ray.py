"""Files enhanced on a Ray cluster, or with the cores of this machine: actors that load the prior once.

Inputs and outputs are on a file system that every node sees under the same name. Outputs appear whole or not at all,
so that a run which was interrupted goes on with the same call: what is finished is left out. A batch that a lost worker
had is done again by another.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from udse_fast.cluster.batches import Job, in_batches
from udse_fast.errors import UdseError, reason

Outcome = TypeVar("Outcome")
LOCAL = "local"
"""The address of a cluster that is started for the call, on this machine."""


class Worker:
    """An actor: makes `perform` once, then does batch after batch with it."""

    def __init__(self, make_perform: Callable[[], Callable[[Any], Any]]) -> None:
        self._perform = make_perform()

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[bytes]]:
        """Pickled jobs in the column "jobs", their outcomes in "outcomes"; a row is a batch."""
        return {"outcomes": [pickle.dumps(self._outcomes(pickle.loads(batch))) for batch in rows["jobs"]]}

    def _outcomes(self, jobs: list[Any]) -> list[Any] | UdseError:
        try:
            return [self._perform(job) for job in jobs]
        except UdseError as error:  # a setting that fits no job: for the caller, without Ray's trace around it
            return error


def perform_on_ray(
    make_perform: Callable[[], Callable[[Job], Outcome]],
    jobs: Sequence[Job],
    *,
    address: str = LOCAL,
    workers: int | None = None,
    threads: int = 1,
    gpus: float = 0.0,
) -> Iterator[Outcome]:
    """Outcomes of all jobs, as batches are done.

    Args:
        make_perform: called in every worker once; what it returns does one job. A `UdseError` that it raises, for a
            setting that fits no job, ends everything.
        jobs: with the files that they read and write.
        address: of a Ray cluster ("auto", "ray://host:10001", "host:6379"); "local" starts one on this machine.
        workers: actors; None: as many as the cluster has room for.
        threads: cores of a worker.
        gpus: of a worker; 0.5 puts two of them on one.

    Raises:
        UdseError: no Ray, no cluster at the address, one that lost too many workers, or that of `perform`.
    """
    ray = _connected(address)
    try:
        room = _room(ray, threads, gpus)
        count = min(workers or room, len(jobs)) or 1
        batches = in_batches(jobs, count)
        rows = [{"jobs": pickle.dumps(batch)} for batch in batches]
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker,
            fn_constructor_args=(make_perform,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=threads,
            num_gpus=gpus,
        )
        for row in results.iter_rows():
            outcomes = pickle.loads(row["outcomes"])
            if isinstance(outcomes, UdseError):
                raise outcomes
            yield from outcomes
    except ray.exceptions.RayError as error:
        raise UdseError(f"ray: {reason(error)[:300]}; the same command goes on with what is not finished") from None
    finally:
        ray.shutdown()


def _connected(address: str) -> Any:
    """The module, connected and quiet."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise UdseError("--ray needs Ray; install it with: pip install 'udse-fast[ray]'") from None
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == LOCAL else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except Exception as error:  # Ray raises about a dozen kinds, some of them bare
        raise UdseError(f"--ray {address}: no cluster there: {reason(error)[:200]}") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.verbose_stats_logs = False
    return ray


def _room(ray: Any, threads: int, gpus: float) -> int:
    """Workers that the cluster has room for.

    Raises:
        UdseError: not for one.
    """
    resources = ray.cluster_resources()
    room = int(resources.get("CPU", 0) // threads)
    if gpus:
        room = min(room, int(resources.get("GPU", 0) // gpus))
    if room < 1:
        raise UdseError(
            f"ray: expected {threads} CPUs and {gpus:g} GPUs for a worker, the cluster has "
            f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}"
        )
    return room


class Progress:
    """A line now and then: files, hours of audio, speed, time left."""

    def __init__(self, total: int, tell: Callable[[str], None], every_seconds: float = 10.0) -> None:
        self._total, self._tell, self._every = total, tell, every_seconds
        self._started = self._told = time.monotonic()
        self._files, self._seconds = 0, 0.0

    def add(self, seconds: float) -> None:
        """A file with so much audio is done."""
        self._files += 1
        self._seconds += seconds
        now = time.monotonic()
        if now - self._told >= self._every:
            self._told = now
            wall = now - self._started
            left = wall / self._files * (self._total - self._files)
            self._tell(
                f"{self._files} of {self._total} files, {self._seconds / 3600:.2f} h, "
                f"{self._seconds / wall:.1f} times real time, {left / 60:.0f} min left"
            )
