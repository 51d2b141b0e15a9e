"""Write a score network for other programs: safetensors, TorchScript, torch.export (.pt2) and ONNX.

The exported graph maps the real state (B, 2, F, T), the time (B,) and, for joint networks, the label (B,) to
the score (B, 2, F, T), all float32 (label int64). TorchScript has the other methods of `ScoreGraph` as well: one time
per frame (B, T), and the posterior variance (B, F, T) of networks that tell it. Every file is read back, run beside
the network, and removed if they differ.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from udse_fast.atomic import atomic_write
from udse_fast.checkpoints.checkpoint import CONFIG_FILE, CONFIG_KEY, load_network, save_checkpoint
from udse_fast.checks import Range, whole_number
from udse_fast.errors import UdseError, first_line
from udse_fast.networks.conditions import own_length
from udse_fast.networks.score_network import PRECISIONS, ScoreNetwork

KINDS = {".safetensors": "safetensors", ".pt": "torchscript", ".pt2": "torch.export", ".onnx": "onnx"}
"""Kinds of export, and the file name extension that each goes with."""

TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference allowed, relative to the largest score. Other kernels add in another order."""

_FRAMES = 64
"""Frames of the examples that are traced and compared: a multiple of every network's `frame_multiple`."""
_SHORTEST = 16
"""Fewest frames that an exported graph must take: a block-causal network may not take less than a block."""


def export_network(
    network: ScoreNetwork,
    path: str | os.PathLike[str],
    kind: str | None = None,
    frames: int | None = None,
    dtype: str | None = None,
) -> float:
    """Export a network and compare the file with it.

    Args:
        network: from `load_network`, not from TorchScript; on the CPU.
        path: file to write.
        kind: "safetensors", "torchscript", "torch.export" or "onnx"; None: by the extension of `path`.
        frames: a fixed number of frames T for torch.export and ONNX; None: any multiple of the network's
            `frame_multiple` (NCSN++: 64, compact: 1) from 16 on. TorchScript takes any number from 16 on.
        dtype: of the weights in a safetensors file, "float32", "float16" or "bfloat16"; None: as the network.

    Returns:
        Largest difference between what file and network give, relative to the largest number of each output.

    Raises:
        UdseError: unknown kind, a package is missing, the file cannot be written, or its scores differ.
    """
    path = Path(path)
    kind = kind or KINDS.get(path.suffix.lower(), "")
    if kind not in KINDS.values():
        raise UdseError(
            f"expected an export to {', '.join(KINDS.values())} (by extension: {', '.join(KINDS)}), "
            f"got {kind or path.name!r}"
        )
    if frames is not None:
        frames = whole_number("frames", frames, Range(1))
    for name, value, kinds in (("frames", frames, ("torch.export", "onnx")), ("dtype", dtype, ("safetensors",))):
        if value is not None and kind not in kinds:
            raise UdseError(f"{name}: expected it with {' or '.join(kinds)} only, got {value} for {kind}; leave it out")
    if network.scripted:
        raise UdseError("expected a safetensors or Lightning checkpoint to export, got TorchScript: give its source")
    if network.device.type != "cpu":
        raise UdseError(f"expected a network on the CPU to export, got one on {network.device}: call to('cpu') first")
    precision = dtype or network.precision
    if precision not in PRECISIONS:
        raise UdseError(f"expected {', '.join(PRECISIONS)} to store weights in, got {dtype!r}")
    write = {
        "safetensors": _write_safetensors,
        "torchscript": _write_torchscript,
        "torch.export": _write_torch_export,
        "onnx": _write_onnx,
    }[kind]
    with atomic_write(path) as temporary, torch.no_grad():
        run = write(network, temporary, frames, precision)
        if kind in ("safetensors", "torchscript"):
            shapes = [(1, _SHORTEST), (2, _FRAMES + 3)]
        else:
            shapes = [(2, frames or _FRAMES), (1, frames or 2 * _FRAMES)]
        difference = _largest_difference(network, run, shapes)
        if not difference <= TOLERANCES[precision]:
            raise UdseError(
                f"{path}: expected the exported scores within {TOLERANCES[precision]:g} of the network's, "
                f"got {difference:.2g}: the file was removed, use another kind of export"
            )
    return difference


Run = dict[str, Callable[..., Any]]
"""The exported methods by name, "forward" and, where the file has them, the others of `ScoreGraph`."""


def _methods_of(network: ScoreNetwork) -> Run:
    graph = network.plain
    methods = {"forward": graph.forward, "per_frame": graph.per_frame}
    if network.has_posterior_variance:
        methods |= {"posterior": graph.posterior, "posterior_per_frame": graph.posterior_per_frame}
    return methods


def _write_safetensors(network: ScoreNetwork, path: Path, frames: int | None, precision: str) -> Run:
    save_checkpoint(path, network.module.state_dict(), network.config, PRECISIONS[precision])
    return _methods_of(load_network(path))


