from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.formats.base import Draft
from launcher.formats.civitai import images, read
from launcher.formats.civitai_writer import write
from schemas.problems import ConfigError

SOUND = {
    "engine": "kohya",
    "unetLR": 0.0005,
    "clipSkip": 2,
    "loraType": "lora",
    "keepTokens": 1,
    "networkDim": 32,
    "numRepeats": 12,
    "resolution": 512,
    "lrScheduler": "cosine_with_restarts",
    "minSnrGamma": 5,
    "noiseOffset": 0.1,
    "targetSteps": 3072,
    "enableBucket": True,
    "networkAlpha": 16,
    "optimizerArgs": "weight_decay=0.1, betas=0.9,0.99",
    "optimizerType": "AdamW8Bit",
    "textEncoderLR": 5e-05,
    "maxTrainEpochs": 16,
    "shuffleCaption": True,
    "trainBatchSize": 2,
    "flipAugmentation": True,
    "lrSchedulerNumCycles": 3,
}


def draft_of(**changes: Any) -> Draft:
    params = {key: value for key, value in {**SOUND, **changes}.items() if value is not ...}
    return read(json.dumps(params, indent=1))


def values(draft: Draft) -> dict[str, Any]:
    return {name: setting.value for name, setting in draft.arguments.items()}


def test_every_key_arrives() -> None:
    draft = draft_of()
    assert values(draft) == {
        "unet_lr": 0.0005,
        "learning_rate": 0.0005,
        "clip_skip": 2,
        "network_module": "networks.lora",
        "keep_tokens": 1,
        "network_dim": 32,
        "resolution": "512,512",
        "lr_scheduler": "cosine_with_restarts",
        "min_snr_gamma": 5,
        "noise_offset": 0.1,
        "enable_bucket": True,
        "network_alpha": 16,
        "optimizer_args": ["weight_decay=0.1", "betas=0.9,0.99"],
        "optimizer_type": "AdamW8bit",
        "text_encoder_lr": [5e-05],
        "max_train_epochs": 16,
        "save_every_n_epochs": 1,
        "shuffle_caption": True,
        "train_batch_size": 2,
        "flip_aug": True,
        "lr_scheduler_num_cycles": 3,
        "caption_extension": ".txt",
    }
    assert draft.carry == {"num_repeats": 12, "images": [32]}
    assert set(draft.keys) == set(SOUND)
    assert draft.problems == []


DAMAGE = [
    ('"targetSteps": 3072,', '"targetSteps": 3072, --> This changes'),
    ('"targetSteps": 3072,', '"targetSteps": 3072, // computed, do not edit'),
    ('"targetSteps": 3072,', '"targetSteps": 3072, # "x": 1'),
    ('"engine": "kohya"', "\u201cengine\u201d: \u201ckohya\u201d"),
    ('"lrSchedulerNumCycles": 3\n', '"lrSchedulerNumCycles": 3,\n'),
    ('"trainBatchSize": 2,\n', '"trainBatchSize": 2\n'),
    ('"flipAugmentation": true', '"flipAugmentation": True'),
    ("\n}", ""),
    ("{\n", "My settings:\n{\n"),
    ("\n}", "\n}\nHave fun!"),
    ('{\n "engine"', '"engine"'),
]


@pytest.mark.parametrize(("right", "wrong"), DAMAGE, ids=range(len(DAMAGE)))
def test_damage_is_mended_and_named_with_its_line(right: str, wrong: str) -> None:
    text = json.dumps(SOUND, indent=1)
    assert right in text
    broken = text.replace(right, wrong)
    draft = read(broken)
    assert values(draft) == values(draft_of())
    assert [problem.code for problem in draft.problems] == ["mended-json"]
    assert draft.problems[0].line is not None


def test_one_line_and_a_code_fence() -> None:
    draft = read("```json\n" + json.dumps(SOUND) + "\n```")
    assert values(draft) == values(draft_of())


def test_beyond_mending() -> None:
    with pytest.raises(ConfigError) as fault:
        read('{\n"unetLR": 0.1,\n"minSnrGamma": = 5\n}')
    assert (fault.value.problems[-1].code, fault.value.problems[-1].line) == ("not-json", 3)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda p: {"params": p, "baseModel": "pony"},
        lambda p: {"trainingDetails": {"params": p, "baseModelType": "sdxl"}},
    ],
)
def test_the_larger_record_gives_the_family(wrap: Any) -> None:
    draft = read(json.dumps(wrap(SOUND)))
    assert draft.family == "sdxl"
    assert values(draft) == values(draft_of())


