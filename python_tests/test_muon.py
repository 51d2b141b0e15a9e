"""Muon in batches against torch's, matrix by matrix, and against singular values."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from udse_fast.networks import build_network
from udse_fast.training.muon import Muon, orthogonalised
from udse_fast.training.trainer import Optimizers

SHAPES = [(8, 24), (8, 24), (24, 8), (12, 12), (8, 24), (24, 8)]
THEIRS = vars(torch.optim).get("Muon")  # it came with torch 2.9


class Counted(TorchDispatchMode):
    """Operations that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not (function.is_view or "view" in function.overloadpacket.__name__):
            self.calls[function.overloadpacket.__name__] += 1
        return function(*args, **kwargs or {})


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


@torch.no_grad()
def relative(one: torch.Tensor, other: torch.Tensor, start: torch.Tensor) -> float:
    """How far apart two are, beside the distance from their start."""
    return float((one - other).norm() / (other - start).norm())


def steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], first: int, count: int) -> None:
    for number in range(first, first + count):
        generator = torch.Generator().manual_seed(100 + number)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.skipif(THEIRS is None, reason="torch 2.9 has the first Muon to compare with")
def test_steps_are_those_of_torch() -> None:
    """A batch is rounded to 16 bits in other places than a matrix: the distances walked agree to 1 %."""
    ours, theirs, start = matrices(), matrices(), matrices()
    rate = {"lr": 0.02, "weight_decay": 0.01}
    steps(Muon(ours, **rate), ours, 0, 4)
    assert THEIRS is not None
    steps(THEIRS(theirs, **rate, adjust_lr_fn="match_rms_adamw"), theirs, 0, 4)
    for one, other, before in zip(ours, theirs, start, strict=True):
        assert relative(one, other, before) < 0.01


@pytest.mark.skipif(THEIRS is None, reason="torch 2.9 has the first Muon to compare with")
def test_a_training_that_began_with_torchs_goes_on() -> None:
    ours, theirs = matrices(), matrices()
    assert THEIRS is not None
    before = THEIRS(theirs, lr=0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    steps(before, theirs, 0, 2)
    with torch.no_grad():
        for one, other in zip(ours, theirs, strict=True):
            one.copy_(other)
    start = [one.detach().clone() for one in ours]
    after = Muon(ours, lr=1.0, weight_decay=0.0)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    steps(after, ours, 2, 2)
    steps(before, theirs, 2, 2)
    for one, other, begun in zip(ours, theirs, start, strict=True):
        assert relative(one, other, begun) < 0.01


def test_singular_values_are_near_one() -> None:
    batch = torch.randn(5, 16, 40, generator=torch.Generator().manual_seed(1))
    for given in (batch, batch.transpose(1, 2)):
        values = torch.linalg.svdvals(orthogonalised(given).double())
        assert float(values.min()) > 0.5
        assert float(values.max()) < 1.3


def test_a_step_is_few_operations() -> None:
    """Matrix by matrix it is a thousand, each of them a launch on a GPU, which waits for the host then."""
    network = build_network({"name": "compact", "sigma_data": 0.1})
    optimizers = Optimizers(network, 1e-3)
    shapes = {matrix.shape for _, matrix in optimizers.matrices}
    assert len(optimizers.matrices) >= 3 * len(shapes)
    for _ in range(2):  # the first makes the momenta
        for _, matrix in optimizers.matrices:
            matrix.grad = torch.ones_like(matrix)
        with Counted() as counted:
            optimizers.all[1].step()
    assert counted.calls.total() <= 26 * len(shapes), counted.calls
