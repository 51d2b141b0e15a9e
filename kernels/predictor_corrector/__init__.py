"""Corrector and predictor of one reverse step."""

from udse_fast.kernels.predictor_corrector import reference
from udse_fast.kernels.step import dispatched_update

__all__ = ["corrector", "predictor"]

corrector = dispatched_update(reference.corrector)
predictor = dispatched_update(reference.predictor)
