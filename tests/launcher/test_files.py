from __future__ import annotations

from pathlib import Path

import pytest

from launcher.run.files import (
    secrets_of,
    write_bytes,
    write_json,
)
from schemas.blanking import without_secrets
from schemas.config import TrainConfig


def test_files_are_written_whole(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"a": 1})

    def full(*words) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(target, b"half")
    assert (target.read_text(), [path.name for path in tmp_path.iterdir()]) == ('{\n  "a": 1\n}\n', ["a.json"])


@pytest.mark.parametrize(
    "text",
    [
        '{"wandb_api_key": "0123456789", "x": 1}',
        "wandb_api_key = '0123456789'",
        "--wandb_api_key 0123456789 --seed 1",
        "--huggingface_token=0123456789",
        "token hf_0123456789abcdefgh",
        '"huggingface_token":"0123456789"',
    ],
)
def test_secrets_are_blanked(text) -> None:
    assert "0123456789" not in without_secrets(text)
    assert "***" in without_secrets(text)


@pytest.mark.parametrize("text", ['{"wandb_api_key": "", "seed": 42}', "max_token_length = 75", '{"keep_tokens": "1"}'])
def test_everything_else_stays(text) -> None:
    assert without_secrets(text) == text


def test_known_secrets_are_blanked_wherever_they_stand() -> None:
    config = TrainConfig(wandb_api_key="verysecret")
    assert secrets_of(config) == {"wandb_api_key": "verysecret"}
    assert without_secrets("note: verysecret!", secrets_of(config).values()) == "note: ***!"
