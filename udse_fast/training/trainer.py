"""The training loop: denoising score matching, EMA, exact resume, safe to stop at any time."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from udse_fast.atomic import atomic_write
from udse_fast.audio.spectral import Spectral
from udse_fast.backends.cuda_graphs import fastest_convolutions
from udse_fast.checkpoints.checkpoint import save_checkpoint
from udse_fast.errors import UdseError
from udse_fast.networks import build_network
from udse_fast.networks.base import Network, to_channels_last
from udse_fast.networks.conditions import NOISE_LABEL, SPEECH_LABEL
from udse_fast.networks.score_network import ScoreGraph
from udse_fast.priors import tuned_settings
from udse_fast.sampling.sde import OUVE
from udse_fast.training.batches import Augmentation, Batch, Batches
from udse_fast.training.muon import Muon
from udse_fast.training.parallel import ALONE, Processes

MIN_TIME, MAX_TIME = 0.03, 1.0
VALIDATION_TIMES = (0.8, 0.6, 0.4, 0.2, 0.08)
VARIANCE_WEIGHT = 0.05
"""Weight of the posterior variance's likelihood beside the denoising loss, which stays the purpose of the network."""

ENCODER_RATE = 0.1
"""Learning rate of a visual encoder, as a share of the others': it has learnt to read before, alone or elsewhere."""

GPU_READ_STEPS = 50
"""On a GPU the losses are read and checked after so many steps, because reading waits for it; on a CPU after each."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights, besides the recordings."""

    architecture: dict[str, Any]
    spectral: Spectral
    steps: int = 20_000
    batch_size: int = 8
    crop_seconds: float = 2.0
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    decay_share: float = 0.4
    """Share of the steps, at the end, over which the learning rate falls to zero."""
    ema: float = 0.999
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0

    def learning_rate_factor(self, step: int) -> float:
        """Return the factor of the learning rate: linear warm-up, constant, linear decay to zero."""
        left = (self.steps - step) / max(1.0, self.decay_share * self.steps)
        return max(0.0, min(1.0, (step + 1) / self.warmup_steps, left))


class Optimizers:
    """Optimise matrices (kernels too: one row per output channel) with Muon, and everything else with AdamW.

    Muon has lower error than AdamW in fewer steps here. A network that names no matrices is trained with Adam as
    published.
    """

    def __init__(self, module: Network, learning_rate: float) -> None:
        trainable = [p for p in module.parameters() if p.requires_grad]
        hidden = [p for p in module.hidden_matrices() if p.requires_grad]
        encoder = [] if module.visual_encoder is None else list(module.visual_encoder.parameters())
        chosen = {id(p) for p in [*hidden, *encoder]}
        rest = [p for p in trainable if id(p) not in chosen]
        self.learning_rate = learning_rate
        self.matrices = [(p, nn.Parameter(self._as_matrix(p.data))) for p in hidden]
        fused = True if rest and rest[0].is_cuda else None  # one launch instead of one per weight
        groups: list[dict[str, Any]] = [{"params": rest, "share": 1.0}]
        if read := [p for p in encoder if p.requires_grad]:
            groups.append({"params": read, "share": ENCODER_RATE})
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=learning_rate, betas=module.adam_betas, weight_decay=0.0, fused=fused)
        ]
        if self.matrices:
            self.all.append(Muon([m for _, m in self.matrices], learning_rate, weight_decay=0.01))

    @staticmethod
    def _as_matrix(kernel: Tensor) -> Tensor:
        """Return a channels_last kernel or a matrix as a view (C', everything else)."""
        matrix = kernel.permute(0, 2, 3, 1).view(kernel.shape[0], -1) if kernel.ndim == 4 else kernel
        assert matrix.data_ptr() == kernel.data_ptr()
        return matrix

    def step(self, factor: float) -> None:
        for parameter, matrix in self.matrices:
            grad = parameter.grad
            assert grad is not None
            matrix.grad = grad.permute(0, 2, 3, 1).reshape(matrix.shape) if grad.ndim == 4 else grad
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * factor * group.get("share", 1.0)
            optimizer.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


