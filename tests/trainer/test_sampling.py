from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from schemas import TrainConfig
from schemas.config import table
from trainer.dataset.prompts import Prompt
from trainer.families import Models, get
from trainer.output import previews as sampling
from trainer.output.previews import (
    Preview,
    prompt_states,
    renormalised,
    sampler,
    show_in_wandb,
    undisturbed,
    write_previews,
)

CPU = torch.device("cpu")
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "samples.json").read_text(encoding="utf-8"))["cases"]
CLASSES = {
    "ddim": "DDIM", "pndm": "PNDM", "lms": "LMSDiscrete", "euler": "EulerDiscrete", "euler_a": "EulerAncestralDiscrete",
    "heun": "HeunDiscrete", "dpm_2": "KDPM2Discrete", "dpm_2_a": "KDPM2AncestralDiscrete",
    "dpmsolver": "DPMSolverMultistep", "dpmsolver++": "DPMSolverMultistep", "dpmsingle": "DPMSolverSinglestep",
    "k_lms": "LMSDiscrete", "k_euler": "EulerDiscrete", "k_euler_a": "EulerAncestralDiscrete",
    "k_dpm_2": "KDPM2Discrete", "k_dpm_2_a": "KDPM2AncestralDiscrete",
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded(base_models: dict[str, Path]) -> dict[str, tuple[Models, TrainConfig]]:
    found = {}
    for family, file in base_models.items():
        config = TrainConfig(pretrained_model_name_or_path=str(file), output_name="n0m3")
        found[family] = get(family).load(config, dtype=torch.float32), config
    return found


def drawn(models: Models, config: TrainConfig, folder: Path, *prompts: Prompt) -> list[Tensor]:
    """The pictures of `prompts` as tensors."""
    previews = [Preview(at, prompt, folder / f"{at}.png") for at, prompt in enumerate(prompts)]
    write_previews(models, get(models.family), previews, config, device=CPU)
    return [torch.tensor(list(Image.open(preview.path).tobytes())) for preview in previews]


def small(text: str = "a frog", **options: Any) -> Prompt:
    return Prompt(prompt=text, **{"width": 64, "height": 64, "seed": 1, "sample_steps": 2, **options})


def test_every_name_the_option_takes_has_its_class() -> None:
    names = table()["sample_sampler"].choices
    assert {name: type(sampler(name, v_prediction=False)).__name__ for name in names} == {
        name: f"{kind}Scheduler" for name, kind in CLASSES.items()
    }
    asked = {case.get("parsed", {}).get("sample_sampler") for case in GOLDEN} - {None}
    assert asked <= set(names)


@pytest.mark.parametrize("name", CLASSES)
def test_samplers_stand_on_the_training_schedule(name: str) -> None:
    config = sampler(name, v_prediction=True).config
    said = {key: config[key] for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")}
    assert said == {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
                    "num_train_timesteps": 1000}  # fmt: skip
    assert config["prediction_type"] == "v_prediction"
    assert config.get("clip_sample", True) is True
    assert sampler(name, v_prediction=False).config["prediction_type"] == "epsilon"
    if name.startswith("dpmsolver"):
        assert config["algorithm_type"] == name


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {n for n in CLASSES if n.startswith("k_")}))
def test_every_sampler_draws(name: str, loaded: Any, tmp_path: Path) -> None:
    (picture,) = drawn(*loaded["sd15"], tmp_path, small(sample_sampler=name, sample_steps=3))
    assert picture.float().std() > 0


def test_a_seed_gives_its_picture_wherever_it_stands(loaded: Any, tmp_path: Path) -> None:
    first, second, other = drawn(*loaded["sd15"], tmp_path, small(), small(sample_sampler="euler_a"), small(seed=2))
    again = drawn(*loaded["sd15"], tmp_path, small(sample_sampler="euler_a"), small())
    assert torch.equal(first, again[1])
    assert torch.equal(second, again[0])
    assert not torch.equal(first, other)


def test_without_a_seed_the_noise_is_fresh(loaded: Any, tmp_path: Path) -> None:
    torch.manual_seed(5)
    one, other = drawn(*loaded["sd15"], tmp_path, small(seed=None), small(seed=None))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("change", [{"negative_prompt": "blurry"}, {"scale": 2.0}, {"text": "a bird"}])
def test_every_setting_counts(change: dict[str, Any], loaded: Any, tmp_path: Path) -> None:
    one, other = drawn(*loaded["sd15"], tmp_path, small(), small(**change))
    assert not torch.equal(one, other)


def test_clip_skip_counts(loaded: Any, tmp_path: Path) -> None:
    models, config = loaded["sd15"]
    skipped = TrainConfig(**{**vars(config), "clip_skip": 2})
    assert not torch.equal(drawn(models, config, tmp_path, small())[0], drawn(models, skipped, tmp_path, small())[0])


@pytest.mark.parametrize(("asked", "given"), [(63, 64), (71, 64), (100, 96), (8, 64)])
def test_sides_are_multiples_of_8(asked: int, given: int, loaded: Any, tmp_path: Path) -> None:
    drawn(*loaded["sd15"], tmp_path, small(width=asked))
    assert Image.open(tmp_path / "0.png").size == (given, 64)


