"""From latents to the loss: noise, timesteps, target, element loss, weights (reference section 6).

Latents are float32 [B,4,H/8,W/8]. The global generators of torch and Python are drawn from in the reference's order:
noise, offset, pyramid levels, timesteps, perturbation. Nothing here waits for the GPU once the schedule lies on it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from schemas.options import LossOptions, NoiseOptions

TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012


@dataclass(frozen=True)
class Schedule:
    """The forward process q(x_t | x_0), float32 [1000] each.

    `snr` belongs to the schedule without zero terminal SNR even when the rest is rescaled: the reference computes its
    loss weights from it (section 6.5), and authors have tuned with those. `v`: the U-Net predicts v, not the noise.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    snr: Tensor
    v: bool = False

    def to(self, device: torch.device | str) -> Schedule:
        return Schedule(self.betas.to(device), self.alphas_cumprod.to(device), self.snr.to(device), self.v)


def noise_schedule(zero_terminal_snr: bool = False, v: bool = False) -> Schedule:
    """Scaled-linear betas of Stable Diffusion, rescaled to end in pure noise if asked (Lin et al. 2023)."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS, dtype=torch.float32) ** 2
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    alpha, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
    snr = (alpha / sigma) ** 2
    if zero_terminal_snr:
        first, last = alpha[0].clone(), alpha[-1].clone()
        rescaled = ((alpha - last) * (first / (first - last))) ** 2
        alphas = torch.cat([rescaled[:1], rescaled[1:] / rescaled[:-1]])
        betas = 1 - alphas
        alphas_cumprod = torch.cumprod(alphas, dim=0)
    return Schedule(betas, alphas_cumprod, snr, v)


def draw_noise(latents: Tensor, options: NoiseOptions) -> Tensor:
    """Noise shaped like `latents` [B,C,H,W], with offset and pyramid levels as asked."""
    noise = torch.randn_like(latents)
    if options.noise_offset:
        offset: float | Tensor = options.noise_offset
        if options.noise_offset_random_strength:
            offset = torch.rand(1, device=latents.device) * options.noise_offset
        noise = offset_noise(noise, latents, offset, options.adaptive_noise_scale)
    if options.multires_noise_iterations:
        noise = pyramid_noise(noise, options.multires_noise_iterations, options.multires_noise_discount)
    return noise


def offset_noise(
    noise: Tensor, latents: Tensor, offset: float | Tensor | None, adaptive: float | None = None
) -> Tensor:
    """`noise` plus one draw per picture and channel, `offset` strong (Guttenberg 2023, "Diffusion with offset noise").

    With `adaptive`, the strength grows by adaptive * |mean of the latent channel| and stays at least 0.
    """
    if offset is None:
        return noise
    if adaptive:
        mean = latents.mean(dim=(2, 3), keepdim=True).abs()
        offset = torch.clamp(offset + adaptive * mean, min=0)
    batch, channels = latents.shape[:2]
    return noise + offset * torch.randn((batch, channels, 1, 1), device=latents.device)


def pyramid_noise(noise: Tensor, levels: int, discount: float) -> Tensor:
    """`noise` plus ever coarser fields, each weaker by `discount`, brought to unit deviation (Whitaker 2023).

    Level i has 1 / r^i of the size, r drawn from [2, 4) anew for every level; ends once a side is 1.
    """
    batch, channels, height, width = noise.shape
    for level in range(levels):
        ratio = (random.random() * 2 + 2) ** level
        h, w = max(1, int(height / ratio)), max(1, int(width / ratio))
        coarse = torch.randn(batch, channels, h, w, device=noise.device)
        noise = (
            noise + F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False) * discount**level
        )
        if h == 1 or w == 1:
            break
    return noise / noise.std()


def draw_timesteps(count: int, options: NoiseOptions, device: torch.device | str = "cpu") -> Tensor:
    """int64 [count], uniform from min_timestep up to, not including, max_timestep; always drawn on the CPU."""
    low = 0 if options.min_timestep is None else options.min_timestep
    high = TIMESTEPS if options.max_timestep is None else options.max_timestep
    drawn = torch.randint(low, high, (count,)) if low < high else torch.full((count,), high)
    return drawn.to(device, non_blocking=True)


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, schedule: Schedule, options: NoiseOptions) -> Tensor:
    """x_t = sqrt(a) x + sqrt(1 - a) e', where e' is `noise`, perturbed by ip_noise_gamma (Ning et al. 2023)."""
    if options.ip_noise_gamma:
        strength: float | Tensor = options.ip_noise_gamma
        if options.ip_noise_gamma_random_strength:
            strength = torch.rand(1, device=latents.device) * options.ip_noise_gamma
        noise = noise + strength * torch.randn_like(latents)
    a = _at(schedule.alphas_cumprod, timesteps, latents)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def target(latents: Tensor, noise: Tensor, timesteps: Tensor, schedule: Schedule) -> Tensor:
    """What the U-Net shall predict: the noise, or v = sqrt(a) e - sqrt(1 - a) x (Salimans and Ho 2022)."""
    if not schedule.v:
        return noise
    a = _at(schedule.alphas_cumprod, timesteps, latents)
    return a.sqrt() * noise - (1 - a).sqrt() * latents


def huber_threshold(timesteps: Tensor, options: LossOptions, schedule: Schedule) -> Tensor:
    """c of the Huber losses, one for each picture [B] (Khrapov et al. 2024, "Improving diffusion models' robustness").

    The `snr` schedule takes no huber_scale, in the reference either (trap T45).
    """
    c = options.huber_c
    if options.huber_schedule == "constant":
        return torch.full(timesteps.shape, c * options.huber_scale, dtype=torch.float32, device=timesteps.device)
    if options.huber_schedule == "exponential":
        return torch.pow(c, timesteps.float() / TIMESTEPS) * options.huber_scale
    a = schedule.alphas_cumprod.to(timesteps.device)[timesteps]
    sigma = ((1 - a) / a).sqrt()
    return (1 - c) / (1 + sigma) ** 2 + c


def element_loss(pred: Tensor, wanted: Tensor, loss_type: str, threshold: Tensor | None = None) -> Tensor:
    """The loss of every element, float32 [B,C,H,W]; `threshold` [B] for huber and smooth_l1 only."""
    d = pred.float() - wanted.float()
    if loss_type == "l2":
        return d**2
    if loss_type == "l1":
        return d.abs()
    if threshold is None:
        raise ValueError(f"{loss_type} needs a threshold")
    c = threshold.view(-1, 1, 1, 1)
    pseudo = torch.sqrt(d**2 + c**2) - c
    return 2 * c * pseudo if loss_type == "huber" else 2 * pseudo


def masked(losses: Tensor, masks: Tensor) -> Tensor:
    """`losses` [B,C,H,W] weighted by `masks` [B,1,Y,X] or [B,Y,X] in 0..1, shrunk by area averaging."""
    if masks.ndim == 3:
        masks = masks.unsqueeze(1)
    return losses * F.interpolate(masks.to(losses), size=losses.shape[-2:], mode="area")


def weighted(losses: Tensor, timesteps: Tensor, options: LossOptions, schedule: Schedule) -> Tensor:
    """`losses` [B] under every weight asked for, one after the other (reference section 6.8, steps 4 to 7).

    Min-SNR-gamma: Hang et al. 2023. Debiased estimation: Yu et al. 2023.
    """
    snr = schedule.snr.to(losses.device)[timesteps]
    bounded = snr.clamp(max=1000)  # the reference's guard at t = 0
    if options.min_snr_gamma:
        losses = losses * (snr.clamp(max=options.min_snr_gamma) / (snr + 1 if schedule.v else snr))
    if options.scale_v_pred_loss_like_noise_pred:
        losses = losses * (bounded / (bounded + 1))
    if options.v_pred_like_loss:
        losses = losses + losses / (bounded / (bounded + 1)) * options.v_pred_like_loss
    if options.debiased_estimation_loss:
        losses = losses * (1 / (bounded + 1) if schedule.v else 1 / bounded.sqrt())
    return losses


def losses(
    pred: Tensor,
    wanted: Tensor,
    timesteps: Tensor,
    weights: Tensor,
    masks: Tensor | None,
    options: LossOptions,
    schedule: Schedule,
) -> Tensor:
    """The loss of every picture [B]: element loss, mask, mean over C,H,W, picture weight, SNR weights.

    `weights` [B] is 1, or prior_loss_weight for regularisation pictures.
    """
    threshold = huber_threshold(timesteps, options, schedule) if options.loss_type in ("huber", "smooth_l1") else None
    elements = element_loss(pred, wanted, options.loss_type, threshold)
    if masks is not None:
        elements = masked(elements, masks)
    return weighted(elements.mean(dim=(1, 2, 3)) * weights, timesteps, options, schedule)


def loss(
    pred: Tensor,
    wanted: Tensor,
    timesteps: Tensor,
    weights: Tensor,
    masks: Tensor | None,
    options: LossOptions,
    schedule: Schedule,
) -> Tensor:
    """The mean of `losses` over the batch, a scalar."""
    return losses(pred, wanted, timesteps, weights, masks, options, schedule).mean()


def _at(values: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    """`values` [1000] at `timesteps` [B] as [B,1,1,1] on the device of `like`."""
    return values.to(like.device)[timesteps].view(-1, 1, 1, 1)
