"""`Problem`: what a likelihood is given. And the checks of what users give to a pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from udse_fast.checks import Range, complex_tensor, described, real_number
from udse_fast.errors import UdseError
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal import NoiseKey
from udse_fast.networks.conditions import NOTHING, Conditions
from udse_fast.sampling.noise_models import NoiseModel
from udse_fast.sampling.randomness import Draw
from udse_fast.sampling.requests import Calls, Prior, Request
from udse_fast.sampling.sde import Time


@dataclass(frozen=True)
class Problem:
    """The recording, whom to ask about its sources, and what is known about the noise."""

    mixture: Tensor
    """x, (F, T) complex, compressed and normalised."""
    prior: Prior
    noise_model: NoiseModel | None = None
    """None for samplers that fit no noise."""
    em_rounds: int = 1
    conditions: Mapping[str, Conditions] = field(default_factory=dict)
    """By source: what the network is told in every call about it."""
    calls: Calls = field(default_factory=Calls)

    def request(
        self,
        state: Tensor,
        time: Time,
        source: str,
        coefficients: Coefficients,
        conditions: Conditions = NOTHING,
        *,
        posterior_variance: bool = False,
        vjp: bool = False,
        estimate: bool = False,
    ) -> Request:
        """The next call of this pass, to be yielded.

        Args:
            state: s_t, (B, F, T) complex.
            time, coefficients: of it.
            source: that the network is asked about.
            conditions: of this call, beside those of every call.
            posterior_variance, vjp, estimate: what the answer shall have beside the score.
        """
        if self.conditions:
            conditions = self.conditions.get(source, NOTHING).merged(conditions)
        call = self.calls.made
        self.calls.made += 1
        return Request(
            self.prior,
            state,
            time,
            source,
            coefficients,
            conditions,
            self.calls,
            call,
            posterior_variance,
            vjp,
            estimate,
        )


def checked_mixture(mixture: Any, batched: bool = False) -> Tensor:
    """A complex spectrogram (F, T), or where that is allowed (B, F, T), of finite numbers.

    Raises:
        UdseError: anything else.
    """
    if (
        not isinstance(mixture, Tensor)
        or mixture.ndim not in ((2, 3) if batched else (2,))
        or not mixture.is_complex()
        or mixture.numel() == 0
    ):
        raise UdseError(
            f"mixture: expected a complex tensor (F, T), compressed and normalised, got {described(mixture)}"
        )
    mixture = mixture.resolve_conj()
    if not torch.isfinite(torch.view_as_real(mixture)).all():
        raise UdseError("mixture: expected finite numbers, got NaN or infinity; clean the input first")
    return mixture


def checked_times(times: Any, bounds: Range) -> tuple[Time, ...]:
    """Diffusion times, each a number within the bounds or a tensor of such, one per frame.

    Raises:
        UdseError: anything else.
    """
    if not isinstance(times, (Sequence, Tensor, np.ndarray)) or isinstance(times, str) or len(times) == 0:
        raise UdseError(f"times: expected a list of times, one for each step, got {times!r}")
    checked: list[Time] = []
    for step, t in enumerate(times):
        if isinstance(t, Tensor) and t.ndim:
            least, most = float(t.min()) if t.numel() else 0, float(t.max()) if t.numel() else 0
            if t.ndim != 1 or not t.is_floating_point() or least not in bounds or most not in bounds:
                raise UdseError(f"times[{step}]: expected a number or (T,) numbers {bounds}, got {described(t)}")
            checked.append(t)
        else:
            checked.append(real_number(f"times[{step}]", t.item() if isinstance(t, Tensor) else t, bounds))
    return tuple(checked)


def times_for(times: Sequence[Time], mixture: Tensor) -> list[Time]:
    """Times per frame in the precision of the mixture (F, T), on its device.

    Raises:
        UdseError: they are not T.
    """
    T = mixture.shape[-1]
    for step, t in enumerate(times):
        if isinstance(t, Tensor) and t.shape != (T,):
            raise UdseError(f"times[{step}]: expected a number or ({T},) numbers, one per frame, got {described(t)}")
    return [t.to(mixture.real) if isinstance(t, Tensor) else t for t in times]


def checked_factors(factors: Any, mixture: Tensor) -> tuple[Tensor, Tensor]:
    """W (F, R) and H (R, T) of a variance, which is finite and not negative.

    Raises:
        UdseError: anything else.
    """
    given = tuple(factors) if isinstance(factors, (tuple, list)) else (factors,)
    tensors = [f for f in given if isinstance(f, Tensor) and f.ndim == 2 and f.is_floating_point()]
    if len(given) == len(tensors) == 2:
        W, H = tensors
        fits = W.shape[1] == H.shape[0] > 0 and (len(W), H.shape[1]) == mixture.shape
        if fits and all(bool(torch.isfinite(f).all() and (f >= 0).all()) for f in tensors):
            return W.to(mixture.real), H.to(mixture.real)
    raise UdseError(
        f"initial_nmf: expected two real tensors W ({mixture.shape[0]}, R) and H (R, {mixture.shape[1]}), finite and "
        f">= 0, got {' and '.join(described(f) for f in given)}"
    )


def checked_draw(draw: Any, shape: tuple[int, ...], like: Tensor) -> Draw:
    """`draw` in the precision of the states, and one line where what it gives does not fit them.

    Raises:
        UdseError: it is no function.
    """
    if not callable(draw):
        raise UdseError(f"randomness: expected a function, got {type(draw).__name__}")

    def checked(name: str, index: int) -> Tensor | NoiseKey:
        value = draw(name, index)
        if isinstance(value, NoiseKey):
            return value
        return complex_tensor(f"randomness({name}, {index})", value, shape).to(like)

    return checked
