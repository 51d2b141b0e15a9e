"""The tables of scores in the README, from the page of results: `python benchmarks/readme_scores.py`.

They are what stands between the comments `<!-- scores: ... -->`, `<!-- peers: ... -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
README, PAGE = ROOT / "README.md", ROOT / "benchmarks" / "results" / "quality.md"
DEFAULT, STREAM = "amortised_ddrm", "amortised_ddrm (causal)"
METRICS = {"SI-SDR / dB": "SI-SDR, dB", "ESTOI": "ESTOI", "PESQ NB raw": "PESQ", "DNSMOS OVRL": "DNSMOS"}
"""Name in the page -> name in the README."""
SYSTEMS = {
    DEFAULT: "**udse-fast**, whole signal", STREAM: "**udse-fast**, stream", "dfn3": "DeepFilterNet3",
    "ulunas": "UL-UNAS", "dtln": "DTLN", "gtcrn_dns3": "GTCRN", "rnnoise": "RNNoise 0.2",
    "fastenhancer_s": "FastEnhancer-S", "logmmse": "logMMSE (classical)",
}  # fmt: skip
Table = list[dict[str, str]]


def tables(page: str, heading: str) -> list[Table]:
    """The Markdown tables below a heading, a dict for each line, by the names of the columns."""
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
        head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
        found.append([dict(zip(head, line, strict=True)) for line in lines])
    return found


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *lines))


def group(name: str) -> list[str]:
    """Titles of a group of columns: its name stands before the first one."""
    first, *others = METRICS.values()
    return [f"{name}: {first}", *others]


def scores(page: str) -> str:
    """The default and its stream, a line for each set and SNR."""
    (table,) = tables(page, "Gain over the noisy input")
    head = ["set", "SNR, dB", *METRICS.values(), *group("stream")]
    columns = ["set", "SNR / dB", *(f"{system}: {metric}" for system in (DEFAULT, STREAM) for metric in METRICS)]
    return markdown(head, [[line[name] for name in columns] for line in table])


def peers(page: str) -> str:
    """Ready-made enhancers beside ours, a line for each; means over the SNRs."""
    found = tables(page, "On the utterances of the ready-made enhancers")
    sets = ("matched", "mismatched")
    means = {(line[metric], metric): line for table, metric in zip(found, METRICS, strict=True) for line in table}
    columns = [(f"{name}, mean", metric) for name in sets for metric in METRICS]
    lines = [[shown, *(means[column][system] for column in columns)] for system, shown in SYSTEMS.items()]
    return markdown(["", *(title for name in sets for title in group(name))], lines)


MAKERS: dict[str, Callable[[str], str]] = {"scores": scores, "peers": peers}


def filled(readme: str, page: str) -> str:
    """The README with its tables made from the page."""
    for name, make in MAKERS.items():
        begin = f"<!-- {name}: benchmarks/readme_scores.py -->\n"
        before, rest = readme.split(begin)
        readme = before + begin + make(page) + rest[rest.index("<!-- end -->") :]
    return readme


if __name__ == "__main__":
    README.write_text(filled(README.read_text(), PAGE.read_text()))
