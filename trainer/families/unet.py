"""What SD1.5, SD2 and SDXL share: loading, windows of text, the list of modules that adapters may change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from schemas import TrainConfig
from schemas.families import FAMILIES, FamilyFacts
from schemas.unet import UNet
from trainer.families import Conditioning, Models, NoiseProcess, Sizes, Target, base_model
from trainer.families.ddpm import DDPM
from trainer.families.ldm_keys import bare_text_path, unet_name
from trainer.families.tokenizer import END, WINDOW, weighted_windows, windows

Part = Literal["te", "te1", "te2", "unet"]
Kind = Literal["linear", "conv1x1", "conv3x3"]
Place = Literal["text", "transformer", "resnet", "sampler"]
PLACES: dict[str, Place] = {
    "attentions": "transformer",
    "resnets": "resnet",
    "downsamplers": "sampler",
    "upsamplers": "sampler",
}
TEXT_LAYER = re.compile(r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])")


class LatentDiffusion:
    """A family whose U-Net reads text by cross-attention. Subclasses say what is their own."""

    name: str

    @property
    def facts(self) -> FamilyFacts:
        return FAMILIES[self.name]

    def noise_process(self, config: TrainConfig, device: torch.device | str = "cpu") -> NoiseProcess:
        return DDPM(config, device)

    def load(self, config: TrainConfig, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Models:
        """The base model of `config`, offline, frozen; U-Net and text encoders in `dtype`. ConfigError when unfit."""
        return base_model.load(self.name, config, dtype=dtype, device=device)

    def encode(self, models: Models, captions: Sequence[str], config: TrainConfig) -> Conditioning:
        """Captions as the U-Net reads them: hidden [B,75n+2,D]. Gradients flow where the encoder's parameters ask."""
        raise NotImplementedError

    def predict(
        self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, sizes: Sizes | None
    ) -> Tensor:
        """The U-Net's output [B,4,h,w] for noisy latents [B,4,h,w] at timesteps [B]."""
        predicted: Tensor = unet(noisy, timesteps, conditioning.hidden, return_dict=False)[0]
        return predicted

    def targets(self, models: Models) -> list[Target]:
        """Every module that kohya's networks can adapt, text encoders first (reference section 7.3)."""
        found: list[Target] = []
        for part, encoder in zip(self.facts.text_parts, models.text_encoders, strict=True):
            found += text_targets(part, encoder)
        return found + list(self._unet_targets(models.unet))

    def _unet_targets(self, unet: nn.Module) -> Iterator[Target]:
        config: Any = unet.config
        network = cast(UNet, self.facts.network)
        layers, attention_up = config.layers_per_block, ["CrossAttn" in kind for kind in config.up_block_types]
        for path, module in unet.named_modules():
            kind, place = kind_of(module), place_of(path)
            if kind is None or place is None:
                continue
            original = unet_name(path, layers=layers, attention_up=attention_up)
            name = original if self.facts.original_paths else path
            block = network.block(original.replace(".", "_"))
            yield Target("unet", path, "lora_unet_" + name.replace(".", "_"), kind, place, block)

    def encode_prompts(self, models: Models, prompts: Sequence[str], config: TrainConfig) -> Conditioning:
        """In the shortest form that holds all of them, with (emphasis:1.2) understood."""
        counts = (len(models.tokenizers[0](text, truncation=False, verbose=False)["input_ids"]) for text in prompts)
        longest = max(counts) - 2
        length: Literal[150, 225] | None = None if longest <= 75 else 150 if longest <= 150 else 225
        asked = replace(config, max_token_length=length, weighted_captions=True)
        words = self.encode(models, prompts, asked)
        _, weights = token_rows(prompts, asked)
        assert weights is not None
        spread = joined(weights.flatten(0, 1).unsqueeze(-1), len(prompts)).to(words.hidden)
        widths = [int(encoder.config.hidden_size) for encoder in models.text_encoders]  # type: ignore[union-attr,arg-type]
        parts = [renormalised(part, spread) for part in words.hidden.split(widths, dim=-1)]
        return Conditioning(torch.cat(parts, dim=-1), words.pooled)

    def text_settings(self, config: TrainConfig) -> dict[str, Any]:
        return {name: getattr(config, name) for name in ("max_token_length", "weighted_captions")}

    def to_arrays(self, states: Conditioning) -> dict[str, Tensor]:
        return {"hidden_state1": states.hidden}

    def from_arrays(self, arrays: Mapping[str, Tensor]) -> Conditioning:
        return Conditioning(arrays["hidden_state1"])

    def to_latents(self, vae: nn.Module, pixels: Tensor, draws: Any = None) -> Tensor:
        """Float32 [B,4,H/8,W/8], sampled from the posterior."""
        posterior = cast(Any, vae).encode(pixels).latent_dist
        latents: Tensor = posterior.sample(draws).float()
        return latents

    def to_pixels(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """In 32 bit where the VAE overflows in half precision."""
        dtype, network = next(vae.parameters()).dtype, cast(Any, vae)
        with torch.autocast(latents.device.type, enabled=False):
            pixels: Tensor = network.decode(latents.to(dtype)).sample
            if dtype != torch.float32 and not pixels.isfinite().all():
                pixels = network.float().decode(latents.float()).sample
                vae.to(dtype)
        return pixels.float()

    def metadata(self, config: TrainConfig) -> dict[str, str]:
        """What a LoRA's header says of its base (reference sections 1.4 and 12.3)."""
        raise NotImplementedError


def kind_of(module: nn.Module) -> Kind | None:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv2d):
        return "conv1x1" if module.kernel_size == (1, 1) else "conv3x3"
    return None


