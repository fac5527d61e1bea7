"""The task that SkyPilot would get, what its script does on the machine, and how its results come back."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import toml

from launcher.cluster.sky import as_yaml, cluster_name

# The fields that are used, with the kinds that SkyPilot 0.14's own schema gives them.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["run"],
    "properties": {
        "name": {"type": "string"},
        "resources": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "accelerators": {"type": "string"},
                "use_spot": {"type": "boolean"},
                "infra": {"type": "string"},
                "disk_size": {"type": "integer"},
            },
        },
        "file_mounts": {
            "type": "object",
            "additionalProperties": {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {"source": {"type": "string"}, "mode": {"enum": ["MOUNT", "MOUNT_CACHED"]}},
                    },
                ]
            },
        },
        "secrets": {"type": "object", "patternProperties": {"^[A-Za-z_]\\w*$": {"type": ["string", "null"]}}},
        "setup": {"type": "string"},
        "run": {"type": "string"},
    },
}  # fmt: skip


@pytest.fixture
def task(kohyakit, preset) -> Callable[..., dict[str, Any]]:
    """`task(*words, **form)`: the document of --print-command --json."""

    def one(*words: Any, **form: Any) -> dict[str, Any]:
        found = kohyakit("launch", preset(**form), "--on", "sky", *words, "--print-command", "--json")
        assert found.exit_code == 0, found.stderr
        return dict(json.loads(found.stdout))

    return one


SPOT = ("--spot", "--bucket", "s3://my-runs")


@pytest.mark.parametrize("words", [(), (*SPOT, "--cloud", "aws/us-east-1", "--disk", 200), ("--gpu", "A100:2")])
def test_the_task_is_one_that_skypilot_takes(task, words) -> None:
    jsonschema.validate(task(*words)["task"], SCHEMA)


def test_a_spot_task_mounts_the_data_and_the_bucket(task, tmp_path: Path, photos) -> None:
    document = task(*SPOT, "--gpu", "RTX4090")["task"]
    assert document["resources"] == {"accelerators": "RTX4090:1", "use_spot": True}
    mounts = document["file_mounts"]
    assert {str(photos), str(tmp_path / "sd15.safetensors")} <= {one for one in mounts.values() if isinstance(one, str)}
    assert mounts["~/kohyakit/out"] == {"source": "s3://my-runs", "mode": "MOUNT_CACHED"}
    assert "pip install" in document["setup"]
    assert not (tmp_path / "out").exists()


def test_several_gpus_are_several_processes(task) -> None:
    assert "--processes 2" in task("--gpu", "A100:2")["task"]["run"]


def test_secrets_are_in_no_file_and_named_for_the_environment(kohyakit, preset, monkeypatch, program) -> None:
    key = "0123456789" * 4
    file = preset(wandb_api_key=key)
    found = kohyakit("launch", file, "--on", "sky", "--print-command", "--json")
    assert key not in found.stdout
    document = json.loads(found.stdout)
    assert document["task"]["secrets"] == {"WANDB_API_KEY": None}
    assert "--set wandb_api_key=" in document["task"]["run"]
    assert document["commands"][0][5:7] == ["--secret", "WANDB_API_KEY"]
    program("sky")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert "export WANDB_API_KEY=" in kohyakit("launch", file, "--on", "sky").stderr


def test_the_images_of_a_dataset_config_go_along(kohyakit, preset, tmp_path: Path, photos, program) -> None:
    config = {"datasets": [{"subsets": [{"image_dir": str(photos / "3_frog"), "num_repeats": 2}]}]}
    (tmp_path / "data.toml").write_text(toml.dumps(config))
    program("sky"), program("rsync")
    words = (
        "--set",
        f"dataset_config={tmp_path / 'data.toml'}",
        "--set",
        "train_data_dir=",
        "--wheel",
        program("a.whl"),
    )
    found = kohyakit("launch", preset(), "--on", "sky", *words)
    assert found.exit_code == 0, found.stderr
    written = toml.loads((tmp_path / "out" / "frog.sky" / "dataset.toml").read_text())
    place = written["datasets"][0]["subsets"][0]["image_dir"]
    assert place.startswith("~/kohyakit/in/")
    text = (tmp_path / "out" / "frog.sky" / "task.yaml").read_text()
    assert f'"{place}": "{photos / "3_frog"}"' in text
    assert 'sed "s|~/kohyakit/|$HOME/kohyakit/|g"' in text  # no program but a shell reads ~
    assert '--set dataset_config="$HOME"/kohyakit/dataset.toml' in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--spot",), "a machine that is taken away takes its disk with it"),
        (("--bucket", "my-runs"), "is no bucket's address"),
        (("--gpu", "two of them"), "is no GPU's name"),
        (("--wheel", "gone.whl"), "does not exist"),
        (("--set", "train_data_dir=/content/x"), "train_data_dir"),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_written(kohyakit, preset, tmp_path: Path, words, said) -> None:
    found = kohyakit("launch", preset(), "--on", "sky", *words)
    assert (found.exit_code, said in found.stderr) == (1, True), found.stderr
    assert not (tmp_path / "out").exists()


def test_without_skypilot_the_way_is_told(kohyakit, preset, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert 'pip install "kohyakit[sky]"' in kohyakit("launch", preset(), "--on", "sky").stderr
    assert not (tmp_path / "out").exists()


def test_names_are_such_as_clouds_take() -> None:
    assert [cluster_name(name) for name in ("N0m3_v2", "2 frogs", "日本")] == ["n0m3-v2", "run-2-frogs", "run"]


def test_yaml_reads_back_as_what_was_written() -> None:
    import yaml

    document = {"name": "a: b #", "resources": {"use_spot": True, "disk_size": 20}, "run": "if x; then\n  y: '\"\nfi\n",
                "file_mounts": {"~/in/0 ü": "C:\\x\ty"}, "secrets": {"A_B": None}}  # fmt: skip
    assert yaml.safe_load("\n".join(as_yaml(document)) + "\n") == document


# On the machine, and back


@pytest.fixture
def program(tmp_path: Path, monkeypatch) -> Callable[..., Path]:
    """`program(name, code)`: a program of that name in the path that keeps its words and ends with `code`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name: str, code: int = 0) -> Path:
        path = folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path / "called.txt"}\nexit {code}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


