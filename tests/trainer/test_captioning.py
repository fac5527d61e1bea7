"""Captions by a tiny random BLIP, and the bookkeeping around any model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from schemas.problems import ConfigError
from trainer.captioning import write as captioning
from trainer.captioning.write import (
    JOURNAL,
    CaptionSettings,
    caption_folder,
    captioner,
    main,
    read_words,
    squared,
    tags,
)

ROWS = [
    {"name": "general", "category": "9"},
    {"name": "long_hair", "category": "0"},
    {"name": "^_^", "category": "0"},
    {"name": "some_one", "category": "4"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(5):
        target = tmp_path / "10_x" / f"{number}.png"
        target.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), (40 * number, 90, 120)).save(target)
    return tmp_path


def red(images: Sequence[Image.Image]) -> list[str]:
    """Describes a picture by its red value."""
    return [f"red {image.getpixel((0, 0))[0]}" for image in images]  # type: ignore[index]


def run(folder: Path, **settings: object) -> int:
    return caption_folder(folder, CaptionSettings(model="x", **settings), red, say=lambda line: None).written  # type: ignore[arg-type]


def text(folder: Path, number: int) -> str:
    return (folder / "10_x" / f"{number}.txt").read_text(encoding="utf-8")


def test_every_picture_gets_its_own_caption(folder: Path) -> None:
    assert run(folder, prefix="N0m3, ", batch_size=2) == 5
    assert [text(folder, number) for number in (0, 4)] == ["N0m3, red 0", "N0m3, red 160"]


def test_existing_captions_are_kept(folder: Path) -> None:
    (folder / "10_x" / "2.txt").write_text("mine", encoding="utf-8")
    assert run(folder) == 4
    assert text(folder, 2) == "mine"


def test_append_and_overwrite(folder: Path) -> None:
    (folder / "10_x" / "1.txt").write_text("mine", encoding="utf-8")
    run(folder, mode="append", prefix="N0m3, ")
    assert text(folder, 1) == "N0m3, mine, red 40"
    run(folder, mode="overwrite")
    assert text(folder, 1) == "red 40"


def test_append_that_was_cut_off_goes_on(folder: Path) -> None:
    run(folder)

    def once(images: Sequence[Image.Image]) -> list[str]:
        if (folder / JOURNAL).is_file():
            raise KeyboardInterrupt
        return ["more"] * len(images)

    settings = CaptionSettings(model="x", mode="append", batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        caption_folder(folder, settings, once, say=lambda line: None)
    assert caption_folder(folder, settings, lambda images: ["more"] * len(images), say=lambda line: None).written == 3
    assert [text(folder, number) for number in range(5)] == [f"red {40 * number}, more" for number in range(5)]
    assert not (folder / JOURNAL).exists()


def test_broken_picture_is_named_at_the_end_and_the_others_get_their_captions(folder: Path) -> None:
    (folder / "10_x" / "1.png").write_bytes(b"broken")
    (folder / "10_x" / "4.TXT").write_text("mine", encoding="utf-8")
    said: list[str] = []
    settings = CaptionSettings(model="x", batch_size=2)
    assert caption_folder(folder, settings, red, say=said.append).written == 3
    assert [text(folder, number) for number in (0, 2, 3)] == ["red 0", "red 80", "red 120"]
    assert "10_x/1.png" in said[-1]
    assert not (folder / "10_x" / "4.txt").exists()


def test_a_folder_of_broken_pictures_is_an_error(folder: Path) -> None:
    for number in range(5):
        (folder / "10_x" / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="none of its 5"):
        run(folder)


def test_empty_folder_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--model", str(tmp_path / "missing")]) == 1
    assert capsys.readouterr().err.startswith("error: --model: is no folder that exists")


def test_words_are_read() -> None:
    folder, settings, _ = read_words(["d", "--model", "blip", "--beams", "3", "--min-length", "5"])
    assert (folder, settings.beams, settings.min_length) == (Path("d"), 3, 5)


def test_tags_above_their_thresholds_best_first() -> None:
    settings = CaptionSettings(model="wd14")
    assert tags([0.99, 0.5, 0.6, 0.9], ROWS, settings) == ["some one", "^_^", "long hair"]
    assert tags([0.99, 0.3, 0.2, 0.8], ROWS, settings) == []


def test_tagger_input_is_a_white_square_in_bgr() -> None:
    pixels = squared(Image.new("RGB", (8, 4), (10, 20, 30)), 8)
    assert pixels.shape == (8, 8, 3)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[4, 4].tolist() == [30, 20, 10]
    assert pixels.dtype == np.float32


def tiny_blip(target: Path) -> Path:
    """A BLIP of random weights with a vocabulary of letters."""
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *"abcdefghijklmnopqrstuvwxyz"]
    (target / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizer(str(target / "vocab.txt"))
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 5, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    text = {**part, **ids, "vocab_size": len(words), "encoder_hidden_size": 16, "max_position_embeddings": 64}
    config = BlipConfig(text_config=text, vision_config={**part, "image_size": 32, "patch_size": 16}, projection_dim=8)
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(target)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(target)
    return target


def test_blip_from_a_local_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    name = tiny_blip(tmp_path_factory.mktemp("blip"))
    settings = CaptionSettings(model=str(name), beams=2, min_length=4, max_length=8)
    described = captioner(str(name), settings)([Image.new("RGB", (40, 30)), Image.new("RGB", (30, 40))])
    assert len(described) == 2
    assert all(isinstance(one, str) and one for one in described)


@pytest.mark.parametrize(
    ("model", "code", "fix"),
    [("blip2", "unknown-model", "--model blip"), ("WD-14", "unknown-model", "--model wd14"),
     ("joycaption", "unknown-model", "--model blip")],
)  # fmt: skip
def test_an_unknown_model_is_refused_before_anything_is_asked(model: str, code: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        captioning.model_named(model)
    (problem,) = caught.value.problems
    assert (problem.code, problem.fix) == (code, fix)
    assert "blip-large" in problem.must


@pytest.mark.parametrize("model", ["/nope", "./models/blip", "../blip"])
def test_a_path_that_is_not_there_is_taken_for_no_hub_id(model: str) -> None:
    with pytest.raises(ConfigError) as caught:
        captioning.model_named(model)
    assert (caught.value.problems[0].must, caught.value.problems[0].fix) == (
        "is no folder that exists",
        "check the path",
    )


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        captioning.model_named(str(tmp_path))
    assert "no config.json and no model.onnx" in caught.value.problems[0].must


def test_a_hub_that_does_not_answer_is_named_with_the_way_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, name: str, timeout: float) -> None:
        assert timeout <= 10
        raise OSError("Network is unreachable\nand more")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.raises(ConfigError) as caught:
        captioning.model_named("nobody/no-model")
    (problem,) = caught.value.problems
    assert problem.code == "no-model"
    assert problem.must.endswith("Network is unreachable")
    assert (problem.fix or "").startswith("hf download nobody/no-model")


def test_a_model_that_fails_ends_with_3_and_without_a_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(name: str, settings: CaptionSettings) -> Any:
        def describe(images: Any) -> list[str]:
            raise KeyError("pixel_values")

        return describe

    monkeypatch.setattr(captioning, "captioner", broken)
    monkeypatch.setattr(captioning, "model_named", lambda model: model)
    assert main([str(folder), "--model", "x/y", "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["problems"][0]["code"] == "model-failed"
    assert "KeyError" in err
    assert "error: --model: failed on images" in err
    assert "Traceback" not in err


def test_one_json_document_and_progress_beside_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(captioning, "captioner", lambda name, settings: red)
    monkeypatch.setattr(captioning, "model_named", lambda model: model)
    (folder / "broken.png").write_bytes(b"no image")
    assert main([str(folder), "--model", "x/y", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["ok"]
    assert document["images"] == document["written"] + document["kept"] + len(document["skipped"])
    assert [one["file"] for one in document["skipped"]] == ["broken.png"]
    assert "captions written" in err
