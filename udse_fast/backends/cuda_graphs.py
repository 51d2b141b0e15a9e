"""CUDA graphs: a network call, or a whole reverse pass with its updates and the noise model, launched at once.

A graph repeats the launches of the call that was recorded, on the memory and with the numbers of that call. Whatever
changes from call to call is therefore a tensor, which is copied to where the graph reads it.
"""

from __future__ import annotations

import functools
import gc
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from udse_fast.errors import UdseError

MAX_RECORDINGS = 4
MAX_FORMS = 64
CALLS_UNTIL_NEXT_TRY = 100
"""After a recording for which there was no memory: other work may have left by then."""

Function = Callable[..., tuple[Any, ...]]
"""Tensors -> tensors, and values that depend on the form of the arguments only."""

_thread = threading.local()


class Recorder(Protocol):
    """What records launches: CUDA graphs, or something that takes their place in a test."""

    failed: bool
    """A recording failed; there are no more attempts."""

    def record(self, function: Callable[[], tuple[Any, ...]]) -> tuple[Callable[[], None], tuple[Any, ...]]:
        """Call `function`; return how to repeat what it launched, and its results, which repetitions overwrite.

        Raises:
            torch.OutOfMemoryError: there is no memory for it now.
        """

    def in_order(self) -> AbstractContextManager[None]:
        """Nothing else that was recorded runs in the meantime: recordings share their memory."""


