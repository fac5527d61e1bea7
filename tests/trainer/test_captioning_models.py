"""Models of every kind, tiny and random: a chat model, an ONNX tagger, a server on the loopback; what is taken out."""

from __future__ import annotations

import csv
import http.server
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from schemas.problems import ConfigError
from trainer.captioning.endpoint import endpoint, unload
from trainer.captioning.models import captioner
from trainer.captioning.phrases import dropper, read_phrases
from trainer.captioning.settings import CaptionSettings
from trainer.captioning.tagger import tagger, tags
from trainer.captioning.write import ModelFailed, describer, main

IMAGES = [Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 40), "blue")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, image in enumerate(IMAGES * 4):
        image.save(tmp_path / f"{number}.png")
    return tmp_path


# A tagger as an ONNX file, written by hand: means of the channels, a matrix, a sigmoid


def field(number: int, value: int | bytes) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, bytes):
        return number_of(number << 3 | 2) + number_of(len(value)) + value
    return number_of(number << 3) + number_of(value)


def number_of(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def node(kind: bytes, inputs: Sequence[bytes], output: bytes, attributes: bytes = b"") -> bytes:
    return field(1, b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, kind) + attributes)


def tensor(name: bytes, values: np.ndarray) -> bytes:
    sizes = b"".join(field(1, size) for size in values.shape)
    return field(5, sizes + field(2, 1) + field(8, name) + field(9, values.astype("<f4").tobytes()))


def value(number: int, name: bytes, sizes: Sequence[int | bytes]) -> bytes:
    shape = b"".join(field(1, field(2 if isinstance(size, bytes) else 1, size)) for size in sizes)
    return field(number, field(1, name) + field(2, field(1, field(1, 1) + field(2, shape))))


def tiny_tagger(target: Path, weights: np.ndarray, names: Sequence[tuple[str, str]]) -> Path:
    axes = field(5, field(1, b"axes") + field(8, 1) + field(8, 2) + field(20, 7))
    flat = field(5, field(1, b"keepdims") + field(3, 0) + field(20, 2))
    graph = (
        node(b"ReduceMean", [b"x"], b"m", axes + flat)
        + node(b"MatMul", [b"m", b"w"], b"z")
        + node(b"Sigmoid", [b"z"], b"y")
        + field(2, b"tiny")
        + tensor(b"w", weights)
        + value(11, b"x", [b"n", 8, 8, 3])
        + value(12, b"y", [b"n", len(names)])
    )
    (target / "model.onnx").write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, b"") + field(2, 13)))
    with (target / "selected_tags.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([("tag_id", "name", "category", "count")])
        writer.writerows((number, name, category, 1) for number, (name, category) in enumerate(names))
    return target


def test_an_onnx_tagger_names_what_it_sees(tmp_path: Path) -> None:
    weights = np.array([[0, 0, 1, -1], [0, 0, -1, -1], [0, 1, -1, 1]]) / 50  # blue, green, red: BGR
    names = [("general", "9"), ("red_thing", "0"), ("blue_thing", "0"), ("some_one", "4")]
    name = str(tiny_tagger(tmp_path, weights, names))
    describe = tagger(name, CaptionSettings(model=name, threshold=0.6))
    red, blue = describe([Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")])
    assert (red, blue) == ("some one, red thing", "blue thing")


ROWS = [
    {"name": "general", "category": "9"},
    {"name": "explicit", "category": "9"},
    {"name": "long_hair", "category": "0"},
    {"name": "a_hat", "category": "0"},
    {"name": "some_one", "category": "4"},
]
SCORES = [0.7, 0.1, 0.9, 0.5, 0.95]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, ["some one", "long hair", "a hat"]),
        ({"order": "name"}, ["some one", "a hat", "long hair"]),
        ({"characters": "last"}, ["long hair", "a hat", "some one"]),
        ({"characters": "off"}, ["long hair", "a hat"]),
        ({"ratings": True}, ["general", "some one", "long hair", "a hat"]),
        ({"keep_underscores": True}, ["some_one", "long_hair", "a_hat"]),
        ({"exclude": "long hair, x"}, ["some one", "a hat"]),
        ({"threshold": 0.6, "character_threshold": 0.97}, ["long hair"]),
    ],
)
def test_options_of_taggers(options: dict[str, Any], wanted: list[str]) -> None:
    assert tags(SCORES, ROWS, CaptionSettings(model="wd14", **options)) == wanted


# Chat models


