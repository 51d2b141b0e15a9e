"""`share_mixture`: sources as shares of a mixture, by the powers that their priors expect. No gradients, few calls.

A prior that knows something of its source (a video, a voice) says so first in how much power it expects where, and only
at low noise levels in the phases. So the mixture keeps its phase, and what is sampled is how it is shared out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from udse_fast.errors import UdseError

ExpectedPower = Callable[[Tensor, float], Tensor]
"""(u (F, T) complex, noise level a) -> E[|s|^2 | u], (F, T) real, of compressed spectrograms."""
Normal = Callable[[int, int], Tensor]
"""(step, source) -> standard complex normal numbers (F, T)."""


def share_mixture(
    mixture: Tensor,
    powers: Mapping[str, ExpectedPower],
    levels: Sequence[float],
    draw: Normal,
    exponent: float = 0.5,
) -> Tensor:
    """Masks of all sources, refined from level to level.

    With the compression c(z) = |z|^(1/2) exp(j arg z) and x = c(X), step i is

        u_k = s_k + a_i z_k,   P_k = E[|s_k|^2 | u_k],   M_k = P_k / sum_j P_j,   s_k <- c(M_k X)

    and the first one has s_k = 0. As |s|^2 is a magnitude before compression, these are masks of expected magnitudes.

    Args:
        mixture: x, (F, T) complex, compressed.
        powers: by name of the source, in order.
        levels: a_i > 0; the first one high, where only the priors speak.
        draw: z_k of a step.
        exponent: of the compression.

    Returns:
        M of the last step, (K, F, T) real, which add up to 1.

    Raises:
        UdseError: no levels, or powers that are not finite.
    """
    if not levels:
        raise UdseError("levels: expected at least one noise level, got none")
    sources = torch.zeros(len(powers), *mixture.shape, dtype=mixture.dtype, device=mixture.device)
    masks = torch.full_like(sources.real, 1 / len(powers))
    for step, level in enumerate(levels):
        expected = torch.stack(
            [power(sources[k] + level * draw(step, k), level) for k, power in enumerate(powers.values())]
        )
        total = expected.sum(0)
        if not torch.isfinite(total).all():
            raise UdseError(f"separation diverged at the noise level {level:g}; another prior, or less guidance")
        masks = torch.where(total > 0, expected / total, 1 / len(powers))
        sources = masks**exponent * mixture  # c of what is shared out
    return masks
