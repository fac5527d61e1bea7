"""What a weights file says of itself, read from its header alone: no torch, no tensor data.

Format: https://huggingface.co/docs/safetensors (8 bytes length, JSON header, data). Key names: reference section 7.9.
"""

from __future__ import annotations

import functools
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from schemas.files.documents import object_in, parse_json, whole
from schemas.files.lora_names import (
    FLUX,
    SD3,
    TAILS,
    module,
    split,
)
from schemas.files.textfile import is_regular, open_regular
from schemas.problems import ConfigError, error

HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
SCALARS = {"F16": "<e", "BF16": "<f", "F32": "<f", "F64": "<d", "I32": "<i", "I64": "<q"}  # as struct reads them
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
PEFT_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.bin")
Style = Literal["kohya", "lycoris", "peft", "diffusers", "original", "unknown"]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: safetensors dtype name, shape, and its bytes [start, end) counted from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Header:
    """The header of a .safetensors file; `size` is the file's length in bytes."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    size: int


@dataclass(frozen=True)
class LoraFacts:
    """What a LoRA file is. Ranks and alphas are the most frequent ones; None when the file does not say."""

    family: str
    style: Style
    dim: int | None
    alpha: float | None
    text_encoder: bool
    unet: bool
    conv_dim: int | None
    conv_alpha: float | None
    algo: str
    modules: int
    metadata: dict[str, str]


def read_header(path: str | os.PathLike[str]) -> Header:
    """The checked header. ConfigError `no-file`, `not-safetensors`, or `truncated-file` (bytes expected and found)."""
    file = os.fspath(path)
    with open_regular(path, what="weights file") as stream:
        facts = os.fstat(stream.fileno())
        key = (file, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if key not in _HEADERS:
            head = stream.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not 2 <= length <= HEADER_LIMIT:
                raise _not_safetensors(file, head + stream.read(120))
            read = _header(file, head, length, stream.read(length), facts.st_size)
            while len(_HEADERS) >= KEPT:
                del _HEADERS[next(iter(_HEADERS))]
            _HEADERS[key] = read
        return _HEADERS[key]


_HEADERS: dict[tuple[Any, ...], Header] = {}  # a command looks at the same file several times
KEPT = 4


def _header(file: str, head: bytes, length: int, text: bytes, size: int) -> Header:
    if text[:1] != b"{":
        raise _not_safetensors(file, head + text[:120])
    if len(text) < length:
        raise _truncated(file, 8 + length, size)
    try:
        document = parse_json(text, flat=True)
        metadata = {whole(str(key)): whole(str(value)) for key, value in document.pop("__metadata__", {}).items()}
        tensors = {str(name): _tensor(facts, 8 + length) for name, facts in document.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise error("not-safetensors", f"has a damaged safetensors header ({fault})", file=file, fix=_AGAIN) from None
    end = _end_of_data(file, tensors, 8 + length)
    if size < end:
        raise _truncated(file, end, size)
    if size > end:
        must = f"has {size - end} bytes after its last tensor"
        raise error("not-safetensors", must, file=file, fix=_AGAIN)
    return Header(Path(file), metadata, tensors, size)


_AGAIN = "copy or download the file again"


def _tensor(facts: Mapping[str, Any], data: int) -> TensorInfo:
    start, end = facts["data_offsets"]
    shape = tuple(facts["shape"])
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
        raise ValueError("a size is not a whole number")
    if (end - start) * 8 != math.prod(shape) * BITS[facts["dtype"]]:
        raise ValueError("a tensor's length does not fit its shape")
    return TensorInfo(facts["dtype"], shape, data + start, data + end)


def _end_of_data(file: str, tensors: Mapping[str, TensorInfo], data: int) -> int:
    """Where the last tensor ends; tensors must follow one another without gaps."""
    place = data
    for info in sorted(tensors.values(), key=lambda info: (info.start, info.end)):
        if info.start != place:
            raise error("not-safetensors", "has tensors that overlap or leave gaps", file=file, fix=_AGAIN)
        place = info.end
    return place


def _truncated(file: str, expected: int, found: int) -> ConfigError:
    must = f"is cut off: {expected} bytes expected, {found} found"
    return error("truncated-file", must, file=file, fix=_AGAIN)


def _not_safetensors(file: str, start: bytes) -> ConfigError:
    if not start:
        return _truncated(file, 8, 0)
    guesses = (
        (b"version https://git-lfs", "a git-lfs pointer", "run `git lfs pull`, or download the file itself"),
        (b"<", "a web page", "download the file itself; the page may ask for a login"),
        (b"PK", "a PyTorch file", "rename it to .ckpt"),
        (b"\x80", "a PyTorch file", "rename it to .ckpt"),
    )
    for mark, what, fix in guesses:
        if start.lstrip().startswith(mark):
            return error("not-safetensors", f"is {what}, not a safetensors file", file=file, fix=fix)
    return error("not-safetensors", "is not a safetensors file", file=file, fix=_AGAIN)


def read_scalar(header: Header, name: str) -> float:
    """The value of a tensor of one number; ConfigError when it is not one."""
    return read_scalars(header, [name])[name]


def read_scalars(header: Header, names: Iterable[str]) -> dict[str, float]:
    """The values of tensors of one number each, in one walk through the file; ConfigError when one is none."""
    found = {}
    with open_regular(header.path, what="weights file") as stream:
        for name in sorted(names, key=lambda name: header.tensors[name].start):
            info = header.tensors[name]
            if math.prod(info.shape) != 1 or info.dtype not in SCALARS:
                must = f"must hold one number, is {info.dtype} {list(info.shape)}"
                raise error("bad-tensor", must, file=str(header.path), key=name, fix=_AGAIN)
            if stream.tell() != info.start:
                stream.seek(info.start)
            raw = stream.read(info.end - info.start)
            if info.dtype == "BF16":  # the upper half of a float32
                raw = b"\0\0" + raw
            found[name] = float(struct.unpack(SCALARS[info.dtype], raw)[0])
    return found


def checkpoint_family(path: str | os.PathLike[str]) -> str:
    """sd15, sd2, sdxl, sdxl-refiner, sd3, flux, lora or unknown, of a single file or a diffusers folder.

    Pickled files (.ckpt, .pt) are unknown: their names cannot be read without torch.
    """
    place = Path(path)
    if place.is_dir():
        for part in (*place.glob("*"), *place.glob("*/*")):
            if not part.is_dir() and not is_regular(part) and part.exists():
                read_header(part)  # says that it is no regular file
        return _folder_family(place)
    if place.suffix.lower() in PICKLES and is_regular(place):
        return "unknown"
    return family_of({name: info.shape for name, info in read_header(place).tensors.items()})


def _folder_family(folder: Path) -> str:
    kinds = {"StableDiffusion3": "sd3", "Flux": "flux"}
    name = str(json_file(folder / "model_index.json").get("_class_name", ""))
    for start, family in kinds.items():
        if name.startswith(start):
            return family
    unet = json_file(folder / "unet" / "config.json") or json_file(folder / "config.json")
    if unet.get("_class_name") != "UNet2DConditionModel":
        return "unknown"
    if unet.get("addition_embed_type") == "text_time":
        return "sdxl-refiner" if unet.get("projection_class_embeddings_input_dim") == 2560 else "sdxl"
    return "sd2" if unet.get("use_linear_projection") else "sd15"


def json_file(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none that can be read."""
    return object_in(path, what="part of a base model")