class CudaGraphs:
    """The graphs of one device; one memory pool, as only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self.stream, self.done = torch.cuda.Stream(), torch.cuda.Event()
        self.lock = threading.RLock()
        self.failed = False
        self._pool: Any = None
        self._graphs = weakref.WeakSet[torch.cuda.CUDAGraph]()  # those of the pool

    def record(self, function: Callable[[], tuple[Any, ...]]) -> tuple[Callable[[], None], tuple[Any, ...]]:
        try:
            return self._captured(function)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # waits for the whole device: only where it must be
        return self._captured(function)

    def _captured(self, function: Callable[[], tuple[Any, ...]]) -> tuple[Callable[[], None], tuple[Any, ...]]:
        """Without `torch.cuda.graph`, which waits for all that the device does: in a server, for all other streams."""
        living = list(self._graphs)  # until the end: the pool of theirs that is shared must not go in the meantime
        if not living:  # the allocator refuses a pool whose graphs are all gone
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        gc.collect()  # what is left of another graph must not end in the middle of this one
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                results = function()
            except BaseException as error:
                if not isinstance(error, torch.OutOfMemoryError):
                    self._graphs.clear()  # the pool may count as still being captured into
                with suppress(Exception):  # what ends a capture is also reported at its end
                    graph.capture_end()
                raise
            graph.capture_end()
        self._graphs.add(graph)
        return graph.replay, results

    @contextmanager
    def in_order(self) -> Iterator[None]:
        with self.lock, torch.cuda.device(self.device):
            torch.cuda.current_stream().wait_event(self.done)
            yield
            self.done.record()


def graphs_wanted() -> bool:
    """Whether calls may be recorded: UDSE_CUDA_GRAPHS is not 0. Nothing else reads the variable.

    Raises:
        UdseError: another value than 0 or 1.
    """
    value = os.environ.get("UDSE_CUDA_GRAPHS", "")
    if value not in ("", "0", "1"):
        raise UdseError(f"UDSE_CUDA_GRAPHS must be 0 or 1; got {value!r}")
    return value != "0"


@functools.cache
def cuda_graphs(device: torch.device) -> CudaGraphs:
    """Those of a device."""
    return CudaGraphs(device)


@dataclass
class _Recording:
    repeat: Callable[[], None]
    inputs: tuple[Tensor, ...]
    results: tuple[Any, ...]


class Replayed:
    """Calls of functions of tensors that are recorded once for each form of the arguments and replayed from then on.

    The first call of a form runs as it is: many a form comes once only. The second is recorded, after one more run
    as it is: libraries choose their algorithms in it, which they remember by thread, and kernels are compiled. If
    that fails, there is one warning, and calls that are not recorded yet run as they are for good, whoever makes
    them: a failed capture leaves the allocator in a state in which the next one fails, too. Where memory was all that
    lacked, the next try comes after `CALLS_UNTIL_NEXT_TRY` calls.

    Args:
        depends: evaluated at every call; a recording holds for one value of it, e.g. `addresses` of the weights.
        recorder: of a device.
    """

    def __init__(
        self, depends: Callable[[], Hashable] | None = None, recorder: Callable[[torch.device], Recorder] = cuda_graphs
    ) -> None:
        self._depends, self._recorder = depends, recorder
        self._called: dict[Hashable, None] = {}
        self._recordings: dict[Hashable, _Recording] = {}
        self._calls_until_next_try = 0

    def __call__(self, function: Function, *inputs: Tensor, key: Hashable = ()) -> tuple[Any, ...]:
        """`function(*inputs)`; the first input says on which device.

        Args:
            key: everything beside the tensors that the function depends on.
        """
        if getattr(_thread, "records", False):  # a part of what is being recorded
            return function(*inputs)
        device = inputs[0].device
        if not graphs_wanted():
            with fastest_convolutions(device):
                return function(*inputs)
        form = (
            key,
            self._depends() if self._depends is not None else None,
            *((x.shape, x.dtype, x.device) for x in inputs),
        )
        recorder = self._recorder(device)
        self._calls_until_next_try = max(0, self._calls_until_next_try - 1)
        with recorder.in_order():
            may_record = not (recorder.failed or self._calls_until_next_try)
            if form not in self._recordings and form in self._called and may_record:
                self._add(form, function, inputs, recorder)
            recording = self._recordings.pop(form, None)
            if recording is not None:
                self._recordings[form] = recording  # the last that was used, now
                for static, given in zip(recording.inputs, inputs, strict=True):
                    static.copy_(given)
                recording.repeat()
                return tuple(x.clone() if isinstance(x, Tensor) else x for x in recording.results)
        if len(self._called) == MAX_FORMS:
            self._called.clear()
        self._called[form] = None
        with fastest_convolutions(device):
            return function(*inputs)

    def _add(self, form: Hashable, function: Function, inputs: tuple[Tensor, ...], recorder: Recorder) -> None:
        """Record a form in the place of the one that was not used for longest."""
        while len(self._recordings) >= MAX_RECORDINGS:
            del self._recordings[next(iter(self._recordings))]
        _thread.records = True
        try:
            # made outside inference mode, so that later calls in any mode may write to them
            with torch.inference_mode(False), torch.no_grad(), fastest_convolutions(inputs[0].device):
                static = tuple(torch.empty_like(x).copy_(x) for x in inputs)
                function(*static)  # what this thread has never launched, e.g. a part that was replayed until now
                repeat, results = recorder.record(lambda: function(*static))
            self._recordings[form] = _Recording(repeat, static, results)
        except torch.OutOfMemoryError as error:
            self._recordings.clear()  # their memory serves the call itself
            self._calls_until_next_try = CALLS_UNTIL_NEXT_TRY
            _warn_of_slowness(f"for the next {CALLS_UNTIL_NEXT_TRY} calls", error)
        except Exception as error:  # whatever the reason, the work can be done without a graph
            recorder.failed = True
            _warn_of_slowness("from now on", error)
        finally:
            _thread.records = False


def _warn_of_slowness(how_long: str, error: Exception) -> None:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    warnings.warn(
        f"CUDA graphs are off {how_long}, which is slower but changes nothing else: {reason}",
        RuntimeWarning,
        stacklevel=4,
    )


@contextmanager
def nothing_recorded() -> Iterator[None]:
    """Calls of this thread run as they are, and no algorithms are measured: for what comes once only."""
    before = getattr(_thread, "records", False)
    _thread.records = True
    try:
        yield
    finally:
        _thread.records = before


@dataclass(frozen=True)
class WholePass:
    """What a reverse pass yields to be run from its beginning to its end at once, with its like, as one graph.

    The answer is the tuple that the generator `start(*inputs)` returns. Requests with equal `key` and `replayed`, and
    inputs of equal form, are alike: `start` does the same to other numbers.
    """

    replayed: Replayed
    key: Hashable
    start: Callable[..., Any]
    inputs: tuple[Tensor, ...]

    @property
    def batch_key(self) -> Hashable:
        """Equal for those that can be run as one."""
        return self.key, id(self.replayed), *((x.shape, x.dtype, x.device) for x in self.inputs)


def run_alike(passes: Sequence[WholePass], run_together: Callable[[list[Any]], list[Any]]) -> list[Any]:
    """The answers to requests of one `batch_key`; `run_together` runs generators side by side to their ends."""
    count = len(passes[0].inputs)

    def function(*inputs: Tensor) -> tuple[Any, ...]:
        started = [p.start(*inputs[i * count : (i + 1) * count]) for i, p in enumerate(passes)]
        return tuple(value for result in run_together(started) for value in result)

    inputs = [x for p in passes for x in p.inputs]
    values = passes[0].replayed(function, *inputs, key=(passes[0].key, len(passes)))
    size = len(values) // len(passes)
    return [values[first : first + size] for first in range(0, len(values), size)]


def addresses(*modules: nn.Module) -> Hashable:
    """Where the weights of networks are: a network that was moved or converted has others."""
    return tuple(parameter.data_ptr() for module in modules for parameter in module.parameters())


_measuring_lock = threading.Lock()
_measuring = _before = 0


@contextmanager
def _measured_convolutions() -> Iterator[None]:
    """The flag is the process's: it is set by the first of the threads that are inside, and put back by the last."""
    global _measuring, _before
    with _measuring_lock:
        if not _measuring:
            _before = torch.backends.cudnn.benchmark
            torch.backends.cudnn.benchmark = True
        _measuring += 1
    try:
        yield
    finally:
        with _measuring_lock:
            _measuring -= 1
            if not _measuring:
                torch.backends.cudnn.benchmark = bool(_before)


def fastest_convolutions(device: torch.device) -> AbstractContextManager[None]:
    """cuDNN measures its algorithms and takes the fastest, as shapes come again and again."""
    return _measured_convolutions() if device.type == "cuda" else nullcontext()
