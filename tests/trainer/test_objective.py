from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.options import LossOptions, NoiseOptions
from trainer.learning import objective

GOLDEN = Path(__file__).parents[1] / "golden"
NOISE = json.loads((GOLDEN / "noise.json").read_text())["cases"]
LOSS = json.loads((GOLDEN / "loss_weights.json").read_text())["cases"]
TABLES = ("betas", "alphas_cumprod", "all_snr", "full_alphas_cumprod", "full_betas")
WEIGHTS = {  # golden name -> the options that stand for it
    "min_snr_weight": lambda case: LossOptions(min_snr_gamma=case["gamma"]),
    "debiased_estimation_weight": lambda case: LossOptions(debiased_estimation_loss=True),
    "scale_v_pred_loss_like_noise_pred_factor": lambda case: LossOptions(scale_v_pred_loss_like_noise_pred=True),
    "v_pred_like_loss_factor": lambda case: LossOptions(v_pred_like_loss=case["ratio"]),
    "combined": lambda case: LossOptions(**case["options"]),
}


def named(cases: list[Any], *names: str) -> list[Any]:
    return [
        pytest.param(case, id=f"{case['name']}-{at}")
        for at, case in enumerate(cases)
        if case["name"] in names and "refused" not in case
    ]


def tensor(values: Any) -> Tensor:
    if isinstance(values, list) and values and isinstance(values[0], str | float | int):
        return torch.tensor([float(value) for value in values])
    return torch.tensor(values)


def seed(case: dict[str, Any]) -> None:
    torch.manual_seed(case["torch_seed"])
    random.seed(case.get("python_seed"))