def family_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The family that tensor names and shapes of a whole checkpoint show; see `checkpoint_family`."""
    if _is_lora(shapes):
        return "lora"

    def has(start: str) -> bool:
        return any(name.startswith(start) for name in shapes)

    unet = "model.diffusion_model."
    if has(f"{unet}joint_blocks.") or has("joint_blocks."):
        return "sd3"
    if has(f"{unet}double_blocks.") or has("double_blocks."):
        return "flux"
    if not has(f"{unet}input_blocks."):
        return "unknown"
    if has("conditioner.embedders.1."):
        return "sdxl"
    if has("conditioner.embedders.0.model."):
        return "sdxl-refiner"
    if has("cond_stage_model.model."):
        return "sd2"
    if has("cond_stage_model.transformer."):
        return "sd15"
    label = shapes.get(f"{unet}label_emb.0.0.weight")
    if label:
        return "sdxl-refiner" if label[-1] == 2560 else "sdxl"
    return _by_context(shapes, "attn2.to_k.weight") or "unknown"


def _by_context(shapes: Mapping[str, tuple[int, ...]], ending: str) -> str | None:
    """Family by the width of the text that cross-attention reads."""
    return _by_width({shape[1] for name, shape in shapes.items() if name.endswith(ending) and len(shape) > 1})


def _by_width(widths: set[int]) -> str | None:
    families = {768: "sd15", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
    return families.get(widths.pop()) if len(widths) == 1 else None


DOWNS = (
    ".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", "_lora.down.weight", ".lora.down.weight",
    ".lora_linear_layer.down.weight", ".hada_w1_b", ".hada_w2_b", ".lokr_w2_b", ".lokr_w1_b", ".a2.weight",
)  # fmt: skip
EXTRAS = tuple(f".{tail}" for tail, (algo, _) in TAILS.items() if not algo)  # what comes beside any kind


def _is_lora(names: Iterable[str]) -> bool:
    return any(_split(name) for name in names)


def _split(name: str) -> tuple[str, str] | None:
    """(module, algorithm) of an adapter tensor; None for other tensors and for what comes beside any kind."""
    found = split(name)
    return (found[0], found[1]) if found and found[1] else None


def module_of(name: str) -> str | None:
    """The adapted module that a tensor belongs to; None for tensors of no adapter."""
    found = split(name)
    return found[0] if found else None


def lora_facts(path: str | os.PathLike[str]) -> LoraFacts:
    """Family, style, rank and alpha of a LoRA file. ConfigError `not-lora` when it holds no adapter tensors."""
    return _lora_facts(read_header(path))


@functools.lru_cache(maxsize=KEPT)
def _lora_facts(header: Header) -> LoraFacts:
    shapes = {name: info.shape for name, info in header.tensors.items()}
    split = {name: found for name in shapes if (found := _split(name))}
    if not split:
        fix = "name a LoRA file; a base model goes to pretrained_model_name_or_path"
        raise error("not-lora", "holds no LoRA tensors", file=str(header.path), fix=fix)
    modules = {module for module, _ in split.values()}
    algo = Counter([one for _, one in split.values() if one != "norm"] or ["norm"]).most_common(1)[0][0]
    ranks = module_ranks(shapes)
    spatial = ranks.keys() & spatial_modules(shapes)
    dim, alpha = _usual(header, {module: rank for module, rank in ranks.items() if module not in spatial})
    conv_dim, conv_alpha = _usual(header, {module: ranks[module] for module in spatial})
    text = {module for module in modules if _in_text_encoder(module)}
    return LoraFacts(
        family=lora_family(shapes, header.metadata), style=_style(modules, shapes, algo, header.metadata), dim=dim,
        alpha=alpha, text_encoder=bool(text), unet=bool(modules - text), conv_dim=conv_dim, conv_alpha=conv_alpha,
        algo=algo, modules=len(modules), metadata=header.metadata,
    )  # fmt: skip


def module_ranks(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """module -> rank, the first size of its down weight."""
    ranks: dict[str, int] = {}
    for ending in DOWNS:
        for name, shape in shapes.items():
            if name.endswith(ending) and shape:
                ranks.setdefault(name.removesuffix(ending), shape[0])
    return ranks


# Convolutions wider than 1x1 by the ends of their names: LoHa and LoKr flatten the kernel. diffusers' and checkpoints'.
WIDE = re.compile(r"_(conv[12]?|conv_in|conv_out|op|in_layers_2|out_layers_3|unet_out_2|input_blocks_0_0)$")
KERNELS = (*DOWNS, ".lora_mid.weight", ".hada_t1", ".lokr_t2")


def is_wide(module: str) -> bool:
    """Whether its name is that of a convolution wider than 1x1."""
    return WIDE.search(module.replace(".", "_")) is not None


def spatial_modules(shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The modules that adapt a convolution wider than 1x1."""
    found = {
        name.removesuffix(ending)
        for name, shape in shapes.items()
        if len(shape) == 4 and shape[2:] != (1, 1)
        for ending in KERNELS
        if name.endswith(ending)
    }
    modules = {one for name in shapes if (one := module_of(name))}
    return found | {one for one in modules if is_wide(one)}


