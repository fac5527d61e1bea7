from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from launcher.check.data import (
    anchored,
    carried_files,
    document,
    prompt_problems,
    scan_pictures,
    unpack,
)
from launcher.check.preflight import check_run
from launcher.check.resolve import resolve

CIVITAI = {
    "unetLR": 5e-4,
    "textEncoderLR": 5e-5,
    "minSnrGamma": 5,
    "targetSteps": 10,
    "numRepeats": 7,
    "resolution": 512,
    "trainBatchSize": 2,
    "maxTrainEpochs": 2,
    "networkDim": 4,
    "networkAlpha": 2,
    "lrSchedulerNumCycles": 1,
}


@pytest.fixture
def civitai(tmp_path: Path, checkpoint):
    file = tmp_path / "c.json"
    file.write_text(json.dumps(CIVITAI))
    sets = {
        "pretrained_model_name_or_path": str(checkpoint("sd15")),
        "output_dir": str(tmp_path / "out"),
        "output_name": "c",
        "resolution": "64",
        "min_bucket_reso": "64",
        "max_bucket_reso": "64",
    }
    return lambda folder: resolve(str(file), {**sets, "train_data_dir": str(folder)})


def test_a_plain_folder_takes_the_files_repeats(civitai, photos: Path) -> None:
    found = check_run(civitai(photos / "3_frog"))
    assert {sample.repeats for sample in found.scan.samples} == {7}
    assert found.resolved.config.dataset_config.endswith("c.run/dataset.toml")
    assert found.resolved.config.train_data_dir is None
    assert not [problem for problem in found.problems if problem.severity == "error"]


def test_a_numbered_parent_keeps_its_own_repeats(civitai, photos: Path) -> None:
    resolved = civitai(photos)
    assert document(resolved) is None
    assert {sample.repeats for sample in scan_pictures(resolved).samples} == {3}


def test_the_carried_document_is_what_will_be_written(civitai, photos: Path) -> None:
    resolved = unpack(civitai(photos / "3_frog"))
    text = carried_files(resolved)["dataset.toml"]
    assert tomllib.loads(text)["datasets"][0]["subsets"] == [{"image_dir": str(photos / "3_frog"), "num_repeats": 7}]


def test_prompts_go_into_the_run_folder(preset) -> None:
    resolved = unpack(resolve(str(preset(sample_prompts="a frog\nb"))))
    assert carried_files(resolved) == {"prompt.txt": "a frog\nb\n"}
    assert resolved.config.sample_prompts.endswith("frog.run/prompt.txt")


def test_a_prompt_file_of_the_user_stays(preset, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a frog")
    resolved = unpack(resolve(str(preset(sample_prompts="x")), {"sample_prompts": str(tmp_path / "p.txt")}))
    assert carried_files(resolved) == {}
    assert prompt_problems(resolved) == []


def test_a_faulty_prompt_file_is_found(preset, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("= no")
    resolved = resolve(str(preset()), {"sample_prompts": str(tmp_path / "p.toml")})
    assert [problem.severity for problem in prompt_problems(resolved)] == ["error"]


def test_carried_documents_and_relative_ones_get_absolute_paths(civitai, photos: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    held = anchored(unpack(civitai("data/3_frog")))
    text = carried_files(held)["dataset.toml"]
    assert tomllib.loads(text)["datasets"][0]["subsets"][0]["image_dir"] == str(photos / "3_frog")
    (tmp_path / "d.toml").write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "data/3_frog"\n')
    named = anchored(unpack(resolve(str(tmp_path / "c.json"), {"dataset_config": "d.toml", "output_dir": "out"})))
    assert named.config.dataset_config == str(tmp_path / "out" / "last.run" / "dataset.toml")
    assert str(photos / "3_frog") in carried_files(named)["dataset.toml"]


def test_a_plan_writes_no_temporary_file(civitai, photos: Path, monkeypatch) -> None:
    def refuse(*words, **options) -> None:
        raise AssertionError("a temporary file")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    assert len(check_run(civitai(photos / "3_frog")).scan.samples) == 4


def test_faults_of_a_carried_document_name_the_users_file(civitai, photos: Path) -> None:
    resolved = civitai(photos / "3_frog")
    resolved.draft.datasets = {"datasets": [{"subsets": [{"image_dir": str(photos / "3_frog"), "no_such": 1}]}]}
    (problem,) = [one for one in scan_pictures(resolved).problems if one.code == "unknown-option"]
    assert problem.file == resolved.draft.file
