"""The public face: names, signatures and tables that users and programs rely on. A change here is a change for them."""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import udse_fast
from udse_fast.cli import COMMANDS
from udse_fast.commands import info, options
from udse_fast.sampling.read_out import READOUTS

NAMES = [
    "Enhancer", "Posterior", "Separated", "Separator", "Source", "Stream", "UdseError", "load_network",
    "load_visual_encoder", "posterior_sample", "sampler_names", "separate_sources",
]  # fmt: skip
SAMPLERS = [
    "udiffse", "udiffse_plus", "depse_il", "depse_tl", "diffuseen", "paradiffuse_in", "paradiffuse_en", "ddrm", "prior",
]  # fmt: skip
FACE: list[tuple[Any, dict[str, Any]]] = [
    (
        udse_fast.Enhancer,
        {"checkpoint": None, "sampler": None, "steps": None, "samples": None, "device": "auto", "precision": "auto",
         "seed": 0, "max_attenuation_db": None},
    ),
    (
        udse_fast.Enhancer.enhance,
        {"audio": ..., "sample_rate": ..., "causal": False, "video": None, "video_rate": 25},
    ),
    (
        udse_fast.Enhancer.separate,
        {"audio": ..., "sample_rate": ..., "causal": False, "video": None, "video_rate": 25},
    ),
    (udse_fast.Enhancer.enhance_many, {"recordings": ...}),
    (udse_fast.Enhancer.process, {"chunk": ..., "video": None}),
    (udse_fast.Enhancer.process_many, {"streams": ..., "chunks": ...}),
    (udse_fast.Enhancer.flush, {}),
    (udse_fast.Enhancer.reset, {}),
    (udse_fast.Enhancer.open_stream, {"sample_rate": 16000, "channels": 1}),
    (udse_fast.Stream.process, {"chunk": ..., "video": None}),
    (udse_fast.Stream.flush, {}),
    (udse_fast.Stream.reset, {}),
    (udse_fast.Stream.state, {}),
    (udse_fast.Stream.restore, {"state": ...}),
    (
        udse_fast.Separator,
        {"sources": 2, "checkpoint": None, "noise_checkpoint": None, "sampler": None, "steps": None, "device": "auto",
         "seed": 0},
    ),
    (udse_fast.Separator.separate, {"audio": ..., "sample_rate": ...}),
    (udse_fast.Source, {"name": ..., "checkpoint": None, "guidance": None}),
    (udse_fast.load_network, {"path": None, "device": "cpu"}),
    (udse_fast.load_visual_encoder, {"path": ...}),
    (udse_fast.sampler_names, {}),
    (
        udse_fast.separate_sources,
        {"mixture": ..., "denoisers": ..., "tau": ..., "zeta": 0.5, "solver": "euler", "rule": "gradient",
         "domain": "compressed", "exponent": 2 / 3, "start": None},
    ),
]  # fmt: skip
"""Callables and the arguments, in order, that they take, with their defaults (`...`: none). They may take more."""


def test_the_names_of_the_package() -> None:
    assert sorted(udse_fast.__all__) == NAMES
    assert dir(udse_fast) == NAMES
    assert all(getattr(udse_fast, name).__module__.startswith("udse_fast.") for name in NAMES)


def test_the_names_of_the_samplers() -> None:
    assert set(SAMPLERS) <= set(udse_fast.sampler_names())


@pytest.mark.parametrize(("function", "expected"), FACE, ids=lambda value: getattr(value, "__qualname__", ""))
def test_the_arguments_of_the_public_face(function: Any, expected: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters
    taken = {name: ... if p.default is p.empty else p.default for name, p in parameters.items() if name in expected}
    assert list(taken.items()) == list(expected.items())
    others = [p for name, p in parameters.items() if name not in expected and name != "self"]
    assert all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in others), "a call without them must work"


def test_posterior_sample_takes_what_its_users_give() -> None:
    names = ["mixture", "score", "sampler", "steps", "samples", "rank", "em_rounds", "randomness", "initial_nmf"]
    taken = inspect.signature(udse_fast.posterior_sample).parameters
    assert list(taken)[:2] == names[:2]
    assert set(names) <= set(taken)


def test_a_stream_and_an_enhancer_say_their_latency() -> None:
    for kind in (udse_fast.Enhancer, udse_fast.Stream):
        assert isinstance(inspect.getattr_static(kind, "latency_samples"), property)
        assert isinstance(inspect.getattr_static(kind, "latency_seconds"), property)


def test_the_commands() -> None:
    assert {"enhance", "separate", "stream", "live", "train", "evaluate", "export", "bench", "info"} <= set(COMMANDS)


def test_read_outs_of_the_command_line_are_those_of_the_settings() -> None:
    """They are written down twice, since help texts must not import torch."""
    parser = argparse.ArgumentParser()
    options.add_enhancer_arguments(parser)
    (choices,) = (action.choices for action in parser._actions if action.dest == "readout")
    assert tuple(choices or ()) == tuple(READOUTS)


def test_info_names_the_extra_that_brings_each_optional_package() -> None:
    required = importlib.metadata.requires("udse-fast") or []
    by_extra: dict[str, set[str]] = {}
    for requirement in required:
        if found := re.fullmatch(r"([\w-]+)[^;]*;.*extra == ['\"](\w+)['\"]", requirement):
            by_extra.setdefault(found[2], set()).add(found[1])
    for package, extra in info.OPTIONAL.items():
        assert package in by_extra[extra], f"pip install udse-fast[{extra}] does not bring {package}"


def test_version_is_written_down_once() -> None:
    project = Path(__file__).parent.parent / "pyproject.toml"
    assert importlib.metadata.version("udse-fast") == udse_fast.__version__
    assert not re.search(r"^version\s*=", project.read_text(), re.MULTILINE)
