from __future__ import annotations

import errno
import json
import os
import stat
import time
from pathlib import Path

import pytest

from launcher.check.machine import this_machine
from launcher.check.plan import make_plan
from launcher.check.resolve import resolve
from launcher.run import launch as run
from schemas import read
from schemas.problems import ConfigError
from tests.launcher.conftest import add_state


def test_a_run_leaves_its_folder_and_its_snapshot(kohyakit, preset, trainer, tmp_path: Path) -> None:
    assert kohyakit("launch", preset(sample_prompts="a frog")).exit_code == 0
    folder = tmp_path / "out" / "frog.run"
    assert {"config.toml", "source.json", "run.json", "prompt.txt"} <= {path.name for path in folder.iterdir()}
    config, _ = read(folder / "config.toml")
    assert (config.max_train_steps, config.network_dim, config.sample_prompts) == (12, 4, str(folder / "prompt.txt"))
    (snapshot,) = (tmp_path / "out").glob("frog_????????-??????.json")
    assert json.loads(snapshot.read_text())["network_dim"] == 4


def test_the_snapshot_trains_the_same(kohyakit, preset, trainer, tmp_path: Path) -> None:
    file = preset(sample_prompts="a frog", sample_every_n_epochs=1, noise_offset=0.05)
    kohyakit("launch", file)
    (snapshot,) = (tmp_path / "out").glob("frog_*.json")
    found = json.loads(kohyakit("diff", file, snapshot, "--json").stdout)
    # the steps, computed for the form's file, are a number in the snapshot
    assert [entry["argument"] for entry in found["differences"]] == ["max_train_steps"]
    assert json.loads(kohyakit("validate", snapshot, "--json").stdout)["files"][0]["format"] == "snapshot"


def test_the_record_names_origins_versions_and_starts(kohyakit, preset, trainer, tmp_path: Path) -> None:
    kohyakit("launch", preset(mixed_precision="fp16"), "--set", "network_alpha=1")
    record = json.loads((tmp_path / "out" / "frog.run" / "run.json").read_text())
    assert record["origins"]["network_alpha"]["origin"] == "--set"
    assert record["adapted"][0]["argument"] == "mixed_precision"
    assert {"python", "torch"} <= set(record["versions"])
    assert record["dataset"]["images"] == 4
    assert len(record["model"]["fingerprint"]) == 64
    (start,) = record["starts"]
    assert (start["exit"], start["last_step"], start["mode"]) == (0, 12, "launch")


def test_the_source_is_kept_byte_for_byte_without_secrets(kohyakit, preset, trainer, tmp_path: Path) -> None:
    file = preset(wandb_api_key="0" * 40, training_comment="grün")
    kohyakit("launch", file)
    kept = (tmp_path / "out" / "frog.run" / "source.json").read_bytes()
    assert kept == file.read_bytes().replace(b"0" * 40, b"***")
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"0" * 40 not in everything


def test_secrets_reach_the_trainer_by_its_environment(kohyakit, preset, trainer) -> None:
    kohyakit("launch", preset(), "--set", "wandb_api_key=abc")
    (_, environment) = trainer.starts[0]
    assert environment["WANDB_API_KEY"] == "abc"
    assert environment["KOHYAKIT_LAUNCHED"] == "1"


def test_a_missing_seed_is_drawn_and_kept(kohyakit, preset, trainer, tmp_path: Path) -> None:
    kohyakit("launch", preset(seed=""))
    assert read(tmp_path / "out" / "frog.run" / "config.toml")[0].seed is not None


def test_input_errors_write_nothing(kohyakit, preset, trainer, tmp_path: Path, files) -> None:
    file = preset(train_data_dir="/content/img", output_dir=str(tmp_path / "new" / "out"))
    before = files(tmp_path)
    found = kohyakit("launch", file)
    assert (found.exit_code, files(tmp_path), trainer.starts) == (1, before, [])
    assert not (tmp_path / "new").exists()


def test_earlier_results_are_kept_until_told(kohyakit, preset, trainer, tmp_path: Path) -> None:
    assert kohyakit("launch", preset()).exit_code == 0
    refused = kohyakit("launch", preset())
    assert (refused.exit_code, len(trainer.starts)) == (1, 1)
    assert "frog.safetensors" in refused.stderr
    (tmp_path / "out" / "frog.run" / "state-00000004").mkdir()
    assert kohyakit("launch", preset(), "--overwrite").exit_code == 0
    assert not (tmp_path / "out" / "frog.run" / "state-00000004").exists()
    assert len(json.loads((tmp_path / "out" / "frog.run" / "run.json").read_text())["starts"]) == 1


