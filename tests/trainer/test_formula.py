"""The loss of the real training step against the formulas written down a second time, plainly, in 64 bit."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor

from schemas import config
from trainer import loop
from trainer.dataset.files import scan
from trainer.families import get
from trainer.input.batches import Batch
from trainer.learning import objective

STEPS = 1000


@dataclasses.dataclass
class Moment:
    """A run after some steps, a batch for it, and the same base model loaded anew with the LoRA added into it."""

    run: loop.Run
    batch: Batch
    plain_unet: Any


def merged(run: loop.Run) -> Any:
    """W + α / r · B A for every module, on a fresh copy of the base model."""
    unet: Any = get("sd15").load(run.config, dtype=torch.float32).unet
    lora = run.adapter.state_dict()
    for path, module in unet.named_modules():
        key = "lora_unet_" + path.replace(".", "_")
        if f"{key}.alpha" in lora:
            down, up = lora[f"{key}.lora_down.weight"].flatten(1), lora[f"{key}.lora_up.weight"].flatten(1)
            module.weight += (lora[f"{key}.alpha"] / len(down) * up @ down).view_as(module.weight)
    return unet


@pytest.fixture(scope="module")
def moment(
    base_models: dict[str, Path], pictures: Path, regular: Path, tmp_path_factory: pytest.TempPathFactory
) -> Moment:
    """Three large steps on training and regularisation pictures, so that the LoRA is far from zero."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    read, _ = config.from_flat(
        {
            "pretrained_model_name_or_path": str(base_models["sd15"]), "train_data_dir": str(pictures),
            "reg_data_dir": str(regular), "output_dir": str(tmp_path_factory.mktemp("out")), "resolution": "64",
            "caption_extension": ".txt", "train_batch_size": 4, "network_module": "networks.lora", "network_dim": 4,
            "network_alpha": 2, "network_train_unet_only": True, "learning_rate": 0.05, "max_train_steps": 3,
            "cache_latents": True, "max_data_loader_n_workers": 0, "seed": 3, "prior_loss_weight": 0.25,
        }
    )  # fmt: skip
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        real = loop.Run.batch_loss
        patch.setattr(loop.Run, "batch_loss", lambda run, *rest: (seen.append((run, rest[0])), real(run, *rest))[1])
        loop.train(read, "sd15", scan(read))
    run, batch = next(one for one in seen if len(set(one[1].weights.tolist())) == 2)
    return Moment(run, batch, merged(run))


