from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from launcher.run.resume import find, go_on
from schemas import read
from schemas.problems import ConfigError
from tests.launcher.conftest import add_state, safetensors


def results(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".json")


@pytest.fixture
def done(kohyakit, preset, trainer, lora, tmp_path: Path) -> Path:
    """A finished run in out/, with a LoRA of rank 4 and alpha 2 that can be read."""
    kohyakit("launch", preset(sample_prompts="a frog", sample_every_n_epochs=1))
    lora("out/frog.safetensors")
    return tmp_path / "out"


@pytest.fixture
def cut(kohyakit, preset, trainer, tmp_path: Path) -> Path:
    """A run that was killed at step 8 of 12, with a state of step 6."""
    trainer.code, trainer.steps, trainer.leaves = -9, 8, ()
    kohyakit("launch", preset())
    state = tmp_path / "out" / "frog.run" / "state-00000006"
    state.mkdir()
    size = (state / "progress.json").write_text('{"step": 6, "epoch": 1, "batch": 6}')
    (state / "complete").write_text(json.dumps({"progress.json": size}))
    trainer.code, trainer.steps, trainer.leaves = 0, 12, ("frog.safetensors",)
    return tmp_path / "out"


@pytest.mark.parametrize("path", ["out", "out/frog.run", "out/frog.safetensors", "snapshot"])
def test_every_kind_of_path_leads_to_the_run(done: Path, path) -> None:
    named = next(done.glob("frog_*.json")) if path == "snapshot" else done.parent / path
    found = find(str(named))
    assert (found.run, found.weights, found.name) == (done / "frog.run", done / "frog.safetensors", "frog")


def test_a_copy_leads_to_its_run_and_starts_from_itself(done: Path, lora) -> None:
    copy = lora("out/frog-000001.safetensors")
    found = find(str(copy))
    assert (found.run, found.weights, found.name) == (done / "frog.run", copy, "frog")


def test_continuing_keeps_the_older_run_under_a_number(kohyakit, done: Path, trainer, lora) -> None:
    lora("out/frog-000001.safetensors")
    found = kohyakit("resume", done, "--epochs", "3")
    assert found.exit_code == 0
    assert found.stdout.startswith("continue: a new run of 3 epochs from the weights")
    assert f"starts from {done / 'frog-v1.safetensors'}" in found.stdout
    assert results(done) == [
        "frog-v1-000001.safetensors",
        "frog-v1.run",
        "frog-v1.safetensors",
        "frog.run",
        "frog.safetensors",
    ]
    config, _ = read(done / "frog.run" / "config.toml")
    assert (config.max_train_epochs, config.network_weights) == (3, str(done / "frog-v1.safetensors"))
    assert (config.network_dim, config.network_alpha, config.resume) == (4, 2.0, None)
    assert config.sample_prompts == str(done / "frog.run" / "prompt.txt")
    assert Path(config.sample_prompts).read_text() == "a frog\n"


@pytest.mark.parametrize("name", ["frog.ema", "frog-000001.ema", "frog.peft"])
def test_what_stands_beside_a_lora_leads_to_its_run_and_starts_from_itself(done: Path, lora, name) -> None:
    beside = lora(f"out/{name}.safetensors")
    found = find(str(beside))
    assert (found.run, found.weights, found.name) == (done / "frog.run", beside, "frog")


def test_continuing_from_the_average_renames_it_with_its_lora(kohyakit, done: Path, trainer, lora) -> None:
    for kind in ("ema", "peft"):
        lora(f"out/frog.{kind}.safetensors")
    found = kohyakit("resume", done / "frog.ema.safetensors", "--epochs", "3")
    assert found.exit_code == 0, found.output
    assert f"starts from {done / 'frog-v1.ema.safetensors'}" in found.stdout
    assert results(done) == [
        "frog-v1.ema.safetensors",
        "frog-v1.peft.safetensors",
        "frog-v1.run",
        "frog-v1.safetensors",
        "frog.run",
        "frog.safetensors",
    ]
    assert read(done / "frog.run" / "config.toml")[0].network_weights == str(done / "frog-v1.ema.safetensors")