def test_print_command_writes_nothing(kohyakit, preset, trainer, tmp_path: Path, files) -> None:
    file = preset()
    before = files(tmp_path)
    found = kohyakit("launch", file, "--print-command", "--processes", "2")
    assert (found.exit_code, files(tmp_path), trainer.starts) == (0, before, [])
    assert "--num_processes 2" in found.stdout
    assert found.stdout.count("\n") == 1


def test_a_failure_names_cause_advice_and_what_was_saved(kohyakit, preset, trainer) -> None:
    trainer.code, trainer.lines, trainer.steps = 3, ("torch.OutOfMemoryError: CUDA out of memory.",), 5
    trainer.leaves = ("frog-000001.safetensors",)
    found = kohyakit("launch", preset())
    assert found.exit_code == 3
    assert "failed at step 5 of 12: the GPU's memory is full" in found.stderr
    assert "frog-000001.safetensors" in found.stderr


def test_a_failure_gives_a_command_that_mends_it(kohyakit, preset, trainer, tmp_path: Path) -> None:
    trainer.code, trainer.lines, trainer.steps, trainer.leaves = 3, ("OSError: [Errno 24] Too many open files",), 5, ()
    found = json.loads(kohyakit("launch", preset(max_data_loader_n_workers=2), "--json").stdout)
    assert found["keys"] == ["max_data_loader_n_workers", "persistent_data_loader_workers"]
    assert found["fix"].startswith(f"kohyakit launch {tmp_path / 'frog.json'} --overwrite --set max_data_loader_n_wo")
    add_state(tmp_path / "out" / "frog.run", 4)
    found = kohyakit("launch", preset(max_data_loader_n_workers=2), "--overwrite")
    assert "go on with: kohyakit launch" in found.stderr  # --overwrite has swept that state


def test_out_of_memory_gives_the_memory_plans_changes(kohyakit, preset, trainer, full_size, tmp_path) -> None:
    trainer.code, trainer.lines, trainer.steps = 3, ("torch.OutOfMemoryError: CUDA out of memory.",), 5
    trainer.leaves = ("frog-000001.safetensors",)
    file = preset(gradient_checkpointing=False, pretrained_model_name_or_path=full_size, max_resolution="512,512")
    found = kohyakit("launch", file, "--set", "max_bucket_reso=1024")
    fix = found.stderr.partition("go on with: ")[2]
    assert fix.startswith(f"kohyakit resume {tmp_path / 'out' / 'frog.run'} --steps 7 --set ")
    assert "gradient_checkpointing=true" in fix


@pytest.mark.parametrize(
    ("code", "lines", "steps", "ends"),
    [
        (130, (), 5, 130),
        (1, ("error: x",), 0, 1),
        (1, ("ImportError: y",), 0, 3),
        (1, (), 4, 3),
        (-9, (), 4, 3),
    ],
)
def test_exit_codes(kohyakit, preset, trainer, code, lines, steps, ends, tmp_path: Path) -> None:
    trainer.code, trainer.lines, trainer.steps, trainer.leaves = code, lines, steps, ()
    assert kohyakit("launch", preset()).exit_code == ends
    assert json.loads((tmp_path / "out" / "frog.run" / "run.json").read_text())["starts"][0]["exit"] == ends


def test_one_document_for_scripts(kohyakit, preset, trainer) -> None:
    found = kohyakit("launch", preset(), "--json")
    document = json.loads(found.stdout)
    assert (document["ok"], document["exit"], document["last_step"]) == (True, 0, 12)
    assert document["saved"][0].endswith("frog.safetensors")


def test_a_folder_that_cannot_be_written_is_refused(preset, trainer, monkeypatch) -> None:
    plan = make_plan(resolve(str(preset())), this_machine())

    def read_only(*words, **options) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr("tempfile.NamedTemporaryFile", read_only)
    with pytest.raises(ConfigError, match="Read-only"):
        run.launch(plan, write=print, say=print)
    assert trainer.starts == []


def test_strict_refuses_to_adapt(kohyakit, preset, trainer) -> None:
    assert kohyakit("launch", preset(mixed_precision="fp16"), "--strict").exit_code == 1
    assert trainer.starts == []


def test_older_results_are_not_claimed(kohyakit, preset, trainer, tmp_path: Path) -> None:
    kohyakit("launch", preset())
    old = tmp_path / "out" / "frog-000009.safetensors"
    old.write_text("")
    os.utime(old, (time.time() - 1000,) * 2)
    document = json.loads(kohyakit("launch", preset(), "--overwrite", "--json").stdout)
    assert [Path(path).name for path in document["saved"]] == ["frog.safetensors"]


