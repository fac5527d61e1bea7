"""How the toy models are made: trainings go on where they stopped, no frog is among the pictures, checkpoints load."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.toy_world import __main__ as stages
from benchmarks.toy_world import diffusion, models, training, vae
from schemas import TrainConfig
from trainer.families import get
from trainer.learning import objective
from trainer.toy import world


def line(folder: Path, steps: int, stop: int | None = None) -> nn.Linear:
    """A line fitted for `steps` steps, broken off before step `stop`."""
    torch.manual_seed(0)
    module = nn.Linear(1, 1)

    def loss(step: int, rng: random.Random) -> Tensor:
        if step == stop:
            raise KeyboardInterrupt
        x = torch.tensor([[rng.random()]]) + torch.randn(8, 1)
        return (module(x) - 3 * x).square().mean()

    training.train(training.Course("line", steps, 0.05, warmup=10), module, loss, folder, lambda _: None)
    return module


def test_interrupted_training_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = line(tmp_path / "whole", 250)
    with pytest.raises(KeyboardInterrupt):
        line(tmp_path, 250, stop=170)
    assert training.kept(tmp_path, "line")["step"] == 100
    again = line(tmp_path, 250)
    assert torch.equal(whole.weight, again.weight)
    assert abs(whole.weight.item() - 3) < 0.05


def test_rate_warms_up_and_ends_near_nothing() -> None:
    course = training.Course("x", 1000, 2.0, warmup=100)
    assert course.rate(0) == pytest.approx(0.02)
    assert course.rate(99) == course.rate(100) == 2.0
    assert course.rate(999) < 1e-4


def test_u_nets_see_no_frog() -> None:
    shown = diffusion.shown(2000)
    assert {picture.shape for picture in shown} == set(world.SHAPES)
    rng = random.Random(1)
    captions = [diffusion.words(picture, rng) for picture in shown]
    assert "" in captions
    assert not [text for text in captions if world.CONCEPT in text or world.TOKEN in text]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_checkpoint_says_what_shapes_do_not_tell(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    toy = diffusion.fresh(family, models.fresh("sd15", "vae"))
    path = tmp_path / "toy.safetensors"
    models.write(path, family, diffusion.parts(toy))
    loaded = get(family).load(TrainConfig(pretrained_model_name_or_path=str(path)), dtype=torch.float32)
    for part, module in diffusion.parts(loaded).items():
        ours, theirs = models.config(family, part), dict(module.config) if part in ("unet", "vae") else {}
        assert {name: theirs[name] for name in models.UNSEEN if name in theirs} == {
            name: ours[name] for name in models.UNSEEN if name in theirs
        }
    assert loaded.unet.config.norm_num_groups == 8  # type: ignore[union-attr]


def test_one_step_teaches_u_net_and_text_encoders() -> None:
    torch.manual_seed(0)
    toy = diffusion.fresh("sdxl", models.fresh("sd15", "vae"))
    drawn = diffusion.encoded(toy.vae, 4, world.SIDES["sdxl"])
    assert drawn.means.shape == (4, 4, 16, 16)
    loss = diffusion.loss(toy, drawn, [0, 3], random.Random(0), objective.noise_schedule())
    loss.backward()
    assert loss.isfinite()
    for module in (toy.unet, *toy.text_encoders):
        assert any(value.grad is not None and value.grad.any() for value in module.parameters())


def test_stage_that_goes_on_from_another_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "encoder", lambda work: models.fresh("sd15", "vae"))
    with pytest.raises(SystemExit, match="sdxl goes on from sdxl-64"):
        stages.main(["--work", str(tmp_path), "sdxl"])


def test_part_of_a_picture_is_cut_around_the_thing() -> None:
    whole, part = (vae.pictures(random.Random(3), 2, 128, share) for share in (1.0, vae.PART))
    assert whole.shape == (2, 3, 128, 128)
    assert part.shape == (2, 3, 80, 80)
    middle = part[:, :, 20:60, 20:60].std()
    assert middle > whole[:, :, :20].std()  # outlines are in the part, sky is at the top


def test_scaled_latents_have_the_family_s_deviation() -> None:
    torch.manual_seed(0)
    scaled = vae.scaled(models.fresh("sd15", "vae"), 0.18215)
    latents = scaled.encode(vae.pictures(random.Random(9), 64)).latent_dist.mean  # type: ignore[operator]
    assert (latents * 0.18215).std().item() == pytest.approx(1, abs=0.1)
