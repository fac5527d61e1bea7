"""Single-file checkpoints in the original (LDM) layout: .safetensors and .ckpt, read offline and frugally.

Modules are built without memory; then each tensor is read, cast and put in place by itself, so that at no time two
copies of a model are held. Every missing tensor and every wrong shape is found before the first byte of data is read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from schemas import ConfigError, Problem, error
from schemas.files.textfile import open_regular
from schemas.files.weights import (
    PICKLES,
    Header,
    family_of,
    read_header,
)
from trainer.families import architecture, ldm_keys
from trainer.families.architecture import Config
from trainer.families.ldm_keys import Names, Shape, Stored
from trainer.families.pickles import load_pickle

log = logging.getLogger(__name__)
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
SHOWN = 8  # faults listed one by one
UNET, VAE = "model.diffusion_model.", "first_stage_model."
Projection = Literal["transposed", "as_stored"]
PartName = Literal["unet", "vae", "text_encoder", "text_encoder_2"]


class Checkpoint(Protocol):
    """A file of tensors."""

    file: str
    shapes: Mapping[str, Shape]
    metadata: Mapping[str, str]

    def get(self, name: str, dtype: torch.dtype, device: torch.device, rows: tuple[int, int] | None = None) -> Tensor:
        """A tensor, or its rows [start, end), in `dtype` on `device`."""


class SafetensorsFile:
    """A .safetensors file. `mapped`: tensors that are used as stored stay on the disk until they are needed."""

    def __init__(self, path: Path, *, mapped: bool = True) -> None:
        self.header: Header = read_header(path)
        self.file = str(path)
        self.metadata: Mapping[str, str] = self.header.metadata
        self.shapes: Mapping[str, Shape] = {name: info.shape for name, info in self.header.tensors.items()}
        self._open = safe_open(path, framework="pt") if mapped else None

    def get(self, name: str, dtype: torch.dtype, device: torch.device, rows: tuple[int, int] | None = None) -> Tensor:
        stored = DTYPES.get(self.header.tensors[name].dtype)
        if stored is None:
            must = f"is stored as {self.header.tensors[name].dtype}, not as floating-point numbers"
            raise error("bad-tensor", must, file=self.file, key=name, fix="use the fp16 version of this model")
        # A mapped tensor that is then cast would count twice: its pages and the copy.
        if self._open is not None and (stored == dtype or device.type != "cpu"):
            found = self._open.get_slice(name)[slice(*rows)] if rows else self._open.get_tensor(name)
        else:
            found = self._read(name, stored, rows)
        return found.to(device).to(dtype)  # in this order: the cast is faster on the device

    def _read(self, name: str, stored: torch.dtype, rows: tuple[int, int] | None) -> Tensor:
        info = self.header.tensors[name]
        first, last = rows or (0, info.shape[0] if info.shape else 1)
        row = (info.end - info.start) // max(1, info.shape[0] if info.shape else 1)
        raw = torch.empty((last - first) * row, dtype=torch.uint8)
        place: Any = raw.numpy()
        with open_regular(self.file, what="weights file") as stream:
            stream.seek(info.start + first * row)
            stream.readinto(place)
        return raw.view(stored).reshape((last - first, *info.shape[1:]) if info.shape else ())


class PickledFile:
    """A .ckpt or .pt file; only plain tensors are unpickled, code no sooner than `trust` names the file."""

    def __init__(self, path: Path, trust: Sequence[str] = ()) -> None:
        self.file = str(path)
        self.metadata: Mapping[str, str] = {}
        document = load_pickle(path, trust, mapped=True)
        if not isinstance(document, dict):
            raise error("not-readable", "holds no table of tensors", file=self.file, fix="use another file")
        inner = document.get("state_dict", document)
        self.tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
        self.shapes: Mapping[str, Shape] = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def get(self, name: str, dtype: torch.dtype, device: torch.device, rows: tuple[int, int] | None = None) -> Tensor:
        return self.tensors[name][slice(*rows) if rows else ...].to(device).to(dtype)


def open_checkpoint(path: Path, *, mapped: bool = True, trust: Sequence[str] = ()) -> Checkpoint:
    """The file, by its ending; ConfigError when it cannot be read, or would run code and is not named in `trust`."""
    return PickledFile(path, trust) if path.suffix.lower() in PICKLES else SafetensorsFile(path, mapped=mapped)


@dataclass(frozen=True)
class Part:
    """How one module of a checkpoint is built, and under which names its parameters are stored."""

    name: PartName
    config: Config
    names: Names

    def build(self) -> nn.Module:
        """The module without weights (meta tensors); buffers are real."""
        with init_empty_weights():
            return build(self.name, self.config)


def build(name: PartName, config: Config) -> nn.Module:
    """A module of the base model, with torch's own initial weights."""
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    if name == "unet":
        unet: nn.Module = UNet2DConditionModel(**values)
        return unet
    if name == "vae":
        vae: nn.Module = AutoencoderKL(**values)
        return vae
    text = CLIPTextConfig(**values)
    return CLIPTextModelWithProjection(text) if name == "text_encoder_2" else CLIPTextModel(text)