def test_a_stop_without_a_save_says_where_going_on_starts(kohyakit, preset, trainer, tmp_path: Path) -> None:
    trainer.code, trainer.steps, trainer.leaves = 130, 8, ()
    assert "step 8 of 12, before there was anything to go on from" in kohyakit("launch", preset()).stderr
    for step, said in ((6, ", which was not saved: going on starts again at step 6"), (8, "")):
        state = add_state(tmp_path / "out" / "frog.run", step)
        assert run._lost(state.parent, 8) == said


def test_a_second_machine_leaves_the_first_ones_record_alone(kohyakit, preset, trainer, tmp_path: Path) -> None:
    """Both may see the same disk; a seed drawn on each must not replace the one that counts."""
    words = ("--machines", "2", "--processes", "2", "--main-ip", "10.0.0.1", "--main-port", "29501")
    trainer.leaves, trainer.steps = (), 0
    assert kohyakit("launch", preset(seed=""), *words, "--machine-rank", "0").exit_code == 0
    folder = tmp_path / "out" / "frog.run"
    kept = [(folder / name).read_bytes() for name in ("run.json", "config.toml")]
    (folder / "log.jsonl").unlink()
    assert kohyakit("launch", preset(seed=""), *words, "--machine-rank", "1").exit_code == 0
    assert [(folder / name).read_bytes() for name in ("run.json", "config.toml")] == kept
    assert trainer.starts[1][0][-1] == str(folder / "config-1.toml")
    assert len(list((tmp_path / "out").glob("frog_*.json"))) == 1


def test_debug_dataset_shows_the_data_and_writes_nothing(kohyakit, preset, trainer, tmp_path: Path, files) -> None:
    file = preset()
    before = files(tmp_path)
    found = kohyakit("launch", file, "--set", "debug_dataset=true")
    assert found.exit_code == 0
    assert files(tmp_path) == before
    assert not trainer.starts


class Disk:
    """Takes `left` writes more, then refuses every one with the system's error `number`."""

    def __init__(self, left: int, number: int) -> None:
        self.left, self.number = left, number
        self.flush = os.fsync

    def fsync(self, handle: int) -> None:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            self.left -= 1
            if self.left < 0:
                raise OSError(self.number, os.strerror(self.number))
        self.flush(handle)


DISKS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS]
WRITES = 6  # the probe, prompts, config, source, snapshot, record


@pytest.mark.parametrize("number", DISKS, ids=errno.errorcode.get)
@pytest.mark.parametrize("left", range(WRITES))
def test_a_disk_that_refuses_any_write_before_the_start_is_an_input_error_that_leaves_nothing(
    left: int, number: int, kohyakit, preset, trainer, tmp_path: Path, files, monkeypatch
) -> None:
    file, before = preset(sample_prompts="a frog", output_dir=str(tmp_path / "new" / "out")), files(tmp_path)
    monkeypatch.setattr("os.fsync", Disk(left, number).fsync)
    found = kohyakit("launch", file)
    assert (found.exit_code, files(tmp_path), trainer.starts) == (1, before, [])
    assert f"cannot be written: {os.strerror(number)}" in found.stderr
    assert "--set output_dir=PATH" in found.stderr


@pytest.mark.parametrize("number", DISKS, ids=errno.errorcode.get)
@pytest.mark.parametrize("code", [0, 3])
def test_a_disk_that_refuses_the_record_s_end_changes_nothing_else(
    code: int, number: int, kohyakit, preset, trainer, tmp_path: Path, monkeypatch
) -> None:
    trainer.code = code
    trainer.lines = (f"trainer.watch.stopping.TrainingStopped: {os.strerror(number)}: 0.0 MB are left",) if code else ()
    monkeypatch.setattr("os.fsync", Disk(WRITES, number).fsync)
    found = kohyakit("launch", preset(sample_prompts="a frog"))
    assert found.exit_code == code
    assert f"run.json: {os.strerror(number)}" in found.stderr
    assert ("the disk" in found.stderr) == bool(code)
    (start,) = json.loads((tmp_path / "out" / "frog.run" / "run.json").read_text())["starts"]
    assert start["end"] is None


def test_an_interrupt_before_the_trainer_is_there_is_recorded(kohyakit, preset, trainer, tmp_path, monkeypatch) -> None:
    def stopped(*words, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_child", stopped)
    found = kohyakit("launch", preset())
    assert found.exit_code == 130
    assert "interrupted at step 0 of 12" in found.stderr
    (start,) = json.loads((tmp_path / "out" / "frog.run" / "run.json").read_text())["starts"]
    assert start["exit"] == 130
