"""Options that several commands share: those of the Enhancer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from udse_fast.errors import UdseError

if TYPE_CHECKING:
    from udse_fast.enhancer import Enhancer


def add_enhancer_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that makes an `Enhancer`."""
    add = parser.add_argument_group("prior and sampler").add_argument
    add(
        "--checkpoint",
        metavar="FILE",
        help=".safetensors, TorchScript .pt, Lightning .ckpt (default: the built-in prior)",
    )
    add("--noise-checkpoint", metavar="FILE", help="a noise prior of its own, for ParaDiffUSE")
    add("--posterior-checkpoint", metavar="FILE", help="for amortised_ddrm (default: the built-in one)")
    add("--tagger", metavar="FILE", help="Cnn14_DecisionLevelMax of PANNs, for ex_diff")
    add("--preset", choices=["vocals", "dereverberation"], help="published settings for another task")
    add("--sampler", metavar="NAME", help="of priors: amortised_ddrm, amortised, ddrm, diffuseen, "
        "udiffse, udiffse_plus, depse_il, depse_tl, paradiffuse_in, paradiffuse_en; of networks that were trained on "
        "pairs: sgmse, ex_diff (default: what suits the checkpoint)")  # fmt: skip
    add(
        "--steps",
        type=int,
        metavar="N",
        help="reverse diffusion steps (default: what suits checkpoint and sampler)",
    )
    add(
        "--samples",
        type=int,
        metavar="B",
        help="posterior samples (default: what suits checkpoint and sampler)",
    )
    add("--seed", type=int, default=0, help="of all randomness (default: %(default)s)")
    add("--max-attenuation-db", type=float, metavar="DB",
        help="attenuate the noise by so much at most; 0 gives the input back (default: no limit)")  # fmt: skip
    add("--strength", type=float, dest="max_attenuation_db", help=argparse.SUPPRESS)  # its name before
    add(
        "--readout",
        choices=["auto", "mean", "mean_compressed", "wiener", "blend"],
        help="from samples to one estimate",
    )
    add("--high-band", choices=["follow", "keep", "cut"],
        help="what lies above 8 kHz: gets the gain of 5 to 7.5 kHz (default), is kept, or left out")  # fmt: skip
    add("--stereo", choices=["separate", "common"],
        help="each channel on its own (default), or one gain for all, which keeps the image")  # fmt: skip
    add("--set", action="append", default=[], metavar="NAME=VALUE",
        help="another setting, e.g. rank=8, guidance=2, block_seconds=4; may be repeated")  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, cuda:1, auto (default)")
    add("--precision", default="auto", help="of the network: float32, bfloat16, float16, auto (default)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")


def enhancer_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `Enhancer`; sets the number of threads."""
    set_threads(arguments.threads)
    names = (
        "checkpoint",
        "noise_checkpoint",
        "posterior_checkpoint",
        "tagger",
        "preset",
        "sampler",
        "steps",
        "samples",
        "seed",
        "max_attenuation_db",
        "device",
        "precision",
    )
    settings = {name: getattr(arguments, name) for name in names}
    for name in ("readout", "high_band", "stereo"):
        if getattr(arguments, name) is not None:
            settings[name] = getattr(arguments, name)
    return settings | other_settings(arguments, settings)


def set_threads(threads: int | None) -> None:
    """Use so many CPU threads; None: all cores."""
    if threads is None:
        return
    if threads < 1:
        raise UdseError(f"--threads: expected a whole number >= 1, got {threads}")
    import torch

    torch.set_num_threads(threads)


def other_settings(arguments: argparse.Namespace, taken: Mapping[str, Any]) -> dict[str, Any]:
    """What `--set NAME=VALUE` says.

    Args:
        taken: settings that have options of their own.
    """
    settings: dict[str, Any] = {}
    for text in arguments.set:
        name, value = _setting(text)
        if name in taken or name in settings:
            reason = "has an option of its own, use that" if name in vars(arguments) else "is given twice"
            raise UdseError(f"--set: {name} {reason}")
        settings[name] = value
    return settings


def make_enhancer(arguments: argparse.Namespace, **overrides: Any) -> Enhancer:
    """The Enhancer that the options ask for."""
    from udse_fast.enhancer import Enhancer

    return Enhancer(**{**enhancer_settings(arguments), **overrides})


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise UdseError(f"--set: expected NAME=VALUE, got {text!r}")
    for read in (json.loads, float):  # .2 is no JSON
        try:
            return name, read(value)
        except (ValueError, RecursionError):
            pass
    return name, value
