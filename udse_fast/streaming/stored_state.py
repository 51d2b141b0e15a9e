"""States of streams as users keep them: what they belong to, and whether they are intact."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import numpy as np
from torch import Tensor

from udse_fast.checkpoints.checkpoint import tensor_bytes
from udse_fast.checks import described
from udse_fast.errors import UdseError

STATE_VERSION = 4


def stored(facts: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """A copy of the content, with what it belongs to and a digest of both."""
    return {"belongs_to": facts, "content": copy.deepcopy(content), "digest": _digest([facts, content])}


def checked_content(state: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """A copy of the content of a state that belongs to a stream with these facts.

    Raises:
        UdseError: not a state, a damaged one, or that of a stream with other facts.
    """
    if not isinstance(state, dict) or not isinstance(state.get("belongs_to"), dict):
        raise UdseError(f"restore: expected what state() of a stream gave, got {type(state).__name__}")
    theirs = state["belongs_to"]
    if changed := [name for name in {**facts, **theirs} if repr(facts.get(name)) != repr(theirs.get(name))]:
        expected, got = (", ".join(f"{name} {side.get(name)!r}" for name in changed) for side in (facts, theirs))
        raise UdseError(f"restore: expected the state of a stream with {expected}; got one with {got}")
    # with these facts and the right digest, the content is that of such a stream: nothing else can be wrong
    try:
        content: dict[str, Any] = copy.deepcopy(state["content"])
        intact = str(state["digest"]) == _digest([theirs, content])
    except Exception:  # whatever is in there instead
        intact = False
    if not intact:
        raise UdseError(
            "restore: expected a state as state() gave it, got one that was damaged or changed since; take another one"
        )
    return content


def _digest(value: Any) -> str:
    """Hash of dicts and lists of tensors, arrays and plain values; equal after a copy, or a way through a file."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, (Tensor, np.ndarray)):
            place = value.device.type if isinstance(value, Tensor) else ""
            digest.update(f"{described(value)} {place};".encode())
            digest.update(tensor_bytes(value) if isinstance(value, Tensor) else value.tobytes())
        elif isinstance(value, (dict, list, tuple)):
            digest.update(f"{type(value).__name__} {len(value)};".encode())
            for part in value.items() if isinstance(value, dict) else value:
                add(part)
        else:
            digest.update(f"{value!r};".encode())

    add(value)
    return digest.hexdigest()