@pytest.mark.parametrize(("family", "side"), [("sd15", 512), ("sdxl", 1024)])
def test_the_default_size_is_the_family_s(
    family: str, side: int, loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """512 for SDXL as well in the reference, which its previews suffer from (trap T47)."""
    seen: list[Any] = []
    picture = Image.new("RGB", (8, 8))
    monkeypatch.setattr(sampling, "decode", lambda vae, latents: seen.append(latents.shape) or [picture])
    models, config = loaded[family]
    monkeypatch.setattr(type(get(family)), "predict", lambda self, unet, noisy, *rest: torch.zeros_like(noisy))
    drawn(models, config, tmp_path, small(width=None, height=None))
    assert seen == [(1, 4, side // 8, side // 8)]


@pytest.mark.parametrize(("words", "length"), [(70, 77), (76, 152), (151, 227), (400, 227)])
def test_long_prompts_are_read_up_to_225_tokens(words: int, length: int, loaded: Any) -> None:
    models, config = loaded["sd15"]
    states = prompt_states(models, get("sd15"), small("frog " * words), config).hidden
    assert states.shape[:2] == (2, length)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_emphasis_reaches_the_picture(family: str, loaded: Any) -> None:
    models, config = loaded[family]
    states = [prompt_states(models, get(family), small(text), config).hidden for text in ("a frog", "a (frog:1.5)")]
    assert torch.equal(states[0][0], states[1][0])  # the negative prompt
    changed = (states[0][1] / states[1][1]).mean(dim=-1)
    assert changed.sub(changed[0]).abs().gt(0.1).nonzero().flatten().tolist() == [2]


def test_renormalising_keeps_the_mean() -> None:
    torch.manual_seed(0)
    states, weights = torch.randn(2, 5, 8) + 1, torch.tensor([[1, 1, 1.5, 0.3, 1], [1, 1, 1, 1, 1.0]]).unsqueeze(-1)
    got = renormalised(states * weights, weights)
    torch.testing.assert_close(got.mean((1, 2)), states.mean((1, 2)))
    torch.testing.assert_close(got[1], states[1])
    assert renormalised(states * 0, weights * 0).isfinite().all()


def test_modes_and_random_states_come_back(loaded: Any, tmp_path: Path) -> None:
    models, config = loaded["sd15"]
    models.unet.train()
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    drawn(models, config, tmp_path, small(sample_sampler="euler_a"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert models.unet.training
    assert models.unet.mid_block.training
    models.unet.eval()
    assert not models.vae.training


def test_dropout_is_off_meanwhile() -> None:
    """Dropouts would disturb the pictures (trap T47)."""
    dropout = torch.nn.Dropout(0.5)
    with undisturbed([torch.nn.Sequential(dropout)]):
        assert torch.equal(dropout(torch.ones(100)), torch.ones(100))
    assert dropout.training


def test_encoders_are_back_before_the_first_step_and_the_vae_at_the_end(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from the calls, as the only device here is the CPU."""
    models, config = loaded["sd15"]
    calls: list[str] = []
    for name, module in (("text", models.text_encoders[0]), ("vae", models.vae)):
        move = module.to
        monkeypatch.setattr(module, "to", lambda *to, name=name, move=move: calls.append(name) or move(*to))
    predict = type(get("sd15")).predict
    monkeypatch.setattr(type(get("sd15")), "predict", lambda *rest: calls.append("step") or predict(*rest))
    drawn(models, config, tmp_path, small(sample_steps=1))
    assert calls == ["text", "text", "vae", "step", "vae"]


def test_a_vae_that_overflows_is_run_in_32_bit() -> None:
    class Vae(torch.nn.Linear):
        def decode(self, latents: Tensor) -> Any:
            wide = latents.dtype == torch.float32
            return SimpleNamespace(sample=torch.full((1, 3, 2, 2), 0.0 if wide else torch.nan))

    vae = Vae(1, 1).half()
    (picture,) = sampling.decode(vae, torch.zeros(1, 4, 2, 2))
    assert picture.getpixel((0, 0)) == (128, 128, 128)
    assert vae.weight.dtype == torch.float16


def test_half_precision_draws_too(loaded: Any, base_models: dict[str, Path], tmp_path: Path) -> None:
    _, config = loaded["sdxl"]
    models = get("sdxl").load(config, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        (picture,) = drawn(models, config, tmp_path, small())
    assert picture.float().std() > 0


def test_wandb_gets_the_pictures_with_their_prompts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logged: list[Any] = []
    fake = SimpleNamespace(Image=lambda path, caption: (Path(path).name, caption))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = SimpleNamespace(log=lambda values, commit: logged.append((values, commit)))
    trackers = [SimpleNamespace(name="tensorboard"), SimpleNamespace(name="wandb", tracker=run)]
    show_in_wandb(trackers, [Preview(4, small(), tmp_path / "n.png")])
    assert logged == [({"sample_4": ("n.png", "a frog")}, False)]