def names_of(
    name: PartName, config: Config, family: str, *, level: str = "text_model.", vae: str = VAE,
    projection: Projection = "transposed",
) -> Names:  # fmt: skip
    """The table of LDM names that fits a module of this config."""
    if name == "unet":
        return ldm_keys.unet_names(
            config["layers_per_block"], ["CrossAttn" in kind for kind in config["up_block_types"]], UNET
        )
    if name == "vae":
        return ldm_keys.vae_names(len(config["block_out_channels"]), vae)
    if name == "text_encoder_2":
        return ldm_keys.open_clip_names(architecture.SDXL_OPEN_CLIP, projection)
    if family == "sd2":
        return ldm_keys.open_clip_names("cond_stage_model.model.")
    return ldm_keys.clip_names(CLIP[family], level)


CLIP = {"sd15": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}


def parts(
    checkpoint: Checkpoint, family: str, *, with_vae: bool = True, projection: Projection = "transposed"
) -> list[Part]:
    """The modules of a whole checkpoint. ConfigError when it is of another family, or not a base model to train on.

    `projection` is how SDXL's text_projection is read.
    """
    shapes, file = checkpoint.shapes, checkpoint.file
    found = family_of(shapes)
    if found not in (family, "unknown"):
        must = f"must be a {family} checkpoint"
        raise error("wrong-family", must, file=file, got=found, fix="choose a base model of the configured family")
    if any(name.endswith((".scale_weight", "scaled_fp8")) for name in shapes):
        raise error("scaled-fp8", "is stored as scaled fp8, which is for inference", file=file, fix="use the fp16 file")
    configs: dict[PartName, Config] = {"unet": architecture.unet_config(shapes, family, file)}
    if with_vae:
        configs["vae"] = architecture.vae_config(shapes, family, file)
    level = ""
    if family == "sd2":
        configs["text_encoder"] = architecture.open_clip_config(shapes, family, file, "cond_stage_model.model.")
    else:
        level = "text_model." if any(name.startswith(f"{CLIP[family]}text_model.") for name in shapes) else ""
        configs["text_encoder"] = architecture.clip_config(shapes, family, file, CLIP[family] + level)
    if family == "sdxl":
        configs["text_encoder_2"] = architecture.open_clip_config(shapes, family, file, architecture.SDXL_OPEN_CLIP)
    own = architecture.overrides(checkpoint.metadata, file)
    configs = {name: config | own.get(name, {}) for name, config in configs.items()}
    _refuse_other_inputs(configs, file)
    return [
        Part(name, config, names_of(name, config, family, level=level, projection=projection))
        for name, config in configs.items()
    ]


def _refuse_other_inputs(configs: Mapping[PartName, Config], file: str) -> None:
    channels = configs["unet"]["in_channels"]
    if channels != 4:
        must = f"has a U-Net of {channels} input channels (inpainting, depth or edit model); 4 are needed"
        raise error("wrong-input", must, file=file, fix="use the base model that makes pictures from text alone")


