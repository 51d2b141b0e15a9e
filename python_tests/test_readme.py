"""The README's Python runs as it stands there, its tables are those of the results page, its links lead somewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import udse_fast
from udse_fast.checkpoints.checkpoint import save_checkpoint
from udse_fast.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "csrc/README.md", "udse_fast/priors/README.md", "udse_fast/examples/LICENSE.md"]
PAGES += [str(page.relative_to(ROOT)) for page in (ROOT / "benchmarks" / "results").glob("*.md")]
RATE = 16000


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def namespace(tiny_checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the README supposes: a checkpoint, recordings, a microphone, a score."""
    monkeypatch.chdir(tmp_path)
    network = udse_fast.load_network(tiny_checkpoints["causal"])
    settings = {"sampler": "ddrm", "all": {"steps": 2, "samples": 1, "readout": "wiener"}}
    save_checkpoint(Path("prior.safetensors"), network.module.state_dict(), {**network.config, "inference": settings})
    rng = np.random.default_rng(0)
    audio = (0.1 * rng.standard_normal(RATE // 2)).astype(np.float32)
    stereo = (0.1 * rng.standard_normal((2, 48000))).astype(np.float32)
    other = udse_fast.Enhancer("prior.safetensors").open_stream(48000)
    spectrogram = torch.from_numpy(rng.standard_normal((12, 8)) + 1j * rng.standard_normal((12, 8))).to(torch.complex64)
    played = list[Any]()
    return {
        "microphone": np.array_split(audio, 5), "play": played.append, "played": played, "audio": audio,
        "sample_rate": RATE, "stereo_chunk": stereo, "chunk_48k": stereo[0], "other_stream": other,
        "mixture": spectrogram, "score": lambda state, time, source: -state,
    }  # fmt: skip


def test_the_python_blocks_run_one_after_the_other(namespace: dict[str, Any]) -> None:
    for number, block in enumerate(blocks("python")):
        exec(compile(block, f"README.md, Python block {number + 1}", "exec"), namespace)
    assert sum(map(len, namespace["played"])) == len(namespace["audio"])
    np.testing.assert_allclose(namespace["speech"] + namespace["noise"], namespace["audio"], atol=1e-3)
    assert namespace["out"].shape[0] == 2
    assert namespace["posterior"].speech.shape == (4, 12, 8)


def test_the_commands_exist() -> None:
    shell = "\n".join(blocks("sh")).replace("\\\n", " ")
    for command, arguments in re.findall(r"udse-fast ([\w-]+)([^|;&\n#>]*)", shell):
        assert command in COMMANDS
        if options := re.findall(r" (--[\w-]+)", arguments):
            assert set(options) <= set(help_of(command)), (command, options)


def help_of(command: str) -> set[str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        main([command, "--help"])
    return set(re.findall(r"--[\w-]+", text.getvalue()))


def test_the_tables_of_scores_are_those_of_the_results_page() -> None:
    """After a change of the page: `python benchmarks/readme_scores.py`."""
    spec = importlib.util.spec_from_file_location("readme_scores", ROOT / "benchmarks" / "readme_scores.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.filled(README, page) == README
    assert module.filled(README, page.replace("| all |  | +", "| all |  | +1")) != README


def test_every_sampler_is_in_the_readme() -> None:
    for name in udse_fast.sampler_names():
        assert f"`{name}`" in README, name


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_lines_are_short() -> None:
    assert [line for line in README.splitlines() if len(line) > 100] == []
