"""The LoRA file: written whole or not at all, with the hashes that web UIs index by; read in any usual style."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from schemas.files.documents import parse_json
from schemas.files.saved_names import EMA, PEFT
from schemas.files.textfile import CONFIG, read_text
from schemas.files.weights import (
    PEFT_FILES,
    lora_family,
    lora_file,
    module_of,
    read_header,
)
from schemas.files.writing import write_atomically
from schemas.problems import error
from trainer.families.pickles import load_pickle
from trainer.output.lora_keys import peft_settings, to_kohya, to_peft
from trainer.output.read_back import read_back

if TYPE_CHECKING:
    from trainer.families import Target

HASHED_AT, HASHED_BYTES = 1 << 20, 1 << 16  # the old 8-digit hash reads 64 KiB at 1 MiB


def save_weights(
    path: Path,
    state_dict: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    save_as: str = "safetensors",
    dtype: torch.dtype | None = None,
    modules: Collection[str] | None = None,
) -> None:
    """Write a LoRA file atomically; floats go to `dtype` if given, alpha is always a float.

    `save_as` "ckpt" and "pt" are torch.save of the dict, without metadata. A safetensors header gets `metadata` and the
    sshs hashes (reference section 12.4). What was written is read again before it takes its place: UnsoundFile, and an
    older file stays, when it is not what it should be. `modules` are the names that may stand in it, if known.
    """
    tensors = {name: _ready(name, tensor, dtype) for name, tensor in state_dict.items()}
    check = functools.partial(read_back, tensors=tensors, weights=state_dict, modules=modules)
    if save_as != "safetensors":
        write_atomically(path, lambda stream: torch.save(tensors, stream), check)
        return
    hashed = {name: text for name, text in metadata.items() if name.startswith("ss_")}
    image = safetensors.torch.save(tensors, hashed)
    header, data = split_image(image)
    header["__metadata__"] = {**metadata, **sshs_hashes(image)}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(stream: IO[bytes]) -> None:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.write(data)

    write_atomically(path, write, functools.partial(check, size=8 + len(text) + len(data)))


def save_peft_copy(
    path: Path, state_dict: Mapping[str, Tensor], targets: Mapping[str, Target], dtype: torch.dtype | None = None
) -> Path:
    """Write a kohya-keyed LoRA beside `path` under peft's names, as diffusers keeps it; returns where.

    KeyError when it holds a module that is no LoRA.
    """
    copy = peft_copy(path)
    tensors, settings = to_peft(state_dict, targets)
    save_weights(copy, tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(settings)}, dtype=dtype)
    return copy


def ema_copy(path: Path) -> Path:
    """Where the moving average of a LoRA file's weights lies."""
    return path.with_name(f"{path.stem}{EMA}{path.suffix}")


def peft_copy(path: Path) -> Path:
    """Where the diffusers copy of a LoRA file goes."""
    return path.with_name(f"{path.stem}{PEFT}.safetensors")


