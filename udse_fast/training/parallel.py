"""Training in several processes, as `torchrun` starts them: each has its rows of a batch, all have the same weights.

The processes make the same batches and the same noise, take every n-th row of them, and average their gradients: what
one process would have computed with the whole batch, up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from udse_fast.errors import UdseError


class Processes:
    """One of `count` processes that train together; alone, nothing is exchanged."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def is_first(self) -> bool:
        """Whether this is the one that validates, writes files and speaks."""
        return self.rank == 0

    def rows(self, tensor: Tensor) -> Tensor:
        """This process's rows of (N, ...)."""
        return tensor[self.rank :: self.count] if self.count > 1 else tensor

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The mean over the processes in the place of every gradient, in one message."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.count
        at = 0
        for gradient in gradients:
            gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()

    def average(self, value: Tensor) -> Tensor:
        """The mean of a number over the processes."""
        if self.count == 1:
            return value
        distributed.all_reduce(value)
        return value / self.count

    def any(self, asked: bool, device: torch.device) -> bool:
        """Whether one of the processes says so: all of them stop at the same step."""
        if self.count == 1:
            return asked
        flag = torch.tensor(float(asked), device=device)
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return bool(flag)


ALONE = Processes()


@contextmanager
def processes_of_torchrun(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """The processes that `torchrun` started, and this one's device; without it, this process alone.

    Raises:
        UdseError: more processes on a machine than it has GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE, device
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UdseError(
                f"torchrun: expected up to {torch.cuda.device_count()} processes on this machine, one for each GPU, "
                f"got {os.environ.get('LOCAL_WORLD_SIZE')}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), count), device
        # All leave together: one that ends while a thread of gloo still holds its last message is aborted.
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