def test_a_folder_means_the_lora_and_not_what_stands_beside_it(done: Path, lora, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    for name in ("toad", "toad.peft", "toad.ema"):
        lora(f"bare/{name}.safetensors")
    for number, name in enumerate(("toad", "toad.peft", "toad.ema")):
        os.utime(tmp_path / "bare" / f"{name}.safetensors", (number, number))
    assert find(str(tmp_path / "bare")).weights == tmp_path / "bare" / "toad.safetensors"
    lora("out/frog-000001.ema.safetensors")
    lora("out/frog-000001.safetensors")
    os.utime(done / "frog-000001.safetensors", (1, 1))
    (done / "frog.safetensors").unlink()
    assert find(str(done)).weights == done / "frog-000001.safetensors"


def test_continuing_twice_counts_on(kohyakit, done: Path, lora) -> None:
    kohyakit("resume", done, "--steps", "5")
    lora("out/frog.safetensors")
    kohyakit("resume", done, "--steps", "5")
    assert [name for name in results(done) if name.endswith(".run")] == ["frog-v1.run", "frog-v2.run", "frog.run"]
    assert read(done / "frog.run" / "config.toml")[0].max_train_steps == 5


def test_another_name_moves_nothing(kohyakit, done: Path, trainer) -> None:
    trainer.leaves = ("toad.safetensors",)
    assert kohyakit("resume", done / "frog.safetensors", "--epochs", "1", "--set", "output_name=toad").exit_code == 0
    assert results(done) == ["frog.run", "frog.safetensors", "toad.run", "toad.safetensors"]


def test_rank_comes_from_the_file_and_another_is_refused(kohyakit, done: Path, lora) -> None:
    lora("out/frog.safetensors", rank=8, alpha=4)
    before = results(done)
    refused = kohyakit("resume", done, "--epochs", "1", "--set", "network_dim=16")
    assert (refused.exit_code, results(done)) == (1, before)
    assert "is 8 in" in refused.stderr
    kohyakit("resume", done, "--epochs", "1")
    assert read(done / "frog.run" / "config.toml")[0].network_dim == 8


def test_a_lora_of_another_family_is_refused_before_anything_moves(kohyakit, done: Path, lora) -> None:
    lora("out/frog.safetensors", width=2048)
    before = results(done)
    assert kohyakit("resume", done, "--epochs", "1").exit_code == 1
    assert results(done) == before


def test_a_lora_of_kohyas_alone_is_enough(kohyakit, trainer, lora, preset, tmp_path: Path) -> None:
    stated = {
        "ss_network_dim": "4",
        "ss_network_alpha": "2",
        "ss_resolution": "(64, 64)",
        "ss_learning_rate": "1e-4",
        "ss_output_name": "theirs",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
    }
    file = lora("theirs/theirs.safetensors", metadata=stated)
    needs = json.loads(preset().read_text())
    trainer.leaves = ("theirs.safetensors",)
    words = [
        word
        for name in ("pretrained_model_name_or_path", "train_data_dir")
        for word in ("--set", f"{name}={needs[name]}")
    ]
    words += ["--set", "min_bucket_reso=64", "--set", "max_bucket_reso=64", "--set", "caption_extension=.txt"]
    found = kohyakit("resume", file, "--epochs", "1", *words)
    assert found.exit_code == 0, found.output
    config, _ = read(tmp_path / "theirs" / "theirs.run" / "config.toml")
    assert config.network_weights == str(tmp_path / "theirs" / "theirs-v1.safetensors")
    assert config.learning_rate == 1e-4


BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
TEXT = "encoder.layers.0.self_attn.q_proj"
FLAT = f"lora_unet_{BLOCK.replace('.', '_')}_to_k"
STYLES = {
    "kohya": {f"{FLAT}.lora_down.weight": (8, 768), f"{FLAT}.lora_up.weight": (320, 8), f"{FLAT}.alpha": ()},
    "lycoris": {
        f"{FLAT}.hada_w1_a": (320, 8), f"{FLAT}.hada_w1_b": (8, 768), f"{FLAT}.hada_w2_a": (320, 8),
        f"{FLAT}.hada_w2_b": (8, 768), f"{FLAT}.alpha": (),
    },
    "peft": {
        f"base_model.model.{BLOCK}.to_k.lora_A.weight": (8, 768),
        f"base_model.model.{BLOCK}.to_k.lora_B.weight": (320, 8),
    },
    "diffusers": {f"unet.{BLOCK}.to_k.lora.down.weight": (8, 768), f"unet.{BLOCK}.to_k.lora.up.weight": (320, 8)},
    "old diffusers": {
        f"unet.{BLOCK}.processor.to_k_lora.down.weight": (8, 768),
        f"unet.{BLOCK}.processor.to_k_lora.up.weight": (320, 8),
    },
    "text encoder only": {
        f"lora_te_text_model_{TEXT.replace('.', '_')}.lora_down.weight": (8, 768),
        f"lora_te_text_model_{TEXT.replace('.', '_')}.lora_up.weight": (768, 8),
    },
}  # fmt: skip


@pytest.fixture
def needed(preset) -> list[str]:
    """What a LoRA alone does not say."""
    needs = json.loads(preset().read_text())
    values = {name: needs[name] for name in ("pretrained_model_name_or_path", "train_data_dir")}
    values |= {"resolution": "64", "min_bucket_reso": 64, "max_bucket_reso": 64, "caption_extension": ".txt"}
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


@pytest.mark.parametrize("style", STYLES)
def test_a_lora_of_every_style_is_gone_on_from(kohyakit, trainer, needed, tmp_path: Path, style) -> None:
    (tmp_path / "theirs").mkdir()
    alphas = {name: 4.0 for name in STYLES[style] if name.endswith("alpha")}
    file = safetensors(tmp_path / "theirs" / "l.safetensors", STYLES[style], alphas)
    trainer.leaves = ("l.safetensors",)
    found = kohyakit("resume", file, "--epochs", "1", *needed)
    assert found.exit_code == 0, found.output
    config, _ = read(tmp_path / "theirs" / "l.run" / "config.toml")
    assert (config.network_dim, config.network_alpha) == (8, 4.0 if alphas else 8.0)
    assert (tmp_path / "theirs" / "l-v1.safetensors").is_file()
    assert config.network_train_text_encoder_only is (style == "text encoder only")
    assert config.network_train_unet_only is (style != "text encoder only")


def test_a_base_model_or_another_family_is_refused_by_name(kohyakit, needed, lora, checkpoint, tmp_path: Path) -> None:
    other = kohyakit("resume", lora("theirs/l.safetensors", width=2048), "--epochs", "1", *needed)
    assert (other.exit_code, "SDXL" in other.stderr) == (1, True)
    model = kohyakit("resume", checkpoint("sd15"), "--epochs", "1", *needed)
    assert (model.exit_code, "holds no LoRA" in model.stderr) == (1, True)


def test_a_finished_run_asks_how_much_further(kohyakit, done: Path) -> None:
    found = kohyakit("resume", done)
    assert found.exit_code == 1
    assert "--epochs N" in found.stderr


def test_a_run_that_was_cut_off_goes_on_exactly(kohyakit, cut: Path, trainer) -> None:
    found = kohyakit("resume", cut)
    assert found.exit_code == 0, found.output
    state = cut / "frog.run" / "state-00000006"
    assert found.stdout.startswith(f"resume: exactly, from step 6 of 12, state {state}")
    assert "nothing differs" in found.stdout
    assert read(cut / "frog.run" / "config.toml")[0].resume == str(
        cut / "frog.run"
    )  # the newest, chosen under the lock
    starts = json.loads((cut / "frog.run" / "run.json").read_text())["starts"]
    assert [(start["mode"], start["exit"]) for start in starts] == [("launch", 3), ("resume", 0)]


def test_another_number_of_processes_is_equivalent(kohyakit, cut: Path) -> None:
    found = kohyakit("resume", cut, "--processes", "2")
    assert found.stdout.startswith("resume: equivalently, from step 6")
    assert "differs: 1 -> 2 processes" in found.stdout


def test_other_data_are_told_file_by_file(kohyakit, cut: Path, photos: Path) -> None:
    (photos / "3_frog" / "0.txt").write_text("another caption altogether")
    (photos / "3_frog" / "1.txt").unlink()
    (photos / "3_frog" / "2.png").rename(photos / "3_frog" / "9.png")
    Image.new("RGB", (64, 64), "red").save(photos / "3_frog" / "3.png")
    said = kohyakit("resume", cut).stdout
    assert said.startswith("resume: not exactly, from step 6")
    for line in (
        "1 picture added: 3_frog/9.png",
        "1 picture removed: 3_frog/2.png",
        "1 picture edited: 3_frog/3.png",
        "1 caption edited: 3_frog/0.png",
        "verdict: a new run from here on",
    ):
        assert line in said
    assert "2 captions removed: 3_frog/1.png, 3_frog/2.png" in said


def test_copied_data_are_the_same_data(kohyakit, cut: Path, photos: Path) -> None:
    for path in (photos / "3_frog").iterdir():
        os.utime(path, (1, 1))
    said = kohyakit("resume", cut).stdout
    assert "nothing differs" in said
    assert "verdict: exact" in said


@pytest.mark.parametrize(
    ("word", "line", "how"),
    [
        ("save_every_n_steps=2", "save_every_n_steps: None -> 2 (may change)", "exactly"),
        ("gradient_checkpointing=true", "gradient_checkpointing: False -> True (may change)", "equivalently"),
        ("max_train_steps=20", "max_train_steps: 12 -> 20 (may change)", "equivalently"),
    ],
)
def test_changed_options_are_told_with_what_they_make_of_it(kohyakit, cut: Path, word, line, how) -> None:
    said = kohyakit("resume", cut, "--set", word).stdout
    assert said.startswith(f"resume: {how}, from step 6")
    assert f"differs: {line}" in said


def test_another_model_version_and_machine_are_told(kohyakit, cut: Path, tmp_path: Path) -> None:
    with (tmp_path / "sd15.safetensors").open("r+b") as stream:
        stream.seek(-4, 2)
        stream.write(b"1234")
    kept = json.loads((cut / "frog.run" / "run.json").read_text())
    kept["versions"]["torch"] = "1.13"
    kept["machine"]["threads"] = 64
    (cut / "frog.run" / "run.json").write_text(json.dumps(kept))
    said = kohyakit("resume", cut).stdout
    assert "the base model has changed" in said
    assert "differs: torch 1.13 -> " in said
    assert "differs: threads 64 -> 2" in said


def test_a_cut_off_copy_of_a_state_does_not_count(kohyakit, cut: Path) -> None:
    later = cut / "frog.run" / "state-00000008"
    later.mkdir()
    (later / "complete").write_text('{"adapter.safetensors": 1000}')
    (later / "adapter.safetensors").write_bytes(b"0" * 10)
    assert "from step 6" in kohyakit("resume", cut).stdout


def test_a_run_resumes_from_another_working_folder(kohyakit, preset, trainer, photos, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = preset(train_data_dir="data", output_dir="out", pretrained_model_name_or_path="sd15.safetensors")
    assert kohyakit("launch", file.name).exit_code == 0
    config, _ = read(tmp_path / "out" / "frog.run" / "config.toml")
    assert (config.train_data_dir, config.output_dir) == (str(photos), str(tmp_path / "out"))
    assert trainer.starts[0][0][-1] == str(tmp_path / "out" / "frog.run" / "config.toml")
    (snapshot,) = (tmp_path / "out").glob("frog_*.json")
    assert json.loads(snapshot.read_text())["train_data_dir"] == str(photos)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert kohyakit("resume", "../out/frog.run", "--to-end").exit_code == 1  # no state; but everything is found
    assert kohyakit("plan", snapshot, "--set", "overwrite=true").exit_code == 0


def test_only_some_options_may_change_on_an_exact_resume(kohyakit, cut: Path, trainer) -> None:
    refused = kohyakit("resume", cut, "--set", "network_dim=8")
    assert (refused.exit_code, "is 4 in this run" in refused.stderr, len(trainer.starts)) == (1, True, 1)
    assert kohyakit("resume", cut, "--set", "save_every_n_steps=2").exit_code == 0


def test_a_renamed_dataset_is_asked_for_and_is_the_same_data(kohyakit, cut: Path, photos: Path, trainer) -> None:
    moved = photos.rename(photos.with_name("pictures"))
    asked = kohyakit("resume", cut)
    assert asked.exit_code == 1
    assert "train_data_dir: does not exist" in asked.stderr
    assert "removed" not in asked.stderr
    assert "verdict" not in asked.stderr
    found = kohyakit("resume", cut, "--set", f"train_data_dir={moved}")
    assert found.stdout.startswith("resume: exactly, from step 6")
    assert "verdict: exact" in found.stdout
    assert kohyakit("resume", cut, "--to-end").exit_code == 0  # kept for the next time


def test_another_base_model_under_another_name_is_no_exact_resume(kohyakit, cut: Path, tmp_path: Path) -> None:
    other = shutil.copy(tmp_path / "sd15.safetensors", tmp_path / "copy.safetensors")
    assert "verdict: exact" in kohyakit("resume", cut, "--set", f"pretrained_model_name_or_path={other}").stdout
    said = kohyakit("resume", cut, "--to-end", "--set", f"vae={other}").stdout
    assert "the VAE has changed: None -> copy.safetensors" in said
    assert "a new run from here on" in said


def test_a_state_may_be_named_to_go_back_to_it(kohyakit, cut: Path) -> None:
    add_state(cut / "frog.run", 8)
    state = cut / "frog.run" / "state-00000006"
    found = kohyakit("resume", state)
    assert found.stdout.startswith(f"resume: exactly, from step 6 of 12, state {state}")
    assert "goes back: newer states, down to state-00000008" in found.stdout
    assert read(cut / "frog.run" / "config.toml")[0].resume == str(state)


@pytest.mark.parametrize("part", ["config.toml", "log.jsonl", "run.json"])
def test_a_part_of_a_run_folder_leads_to_the_run(cut: Path, part) -> None:
    found = find(str(cut / "frog.run" / part))
    assert (found.run, found.state) == (cut / "frog.run", cut / "frog.run" / "state-00000006")


def test_trust_is_for_one_command_and_no_folders_to_give(kohyakit, preset, trainer, tmp_path: Path) -> None:
    trainer.code, trainer.steps, trainer.leaves = 130, 8, ()
    start = kohyakit("launch", preset(), "--set", "lr_scheduler_type=their.Schedule", "--trust", "their")
    add_state(tmp_path / "out" / "frog.run", 6)
    assert (start.exit_code, trainer.starts[0][0][-2:]) == (130, ["--trust", "their"])
    config = tmp_path / "out" / "frog.run" / "config.toml"
    assert "trust =" not in config.read_text()
    for forged in ("", 'trust = ["their"]\n'):
        config.write_text(forged + config.read_text())
        refused = kohyakit("resume", tmp_path / "out")
        assert (refused.exit_code, len(trainer.starts)) == (1, 1)
        assert "--trust their.Schedule" in refused.stderr
    again = kohyakit("resume", tmp_path / "out", "--trust", "their")
    assert (again.exit_code, trainer.starts[1][0][-2:]) == (130, ["--trust", "their"])
    assert f"go on with: kohyakit resume {tmp_path / 'out' / 'frog.run'} --trust their" in again.stderr


def test_what_is_on_the_disk_already_needs_no_room_again(kohyakit, cut: Path, monkeypatch) -> None:
    planned = kohyakit("plan", cut.parent / "frog.json", "--set", "output_name=other", "--json").stdout
    usage = shutil.disk_usage(cut)._replace(free=json.loads(planned)["disk_bytes"] - 100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "MB are free" in kohyakit("resume", cut).stderr
    (cut / "frog-000001.safetensors").write_bytes(b"0" * 100_001)
    assert kohyakit("resume", cut).exit_code == 0


def test_a_moved_folder_still_resumes(kohyakit, cut: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(cut, moved)
    assert kohyakit("resume", moved / "frog.run").exit_code == 0
    config, _ = read(moved / "frog.run" / "config.toml")
    assert (config.output_dir, config.resume) == (str(moved), str(moved / "frog.run"))


def test_an_unfinished_state_does_not_count(kohyakit, cut: Path) -> None:
    (cut / "frog.run" / "state-00000008").mkdir()
    assert "from step 6" in kohyakit("resume", cut).stdout


def test_no_state_means_no_exact_resume(done: Path) -> None:
    with pytest.raises(ConfigError, match="no state"):
        go_on(str(done), {}, to_end=True)


@pytest.mark.parametrize("words", [["--epochs", "1", "--steps", "2"], ["--epochs", "1", "--set", "netwrk_dim=3"]])
def test_wrong_words(kohyakit, done: Path, words) -> None:
    assert kohyakit("resume", done, *words).exit_code == 2


def test_nothing_to_resume(kohyakit, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert kohyakit("resume", tmp_path / "empty").exit_code == 1
    assert kohyakit("resume", tmp_path / "missing").exit_code == 1


def test_print_command_moves_nothing(kohyakit, done: Path, trainer, files) -> None:
    before = files(done)
    found = kohyakit("resume", done, "--epochs", "1", "--print-command")
    assert (found.exit_code, files(done), len(trainer.starts)) == (0, before, 1)
    assert f"--network_weights={done / 'frog.safetensors'}" in found.stdout  # where it is now
    assert "--output_name=frog-v1" in found.stdout  # beside the finished run, which is not renamed
    assert "config.toml" not in found.stdout
    document = json.loads(kohyakit("resume", done, "--epochs", "1", "--print-command", "--json").stdout)
    assert list(document["files"].values()) == ["a frog\n"]
    assert not any("renames" in line for line in document["said"])


def test_what_is_renamed_is_said_before_it_happens(kohyakit, done: Path, lora, trainer) -> None:
    lora("out/frog-000001.safetensors")
    found = kohyakit("resume", done, "--epochs", "3")
    plan = found.stdout.partition("verdict:")[0]
    for old, new in (("frog.safetensors", "frog-v1.safetensors"), ("frog.run", "frog-v1.run"),
                     ("frog-000001.safetensors", "frog-v1-000001.safetensors")):  # fmt: skip
        assert f"renames: {done / old} -> {new}" in plan
        assert (done / new).exists()


def test_the_help_says_that_older_results_are_renamed(kohyakit) -> None:
    assert "NAME-v1" in kohyakit("resume", "--help").stdout
