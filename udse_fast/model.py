"""`Model`: a prior on its device, with the sampler and the settings that suit it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from udse_fast.audio.spectral import Spectral
from udse_fast.backends.cuda_graphs import Replayed, addresses
from udse_fast.checkpoints.checkpoint import fingerprint, load_network
from udse_fast.devices import fast_bfloat16, keep_freed_memory, usable_device
from udse_fast.errors import UdseError
from udse_fast.networks.optimised import optimised_or_plain
from udse_fast.networks.score_network import KINDS, PRECISIONS, ScoreNetwork
from udse_fast.prior import NetworkPrior
from udse_fast.sampling.samplers import OPTIONS, find_sampler, recommended_sampler, samplers_for
from udse_fast.sampling.sde import SDE
from udse_fast.settings import InferenceSettings, setting_names

BUILT_IN, BUILT_IN_JOINT, BUILT_IN_CAUSAL = "speech", "joint", "causal"
"""Of the priors that come with the package: of speech, of speech and noise, and of speech for causal streams."""
BUILT_IN_POSTERIOR, BUILT_IN_POSTERIOR_CAUSAL = "posterior", "posterior_causal"
"""Of the posterior networks that come with the package, which are told the recording: whole signals, and streams."""
Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Model:
    """Networks, and how to sample with them. Streams may have settings of their own."""

    network: ScoreNetwork
    noise_network: ScoreNetwork
    """The same where the prior is a joint one, or the sampler needs none of noise."""
    sampler: str
    settings: InferenceSettings
    options: dict[str, Any]
    """Of the sampler, see `udse_fast.sampling.samplers.SAMPLERS`."""
    device: torch.device
    precision: str
    posterior_network: ScoreNetwork | None = None
    """Of the samplers that ask one beside the prior."""
    passes: Replayed | None = None
    """Where reverse passes of whole blocks are recorded; on CUDA devices only."""

    @cached_property
    def spectral(self) -> Spectral:
        """The domain that the prior was trained in."""
        config = self.network.config
        return replace(self.network.module.spectral, **config["stft"], **config["compression"])

    @property
    def sde(self) -> SDE:
        """The forward process of the prior."""
        return self.network.sde

    @cached_property
    def prior(self) -> NetworkPrior:
        """The score of whole blocks."""
        return NetworkPrior(self.network, self.noise_network, self.posterior_network)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of the networks' weights, by the name of the checkpoint."""
        networks = {"checkpoint": self.network, "noise_checkpoint": self.noise_network}
        if self.posterior_network is not None:
            networks["posterior_checkpoint"] = self.posterior_network
        return {name: fingerprint(network) for name, network in networks.items()}


def load_model(
    checkpoint: Path | None,
    noise_checkpoint: Path | None,
    sampler: str | None,
    device: str,
    precision: str,
    given: Mapping[str, Any],
    posterior_checkpoint: Path | None = None,
) -> Model:
    """Load a prior, choose what is left open.

    Args:
        checkpoint, noise_checkpoint, posterior_checkpoint, sampler, device, precision: see `udse_fast.Enhancer`.
        given: settings and options of the sampler that take the place of the recommended ones.

    Raises:
        UdseError: an unreadable checkpoint, or things that do not exist or do not fit each other.
    """
    on = usable_device(device)
    network = load_network(checkpoint, on)
    chosen = sampler or recommended_sampler(network.config, network.kind)
    needs_noise = find_sampler(chosen).noise == "score"
    if chosen == "prior":
        raise UdseError("sampler: 'prior' draws speech without a recording; call udse_fast.posterior_sample for it")
    recommended = _recommended(network, chosen, checkpoint)
    settings, options = _settings_and_options(chosen, {**recommended, **given})
    _check_kind(network, chosen)
    noise_network = network
    if noise_checkpoint is not None:
        noise_network = load_network(noise_checkpoint, on)
        _check_alike(network, noise_network)
    elif needs_noise and not network.joint:
        raise UdseError(
            f"sampler {chosen!r}: expected a joint speech and noise prior, got a checkpoint of one source; "
            "give noise_checkpoint too, or train with --speech and --noise"
        )
    asked = [network, noise_network]
    if find_sampler(chosen).likelihood.needs_posterior_network:
        is_built_in = checkpoint in (None, BUILT_IN, BUILT_IN_CAUSAL)
        asked.append(_posterior_network(posterior_checkpoint, network, is_built_in, on))
    elif posterior_checkpoint is not None:
        raise UdseError(f"posterior_checkpoint: expected none for the sampler {chosen!r}, which asks no such network")
    precision, passes = _precision(precision, on, network), None
    if on.type == "cuda":
        fast = {n: optimised_or_plain(n, precision) for n in set(asked)}
        asked = [fast[n] for n in asked]
        graphs = [n.graph for n in asked]
        passes = Replayed(lambda: addresses(*graphs))
    else:
        keep_freed_memory()
        for each in asked:
            each.to(on, precision)
    network, noise_network, *others = asked
    posterior = others[0] if others else None
    return Model(network, noise_network, chosen, settings, options, on, precision, posterior, passes)


