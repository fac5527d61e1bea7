"""Paths and names that a config gives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from schemas import ConfigError
from schemas.config import TrainConfig, from_flat, table
from schemas.files.places import (
    ENDINGS,
    LONGEST_ENDING,
    LONGEST_NAME,
    protected,
)
from schemas.rules import check
from trainer.plan import marks

PATHS = [name for name, option in table().items() if option.path]


def refused(values: dict[str, Any]) -> tuple[str, str, str]:
    with pytest.raises(ConfigError) as caught:
        from_flat(values)
    (problem,) = caught.value.problems
    return problem.key or "", problem.must, problem.fix or ""


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(
    "value", ["out\test\new", '"/x/q"', "'/x/q'", "“/x/q”", " /x", "/x ", "a\0b", "x" * 256, "a/" * 2100]
)
def test_no_option_takes_a_path_that_none_can_be(name: str, value: str) -> None:
    option = table()[name]
    assert refused({name: [value] if option.many else value})[0] == name


@pytest.mark.parametrize("name", ["output_name", "log_prefix"])
@pytest.mark.parametrize("value", ["a\nb", "\x1b[31m", '"a"', " a", "a ", "n" * 232, "é" * 110])
def test_no_name_of_files_is_one_that_none_can_have(name: str, value: str) -> None:
    assert refused({name: value})[0] == name


def test_backslashes_in_double_quotes_are_explained() -> None:
    _, must, fix = refused({"output_dir": "out\test\new"})
    assert "a tab and a line end" in must
    assert "single quotes" in must
    assert fix == "--set output_dir=out/test/new"


@pytest.mark.parametrize(
    ("value", "meant"), [('"/x/q"', "/x/q"), (" /x/q ", "/x/q"), ("/x/q\n", "/x/q"), ('"/x/q', "/x/q")]
)
def test_the_fix_is_taken(value: str, meant: str) -> None:
    fix = refused({"train_data_dir": value})[2]
    assert fix == f"--set train_data_dir={meant}"
    assert from_flat({"train_data_dir": meant})[0].train_data_dir == meant


def test_ordinary_paths_of_all_systems_pass() -> None:
    for path in ("C:\\train\\new", "/x/ä b/日本", "~/x", "../x", "//server/share", "it's/here", 'say "hi" to/x'):
        assert from_flat({"output_dir": path})[0].output_dir == path


@pytest.mark.parametrize("ending", ["safetensors", "ckpt", "pt"])
def test_the_longest_derived_name_fits(ending: str) -> None:
    """Every file that the trainer names after output_name, in its temporary form too."""
    name = "é" * ((LONGEST_NAME - LONGEST_ENDING) // 2)
    config, _ = from_flat({"output_name": name, "save_model_as": ending})
    preview = marks.preview_name(config, index=100, step=10**7, time="20260101000000", epoch=None, seed=2**64 - 1)
    names = [
        marks.step_name(config, 10**8 - 1),
        marks.step_state_name(config, 10**8 - 1),
        marks.epoch_name(config, 10**6),
    ]
    names += [marks.last_name(config), f"{marks.step_name(config, 1)}"[: -len(ending)] + "peft.safetensors"]
    for one in [preview, *(f".{one}.4194304.tmp" for one in names), *(name + ending for ending in ENDINGS)]:
        assert len(os.fsencode(one)) <= LONGEST_NAME, one


def test_the_whole_path_has_room() -> None:
    deep = "/" + "/".join(["d" * 250] * 16)
    found = [one.code for one in check(TrainConfig(output_dir=deep, output_name="n" * 150))]
    assert "path-too-long" in found


@pytest.mark.parametrize(
    "path",
    ["/", "/etc", "/etc/x/y", "/usr/lib/x", "/tmp/../etc", "/dev", "/proc/self", "/var/lib/x", "/boot", "/sys",
     "/bin/x", "~/.ssh", "~/.config/autostart", "~/.local/share/x", "~/Library/LaunchAgents",
     "C:\\Windows\\System32",
     "c:/windows/x"],
)  # fmt: skip
def test_system_and_configuration_folders_need_a_word(path: str) -> None:
    assert protected(path) is not None
    assert protected(os.path.expanduser(path)) is not None


@pytest.mark.parametrize(
    "path", ["out", ".", "../x", "/tmp/x", "/var/tmp/x", "/home/u/x", "~/x", "/mnt/d",
     "/run/media/u/disk", "D:\\x", "/dev/shm/x", "/workspace", "/content/drive"]
)  # fmt: skip
def test_ordinary_folders_need_none(path: str) -> None:
    assert protected(path) is None


def test_links_are_followed_and_the_users_own_folder_is_his(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("/etc")
    assert protected(str(tmp_path / "link" / "x")) is not None
    home = tmp_path / "home"
    (home / ".projects" / "frog").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    assert protected(str(home / ".projects" / "frog" / "out")) is not None
    monkeypatch.chdir(home / ".projects" / "frog")
    assert protected("out") is None
    assert protected(str(home / ".projects" / "other")) is not None
    assert protected(str(home / "frog")) is None


@pytest.mark.parametrize("name", ["learning_rate", "unet_lr", "noise_offset", "network_alpha", "max_train_steps"])
@pytest.mark.parametrize("value", [1e30, float("nan"), float("inf"), "nan", "-inf", 10**400])
def test_a_number_beyond_all_bounds_is_told_which(name: str, value: Any) -> None:
    _, must, _ = refused({name: value})
    assert "finite" in must
    assert "at most" in must
