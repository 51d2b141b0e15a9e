"""`udse-fast train`: a prior from folders of recordings."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from udse_fast.checkpoints.checkpoint import load_network
from udse_fast.checks import Range, whole_number
from udse_fast.commands.training_data import TrainingData, check_sources, training_data
from udse_fast.devices import fast_bfloat16, usable_device
from udse_fast.errors import UdseError
from udse_fast.networks import build_network, network_class
from udse_fast.networks.compact import COMPACT_SIZES
from udse_fast.networks.conditional_ncsnpp import CONDITIONAL_SIZES
from udse_fast.networks.edm_ncsnpp import EDM_SIZES
from udse_fast.networks.ncsnpp import PUBLISHED_SIZES
from udse_fast.networks.score_network import PRECISIONS, ScoreNetwork
from udse_fast.tagger import Tagger
from udse_fast.training.batches import Augmentation
from udse_fast.training.curves import draw_curves
from udse_fast.training.lip_reading import warm_up
from udse_fast.training.parallel import Processes, processes_of_torchrun
from udse_fast.training.posterior_trainer import PosteriorTrainer
from udse_fast.training.trainer import Settings, Trainer, measure_sigma_data

NETWORKS: dict[str, dict[str, Any]] = {
    **{name: {"name": "compact", **arguments} for name, arguments in COMPACT_SIZES.items()},
    "compact-av": {"name": "compact-av", "encoder": {"name": "compact"}},
    "compact-posterior": {"name": "compact-posterior"},
    "compact-posterior-causal": {"name": "compact-posterior", "causal_block": 2},
    "compact-conditional": {"name": "compact-conditional"},
    **{name: {"name": "ncsnpp", **arguments} for name, arguments in PUBLISHED_SIZES.items()},
    **EDM_SIZES,
    **{name: {"name": "ncsnpp-conditional", **arguments} for name, arguments in CONDITIONAL_SIZES.items()},
}
SEEDS = Range(0, 2**63 - 1)
SIGMA_DATA = 0.06
"""Of the posterior networks, whose weights start from a prior: what that one had, or its default."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--speech", type=Path, metavar="DIR", help="folder of clean speech (any format soundfile reads)")
    add("--noise", type=Path, metavar="DIR", help="folder of noise; with --speech: a joint prior of both, or for a "
        "conditional network what the speech is mixed with")  # fmt: skip
    add("--pairs", type=Path, nargs="+", metavar="DIR", help="for a conditional network: folders CLEAN NOISY of equal "
        "names, or one that has folders noisy/ beside clean/")  # fmt: skip
    add("--tagger", type=Path, metavar="FILE", help="Cnn14_DecisionLevelMax of PANNs, whose latent of the recording a "
        "conditional network is told (Ex-Diff)")  # fmt: skip
    add("--latent-pooling", choices=["frames", "mean"], default="frames",
        help="of that latent: its frames one by one, or their average (default: %(default)s)")  # fmt: skip
    add("--valid-pairs", type=Path, nargs="+", metavar="DIR", help="the same (default: 4 %% of the speakers)")
    add("--video", type=Path, metavar="DIR", help="for an audio-visual network: folder of videos of one talker each "
        "with clean speech, or of mouth crops with sound")  # fmt: skip
    add("--valid-video", type=Path, metavar="DIR", help="the same (default: 4 %% of the speakers)")
    add(
        "--speech-list",
        type=Path,
        metavar="FILE",
        help="text file: the recordings of --speech to use, one a line",
    )
    add("--noise-list", type=Path, metavar="FILE", help="the same for --noise")
    add("--valid-speech", type=Path, metavar="DIR", help="validation speech (default: 4 %% of the speakers)")
    add("--valid-noise", type=Path, metavar="DIR", help="validation noise (default: 4 %% of the kinds)")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="checkpoint to write (.safetensors); resumed if there",
    )
    add("--network", default="compact", choices=list(NETWORKS), help="(default: %(default)s)")
    add(
        "--init",
        type=Path,
        metavar="FILE",
        help="start from the weights of this checkpoint; speech, causal, joint and posterior are the built-in ones",
    )
    add("--freeze", action="store_true", help="train only what the checkpoint of --init does not have")
    add("--warm-up-steps", type=int, default=300, metavar="N", help="of an audio-visual network: steps in which its "
        "visual encoder learns by itself to tell levels of the speech (default: %(default)s)")  # fmt: skip
    add("--steps", type=int, default=20_000, help="optimizer steps in all (default: %(default)s)")
    add("--batch-size", type=int, default=8, help="crops a step (default: %(default)s)")
    add("--crop-seconds", type=float, default=2.0, help="(default: %(default)s)")
    add("--learning-rate", type=float, help="(default: 2e-3, of the published networks 1e-4)")
    add(
        "--decay-share",
        type=float,
        default=0.4,
        help="share of the steps with falling rate (default: %(default)s)",
    )
    add("--ema", type=float, default=0.999, help="decay of the weight average (default: %(default)s)")
    add(
        "--speed-range",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="crops are played up to this share faster or slower: other voices (default: %(default)s)",
    )
    add(
        "--equalisation",
        type=float,
        default=3.0,
        metavar="DB",
        help="standard deviation of a smooth random frequency response: other microphones (default: %(default)s)",
    )
    add(
        "--bright-voices",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="of a posterior network: so many crops have sibilants as loud as the vowels; more of them do clean speech "
        "less harm and take away less noise (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, auto (default)")
    add(
        "--precision",
        default="auto",
        choices=["auto", *PRECISIONS],
        help="of the computation (default: %(default)s)",
    )
    add("--threads", type=int, help="CPU threads (default: all)")
    add("--save-minutes", type=float, default=5.0, help="time between checkpoints (default: %(default)s)")
    add("--validate-minutes", type=float, default=10.0, help="time between validations (default: %(default)s)")
    add("--licence", default="not stated", help="licence of the weights, kept in the checkpoint")
    add("--data-note", default="", help="what the recordings are, kept in the checkpoint")


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return PRECISIONS[name]
    return torch.bfloat16 if fast_bfloat16(device) else torch.float32  # float16 would need its loss scaled


