"""The layers of a U-Net and its text encoders that adapters may change: from a header's shapes, or the full size.

A family whose network is another kind brings an object of its own with the same two methods, see `Network`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from schemas.files.lora_names import module

Shape = tuple[int, ...]
TEXT = re.compile(r"encoder_layers_(\d+)_(self_attn_(q|k|v|out)_proj|mlp_fc[12])")
RESNET = re.compile(r"_(in_layers_2|emb_layers_1|out_layers_3|skip_connection|in_layers_0|out_layers_0)$")
SAMPLER = re.compile(r"_op$|output_blocks_\d+_conv$")
ENDS = ("input_blocks_0_0", "out_2", "time_embed_0", "time_embed_2")
SIDE = re.compile(r"(input|middle|output)_blocks?_(\d+)_")
TIME = 1280  # features of the time embedding
ROOTS = ("model.diffusion_model.", "cond_stage_model.", "conditioner.", "unet.", "text_encoder.", "text_encoder_2.")


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


class Network(Protocol):
    """What is asked of a family's network: the layers and norms that adapters know."""

    def layers(self, shapes: Mapping[str, Shape], *, folder: bool) -> Iterator[Layer]:
        """Those of a checkpoint by the shapes of its tensors. `folder`: of diffusers, names begin with the folder's."""

    def usual(self) -> Iterator[Layer]:
        """Those of the full size."""


@dataclass(frozen=True)
class TextStack:
    """A text encoder in a single file: the beginning of its layers' names, how many there are, and their width."""

    prefix: str
    layers: int
    width: int


