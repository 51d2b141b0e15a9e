"""`Conditions`: what a network is told beside the state and the time, as one object.

A further condition is one more field here, a name in the `conditions` of the network that reads it, and whoever gives
it; nothing in between knows conditions by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from udse_fast.checks import described
from udse_fast.errors import UdseError

SPEECH_LABEL, NOISE_LABEL = 1, 0
"""`Conditions.label` of a joint network, in training as in use."""
NOISE_SOURCE = "noise"
"""The one name of a source that is not speech."""
SPEECH_SOURCE = "speech"
"""The name of the speech, where there is one talker."""

NO_WIDTHS: Mapping[str, int] = MappingProxyType({})
Self = TypeVar("Self", bound="Conditions")


def told(axes: str, kind: str, fill: str = "constant") -> dict[str, Any]:
    """Metadata of a field of `Conditions`.

    Args:
        axes: names of the axes; B, F and T are those of the state. What ends in T goes by the frames of the state.
        kind: "whole", "real" or "complex" numbers.
        fill: of frames that are added after the last one: "constant" (zeros) or "replicate".
    """
    return {"axes": tuple(axes.split()), "kind": kind, "fill": fill}


@dataclass(frozen=True, eq=False)
class Conditions:
    """What a network sees beside state and time. Every tensor has the batch of the state, or 1 for all of it."""

    label: Tensor | None = field(default=None, metadata=told("B", "whole"))
    """Source that a joint network is asked about: 1 speech, 0 noise."""
    noisy: Tensor | None = field(default=None, metadata=told("B F T", "complex"))
    """y, the recording, in the domain of the state."""
    video: Tensor | None = field(default=None, metadata=told("B Tv p", "real"))
    """Features of the lips, at the rate of the pictures."""
    latent: Tensor | None = field(default=None, metadata=told("B Tl H", "real"))
    """Of a tagger of the recording."""
    noise_variance: Tensor | None = field(default=None, metadata=told("B F T", "real", fill="replicate"))
    """V, of the noise in the recording."""

    @cached_property
    def given(self) -> tuple[str, ...]:
        """Names of the conditions that are there, in the order of the fields."""
        return tuple(name for name in _metadata(type(self)) if self.__dict__[name] is not None)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those of `given`."""
        return tuple(self.__dict__[name] for name in self.given)

    @property
    def form(self) -> tuple[Any, ...]:
        """Equal for those that `cat` can join: names, and shapes without the batch."""
        return tuple((name, self.__dict__[name].shape[1:]) for name in self.given)

    def mapped(self: Self, change: Any) -> Self:
        """With change(tensor) in the place of every tensor."""
        if not self.given:
            return self
        return replace(self, **{name: change(self.__dict__[name]) for name in self.given})

    def merged(self: Self, other: Self) -> Self:
        """With what `other` says, which wins where both say something."""
        if not other.given:
            return self
        if not self.given:
            return other
        kind = type(other) if isinstance(other, type(self)) else type(self)
        return kind(**{name: part.__dict__[name] for part in (self, other) for name in part.given})

    def frames(self: Self, first: int, count: int) -> Self:
        """The `count` frames from number `first` on, of what goes by frames; the rest is of every frame."""
        return self._by_frames(lambda tensor, _: tensor[..., first : first + count])

    def padded(self: Self, frames: int) -> Self:
        """With `frames` more frames at the end, of what goes by frames."""
        return self._by_frames(lambda tensor, fill: F.pad(tensor, (0, frames), mode=fill))

    def _by_frames(self: Self, change: Any) -> Self:
        metadata = _metadata(type(self))
        names = [name for name in self.given if metadata[name]["axes"][-1] == "T"]
        if not names:
            return self
        return replace(self, **{name: change(self.__dict__[name], metadata[name]["fill"]) for name in names})

    @staticmethod
    def cat(parts: Sequence[Conditions]) -> Conditions:
        """The batches of several one after the other.

        Raises:
            UdseError: they do not have the same conditions, in the same shapes.
        """
        first = parts[0]
        if len(parts) == 1 or not any(part.given for part in parts):
            return first
        if any(part.form != first.form for part in parts):
            shown = " and ".join(str(form) for form in dict.fromkeys(part.form for part in parts))
            raise UdseError(f"conditions: expected the same in all items of a batch, got {shown}")
        return replace(first, **{name: torch.cat([part.__dict__[name] for part in parts]) for name in first.given})

    def repeat(self: Self, batch: int) -> Self:
        """For `batch` items: what has one item is that of all."""
        return self.mapped(lambda tensor: tensor.expand(batch, *tensor.shape[1:]) if len(tensor) == 1 else tensor)

    def to(self: Self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """On a device; real numbers in `dtype`, complex ones in the complex dtype of that precision."""

        def moved(tensor: Tensor) -> Tensor:
            if dtype is None or not (tensor.is_floating_point() or tensor.is_complex()):
                return tensor.to(device)
            return tensor.to(device, dtype.to_complex() if tensor.is_complex() else dtype)

        return self.mapped(moved)

    def for_network(
        self, names: Sequence[str], state: Tensor, device: torch.device, widths: Mapping[str, int] = NO_WIDTHS
    ) -> list[Tensor]:
        """The tensors of `names` as an architecture reads them: whole numbers int64, others float32, complex as planes.

        Args:
            names: conditions that the network knows; all of them must be there.
            state: (B, F, T) complex, whose sizes they have.
            widths: that the network wants of other axes, by name.

        Returns:
            On `device`: (B, ...) each, complex (B, F, T) as real and imaginary part (B, 2, F, T).

        Raises:
            UdseError: a condition that the network does not know, or that is missing, or does not fit the state.
        """
        form = names, state.shape, device
        made: tuple[Any, list[Tensor]] | None = self.__dict__.get("_made")
        if made is None or made[0] != form:
            if self.given != tuple(names):
                _check_names(self.given, names)
            sizes = {**dict(zip("BFT", state.shape, strict=True)), **widths}
            metadata = _metadata(type(self))
            tensors = [_for_network(name, self.__dict__[name], metadata[name], sizes, device) for name in names]
            made = self.__dict__["_made"] = form, tensors  # the calls of a block are told the same
        return made[1]


NOTHING = Conditions()
"""No condition."""


def _metadata(kind: type[Conditions]) -> dict[str, Any]:
    """By name."""
    return {part.name: part.metadata for part in fields(kind)}


def _check_names(given: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in given if name not in known]:
        takes = ", ".join(known) or "none"
        raise UdseError(f"network: expected no {', '.join(unknown)}; the conditions that it knows: {takes}")
    if missing := [name for name in known if name not in given]:
        raise UdseError(f"network: expected the condition {', '.join(missing)}, which it was trained with, got none")


def _for_network(name: str, value: Any, metadata: Any, sizes: dict[str, int], device: torch.device) -> Tensor:
    axes, kind = metadata["axes"], metadata["kind"]
    batch = sizes["B"]
    fits = isinstance(value, Tensor) and value.ndim == len(axes) and value.is_complex() == (kind == "complex")
    if fits:
        if len(value) == 1 != batch:
            value = value.expand(batch, *value.shape[1:])
        fits = all(length == sizes.get(axis, length) for axis, length in zip(axes, value.shape, strict=True))
    if not fits or value.numel() == 0:
        shape = ", ".join(str(sizes.get(axis, axis)) for axis in axes)
        raise UdseError(f"{name}: expected {kind} numbers of the shape ({shape}), got {described(value)}")
    if kind == "complex":
        value = torch.view_as_real(value.resolve_conj()).movedim(-1, 1)
    tensor: Tensor = value.to(device, torch.long if kind == "whole" else torch.float32)
    return tensor


def own_length(name: str) -> int | None:
    """The axis of a condition whose length is its own, neither the state's nor the network's; None for most."""
    axes = _metadata(Conditions)[name]["axes"]
    return next((number for number, axis in enumerate(axes) if axis in ("Tv", "Tl")), None)


_ON_CPU = {label: Conditions(label=torch.tensor([label])) for label in (SPEECH_LABEL, NOISE_LABEL)}


def labelled(source: str, state: Tensor) -> Conditions:
    """The label of a source by its name, that of noise or of speech (of any talker), for the states (B, ...)."""
    label = NOISE_LABEL if source == NOISE_SOURCE else SPEECH_LABEL
    if state.device.type == "cpu":
        return _ON_CPU[label]
    return Conditions(label=torch.full((len(state),), label, device=state.device))  # a kernel, which a graph can hold


def example_condition(name: str, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    """A condition as an architecture reads it, of random numbers.

    Args:
        sizes: length of each axis by name; what is not among them is 8.
    """
    metadata = _metadata(Conditions)[name]
    shape = [sizes.get(axis, 8) for axis in metadata["axes"]]
    if metadata["kind"] == "whole":
        return torch.arange(shape[0]) % 2
    if metadata["kind"] == "complex":
        shape.insert(1, 2)
    return torch.rand(shape, generator=generator, dtype=torch.float32)
