"""Itakura-Saito NMF updates of the noise variance, at once and online."""

from udse_fast.backends.dispatch import dispatched
from udse_fast.kernels.nmf_is import reference

__all__ = ["nmf_update", "online_nmf_update"]

nmf_update = dispatched(reference.nmf_update)
online_nmf_update = dispatched(reference.online_nmf_update)
