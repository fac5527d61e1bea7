"""The main job through the real command in processes of its own: shared presets in, resumable LoRAs out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from launcher.cli import cli
from schemas import TrainConfig, config
from schemas.files.weights import checkpoint_family, lora_facts, read_header
from tests.tiny import tiny_checkpoint
from trainer import families

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
PROMPT = "n0m3 in the snow --w 64 --h 64 --s 1 --d 1"
# As shared: old names, numbers as text, "" for unset, another person's Windows paths.
SHARED = {
    "pretrained_model_name_or_path": "D:/sd/models/Stable-diffusion/v1-5-pruned.safetensors",
    "train_data_dir": "C:\\Users\\anna\\lora\\training_images",
    "output_dir": "C:\\Users\\anna\\lora\\result_current",
    "logging_dir": "",
    "reg_data_dir": "",
    "output_name": "n0m3",
    "LoRA_type": "Standard",
    "max_resolution": "512,512",
    "learning_rate": "0.0001",
    "unet_lr": "0.0001",
    "text_encoder_lr": "5e-05",
    "lr_scheduler": "cosine",
    "lr_warmup": "10",
    "train_batch_size": "2",
    "epoch": "1",
    "max_train_epochs": "",
    "max_train_steps": "0",
    "save_every_n_epochs": "1",
    "mixed_precision": "fp16",
    "save_precision": "fp16",
    "seed": "1234",
    "num_cpu_threads_per_process": "2",
    "cache_latents": True,
    "caption_extension": ".txt",
    "enable_bucket": True,
    "gradient_checkpointing": False,
    "use_8bit_adam": False,
    "optimizer": "AdamW8bit",
    "xformers": True,
    "clip_skip": "1",
    "network_dim": "4",
    "network_alpha": "2",
    "min_snr_gamma": "5",
    "noise_offset": "0.05",
    "sample_every_n_steps": "100",
    "sample_every_n_epochs": "",
    "sample_sampler": "euler_a",
    "sample_prompts": PROMPT,
    "stop_text_encoder_training": 0,
    "model_list": "custom",
}
SMALL = {"max_resolution": "64,64", "min_bucket_reso": "64", "max_bucket_reso": "128", "sample_every_n_steps": "3",
         "bucket_no_upscale": "false"}  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def kohyakit(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, in `folder`."""
    command = [sys.executable, "-P", "-m", "launcher", *map(str, words)]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)


def done(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return finished.stdout


def accelerate(folder: Path, *words: object) -> str:
    """The trainer started directly."""
    start = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
    start += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "trainer"]
    command = [*start, *map(str, words)]
    return done(subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300))


def sets(**values: object) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def modules(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in read_header(file).tensors}


