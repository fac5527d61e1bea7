from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from schemas.problems import ConfigError
from trainer.families import Target
from trainer.output.lora_file import load_weights, model_hashes, save_weights, sshs_hashes, write_atomically

CASES = json.loads((Path(__file__).parents[1] / "golden" / "hashes.json").read_text(encoding="utf-8"))["cases"]
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
TARGETS = [Target("te", "q", "lora_te_q", "linear", "text", None),
           Target("unet", "proj", "lora_unet_proj", "linear", "transformer", 1)]  # fmt: skip
LORA = {"lora_unet_proj.lora_down.weight": torch.arange(8.0).view(2, 4), "lora_unet_proj.alpha": torch.tensor(3),
        "lora_unet_proj.lora_up.weight": torch.ones(5, 2)}  # fmt: skip


def ramp(facts):
    count = math.prod(facts["shape"])
    values = torch.arange(facts["start"], facts["start"] + count, dtype=torch.float32) / facts["divide_by"]
    return values.view(facts["shape"]).to(DTYPES[facts["dtype"]])


def header(path):
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_hashes_are_those_of_the_reference(tmp_path, case):
    tensors = {facts["name"]: ramp(facts) for facts in case["tensors"]}
    save_weights(tmp_path / "a.safetensors", tensors, case["metadata"])
    hashes = {name: case[name] for name in ("sshs_model_hash", "sshs_legacy_hash")}
    assert header(tmp_path / "a.safetensors") == {**case["metadata"], **hashes}
    image = safetensors.torch.save(tensors, {k: v for k, v in case["metadata"].items() if k.startswith("ss_")})
    assert len(image) == case["hashed_image_bytes"]
    assert sshs_hashes(image) == hashes
    safetensors.torch.save_file(tensors, tmp_path / "plain.safetensors")
    plain = case["plain_file_without_metadata"]
    assert model_hashes(tmp_path / "plain.safetensors") == (plain["old_model_hash"], plain["sha256"])


def test_file_is_what_the_library_reads(tmp_path):
    save_weights(tmp_path / "a.safetensors", LORA, {"ss_note": "größe"})
    found = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in LORA.items())
    assert header(tmp_path / "a.safetensors")["ss_note"] == "größe"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_is_that_of_every_tensor(tmp_path, dtype):
    save_weights(tmp_path / "a.safetensors", LORA, {}, dtype=dtype)
    assert {tensor.dtype for tensor in safetensors.torch.load_file(tmp_path / "a.safetensors").values()} == {dtype}


def test_alpha_is_always_a_float(tmp_path):
    """Trap T50."""
    save_weights(tmp_path / "a.safetensors", LORA, {})
    assert safetensors.torch.load_file(tmp_path / "a.safetensors")["lora_unet_proj.alpha"].dtype == torch.float32


@pytest.mark.parametrize("save_as", ["ckpt", "pt", "safetensors"])
def test_every_form_is_read_back(tmp_path, save_as):
    save_weights(tmp_path / f"a.{save_as}", LORA, {}, save_as=save_as)
    found = load_weights(tmp_path / f"a.{save_as}", TARGETS)
    assert all(torch.equal(found[name], tensor) for name, tensor in LORA.items())


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    """Trap T57."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    def fail(stream):
        stream.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_hashes_of_what_is_no_file(tmp_path):
    assert model_hashes(tmp_path) == ("IsADirectory", "IsADirectory")
    assert model_hashes(tmp_path / "none") == ("NOFILE", "NOFILE")


def test_hashes_follow_a_changed_file(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"one")
    first = model_hashes(path)
    path.write_bytes(b"three")
    assert first[1] == hashlib.sha256(b"one").hexdigest()
    assert model_hashes(path)[1] == hashlib.sha256(b"three").hexdigest()


def test_other_family_is_refused_with_both_names(tmp_path):
    """Trap T25."""
    key = "lora_unet_input_blocks_4_1_proj_in"
    save_weights(tmp_path / "xl.safetensors", {f"{key}.lora_down.weight": torch.zeros(2, 4)}, {})
    with pytest.raises(ConfigError, match="LoRA for sdxl, the base model is sd15; 0 modules match"):
        load_weights(tmp_path / "xl.safetensors", TARGETS, "sd15")


def test_other_text_width_is_another_family(tmp_path):
    """SD1.5 and SD2 share their key names."""
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    path = key.removeprefix("lora_unet_").replace("attn2_to_k", "attn2.to_k")
    targets = [Target("unet", path, key, "linear", "transformer", 1)]
    save_weights(tmp_path / "a.safetensors", {f"{key}.lora_down.weight": torch.zeros(2, 1024)}, {})
    with pytest.raises(ConfigError, match="LoRA for sd2, the base model is sd15; 1 modules match"):
        load_weights(tmp_path / "a.safetensors", targets, "sd15")


@pytest.mark.parametrize(("name", "content", "code"), [
    ("a.safetensors", b"nonsense", "not-safetensors"), ("a.pt", b"nonsense", "not-readable"), ("b.pt", None, "no-file"),
    ("b.safetensors", None, "no-file"),
])  # fmt: skip
def test_unreadable_files_are_named(tmp_path, name, content, code):
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_weights(tmp_path / name, TARGETS)
    assert caught.value.problems[0].code in (code, "truncated-file")


def test_pickles_with_code_are_refused(tmp_path):
    torch.save({"x": Path("/")}, tmp_path / "evil.pt")
    with pytest.raises(ConfigError, match=r"evil.pt: holds more than tensors \(pathlib.PosixPath"):
        load_weights(tmp_path / "evil.pt", TARGETS)
    with pytest.raises(ConfigError, match="holds 0 tensors"):  # opened, and then no LoRA
        load_weights(tmp_path / "evil.pt", TARGETS, trust=("evil.pt",))
