"""The noise process of Stable Diffusion: a thousand steps of Gaussian noise (Ho et al. 2020); predicts noise or v.

Its formulas are in `trainer.learning.objective`, its samplers are diffusers'.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor

from schemas import TrainConfig
from trainer.families import Noised, Predict
from trainer.learning import objective

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    # that one ends at the lowest noise level, diffusers refuses it at none
    "dpmsolver": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmsingle": ("DPMSolverSinglestepScheduler", {}),
}
SAMPLERS |= {f"k_{name}": SAMPLERS[name] for name in ("lms", "euler", "euler_a", "dpm_2", "dpm_2_a")}


def scheduler_of(name: str, *, v_prediction: bool) -> Any:
    """The diffusers scheduler of a sampler's name, on the training betas."""
    kind, extra = SAMPLERS[name]
    scheduler = getattr(diffusers, kind)(
        num_train_timesteps=objective.TIMESTEPS,
        beta_start=objective.BETA_START,
        beta_end=objective.BETA_END,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if v_prediction else "epsilon",
        **extra,
    )
    if "clip_sample" in scheduler.config:
        scheduler.register_to_config(clip_sample=True)
    return scheduler


class DDPM:
    """A `NoiseProcess` whose schedule, noise, timesteps and loss weights are the run's options."""

    def __init__(self, config: TrainConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.schedule = objective.noise_schedule(config.zero_terminal_snr, config.v_parameterization).to(device)

    def noised(self, latents: Tensor, timestep: int | None = None) -> Noised:
        noise = objective.draw_noise(latents, self.config)
        timesteps = objective.draw_timesteps(len(latents), self.config, latents.device)
        if timestep is not None:
            timesteps = torch.full_like(timesteps, timestep)
        noisy = objective.add_noise(latents, noise, timesteps, self.schedule, self.config)
        return Noised(noisy, timesteps, objective.target(latents, noise, timesteps, self.schedule))

    def loss(self, predicted: Tensor, noised: Noised, weights: Tensor, masks: Tensor | None) -> Tensor:
        return objective.loss(
            predicted, noised.target, noised.timesteps, weights, masks, self.config, self.schedule
        )  # fmt: skip

    def held_out(self) -> list[int]:
        """The four inner ones of six even points from min_timestep to max_timestep (reference section 15)."""
        low = self.config.min_timestep or 0
        high = objective.TIMESTEPS if self.config.max_timestep is None else self.config.max_timestep
        return [low + (high - low) * number // 5 for number in range(1, 5)]

    def sample(self, predict: Predict, noise: Tensor, *, sampler: str, steps: int) -> Tensor:
        scheduler = scheduler_of(sampler, v_prediction=self.config.v_parameterization)
        scheduler.set_timesteps(min(max(steps, 1), objective.TIMESTEPS), device=noise.device)
        latents = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            predicted = predict(scheduler.scale_model_input(latents, t), t)
            latents = scheduler.step(predicted, t, latents).prev_sample
        return latents