@dataclass(frozen=True)
class UNet:
    """A Stable Diffusion network at full size.

    `widths` and `depths` (transformers of one attention) by level, `middle` the depth of the middle block, `context`
    the width of the text it reads, `linear` whether proj_in and proj_out are Linear. `starts`: the block numbers at
    which the three sides begin; where `whole_middle`, the middle is one block. `unused`: text layers of a single file
    that the family does without.
    """

    context: int
    text: tuple[TextStack, ...]
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    depths: tuple[int, ...] = (1, 1, 1, 0)
    middle: int = 1
    linear: bool = True
    parts: tuple[str, ...] = ("te",)
    starts: tuple[int, int, int] = (0, 12, 13)
    whole_middle: bool = True
    unused: int = 0
    channels: int = 4

    def layers(self, shapes: Mapping[str, Shape], *, folder: bool) -> Iterator[Layer]:
        """See `Network`: U-Net first, then the text encoders."""
        biases = {name.removesuffix(".bias") for name in shapes if name.endswith(".bias")}
        fused = {name.removesuffix("_bias") for name in shapes if name.endswith(".in_proj_bias")}
        biases |= {name for start in fused for name, _ in _thirds(f"{start}_weight", ())}
        text_layers: dict[str, int] = {}
        text: list[Layer] = []
        for name, shape in _weights(shapes):
            if not name.startswith(ROOTS):
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
                yield Layer("unet", meant.path, place, shape, self.block(meant.path), name in biases)
        unused = 0 if folder else self.unused
        for layer in text:
            number = int(TEXT.fullmatch(layer.path)[1])  # type: ignore[index]
            part = layer.part if layer.part in self.parts else self.parts[0]
            if number <= text_layers[layer.part] - unused:
                yield Layer(part, layer.path, "text", layer.shape, None, layer.biased)

    def block(self, path: str) -> int | None:
        """The index of the per-block options (section 7.5) of a flat LDM path; None beside the blocks."""
        hit = SIDE.match(path)
        if not hit:
            return None
        start = self.starts[("input", "middle", "output").index(hit[1])]
        return start if hit[1] == "middle" and self.whole_middle else start + int(hit[2])

    @property
    def weighted(self) -> tuple[int, int, int]:
        """How many blocks of each side (down, middle, up) have a factor on their rate."""
        side = 3 * len(self.widths)
        return side, 1 if self.whole_middle else 3, side

    @property
    def blocks(self) -> int:
        """Entries of a block list: those with a factor, and beside SDXL's two ends that nothing adapts."""
        return sum(self.weighted) + 2 * self.starts[0]

    def adapted(self, *, conv: bool) -> frozenset[int]:
        """The blocks that networks.lora adapts: those with attention, with `conv` all but the first."""
        down, middle, up = self.starts
        if conv:
            return frozenset(range(down + 1, up + 3 * len(self.widths)))
        deep = [level for level, depth in enumerate(self.depths) if depth]
        found = {down + 3 * level + number for level in deep for number in (1, 2)}
        found |= {up + 3 * (len(self.depths) - 1 - level) + number for level in deep for number in range(3)}
        return frozenset(found | {middle if self.whole_middle else middle + 1})

    def usual(self) -> Iterator[Layer]:
        """See `Network`."""
        return self.layers(dict(self._full_size()), folder=False)

    def _full_size(self) -> Iterator[tuple[str, Shape]]:
        for name, shape in self._unet():
            yield f"model.diffusion_model.{name}.weight", shape
            if not name.endswith((".to_q", ".to_k", ".to_v")):
                yield f"model.diffusion_model.{name}.bias", shape[:1]
        for stack in self.text:
            for number in range(stack.layers):
                for name, shape in _text(f"{stack.prefix}.{number}", stack.width, clip="resblocks" not in stack.prefix):
                    yield name, shape
                    yield name.replace("weight", "bias"), shape[:1]

    def _unet(self) -> Iterator[tuple[str, Shape]]:
        first, last = self.widths[0], self.widths[-1]
        yield from (("time_embed.0", (TIME, first)), ("time_embed.2", (TIME, TIME)))
        yield from (("input_blocks.0.0", (first, self.channels, 3, 3)), ("out.2", (self.channels, first, 3, 3)))
        number, before, kept = 0, first, [first]
        levels = list(enumerate(zip(self.widths, self.depths, strict=True)))
        for level, (width, depth) in levels:
            for _ in range(2):
                number += 1
                yield from _resnet(f"input_blocks.{number}.0", before, width)
                yield from self._attention(f"input_blocks.{number}.1", width, depth)
                before = width
                kept.append(width)
            if level < len(levels) - 1:
                number += 1
                yield f"input_blocks.{number}.0.op", (width, width, 3, 3)
                kept.append(width)
        yield from _resnet("middle_block.0", last, last)
        yield from self._attention("middle_block.1", last, self.middle)
        yield from _resnet("middle_block.2", last, last)
        number = -1
        for level, (width, depth) in reversed(levels):
            for place in range(3):
                number += 1
                yield from _resnet(f"output_blocks.{number}.0", before + kept.pop(), width)
                yield from self._attention(f"output_blocks.{number}.1", width, depth)
                before = width
                if place == 2 and level:
                    yield f"output_blocks.{number}.{2 if depth else 1}.conv", (width, width, 3, 3)

    def _attention(self, start: str, width: int, depth: int) -> Iterator[tuple[str, Shape]]:
        if not depth:
            return
        ends = (width, width) if self.linear else (width, width, 1, 1)
        yield f"{start}.norm", (width,)
        yield f"{start}.proj_in", ends
        for number in range(depth):
            block = f"{start}.transformer_blocks.{number}"
            for name, reads in (("attn1", width), ("attn2", self.context)):
                yield from ((f"{block}.{name}.to_q", (width, width)), (f"{block}.{name}.to_k", (width, reads)))
                yield from ((f"{block}.{name}.to_v", (width, reads)), (f"{block}.{name}.to_out.0", (width, width)))
            yield f"{block}.ff.net.0.proj", (8 * width, width)
            yield f"{block}.ff.net.2", (width, 4 * width)
            for norm in ("norm1", "norm2", "norm3"):
                yield f"{block}.{norm}", (width,)
        yield f"{start}.proj_out", ends


def _weights(shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Shape]]:
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


def _resnet(start: str, before: int, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{start}.in_layers.0", (before,)
    yield f"{start}.in_layers.2", (width, before, 3, 3)
    yield f"{start}.emb_layers.1", (width, TIME)
    yield f"{start}.out_layers.0", (width,)
    yield f"{start}.out_layers.3", (width, width, 3, 3)
    if before != width:
        yield f"{start}.skip_connection", (width, before, 1, 1)
