"""The layers of a base model that adapters may change: from its files' headers, or the family's usual sizes."""

from __future__ import annotations

import functools
from pathlib import Path

from schemas.families import FAMILIES
from schemas.files.lora_names import Module
from schemas.files.weights import read_header
from schemas.problems import ConfigError
from schemas.unet import Layer, Shape

FOLDERS = {"unet": "unet.", "text_encoder": "text_encoder.", "text_encoder_2": "text_encoder_2."}


def layers_of(family: str, model: str | None = None) -> tuple[Layer, ...]:
    """Every layer and norm that adapters know, of the checkpoint or folder `model` where its headers can be read."""
    shapes: dict[str, Shape] = {}
    try:
        shapes = _shapes(Path(model)) if model else {}
    except (ConfigError, OSError):
        shapes = {}
    folder = bool(model) and Path(str(model)).is_dir()
    found = tuple(FAMILIES[family].network.layers(shapes, folder=folder))
    return found if any(layer.place == "transformer" for layer in found) else usual(family)


@functools.cache
def usual(family: str) -> tuple[Layer, ...]:
    """The layers of the family's full-size model."""
    return tuple(FAMILIES[family].network.usual())


def _shapes(place: Path) -> dict[str, Shape]:
    if place.is_dir():
        files = [(start, file) for folder, start in FOLDERS.items() for file in of_one_precision(place / folder)]
        return {start + name: info.shape for start, file in files for name, info in read_header(file).tensors.items()}
    if place.suffix.lower() != ".safetensors":
        return {}
    return {name: info.shape for name, info in read_header(place).tensors.items()}


def of_one_precision(folder: Path) -> list[Path]:
    """The weights of a part of a diffusers folder, which may lie there in two precisions."""
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if ".fp16." not in file.name] or files


def known_modules(layers: tuple[Layer, ...]) -> set[Module]:
    """The names, in one spelling, that files of adapters for such a model use."""
    return {Module(layer.part, layer.path) for layer in layers}
