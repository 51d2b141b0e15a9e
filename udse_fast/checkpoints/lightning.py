"""Read the authors' PyTorch Lightning checkpoints without running anything that is in them.

Such a file is a zip archive of raw tensors and a pickle, and a pickle is a program: its opcodes import and
call whatever they name. This module interprets the opcodes on inert data instead. A global stays a `Global`
(its name), a call of one makes a `Placeholder` that records the arguments, and only three names mean
anything: tensors, parameters and OrderedDict. Nothing that the file names is imported, looked up or called.
"""

from __future__ import annotations

import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from mmap import mmap
from typing import IO, Any, cast

import torch
from torch import Tensor

from udse_fast.checkpoints.meta import shapes_alone
from udse_fast.errors import UdseError
from udse_fast.networks import build_network
from udse_fast.networks.av_hubert import UNUSED, av_hubert_arguments
from udse_fast.networks.conditional_ncsnpp import FORWARD, ConditionalNCSNpp

_STORAGE_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_MARK = object()

UNREADABLE = (
    *(zipfile.BadZipFile, StopIteration, EOFError, NotImplementedError, struct.error, RuntimeError),
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError),
)
"""What a damaged or foreign file raises."""
EXTRACTOR = "feature_extractor."
"""Beginning of the names of a visual encoder inside a network."""
VIDEO_KEYS, PROJECTION = "all_modules.4.cross_attention.to_k.weight", "adapt_dim_layer.weight"
"""Weights, of which those of an audio-visual network see the features of the video first."""
FUSION = "concat_attn_masking_light"
"""Name of the one way in which the published models see the video."""
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of the names of what is no parameter."""


@dataclass(frozen=True)
class Global:
    """The name of something that the file wanted imported, "module.attribute"."""

    name: str


@dataclass(eq=False, repr=False)
class Placeholder:
    """Stands for an object that the file wanted to make by calling `of`; it keeps the arguments and does nothing."""

    of: Any
    arguments: Any = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Storage:
    """Raw numbers in the archive: `data/<key>`."""

    dtype: torch.dtype
    key: str
    numel: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_lightning(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the network's EMA weights and the configuration of a Lightning checkpoint.

    Returns:
        state_dict of the network (names without "dnn."), and the configuration as in `checkpoints.checkpoint`.

    Raises:
        UdseError: the file is damaged, or is not a checkpoint of an NCSN++ score model.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl"))[: -len("data.pkl")]
            if root + "byteorder" in archive.namelist() and _stored(archive, root + "byteorder") != b"little":
                raise UdseError("expected a checkpoint in little-endian order, got a big-endian one")
            checkpoint = mapping_of(interpret(_stored(archive, root + "data.pkl")))
            weights, architecture = _weights(checkpoint)
            state_dict = {name: _read(archive, root, tensor) for name, tensor in weights.items()}
            return state_dict, _config(checkpoint, architecture)
    except UdseError:
        raise
    except UNREADABLE as error:
        raise UdseError(
            "expected a PyTorch Lightning checkpoint, got a damaged or foreign file "
            f"({type(error).__name__}: {error}); download or copy it again"
        ) from error


def interpret(program: bytes | mmap) -> Any:
    """Return the object that a pickle describes, with a `Placeholder` for every foreign object; run nothing of it.

    Of a mapped file, one pickle is read from where it is.

    Raises:
        ValueError, TypeError, KeyError, IndexError, AttributeError: the pickle is damaged.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(cast("bytes | IO[bytes]", program)):  # all that it needs of a file
        name = opcode.name
        if name == "STOP":
            return machine.stack.pop()
        if not (machine.stacks(name, argument) or machine.collects(name) or machine.creates(name, argument)):
            if opcode.stack_before or argument is None:
                raise ValueError(f"a pickle with the opcode {name}, which no checkpoint has")
            machine.stack.append(argument)  # a number, a string or bytes
    raise ValueError("a pickle without its end")