def _posterior_network(
    checkpoint: Path | None, prior: ScoreNetwork, is_built_in: bool, device: torch.device
) -> ScoreNetwork:
    """The posterior network that is asked beside a prior: the built-in one, if none is given.

    The built-in prior has two forms, and the network that is given is one for the form that it fits.
    """
    own = BUILT_IN_POSTERIOR_CAUSAL if prior.causal_block else BUILT_IN_POSTERIOR
    network = load_network(own if checkpoint is None else checkpoint, device)
    if network.kind != "posterior":
        raise UdseError(f"posterior_checkpoint: expected {KINDS['posterior']}, got {KINDS[network.kind]}")
    if bool(network.causal_block) != bool(prior.causal_block):
        if not is_built_in:
            kinds = ("of whole blocks", "of causal streams")
            expected, got = kinds if network.causal_block else kinds[::-1]
            raise UdseError(f"posterior_checkpoint: expected a network {expected}, as the prior is, got one {got}")
        network = load_network(own, device)
    _check_alike(prior, network, "posterior_checkpoint")
    return network


def _check_kind(network: ScoreNetwork, sampler: str) -> None:
    """One line where the sampler is for another kind of network, and which samplers are for this one."""
    wanted = find_sampler(sampler).network
    if wanted != network.kind:
        fitting = ", ".join(samplers_for(network.kind))
        raise UdseError(
            f"sampler {sampler!r}: expected {KINDS[wanted]}, got {KINDS[network.kind]}, for which there are {fitting}"
        )


def _recommended(network: ScoreNetwork, sampler: str, checkpoint: Path | None) -> dict[str, Any]:
    """What the checkpoint asks for with this sampler; checked on its own, so that an error names the file."""
    by_sampler = network.config.get("inference", {})
    published = find_sampler(sampler).settings
    recommended = {**published, **by_sampler.get("all", {}), **by_sampler.get(sampler, {})}
    try:
        _settings_and_options(sampler, recommended)
    except UdseError as error:
        raise UdseError(f"{checkpoint or 'built-in prior'}: settings for inference: {error}") from error
    return recommended


def _settings_and_options(sampler: str, given: Mapping[str, Any]) -> tuple[InferenceSettings, dict[str, Any]]:
    """Settings, and options of the sampler, out of one mapping."""
    row, known = find_sampler(sampler), setting_names()
    unknown = sorted(given.keys() - row.options.keys() - {*known})
    if foreign := [name for name in unknown if name in OPTIONS]:
        has = ", ".join(row.options) or "no options"
        raise UdseError(f"sampler {sampler!r} has no {', '.join(foreign)}; it has: {has}")
    if unknown:
        there = ", ".join([*known, *row.options])
        raise UdseError(f"Enhancer: unknown setting {', '.join(unknown)}; there are {there}")
    settings = InferenceSettings(**{name: value for name, value in given.items() if name in known})
    return settings, row.checked({name: value for name, value in given.items() if name in row.options})


def _check_alike(speech: ScoreNetwork, other: ScoreNetwork, name: str = "noise_checkpoint") -> None:
    for section in ("stft", "compression", "sde"):
        if speech.config[section] != other.config[section]:
            raise UdseError(
                f"{name}: expected the {section} settings of the speech prior, {speech.config[section]}, "
                f"got {other.config[section]}"
            )


def _precision(name: str, device: torch.device, network: ScoreNetwork) -> str:
    """ "auto": float32 where the C++ core computes, else 16 bits where the hardware does; a TorchScript file keeps its
    own."""
    if network.scripted:
        return network.precision if name == "auto" else name
    if name != "auto":
        if name not in PRECISIONS:
            raise UdseError(f"precision: expected auto, {', '.join(PRECISIONS)}, got {name!r}")
        return name
    if device.type == "cuda":
        return "bfloat16" if fast_bfloat16(device) else "float16"
    if network.module.has_core:
        return "float32"  # what the C++ core computes in
    return "bfloat16" if fast_bfloat16(device) else "float32"
