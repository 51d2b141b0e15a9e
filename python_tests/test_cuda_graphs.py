"""When calls are recorded and replayed, with a recorder in the place of CUDA's; whole passes: test_gpu_backends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch

from udse_fast.backends.cuda_graphs import (
    CALLS_UNTIL_NEXT_TRY,
    MAX_RECORDINGS,
    CudaGraphs,
    Replayed,
    WholePass,
    addresses,
    fastest_convolutions,
    nothing_recorded,
    run_alike,
)
from udse_fast.errors import UdseError


class Repeater:
    """Repeats the call on the recorded tensors."""

    def __init__(self, error: Exception | None = None) -> None:
        self.recorded, self.error, self.failed = 0, error, False

    def record(self, function: Callable[[], tuple[Any, ...]]) -> tuple[Callable[[], None], tuple[Any, ...]]:
        if self.error is not None:
            raise self.error
        self.recorded += 1
        results = function()

        def repeat() -> None:
            for old, new in zip(results, function(), strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)

        return repeat, results

    def in_order(self) -> AbstractContextManager[None]:
        return nullcontext()


def doubled(x: torch.Tensor) -> tuple[Any, ...]:
    return 2 * x, None, 7


def test_the_second_call_of_a_form_is_recorded() -> None:
    repeater = Repeater()
    replayed = Replayed(recorder=lambda device: repeater)
    for call, recorded in enumerate((0, 1, 1, 1)):
        twice, nothing, number = replayed(doubled, torch.full((3,), float(call)))
        assert twice.tolist() == [2 * call] * 3
        assert (nothing, number, repeater.recorded) == (None, 7, recorded)
    replayed(doubled, torch.ones(4))
    assert repeater.recorded == 1
    replayed(doubled, torch.ones(4))
    replayed(doubled, torch.ones(4), key="another")
    replayed(doubled, torch.ones(4), key="another")
    assert repeater.recorded == 3


def test_a_later_call_does_not_write_into_an_earlier_result() -> None:
    repeater = Repeater()
    replayed = Replayed(recorder=lambda device: repeater)
    results = [replayed(doubled, torch.tensor([float(call)]))[0] for call in range(4)]
    assert [float(result) for result in results] == [0, 2, 4, 6]


def test_few_recordings_are_kept_the_last_used() -> None:
    repeater = Repeater()
    replayed = Replayed(recorder=lambda device: repeater)
    for size in range(1, MAX_RECORDINGS + 3):
        for _ in range(2):
            replayed(doubled, torch.ones(size))
            replayed(doubled, torch.ones(1))  # always in use
    assert repeater.recorded == MAX_RECORDINGS + 2
    assert len(replayed._recordings) == MAX_RECORDINGS


def test_a_network_with_other_weights_is_recorded_anew() -> None:
    network, repeater = torch.nn.Linear(2, 2), Repeater()
    replayed = Replayed(lambda: addresses(network), lambda device: repeater)
    with torch.no_grad():
        for _ in range(3):
            replayed(lambda x: (network(x),), torch.ones(2))
        kept = network.weight
        network.weight = torch.nn.Parameter(torch.zeros(2, 2))
        for _ in range(3):
            assert torch.equal(replayed(lambda x: (network(x),), torch.ones(2))[0], network.bias)
    assert repeater.recorded == 2
    assert kept.data_ptr() != network.weight.data_ptr()


def test_recordings_of_inference_mode_serve_outside_of_it() -> None:
    repeater = Repeater()
    replayed = Replayed(recorder=lambda device: repeater)
    with torch.inference_mode():
        for _ in range(2):
            replayed(doubled, torch.ones(2))
    assert replayed(doubled, torch.full((2,), 4.0))[0].tolist() == [8, 8]


def test_calls_inside_a_recording_are_a_part_of_it() -> None:
    class Once(Repeater):
        def record(self, function: Callable[[], tuple[Any, ...]]) -> tuple[Callable[[], None], tuple[Any, ...]]:
            return lambda: None, super().record(function)[1]

    once, of_parts = Once(), Repeater()
    inner, outer = Replayed(recorder=lambda device: of_parts), Replayed(recorder=lambda device: once)
    for call in range(3):
        result = outer(lambda x: inner(doubled, x), torch.tensor([float(call)]))[0]
        assert float(result) == (0, 2, 2)[call]
    assert (once.recorded, of_parts.recorded) == (1, 0)


def test_a_thread_that_only_replayed_a_part_can_record_the_whole() -> None:
    """Libraries remember by thread what to launch, and fail where they have to find that out in a recording."""
    plans, capturing = threading.local(), threading.local()

    def convolution(x: torch.Tensor) -> tuple[Any, ...]:
        if not vars(plans):
            assert not vars(capturing), "no plan inside a capture"
            plans.there = True
        return doubled(x)

    class Capture(Repeater):
        def record(self, function: Callable[[], tuple[Any, ...]]) -> tuple[Callable[[], None], tuple[Any, ...]]:
            capturing.now = True
            try:
                results = function()
            finally:
                del capturing.now
            self.recorded += 1
            return lambda: None, results

    of_parts, of_wholes = Capture(), Capture()
    inner, outer = Replayed(recorder=lambda device: of_parts), Replayed(recorder=lambda device: of_wholes)

    def whole() -> None:
        outer(lambda x: inner(convolution, x), torch.ones(1))

    for _ in range(2):
        inner(convolution, torch.ones(1))
    thread = threading.Thread(target=lambda: (whole(), whole()))
    thread.start()
    thread.join()
    assert (of_parts.recorded, of_wholes.recorded, of_wholes.failed) == (1, 1, False)


def test_graphs_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    repeater = Repeater()
    replayed = Replayed(recorder=lambda device: repeater)
    monkeypatch.setenv("UDSE_CUDA_GRAPHS", "0")
    for call in range(3):
        assert replayed(doubled, torch.full((2,), float(call)))[0].tolist() == [2 * call] * 2
    assert repeater.recorded == 0
    monkeypatch.setenv("UDSE_CUDA_GRAPHS", "1")
    for _ in range(2):
        replayed(doubled, torch.ones(2))
    assert repeater.recorded == 1
    monkeypatch.setenv("UDSE_CUDA_GRAPHS", "off")
    with pytest.raises(UdseError, match="must be 0 or 1; got 'off'"):
        replayed(doubled, torch.ones(2))


def test_what_cannot_be_recorded_runs_as_it_is_with_one_warning() -> None:
    broken = Repeater(RuntimeError("operation not permitted\nsecond line"))
    replayed, another = (Replayed(recorder=lambda device: broken) for _ in range(2))
    replayed(doubled, torch.ones(2))
    with pytest.warns(RuntimeWarning, match="operation not permitted$") as warned:
        assert replayed(doubled, torch.ones(2))[0].tolist() == [2, 2]
    assert len(warned) == 1
    broken.error = None
    for size in (2, 2, 3, 3):  # no more attempts, and no more warnings, which would be errors
        for calls in (replayed, another):
            assert calls(doubled, torch.ones(size))[0].tolist() == [2] * size
    assert broken.recorded == 0


def test_a_lack_of_memory_is_not_for_good() -> None:
    """Other work on the device may leave: the server that was once full must not be slow for ever."""
    full = Repeater(torch.OutOfMemoryError("out of memory"))
    replayed = Replayed(recorder=lambda device: full)
    replayed(doubled, torch.ones(2))
    with pytest.warns(RuntimeWarning, match=f"for the next {CALLS_UNTIL_NEXT_TRY} calls.*out of memory"):
        assert replayed(doubled, torch.ones(2))[0].tolist() == [2, 2]
    full.error = None
    for _ in range(CALLS_UNTIL_NEXT_TRY - 1):
        replayed(doubled, torch.ones(2))
    assert full.recorded == 0
    replayed(doubled, torch.ones(2))
    assert full.recorded == 1


def test_what_comes_once_is_not_recorded() -> None:
    repeater = Repeater()
    replayed = Replayed(recorder=lambda device: repeater)
    with nothing_recorded():
        for _ in range(3):
            assert replayed(doubled, torch.ones(2))[0].tolist() == [2, 2]
    replayed(doubled, torch.ones(2))
    assert repeater.recorded == 0
    replayed(doubled, torch.ones(2))
    assert repeater.recorded == 1


def test_threads_put_back_what_they_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's flag belongs to the process: the first thread to leave must not take it from the second."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    first, second = (fastest_convolutions(torch.device("cuda")) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.backends.cudnn.benchmark
    second.__exit__(None, None, None)
    assert not torch.backends.cudnn.benchmark


@pytest.fixture
def device_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of a device that is not there, in order: pools of captures, and what waits for the device."""
    pools, calls = iter(range(10)), list[Any]()

    class Graph:
        def replay(self) -> None: ...
        def capture_begin(self, pool: int, capture_error_mode: str) -> None:
            assert capture_error_mode == "thread_local"
            calls.append(pool)

        def capture_end(self) -> None: ...

    for name in ("Stream", "Event", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: calls.append(name))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    return calls


