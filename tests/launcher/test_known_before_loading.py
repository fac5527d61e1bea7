"""`plan` refuses what a config, a header or a weights file shows to be wrong, each with a fix that works."""

from __future__ import annotations

import json
import shlex
import struct
from pathlib import Path
from typing import Any

import pytest

from schemas.files.own_word import own_word
from tests.launcher.conftest import SHAPES, UNET, safetensors

TOY = Path(__file__).parents[2] / "trainer" / "toy"
ARGS = "network_args"


@pytest.fixture
def plan(kohyakit: Any, preset: Any) -> Any:
    """plan(*words): the document of `plan --json` and the exit code."""

    def run(*words: str, **form: Any) -> tuple[dict[str, Any], int]:
        sets = [part for word in words for part in ("--set", word)]
        found = kohyakit("plan", str(preset(**form)), "--json", *sets)
        return json.loads(found.stdout), found.exit_code

    return run


def errors(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in document["problems"] if one["severity"] == "error"]


REFUSED = {
    "text encoder's rate": ("rates-differ", ["optimizer_type=Prodigy", "unet_lr=1", "text_encoder_lr=0.5"]),
    "LoRA+": ("rates-differ", ["optimizer_type=Prodigy", "learning_rate=1", "unet_lr=1", "text_encoder_lr=1",
                               f"{ARGS}=loraplus_lr_ratio=4"]),
    "rates of blocks": ("rates-differ", ["optimizer_type=DAdaptLion", "learning_rate=1", "unet_lr=1",
                                         "text_encoder_lr=1", f"{ARGS}=down_lr_weight=sine+.5"]),
    "rank dropout": ("bad-network-arg", [f"{ARGS}=rank_dropout=2"]),
    "negative rank": ("bad-network-arg", [f"{ARGS}=conv_dim=-3 conv_alpha=1"]),
    "ratio": ("bad-network-arg", [f"{ARGS}=loraplus_lr_ratio=nan"]),
    "preset of LyCORIS": ("bad-network-arg", ["network_module=lycoris.kohya", f"{ARGS}=algo=lora preset=nope"]),
    "flag": ("bad-network-arg", ["network_module=lycoris.kohya", f"{ARGS}=algo=lora dora_wd=maybe"]),
    "short list": ("bad-network-arg", [f"{ARGS}=block_dims=1,2,3"]),
    "another's argument": ("bad-optimizer-argument", ["optimizer_type=AdamW", "optimizer_args=d_coef=2 eps=1e-7"]),
    "argument's value": ("bad-optimizer-argument", ["optimizer_type=AdamW", "optimizer_args=betas=(0.9,1.5)"]),
    "schedule's argument": ("bad-schedule-argument", ["lr_scheduler=cosine", "lr_scheduler_args=lr_end=1"]),
    "no block": ("nothing-trained", ["network_train_unet_only=true",
                                     f"{ARGS}=down_lr_weight=zeros mid_lr_weight=0 up_lr_weight=zeros"]),
    "oft": ("bad-network-dim", ["network_module=networks.oft", "network_dim=3", "network_alpha=1e-3"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_fix_that_works(plan: Any, case: str) -> None:
    code, words = REFUSED[case]
    document, exit_code = plan(*words)
    problem = next(one for one in errors(document) if one["code"] == code)
    assert exit_code == 1
    fix = problem["fix"].partition("correct it, or ")[2] or problem["fix"]
    pieces = shlex.split(fix)
    mending = [pieces[place + 1] for place, piece in enumerate(pieces) if piece == "--set"]
    assert mending, problem["fix"]
    replaced = {word.partition("=")[0] for word in mending}
    again, exit_code = plan(*[word for word in words if word.partition("=")[0] not in replaced], *mending)
    assert errors(again) == []
    assert exit_code == 0


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize("key", ["network_weights", "base_weights"])
def test_numbers_that_are_not_finite_are_found(plan: Any, tmp_path: Path, dtype: str, key: str) -> None:
    nan = {"F32": b"\0\0\xc0\x7f", "F16": b"\0\x7e", "BF16": b"\x80\x7f", "F64": b"\0\0\0\0\0\0\xf8\x7f"}[dtype]
    name = UNET.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_")
    header, body = {}, b""
    for ending, shape, fault in (("lora_down", (4, 768), b""), ("lora_up", (320, 4), nan)):
        count = shape[0] * shape[1]
        raw = b"\0" * (len(nan) * count - len(fault)) + fault
        header[f"lora_unet_{name}.{ending}.weight"] = {
            "dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(raw)]}  # fmt: skip
        body += raw
    text = json.dumps(header).encode()
    file = tmp_path / "broken.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)
    document, exit_code = plan(f"{key}={file}")
    assert [one["code"] for one in errors(document)] == ["not-finite"]
    assert "lora_up" in errors(document)[0]["must"]
    assert exit_code == 1


def test_names_that_mean_no_layer_are_told_as_such(plan: Any, tmp_path: Path) -> None:
    file = safetensors(
        tmp_path / "x.safetensors", {"foo.bar.lora_down.weight": (4, 8), "foo.bar.lora_up.weight": (8, 4)}
    )
    document, _ = plan(f"network_weights={file}")
    assert [one["code"] for one in errors(document)] == ["unknown-lora-names"]


# ------------------------------------------------------------------------------------------- the base model's own word


@pytest.mark.parametrize(
    ("shapes", "metadata", "said"),
    [
        ({"v_pred": ()}, {}, {"v_parameterization": True}),
        ({"v_pred": (), "ztsnr": ()}, {}, {"v_parameterization": True, "zero_terminal_snr": True}),
        ({}, {"modelspec.prediction_type": "v"}, {"v_parameterization": True}),
        ({}, {"modelspec.predict_key": "v"}, {"v_parameterization": True}),
        ({"v_pred": ()}, {"modelspec.prediction_type": "epsilon"}, {"v_parameterization": True}),
        ({}, {"modelspec.prediction_type": "epsilon"}, {}),
        ({}, {}, {}),
    ],
)
def test_silence_is_filled_in_and_said(plan: Any, tmp_path: Path, shapes: Any, metadata: Any, said: Any) -> None:
    model = safetensors(tmp_path / "m.safetensors", {**SHAPES["sd15"], **shapes}, None, metadata)
    document, exit_code = plan(f"pretrained_model_name_or_path={model}")
    for name in ("v_parameterization", "zero_terminal_snr"):
        argument = document["arguments"][name]
        assert (argument["value"], argument["origin"]) == ((True, "computed") if name in said else (False, "default"))
    assert {one["key"] for one in document["problems"] if one["code"] == "from-base-model"} == set(said)
    assert exit_code == 0


def toml(tmp_path: Path, photos: Path, **options: Any) -> str:
    values = {
        "pretrained_model_name_or_path": str(TOY / "sd15-v.safetensors"), "train_data_dir": str(photos),
        "output_dir": str(tmp_path / "out"), "output_name": "n", "resolution": "64", "caption_extension": ".txt",
        "network_module": "networks.lora", "max_train_steps": 4, **options,
    }  # fmt: skip
    file = tmp_path / "n.toml"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()), encoding="utf-8")
    return str(file)


def test_a_contradiction_is_refused_and_the_command_line_wins(kohyakit: Any, tmp_path: Path, photos: Path) -> None:
    file = toml(tmp_path, photos, v_parameterization=False)
    found = kohyakit("plan", file, "--json")
    problem = errors(json.loads(found.stdout))[0]
    assert (found.exit_code, problem["code"], problem["key"]) == (1, "base-model-contradicts", "v_parameterization")
    assert problem["line"] is not None
    for word in ("true", "false"):
        assert f"--set v_parameterization={word}" in problem["fix"]
        found = kohyakit("plan", file, "--json", "--set", f"v_parameterization={word}")
        document = json.loads(found.stdout)
        assert (found.exit_code, document["arguments"]["v_parameterization"]["value"]) == (0, word == "true")


def test_the_trainer_follows_the_word_too(tmp_path: Path, photos: Path, capsys: Any) -> None:
    from trainer.__main__ import main, read_arguments

    read, notes = read_arguments(["--config_file", toml(tmp_path, photos)])
    assert read.v_parameterization
    assert "from-base-model" in {note.code for note in notes}
    assert main(["--config_file", toml(tmp_path, photos, v_parameterization=False)]) == 1
    assert "predicts v" in capsys.readouterr().err


@pytest.mark.parametrize("channels", [9, 8, 5])
def test_other_inputs_are_refused(plan: Any, tmp_path: Path, channels: int) -> None:
    first = {"model.diffusion_model.input_blocks.0.0.weight": (4, channels, 3, 3)}
    model = safetensors(tmp_path / "m.safetensors", {**SHAPES["sd15"], **first})
    document, exit_code = plan(f"pretrained_model_name_or_path={model}")
    assert "wrong-input" in [one["code"] for one in errors(document)]
    assert exit_code == 1


def test_a_diffusers_folder_says_it_in_its_configs(tmp_path: Path) -> None:
    scheduler = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    unet = {"_class_name": "UNet2DConditionModel", "in_channels": 9}
    for name, config in (("scheduler/scheduler_config", scheduler), ("unet/config", unet)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
    word = own_word(tmp_path)
    assert word.values == {"v_parameterization": True, "zero_terminal_snr": True}
    assert word.channels == 9


# ------------------------------------------------------------------------------------------------- batches and epochs


def test_a_batch_that_is_never_full_is_told(plan: Any) -> None:
    document, _ = plan(train_batch_size=64, epoch=10)
    said = {one["code"]: one for one in document["problems"]}
    assert said["batch-too-large"]["severity"] == said["fewer-epochs"]["severity"] == "warning"
    calm, _ = plan(train_batch_size=2, epoch=10)
    assert not {"batch-too-large", "fewer-epochs"} & {one["code"] for one in calm["problems"]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["max_train_epochs=2"], "= 6 batches an epoch\nx 2 epochs = 12 steps"),
        (["max_train_steps=13"], "= 6 batches an epoch\nx 2 epochs + 1 step of the next = 13 steps"),
        (["max_train_steps=4"], "= 6 batches an epoch\nof which 4 steps are trained"),
    ],
)
def test_the_derivation_multiplies_out(kohyakit: Any, preset: Any, words: list[str], said: str) -> None:
    found = kohyakit("plan", str(preset()), *[part for word in words for part in ("--set", word)])
    assert said in "\n".join(line.strip() for line in found.stdout.splitlines())