def _usual(header: Header, ranks: Mapping[str, int]) -> tuple[int | None, float | None]:
    if not ranks:
        return None, None
    dim = Counter(ranks.values()).most_common(1)[0][0]
    names = (f"{module}.alpha" for module, rank in ranks.items() if rank == dim)
    alphas = Counter(read_scalars(header, [name for name in names if name in header.tensors]).values())
    return dim, alphas.most_common(1)[0][0] if alphas else None


def _in_text_encoder(name: str) -> bool:
    return module(name).part != "unet"


def _style(modules: set[str], shapes: Mapping[str, tuple[int, ...]], algo: str, metadata: Mapping[str, str]) -> Style:
    if all(module.startswith(("lora_", "oft_unet", "lycoris_")) for module in modules):
        beyond = algo != "lora" or any(name.endswith((".lora_mid.weight", ".dora_scale")) for name in shapes)
        lycoris = beyond or metadata.get("ss_network_module", "").startswith("lycoris")
        return "lycoris" if lycoris else "kohya"
    if all(module.startswith("base_model.model.") for module in modules):
        return "peft"
    dotted = all(module.startswith(("unet.", "text_encoder", "transformer.")) for module in modules)
    if dotted and not any(name.endswith((".lora_down.weight", ".lora_up.weight")) for name in shapes):
        return "diffusers"
    if any(name.endswith((".lora_A.weight", ".lora_A.default.weight")) for name in shapes):
        return "peft"
    if any(".processor." in module for module in modules):
        return "diffusers"
    # OneTrainer's and ComfyUI's: dotted paths with kohya's endings
    return "original" if any("." in module for module in modules) else "unknown"