def close(got: Tensor, wanted: Any, rtol: float = 2e-6, atol: float = 2.5e-7) -> None:
    """Within two units in the last place of a number near 1: vector units of different CPUs round differently."""
    torch.testing.assert_close(got, tensor(wanted).to(got.dtype), rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize("case", named(NOISE, "noise_offset"))
def test_offset_noise(case: dict[str, Any]) -> None:
    seed(case)
    got = objective.offset_noise(
        tensor(case["noise_in"]), tensor(case["latents"]), case["noise_offset"], case["adaptive_noise_scale"]
    )
    close(got, case["out"])


@pytest.mark.parametrize("case", named(NOISE, "multires_noise"))
def test_pyramid_noise(case: dict[str, Any]) -> None:
    seed(case)
    close(objective.pyramid_noise(tensor(case["noise_in"]), case["iterations"], case["discount"]), case["out"])


@pytest.mark.parametrize("case", named(NOISE, "training_noise"))
def test_noise_timesteps_and_generators_as_the_reference_leaves_them(case: dict[str, Any]) -> None:
    options, latents = NoiseOptions(**case["options"]), tensor(case["latents"])
    schedule = objective.noise_schedule(case["zero_terminal_snr"])
    seed(case)
    noise = objective.draw_noise(latents, options)
    timesteps = objective.draw_timesteps(len(latents), options)
    noisy = objective.add_noise(latents, noise, timesteps, schedule, options)
    close(noise, case["noise"])
    close(noisy, case["noisy_latents"])
    assert timesteps.tolist() == case["timesteps"]
    assert torch.rand(2).tolist() == pytest.approx(case["torch_rand_after"], abs=1e-7)
    assert random.random() == case["python_random_after"]


@pytest.mark.parametrize("case", named(LOSS, *TABLES))
def test_schedule_tables(case: dict[str, Any]) -> None:
    schedule = objective.noise_schedule(case["zero_terminal_snr"])
    tables = {"betas": schedule.betas, "alphas_cumprod": schedule.alphas_cumprod, "all_snr": schedule.snr}
    table = tables[case["name"].removeprefix("full_")]
    at = slice(None) if isinstance(case["timesteps"], str) else case["timesteps"]
    # Rescaled betas are 1 minus a ratio of neighbours that nearly cancels: the last places are the CPU's.
    cancelled = case["zero_terminal_snr"] and table is schedule.betas
    close(table[at], case["values"], atol=5e-6 if cancelled else 2.5e-7)


@pytest.mark.parametrize("case", named(LOSS, *WEIGHTS))
def test_weights(case: dict[str, Any]) -> None:
    schedule = objective.noise_schedule(case["zero_terminal_snr"], case.get("v_prediction", False))
    timesteps = torch.tensor(case["timesteps"])
    losses = tensor(case["per_image_loss"]) if "per_image_loss" in case else torch.ones(len(timesteps))
    close(objective.weighted(losses, timesteps, WEIGHTS[case["name"]](case), schedule), case["values"])


@pytest.mark.parametrize("case", named(LOSS, "huber_c"))
def test_huber_thresholds(case: dict[str, Any]) -> None:
    names = ("loss_type", "huber_schedule", "huber_c", "huber_scale")
    options = LossOptions(**{name: case[name] for name in names})
    schedule = objective.noise_schedule(case["zero_terminal_snr"])
    close(objective.huber_threshold(torch.tensor(case["timesteps"]), options, schedule), case["values"])


@pytest.mark.parametrize("case", named(LOSS, "loss"))
def test_element_losses(case: dict[str, Any]) -> None:
    threshold = None if case["huber_c"] is None else tensor(case["huber_c"])
    got = objective.element_loss(tensor(case["pred"]), tensor(case["target"]), case["loss_type"], threshold)
    reduce = {"none": lambda values: values, "mean": torch.mean, "sum": torch.sum}[case["reduction"]]
    close(reduce(got), case["values"])


@pytest.mark.parametrize("case", named(LOSS, "masked_loss"))
def test_masks(case: dict[str, Any]) -> None:
    masks = tensor(case["mask"])
    if case["mask_kind"] == "conditioning":  # pictures in -1..1, of which the first channel counts
        masks = masks[:, :1] / 2 + 0.5
    close(objective.masked(tensor(case["loss"]), masks), case["values"])


@pytest.mark.parametrize("case", named(LOSS, "add_noise_and_velocity"))
def test_noisy_latents_and_velocity(case: dict[str, Any]) -> None:
    schedule = objective.noise_schedule(case["zero_terminal_snr"], v=True)
    latents, noise, timesteps = tensor(case["latents"]), tensor(case["noise"]), torch.tensor(case["timesteps"])
    close(objective.add_noise(latents, noise, timesteps, schedule, NoiseOptions()), case["noisy"])
    close(objective.target(latents, noise, timesteps, schedule), case["velocity"])


def test_without_v_the_noise_is_the_target() -> None:
    noise = torch.randn(1, 4, 2, 2)
    assert objective.target(torch.zeros_like(noise), noise, torch.tensor([7]), objective.noise_schedule()) is noise


def test_loss_masks_then_averages_then_weighs() -> None:
    pred, wanted = torch.full((2, 4, 2, 2), 3.0), torch.ones(2, 4, 2, 2)
    masks = torch.stack([torch.full((1, 4, 4), 0.5), torch.zeros(1, 4, 4)])
    args = (
        pred,
        wanted,
        torch.tensor([10, 20]),
        torch.tensor([0.25, 1.0]),
        masks,
        LossOptions(),
        objective.noise_schedule(),
    )
    assert objective.losses(*args).tolist() == [0.5, 0.0]
    assert objective.loss(*args).item() == 0.25


@pytest.mark.parametrize(("loss_type", "factor"), [("huber", [1.0, 0.5]), ("smooth_l1", [1.0, 1.0])])
def test_huber_losses_take_each_pictures_own_threshold(loss_type: str, factor: list[float]) -> None:
    options = LossOptions(loss_type=loss_type, huber_schedule="exponential", huber_c=0.25)  # c = 0.25^(t/1000)
    pred, wanted, timesteps = torch.ones(2, 4, 2, 2), torch.zeros(2, 4, 2, 2), torch.tensor([0, 500])
    got = objective.losses(pred, wanted, timesteps, torch.ones(2), None, options, objective.noise_schedule())
    c = torch.tensor([1.0, 0.5])
    torch.testing.assert_close(got, 2 * torch.tensor(factor) * ((1 + c**2).sqrt() - c))


def test_half_precision_predictions_are_compared_in_full() -> None:
    pred = torch.full((1, 4, 2, 2), 0.1, dtype=torch.bfloat16, requires_grad=True)
    got = objective.loss(
        pred, torch.zeros(1, 4, 2, 2), torch.tensor([5]), torch.ones(1), None, LossOptions(), objective.noise_schedule()
    )
    got.backward()
    assert got.dtype == torch.float32
    assert pred.grad is not None
    assert pred.grad.abs().sum() > 0
