"""Measures of separated talkers, whose order is not known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from udse_fast.errors import UdseError
from udse_fast.evaluation.metrics import Signal, si_sdr


def improvements(references: Sequence[Signal], estimates: Sequence[Signal], mixture: Signal) -> list[float]:
    """SI-SDR of each talker less that of the mixture, in dB, in the order of estimates with the greatest sum.

    Args:
        references, estimates: K signals (L,) each, of the true talkers and of those that were found.
        mixture: (L,) what both are about.

    Raises:
        UdseError: not as many estimates as references, or signals of other lengths.
    """
    if len(references) != len(estimates):
        raise UdseError(f"expected as many estimates as talkers, got {len(estimates)} and {len(references)}")
    before = [si_sdr(reference, mixture) for reference in references]
    after = [[si_sdr(reference, estimate) for estimate in estimates] for reference in references]
    orders = itertools.permutations(range(len(estimates)))
    best = max(orders, key=lambda order: sum(after[k][j] for k, j in enumerate(order)))
    return [after[k][j] - before[k] for k, j in enumerate(best)]


def in_true_order(references: Sequence[Signal], estimates: Sequence[Signal], piece: int) -> list[NDArray[np.float64]]:
    """The estimates, put in the best order anew in every `piece` samples: what is left is not a question of order.

    The order of a piece is the one with the least squared error.
    """
    true, found = np.asarray(references, np.float64), np.asarray(estimates, np.float64)
    result = np.zeros_like(true)
    for start in range(0, true.shape[1], piece):
        part = slice(start, start + piece)
        errors = np.square(true[:, None, part] - found[None, :, part]).sum(-1)
        orders = itertools.permutations(range(len(found)))
        best = min(orders, key=lambda order, errors=errors: sum(errors[k, j] for k, j in enumerate(order)))  # type: ignore[misc]
        result[:, part] = found[list(best), part]
    return list(result)
