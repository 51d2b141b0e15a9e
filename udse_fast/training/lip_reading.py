"""What a visual encoder learns first: to tell from the lips how loud the bands of the speech are.

Score matching alone tells an encoder little, and only through a whole network: after these steps its features say
something about the sound, and the network has something to use.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udse_fast.errors import UdseError
from udse_fast.networks.base import Network

BANDS = 16
"""Of equal width."""
FIRST_BATCH = 2**29
"""Number of the first batch, which is none of the training proper."""
LEARNING_RATE = 2e-3


def band_levels(spectrograms: Tensor, count: int) -> Tensor:
    """Logarithmic power of each band at `count` moments, (N, F, T) complex -> (N, count, BANDS), mean 0, variance 1."""
    power = spectrograms.abs().square()[:, None]
    levels = F.adaptive_avg_pool2d(power, (BANDS, count))[:, 0].add(1e-5).log().transpose(1, 2)
    mean, deviation = levels.mean((0, 1)), levels.std((0, 1))
    return (levels - mean) / deviation.clamp_min(1e-3)


def warm_up(module: Network, batches: Any, steps: int, device: torch.device) -> float:
    """Train the visual encoder of a network alone; the layer that reads the levels out of its features is left behind.

    Args:
        batches: `VideoBatches`.

    Returns:
        The share of the levels' variance that is not told in the last tenth of the steps.

    Raises:
        UdseError: the loss became infinite or NaN.
    """
    encoder = module.visual_encoder
    assert encoder is not None
    reader = nn.Linear(encoder.features, BANDS).to(device)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *reader.parameters()], lr=LEARNING_RATE, weight_decay=0.0)
    untold = []
    for number in range(steps):
        batch = batches[FIRST_BATCH + number].to(device)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, 4 * (1 - number / steps))
        read = reader(encoder(batch.frames[:, None]))
        loss = F.mse_loss(read, band_levels(batch.spectrograms, read.shape[1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        untold.append(float(loss.detach()))
    last = untold[-max(1, steps // 10) :]
    if not all(map(torch.isfinite, map(torch.tensor, last))):
        raise UdseError("training: the loss of the visual encoder became infinite or NaN; look at the videos")
    return sum(last) / len(last)