def score_matching_loss(graph: ScoreGraph, batch: Batch, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return training loss and relative denoising error `||s0_hat - s0||^2 / ||s0||^2` of each item, both (N,).

    The loss is `w ||sigma S(s_t, t) + z||^2` averaged over bins, of a diffusion that drifts to the recording at
    s_t = delta s_0 + (1 - delta) y + sigma z. A network that also says how sure it is has
    the likelihood of that variance C in it, `|s0_hat - s0|^2 / C + log C`.
    """
    sde = graph.sde
    per_item_t = t[:, None, None, None]
    delta, sigma = torch.as_tensor(sde.delta(per_item_t)), torch.as_tensor(sde.sigma(per_item_t))
    s0 = torch.view_as_real(batch.spectrograms).movedim(-1, 1)
    z = torch.view_as_real(z).movedim(-1, 1)
    told = batch.told(graph.module).for_network(graph.module.conditions, batch.spectrograms, z.device)
    if graph.module.has_posterior_variance:
        level, conditions = torch.as_tensor(sde.noise_level(t)), graph.module.conditions_of(told)
        clean, variance = graph.module.posterior(s0 + (sigma / delta) * z, level, conditions)
        error = (clean - s0).square().sum(1)
        per_item = error.mean((1, 2)) / level**2
        unlikely = (error.detach() / variance + variance.log()).mean((1, 2))
        loss = per_item * graph.module.loss_weight(level, conditions) + VARIANCE_WEIGHT * unlikely
    else:
        mean = delta * s0
        if graph.module.drifts:
            noisy = graph.module.conditions_of(told).noisy
            assert noisy is not None
            mean = mean + (1 - delta) * noisy
        residual = sigma * graph(mean + sigma * z, t, *told) + z  # = (s0_hat - s0) delta / sigma
        loss = per_item = residual.square().sum(1).mean((1, 2))
    relative = per_item * (sigma / delta).flatten() ** 2 / s0.square().sum(1).mean((1, 2)).clamp_min(1e-12)
    return loss, relative.detach()


class Trainer:
    """Trains a prior and keeps `out` (EMA weights, the checkpoint) and `out`.state (to resume from) up to date."""

    def __init__(
        self,
        settings: Settings,
        training: Any,
        validation: Any,
        out: Path,
        *,
        device: torch.device,
        precision: torch.dtype,
        facts: dict[str, Any],
        licence: str,
        workers: int = 1,
        processes: Processes = ALONE,
        frozen: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.settings, self.training, self.validation, self.out = settings, training, validation, out
        self.device, self.precision, self.facts, self.licence = device, precision, facts, licence
        self.workers, self.processes = workers, processes
        self.read_steps = GPU_READ_STEPS if device.type == "cuda" else 1
        torch.manual_seed(settings.seed)  # the initial weights
        self.module = build_network(settings.architecture).to(device)
        to_channels_last(self.module)
        for name, parameter in self.module.named_parameters():  # by the names and shapes of weights that are given
            if frozen is not None and name in frozen and frozen[name].shape == parameter.shape:
                parameter.requires_grad_(False)
        if self.module.casts_itself:
            self.module.training_dtype = None if precision == torch.float32 else precision
        self.sde = OUVE()
        self.graph = ScoreGraph(self.module, self.sde)
        self.optimizers = Optimizers(self.module, settings.learning_rate)
        self.weights = dict(self.module.state_dict())
        self.ema = {name: w.detach().clone() for name, w in self.weights.items()}
        self.step = 0
        self.seconds_seen = 0.0
        self.train_seconds = 0.0
        self.history: list[dict[str, Any]] = []

    @property
    def state_file(self) -> Path:
        return self.out.with_name(self.out.name + ".state")

    def start_from(self, weights: dict[str, Tensor], causal_from_centred: bool = False) -> None:
        """Start anew from given weights. What they lack (the label of a joint network) keeps its initial value."""
        weights = self.module.from_prior(weights)
        if causal_from_centred:
            weights = self.module.made_causal(weights)
        fitting = {k: w for k, w in weights.items() if k in self.weights and w.shape == self.weights[k].shape}
        if len(fitting) < len(weights) // 2:
            raise UdseError("--init: expected a checkpoint of the same network, got one whose weights do not fit")
        self.module.load_state_dict(fitting, strict=False)
        self.restart_average()

    def restart_average(self) -> None:
        """The average is what the weights are now."""
        for name, w in self.weights.items():
            self.ema[name].copy_(w)

    # -- one step ------------------------------------------------------------------------------------------------

    def _noise(self, shape: torch.Size, number: int, seed: int, processes: Processes = ALONE) -> tuple[Tensor, Tensor]:
        """Draw t (N,), stratified over [0.03, 1], and z (N, F, T); they depend on seed, step and kind of device.

        Where `processes` share a batch, these are the rows of this one, out of the noise of all.
        """
        shape = torch.Size((shape[0] * processes.count, *shape[1:]))
        device = self.device if self.device.type == "cuda" else torch.device("cpu")
        generator = torch.Generator(device).manual_seed((seed * 1_000_003 + number) % 2**62)
        strata = torch.randperm(shape[0], generator=generator, device=device)
        strata = strata + torch.rand(shape[0], generator=generator, device=device)
        t = MIN_TIME + (MAX_TIME - MIN_TIME) * strata / shape[0]
        z = torch.randn(shape, dtype=torch.complex64, generator=generator, device=device)
        return processes.rows(t).to(self.device), processes.rows(z).to(self.device)

    def _batch(self, number: int) -> Any:
        """Return a training batch; for a GPU it lies in pinned memory, which the GPU reads without waiting."""
        batch = self.training[number]
        return batch.mapped(Tensor.pin_memory) if self.device.type == "cuda" else batch

    def _loss(self, batch: Any) -> Tensor:
        """Return what is minimised of a batch on the device, ()."""
        t, z = self._noise(batch.spectrograms.shape, self.step, self.settings.seed, self.processes)
        return score_matching_loss(self.graph, batch, t, z)[0].mean()

    def train_step(self, batch: Any) -> Tensor:
        """Make one optimizer step and EMA update. The loss, (), stays on the device: reading it waits for the step."""
        if self.processes.count > 1:
            batch = batch.mapped(self.processes.rows)
        batch = batch.to(self.device)
        if self.module.causal_block:
            lengths = self.module.causal_blocks
            self.module.set_causal_block(lengths[self.step % len(lengths)])
        autocast = not self.module.casts_itself and self.precision != torch.float32
        with torch.autocast(self.device.type, dtype=self.precision, enabled=autocast):
            loss = self._loss(batch)
        self.module.zero_grad(set_to_none=True)
        loss.backward()
        self.processes.average_gradients(self.module.parameters())
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizers.step(self.settings.learning_rate_factor(self.step))
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        averages = [name for name, average in self.ema.items() if average.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_([self.ema[n] for n in averages], [self.weights[n] for n in averages], 1 - decay)
        self.step += 1
        self.seconds_seen += self.training.seconds
        return self.processes.average(loss.detach())

    def _read(self, losses: list[Tensor]) -> list[float]:
        """Return the losses of the last steps as numbers; refuse those that are not finite."""
        values: list[float] = torch.stack(losses).tolist() if losses else []
        for number, value in enumerate(values, self.step - len(values)):
            if not math.isfinite(value):
                raise UdseError(f"training: the loss became {value} at step {number}; lower --learning-rate and resume")
        return values

    @torch.no_grad()
    def validate(self, batches: int = 2) -> dict[str, float]:
        """Return the relative denoising error of the EMA weights by time, on fixed crops of held-out speakers."""
        if self.module.causal_block:
            self.module.set_causal_block(self.settings.architecture["causal_block"])
        current = {name: w.clone() for name, w in self.weights.items()}
        self.module.load_state_dict(self.ema)
        try:
            return self._validation_errors(batches)
        finally:
            self.module.load_state_dict(current)

    def _validation_errors(self, batches: int) -> dict[str, float]:
        errors: dict[str, float] = {}
        for t in VALIDATION_TIMES:
            power = error = 0.0
            for number in range(batches):
                batch = self.validation[number].to(self.device)
                _, z = self._noise(batch.spectrograms.shape, number, seed=1)
                times = torch.full(batch.spectrograms.shape[:1], t, device=self.device)
                _, relative = score_matching_loss(self.graph, batch, times, z)
                weight = batch.spectrograms.abs().square().mean((1, 2))
                power += float(weight.sum())
                error += float((weight * relative).sum())
            errors[f"{t:g}"] = error / power
        return errors

    # -- files ---------------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Return the configuration of the checkpoint, with the facts of its training."""
        spectral = self.settings.spectral.config
        latest: dict[str, float] = self.history[-1]["validation"] if self.history else {}
        return {
            "architecture": self.settings.architecture,
            "sde": self.sde.config,
            "stft": {k: spectral[k] for k in ("n_fft", "hop_length", "window", "sample_rate")},
            "compression": {k: spectral[k] for k in ("exponent", "factor")},
            "training": {
                **self.facts,
                "steps": self.step,
                "steps_planned": self.settings.steps,
                "seconds_of_audio_seen": round(self.seconds_seen),
                "seconds_of_training": round(self.train_seconds),
                "batch_size": self.settings.batch_size,
                "crop_seconds": self.settings.crop_seconds,
                "learning_rate": self.settings.learning_rate,
                "ema": self.settings.ema,
                "augmentation": asdict(self.settings.augmentation),
                "seed": self.settings.seed,
                "precision": str(self.precision).removeprefix("torch."),
                "device": self.device.type,
                "torch": torch.__version__,
                "validation_relative_error_by_time": {k: round(v, 4) for k, v in latest.items()},
            },
            "inference": tuned_settings(self.facts["network"]),
            "licence": self.licence,
        }

    def save(self) -> None:
        """Write the checkpoint and the state, each to a temporary name and renamed.

        Raises:
            UdseError: weights that are not finite; what was saved before stays.
        """
        finite = [w.isfinite().all() for weights in (self.weights, self.ema) for w in weights.values()]
        if not torch.stack(finite).all():
            raise UdseError(
                f"training: weights are not finite after step {self.step}; lower --learning-rate and resume"
            )
        save_checkpoint(self.out, self.ema, self.config(), dtype=torch.float16)
        with atomic_write(self.state_file) as temporary:
            torch.save(self._state(), temporary)

    def _state(self) -> dict[str, Any]:
        """What a run needs to go on."""
        return {
            "settings": json.dumps(asdict(self.settings), sort_keys=True),
            "step": self.step,
            "seconds_seen": self.seconds_seen,
            "train_seconds": self.train_seconds,
            "weights": self.weights,
            "ema": self.ema,
            "optimizers": self.optimizers.state_dict(),
            "history": self.history,
        }

    def resume(self) -> None:
        """Go on from `out`.state: weights, EMA, optimizer, step; the batches follow from the step."""
        try:
            state = torch.load(self.state_file, map_location=self.device, weights_only=True)
        except Exception:  # whatever is in there instead
            raise UdseError(
                f"{self.state_file}: expected the state of a training run, got a damaged or another file; give another "
                "--out, or remove it to start anew"
            ) from None
        theirs, ours = json.loads(state["settings"]), json.loads(json.dumps(asdict(self.settings)))
        changed = sorted(k for k in ours if theirs.get(k) != ours[k] and k not in ("steps", "decay_share"))
        if changed:
            raise UdseError(
                f"{self.state_file} was made with other settings ({', '.join(changed)}); "
                "give those settings, or another --out"
            )
        self.module.load_state_dict(state["weights"])
        for name, average in state["ema"].items():
            self.ema[name].copy_(average)
        self.optimizers.load_state_dict(state["optimizers"])
        self.step, self.seconds_seen = state["step"], state["seconds_seen"]
        self.train_seconds, self.history = state["train_seconds"], state["history"]

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self, *, save_minutes: float, validate_minutes: float, progress: bool = True) -> bool:
        """Train to `settings.steps`. Return True there, or False if a signal ended it before, with everything saved."""
        settings, shown = self.settings, progress and self.processes.is_first
        started = last_save = last_validation = time.monotonic()
        before = self.train_seconds
        losses, unread = list[float](), list[Tensor]()
        with (
            fastest_convolutions(self.device),
            _stop_on_signal() as stop,
            ThreadPoolExecutor(self.workers) as pool,
            tqdm(total=settings.steps, initial=self.step, unit="step", disable=not shown) as bar,
        ):
            first_step = self.step
            ahead: dict[int, Future[Any]] = {}
            stopped = False
            while self.step < settings.steps and not stopped:
                for number in range(self.step, min(self.step + 1 + self.workers, settings.steps)):
                    if number not in ahead:
                        ahead[number] = pool.submit(self._batch, number)
                unread.append(self.train_step(ahead.pop(self.step).result()))
                done = self.step >= settings.steps
                if self.processes.count == 1 or self.step % self.read_steps == 0:  # asking waits for the step
                    stopped = self.processes.any(bool(stop), self.device)
                now, ends = time.monotonic(), done or stopped
                validate_now = self.processes.is_first and (now - last_validation > 60 * validate_minutes or ends)
                save_now = self.processes.is_first and (now - last_save > 60 * save_minutes or ends)
                bar.update()
                if len(unread) >= self.read_steps or validate_now or save_now:
                    losses += self._read(unread)
                    unread.clear()
                    now = time.monotonic()
                    rate = (self.step - first_step) * self.training.seconds / (now - started)
                    bar.set_postfix_str(f"loss {sum(losses[-100:]) / len(losses[-100:]):.4f}, {rate:.0f} s audio/s")
                self.train_seconds = before + now - started
                if validate_now:
                    loss, errors = sum(losses) / len(losses), self.validate()
                    losses.clear()
                    self.history.append(
                        {"step": self.step, "seconds": self.train_seconds, "loss": loss, "validation": errors}
                    )
                    by_time = " ".join(f"{t}:{error:.3f}" for t, error in errors.items())
                    bar.write(f"step {self.step}: loss {loss:.4f}, relative error {by_time}")
                    last_validation = time.monotonic()
                if save_now:
                    self.save()
                    last_save = time.monotonic()
            # of a complete run whose state is all that was there
            if self.processes.is_first and not self.out.is_file():
                self.save()
        return self.step >= settings.steps


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, so that they do not end the process."""
    received: list[int] = []
    previous = {s: signal.signal(s, lambda number, _: received.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


def measure_sigma_data(batches: Batches, count: int = 8) -> float | list[float]:
    """Measure `sigma_data`, the root mean square of the training spectrograms, for each label."""
    drawn = [batches[2**30 + number] for number in range(count)]  # no training batch has such a number
    power = torch.cat([batch.spectrograms.abs().square().mean((1, 2)) for batch in drawn])
    labels = [batch.conditions.label for batch in drawn if batch.conditions.label is not None]
    if not labels:
        return round(math.sqrt(power.mean()), 4)
    label = torch.cat(labels)
    return [round(math.sqrt(power[label == source].mean()), 4) for source in (NOISE_LABEL, SPEECH_LABEL)]
