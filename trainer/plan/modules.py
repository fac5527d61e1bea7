"""The layers of a base model that adapters may change: from its files' headers, or the family's usual sizes."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from schemas.files.lora_names import Module, module
from schemas.files.weights import read_header
from schemas.problems import ConfigError

Shape = tuple[int, ...]
TEXT = re.compile(r"encoder_layers_(\d+)_(self_attn_(q|k|v|out)_proj|mlp_fc[12])")
RESNET = re.compile(r"_(in_layers_2|emb_layers_1|out_layers_3|skip_connection|in_layers_0|out_layers_0)$")
SAMPLER = re.compile(r"_op$|output_blocks_\d+_conv$")
ENDS = ("input_blocks_0_0", "out_2", "time_embed_0", "time_embed_2")
SIDE = re.compile(r"(input|middle|output)_blocks?_(\d+)_")
FOLDERS = {"unet": "unet.", "text_encoder": "text_encoder.", "text_encoder_2": "text_encoder_2."}
STARTS = {"sdxl": (1, 10, 13)}  # block numbers begin here; SD counts its whole middle as one
SD_STARTS = (0, 12, 13)


@dataclass(frozen=True)
class Layer:
    """One layer: where it stands, the shape of its weight [out, in(, k, k)], its block (section 7.5; None for text)."""

    part: str
    path: str
    place: str  # text, transformer, resnet, sampler, end; norm
    shape: Shape
    block: int | None
    biased: bool = False

    @property
    def spatial(self) -> bool:
        return len(self.shape) == 4 and self.shape[2:] != (1, 1)


def layers_of(family: str, model: str | None = None) -> tuple[Layer, ...]:
    """Every layer and norm that adapters know, of the checkpoint or folder `model` where its headers can be read."""
    shapes: dict[str, Shape] = {}
    try:
        shapes = _shapes(Path(model)) if model else {}
    except (ConfigError, OSError):
        shapes = {}
    found = tuple(_layers(shapes, family, folder=bool(model) and Path(str(model)).is_dir()))
    return found if any(layer.place == "transformer" for layer in found) else usual(family)


@functools.cache
def usual(family: str) -> tuple[Layer, ...]:
    """The layers of the family's full-size model."""
    return tuple(_layers(dict(_full_size(family)), family, folder=False))


def _shapes(place: Path) -> dict[str, Shape]:
    if place.is_dir():
        files = [(start, file) for folder, start in FOLDERS.items() for file in _of_one_precision(place / folder)]
        return {start + name: info.shape for start, file in files for name, info in read_header(file).tensors.items()}
    if place.suffix.lower() != ".safetensors":
        return {}
    return {name: info.shape for name, info in read_header(place).tensors.items()}


def _of_one_precision(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if ".fp16." not in file.name] or files


def _layers(shapes: dict[str, Shape], family: str, *, folder: bool) -> Iterator[Layer]:
    biases = {name.removesuffix(".bias") for name in shapes if name.endswith(".bias")}
    fused = {name.removesuffix("_bias") for name in shapes if name.endswith(".in_proj_bias")}
    biases |= {name for start in fused for name, _ in _thirds(f"{start}_weight", ())}
    text_layers: dict[str, int] = {}
    text: list[Layer] = []
    for name, shape in _weights(shapes):
        if not name.startswith(("model.diffusion_model.", "cond_stage_model.", "conditioner.", *FOLDERS.values())):
            continue
        meant = module(name)
        if meant.part != "unet":
            hit = TEXT.fullmatch(meant.path)
            if hit and len(shape) == 2:
                text.append(Layer(meant.part, meant.path, "text", shape, None, name in biases))
                text_layers[meant.part] = max(text_layers.get(meant.part, 0), int(hit[1]))
            continue
        place = _place(meant.path, shape)
        if place:
            yield Layer("unet", meant.path, place, shape, _block(meant.path, family), name in biases)
    for layer in text:
        last = int(TEXT.fullmatch(layer.path)[1])  # type: ignore[index]
        unused = family == "sd2" and not folder and last == text_layers[layer.part]
        part = layer.part if family == "sdxl" and layer.part != "te" else "te1" if family == "sdxl" else "te"
        if not unused:  # SD2 does without the last layer of its file
            yield Layer(part, layer.path, "text", layer.shape, None, layer.biased)