def _check(arguments: argparse.Namespace) -> None:
    check_sources(arguments, network_class(NETWORKS[arguments.network]["name"]))
    if NETWORKS[arguments.network].get("joint") and None in (arguments.speech, arguments.noise):
        raise UdseError(f"--network {arguments.network}: expected --speech DIR and --noise DIR, got one of them")
    for name in (
        "steps",
        "batch_size",
        "crop_seconds",
        "learning_rate",
        "threads",
        "save_minutes",
        "validate_minutes",
    ):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise UdseError(f"--{name.replace('_', '-')}: expected a number above 0, got {value}")
    if arguments.out.suffix != ".safetensors":
        raise UdseError(f"--out: expected a name that ends in .safetensors, got {arguments.out}")
    if not arguments.out.parent.is_dir():
        raise UdseError(f"--out: expected an existing folder, got {arguments.out.parent}; make it first")
    try:
        with tempfile.TemporaryFile(dir=arguments.out.parent):
            pass  # told now, not when the first checkpoint is due
    except OSError as error:
        raise UdseError(
            f"--out: expected a folder that can be written, got {arguments.out.parent}: {error.strerror}"
        ) from None
    whole_number("--seed", arguments.seed, SEEDS)
    whole_number("--warm-up-steps", arguments.warm_up_steps, Range(0, 10**9))
    if arguments.freeze and arguments.init is None:
        raise UdseError("--freeze: expected --init FILE, whose weights stay as they are, got none")
    if not (0 <= arguments.speed_range <= 0.5 and 0 <= arguments.equalisation <= 20):
        raise UdseError("--speed-range and --equalisation: expected numbers in [0, 0.5] and [0, 20]")
    if not 0 <= arguments.bright_voices <= 1:
        raise UdseError(f"--bright-voices: expected a share in [0, 1], got {arguments.bright_voices}")
    if not (0 <= arguments.ema < 1 and 0 <= arguments.decay_share <= 1):
        raise UdseError("--ema and --decay-share: expected numbers in [0, 1)")


def _nothing(text: str) -> None:
    """What the processes after the first say."""


