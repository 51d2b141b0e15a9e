"""One item beside busy programs: pieces of its frames, the same to the bit, and only while there is a crowd."""

from __future__ import annotations

import threading

import pytest
import torch

from udse_fast.checkpoints.checkpoint import load_network
from udse_fast.networks import build_network, pieces
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.crowd import CALM_LOOKS, LOOK_SECONDS, Crowd, Times
from udse_fast.networks.pieces import FEWEST_FRAMES, alone, in_pieces, without_company
from udse_fast.networks.score_network import ScoreNetwork


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.times = Times(0.0, 0.0, 0.0)

    def __call__(self) -> Times:
        return self.times

    def go_on(self, wall: float, thread: float, process: float) -> None:
        passed = (wall, thread, process)
        self.times = Times(*(before + more for before, more in zip(self.times, passed, strict=True)))


def looked(crowd: Crowd, clock: Clock, thread: float, process: float, threads: int) -> bool:
    """What follows from one look, in which so much of the processor was used per second."""
    seconds = 2 * LOOK_SECONDS
    with crowd.watched(threads):
        clock.go_on(seconds, thread * seconds, process * seconds)
    return crowd.is_there


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def crowded(monkeypatch):
    """There is a crowd, and stays: the clock stands still."""
    clock = Clock()
    crowd = Crowd(clock)
    assert looked(crowd, clock, 0.5, 1.0, 2)
    monkeypatch.setattr(pieces, "CROWD", crowd)


def test_whoever_has_the_processor_is_alone():
    clock = Clock()
    crowd = Crowd(clock)
    assert not crowd.is_there
    assert not looked(crowd, clock, 1.0, 2.0, 2)
    assert not looked(crowd, clock, 0.9, 0.9, 1)


@pytest.mark.parametrize(
    ("thread", "process", "count"),
    [(0.5, 1.0, 2), (0.5, 3.0, 2), (1.0, 1.5, 2), (0.6, 0.6, 1)],
    ids=["both wait", "others of ours compute too", "the other thread waits", "a piece waits"],
)
def test_a_thread_that_is_kept_waiting_is_seen_at_once(thread, process, count):
    clock = Clock()
    assert looked(Crowd(clock), clock, thread, process, count)


def test_a_crowd_is_gone_when_nobody_was_seen_for_a_while():
    clock = Clock()
    crowd = Crowd(clock)
    looked(crowd, clock, 0.5, 1.0, 2)
    seen = [looked(crowd, clock, 1.0, 1.0, 1) for _ in range(CALM_LOOKS - 1)]
    assert looked(crowd, clock, 0.5, 0.5, 1)  # it looked away for a moment
    seen += [looked(crowd, clock, 1.0, 1.0, 1) for _ in range(CALM_LOOKS - 1)]
    assert all(seen)
    assert not looked(crowd, clock, 1.0, 1.0, 1)


def test_one_late_turn_is_no_crowd():
    clock = Clock()
    crowd = Crowd(clock)
    with crowd.watched(2):
        clock.go_on(0.01 * LOOK_SECONDS, 0.0, 0.0)
    assert not looked(crowd, clock, 1.0, 2.0, 2)


def moving_sum(x: torch.Tensor, seen: list[tuple[int, int]]) -> list[torch.Tensor]:
    """Of 7 frames, and the frames alone; `seen` gets the number of frames, and of the threads of an operator."""
    seen.append((x.shape[1], torch.get_num_threads()))
    padded = torch.nn.functional.pad(x, (0, 0, 3, 3))
    return [sum(padded[:, n : n + x.shape[1]] for n in range(7)), 2 * x]


def test_pieces_see_as_far_as_they_must_and_no_further(threads, crowded):
    threads(3)
    x = torch.arange(3.0 * FEWEST_FRAMES * 2).reshape(1, 3 * FEWEST_FRAMES, 2)
    seen: list[tuple[int, int]] = []
    whole = moving_sum(x, [])
    cut = alone(lambda: in_pieces(lambda x, _: moving_sum(x, seen), [x, torch.ones(1, 1, 1)], 3))
    assert all(torch.equal(a, b) for a, b in zip(cut, whole, strict=True))
    assert sorted(seen) == [(FEWEST_FRAMES + 3, 1), (FEWEST_FRAMES + 3, 1), (FEWEST_FRAMES + 6, 1)]
    too_near = alone(lambda: in_pieces(lambda x: moving_sum(x, []), [x], 2))
    assert not torch.equal(too_near[0], whole[0])


