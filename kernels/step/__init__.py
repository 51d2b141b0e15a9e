"""One reverse step of a posterior sampler, and how an update of it is declared: once, for every backend.

An update is a function of a `Step` whose equations stand in a `reference.py`. The compiled backends have one `run`
for all of them: the fields of a step, the options and the results have the names of `udse::Step`
(csrc/udse_core.hpp), and `@update` says which of them an update has.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, TypeAlias, TypeVar

import torch

from udse_fast.backends.dispatch import chosen_backend, implementation
from udse_fast.errors import UdseError
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal.reference import Noise

P = ParamSpec("P")
R = TypeVar("R")

NoiseVariance: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""V itself, (F, T) real, or its NMF factors W (F, R) and H (R, T)."""

NOT_GIVEN: Final[Any] = None
"""Of a field that only some updates read; an update whose field is not given is refused."""


class Step(NamedTuple):
    """What the updates read. States, scores and noises are (B, F, T) complex."""

    state: torch.Tensor
    """s."""
    score: torch.Tensor
    """S(s, t)."""
    coefficients: Coefficients
    noise: Noise = None
    """z of the update, None for zero."""
    mixture: torch.Tensor = NOT_GIVEN
    """x, (F, T) complex."""
    variance: NoiseVariance = NOT_GIVEN
    """V, of the noise in the mixture."""
    posterior_variance: torch.Tensor = NOT_GIVEN
    """C = E|s_0 - s0|^2, what is uncertain about the clean signal, (B, F, T) real."""
    following: Coefficients = NOT_GIVEN
    """Of the next step."""
    other_state: torch.Tensor = NOT_GIVEN
    """n, of a second source."""
    other_score: torch.Tensor = NOT_GIVEN
    other_noise: Noise = None
    """z of the second source, or a second draw of this one."""


@dataclass(frozen=True)
class Update:
    """An update as the backends see it."""

    name: str
    reads: tuple[str, ...]
    """Fields of a step."""
    needs: tuple[str, ...]
    """Those that must be given and may not be: no noise is zero."""
    gives: tuple[str, ...]
    """Of "next" and "other_next", (B, F, T) complex, and "power", (F, T) real."""
    options: dict[str, Any]
    """Further arguments, all with a default."""
    values: Callable[[Step], tuple[Any, ...]]
    """The fields of a step that are read."""

    def arguments(self, values: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name: the fields that are read, the options with their defaults.

        Raises:
            UdseError: a field that is read is not given.
        """
        fields = dict(zip(self.reads, values, strict=True))
        for name in self.needs:
            if fields[name] is None:
                raise UdseError(f"{self.name} expected a step with {name}, got none: give it")
        return fields | self.options | options


UPDATES: Final[dict[str, Update]] = {}
"""All updates by name."""


def update(reads: str, gives: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare the equations of an update, a function of a step and of options.

    Args:
        reads: fields of the step beyond state, score and coefficients, in one string.
        gives: what it returns, in this order: "next", "other_next", "power", in one string.
    """

    def declare(equations: Callable[P, R]) -> Callable[P, R]:
        name = equations.__name__
        options = {key: p.default for key, p in inspect.signature(equations).parameters.items() if key != "step"}
        fields = ("state", "score", "coefficients", *reads.split())
        needs = tuple(field for field in reads.split() if not field.endswith("noise"))
        UPDATES[name] = Update(name, fields, needs, tuple(gives.split()), options, attrgetter(*fields))
        return equations

    return declare


def dispatched_update(equations: Callable[Concatenate[Step, P], R]) -> Callable[Concatenate[Step, P], R]:
    """The public form of an update: it runs in the backend that fits the arguments, or the forced one."""
    declared = UPDATES[equations.__name__]

    @functools.wraps(equations)
    def operation(step: Step, /, *_: P.args, **options: P.kwargs) -> R:
        values = declared.values(step)
        backend = chosen_backend(declared.name, (*values, *options.values()))
        if backend == "reference":
            return equations(step, *_, **options)
        result: R = implementation(__name__, backend).run(declared, declared.arguments(values, options))
        return result

    return operation


def empty_results(declared: Update, state: torch.Tensor, want_noise: bool = True) -> dict[str, torch.Tensor | None]:
    """Memory for what an update gives; None for a noise estimate that is not wanted."""
    _, bins, frames = state.shape
    results: dict[str, torch.Tensor | None] = {}
    for name in declared.gives:
        if name != "power":
            results[name] = torch.empty_like(state) if want_noise or name == "next" else None
        elif state.is_cpu:
            results[name] = torch.empty(bins, frames, dtype=torch.float32)
        else:
            results[name] = torch.empty(bins, frames, dtype=torch.float32, device=state.device)
    return results


def as_declared(results: dict[str, torch.Tensor | None]) -> Any:
    """One tensor, or the tuple of them."""
    values = tuple(results.values())
    return values if len(values) > 1 else values[0]
