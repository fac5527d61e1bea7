from __future__ import annotations

import pytest

from launcher.check.machine import (
    Gpu,
    Machine,
    _ask_driver,
    _gpus,
    _torch_build,
    adapt,
)
from schemas.config import TrainConfig

CPU = Machine(packages=frozenset({"bitsandbytes", "xformers"}))
GPU = Machine(gpus=(Gpu("card", 8 * 2**30),), packages=frozenset({"bitsandbytes", "xformers"}))


def adapted(machine: Machine, **options) -> dict[str, object]:
    _, changes = adapt(TrainConfig(**options), machine)
    return {change.argument: change.after for change in changes}


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"mixed_precision": "fp16", "full_fp16": True}, {"mixed_precision": "no", "full_fp16": False}),
        ({"mixed_precision": "bf16", "full_bf16": True}, {}),
        ({"xformers": True}, {"xformers": False, "sdpa": True}),
        ({"fp8_base": True, "mixed_precision": "bf16"}, {"fp8_base": False}),
        ({"optimizer_type": "AdamW8bit"}, {}),
        ({"optimizer_type": "PagedAdamW8bit"}, {"optimizer_type": "AdamW8bit"}),
        ({"optimizer_type": "pagedadamw"}, {"optimizer_type": "AdamW"}),
    ],
)
def test_without_a_gpu(options, changes) -> None:
    assert adapted(CPU, **options) == changes


def test_a_gpu_takes_everything() -> None:
    assert adapted(GPU, mixed_precision="fp16", xformers=True, fp8_base=True, optimizer_type="PagedAdamW8bit") == {}


def test_without_packages() -> None:
    bare = Machine(gpus=GPU.gpus)
    assert adapted(bare, xformers=True, optimizer_type="AdamW8bit") == {
        "xformers": False,
        "sdpa": True,
        "optimizer_type": "AdamW",
    }
    assert adapted(bare, optimizer_type="PagedLion8bit") == {"optimizer_type": "Lion"}


def test_every_change_has_its_reason() -> None:
    _, changes = adapt(TrainConfig(mixed_precision="fp16", xformers=True), Machine())
    assert all(change.why and change.as_json()["from"] != change.as_json()["to"] for change in changes)


def test_adapting_twice_changes_nothing_more() -> None:
    config, _ = adapt(TrainConfig(mixed_precision="fp16", xformers=True, optimizer_type="PagedAdamW8bit"), Machine())
    assert adapt(config, Machine())[1] == []


def test_a_hidden_gpu_is_none(monkeypatch) -> None:
    monkeypatch.setattr("launcher.check.machine._torch_build", lambda: "cuda")
    monkeypatch.setattr("launcher.check.machine._ask_driver", lambda: [Gpu("a"), Gpu("b")])
    monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/nvidia0"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.name for gpu in _gpus()] == ["b"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert list(_gpus()) == []


def test_the_driver_tells_names_and_memory(monkeypatch, tmp_path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Some Card, 8192'\necho 'Other, [N/A]'\n")
    program.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name, path=None: str(program))
    assert _ask_driver() == [Gpu("Some Card", 8 * 2**30), Gpu("Other", None)]


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None", "cuda"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = None", "cpu"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.2'", "rocm"),
    ],
)
def test_torchs_build_is_read_from_its_version_file(monkeypatch, tmp_path, text, build) -> None:
    (tmp_path / "version.py").write_text(text)

    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: Spec)
    assert _torch_build() == build