def test_size_alone_is_only_a_hint() -> None:
    draft = draft_of(resolution=1024)
    assert (draft.family, draft.carry["family_hint"], draft.arguments["max_bucket_reso"].value) == (None, "sdxl", 2048)


def test_zeros_are_off() -> None:
    draft = draft_of(textEncoderLR=0, minSnrGamma=0, noiseOffset=0, clipSkip=0)
    assert draft.arguments["network_train_unet_only"].value is True
    assert not {"text_encoder_lr", "min_snr_gamma", "noise_offset", "clip_skip"} & set(draft.arguments)


@pytest.mark.parametrize(
    ("name", "first"),
    [("AdamW8bit", "weight_decay=0.1"), ("Adafactor ", "scale_parameter=False"), ("Prodigy", "weight_decay=0.5")],
)
def test_hidden_optimizer_arguments_are_shown(name: str, first: str) -> None:
    draft = draft_of(optimizerType=name, optimizerArgs=..., unetLR=1)
    setting = draft.arguments["optimizer_args"]
    assert (setting.value[0], setting.origin) == (first, "default")
    assert [problem.code for problem in draft.problems] == ["hidden-optimizer-args"]


def test_a_renamed_key_is_guessed_not_applied() -> None:
    draft = draft_of(lrScheduler=..., l="constant")
    assert "lr_scheduler" not in draft.arguments
    assert draft.keys["l"].status == "unknown"
    assert [problem.fix for problem in draft.problems] == ["probably lrScheduler: --set lr_scheduler=constant"]


def test_picture_counts_of_the_reference_notes() -> None:
    assert images(3072, 2, 12, 16) == [32]
    assert images(1050, 2, 14, 10) == [15]
    assert images(7560, 1, 1, 90) == [84]
    assert images(1900, 4, 30, 13) == []


def test_overrides_are_keys_of_the_json() -> None:
    assert read(json.dumps(SOUND), overrides={"networkDim": "64", "numRepeats": "5"}).carry["num_repeats"] == 5


def test_ai_toolkit_form() -> None:
    params = {
        "engine": "ai-toolkit",
        "ecosystem": "sdxl",
        "steps": 2000,
        "epochs": 10,
        "batchSize": 2,
        "lr": 1e-4,
        "textEncoderLr": None,
        "trainTextEncoder": False,
        "optimizerType": "adamw8bit",
        "networkDim": 16,
        "shuffleTokens": True,
    }
    draft = read(json.dumps(params))
    assert draft.family == "sdxl"
    assert {name: value for name, value in values(draft).items() if draft.arguments[name].origin == "file"} == {
        "max_train_steps": 2000,
        "save_every_n_steps": 200,
        "train_batch_size": 2,
        "unet_lr": 1e-4,
        "learning_rate": 1e-4,
        "network_train_unet_only": True,
        "optimizer_type": "AdamW8bit",
        "network_dim": 16,
        "shuffle_caption": True,
    }


def test_writing_and_reading_give_the_same() -> None:
    text, lost = write(values(draft_of()), num_repeats=12, pictures=32)
    assert lost == []
    assert json.loads(text) == SOUND
    assert list(json.loads(text)) == list(SOUND)


def test_what_the_site_cannot_say_is_listed() -> None:
    _, lost = write(
        {
            "lr_scheduler": "polynomial",
            "seed": 5,
            "resolution": "512,768",
            "optimizer_type": "Lion",
            "wandb_api_key": "secret",
            "network_dim": 300,
        }
    )
    assert [line.split(" = ")[0] for line in lost] == [
        "resolution",
        "optimizer_type",
        "lr_scheduler",
        "max_train_steps",
        "seed",
        "wandb_api_key",
        "networkDim",
    ]
    assert "secret" not in str(lost)


def test_a_size_that_is_none_is_lost_and_said() -> None:
    text, lost = write({"resolution": "wide"})
    assert json.loads(text)["resolution"] == 512
    assert any(line.startswith("resolution = wide") for line in lost)