def run(arguments: argparse.Namespace) -> int:
    """Train, or go on training. Return 0 when the run is complete, or was stopped with everything saved."""
    _check(arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with processes_of_torchrun(usable_device(arguments.device)) as (processes, device):
        return _train(arguments, processes, device)


def _facts(arguments: argparse.Namespace, data: TrainingData, initial: ScoreNetwork | None) -> dict[str, Any]:
    """What a checkpoint says about its training, besides what the trainer counts."""
    facts: dict[str, Any] = {
        "network": arguments.network,
        "data": arguments.data_note,
        "speech_hours": round(data.speech_seconds / 3600, 3),
        "noise_hours": round(data.noise_seconds / 3600, 3),
        "recordings": data.recordings,
    }
    if initial is not None:
        earlier = initial.config.get("training") or {}
        facts["started_from"] = {
            "checkpoint": arguments.init.name,
            "steps": earlier.get("steps"),
            "seconds_of_audio_seen": earlier.get("seconds_of_audio_seen"),
        }
    return facts


def _train(arguments: argparse.Namespace, processes: Processes, device: torch.device) -> int:
    """What one of the processes does; the first of them speaks."""
    if arguments.batch_size % processes.count:
        raise UdseError(
            f"--batch-size: expected a multiple of the {processes.count} processes of torchrun, got "
            f"{arguments.batch_size}"
        )
    say = print if processes.is_first else _nothing
    architecture = dict(NETWORKS[arguments.network])
    kind = network_class(architecture["name"])
    spectral = kind.spectral
    posterior = kind.tells_noise_variance
    if posterior and processes.count > 1:
        raise UdseError(f"--network {arguments.network}: expected one process, got {processes.count} of torchrun")
    if not (posterior or kind.drifts or kind.sees):
        architecture["joint"] = arguments.speech is not None and arguments.noise is not None
    frames = max(1, round(arguments.crop_seconds * spectral.sample_rate / spectral.hop_length))
    frames = -(-frames // kind.frame_multiple) * kind.frame_multiple
    augmentation = Augmentation(arguments.speed_range, arguments.equalisation, arguments.bright_voices)
    tagger = None if arguments.tagger is None else Tagger(arguments.tagger)
    if tagger is not None:
        architecture |= {"latent_size": tagger.latent_size, "latent_pooling": arguments.latent_pooling}
    data = training_data(arguments, kind, frames, augmentation, tagger)
    initial = load_network(arguments.init) if arguments.init else None
    if kind.has_data_scale:
        measured = SIGMA_DATA if posterior else measure_sigma_data(data.training)
        before = initial.config["architecture"].get("sigma_data") if initial else None
        if isinstance(before, float):  # the weights that are started from belong to this preconditioning
            measured = [measured[0], before] if isinstance(measured, list) else before
        architecture["sigma_data"] = measured

    settings = Settings(
        architecture=architecture,
        spectral=spectral,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        crop_seconds=arguments.crop_seconds,
        learning_rate=arguments.learning_rate or kind.learning_rate,
        decay_share=arguments.decay_share,
        ema=arguments.ema,
        augmentation=augmentation,
        seed=arguments.seed,
    )
    facts = _facts(arguments, data, initial)
    trainer = (PosteriorTrainer if posterior else Trainer)(
        settings,
        data.training,
        data.validation,
        arguments.out,
        device=device,
        precision=_precision(arguments.precision, device),
        facts=facts,
        licence=arguments.licence,
        workers=1 if device.type == "cpu" else 12,
        processes=processes,
        frozen=initial.module.state_dict() if arguments.freeze and initial is not None else None,
    )
    if trainer.state_file.exists():
        trainer.resume()
        say(f"resuming {arguments.out} at step {trainer.step}")
    else:
        if initial is not None:
            centred = not initial.config["architecture"].get("causal_block", 0)
            trainer.start_from(initial.graph.module.state_dict(), bool(architecture.get("causal_block")) and centred)
        if kind.sees and arguments.warm_up_steps:
            untold = warm_up(trainer.module, data.training, arguments.warm_up_steps, device)
            trainer.restart_average()
            say(f"visual encoder: {100 * (1 - untold):.0f} % of the speech's levels are read from the lips")
    parameters = sum(p.numel() for p in build_network(architecture).parameters())
    say(
        f"{arguments.network}: {parameters / 1e6:.2f} M parameters, {trainer.precision}, {device}; "
        f"{facts['speech_hours']} h of speech, {facts['noise_hours']} h of noise"
    )
    complete = trainer.run(save_minutes=arguments.save_minutes, validate_minutes=arguments.validate_minutes)
    if not processes.is_first:
        return 0
    curves = draw_curves(trainer.history, arguments.out.with_suffix(".png"))
    print(f"{'done' if complete else 'stopped'} at step {trainer.step}: {arguments.out}, {curves}")
    return 0