def called(tmp_path: Path) -> list[str]:
    file = tmp_path / "called.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def test_the_script_launches_then_resumes_then_rests(task, program, tmp_path: Path) -> None:
    program("kohyakit")
    home = tmp_path / "home of them"
    run = home / "kohyakit" / "out" / "frog" / "frog.run"
    script = task(*SPOT, "--trust", "my.Optimizer")["task"]["run"]

    def words() -> str:
        subprocess.run(["bash", "-e", "-c", script], env={**os.environ, "HOME": str(home)}, check=True)
        return "\n".join(called(tmp_path))

    first = words()
    assert first.startswith(f"kohyakit launch {home}/kohyakit/in/source.json --processes 1 --trust my.Optimizer")
    assert f"--set output_dir={run.parent}" in first
    run.mkdir()
    assert words() == f"{first} --overwrite"
    (run / "state-00000004").mkdir()
    again = words()
    assert again.startswith(f"kohyakit resume {run} --to-end --set pretrained_model_name_or_path=")
    assert again.endswith("--trust my.Optimizer")
    (run.parent / "frog.safetensors").write_text("")
    assert words() == ""


def test_the_results_come_back_and_the_machine_goes(kohyakit, preset, program, tmp_path: Path) -> None:
    program("sky"), program("rsync")
    found = kohyakit("launch", preset(), "--on", "sky", "--wheel", program("a.whl"))
    assert found.exit_code == 0, found.stderr
    out = tmp_path / "out"
    assert called(tmp_path) == [
        f"sky launch -y -c frog -i 30 --down {out / 'frog.sky' / 'task.yaml'}",
        f"rsync -az frog:kohyakit/out/frog/ {out}/", "sky down -y frog",
    ]  # fmt: skip
    assert {path.name for path in (out / "frog.sky").iterdir()} == {"task.yaml", "source.json"}


def test_a_machine_keeps_what_could_not_be_brought_back(kohyakit, preset, program, tmp_path: Path) -> None:
    program("sky"), program("rsync", 23)
    found = kohyakit("launch", preset(), "--on", "sky", "--wheel", program("a.whl"))
    assert (found.exit_code, "bring them with: rsync -az frog:" in found.stderr) == (3, True)
    assert len(called(tmp_path)) == 2


def test_a_failed_run_brings_back_what_it_left(kohyakit, preset, program, tmp_path: Path) -> None:
    program("sky", 1), program("aws")
    found = kohyakit("launch", preset(), "--on", "sky", *SPOT, "--wheel", program("a.whl"))
    assert found.exit_code == 3
    assert called(tmp_path)[1] == f"aws s3 sync s3://my-runs/frog/ {tmp_path / 'out'}/"