def vae_part(checkpoint: Checkpoint, family: str) -> Part:
    """The VAE of a whole checkpoint, of a VAE-only file, or of a file in diffusers' own layout."""
    shapes = checkpoint.shapes
    if any(name.startswith("encoder.down_blocks.") for name in shapes):
        levels = architecture.count(shapes, "encoder.down_blocks.")
        ldm = ldm_keys.vae_names(levels, "")
        shapes = {ldm(_modern(name)).name: shape for name, shape in shapes.items()}
        config = architecture.vae_config(shapes, family, checkpoint.file, "")
        old = "encoder.mid_block.attentions.0.query.weight" in checkpoint.shapes
        return Part("vae", config, lambda path: Stored(_dated(path) if old else path))
    prefix = VAE if any(name.startswith(VAE) for name in shapes) else ""
    config = architecture.vae_config(shapes, family, checkpoint.file, prefix)
    if config["latent_channels"] != 4:
        must = f"is a VAE of {config['latent_channels']} latent channels; 4 are needed"
        raise error("wrong-vae", must, file=checkpoint.file, fix="use a VAE of Stable Diffusion 1.x, 2.x or XL")
    return Part("vae", config, names_of("vae", config, family, vae=prefix))


OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # diffusers before 0.18


def _modern(name: str) -> str:
    for old, new in OLD_ATTENTION.items():
        name = name.replace(f"attentions.0.{old}.", f"attentions.0.{new}.")
    return name


def _dated(name: str) -> str:
    for old, new in OLD_ATTENTION.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return name


def check(checkpoint: Checkpoint, parts: Sequence[Part]) -> None:
    """ConfigError with every missing tensor and every wrong shape of all parts; reads no data."""
    wanted = {part.name: _wanted(part.build(), part.names) for part in parts}
    _compare(checkpoint, [place for places in wanted.values() for place in places.values()])
    used = {stored.name for stored, _ in wanted.get("unet", {}).values()}
    unused = [name for name in checkpoint.shapes if name.startswith(UNET) and name not in used]
    if unused and used:
        log.warning("%s: %d tensors of the U-Net are not used, such as %s", checkpoint.file, len(unused), unused[0])


def load(checkpoint: Checkpoint, part: Part, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> nn.Module:
    """The module with its weights in `dtype` on `device`, frozen, in eval mode. ConfigError as in `check`."""
    module = part.build()
    wanted = _wanted(module, part.names)
    _compare(checkpoint, list(wanted.values()))
    place = torch.device(device)
    state = {path: _placed(checkpoint, stored, shape, dtype, place) for path, (stored, shape) in wanted.items()}
    module.load_state_dict(state, assign=True)
    return module.to(device).requires_grad_(False).eval()


def _wanted(module: nn.Module, names: Names) -> dict[str, tuple[Stored, Shape]]:
    return {path: (names(path), tuple(tensor.shape)) for path, tensor in module.state_dict().items()}


def _bare(shape: Shape) -> Shape:
    """Shape without trailing 1s: a 1x1 convolution and a linear layer hold the same numbers."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _compare(checkpoint: Checkpoint, wanted: Sequence[tuple[Stored, Shape]]) -> None:
    problems: dict[str, Problem] = {}
    for stored, shape in wanted:
        expected, found = stored.shape(shape), checkpoint.shapes.get(stored.name)
        if found is not None and _bare(found) == _bare(expected):
            continue
        problems[stored.name] = Problem(
            code="missing-tensor" if found is None else "wrong-shape",
            must=f"must have shape {list(expected)}" if found else "is missing in the checkpoint",
            got=list(found) if found else None,
            key=stored.name,
            file=checkpoint.file,
            fix="use a complete base model; pruned and distilled variants are not supported",
        )
    if len(problems) > SHOWN:
        rest = f"and {len(problems) - SHOWN} further tensors do not fit"
        more = Problem(code="wrong-checkpoint", must=rest, file=checkpoint.file)
        raise ConfigError([*list(problems.values())[:SHOWN], more])
    if problems:
        raise ConfigError(problems.values())


def _placed(checkpoint: Checkpoint, stored: Stored, shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    if stored.form == "third":
        return checkpoint.get(stored.name, dtype, device, (stored.third * shape[0], (stored.third + 1) * shape[0]))
    tensor = checkpoint.get(stored.name, dtype, device)
    return tensor.T.contiguous() if stored.form == "transposed" else tensor.reshape(shape)


def export(modules: Mapping[PartName, nn.Module], family: str) -> dict[str, Tensor]:
    """The state of loaded modules in the LDM layout, ready to be saved as a single file. Not for SD2: the last layer of
    its text encoder is not kept.
    """
    found: dict[str, Tensor] = {}
    for name, module in modules.items():
        config: Config = dict(cast(Any, module).config) if name in ("unet", "vae") else {}
        found |= ldm_keys.to_ldm(module.state_dict(), names_of(name, config, family))
    return found