class _Machine:
    """The machine that a pickle is a program for, on inert data.

    Each method carries out the opcodes of one kind, and returns whether the opcode is of that kind.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def stacks(self, opcode: str, argument: Any) -> bool:
        """Carry out an opcode that only pushes a constant, or moves what is there."""
        stack, memo = self.stack, self.memo
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_MARK)
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._pop_to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case _:
                return False
        return True

    def collects(self, opcode: str) -> bool:
        """Carry out an opcode that makes or fills a list, tuple, dictionary or set."""
        stack = self.stack
        match opcode:
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_DICT":
                stack.append({})
            case "LIST":
                stack.append(self._pop_to_mark())
            case "TUPLE":
                stack.append(tuple(self._pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "DICT":
                made: dict[Any, Any] = {}
                _set_items(made, self._pop_to_mark())
                stack.append(made)
            case "EMPTY_SET":
                stack.append(Placeholder("set"))
            case "FROZENSET":
                stack.append(Placeholder("frozenset", elements=self._pop_to_mark()))
            case "APPEND":
                value = stack.pop()
                _elements(stack[-1]).append(value)
            case "APPENDS" | "ADDITEMS":
                values = self._pop_to_mark()
                _elements(stack[-1]).extend(values)
            case "SETITEM":
                key_and_value = stack[-2:]
                del stack[-2:]
                _set_items(stack[-1], key_and_value)
            case "SETITEMS":
                keys_and_values = self._pop_to_mark()
                _set_items(stack[-1], keys_and_values)
            case _:
                return False
        return True

    def creates(self, opcode: str, argument: Any) -> bool:
        """Carry out an opcode that would import or call something: it leaves a name or a placeholder."""
        stack = self.stack
        match opcode:
            case "GLOBAL":
                stack.append(Global(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                module, attribute = stack[-2:]
                if not (isinstance(module, str) and isinstance(attribute, str)):
                    raise ValueError("a pickle whose global has no name")
                stack[-2:] = [Global(f"{module}.{attribute}")]
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(Global(f"copyreg extension {argument}"))
            case "PERSID" | "BINPERSID":
                stack.append(_storage(argument if opcode == "PERSID" else stack.pop()))
            case "REDUCE" | "NEWOBJ":
                called, arguments = stack[-2:]
                stack[-2:] = [_made(called, arguments)]
            case "NEWOBJ_EX":
                called, arguments, keywords = stack[-3:]
                stack[-3:] = [Placeholder(called, (arguments, keywords))]
            case "INST":
                stack.append(_made(Global(argument.replace(" ", ".", 1)), tuple(self._pop_to_mark())))
            case "OBJ":
                called, *rest = self._pop_to_mark()
                stack.append(_made(called, tuple(rest)))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Placeholder):
                    stack[-1].state = state
            case _:
                return False
        return True

    def _pop_to_mark(self) -> list[Any]:
        stack = self.stack
        start = len(stack) - 1
        while stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise ValueError("a pickle without its mark")
        values = stack[start + 1 :]
        del stack[start:]
        return values


def _elements(value: Any) -> list[Any]:
    elements: list[Any] = value.elements if isinstance(value, Placeholder) else value
    if not isinstance(elements, list):
        raise ValueError("a pickle that appends to something else than a list")
    return elements


def _set_items(value: Any, keys_and_values: list[Any]) -> None:
    items = value.items if isinstance(value, Placeholder) else value
    if not isinstance(items, dict) or len(keys_and_values) % 2:
        raise ValueError("a pickle that sets the items of something else than a dictionary")
    for key, item in zip(keys_and_values[::2], keys_and_values[1::2], strict=True):
        # Hashing a tuple that is nested a million deep overflows the C stack: only plain keys are hashed.
        plain = key is None or isinstance(key, (str, int, float, bytes, Global, Placeholder))
        items[key if plain else Placeholder("key", key)] = item


def _storage(persistent_id: Any) -> Storage:
    match persistent_id:
        case ("storage", Global(name), str(key), _, int(numel), *_) if name in _STORAGE_DTYPES and numel >= 0:
            return Storage(_STORAGE_DTYPES[name], key, numel)
    raise ValueError("a tensor whose storage is of no known kind")


def _made(called: Any, arguments: Any) -> Any:
    match called, arguments:
        case Global("torch._utils._rebuild_tensor_v2"), (Storage() as storage, offset, shape, stride, *_):
            return _tensor(storage, offset, shape, stride)
        case Global("torch._utils._rebuild_parameter"), (data, *_):
            return data
        case Global("collections.OrderedDict"), ():
            return {}
    return Placeholder(called, arguments)


def _tensor(storage: Storage, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError("a tensor with an impossible shape")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    numel = math.prod(shape)
    if numel > storage.numel or (numel and last >= storage.numel):
        raise ValueError("a tensor that is larger than its storage")
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a member of the archive. PyTorch stores members uncompressed, so none can be larger than the file."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"the member {name} is compressed")
    return archive.read(name)


def _read(archive: zipfile.ZipFile, root: str, tensor: StoredTensor) -> Tensor:
    return read_tensor(_stored(archive, f"{root}data/{tensor.storage.key}"), tensor)


def read_tensor(content: bytes, tensor: StoredTensor) -> Tensor:
    """Return a tensor in float32, from the content of its storage.

    Raises:
        ValueError: the storage has another size.
    """
    storage, data = tensor.storage, bytearray(content)
    if len(data) != storage.numel * storage.dtype.itemsize:
        raise ValueError(f"the tensor data/{storage.key} has {len(data)} bytes")
    if not data:
        return torch.empty(tensor.shape)
    numbers = torch.frombuffer(data, dtype=storage.dtype)
    return numbers.as_strided(tensor.shape, tensor.stride, tensor.offset).to(torch.float32, copy=True)


def mapping_of(value: Any) -> dict[Any, Any]:
    """Return a dictionary as it is, and of a placeholder for a kind of dictionary or namespace its contents."""
    if isinstance(value, Placeholder):
        value = value.items or value.state
    return value if isinstance(value, dict) else {}


def _weights(checkpoint: dict[Any, Any]) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Return the network's tensors by name, those of the EMA if there is one, and the architecture."""
    network = {
        name.removeprefix("dnn."): tensor
        for name, tensor in mapping_of(checkpoint.get("state_dict")).items()
        if isinstance(name, str) and name.startswith("dnn.") and isinstance(tensor, StoredTensor)
    }
    try:
        extractor = [name for name in network if name.startswith(EXTRACTOR)]
        encoder = _encoder_arguments({name[len(EXTRACTOR) :]: network[name].shape for name in extractor})
        shapes = {name: tensor.shape for name, tensor in network.items() if name not in extractor}
        architecture = audio_visual_architecture(shapes, encoder) if VIDEO_KEYS in shapes else architecture_of(shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise UdseError(
            "expected a score model whose state_dict holds an NCSN++ (dnn.all_modules.0.W and on), got "
            f"{len(network)} weights of another network: give a checkpoint of UDiffSE(+), ParaDiffUSE or SGMSE+"
        ) from error
    if architecture["name"] == "ncsnpp-conditional":
        architecture |= _forward_pass(mapping_of(checkpoint.get("hyper_parameters")))
    with shapes_alone():
        parameters = dict(build_network(architecture).named_parameters())
    shadow = mapping_of(checkpoint.get("ema")).get("shadow_params")
    if shadow:
        network.update(_averaged(parameters, extractor, shadow))
    for name in extractor:
        if encoder is None or name[len(EXTRACTOR) :].startswith(UNUSED):
            del network[name]
    return network, architecture


def _encoder_arguments(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Arguments of the visual encoder in a checkpoint; None where there is none, or one of a kind that is not known."""
    try:
        return av_hubert_arguments(shapes)
    except (KeyError, IndexError, ValueError):
        return None


def _averaged(parameters: dict[str, Any], extractor: Iterable[str], shadow: Sequence[Any]) -> dict[str, StoredTensor]:
    """The EMA by name. It is a list without names, of parameters and no buffers, in the order of the `state_dict`.

    Newer torch_ema keeps every parameter, older only the trainable ones: a visual extractor, which comes first, is
    frozen, and so are the Fourier frequencies.
    """
    frozen = [name for name in extractor if not name.endswith(BUFFERS)]
    own = [name for name in parameters if not name.startswith(EXTRACTOR)]
    trainable = [name for name in own if parameters[name].requires_grad]
    names = {len(kept): kept for kept in (trainable, own, frozen + trainable, frozen + own)}.get(len(shadow))
    if names is None or not all(isinstance(tensor, StoredTensor) for tensor in shadow):
        raise UdseError(f"expected {len(frozen) + len(own)} EMA weights, got {len(shadow)}: the file is not consistent")
    return dict(zip(names, shadow, strict=True))


def audio_visual_architecture(
    shapes: dict[str, tuple[int, ...]], encoder: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Derive the arguments of `AudioVisualNCSNpp` from the names and shapes of its weights, without the encoder's.

    Raises:
        KeyError, IndexError, ValueError: they are not those of such a network.
    """
    arguments = architecture_of(shapes)
    projects = PROJECTION in shapes
    video = shapes[PROJECTION if projects else VIDEO_KEYS][1]
    del arguments["joint"]
    return {**arguments, "name": "ncsnpp-av", "video": video, "projects": projects, "encoder": encoder}


def architecture_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Derive the arguments of `NCSNpp` from the names and shapes of its weights, along the way down of the U-Net.

    Raises:
        KeyError, IndexError, ValueError: they are not those of an NCSN++.
    """

    def is_attention(index: int) -> bool:
        return f"all_modules.{index}.NIN_0.W" in shapes

    def is_pyramid(index: int) -> bool:
        return f"all_modules.{index}.Conv_0.weight" in shapes and not is_block(index)

    def is_block(index: int) -> bool:
        return f"all_modules.{index}.Dense_0.weight" in shapes

    def is_fusion(index: int) -> bool:
        return f"all_modules.{index}.cross_attention.to_q.weight" in shapes

    (nf,) = shapes["all_modules.0.W"]
    indices = sorted({int(name.split(".")[1]) for name in shapes if name.startswith("all_modules.")})
    pyramids = [index for index in indices if is_pyramid(index)]
    levels = len(pyramids) + 1
    blocks = sum(is_block(index) for index in indices if index < pyramids[0]) - 1  # the last one halves
    image_size, index = 256, 4 + is_fusion(4)
    ch_mult, attention = [], []
    for level in range(levels):
        ch_mult.append(shapes[f"all_modules.{index}.Conv_0.weight"][0] // nf)
        if is_attention(index + 1):
            attention.append(image_size >> level)
        index += blocks * (2 if is_attention(index + 1) else 1) + 2
        index += is_fusion(index - 1)
    derived = {
        "name": "ncsnpp",
        "nf": nf,
        "ch_mult": ch_mult,
        "num_res_blocks": blocks,
        "attn_resolutions": attention,
        "image_size": image_size,
    }
    if shapes["output_layer.weight"][1] == ConditionalNCSNpp.planes:
        return {**derived, "name": "ncsnpp-conditional"}
    return {**derived, "joint": "label_emb.weight" in shapes}


def _forward_pass(settings: dict[Any, Any]) -> dict[str, Any]:
    """What the hyper-parameters of SGMSE+ say about the forward pass, as arguments of `ConditionalNCSNpp`.

    Raises:
        UdseError: a backbone that is not known.
    """
    backbone = settings.get("backbone", "ncsnpp")
    if backbone not in FORWARD["backbone"]:
        raise UdseError(f"expected the backbone {' or '.join(map(str, FORWARD['backbone']))}, got {backbone!r}")
    if backbone == "ncsnpp":  # whatever the others say: they came with its successor, and it reads none of them
        return {"backbone": backbone}
    given = {name: settings[name] for name in (*FORWARD, "sigma_data") if name in settings}
    if given.get("loss_type") == "mse":  # of older files
        given["loss_type"] = "score_matching"
    return given


def _config(checkpoint: dict[Any, Any], architecture: dict[str, Any]) -> dict[str, Any]:
    settings = mapping_of(checkpoint.get("hyper_parameters"))
    for name, published in {"sde": ("ouve",), "transform_type": ("exponent", "none")}.items():
        if settings.get(name, published[0]) not in published:
            raise UdseError(f"expected a model with {name} {' or '.join(published)}, got {settings[name]!r}")
    if architecture["name"] == "ncsnpp-av" and settings.get("fusion", FUSION) != FUSION:
        raise UdseError(f"expected an audio-visual model with the fusion {FUSION}, got {settings['fusion']!s:.60}")
    plain = settings.get("transform_type", "exponent") == "none"

    def number(name: str, default: float) -> float:
        value = settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise UdseError(f"expected a positive number for the hyper-parameter {name}, got {type(value).__name__}")
        return value

    facts = {
        name: value
        for name, value in {**settings, **checkpoint}.items()
        if isinstance(name, str)
        and (isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)))
    }
    return {
        "architecture": architecture,
        "sde": {
            "name": "ouve",
            "gamma": number("theta", 1.5),
            "sigma_min": number("sigma_min", 0.05),
            "sigma_max": number("sigma_max", 0.5),
        },
        "stft": {
            "n_fft": int(number("n_fft", 510)),
            "hop_length": int(number("hop_length", 128)),
            "window": str(settings.get("window", "hann")),
            "sample_rate": int(number("sample_rate", number("sr", 16000))),
        },
        "compression": {
            "exponent": 1.0 if plain else number("spec_abs_exponent", 0.5),
            "factor": 1.0 if plain else number("spec_factor", 0.15),
        },
        "inference": {"sampler": "udiffse_plus"} if architecture["name"] == "ncsnpp-av" else {},
        "training": {"source": "PyTorch Lightning checkpoint", **facts},
        "licence": "that of the checkpoint's authors",
    }
