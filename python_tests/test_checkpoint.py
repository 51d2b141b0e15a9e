"""Checkpoints: the published container, our own, and what is neither; and that nothing in a file runs."""

from __future__ import annotations

import copyreg
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from udse_fast.checkpoints import checkpoint
from udse_fast.checkpoints.checkpoint import load_network, save_checkpoint
from udse_fast.checkpoints.export import export_network
from udse_fast.checkpoints.lightning import Global, Placeholder, architecture_of, interpret
from udse_fast.errors import UdseError
from udse_fast.networks import build_network
from udse_fast.networks.ncsnpp import NCSNpp

GOLDEN = Path(__file__).parent / "golden" / "networks"
GOLDEN_TOLERANCE = 1e-5  # float32 in another order of sums, some 40 layers; the requirement is 1e-4
TINY = {"name": "ncsnpp", "nf": 8, "ch_mult": [1, 2]}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def lightning_file(path: Path, network: NCSNpp, **sections: object) -> Path:
    """A checkpoint as Lightning writes it, of plain values."""
    weights = OrderedDict((f"dnn.{name}", value) for name, value in network.state_dict().items())
    torch.save({"state_dict": weights, "epoch": 3, "hyper_parameters": {}, **sections}, path)
    return path


def with_pickle(source: Path, target: Path, change: Callable[[bytes], bytes]) -> Path:
    """A copy of a PyTorch file with another data.pkl, and check sums that are right."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return target


def error_of(path: Path) -> str:
    """What loading the file complains of, or nothing."""
    try:
        load_network(path)
    except UdseError as error:
        return str(error)
    return ""


def tiny_network() -> NCSNpp:
    torch.manual_seed(0)
    network = build_network(TINY)
    assert isinstance(network, NCSNpp)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def tiny_config() -> dict:
    return {"architecture": TINY, "stft": {"n_fft": 63, "hop_length": 32}, "training": {"steps": 5}}


# The published container


@pytest.mark.parametrize("name", ["speech", "joint"])
def test_scores_of_the_published_networks_are_reproduced(name: str) -> None:
    network = load_network(GOLDEN / f"{name}.ckpt")
    vectors = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}_io.npz").items()}
    score = network.score(vectors["state"], vectors["t"], vectors["label"] if network.joint else None)
    assert score.shape == vectors["score"].shape
    assert score.dtype == torch.complex64
    assert relative(score, vectors["score"]) < GOLDEN_TOLERANCE
    noise = -score * torch.as_tensor(sigma(vectors["t"]))[:, None, None]
    assert relative(noise, vectors["network_output"]) < GOLDEN_TOLERANCE


def sigma(t: torch.Tensor) -> torch.Tensor:
    ratio, log_ratio = 10.0, np.log(10.0)
    return (0.05**2 * (ratio ** (2 * t) - torch.exp(-3 * t)) * log_ratio / (1.5 + log_ratio)).sqrt()


def test_the_configuration_is_the_checkpoint_s() -> None:
    config = load_network(GOLDEN / "joint.ckpt").config
    assert config["architecture"]["joint"] is True
    assert config["architecture"]["nf"] == 16
    assert config["sde"] == {"name": "ouve", "gamma": 1.5, "sigma_min": 0.05, "sigma_max": 0.5}
    assert config["stft"] == {"n_fft": 510, "hop_length": 128, "window": "hann", "sample_rate": 16000}
    assert config["compression"] == {"exponent": 0.5, "factor": 0.15}
    assert config["training"]["epoch"] == 199
    assert json.loads(json.dumps(config)) == config


def test_other_settings_of_a_checkpoint_are_taken_over(tmp_path: Path) -> None:
    settings = {"theta": 2.0, "sigma_min": 0.1, "sigma_max": 1.0, "n_fft": 62, "hop_length": 16}
    settings |= {"spec_factor": 0.3, "spec_abs_exponent": 0.7, "window": "sqrt_hann"}
    config = load_network(lightning_file(tmp_path / "a.ckpt", tiny_network(), hyper_parameters=settings)).config
    assert config["sde"] == {"name": "ouve", "gamma": 2.0, "sigma_min": 0.1, "sigma_max": 1.0}
    assert config["stft"] == {"n_fft": 62, "hop_length": 16, "window": "sqrt_hann", "sample_rate": 16000}
    assert config["compression"] == {"exponent": 0.7, "factor": 0.3}


@pytest.mark.parametrize("settings", [{"sde": "vpsde"}, {"transform_type": "log"}, {"theta": "x"}, {"n_fft": -2}])
def test_other_kinds_of_model_are_refused(tmp_path: Path, settings: dict) -> None:
    path = lightning_file(tmp_path / "a.ckpt", tiny_network(), hyper_parameters=settings)
    with pytest.raises(UdseError, match=next(iter(settings))):
        load_network(path)


@pytest.mark.parametrize("only_trainable", [False, True])
def test_the_ema_weights_are_used(tmp_path: Path, only_trainable: bool) -> None:
    network = tiny_network()
    named = {n: p for n, p in network.named_parameters() if p.requires_grad or not only_trainable}
    shadow = [torch.full_like(parameter, float(index)) for index, parameter in enumerate(named.values())]
    path = lightning_file(tmp_path / "a.ckpt", network, ema={"decay": 0.999, "shadow_params": shadow})
    loaded = dict(load_network(path).module.named_parameters())
    for index, name in enumerate(named):
        assert torch.all(loaded[name] == index), name
    assert torch.equal(loaded["all_modules.0.W"], network.all_modules[0].W) == only_trainable


def test_without_ema_the_weights_themselves_are_used(tmp_path: Path) -> None:
    network = tiny_network()
    loaded = load_network(lightning_file(tmp_path / "a.ckpt", network)).module.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items())


def test_weights_in_half_precision_or_strided_are_read(tmp_path: Path) -> None:
    network = tiny_network().half().to(memory_format=torch.channels_last)
    loaded = load_network(lightning_file(tmp_path / "a.ckpt", network)).module.state_dict()
    assert all(torch.equal(loaded[name], value.float()) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    "arguments",
    [
        {"nf": 96, "ch_mult": [1, 1, 1, 1]},
        {"nf": 128, "ch_mult": [1, 2, 2, 2]},
        {"nf": 96, "ch_mult": [1, 1, 1, 1], "joint": True},
        {"nf": 16, "ch_mult": [1, 2], "num_res_blocks": 3, "attn_resolutions": [256]},
        {"nf": 8, "ch_mult": [2, 1, 4, 1, 1, 1, 1], "num_res_blocks": 2, "attn_resolutions": [64, 16, 4]},
    ],
)
def test_the_architecture_follows_from_the_shapes(arguments: dict) -> None:
    with torch.device("meta"):
        network = NCSNpp(**arguments)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    complete = {"num_res_blocks": 1, "attn_resolutions": [], "joint": False, "image_size": 256}
    assert architecture_of(shapes) == {"name": "ncsnpp", **complete, **arguments}


def test_loading_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    load_network(GOLDEN / "speech.ckpt")
    assert torch.equal(torch.get_rng_state(), before)


# Nothing in a file runs


def reduce_to(*called: object) -> type:
    class Attack:
        def __reduce__(self) -> tuple:
            return called  # type: ignore[return-value]

    return Attack()  # type: ignore[return-value]


def attacks(marker: str) -> dict[str, bytes]:
    """Pickles that create the file `marker` when they are unpickled."""
    command = f"touch {marker}"
    python = f"__import__('pathlib').Path({marker!r}).touch()"
    text = b"X" + struct.pack("<I", len(command)) + command.encode()
    imported = b"\x8c\x08builtins\x8c\x0a__import__\x93\x8c\x02os\x85R"
    getattr_os_system = b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93" + imported + b"\x8c\x06system\x86R"
    partial_of_print = b"\x80\x04cfunctools\npartial\ncbuiltins\nprint\n\x85R"
    list_of_map = b"\x80\x04cbuiltins\nlist\ncbuiltins\nmap\ncos\nsystem\n("
    add_extension = b"\x80\x04ccopyreg\nadd_extension\n(\x8c\x02os\x8c\x06systemK\xf0tR0"
    pickles = {
        f"os.system, protocol {protocol}": pickle.dumps(reduce_to(os.system, (command,)), protocol)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    }
    return pickles | {
        "eval": pickle.dumps(reduce_to(eval, (python,))),
        "exec": pickle.dumps(reduce_to(exec, (python,))),
        "getattr of an imported module": getattr_os_system + text + b"\x85R.",
        "dotted name": b"\x80\x04\x8c\x07pathlib\x8c\x09os.system\x93" + text + b"\x85R.",
        "INST": b"(" + text + b"ios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + text + b"o.",
        "BUILD of a partial": partial_of_print + b"(cos\nsystem\n" + text + b"\x85}Ntb)R.",
        "NEWOBJ of a map": list_of_map + text + b"l\x86\x81\x85R.",
        "NEWOBJ_EX of a map": list_of_map + text + b"l\x86}\x92\x85R.",
        "copyreg extension": add_extension + b"\x82\xf0" + text + b"\x85R.",
        "method caller": b"\x80\x04coperator\nmethodcaller\n(\x8c\x06system" + text + b"tR" + imported + b"\x85R.",
        "as a key": b"}cos\nsystem\n" + text + b"\x85RK\x01s.",
        "inside a tensor": b"ctorch._utils\n_rebuild_tensor_v2\n(cos\nsystem\n" + text + b"\x85RK\x00))tR.",
    }


EXTENSION = 0xF0
ATTACKS = list(attacks("x"))


@pytest.mark.parametrize("name", ATTACKS)
def test_a_malicious_pickle_is_read_without_running_it(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    program = attacks(str(marker))[name]
    with suppress(Exception):
        pickle.loads(program)
    assert marker.exists()  # the attack succeeds on the standard unpickler: the test means something
    marker.unlink()
    with suppress(KeyError, ValueError):
        copyreg.remove_extension("os", "system", EXTENSION)

    with suppress(ValueError, TypeError, IndexError):  # some are refused, others read as placeholders
        interpret(program)
    assert not marker.exists()
    assert EXTENSION not in copyreg._inverted_registry  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ATTACKS)
def test_a_checkpoint_with_an_attack_beside_the_weights_loads_unharmed(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    attack = attacks(str(marker))[name].removesuffix(b".")
    while attack[:1] == b"\x80":
        attack = attack[2:]
    plain = lightning_file(tmp_path / "plain.ckpt", tiny_network())
    path = with_pickle(plain, tmp_path / "evil.ckpt", lambda program: program[:2] + attack + b"0" + program[2:])
    error = error_of(path)
    assert not marker.exists()
    if not error:  # some attacks make the file one that is refused
        loaded = load_network(path).module.state_dict()
        assert torch.equal(loaded["all_modules.3.weight"], tiny_network().all_modules[3].weight)


def test_foreign_objects_become_placeholders() -> None:
    program = b"\x80\x04cargparse\nNamespace\n)\x81}\x8c\x01aK\x05sb."
    value = interpret(program)
    assert isinstance(value, Placeholder)
    assert value.of == Global("argparse.Namespace")
    assert value.state == {"a": 5}


def test_settings_inside_a_foreign_dictionary_are_found(tmp_path: Path) -> None:
    settings = defaultdict(None, theta=3.0)  # a dictionary to Python, a foreign class to the reader
    path = lightning_file(tmp_path / "a.ckpt", tiny_network(), hyper_parameters=settings)
    assert load_network(path).config["sde"]["gamma"] == 3.0


def test_a_checkpoint_of_the_exploding_variance_process(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The same denoiser under s_t = s_0 + t z: its score is (D(s, t) - s) / t^2."""
    ouve = load_network(tiny_checkpoints["speech"])
    save_checkpoint(tmp_path / "ve.safetensors", ouve.module.state_dict(), {**ouve.config, "sde": {"name": "ve"}})
    network = load_network(tmp_path / "ve.safetensors")
    assert network.config["sde"] == {"name": "ve"}
    state, time = torch.randn(1, 256, 4, dtype=torch.complex64), 2.5
    planes = torch.view_as_real(state).movedim(-1, 1)
    with torch.no_grad():
        clean = network.module.denoise(planes, torch.tensor([time]))
    expected = (torch.complex(clean[:, 0], clean[:, 1]) - state) / time**2
    torch.testing.assert_close(network.score(state, time), expected)


