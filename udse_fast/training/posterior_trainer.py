"""Training of a posterior network: two calls a batch, the second from what the first one said."""

from __future__ import annotations

import torch
from torch import Tensor

from udse_fast.networks.compact_posterior import CompactPosterior
from udse_fast.sampling.noise_guesses import factorised, predicted
from udse_fast.training.posterior_batches import PosteriorBatch
from udse_fast.training.posterior_loss import (
    FLOOR,
    diffused_states,
    first_guess,
    next_guess,
    posterior_losses,
    relative_error,
    weighted,
)
from udse_fast.training.trainer import Trainer

VALIDATION_RANK, VALIDATION_MEMORY = 8, 10.0
"""Of the NMF between the calls, and frames of a stream's memory in its place."""


class PosteriorTrainer(Trainer):
    """Trains a `CompactPosterior` on `PosteriorBatches`."""

    def _loss(self, batch: PosteriorBatch) -> Tensor:
        generator = torch.Generator().manual_seed((self.settings.seed * 1_000_003 + self.step) % 2**62)
        mixture, module = _planes(batch.mixture), self._posterior
        block = module.causal_block
        first = module.say(mixture, first_guess(batch.mixture, generator, block))
        state, level = diffused_states(batch.clean, generator)
        second = module.say(mixture, next_guess(first, batch, generator, block), state, level)
        blind = level.isinf().float()
        return (weighted(posterior_losses(first, batch)) + weighted(posterior_losses(second, batch, blind))) / 2

    @property
    def _posterior(self) -> CompactPosterior:
        assert isinstance(self.module, CompactPosterior)
        return self.module

    def _validation_errors(self, batches: int) -> dict[str, float]:
        """Relative error of the mean (geometric over mixtures) after one call, two, and told the true V; and of V."""
        logs: dict[str, list[float]] = {"1 call": [], "2 calls": [], "true V": []}
        noise = []
        for number in range(batches):
            batch = self.validation[number].to(self.device)
            mixture, clean, module = _planes(batch.mixture), _planes(batch.clean), self._posterior
            block = module.causal_block
            first = module.say(mixture, first_guess(batch.mixture, torch.Generator().manual_seed(number), block))
            own = first.log_noise.exp()
            if block:
                again = predicted(own, VALIDATION_MEMORY, block)
            else:
                again = torch.stack([factorised(item, VALIDATION_RANK) for item in own])
            calls = {
                "1 call": first,
                "2 calls": module.say(mixture, again),
                "true V": module.say(mixture, batch.noise_variance),
            }
            for name, said in calls.items():
                logs[name] += (relative_error(said.clean, clean, mixture) + FLOOR).log().tolist()
            noise.append(float(posterior_losses(first, batch)["noise"]))
        errors = {name: float(torch.tensor(values).mean().exp()) for name, values in logs.items()}
        return {**errors, "V, divergence": sum(noise) / len(noise)}


def _planes(spectrogram: Tensor) -> Tensor:
    """(N, F, T) complex -> (N, 2, F, T)."""
    return torch.view_as_real(spectrogram).movedim(-1, 1)
