from __future__ import annotations

import pytest
import torch

from schemas import ConfigError
from schemas.families import FAMILIES
from trainer.families import Conditioning, get


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_to_its_name(name):
    assert get(name).facts is FAMILIES[name]


def test_unknown_family_names_the_known_ones():
    with pytest.raises(ConfigError, match="sd15, sd2, sdxl"):
        get("flux")


def test_latent_scales_are_the_references():
    assert [get(name).facts.latents.scale for name in ("sd15", "sd2", "sdxl")] == [0.18215, 0.18215, 0.13025]


def test_conditioning_is_stacked_and_moved():
    one = Conditioning(torch.ones(1, 77, 4, requires_grad=True), torch.zeros(1, 3))
    both = Conditioning.stack([one, one]).to("cpu", torch.float16).detach_cpu()
    assert (both.hidden.shape, both.pooled.shape) == ((2, 77, 4), (2, 3))
    assert both.hidden.dtype == torch.float16
    assert not both.hidden.requires_grad


def test_conditioning_without_pooled_stays_so():
    one = Conditioning(torch.ones(1, 77, 4))
    assert Conditioning.stack([one, one]).to(dtype=torch.float16).pooled is None
