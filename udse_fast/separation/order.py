"""Which talker of a block is which of the block before: a prior of all voices has no order of its own."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def best_order(before: Tensor, now: Tensor) -> list[int]:
    """The order of `now` in which it is most like `before`.

    Args:
        before, now: (K, ...) signals of the same samples.

    Returns:
        Number in `now` of each of the K signals in `before`, of the greatest sum of inner products. Where several are
        equal, as in silence, the first in lexical order, which begins with no change.
    """
    alike = (before.flatten(1).double() @ now.flatten(1).double().T).tolist()
    orders = itertools.permutations(range(len(alike)))
    return list(max(orders, key=lambda order: sum(alike[k][j] for k, j in enumerate(order))))


def in_order(signals: Tensor, order: list[int], axis: int = 0) -> Tensor:
    """The signals (..., K, ...) along an axis, in another order."""
    return signals.index_select(axis, torch.tensor(order))
