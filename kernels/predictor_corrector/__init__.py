"""Corrector and predictor of one reverse step."""

from udse_fast.backends.dispatch import dispatched
from udse_fast.kernels.predictor_corrector import reference

__all__ = ["corrector", "predictor"]

corrector = dispatched(reference.corrector)
predictor = dispatched(reference.predictor)