def _write_torchscript(network: ScoreNetwork, path: Path, frames: int | None, precision: str) -> Run:
    methods = _methods(network, batch=2, frames=_FRAMES + 1)
    config = json.dumps({**network.config, "precision": network.precision, "methods": list(methods)})
    with _quiet():
        traced = torch.jit.trace_module(copy.deepcopy(network.plain), methods, check_trace=False)
        with open(path, "wb") as file:  # by name, the archive would carry the temporary one inside
            torch.jit.save(traced, file, _extra_files={CONFIG_FILE: config})
    return _methods_of(load_network(path))


def _write_torch_export(network: ScoreNetwork, path: Path, frames: int | None, precision: str) -> Run:
    with _quiet():
        program = _program(network, frames)
        with open(path, "wb") as file:
            torch.export.save(program, file, extra_files={CONFIG_FILE: json.dumps(network.config)})
        return {"forward": torch.export.load(path).module()}


def _write_onnx(network: ScoreNetwork, path: Path, frames: int | None, precision: str) -> Run:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it and says so only deep inside)
    except ImportError as error:
        raise UdseError(f"ONNX export needs the package {error.name}: pip install udse-fast[export]") from error
    if network.precision != "float32":
        raise UdseError(f"expected a float32 network for ONNX, got {network.precision}: load it with float32")
    names = ["state", "time", *network.conditions]
    with _quiet():
        program = torch.onnx.export(
            _program(network, frames), input_names=names, output_names=["score"], dynamo=True, verbose=False
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # notes of the exporter to itself, half of the file
    program.model.metadata_props[CONFIG_KEY] = json.dumps(network.config)
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feeds)[0])

    return {"forward": run}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, which warn of their own deprecations, absent packages and every comparison of shapes."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _program(network: ScoreNetwork, frames: int | None) -> torch.export.ExportedProgram:
    multiple = network.frame_multiple
    inputs = _example(network, batch=2, frames=frames or 2 * _FRAMES)
    batch = torch.export.Dim("batch")
    blocks = torch.export.Dim("blocks", min=-(-_SHORTEST // multiple), max=1 << 16)
    length = None if frames else blocks if multiple == 1 else multiple * blocks

    def dynamic(x: Tensor) -> dict[int, Any]:
        by_frames = length is not None and x.ndim > 2 and x.shape[-1] == inputs[0].shape[-1]
        return {0: batch, x.ndim - 1: length} if by_frames else {0: batch}

    def dynamic_condition(name: str, x: Tensor) -> dict[int, Any]:
        axis = own_length(name)
        return dynamic(x) if axis is None else {0: batch, axis: torch.export.Dim(f"{name}_frames", min=2, max=1 << 16)}

    state, _, *conditions = inputs
    shapes: tuple[Any, ...] = (dynamic(state), {0: batch})
    if conditions:
        shapes += (tuple(map(dynamic_condition, network.conditions, conditions)),)
    try:
        with _quiet():
            program = torch.export.export(copy.deepcopy(network.plain), inputs, dynamic_shapes=shapes)
    except Exception as error:
        raise UdseError(
            f"this network cannot be exported: {first_line(error)}; try a fixed number of frames"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # file names of this machine
    return program


def _example(network: ScoreNetwork, batch: int, frames: int) -> tuple[Tensor, ...]:
    """A random input of the graph: (B, 2, F, T), (B,), and the conditions that the network reads."""
    return tuple(network.module.example(batch, network.config["stft"]["n_fft"] // 2 + 1, frames))


def _methods(network: ScoreNetwork, batch: int, frames: int) -> dict[str, tuple[Tensor, ...]]:
    """The methods of a TorchScript file, with examples of their inputs."""
    state, time, *conditions = inputs = _example(network, batch, frames)
    per_frame = (state, time[:, None].repeat(1, frames), *conditions)
    methods = {"forward": inputs, "per_frame": per_frame}
    if network.has_posterior_variance:
        methods |= {"posterior": inputs, "posterior_per_frame": per_frame}
    return methods


def _largest_difference(network: ScoreNetwork, run: Run, shapes: list[tuple[int, int]]) -> float:
    """Return the largest difference relative to the largest number of each output, over inputs of several shapes."""
    differences, ours = [], _methods_of(network)
    for batch, frames in shapes:
        calls = _methods(network, batch, frames)
        for name, function in run.items():
            inputs = calls[name]
            try:
                outputs = function(*inputs)
            except Exception as error:
                raise UdseError(
                    f"the exported file does not run with {batch} x {frames} frames, as the network does: "
                    f"{first_line(error)}; try a fixed number of frames"
                ) from error
            for got, expected in zip(_tuple(outputs), _tuple(ours[name](*inputs)), strict=True):
                differences.append(float((got - expected).abs().max() / expected.abs().max()))
    return max(differences)


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
