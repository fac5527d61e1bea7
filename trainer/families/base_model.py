"""Finding and loading the base model: a single file, a diffusers folder, or a hub id that is already on this disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from schemas import TrainConfig, error
from schemas.files.weights import PICKLES, checkpoint_family
from trainer.families import Models, single_file
from trainer.families.tokenizer import clip_tokenizer
from trainer.output.lora_file import sound

CLASSES: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}


@dataclass(frozen=True)
class Wish:
    """How modules shall be loaded. `mapped`: .safetensors are mapped into memory instead of read whole."""

    family: str
    dtype: torch.dtype
    vae_dtype: torch.dtype
    device: torch.device | str = "cpu"
    mapped: bool = True
    trust: tuple[str, ...] = ()  # pickled files that may hold more than tensors
    projection: single_file.Projection = "transposed"  # how a single file's text_projection is read

    def dtype_of(self, part: str) -> torch.dtype:
        return self.vae_dtype if part == "vae" else self.dtype


def locate(place: str | None, key: str) -> Path:
    """File or folder that an option means, links resolved; ConfigError `no-file` when it is not on this disk."""
    if not place:
        raise error("no-file", "must name a model", key=key, fix="give a .safetensors file or a diffusers folder")
    path = Path(place).expanduser()
    if path.exists():
        return path.resolve()
    looks_like_path = path.suffix in (".safetensors", *PICKLES) or place.count("/") != 1
    if looks_like_path or path.is_absolute() or place[0] in ".~":
        raise error("no-file", "does not exist", key=key, got=place, fix="check the path")
    try:
        return Path(snapshot_download(place, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        must = "is neither a file nor a folder, and no model of that name is in the local hub cache"
        raise error("no-file", must, key=key, got=place, fix="download the model and give its file") from None


def load(family: str, config: TrainConfig, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Models:
    """All modules of the base model, frozen, in eval mode; the VAE in float32 with `no_half_vae`, else in `dtype`."""
    place = locate(config.pretrained_model_name_or_path, "pretrained_model_name_or_path")
    vae_dtype = torch.float32 if config.no_half_vae else dtype
    wish = Wish(family, dtype, vae_dtype, device, not config.disable_mmap_load_safetensors, config.trust,
                config.sdxl_text_projection)  # fmt: skip
    read = _folder_modules if place.is_dir() else _file_modules
    modules = read(place, wish, with_vae=not config.vae)
    if config.vae:
        modules["vae"] = load_vae(config.vae, wish)
    encoders = tuple(modules[name] for name in ("text_encoder", "text_encoder_2") if name in modules)
    models = Models(family, modules["unet"], modules["vae"], encoders, tuple(clip_tokenizer() for _ in encoders))
    check_numbers(models, str(config.pretrained_model_name_or_path), config.vae)
    return models


def check_numbers(models: Models, model: str, vae: str | None) -> None:
    """ConfigError where a part of the base model holds NaN or Inf; one pass over the weights, a second for 10 GB."""
    parts = {"unet": models.unet, "vae": models.vae}
    parts |= {f"text_encoder{number or ''}": encoder for number, encoder in enumerate(models.text_encoders)}
    for part, network in parts.items():
        broken = [name for name, weight in network.named_parameters() if not sound(weight)]
        if broken:
            own = part == "vae" and vae
            raise error(
                "not-finite",
                f"holds NaN or Inf in {len(broken)} tensors of its {part}, such as {broken[0]}",
                key="vae" if own else "pretrained_model_name_or_path",
                got=vae if own else model,
                fix="download it again, or use another file; fp16 files of some VAEs are broken, their fp32 files not",
            )


def load_vae(place: str, wish: Wish) -> nn.Module:
    """A VAE from a folder (itself, or its `vae` folder), a VAE file, or the VAE of a whole checkpoint."""
    path = locate(place, "vae")
    if path.is_dir():
        return _from_folder("vae", path / "vae" if (path / "vae" / "config.json").is_file() else path, wish)
    checkpoint = single_file.open_checkpoint(path, mapped=wish.mapped, trust=wish.trust)
    part = single_file.vae_part(checkpoint, wish.family)
    return single_file.load(checkpoint, part, dtype=wish.vae_dtype, device=wish.device)


def _file_modules(file: Path, wish: Wish, *, with_vae: bool) -> dict[str, nn.Module]:
    checkpoint = single_file.open_checkpoint(file, mapped=wish.mapped, trust=wish.trust)
    parts = single_file.parts(checkpoint, wish.family, with_vae=with_vae, projection=wish.projection)
    single_file.check(checkpoint, parts)
    return {
        part.name: single_file.load(checkpoint, part, dtype=wish.dtype_of(part.name), device=wish.device)
        for part in parts
    }


def _folder_modules(folder: Path, wish: Wish, *, with_vae: bool) -> dict[str, nn.Module]:
    found = checkpoint_family(folder)
    if found != wish.family:
        fix = "choose a base model of the configured family"
        raise error("wrong-family", f"must be a {wish.family} model", file=str(folder), got=found, fix=fix)
    names = ["unet", "text_encoder"]
    names += ["text_encoder_2"] if wish.family == "sdxl" else []
    names += ["vae"] if with_vae else []
    return {name: _from_folder(name, folder / name, wish) for name in names}


def _from_folder(name: str, folder: Path, wish: Wish) -> nn.Module:
    dtype = wish.dtype_of(name)
    try:
        module = CLASSES[name].from_pretrained(
            folder, local_files_only=True, torch_dtype=dtype, variant=_variant(folder, dtype)
        )
    except (OSError, ValueError, RuntimeError) as fault:
        must = f"holds no {name} that can be loaded: {str(fault).splitlines()[0]}"
        raise error("bad-model-folder", must, file=str(folder), fix="download the folder again, whole") from None
    loaded: nn.Module = module.to(wish.device).requires_grad_(False).eval()
    return loaded


def _variant(folder: Path, dtype: torch.dtype) -> str | None:
    """fp16 when half precision is wanted and there, or when there is nothing else."""
    files = [path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin")]
    halves = [path for path in files if ".fp16" in path.name]
    return "fp16" if halves and (dtype == torch.float16 or len(halves) == len(files)) else None