def test_a_recording_waits_for_nothing(device_calls: list[Any]) -> None:
    """`torch.cuda.graph` synchronizes the device and empties its cache: all streams of a server stall each time."""
    graphs = CudaGraphs(torch.device("cuda", 0))
    assert graphs.record(lambda: (7,))[1] == (7,)
    assert device_calls == [0]


def test_memory_is_made_free_only_where_it_lacks(device_calls: list[Any]) -> None:
    graphs, kept = CudaGraphs(torch.device("cuda", 0)), CudaGraphs(torch.device("cuda", 0))
    first = kept.record(tuple)
    lacking = [torch.OutOfMemoryError("first"), torch.OutOfMemoryError("second"), torch.OutOfMemoryError("third")]

    def function() -> tuple[Any, ...]:
        if lacking:
            raise lacking.pop(0)
        return (7,)

    with pytest.raises(torch.OutOfMemoryError, match="second"):
        graphs.record(function)
    assert graphs.record(function)[1] == (7,)
    assert [call for call in device_calls if isinstance(call, str)] == ["empty_cache"] * 2
    assert first[1] == ()


def test_a_pool_is_used_while_a_graph_of_it_lives(device_calls: list[Any]) -> None:
    """The allocator forgets a pool with its last graph, and refuses to capture into it again."""
    graphs = CudaGraphs(torch.device("cuda", 0))
    first, second = (graphs.record(lambda: (7,)) for _ in range(2))
    assert first[1] == (7,)
    del first
    third = graphs.record(tuple)
    del second, third
    fourth = graphs.record(tuple)
    with pytest.raises(ZeroDivisionError):
        graphs.record(lambda: (1 / 0,))
    graphs.record(tuple)
    assert device_calls == [0, 0, 0, 1, 1, 2]
    assert fourth[1] == ()


