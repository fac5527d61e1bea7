from __future__ import annotations

from pathlib import Path

import pytest

from launcher.check import paths
from launcher.check.resolve import resolve


@pytest.mark.parametrize(
    "path",
    [
        "C:\\Users\\me\\img",
        "D:/train",
        "\\\\server\\share",
        "/content/drive/img",
        "/kaggle/x",
        "/home/nobody-of-here/img",
    ],
)
def test_paths_of_other_machines(path) -> None:
    assert paths.foreign(path)


@pytest.mark.parametrize("path", ["img", "./img", "../x/y", "/tmp/new/folder"])
def test_paths_that_may_be_of_this_machine(path) -> None:
    assert not paths.foreign(path)


def codes(resolved) -> dict[str | None, str]:
    return {problem.key: problem.code for problem in paths.path_problems(resolved)}


def test_every_foreign_path_is_named_with_its_fix(preset) -> None:
    file = preset(output_dir="/content/out", logging_dir="E:\\log", train_data_dir="/content/img", vae="/content/v.pt")
    found = resolve(str(file))
    assert codes(found) == dict.fromkeys(("output_dir", "logging_dir", "train_data_dir", "vae"), "foreign-path")
    fixes = {problem.key: problem.fix for problem in paths.path_problems(found)}
    assert fixes["output_dir"] == "--set output_dir=PATH"
    assert "--set logging_dir=" in str(fixes["logging_dir"])


def test_a_folder_named_on_the_command_line_is_never_foreign(preset) -> None:
    assert codes(resolve(str(preset()), {"output_dir": "/brand-new-root/out"})) in (
        {},
        {"--set output_dir": "not-writable"},
    )


def test_missing_inputs_are_named(preset, tmp_path: Path) -> None:
    file = preset(network_weights=str(tmp_path / "no.safetensors"), reg_data_dir=str(tmp_path / "no"))
    assert codes(resolve(str(file))) == {"network_weights": "no-file", "reg_data_dir": "no-file"}


def test_an_output_folder_that_is_a_file(preset, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert codes(resolve(str(preset(output_dir=str(tmp_path / "taken"))))) == {"output_dir": "not-a-folder"}
    assert codes(resolve(str(preset(output_dir=str(tmp_path / "taken" / "below"))))) == {"output_dir": "not-writable"}


@pytest.mark.parametrize(
    "name",
    [
        "frog.safetensors",
        "frog-000003.safetensors",
        "frog-step00000010.safetensors",
        "frog-state/x",
        "frog.run/log.jsonl",
        "frog.run/state-00000004/x",
    ],
)
def test_results_of_an_earlier_run_are_seen(preset, tmp_path: Path, name) -> None:
    result = tmp_path / "out" / name
    result.parent.mkdir(parents=True)
    result.write_text('{"step": 1}')
    found = paths.overwrite_problem(resolve(str(preset())))
    assert found is not None
    assert name.partition("/")[0] in found.must
    assert paths.overwrite_problem(resolve(str(preset()), {"overwrite": "true"})) is None


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["frog.safetensors", "frog.run/log.jsonl"], "frog.run --epochs 2,"),
        (["frog-000001.safetensors", "frog.run/log.jsonl", "frog.run/state-00000004/x"], "frog.run,"),
        (["frog.run/log.jsonl"], "frog.run,"),
        (["frog-000001.safetensors", "frog.safetensors"], "frog.safetensors --epochs 2,"),
    ],
)
def test_the_command_that_goes_on_is_one_that_can(preset, tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text('{"step": 1}')
    found = paths.overwrite_problem(resolve(str(preset())))
    assert str(found.fix).startswith(f"kohyakit resume {tmp_path / 'out' / words}")


@pytest.mark.parametrize(
    "name", ["frogs.safetensors", "frog_20260101-000000.json", "frog-v1.safetensors", "frog.run/run.json"]
)
def test_other_files_are_no_results(preset, tmp_path: Path, name) -> None:
    other = tmp_path / "out" / name
    other.parent.mkdir(parents=True)
    other.write_text("")
    assert paths.overwrite_problem(resolve(str(preset()))) is None


def test_a_dataset_file_makes_folders_irrelevant(preset, tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text("")
    file = preset(train_data_dir="/content/img", dataset_config=str(tmp_path / "d.toml"))
    assert codes(resolve(str(file))) == {}


@pytest.mark.parametrize("below", ["", "/below"])
@pytest.mark.parametrize("target", ["circle", "nowhere"])
@pytest.mark.parametrize("key", ["output_dir", "logging_dir", "console_log_file"])
def test_an_output_behind_a_link_to_nothing(preset, tmp_path: Path, key: str, target: str, below: str) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / target)
    found = codes(resolve(str(preset()), {key: f"{tmp_path}/circle{below}"}))
    assert found == {f"--set {key}": "not-writable"}


@pytest.mark.parametrize("key", ["console_log_file", "network_weights", "base_weights", "log_tracker_config"])
def test_a_folder_where_a_file_is_meant(preset, tmp_path: Path, key: str) -> None:
    (tmp_path / "folder").mkdir()
    assert codes(resolve(str(preset()), {key: str(tmp_path / "folder")})) == {f"--set {key}": "not-a-file"}
