"""The items of a batch on threads: the same to the bit as one after the other, and nothing left behind."""

from __future__ import annotations

import threading

import pytest
import torch

from udse_fast.checkpoints.checkpoint import load_network
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.score_network import FRAMES_APART
from udse_fast.networks.side_by_side import side_by_side


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_calls_are_made_at_the_same_time(threads):
    threads(3)
    together = threading.Barrier(3, timeout=20)  # nobody passes it alone
    assert side_by_side(lambda item: (together.wait(), item)[1], 3) == [0, 1, 2]


def test_operators_of_a_call_get_their_share_of_the_threads(threads):
    threads(4)
    assert side_by_side(lambda _: torch.get_num_threads(), 2) == [2, 2]
    assert side_by_side(lambda _: torch.get_num_threads(), 9) == [1] * 9
    assert torch.get_num_threads() == 4
    of_a_new_thread: list[int] = []
    thread = threading.Thread(target=lambda: of_a_new_thread.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert of_a_new_thread == [4]


def test_calls_keep_no_gradients(threads):
    weight = torch.ones(1, requires_grad=True)
    for count in (1, 2):
        threads(count)
        assert not any(side_by_side(lambda _: (weight * 2).requires_grad, 2))


def test_an_exception_of_a_call_reaches_the_caller(threads):
    threads(2)

    def call(item: int) -> int:
        if item == 1:
            raise ValueError("of item 1")
        return item

    with pytest.raises(ValueError, match="of item 1"):
        side_by_side(call, 3)
    assert side_by_side(lambda item: item, 3) == [0, 1, 2]


@pytest.mark.parametrize("name", [None, "posterior"])
def test_an_item_is_the_same_alone_in_a_batch_and_on_any_number_of_threads(threads, name):
    network = load_network(name, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    state = 0.3 * torch.randn(3, 256, FRAMES_APART, dtype=torch.complex64, generator=generator)

    def told(items: torch.Tensor) -> torch.Tensor:
        if name is None:
            return network.score(items, 0.4)
        noise = 0.01 + items.abs() ** 4
        return network.say(items, torch.inf, Conditions(noisy=items, noise_variance=noise)).speech

    threads(1)
    alone = torch.cat([told(item[None]) for item in state])
    for count in (1, 2):
        threads(count)
        assert torch.equal(told(state), alone)


def test_conditions_and_times_go_with_their_items(threads):
    threads(2)
    network = load_network("joint", torch.device("cpu"))
    state = 0.3 * torch.randn(2, 256, FRAMES_APART, dtype=torch.complex64)
    times, labels = torch.tensor([0.2, 0.9]), torch.tensor([0, 1])
    both = network.score(state, times, labels)
    threads(1)  # as each item had
    for item in range(2):
        alone = network.score(state[item : item + 1], times[item : item + 1], labels[item : item + 1])
        assert torch.equal(both[item], alone[0])