def lora_file(path: str | os.PathLike[str]) -> Path:
    """The file of an adapter that a path means: itself, or the one in a folder of peft or diffusers."""
    place = Path(path)
    return next((place / name for name in PEFT_FILES if (place / name).is_file()), place)


def lora_family(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str:
    """The family an adapter was made for: by names found in one family only, then by widths, metadata, structure."""
    names = {name.replace(".", "_") for name in shapes}

    def has(*parts: str) -> bool:
        return any(part in name for name in names for part in parts)

    if has(*FLUX):
        return "flux"
    if has(*SD3):
        return "sd3"
    modules = {found: module(found) for name in shapes if (found := module_of(name))}
    if any(one.part in ("te1", "te2") for one in modules.values()):
        return "sdxl"
    cross = ("attn2_to_k", "attn2.to_k", "attn2_to_v", "attn2.to_v")
    known = _by_width({width for one in modules if one.endswith(cross) and (width := _width(one, shapes))})
    if known is None and has("_input_blocks_", "_output_blocks_", "_middle_block_"):
        # SDXL's usual names; SD's files of this spelling show its blocks without a transformer in the third level
        deep = any(re.search(r"_blocks_(9|10|11)_", one.path) for one in modules.values())
        known = "sd15" if deep else "sdxl"
    reads = (name for name, one in modules.items() if one.part != "unet" and "q_proj" in name)
    text = {width for name in reads if (width := _width(name, shapes, square=True))}
    if known is None and len(text) == 1:
        known = {768: "sd15", 1024: "sd2"}.get(text.pop())
    said = metadata.get("ss_base_model_version", "") + " " + metadata.get("modelspec.architecture", "")
    for mark, family in (("sdxl", "sdxl"), ("stable-diffusion-xl", "sdxl"), ("sd_v2", "sd2"), ("sd_v1", "sd15")):
        known = known or (family if mark in said else None)
    return known or _by_structure(shapes, names)


def _width(module: str, shapes: Mapping[str, tuple[int, ...]], *, square: bool = False) -> int | None:
    """How wide the input of an adapted Linear is; of a `square` one also where its tensors show the output alone."""

    def columns(*endings: str) -> int:
        found = (shapes.get(module + ending, ()) for ending in endings)
        return next((shape[1] for shape in found if len(shape) > 1), 0)

    width = columns(*(ending for ending in DOWNS if "lora" in ending), ".hada_w1_b", ".b2.weight", ".diff")
    width = width or columns(".lokr_w1", ".lokr_w1_b") * columns(".lokr_w2", ".lokr_w2_b")
    if not width and square:
        blocks, scale = shapes.get(f"{module}.oft_blocks", ()), shapes.get(f"{module}.weight", ())
        width = math.prod(blocks[-3:-1]) if len(blocks) > 2 else scale[0] if len(scale) == 1 else 0
    return width or None


def _by_structure(shapes: Mapping[str, tuple[int, ...]], names: set[str]) -> str:
    """SDXL has no attention in its first block and deeper transformers; SD2 projects with Linear, SD1 with conv."""
    if any("down_blocks_0_attentions_" in name or "down_blocks_3_" in name for name in names):
        # LoHa, LoKr and others flatten the kernel of a 1x1 conv too and show nothing
        plain = [ending for ending in DOWNS if "lora" in ending]
        ranks = {
            len(shape)
            for name, shape in shapes.items()
            if "proj_in" in name and "attentions" in name and name.endswith(tuple(plain))
        }
        return {2: "sd2", 4: "sd15"}.get(ranks.pop(), "unknown") if len(ranks) == 1 else "unknown"
    if any("transformer_blocks_1_" in name for name in names):
        return "sdxl"
    return "unknown"
