"""Training of a posterior network: two calls a batch, the second from what the first one said."""

from __future__ import annotations

import torch
from torch import Tensor

from udse_fast.networks.compact_posterior import CompactPosterior, Said
from udse_fast.training.posterior_batches import PosteriorBatch
from udse_fast.training.posterior_loss import (
    factorised,
    next_variance,
    posterior_losses,
    relative_error,
    weighted,
)
from udse_fast.training.trainer import Trainer

VALIDATION_RANK = 8


class PosteriorTrainer(Trainer):
    """Trains a `CompactPosterior` on `PosteriorBatches`."""

    def _call(self, batch: PosteriorBatch, noise_variance: Tensor) -> Said:
        module = self.module
        assert isinstance(module, CompactPosterior)
        return module.say(torch.view_as_real(batch.mixture).movedim(-1, 1), noise_variance)

    def _loss(self, batch: PosteriorBatch) -> Tensor:
        generator = torch.Generator().manual_seed((self.settings.seed * 1_000_003 + self.step) % 2**62)
        first = self._call(batch, batch.start)
        second = self._call(batch, next_variance(first, batch, generator))
        return (weighted(posterior_losses(first, batch)) + weighted(posterior_losses(second, batch))) / 2

    def _validation_errors(self, batches: int) -> dict[str, float]:
        """Relative error of the mean (geometric over mixtures) after one call, two, and told the true V; and of V."""
        logs: dict[str, list[float]] = {"1 call": [], "2 calls": [], "true V": []}
        noise = []
        for number in range(batches):
            batch = self.validation[number].to(self.device)
            first = self._call(batch, batch.start)
            own = first.log_noise.exp()
            again = torch.stack([factorised(item, VALIDATION_RANK) for item in own])
            second = self._call(batch, again)
            for name, said in (
                ("1 call", first),
                ("2 calls", second),
                ("true V", self._call(batch, batch.noise_variance)),
            ):
                mixture, clean = (torch.view_as_real(z).movedim(-1, 1) for z in (batch.mixture, batch.clean))
                logs[name] += (relative_error(said.clean, clean, mixture) + 1e-4).log().tolist()
            losses = posterior_losses(first, batch)
            noise.append(float(losses["noise"]))
        errors = {name: float(torch.tensor(values).mean().exp()) for name, values in logs.items()}
        return {**errors, "V, divergence": sum(noise) / len(noise)}
