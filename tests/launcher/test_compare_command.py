"""What `kohyakit compare` asks to be measured, and what it refuses before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.about.compare import Asked, comparison, read_weights, trigger_words
from launcher.check.resolve import UsageError
from schemas.problems import ConfigError

DONE = {
    "base": {"losses": [[0.5] * 12] * 10}, "timesteps": list(range(12)), "held_out": [f"{n}.png" for n in range(10)],
    "bands": {"low noise": [0, 4], "middle": [4, 8], "high noise": [8, 12]}, "own_nearest": None, "problems": [],
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, lora, photos: Path, checkpoint) -> Path:
    """The output folder of a run of three epochs."""
    out = tmp_path / "out"
    for epoch in (1, 2):
        lora(f"out/frog-{epoch:06d}.safetensors", metadata={"ss_epoch": str(epoch), "ss_steps": str(10 * epoch)})
    lora("out/frog.safetensors", metadata={"ss_epoch": "3", "ss_steps": "30"})
    folder = out / "frog.run"
    folder.mkdir()
    config = {"pretrained_model_name_or_path": str(checkpoint("sd15")), "train_data_dir": str(photos),
              "output_dir": str(out), "output_name": "frog", "resolution": "64,64", "caption_extension": ".txt",
              "learning_rate": 1e-4}  # fmt: skip
    lines = [f"{name} = {json.dumps(value)}" for name, value in config.items()]
    (folder / "config.toml").write_text("\n".join(lines), encoding="utf-8")
    return out


def test_every_epoch_in_its_order_with_its_number(run: Path) -> None:
    found = comparison(Asked(str(run)))
    assert [(one.place, one.epoch) for one in found.saved] == [("epoch 1", 1), ("epoch 2", 2), ("epoch 3", 3)]
    assert found.family == "sd15"
    assert found.folder == run / "frog.run" / "compare"
    assert [one.epoch for one in comparison(Asked(str(run), epochs="1,3")).saved] == [1, 3]


def test_prompts_without_the_trigger_word_are_found_or_added(run: Path, tmp_path: Path) -> None:
    found = comparison(Asked(str(run)))
    assert "frog" in found.prompts[0].prompt
    assert 0 not in found.neutral
    assert len(found.neutral) == 4
    assert {(one.width, one.height) for one in found.prompts} == {(64, 64)}
    own = tmp_path / "p.txt"
    own.write_text("a frog\na cat --w 128\na dog\n", encoding="utf-8")
    found = comparison(Asked(str(run), prompts=own))
    assert (len(found.prompts), found.neutral) == (3, (1, 2))
    assert found.prompts[1].width == 128


def test_trigger_words_are_those_of_nearly_all_captions() -> None:
    captions = ["ohwx frog, on sand", "ohwx frog at night", "a ohwx frog, in the snow"]
    assert trigger_words(captions, ["ohwx"]) == {"ohwx", "frog"}
    assert trigger_words([], ["n0m3"]) == {"n0m3"}


def test_a_folder_of_foreign_files_needs_only_the_model(lora, tmp_path: Path, checkpoint) -> None:
    for epoch in (1, 2):
        lora(f"theirs/x-{epoch:06d}.safetensors", metadata={"ss_sd_model_name": "nowhere.safetensors"})
    with pytest.raises(ConfigError) as refused:
        comparison(Asked(str(tmp_path / "theirs")))
    assert "--set pretrained_model_name_or_path" in str(refused.value)
    found = comparison(Asked(str(tmp_path / "theirs"),
                             sets={"pretrained_model_name_or_path": str(checkpoint("sd15"))}))  # fmt: skip
    assert [one.epoch for one in found.saved] == [1, 2]
    assert found.run is None


@pytest.mark.parametrize(
    ("asked", "fault", "said"),
    [
        ({"epochs": "7"}, ConfigError, "of epochs there are: 1, 2, 3"),
        ({"epochs": "last"}, UsageError, "--epochs must be all"),
        ({"weights": "0.5;1"}, UsageError, "--weights"),
        ({"weights": "nan"}, UsageError, "above 0"),
        ({"held_out": Path("no/where")}, ConfigError, "--held-out"),
        ({"embedder": Path("no/where")}, ConfigError, "--embedder"),
        ({"prompts": Path("no/where.txt")}, ConfigError, "where.txt"),
    ],
)
def test_what_is_refused(run: Path, asked, fault, said) -> None:
    with pytest.raises(fault) as refused:
        comparison(Asked(str(run), **asked))
    assert said in str(refused.value)
    assert not (run / "frog.run" / "compare").exists()


def test_a_model_of_another_family_is_refused(run: Path, checkpoint) -> None:
    with pytest.raises(ConfigError, match="is a LoRA for sd15"):
        comparison(Asked(str(run), sets={"pretrained_model_name_or_path": str(checkpoint("sdxl"))}))


def test_weights() -> None:
    assert read_weights("0.6,1,0.6") == (0.6, 1.0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch):
    """Stands in for the measuring process: the middle epoch is lowest."""

    def measure(module: str, wish: str) -> int:
        asked = json.loads(Path(wish).read_text(encoding="utf-8"))
        found = [
            {"place": place, "file": file, "weight": 1.0, "drift": [0.2], "sway": [0.01],
             "losses": [[0.5 - gain + 0.001 * (image % 3)] * 12 for image in range(10)]}
            for (place, file), gain in zip(asked["files"], (0.02, 0.06, 0.03), strict=True)
        ]  # fmt: skip
        document = {**DONE, "measured": found}
        (Path(wish).parent / "compared.json").write_text(json.dumps(document), encoding="utf-8")
        return 0

    monkeypatch.setattr("launcher.commands.demo.run_module", measure)


def test_verdict_page_and_document(run: Path, kohyakit, measured) -> None:
    ended = kohyakit("compare", run, "--json")
    assert ended.exit_code == 0, ended.output
    document = json.loads(ended.stdout)
    verdict = document["verdict"]
    assert (verdict["epoch"], verdict["action"], verdict["over_trained_since"]) == (2, "stop-earlier", "epoch 3")
    assert [one["epoch"] for one in document["epochs"]] == [1, 2, 3]
    assert document["epochs"][1]["held_out"] == pytest.approx(-0.0591)
    page = (run / "frog.run" / "compare.html").read_text(encoding="utf-8")
    assert "Keep epoch 2" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    told = kohyakit("compare", run)
    assert "Keep epoch 2" in told.stdout
    assert "doubt:" in told.stdout


def test_a_stranger_s_page_stays(run: Path, kohyakit, measured, tmp_path: Path) -> None:
    page = tmp_path / "mine.html"
    page.write_text("mine", encoding="utf-8")
    assert kohyakit("compare", run, "-o", page).exit_code == 1
    assert page.read_text(encoding="utf-8") == "mine"


def test_faults_of_the_measuring_are_told(run: Path, kohyakit, monkeypatch) -> None:
    problem = {"severity": "error", "code": "held-out-trained", "key": "--held-out", "line": None, "got": "x",
               "must": "holds 2 training images", "fix": "take them out"}  # fmt: skip

    def refuse(module: str, wish: str) -> int:
        (Path(wish).parent / "compared.json").write_text(json.dumps({"problems": [problem]}), encoding="utf-8")
        return 1

    monkeypatch.setattr("launcher.commands.demo.run_module", refuse)
    ended = kohyakit("compare", run, "--json")
    assert ended.exit_code == 1
    assert json.loads(ended.stdout)["problems"][0]["code"] == "held-out-trained"
    monkeypatch.setattr("launcher.commands.demo.run_module", lambda *words: 130)
    assert kohyakit("compare", run).exit_code == 130