def _weights(shapes: dict[str, Shape]) -> Iterator[tuple[str, Shape]]:
    """(name of the layer, shape) of every weight; OpenCLIP keeps three projections in one."""
    for name, shape in shapes.items():
        if name.endswith(".attn.in_proj_weight"):
            yield from _thirds(name, (shape[0] // 3, *shape[1:]))
        elif name.endswith(".weight"):
            yield name.removesuffix(".weight"), shape


def _thirds(name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    """The three projections that OpenCLIP keeps in one weight."""
    start = name.removesuffix("attn.in_proj_weight").replace("transformer.resblocks", "encoder.layers")
    return ((f"{start}self_attn.{letter}_proj", shape) for letter in "qkv")


def _place(path: str, shape: Shape) -> str | None:
    if path in ENDS:
        return "end"
    if not SIDE.match(f"{path}_"):
        return None
    if len(shape) == 1:
        return "norm"
    if RESNET.search(path):
        return "resnet"
    return "sampler" if SAMPLER.search(path) else "transformer"


def _block(path: str, family: str) -> int | None:
    hit = SIDE.match(path)
    if not hit:
        return None
    starts = STARTS.get(family, SD_STARTS)
    start = starts[("input", "middle", "output").index(hit[1])]
    return start if hit[1] == "middle" and starts == SD_STARTS else start + int(hit[2])


# ------------------------------------------------------------------------------------------------ the usual full sizes

WIDTHS = {"sdxl": (320, 640, 1280)}
SD_WIDTHS = (320, 640, 1280, 1280)
DEPTHS = {"sdxl": (0, 2, 10)}  # transformers of one attention, by level
SD_DEPTHS = (1, 1, 1, 0)
CONTEXT = {"sd15": 768, "sd2": 1024, "sdxl": 2048}
TIME = 1280
TEXTS = {  # prefix of the file, layers, width
    "sd15": (("cond_stage_model.transformer.text_model.encoder.layers", 12, 768),),
    "sd2": (("cond_stage_model.model.transformer.resblocks", 24, 1024),),
    "sdxl": (("conditioner.embedders.0.transformer.text_model.encoder.layers", 12, 768),
             ("conditioner.embedders.1.model.transformer.resblocks", 32, 1280)),
}  # fmt: skip


def _full_size(family: str) -> Iterator[tuple[str, Shape]]:
    for name, shape in _unet(family):
        yield f"model.diffusion_model.{name}.weight", shape
        if not name.endswith((".to_q", ".to_k", ".to_v")):
            yield f"model.diffusion_model.{name}.bias", shape[:1]
    for prefix, layers, width in TEXTS[family]:
        for number in range(layers):
            for name, shape in _text(f"{prefix}.{number}", width, clip="resblocks" not in prefix):
                yield name, shape
                yield name.replace("weight", "bias"), shape[:1]


def _text(start: str, width: int, *, clip: bool) -> Iterator[tuple[str, Shape]]:
    if clip:
        for letter in ("q", "k", "v", "out"):
            yield f"{start}.self_attn.{letter}_proj.weight", (width, width)
    else:
        yield f"{start}.attn.in_proj_weight", (3 * width, width)
        yield f"{start}.attn.out_proj.weight", (width, width)
    first, second = ("mlp.fc1", "mlp.fc2") if clip else ("mlp.c_fc", "mlp.c_proj")
    yield f"{start}.{first}.weight", (4 * width, width)
    yield f"{start}.{second}.weight", (width, 4 * width)


def _unet(family: str) -> Iterator[tuple[str, Shape]]:
    widths, depths = WIDTHS.get(family, SD_WIDTHS), DEPTHS.get(family, SD_DEPTHS)
    first, last = widths[0], widths[-1]
    yield from (("time_embed.0", (TIME, first)), ("time_embed.2", (TIME, TIME)))
    yield from (("input_blocks.0.0", (first, 4, 3, 3)), ("out.2", (4, first, 3, 3)))
    number, before, kept = 0, first, [first]
    for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for _ in range(2):
            number += 1
            yield from _resnet(f"input_blocks.{number}.0", before, width)
            yield from _attention(f"input_blocks.{number}.1", width, depth, family)
            before = width
            kept.append(width)
        if level < len(widths) - 1:
            number += 1
            yield f"input_blocks.{number}.0.op", (width, width, 3, 3)
            kept.append(width)
    yield from _resnet("middle_block.0", last, last)
    yield from _attention("middle_block.1", last, max(depths[-1], 1) if family != "sdxl" else 10, family)
    yield from _resnet("middle_block.2", last, last)
    number = -1
    for level, (width, depth) in reversed(list(enumerate(zip(widths, depths, strict=True)))):
        for place in range(3):
            number += 1
            yield from _resnet(f"output_blocks.{number}.0", before + kept.pop(), width)
            yield from _attention(f"output_blocks.{number}.1", width, depth, family)
            before = width
            if place == 2 and level:
                yield f"output_blocks.{number}.{2 if depth else 1}.conv", (width, width, 3, 3)


def _resnet(start: str, before: int, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{start}.in_layers.0", (before,)
    yield f"{start}.in_layers.2", (width, before, 3, 3)
    yield f"{start}.emb_layers.1", (width, TIME)
    yield f"{start}.out_layers.0", (width,)
    yield f"{start}.out_layers.3", (width, width, 3, 3)
    if before != width:
        yield f"{start}.skip_connection", (width, before, 1, 1)


def _attention(start: str, width: int, depth: int, family: str) -> Iterator[tuple[str, Shape]]:
    if not depth:
        return
    ends = (width, width, 1, 1) if family == "sd15" else (width, width)
    context = CONTEXT[family]
    yield f"{start}.norm", (width,)
    yield f"{start}.proj_in", ends
    for number in range(depth):
        block = f"{start}.transformer_blocks.{number}"
        for name, reads in (("attn1", width), ("attn2", context)):
            yield from ((f"{block}.{name}.to_q", (width, width)), (f"{block}.{name}.to_k", (width, reads)))
            yield from ((f"{block}.{name}.to_v", (width, reads)), (f"{block}.{name}.to_out.0", (width, width)))
        yield f"{block}.ff.net.0.proj", (8 * width, width)
        yield f"{block}.ff.net.2", (width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            yield f"{block}.{norm}", (width,)
    yield f"{start}.proj_out", ends


def known_modules(layers: tuple[Layer, ...]) -> set[Module]:
    """The names, in one spelling, that files of adapters for such a model use."""
    return {Module(layer.part, layer.path) for layer in layers}
