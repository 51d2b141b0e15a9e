"""`udse-fast`: the command line. Only the module of the chosen command is imported."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from udse_fast import __version__
from udse_fast.errors import UdseError, report_error

COMMANDS = {
    "enhance": (
        "udse_fast.commands.enhance",
        "the speech in recordings: files or folders, any format and length",
    ),
    "separate": ("udse_fast.commands.separate", "the talkers of recordings, a file for each, and the noise"),
    "stream": (
        "udse_fast.commands.stream",
        "raw PCM on stdin to raw PCM on stdout, for sox and ffmpeg",
    ),
    "serve": ("udse_fast.commands.serve", "a websocket server with a page to try it"),
    "live": ("udse_fast.commands.live", "microphone to loudspeaker or virtual cable"),
    "train": ("udse_fast.commands.train", "a prior from a folder of clean speech, of noise, or both"),
    "evaluate": ("udse_fast.commands.evaluate", "scores of a folder of noisy and clean pairs"),
    "export": ("udse_fast.commands.export", "a checkpoint to TorchScript, torch.export, ONNX or safetensors"),
    "bench": ("udse_fast.commands.bench", "real-time factor and latency on this machine"),
    "info": ("udse_fast.commands.info", "versions, devices, kernels, priors"),
}
"""Command -> module with `add_arguments(parser)` and `run(arguments) -> exit status`, and what it does."""

FAILED, INTERRUPTED, PIPE_CLOSED = 2, 130, 141
"""Exit statuses: bad input; and what a shell reports for SIGINT and SIGPIPE."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise UdseError(f"{message}; see {self.prog} --help")


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """Make the parser: every command has a name and a description, only the chosen one has its options."""
    parser = _Parser(
        prog="udse-fast", description="Fast and streaming unsupervised diffusion-based speech enhancement."
    )
    parser.add_argument("--version", action="version", version=f"udse-fast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, description) in COMMANDS.items():
        command = commands.add_parser(name, help=description, description=description)
        if name == chosen:
            implementation = importlib.import_module(module)
            implementation.add_arguments(command)
            command.set_defaults(run=implementation.run)
    return parser


@contextmanager
def _orderly_termination() -> Iterator[None]:
    """Let SIGTERM and SIGHUP leave through the `finally` clauses, as SIGINT does: no file stays half written."""

    def terminate(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup stays nohup
        numbers.append(signal.SIGHUP)
    before: dict[signal.Signals, Any] = {number: signal.signal(number, terminate) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    chosen = next((argument for argument in argv if not argument.startswith("-")), None)
    try:
        with _orderly_termination(), warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # those of other libraries mean nothing to users
            arguments = _parser(chosen).parse_args(argv)
            return int(arguments.run(arguments))
    except UdseError as error:
        report_error(error)
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # else Python complains once more when it flushes stdout at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        report_error(f"{error.filename}: {error.strerror}" if error.filename else error)
    except MemoryError:
        report_error("out of memory; a smaller --samples or `--set block_seconds=4` needs less")
    except KeyboardInterrupt:
        return INTERRUPTED
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" and "DefaultCPUAllocator" not in str(error):  # torch's
            raise
        report_error("out of memory; a smaller --samples or `--set block_seconds=4` needs less")
    return FAILED