def tiny_chat_model(target: Path) -> Path:
    """A LLaVA of random weights, with a chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "USER", "what", "is", "it", "a", "frog", "hat"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**part, image_size=32, patch_size=16, projection_dim=8),
        text_config=LlamaConfig(**part, vocab_size=len(words), eos_token_id=2, pad_token_id=0, bos_token_id=1),
        image_token_index=4,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(target)
    template = (
        "{% for m in messages %}USER {% for c in m.content %}{% if c.type == 'image' %}<image> "
        "{% else %}{{ c.text }} {% endif %}{% endfor %}{% endfor %}"
    )
    images = CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        images,
        fast,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(target)
    return target


def test_a_chat_model_answers_without_repeating_the_question(tmp_path: Path) -> None:
    name = str(tiny_chat_model(tmp_path))
    settings = CaptionSettings(model=name, prompt="what is it", max_length=5)
    describe = captioner(name, settings)
    described = describe(IMAGES)
    assert described == [describe([image])[0] for image in IMAGES]  # whatever stands beside it in a batch
    assert all("what is it" not in one and 0 < len(one.split()) <= 5 for one in described)


# A server


class Server(http.server.ThreadingHTTPServer):
    heard: list[dict[str, Any]]
    keys: list[str | None]


class Answers(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._send({"data": [{"id": "tiny-vl"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.heard.append({"path": self.path, **request})
        self.server.keys.append(self.headers.get("Authorization"))
        self._send({"choices": [{"message": {"content": "a frog\nwith a microphone in his hand"}}]})

    def _send(self, document: Any) -> None:
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Answers) as running:
        running.heard, running.keys = [], []
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_a_server_captions_a_folder(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KOHYAKIT_API_KEY", "secret-key")
    words = ["--endpoint", address(server), "--model", "tiny-vl", "--prompt", "what is it", "--prefix", "ohwx, "]
    assert main([str(folder), *words, "--drop-phrases", "blip", "--unload-after"]) == 0
    assert {path.read_text(encoding="utf-8") for path in folder.glob("*.txt")} == {"ohwx, a frog"}
    assert len(list(folder.glob("*.txt"))) == 8
    request = server.heard[0]
    assert (request["path"], request["model"]) == ("/v1/chat/completions", "tiny-vl")
    text, image = request["messages"][0]["content"]
    assert text["text"] == "what is it"
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert server.heard[-1] == {"path": "/api/generate", "model": "tiny-vl", "keep_alive": 0}
    assert set(server.keys) == {"Bearer secret-key"}
    out, err = capsys.readouterr()
    assert "secret-key" not in out + err
    assert "images/s" in out


def test_a_dry_run_shows_five_and_writes_nothing(
    folder: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), "--endpoint", address(server), "--model", "tiny-vl", "--dry-run"]) == 0
    assert list(folder.glob("*.txt")) == []
    assert not (folder / ".captioning.json").exists()
    assert capsys.readouterr().out.count(".png: a frog") == 5


@pytest.mark.parametrize(
    ("url", "model", "code"),
    [("ftp://x", "m", "no-endpoint"), ("http://127.0.0.1:9", "m", "no-endpoint"), ("", "other", "unknown-model")],
)
def test_a_server_that_cannot_be_used_is_named_at_once(server: Server, url: str, model: str, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        endpoint(CaptionSettings(model=model, endpoint=url or address(server)))
    assert caught.value.problems[0].code == code


def test_a_server_that_cannot_unload_is_no_error() -> None:
    assert not unload(CaptionSettings(model="m", endpoint="http://127.0.0.1:9"))


# What is taken out


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a man with a remote control in his hand, smiling", "a man, smiling"),
        ("araffe woman holding a pink microphone", "woman holding a pink microphone"),
        ("a woman holding a microphone", "a woman"),
        ("there is a cat and a remote control in her hand", "a cat"),
        ("a therefore is here", "a therefore is here"),
    ],
)
def test_phrases_that_models_invent_are_taken_out(text: str, left: str) -> None:
    assert dropper(read_phrases("blip"))(text) == left


def test_a_list_of_phrases_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("# mine\nblurry\n", encoding="utf-8")
    assert dropper(read_phrases(str(tmp_path / "mine.txt")))("a Blurry dog") == "a dog"
    (tmp_path / "mine.txt").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        read_phrases(str(tmp_path / "mine.txt"))


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class OutOfMemoryError(RuntimeError):
        pass

    def small(name: str, settings: CaptionSettings) -> Any:
        def describe(images: Sequence[Image.Image]) -> list[str]:
            sizes.append(len(images))
            if len(images) > 1:
                raise OutOfMemoryError("no room")
            return ["x"]

        return describe

    monkeypatch.setattr("trainer.captioning.write.captioner", small)
    monkeypatch.setattr("trainer.captioning.write.model_named", lambda model: model)
    assert describer(CaptionSettings(model="x/y"))(IMAGES * 2) == ["x"] * 4
    assert sizes == [4, 2, 1, 1, 2, 1, 1]


def test_an_error_of_the_server_ends_the_run_by_name(folder: Path, server: Server) -> None:
    describe = describer(CaptionSettings(model="tiny-vl", endpoint=address(server)))
    server.shutdown()
    server.socket.close()
    with pytest.raises(ModelFailed, match="tiny-vl"):
        describe(IMAGES)
