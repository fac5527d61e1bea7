"""`kohyakit lora` refuses from headers alone, before torch is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launcher.conftest import MODULE, safetensors


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The wishes that would have been carried out."""
    wishes: list[dict] = []
    monkeypatch.setattr("launcher.commands.demo.run_module", lambda _, wish: wishes.append(json.loads(wish)) or 0)
    return wishes


def refused(ended, code: str) -> str:
    assert ended.exit_code == 1, ended.output
    (problem,) = json.loads(ended.stdout)["problems"]
    assert problem["code"] == code
    assert problem["fix"]
    return problem["must"]


def test_a_sound_wish_is_passed_on(kohyakit, lora, tmp_path: Path, started) -> None:
    one, two, out = lora("a.safetensors"), lora("b.safetensors", rank=8), tmp_path / "o.safetensors"
    assert kohyakit("lora", "merge", one, two, "--weights", "0.7,-0.5", "-o", out).exit_code == 0
    assert (started[0]["do"], started[0]["weights"], started[0]["rank"]) == ("merge", [0.7, -0.5], None)
    assert kohyakit("lora", "resize", one, "--keep", "0.9", "-o", out).exit_code == 0
    assert started[1]["keep"] == 0.9


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["merge", "A", "B", "--weights", "1", "-o", "o.safetensors"], 2),
        (["merge", "A", "B", "--weights", "1,x", "-o", "o.safetensors"], 2),
        (["merge", "A", "--into", "M", "--rank", "4", "-o", "o.safetensors"], 2),
        (["resize", "A", "-o", "o.safetensors"], 2),
        (["resize", "A", "--rank", "0", "-o", "o.safetensors"], 2),
        (["convert", "A", "--to", "nothing", "-o", "o.safetensors"], 2),
        (["extract", "A", "B", "-o", "o.safetensors"], 2),
    ],
)
def test_wrong_command_lines(kohyakit, started, words, code) -> None:
    assert kohyakit("lora", *words).exit_code == code
    assert started == []


def test_outputs_that_cannot_be(kohyakit, lora, tmp_path: Path, started) -> None:
    file = lora()
    for output, code in (
        (file, "file-exists"), (tmp_path, "file-exists"), (tmp_path / "no" / "o.safetensors", "no-folder"),
        (tmp_path / "o.ckpt", "bad-name"),
    ):  # fmt: skip
        refused(kohyakit("lora", "resize", file, "--rank", "2", "-o", output, "--json"), code)
    ended = kohyakit("lora", "resize", file, "--rank", "2", "-o", file, "--overwrite", "--json")
    assert "at once" in refused(ended, "file-exists")
    assert started == []


def test_inputs_that_do_not_fit(kohyakit, lora, checkpoint, tmp_path: Path, started) -> None:
    file, out = lora(), tmp_path / "o.safetensors"
    sdxl = lora("xl.safetensors", width=2048)
    wide = lora("wide.safetensors", up=1.0)
    assert "sdxl" in refused(kohyakit("lora", "merge", file, sdxl, "-o", out, "--json"), "wrong-family")
    ended = kohyakit("lora", "merge", file, "--into", checkpoint("sdxl"), "-o", out, "--json")
    assert "sdxl" in refused(ended, "wrong-family")
    refused(kohyakit("lora", "merge", file, "--into", wide, "-o", out, "--json"), "not-a-checkpoint")
    refused(kohyakit("lora", "extract", file, file, "--rank", "4", "-o", out, "--json"), "not-a-checkpoint")
    refused(kohyakit("lora", "resize", checkpoint("sd15"), "--rank", "4", "-o", out, "--json"), "not-lora")
    refused(kohyakit("lora", "resize", tmp_path / "none.safetensors", "--rank", "4", "-o", out, "--json"), "no-file")
    pickle = tmp_path / "x.pt"
    pickle.write_bytes(b"PK")
    refused(kohyakit("lora", "resize", pickle, "--rank", "4", "-o", out, "--json"), "pickled")
    assert started == []


@pytest.mark.parametrize(
    ("endings", "words", "code", "kind"),
    [
        ({"oft_blocks": (4, 8, 8)}, ["merge"], "not-mergeable", "OFT"),
        ({"hada_w1_a": (8, 2), "hada_w1_b": (2, 8)}, ["merge"], "not-mergeable", "LoHa"),
        ({"lora_up.weight": (8, 2), "lora_down.weight": (2, 8), "dora_scale": (8, 1)}, ["merge"], "not-mergeable",
         "DoRA"),
        ({"on_input": (), "weight": (8,)}, ["resize", "--rank", "2"], "no-low-rank", "(IA)3"),
        ({"a1.weight": (2, 8), "a2.weight": (8, 2)}, ["resize", "--rank", "2"], "no-low-rank", "GLoRA"),
        ({"lokr_w1": (2, 2), "lokr_w2": (4, 4)}, ["convert", "--to", "peft"], "no-such-form", "LoKr"),
    ],
)  # fmt: skip
def test_kinds_are_refused_by_name(kohyakit, tmp_path: Path, started, endings, words, code, kind) -> None:
    file = safetensors(tmp_path / "k.safetensors", {f"{MODULE}.{tail}": shape for tail, shape in endings.items()})
    ended = kohyakit("lora", words[0], file, *words[1:], "-o", tmp_path / "o.safetensors", "--json")
    assert kind in refused(ended, code)
    assert started == []