def _ready(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach()
    if name.endswith(".alpha") and not tensor.is_floating_point():
        tensor = tensor.float()
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return tensor.cpu().contiguous()


def split_image(image: bytes) -> tuple[dict[str, Any], memoryview]:
    """(header without metadata, tensor data) of a safetensors image."""
    length = int.from_bytes(image[:8], "little")
    header = parse_json(image[8 : 8 + length], flat=True)
    header.pop("__metadata__", None)
    return header, memoryview(image)[8 + length :]


def sshs_hashes(image: bytes) -> dict[str, str]:
    """Hashes of an in-memory safetensors image: of its tensor data, and the old one of 64 KiB of the whole."""
    _, data = split_image(image)
    piece = image[HASHED_AT : HASHED_AT + HASHED_BYTES]
    whole, part = hashlib.sha256(data).hexdigest(), hashlib.sha256(piece).hexdigest()
    return {"sshs_model_hash": whole, "sshs_legacy_hash": part[:8]}


def model_hashes(path: Path) -> tuple[str, str]:
    """(old 8-digit hash, SHA-256) of a model file, remembered while the file stays the same.

    A folder gives "IsADirectory", a missing file "NOFILE". Reading 7 GB takes seconds: run it in a thread (hashing lets
    other threads work).
    """
    if path.is_dir():
        return "IsADirectory", "IsADirectory"
    if not path.is_file():
        return "NOFILE", "NOFILE"
    facts = path.stat()
    return _hashes(path.resolve(), facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _hashes(path: Path, size: int, changed: int) -> tuple[str, str]:
    with path.open("rb") as stream:
        stream.seek(HASHED_AT)
        old = hashlib.sha256(stream.read(HASHED_BYTES)).hexdigest()[:8]
        stream.seek(0)
        return old, hashlib.file_digest(stream, "sha256").hexdigest()


def load_weights(
    path: Path,
    targets: Sequence[Target],
    family: str | None = None,
    *,
    trust: Sequence[str] = (),
    key: str = "network_weights",
) -> dict[str, Tensor]:
    """The tensors of a LoRA file under kohya's keys, as stored; kohya, LyCORIS, peft and diffusers names are known.

    `path` is a file (.safetensors, .ckpt, .pt, .bin) or a peft folder. `family` is the base model's; by default as far
    as the targets show it. ConfigError `wrong-family` with both names when the file is for another one,
    `unknown-lora-names` when it matches nothing, `not-finite` when it holds NaN or Inf, `untrusted-file` when a pickled
    one holds code and `trust` does not name it.
    """
    file = _file_in(path)
    tensors, metadata = _read(file, trust)
    beside = file.with_name("adapter_config.json")
    config = read_text(beside, limit=CONFIG, what="adapter config") if beside.is_file() else None
    weights = to_kohya(tensors, targets, peft_settings(metadata, config))
    theirs = lora_family({name: tuple(tensor.shape) for name, tensor in tensors.items()}, metadata)
    ours = family or ("sdxl" if any(target.part == "te2" for target in targets) else "sd15 or sd2")
    known = {target.key for target in targets}
    known |= {key.replace("lora_", "oft_", 1) for key in known}
    matched = {name.partition(".")[0] for name in weights} & known
    if theirs != "unknown" and theirs not in ours:
        raise error(
            "wrong-family", f"is a LoRA for {theirs}, the base model is {ours}; {len(matched)} modules match",
            key=key, got=str(path), fix=f"use a LoRA for {ours}, or the base model of the LoRA",
        )  # fmt: skip
    if not matched:
        first = next((name for name in tensors if module_of(name)), next(iter(tensors), "nothing"))
        raise error(
            "unknown-lora-names", f"holds {len(tensors)} tensors, none under a name of the base model's modules; "
            f"the first is {first}", key=key, got=str(path),
            fix=f"use a LoRA for {ours} in the form of kohya, diffusers, peft, OneTrainer or ComfyUI",
        )  # fmt: skip
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not sound(tensor)]
    if broken:
        raise error(
            "not-finite", f"holds NaN or Inf in {len(broken)} of {len(tensors)} tensors, such as {broken[0]}",
            key=key, got=str(path), fix="use a file whose training ended well",
        )  # fmt: skip
    return weights


def sound(tensor: Tensor) -> bool:
    """Whether all numbers are finite; floats of 8 bit have no such test of their own."""
    wide = tensor.float() if tensor.element_size() == 1 else tensor
    return bool(torch.isfinite(torch.stack(torch.aminmax(wide.detach()))).all()) if wide.numel() else True


def _file_in(path: Path) -> Path:
    file = lora_file(path)
    if not file.is_dir():
        return file
    must = f"is a folder without {', '.join(PEFT_FILES)}"
    raise error("no-file", must, file=str(path), fix="name the LoRA file itself")


def _read(path: Path, trust: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors on the CPU, header texts); ConfigError when it cannot be read or holds more than tensors."""
    if path.suffix.lower() == ".safetensors":
        metadata = read_header(path).metadata
        return safetensors.torch.load_file(path), metadata
    content = load_pickle(path, trust)
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    return tensors, {}
