"""Stable Diffusion 2.x: one OpenCLIP ViT-H encoder of 23 layers; the 768 models predict v."""

from __future__ import annotations

from schemas import TrainConfig
from trainer.families.sd15 import SD15, modelspec


class SD2(SD15):
    """As SD1.5 but for its encoder, which is loaded without its last layer, and the pad id 0."""

    name = "sd2"
    pad = 0

    def metadata(self, config: TrainConfig) -> dict[str, str]:
        if config.v_parameterization:
            return {"ss_base_model_version": "sd_v2_v"} | modelspec(config, "stable-diffusion-v2-768-v", 768)
        return {"ss_base_model_version": "sd_v2"} | modelspec(config, "stable-diffusion-v2-512", self.facts.side)


FAMILY = SD2()
