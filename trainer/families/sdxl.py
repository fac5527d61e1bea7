"""Stable Diffusion XL: CLIP-L and OpenCLIP bigG, a pooled text vector and six sizes as conditioning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from schemas import TrainConfig, error
from trainer.families import Conditioning, Models, Sizes
from trainer.families.sd15 import modelspec
from trainer.families.tokenizer import END
from trainer.families.unet import LatentDiffusion, device_of, joined, token_rows, weighted

FIRST_ENCODER = 768  # features of the first text encoder in the joint hidden state
IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"


class SDXL(LatentDiffusion):
    name = "sdxl"

    def encode(self, models: Models, captions: Sequence[str], config: TrainConfig) -> Conditioning:
        """hidden [B,75n+2,2048]: the layer before the last of both encoders, no final norm; pooled [B,1280].

        clip_skip has no effect (reference section 5.4).
        """
        parts = []
        pooled: Tensor | None = None
        for encoder, pad in zip(models.text_encoders, (END, 0), strict=True):
            ids, weights = token_rows(captions, config, pad)
            output: Any = encoder(ids.flatten(0, 1).to(device_of(encoder)), output_hidden_states=True)
            parts.append(joined(weighted(output.hidden_states[-2], weights), len(captions)))
            if pad == 0:
                pooled = pool(encoder, output.last_hidden_state, ids)
        return Conditioning(torch.cat(parts, dim=-1), pooled)

    def predict(
        self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, sizes: Sizes | None
    ) -> Tensor:
        """As the base class; the sizes go in as original (h,w), crop (top,left), target (h,w) (section 3.8)."""
        if sizes is None:
            raise error("no-sizes", "SDXL needs the original size, crop and target size of each picture")
        time_ids = torch.cat([sizes.original, sizes.crop, sizes.target], dim=1).to(noisy.device, torch.float32)
        added = {"text_embeds": conditioning.pooled, "time_ids": time_ids}
        predicted: Tensor = unet(noisy, timesteps, conditioning.hidden, added_cond_kwargs=added, return_dict=False)[0]
        return predicted

    def text_settings(self, config: TrainConfig) -> dict[str, Any]:
        settings = super().text_settings(config)
        if config.sdxl_text_projection != "transposed":  # files made before the option was there stay good
            settings["sdxl_text_projection"] = config.sdxl_text_projection
        return settings

    def to_arrays(self, states: Conditioning) -> dict[str, Tensor]:
        """The reference's names (section 10.2)."""
        hidden = {
            "hidden_state1": states.hidden[..., :FIRST_ENCODER],
            "hidden_state2": states.hidden[..., FIRST_ENCODER:],
        }
        return hidden if states.pooled is None else hidden | {"pool2": states.pooled}

    def from_arrays(self, arrays: Mapping[str, Tensor]) -> Conditioning:
        return Conditioning(torch.cat([arrays["hidden_state1"], arrays["hidden_state2"]], dim=-1), arrays.get("pool2"))

    def metadata(self, config: TrainConfig) -> dict[str, str]:
        spec = modelspec(config, "stable-diffusion-xl-v1-base", self.facts.side, IMPLEMENTATION)
        return {"ss_base_model_version": "sdxl_base_v1-0"} | spec


def pool(encoder: Any, last: Tensor, ids: Tensor) -> Tensor:
    """Projected text vector [B,P]: the final-normed state at the first end id of each caption's first window.

    last [B*n,77,D], ids [B,n,77].
    """
    ends = (ids[:, 0] == END).int().argmax(dim=-1)
    first = last.unflatten(0, (len(ids), -1))[:, 0]
    at_end = first[torch.arange(len(ids)), ends]
    projected: Tensor = encoder.text_projection(at_end.to(encoder.text_projection.weight.dtype))
    return projected.to(last.dtype)


FAMILY = SDXL()