def test_what_is_too_short_for_pieces_is_made_on_one_thread(threads, crowded):
    threads(2)
    seen: list[tuple[int, int]] = []
    alone(lambda: in_pieces(lambda x: moving_sum(x, seen), [torch.ones(1, 2 * FEWEST_FRAMES - 1, 2)], 3))
    assert seen == [(2 * FEWEST_FRAMES - 1, 1)]


def test_nothing_is_cut_without_a_crowd_or_by_others(threads, monkeypatch):
    threads(2)
    monkeypatch.setattr(pieces, "CROWD", Crowd(Clock()))
    x, seen = torch.ones(1, 2 * FEWEST_FRAMES, 2), []
    alone(lambda: in_pieces(lambda x: moving_sum(x, seen), [x], 3))
    in_pieces(lambda x: moving_sum(x, seen), [x], 3)
    assert seen == [(2 * FEWEST_FRAMES, 2)] * 2


def test_the_number_of_threads_stays_what_it_is(threads, crowded):
    threads(5)
    alone(lambda: in_pieces(lambda x: moving_sum(x, []), [torch.ones(1, 7 * FEWEST_FRAMES, 2)], 3))
    of_a_new_thread: list[int] = []
    thread = threading.Thread(target=lambda: of_a_new_thread.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == 5
    assert of_a_new_thread == [5]


def test_what_is_around_network_calls_has_one_thread_in_a_crowd_and_they_all(threads, crowded):
    threads(3)
    seen: list[tuple[int, int]] = []
    x = torch.ones(1, 3 * FEWEST_FRAMES, 2)

    def block() -> int:
        alone(lambda: in_pieces(lambda x: moving_sum(x, seen), [x], 3))
        return torch.get_num_threads()

    assert without_company(block) == 1
    assert [count for _, count in seen] == [1, 1, 1]
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [None, "posterior", "joint", "causal"])
def test_a_network_says_the_same_in_a_crowd_to_the_bit(threads, crowded, name, precision):
    network = load_network(name, torch.device("cpu"), precision)
    generator = torch.Generator().manual_seed(1)
    state = 0.3 * torch.randn(1, 256, 2 * FEWEST_FRAMES + 3, dtype=torch.complex64, generator=generator)

    def told() -> list[torch.Tensor]:
        if name == "posterior":
            noise = 0.01 + state.abs() ** 4
            return [*network.say(state, 0.2, Conditions(noisy=state, noise_variance=noise))]
        return [x for x in network.evaluate(state, 0.4, posterior_variance=True) if x is not None]

    threads(1)
    whole = told()
    threads(2)
    assert all(torch.equal(a, b) for a, b in zip(told(), whole, strict=True))


def test_networks_that_are_told_more_say_the_same_in_a_crowd(threads, crowded):
    """The frames of what they are told go with the frames of the state."""
    config = {"sde": {"name": "ouve"}, "stft": {"n_fft": 510, "hop_length": 255}}
    generator = torch.Generator().manual_seed(1)
    frames = 2 * FEWEST_FRAMES
    state, noisy = 0.3 * torch.randn(2, 1, 256, frames, dtype=torch.complex64, generator=generator)
    for name in ("compact-av", "compact-conditional"):
        module = build_network({"name": name})
        for parameter in module.parameters():  # much of it starts at zero
            parameter.data.normal_(0, 0.05, generator=generator)
        network = ScoreNetwork(module, config)
        conditions = {"noisy": noisy}
        if name == "compact-av":
            conditions = {"video": torch.randn(1, 80, module.condition_sizes["p"], generator=generator)}
        threads(1)
        whole = network.score(state, 0.4, **conditions)
        threads(2)
        assert torch.isfinite(torch.view_as_real(whole)).all()
        assert torch.equal(network.score(state, 0.4, **conditions), whole), name


def test_a_score_can_be_differentiated_in_a_crowd(threads, crowded):
    threads(2)
    network = load_network(None, torch.device("cpu"))
    state = torch.ones(1, 256, 2 * FEWEST_FRAMES, dtype=torch.complex64, requires_grad=True)
    network.score(state, 0.4).abs().sum().backward()
    assert state.grad is not None
    assert state.grad.abs().sum() > 0