@pytest.fixture(scope="module")
def regular(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures as regularisation, told apart by their captions."""
    folder = tmp_path_factory.mktemp("reg") / "1_thing"
    folder.mkdir()
    for source in sorted(pictures.glob("*/*.png")):
        (folder / source.name).write_bytes(source.read_bytes())
        (folder / f"{source.stem}.txt").write_text("regular", encoding="utf-8")
    return folder.parent


def alphas_cumprod() -> list[float]:
    """ᾱ_t of β_t = (√0.00085 + t / 999 · (√0.012 − √0.00085))²."""
    first, last = math.sqrt(0.00085), math.sqrt(0.012)
    product, found = 1.0, []
    for t in range(STEPS):
        product *= 1 - (first + t / (STEPS - 1) * (last - first)) ** 2
        found.append(product)
    return found


def zero_terminal(alphas: list[float]) -> list[float]:
    """√ᾱ shifted so that the last is 0 and scaled so that the first stays (Lin et al. 2023)."""
    roots = [math.sqrt(a) for a in alphas]
    return [((r - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2 for r in roots]


def element(d: Tensor, kind: str, c: float) -> Tensor:
    if kind == "l2":
        return d**2
    if kind == "l1":
        return d.abs()
    return 2 * (c if kind == "huber" else 1) * ((d**2 + c**2).sqrt() - c)


def huber_c(o: dict[str, Any], t: int, a: float) -> float:
    c, scale = o.get("huber_c", 0.1), o.get("huber_scale", 1.0)
    if o.get("huber_schedule") == "constant":
        return c * scale
    if o.get("huber_schedule") == "exponential":
        return c ** (t / STEPS) * scale
    return (1 - c) / (1 + math.sqrt((1 - a) / a)) ** 2 + c


def snr_weight(o: dict[str, Any], snr: float, v: bool) -> float:
    """Steps 4 to 7 of section 6.8."""
    weight, held = 1.0, min(snr, 1000.0)
    if "min_snr_gamma" in o:
        weight *= min(snr, o["min_snr_gamma"]) / (snr + 1 if v else snr)
    if "scale_v_pred_loss_like_noise_pred" in o:
        weight *= held / (held + 1)
    if "v_pred_like_loss" in o:
        weight *= 1 + o["v_pred_like_loss"] * (held + 1) / held
    if "debiased_estimation_loss" in o:
        weight *= 1 / (held + 1) if v else 1 / math.sqrt(held)
    return weight


def drawn(latents: Tensor, o: dict[str, Any]) -> tuple[Tensor, Tensor, list[int]]:
    """(noise of the target, noise of the input, timesteps), from the global generators in the reference's order."""
    count = len(latents)
    noise = torch.randn(latents.shape)
    if "noise_offset" in o:
        strength = o["noise_offset"] * (torch.rand(1) if o.get("noise_offset_random_strength") else 1)
        if "adaptive_noise_scale" in o:
            strength = (strength + o["adaptive_noise_scale"] * latents.mean((2, 3)).abs()).clamp(min=0)[..., None, None]
        noise = noise + strength * torch.randn(count, 4, 1, 1)
    if "multires_noise_iterations" in o:
        for level in range(o["multires_noise_iterations"]):
            ratio = (2 + 2 * random.random()) ** level
            h, w = (max(1, int(side / ratio)) for side in latents.shape[2:])
            coarse = torch.randn(count, 4, h, w)
            grown = torch.nn.functional.interpolate(coarse, latents.shape[2:], mode="bilinear")
            noise = noise + o.get("multires_noise_discount", 0.3) ** level * grown
            if 1 in (h, w):
                break
        noise = noise / noise.std()
    timesteps = torch.randint(o.get("min_timestep", 0), o.get("max_timestep", STEPS), (count,)).tolist()
    perturbed = noise
    if "ip_noise_gamma" in o:
        strength = o["ip_noise_gamma"] * (torch.rand(1) if o.get("ip_noise_gamma_random_strength") else 1)
        perturbed = noise + strength * torch.randn(latents.shape)
    return noise, perturbed, timesteps


@torch.no_grad()
def plain_loss(moment: Moment, o: dict[str, Any]) -> float:
    """Section 6 for one batch."""
    batch, v = moment.batch, bool(o.get("v_parameterization"))
    assert batch.latents is not None
    x = batch.latents * 0.18215
    hidden = moment.run.texts(batch.captions).hidden
    e, perturbed, timesteps = drawn(x, o)
    usual = alphas_cumprod()
    alphas = zero_terminal(usual) if o.get("zero_terminal_snr") else usual
    total = 0.0
    for b, t in enumerate(timesteps):
        a = alphas[t]
        noisy = math.sqrt(a) * x[b] + math.sqrt(1 - a) * perturbed[b]
        wanted = math.sqrt(a) * e[b] - math.sqrt(1 - a) * x[b] if v else e[b]
        got = moment.plain_unet(noisy[None], torch.tensor([t]), hidden[b : b + 1]).sample[0]
        losses = element((got - wanted).double(), o.get("loss_type", "l2"), huber_c(o, t, a))
        prior = 0.25 if batch.captions[b] == "regular" else 1.0
        total += float(losses.mean()) * prior * snr_weight(o, usual[t] / (1 - usual[t]), v)
    return total / len(timesteps)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"v_parameterization": True},
    {"min_snr_gamma": 5.0},
    {"min_snr_gamma": 1.0, "v_parameterization": True},
    {"debiased_estimation_loss": True},
    {"debiased_estimation_loss": True, "v_parameterization": True},
    {"loss_type": "l1"},
    {"loss_type": "huber"},
    {"loss_type": "huber", "huber_schedule": "constant", "huber_c": 0.2, "huber_scale": 1.5},
    {"loss_type": "smooth_l1", "huber_schedule": "exponential", "huber_c": 0.05},
    {"noise_offset": 0.1},
    {"noise_offset": 0.1, "adaptive_noise_scale": 0.5, "noise_offset_random_strength": True},
    {"multires_noise_iterations": 6, "multires_noise_discount": 0.5},
    {"ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True},
    {"min_timestep": 200, "max_timestep": 300},
    {"zero_terminal_snr": True, "v_parameterization": True, "scale_v_pred_loss_like_noise_pred": True},
    {"v_pred_like_loss": 0.3, "min_snr_gamma": 5.0, "loss_type": "huber", "noise_offset": 0.05},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_the_loss_of_a_step_is_the_formula(options: dict[str, Any], moment: Moment) -> None:
    changed = dataclasses.replace(moment.run.config, **options)
    schedule = objective.noise_schedule(changed.zero_terminal_snr, changed.v_parameterization)
    run = dataclasses.replace(moment.run, config=changed, schedule=schedule)
    losses = []
    for compute in (lambda: run.batch_loss(moment.batch, None).item(), lambda: plain_loss(moment, options)):
        torch.manual_seed(11)
        random.seed(11)
        losses.append(compute())
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)


def test_the_lora_takes_part_in_it(moment: Moment) -> None:
    """Else the test above would hold for a forward without adapter."""
    moment.run.adapter.set_multiplier(0)
    try:
        torch.manual_seed(11)
        without = moment.run.batch_loss(moment.batch, None).item()
    finally:
        moment.run.adapter.set_multiplier(1)
    torch.manual_seed(11)
    assert without != pytest.approx(plain_loss(moment, {}), rel=1e-2)
