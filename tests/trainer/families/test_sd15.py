from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from schemas import ConfigError, TrainConfig
from trainer.families import get, tokenizer

CAPTIONS = ["a photo of a cat", "two dogs, (in:1.3) the [rain]"]
LONG = "cat " * 100


@pytest.fixture
def sd15(tiny):
    return tiny["sd15"]


def encoder_of(models, ids):
    return models.text_encoders[0](torch.tensor(ids)).last_hidden_state


def test_one_window_is_the_encoders_output(sd15):
    family, models, config = sd15
    ids = [tokenizer.windows(caption, None)[0] for caption in CAPTIONS]
    assert torch.equal(family.encode(models, CAPTIONS, config).hidden, encoder_of(models, ids))


def test_clip_skip_2_is_the_encoder_without_its_last_layer(sd15):
    family, models, config = sd15
    shorter = copy.deepcopy(models)
    del shorter.text_encoders[0].encoder.layers[-1]
    skipped = family.encode(models, CAPTIONS, replace(config, clip_skip=2)).hidden
    assert torch.equal(skipped, family.encode(shorter, CAPTIONS, config).hidden)
    assert not torch.equal(skipped, family.encode(models, CAPTIONS, config).hidden)


def test_clip_skip_1_is_none(sd15):
    family, models, config = sd15
    first = family.encode(models, CAPTIONS, replace(config, clip_skip=1)).hidden
    assert torch.equal(first, family.encode(models, CAPTIONS, config).hidden)


@pytest.mark.parametrize("skip", [0, 3])
def test_clip_skip_beyond_the_layers_is_refused(sd15, skip):
    family, models, config = sd15
    with pytest.raises(ConfigError, match="clip_skip"):
        family.encode(models, CAPTIONS, replace(config, clip_skip=skip))


@pytest.mark.parametrize(("length", "positions"), [(None, 77), (150, 152), (225, 227)])
def test_long_captions_are_encoded_in_windows(sd15, length, positions):
    family, models, config = sd15
    assert family.encode(models, [LONG], replace(config, max_token_length=length)).hidden.shape[1] == positions


def test_windows_are_encoded_by_themselves(sd15):
    family, models, config = sd15
    first, second = encoder_of(models, tokenizer.windows(LONG, 150))
    expected = torch.cat([first[:76], second[1:77]])
    hidden = family.encode(models, [LONG], replace(config, max_token_length=150)).hidden[0]
    torch.testing.assert_close(hidden, expected)


def test_weights_multiply_the_hidden_states(sd15):
    family, models, config = sd15
    plain = family.encode(models, ["cat dog"], config).hidden
    heavy = family.encode(models, ["(cat:1.5) dog"], replace(config, weighted_captions=True)).hidden
    ratio = heavy / plain
    torch.testing.assert_close(ratio[0, 1], torch.full_like(ratio[0, 1], 1.5))
    torch.testing.assert_close(torch.cat([ratio[0, :1], ratio[0, 2:]]), torch.ones(76, ratio.shape[-1]))


def gradients(family, models, config, checkpointing):
    models = copy.deepcopy(models)
    encoder = models.text_encoders[0].train()
    if checkpointing:
        encoder.gradient_checkpointing_enable()
        encoder.enable_input_require_grads()
    trained = encoder.encoder.layers[0].mlp.fc1.weight.requires_grad_()
    family.encode(models, CAPTIONS, config).hidden.square().sum().backward()
    return trained.grad


@pytest.mark.parametrize("skip", [None, 2])
def test_gradients_are_the_same_with_checkpointing(sd15, skip):
    family, models, config = sd15
    config = replace(config, clip_skip=skip)
    plain = gradients(family, models, config, checkpointing=False)
    assert plain.abs().sum() > 0
    torch.testing.assert_close(gradients(family, models, config, checkpointing=True), plain)


def test_prediction_is_the_unets(sd15):
    family, models, config = sd15
    words, noisy, steps = family.encode(models, CAPTIONS, config), torch.randn(2, 4, 8, 8), torch.tensor([1, 900])
    predicted = family.predict(models.unet, noisy, steps, words, None)
    torch.testing.assert_close(predicted, models.unet(noisy, steps, words.hidden).sample)
    torch.testing.assert_close(predicted[1:], models.unet(noisy[1:], 900, words.hidden[1:]).sample)


def golden_specs():
    cases = json.loads((Path(__file__).parents[2] / "golden" / "metadata.json").read_text(encoding="utf-8"))["cases"]
    return [(case["args"], case["metadata"]) for case in cases if case["kind"] == "modelspec"]


@pytest.mark.parametrize(("words", "expected"), golden_specs())
def test_modelspec_is_the_references(words, expected):
    flags = words.split()
    v = "--v_parameterization" in flags
    resolution = flags[flags.index("--resolution") + 1] if "--resolution" in flags else None
    xl = "xl" in expected["modelspec.architecture"]
    config = TrainConfig(v_parameterization=v, resolution=resolution, v2="--v2" in flags)
    found = get("sdxl" if xl else "sd2" if config.v2 else "sd15").metadata(config)
    shared = found.keys() & expected.keys()
    assert len(shared) == 4
    assert {key: found[key] for key in shared} == {key: expected[key] for key in shared}


@pytest.mark.parametrize(
    ("family", "v", "version"),
    [("sd15", False, "sd_v1"), ("sd15", True, "sd_v1_v"), ("sd2", True, "sd_v2_v"), ("sdxl", True, "sdxl_base_v1-0")],
)
def test_base_model_version(family, v, version):
    assert get(family).metadata(TrainConfig(v_parameterization=v))["ss_base_model_version"] == version