def place_of(path: str) -> Place | None:
    """The first of attentions, resnets, samplers on a U-Net path; None at its ends, which nothing adapts."""
    return next((PLACES[level] for level in path.split(".") if level in PLACES), None)


def text_targets(part: Part, encoder: nn.Module) -> list[Target]:
    """Attention and MLP projections. `text_model` stands in the keys whether or not the class has that level."""
    found = []
    for path, module in encoder.named_modules():
        bare = bare_text_path(path)
        if isinstance(module, nn.Linear) and TEXT_LAYER.fullmatch(bare):
            key = f"lora_{part}_text_model_{bare}".replace(".", "_")
            found.append(Target(part, path, key, "linear", "text", None))
    return found


def token_rows(captions: Sequence[str], config: TrainConfig, pad: int = END) -> tuple[Tensor, Tensor | None]:
    """(ids [B,n,77], weights [B,n,77] or None unless `weighted_captions`)."""
    if not config.weighted_captions:
        return torch.tensor([windows(caption, config.max_token_length, pad) for caption in captions]), None
    found = [weighted_windows(caption, config.max_token_length, pad) for caption in captions]
    return torch.tensor([ids for ids, _ in found]), torch.tensor([weights for _, weights in found])


def joined(hidden: Tensor, batch: int) -> Tensor:
    """Windows [B*n,77,D] -> [B,75n+2,D]: the inner start and end positions are dropped (reference section 5.3)."""
    rows = hidden.unflatten(0, (batch, -1))
    inner = rows[:, :, 1 : WINDOW + 1].flatten(1, 2)
    return torch.cat([rows[:, 0, :1], inner, rows[:, -1, -1:]], dim=1)


def weighted(hidden: Tensor, weights: Tensor | None) -> Tensor:
    """Hidden states [B*n,77,D] times their token's weight [B,n,77]; no renormalisation (reference section 5.5)."""
    if weights is None:
        return hidden
    return hidden * weights.flatten(0, 1).unsqueeze(-1).to(hidden)


def renormalised(hidden: Tensor, weights: Tensor) -> Tensor:
    """Hidden states [B,T,D] that were multiplied by `weights` [B,T,1], brought back to their mean before that.

    Only training leaves the mean as emphasis makes it (reference section 5.5). A mean near 0 says nothing: no change.
    """
    kept = weights != 0  # what a weight of 0 has wiped out does not count on either side
    before = torch.where(kept, hidden / torch.where(kept, weights, 1), 0).float().mean((1, 2), keepdim=True)
    after = hidden.float().mean((1, 2), keepdim=True)
    telling = after.abs() > 0.01 * hidden.float().abs().mean((1, 2), keepdim=True)
    weighty = (weights != 1).any(dim=1, keepdim=True) & telling
    return hidden * torch.where(weighty, before / after, 1).to(hidden)


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
