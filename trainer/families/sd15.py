"""Stable Diffusion 1.x: one CLIP-L encoder, epsilon prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas import TrainConfig, error
from trainer.families import Conditioning, Models
from trainer.families.tokenizer import END
from trainer.families.unet import LatentDiffusion, device_of, joined, token_rows, weighted


class SD15(LatentDiffusion):
    name = "sd15"
    pad = END

    def encode(self, models: Models, captions: Sequence[str], config: TrainConfig) -> Conditioning:
        """hidden [B,75n+2,768]; clip_skip k takes the k-th layer from the end, then the final norm (section 5.3)."""
        encoder = models.text_encoders[0]
        ids, weights = token_rows(captions, config, self.pad)
        rows = ids.flatten(0, 1).to(device_of(encoder))
        skip = 1 if config.clip_skip is None else config.clip_skip
        output: Any = encoder(rows, output_hidden_states=skip != 1)
        hidden = output.last_hidden_state
        if skip != 1:
            layers = len(output.hidden_states) - 1  # the first state is the embedding
            if not 1 <= skip <= layers:
                must = f"must be 1 to {layers}, the number of the encoder's layers"
                raise error("bad-clip-skip", must, key="clip_skip", got=skip, fix="use 1 or 2")
            hidden = final_norm(encoder)(output.hidden_states[-skip])
        return Conditioning(joined(weighted(hidden, weights), len(captions)))

    def metadata(self, config: TrainConfig) -> dict[str, str]:
        version = "sd_v1_v" if config.v_parameterization else "sd_v1"
        return {"ss_base_model_version": version} | modelspec(config, "stable-diffusion-v1", self.facts.side)


def final_norm(encoder: Any) -> Any:
    """The last layer norm of a CLIP text encoder, whether or not it has the `text_model` level."""
    return getattr(encoder, "text_model", encoder).final_layer_norm


def modelspec(
    config: TrainConfig, architecture: str, default_side: int, implementation: str = "diffusers"
) -> dict[str, str]:
    """The model-card keys that depend on the family (reference section 12.3)."""
    sides = (config.resolution or str(default_side)).replace(" ", "").split(",")
    return {
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": implementation,
        "modelspec.prediction_type": "v" if config.v_parameterization else "epsilon",
        "modelspec.resolution": f"{sides[0]}x{sides[-1]}",
    }


FAMILY = SD15()
