from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from schemas import ConfigError
from trainer.families import Sizes, tokenizer

CAPTIONS = ["a photo of a cat", "two dogs in the rain"]


@pytest.fixture
def sdxl(tiny):
    return tiny["sdxl"]


def sizes():
    return Sizes(torch.tensor([[600, 900]] * 2), torch.tensor([[0, 64]] * 2), torch.tensor([[512, 768]] * 2))


def test_hidden_is_the_layer_before_the_last_of_both_encoders(sdxl):
    family, models, config = sdxl
    parts = []
    for encoder, pad in zip(copy.deepcopy(models.text_encoders), (tokenizer.END, 0), strict=True):
        inner = getattr(encoder, "text_model", encoder)
        del inner.encoder.layers[-1]
        inner.final_layer_norm = torch.nn.Identity()
        ids = torch.tensor([tokenizer.windows(caption, None, pad)[0] for caption in CAPTIONS])
        parts.append(inner(ids).last_hidden_state)
    torch.testing.assert_close(family.encode(models, CAPTIONS, config).hidden, torch.cat(parts, dim=-1))


def test_pooled_is_the_second_encoders_projected_text(sdxl):
    family, models, config = sdxl
    ids = torch.tensor([tokenizer.windows(caption, None, 0)[0] for caption in CAPTIONS])
    expected = models.text_encoders[1](ids).text_embeds
    torch.testing.assert_close(family.encode(models, CAPTIONS, config).pooled, expected)


def test_pooled_of_a_long_caption_is_its_first_windows(sdxl):
    family, models, config = sdxl
    long = family.encode(models, ["cat " * 100], replace(config, max_token_length=225))
    assert long.hidden.shape == (1, 227, 64)
    torch.testing.assert_close(long.pooled, family.encode(models, ["cat " * 100], config).pooled)


def test_weights_do_not_touch_the_pooled_vector(sdxl):
    family, models, config = sdxl
    plain = family.encode(models, ["cat"], config)
    heavy = family.encode(models, ["(cat:2)"], replace(config, weighted_captions=True))
    torch.testing.assert_close(heavy.hidden[:, 1], 2 * plain.hidden[:, 1])
    assert torch.equal(heavy.pooled, plain.pooled)


def test_clip_skip_has_no_effect(sdxl):
    family, models, config = sdxl
    skipped = family.encode(models, CAPTIONS, replace(config, clip_skip=2))
    assert torch.equal(skipped.hidden, family.encode(models, CAPTIONS, config).hidden)


def sinusoid(number, width):
    """Reference section 3.8: cosines first, period 10000."""
    angles = [number * math.exp(-math.log(10000) * i / (width // 2)) for i in range(width // 2)]
    return [*map(math.cos, angles), *map(math.sin, angles)]


def test_sizes_reach_the_unet_in_the_references_order_and_form(sdxl):
    family, models, config = sdxl
    seen = []
    hook = models.unet.add_embedding.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    words = family.encode(models, CAPTIONS, config)
    family.predict(models.unet, torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), words, sizes())
    hook.remove()
    numbers = [value for number in (600, 900, 0, 64, 512, 768) for value in sinusoid(number, 8)]
    expected = torch.cat([words.pooled, torch.tensor([numbers] * 2)], dim=1)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)


def test_sizes_are_required(sdxl):
    family, models, config = sdxl
    words = family.encode(models, CAPTIONS, config)
    with pytest.raises(ConfigError, match="SDXL"):
        family.predict(models.unet, torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), words, None)


@pytest.mark.parametrize("place", [0, 1])
def test_gradients_reach_both_encoders_under_checkpointing(sdxl, place):
    family, models, config = sdxl
    models = copy.deepcopy(models)
    for encoder in models.text_encoders:
        encoder.train().gradient_checkpointing_enable()
        encoder.enable_input_require_grads()
    encoder = models.text_encoders[place]
    trained = getattr(encoder, "text_model", encoder).encoder.layers[0].mlp.fc1.weight.requires_grad_()
    family.encode(models, CAPTIONS, config).hidden.square().sum().backward()
    assert trained.grad.abs().sum() > 0


def test_text_projection_is_read_in_two_ways(sdxl, checkpoints):
    """Stored transposed to a Linear's weight: image programs turn it round, the reference does not."""
    family, models, config = sdxl
    with safe_open(checkpoints["sdxl"], "pt") as file:
        stored = file.get_tensor("conditioner.embedders.1.model.text_projection")
    as_stored = replace(config, sdxl_text_projection="as_stored")
    other = family.load(as_stored, dtype=torch.float32)
    assert torch.equal(models.text_encoders[1].text_projection.weight, stored.T)
    assert torch.equal(other.text_encoders[1].text_projection.weight, stored)
    one, two = family.encode(models, CAPTIONS, config), family.encode(other, CAPTIONS, as_stored)
    assert torch.equal(one.hidden, two.hidden)
    at_end = one.pooled @ torch.linalg.inv(stored)  # the state in front of the projection
    torch.testing.assert_close(two.pooled, at_end @ stored.T, atol=1e-3, rtol=1e-3)
    assert (one.pooled - two.pooled).abs().max() > 1e-3