def test_passes_that_are_alike_run_as_one_recording() -> None:
    repeater = Repeater()
    replayed = Replayed(recorder=lambda device: repeater)

    def start(x: torch.Tensor, y: torch.Tensor) -> Generator[torch.Tensor, torch.Tensor, tuple[Any, ...]]:
        answer = yield x
        return answer + y, 3

    def run_together(passes: list[Any]) -> list[Any]:
        """Doubles what is asked for, all at once."""
        asked = torch.stack([next(p) for p in passes]) * 2
        results = []
        for reverse_pass, answer in zip(passes, asked, strict=True):
            with pytest.raises(StopIteration) as end:
                reverse_pass.send(answer)
            results.append(end.value.value)
        return results

    for call in range(3):
        numbers = [torch.tensor([float(call + i)]) for i in range(2)]
        passes = [WholePass(replayed, "settings", start, (x, torch.ones(1))) for x in numbers]
        assert passes[0].batch_key == passes[1].batch_key
        answers = run_alike(passes, run_together)
        assert [(float(value), three) for value, three in answers] == [(2 * call + 1, 3), (2 * call + 3, 3)]
    assert repeater.recorded == 1
    longer = WholePass(replayed, "settings", start, (torch.ones(2), torch.ones(2)))
    assert longer.batch_key != passes[0].batch_key
