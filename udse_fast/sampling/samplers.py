"""The samplers by name, with their published settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from udse_fast.checks import Range, flag, real_number, whole_number
from udse_fast.errors import UdseError
from udse_fast.sampling.likelihoods.amortised import Amortised
from udse_fast.sampling.likelihoods.amortised_ddrm import AmortisedDDRM
from udse_fast.sampling.likelihoods.base import Likelihood
from udse_fast.sampling.likelihoods.ddrm import DDRM
from udse_fast.sampling.likelihoods.depse import DEPSEIL, DEPSETL
from udse_fast.sampling.likelihoods.diffuseen import DiffUSEEN
from udse_fast.sampling.likelihoods.paradiffuse import ParaDiffUSEEN, ParaDiffUSEIN
from udse_fast.sampling.likelihoods.sgmse import SGMSE
from udse_fast.sampling.likelihoods.udiffse import UDiffSE, UDiffSEPlus
from udse_fast.sampling.likelihoods.unconditional import Unconditional

CORRECTOR_SNR = Range(0, 10)
SEEDS = Range(0, 2**64 - 1)
WHOLE = {"corrector_steps": Range(1, 100), "every": Range(1, 1000), "fits": Range(1, 1000)}
"""Options that are whole numbers."""
OPTIONS: dict[str, Range | None] = {
    "guidance": Range(0, 1000),
    "observation_variance": Range(0, 100, excluded=True),
    "eta": Range(0, 1),
    "noise_bias": Range(0, 1000),
    "listening": Range(0, 1),
    "mixture_share": Range(0, 1),
    "variance_scale": Range(0, 1000),
    "divide_tweedie": None,
    "paper_posterior": None,
    "perturb_residual": None,
    **WHOLE,
}
"""Option of a sampler -> range of the number, None: true or false."""


@dataclass(frozen=True)
class Sampler:
    """A row of the table: which likelihood, and what it needs."""

    likelihood: type[Likelihood]
    noise: str | None
    """Where the noise comes from: "nmf", "score" (a noise prior) or None."""
    network: str = "prior"
    """Kind of the network that it asks: a name of `udse_fast.networks.score_network.KINDS`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Published settings, where they are not those of `InferenceSettings`."""

    @property
    def told_recording(self) -> bool:
        """Whether every call of the network is told the recording, to which the diffusion drifts."""
        return self.network in ("conditional", "tagged")

    @property
    def options(self) -> dict[str, Any]:
        """Options of the sampler with their published values."""
        return {f.name: f.default for f in fields(self.likelihood) if f.init and f.name != "problem"}

    def checked(self, options: dict[str, Any], spelling: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Options of this sampler as Python's numbers.

        Args:
            spelling: what `Enhancer` calls an option, where that differs.

        Raises:
            UdseError: another kind, or out of range.
        """
        checked: dict[str, Any] = {}
        for name, value in options.items():
            bounds, shown = OPTIONS[name], (spelling or {}).get(name, name)
            if name in WHOLE:
                checked[name] = whole_number(shown, value, WHOLE[name])
                continue
            checked[name] = flag(shown, value) if bounds is None else real_number(shown, value, bounds)
        return checked


SAMPLERS: dict[str, Sampler] = {
    "udiffse": Sampler(UDiffSE, "nmf"),
    "udiffse_plus": Sampler(UDiffSEPlus, "nmf"),
    "depse_il": Sampler(DEPSEIL, "nmf"),
    "depse_tl": Sampler(DEPSETL, "nmf"),
    "diffuseen": Sampler(DiffUSEEN, "nmf"),
    "paradiffuse_in": Sampler(ParaDiffUSEIN, "score"),
    "paradiffuse_en": Sampler(ParaDiffUSEEN, "score"),
    "ddrm": Sampler(DDRM, "nmf"),
    "amortised": Sampler(Amortised, "nmf", "posterior"),
    "amortised_ddrm": Sampler(AmortisedDDRM, "nmf"),
    "sgmse": Sampler(SGMSE, None, "conditional", {"samples": 1, "hum": "keep"}),
    "ex_diff": Sampler(SGMSE, None, "tagged", {"samples": 1, "hum": "keep", "steps": 40}),
    "prior": Sampler(Unconditional, None),
}


def sampler_names() -> list[str]:
    """Names that `Enhancer` and `posterior_sample` know."""
    return list(SAMPLERS)


def find_sampler(name: str) -> Sampler:
    """The row of the table, or one line that lists the names."""
    if not isinstance(name, str) or name not in SAMPLERS:
        raise UdseError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {name!r}")
    return SAMPLERS[name]


def samplers_for(network: str) -> list[str]:
    """Names of those that ask a kind of network for the speech in a recording."""
    return [name for name, row in SAMPLERS.items() if row.network == network and name != "prior"]


def recommended_sampler(config: dict[str, Any], network: str) -> str:
    """The one that a checkpoint's configuration asks for, else the best of the published ones for its kind."""
    best = "diffuseen" if network == "prior" else samplers_for(network)[0]
    sampler: str = config.get("inference", {}).get("sampler", best)
    return sampler