def test_plain_pickles_mean_the_same_as_to_the_standard_unpickler() -> None:
    value = {
        "numbers": [0, -1, 255, 65535, 2**31, -(2**40), 2**2000, 1.5, True, False, None],
        "text": ("a", "ä" * 300, b"bytes", b"b" * 300),
        "nested": [{"a": (1, (2, [3, {}])), 4: "b"}, [], ()],
        "ordered": OrderedDict(),
    }
    value["again"] = value["nested"]
    for protocol in range(3, pickle.HIGHEST_PROTOCOL + 1):
        assert interpret(pickle.dumps(value, protocol)) == value
    del value["text"]  # the older protocols make bytes by a call
    for protocol in range(3):
        assert interpret(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"0.",
        b"t.",
        b"(",
        b"NNs.",
        b"K\x01K\x01a.",
        b"h\x07.",
        b"\x80\x02\x93.",
        b"NQ.",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x97.",
        b"r\xff\xff\xff\xff.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR",
    ],
)
def test_damaged_pickles_are_errors(program: bytes) -> None:
    with pytest.raises((ValueError, IndexError, KeyError, TypeError)):
        interpret(program)


def test_a_deeply_nested_key_does_not_overflow_the_stack() -> None:
    interpret(b"})" + b"\x85" * 300_000 + b"Ns.")


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    path = lightning_file(tmp_path / "a.ckpt", tiny_network())
    shape, larger = b"(K\x02K\x02K\x01K\x01t", b"(K\x02K\x7fK\x01K\x01t"  # output_layer.weight

    def enlarge(program: bytes) -> bytes:
        assert shape in program
        return program.replace(shape, larger)

    with pytest.raises(UdseError, match="larger than its storage"):
        load_network(with_pickle(path, tmp_path / "b.ckpt", enlarge))