def golden_modules(name: str) -> set[str]:
    return {key.partition(".")[0] for key in json.loads((GOLDEN / name).read_text(encoding="utf-8"))}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: both presets, both models, photos in two shapes."""
    folder = tmp_path_factory.mktemp("user")
    data = folder / "img" / "2_n0m3"
    data.mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (64, 64) if number < 4 else (128, 64), (40 * number, 90, 200)).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text(f"n0m3, plain, {number}", encoding="utf-8")
    for family in ("sd15", "sdxl"):
        tiny_checkpoint(folder, family)
        form = SHARED | ({"sdxl": True, "max_resolution": "1024,1024"} if family == "sdxl" else {"v2": False})
        (folder / f"{family}.json").write_text(json.dumps(form, indent=2), encoding="utf-8")
    return folder


def own(family: str) -> list[str]:
    """What a user of a shared file gives: relative paths, from where they stand."""
    return sets(
        pretrained_model_name_or_path=f"{family}.safetensors", train_data_dir="img", output_dir=f"out_{family}", **SMALL
    )


@pytest.fixture(scope="module")
def sd15(place: Path) -> Path:
    """The result folder of the SD1.5 preset, trained by two processes."""
    return trained(place, "sd15", "--processes", "2")


@pytest.fixture(scope="module")
def sdxl(place: Path) -> Path:
    return trained(place, "sdxl")


PLANS: dict[str, dict[str, Any]] = {}


def trained(place: Path, family: str, *words: str) -> Path:
    PLANS[family] = json.loads(done(kohyakit(place, "plan", f"{family}.json", "--json", *own(family), *words)))
    done(kohyakit(place, "launch", f"{family}.json", *own(family), *words))
    return place / f"out_{family}"


@pytest.fixture(params=["sd15", "sdxl"])
def run(request: pytest.FixtureRequest) -> tuple[str, Path]:
    return request.param, request.getfixturevalue(request.param)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_validate_says_the_fate_of_every_key(place: Path, family: str) -> None:
    found = json.loads(CliRunner().invoke(cli, ["validate", str(place / f"{family}.json"), "--json"]).stdout)
    (file,) = found["files"]
    form = json.loads((place / f"{family}.json").read_text(encoding="utf-8"))
    assert (file["format"], file["family"], file["kind"], file["ok"]) == ("kohya-gui", family, "lora", True)
    assert set(form) <= set(file["keys"])
    assert [key for key, fate in file["keys"].items() if fate["status"] == "unknown"] == []


def test_the_plan_is_what_ran(run: tuple[str, Path]) -> None:
    family, out = run
    steps = PLANS[family]["steps"]
    records = log(out / "n0m3.run")
    assert [record["step"] for record in records] == list(range(1, steps["total"] + 1))
    assert steps["processes"] == (2 if family == "sd15" else 1)
    assert [save["file"] for save in steps["saves"] if not (out / save["file"]).is_file()] == []
    assert {change["argument"] for change in PLANS[family]["adapted"]} >= {"mixed_precision", "xformers"}


def test_the_lora_has_kohyas_names_and_header(run: tuple[str, Path]) -> None:
    family, out = run
    file = out / "n0m3.safetensors"
    known = golden_modules(f"keys_{family}_lora_dim16.json")
    parts = {"lora_unet", "lora_te"} if family == "sd15" else {"lora_unet", "lora_te1", "lora_te2"}
    assert modules(file) <= known
    assert {re.match(r"lora_[a-z0-9]+", name)[0] for name in modules(file)} == parts
    said = read_header(file).metadata
    assert (said["ss_network_dim"], said["ss_network_alpha"], said["ss_seed"]) == ("4", "2.0", "1234")
    assert {"ss_tag_frequency", "ss_bucket_info", "sshs_model_hash", "modelspec.architecture"} <= set(said)
    assert "anna" not in said["kohyakit_config"]
    assert lora_facts(file).family == family


def test_previews_record_and_snapshot_are_there(run: tuple[str, Path], place: Path) -> None:
    family, out = run
    assert len(list((out / "sample").glob("n0m3_*.png"))) == len(PLANS[family]["steps"]["previews"]) > 0
    folder = out / "n0m3.run"
    assert (folder / "source.json").read_bytes() == (place / f"{family}.json").read_bytes()
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert [(start["mode"], start["exit"]) for start in record["starts"]] == [("launch", 0)]
    (snapshot,) = out.glob("n0m3_*.json")
    form = json.loads(snapshot.read_text(encoding="utf-8"))
    assert (form["optimizer"], form["max_resolution"], form["sample_prompts"]) == ("AdamW8bit", "64,64", PROMPT)


def test_kept_paths_hold_from_anywhere(run: tuple[str, Path], place: Path) -> None:
    family, out = run
    kept, _ = config.read(out / "n0m3.run" / "config.toml")
    assert kept.pretrained_model_name_or_path == str(place / f"{family}.safetensors")
    assert (kept.train_data_dir, kept.output_dir) == (str(place / "img"), str(out))
    (snapshot,) = out.glob("n0m3_*.json")
    assert json.loads(snapshot.read_text(encoding="utf-8"))["train_data_dir"] == str(place / "img")


def test_a_lora_goes_on_from_another_folder_and_is_kept(sdxl: Path, tmp_path: Path, place: Path) -> None:
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    (copy / "mine.safetensors").write_bytes((sdxl / "n0m3.safetensors").read_bytes())
    before = (copy / "mine.safetensors").read_bytes()
    model = {"pretrained_model_name_or_path": place / "sdxl.safetensors", "train_data_dir": place / "img"}
    words = sets(**model, output_dir=copy, output_name="mine", sample_every_n_steps="")
    said = done(kohyakit(tmp_path, "resume", "elsewhere/mine.safetensors", "--epochs", "1", *words))
    assert said.startswith("continue: a new run of 1 epochs from the weights")
    assert (copy / "mine-v1.safetensors").read_bytes() == before
    kept, _ = config.read(copy / "mine.run" / "config.toml")
    assert kept.network_weights == str(copy / "mine-v1.safetensors")
    assert f"starts from {kept.network_weights}" in said
    assert (copy / "mine.safetensors").read_bytes() != before


def test_a_snapshot_goes_on_from_another_folder(sd15: Path, tmp_path: Path) -> None:
    older = (sd15 / "n0m3.safetensors").read_bytes()
    (snapshot,) = sd15.glob("n0m3_*.json")
    done(kohyakit(tmp_path, "resume", snapshot, "--epochs", "1", "--processes", "1"))
    assert (sd15 / "n0m3-v1.safetensors").read_bytes() == older
    assert len(log(sd15 / "n0m3.run")) == log(sd15 / "n0m3.run")[-1]["step"] > 0
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folder_model(place: Path) -> Path:
    """The SD1.5 model as a diffusers folder."""
    read = TrainConfig(pretrained_model_name_or_path=str(place / "sd15.safetensors"))
    models = families.get("sd15").load(read, dtype=torch.float32)
    parts = {"unet": models.unet, "vae": models.vae, "text_encoder": models.text_encoders[0]}
    for name, module in parts.items():
        module.save_pretrained(place / "folder" / name)
    (place / "folder" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
    return place / "folder"


def test_the_trainer_starts_directly_from_a_toml_and_a_diffusers_folder(place: Path, folder_model: Path) -> None:
    values = {
        "pretrained_model_name_or_path": str(folder_model), "train_data_dir": str(place / "img"), "resolution": "64",
        "output_dir": str(place / "direct"), "output_name": "direct", "network_module": "networks.lora",
        "network_dim": 2, "caption_extension": ".txt", "max_train_steps": 2, "max_data_loader_n_workers": 0,
    }  # fmt: skip
    file = place / "direct.toml"
    file.write_text(config.write(config.from_flat(values)[0]), encoding="utf-8")
    assert checkpoint_family(folder_model) == "sd15"
    accelerate(place, "--config_file", file)
    assert modules(place / "direct" / "direct.safetensors") <= golden_modules("keys_sd15_lora_dim16.json")


def test_the_trainer_takes_sd_scripts_arguments(place: Path) -> None:
    accelerate(
        place, "--pretrained_model_name_or_path=sdxl.safetensors", "--train_data_dir=img", "--resolution=64,64",
        "--output_dir=typed", "--output_name=typed", "--save_model_as=safetensors", "--network_module=networks.lora",
        "--network_dim=2", "--network_alpha=1", "--caption_extension=.txt", "--max_train_steps=1", "--cache_latents",
        "--cache_text_encoder_outputs", "--network_train_unet_only", "--optimizer_type=AdamW", "--learning_rate=1e-4",
        "--max_data_loader_n_workers=0", "--mixed_precision=no",
    )  # fmt: skip
    assert lora_facts(place / "typed" / "typed.safetensors").family == "sdxl"


# Bad input: a clear error, exit code 1, nothing written.


def broken(place: Path, folder: Path, fault: str) -> tuple[list[str], str]:
    """(words of `launch`, code of the error) for a fault of issue and life."""
    preset = folder / "preset.json"
    preset.write_bytes((place / "sd15.json").read_bytes())
    words = {"output_dir": folder / "out", **SMALL}
    words |= {"pretrained_model_name_or_path": place / "sd15.safetensors", "train_data_dir": place / "img"}
    match fault:
        case "no such file":
            return [str(folder / "missing.json")], "no-file"
        case "not JSON":
            preset.write_text('{"LoRA_type": "Standard",\n "epoch": }', encoding="utf-8")
            return [str(preset)], "not-json"
        case "the numbered folder itself":
            words["train_data_dir"] = place / "img" / "2_n0m3"
        case "no images":
            (folder / "empty" / "1_x").mkdir(parents=True)
            words["train_data_dir"] = folder / "empty"
        case "truncated checkpoint":
            cut = folder / "cut.safetensors"
            cut.write_bytes((place / "sd15.safetensors").read_bytes()[:-1000])
            words["pretrained_model_name_or_path"] = cut
        case "SDXL under an SD1.5 config":
            words["pretrained_model_name_or_path"] = place / "sdxl.safetensors"
        case "unknown optimizer":
            words["optimizer_type"] = "AdamWW"
        case "text in a number":
            words["network_dim"] = "many"
        case "output folder that cannot be written":
            words["output_dir"] = preset / "out"
        case "Dreambooth preset":
            form = {name: value for name, value in SHARED.items() if not name.startswith(("network", "LoRA", "unet"))}
            preset.write_text(json.dumps(form | {"stop_text_encoder_training_pct": 0}), encoding="utf-8")
    codes = {
        "the numbered folder itself": "numbered-folder",
        "no images": "no-images",
        "truncated checkpoint": "truncated-file",
        "SDXL under an SD1.5 config": "family-mismatch",
        "unknown optimizer": "unknown-optimizer",
        "text in a number": "bad-value",
        "output folder that cannot be written": "not-writable",
        "Dreambooth preset": "unsupported-kind",
    }
    return [str(preset), *sets(**words)], codes[fault]


FAULTS = ["no such file", "not JSON", "the numbered folder itself", "no images", "truncated checkpoint",
          "SDXL under an SD1.5 config", "unknown optimizer", "text in a number", "output folder that cannot be written",
          "Dreambooth preset"]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_answered_and_nothing_is_written(place: Path, tmp_path: Path, fault: str) -> None:
    words, code = broken(place, tmp_path, fault)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    found = CliRunner().invoke(cli, ["launch", *words, "--json"])
    assert found.exit_code == 1, found.output
    wrong = [one for one in json.loads(found.stdout)["problems"] if one["severity"] == "error"]
    assert code in [one["code"] for one in wrong]
    assert all(one["must"] and one["fix"] for one in wrong)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_json_fault_has_its_line_and_column(place: Path, tmp_path: Path) -> None:
    words, _ = broken(place, tmp_path, "not JSON")
    assert re.search(r"line 2|:2:", CliRunner().invoke(cli, ["launch", *words]).stderr)
