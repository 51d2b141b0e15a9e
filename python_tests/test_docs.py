"""The documentation is true: its Python runs, its commands are accepted, its pages and figures are there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from udse_fast import sampler_names
from udse_fast.cli import COMMANDS, _parser
from udse_fast.commands.train import NETWORKS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
OTHER_PROGRAMS = {"ffmpeg", "pip", "torchrun"}
"""Programs that the pages call beside ours."""


def name(page: Path) -> str:
    return str(page.relative_to(DOCS))


def blocks(page: Path, language: str) -> Iterator[str]:
    return (body for body in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))


def commands(page: Path) -> Iterator[list[str]]:
    """Every program that a shell block starts, with its arguments."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\||&&|;", line):
                words = shlex.split(part, comments=True)
                yield words[: words.index(">")] if ">" in words else words


@pytest.mark.parametrize("page", [p for p in PAGES if list(blocks(p, "python"))], ids=name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", [p for p in PAGES if list(blocks(p, "sh"))], ids=name)
def test_the_commands_of_a_page_are_accepted(page: Path) -> None:
    for words in commands(page):
        ours = words[words.index("udse_fast") + 1 :] if "udse_fast" in words else words[1:]
        if words[0] == "udse-fast" or "udse_fast" in words:
            assert ours[0] in COMMANDS
            _parser(ours[0]).parse_args(ours)
        else:
            assert words[0] in OTHER_PROGRAMS


def test_every_sampler_and_every_network_is_on_its_page() -> None:
    samplers, networks = (DOCS / page for page in ("samplers.md", "tutorials/prior.md"))
    for sampler in sampler_names():
        assert f"`{sampler}`" in samplers.read_text()
    for network in NETWORKS:
        assert f"`{network}`" in networks.read_text()


def test_shell_and_python_are_the_only_languages() -> None:
    for page in PAGES:
        assert set(re.findall(r"^```(\w*)", page.read_text(), re.MULTILINE)) <= {"", "sh", "python"}


def test_every_page_is_in_the_navigation_and_every_figure_is_there() -> None:
    navigation = re.findall(r"[\w/-]+\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(navigation) == [name(page) for page in PAGES]
    for page in PAGES:
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / picture).is_file()


@pytest.mark.needs("mkdocs")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """In a process of its own: the plugins change how Python's warnings and logs are shown."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "NO_MKDOCS_2_WARNING": "1"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "site" / "api" / "index.html").read_text()
    assert "posterior_sample" in page
    assert "latency_samples" in page
    assert not re.search(r'(src|href)="https?://(?!docs\.ray\.io|squidfunk)', page)