def test_any_damage_is_one_line(tmp_path: Path) -> None:
    path = lightning_file(tmp_path / "a.ckpt", tiny_network())
    random = np.random.default_rng(0)

    def damage(program: bytes) -> bytes:
        changed = bytearray(program)
        for position in random.integers(0, len(program), 3):
            changed[position] = random.integers(0, 256)
        return bytes(changed)

    errors = [error_of(with_pickle(path, tmp_path / "b.ckpt", damage)) for _ in range(60)]
    assert not any("\n" in error for error in errors)
    assert sum(map(bool, errors)) > 10


# Our own container


def test_a_safetensors_checkpoint_returns_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    network = tiny_network().to(memory_format=torch.channels_last)
    save_checkpoint(path, network.state_dict(), tiny_config())
    loaded = load_network(path)
    state = loaded.module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert loaded.config["training"] == {"steps": 5}
    assert loaded.config["stft"] == {"n_fft": 63, "hop_length": 32, "window": "hann", "sample_rate": 16000}
    assert os.listdir(tmp_path) == ["a.safetensors"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_storage_keeps_vectors_whole(tmp_path: Path, dtype: torch.dtype) -> None:
    network = tiny_network()
    save_checkpoint(tmp_path / "a.safetensors", network.state_dict(), tiny_config(), dtype)
    for name, stored in load_file(tmp_path / "a.safetensors").items():
        original = network.state_dict()[name]
        assert stored.dtype == (dtype if original.ndim > 1 else torch.float32)
        assert torch.equal(stored, original.to(stored.dtype))
    half = load_network(tmp_path / "a.safetensors").module.state_dict()
    assert half["all_modules.3.weight"].dtype == torch.float32


def test_the_header_is_json_that_other_programs_can_read(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", tiny_network().state_dict(), tiny_config())
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        config = json.loads(file.metadata()["udse_fast"])
    assert config["format_version"] == 1
    assert config["architecture"] == TINY


# What is neither


def foreign_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Path and a word of the error for each kind of file that is no checkpoint."""
    network = tiny_network()
    good = folder / "good.safetensors"
    save_checkpoint(good, network.state_dict(), tiny_config())
    lightning = lightning_file(folder / "good.ckpt", network)

    def written(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    def safetensors(name: str, config: dict | str | None, **changes: torch.Tensor) -> Path:
        text = config if isinstance(config, str) else json.dumps(config)
        metadata = None if config is None else {"udse_fast": text}
        save_file({**load_file(good), **changes}, folder / name, metadata=metadata)
        return folder / name

    torch.save({"weights": torch.zeros(3)}, folder / "plain.pt")
    torch.save(torch.zeros(3), folder / "tensor.pt")
    torch.save(network.state_dict(), folder / "old.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    config = tiny_config()
    return {
        "missing": (folder / "none.ckpt", "No such file"),
        "directory": (folder, "directory"),
        "empty": (written("empty.ckpt", b""), "empty file"),
        "text": (written("text.ckpt", b"hello, this is not a checkpoint"), "another kind"),
        "sound": (written("sound.wav", b"RIFF\x00\x00\x00\x00WAVEfmt "), "another kind"),
        "old torch format": (folder / "old.pt", "another kind"),
        "half a zip": (written("half.ckpt", lightning.read_bytes()[:5000]), "incomplete"),
        "zip magic only": (written("magic.ckpt", b"PK\x03\x04"), "incomplete"),
        "other zip": (folder / "other.zip", "another zip"),
        "a dictionary of torch": (folder / "plain.pt", "another network"),
        "a tensor of torch": (folder / "tensor.pt", "another network"),
        "half a safetensors": (written("half.safetensors", good.read_bytes()[:-100]), "damaged"),
        "header only": (written("header.safetensors", good.read_bytes()[:100]), "damaged"),
        "foreign safetensors": (safetensors("foreign.safetensors", None), "another program"),
        "no JSON": (safetensors("json.safetensors", "{"), "JSON"),
        "JSON list": (safetensors("list.safetensors", "[1]"), "JSON object"),
        "no architecture": (safetensors("none.safetensors", {}), "architecture"),
        "newer format": (safetensors("new.safetensors", {**config, "format_version": 2}), "newer"),
        "unknown network": (
            safetensors("unknown.safetensors", {**config, "architecture": {"name": "transformer"}}),
            "transformer",
        ),
        "unknown argument": (
            safetensors("argument.safetensors", {**config, "architecture": {**TINY, "heads": 3}}),
            "heads",
        ),
        "enormous network": (
            safetensors("enormous.safetensors", {**config, "architecture": {**TINY, "nf": 4_000_000}}),
            "shape",
        ),
        "bad setting": (safetensors("bad.safetensors", {**config, "sde": {"gamma": "fast"}}), "gamma"),
        "fractional setting": (safetensors("part.safetensors", {**config, "stft": {"n_fft": 5.5}}), "n_fft"),
        "constants of another sde": (
            safetensors("ve.safetensors", {**config, "sde": {"name": "ve", "gamma": 1.5}}),
            "expected name in the section 'sde', got gamma too",
        ),
        "other sde": (safetensors("sde.safetensors", {**config, "sde": {"name": "vp"}}), "ouve"),
        "one weight too many": (safetensors("many.safetensors", config, extra=torch.zeros(2)), "extra"),
        "wrong shape": (
            safetensors("shape.safetensors", config, **{"output_layer.bias": torch.zeros(3)}),
            "output_layer.bias",
        ),
        "NaN": (
            safetensors("nan.safetensors", config, **{"output_layer.bias": torch.full((2,), torch.nan)}),
            "NaN",
        ),
    }


def test_damage_to_the_weights_of_torchscript_is_told(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", tiny_network().state_dict(), tiny_config())
    script = tmp_path / "a.pt"
    export_network(load_network(tmp_path / "a.safetensors"), script)
    assert not error_of(script)
    with zipfile.ZipFile(script) as archive:
        weight = max((i for i in archive.infolist() if "/data/" in i.filename), key=lambda i: i.file_size)
        middle = archive.read(weight)[100:200]
    content = script.read_bytes()
    assert content.count(middle) == 1
    script.write_bytes(content.replace(middle, bytes(100)))
    assert "damaged" in error_of(script)


def test_every_other_file_is_refused_in_one_clear_line(tmp_path: Path) -> None:
    for kind, (path, word) in foreign_files(tmp_path).items():
        message = error_of(path)
        assert word in message, kind
        assert "\n" not in message, kind
        assert str(path) in message, kind
        assert "expected" in message, kind


@pytest.mark.parametrize(("name", "file"), [(None, "speech"), ("speech", "speech"), ("joint", "joint")])
def test_built_in_priors_have_names(
    name: str | None, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"{file}.safetensors"
    save_checkpoint(path, tiny_network().state_dict(), tiny_config())
    monkeypatch.setitem(checkpoint.BUILT_IN, file, path)
    assert load_network(name).config["training"] == {"steps": 5}


@pytest.mark.parametrize("place", ["none/a.safetensors", "file/a.safetensors", "folder"])
def test_an_unwritable_place_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UdseError, match="cannot write"):
        save_checkpoint(tmp_path / place, tiny_network().state_dict(), tiny_config())
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, tiny_network().state_dict(), tiny_config())
    before = path.read_bytes()
    shared = torch.zeros(4)
    with pytest.raises(Exception, match="share memory"):
        save_checkpoint(path, {"a.b": shared, "c.d": shared}, tiny_config())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_loading_imports_nothing_of_torchs_compiler(tmp_path: Path) -> None:
    """Half a second to a second until the first sample."""
    program = "import sys, udse_fast; udse_fast.Enhancer(); print(*{'torch._dynamo', 'sympy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "\n"
