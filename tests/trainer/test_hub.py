"""Uploads and states of the hub against a stand-in for its client; nothing leaves this machine."""

from __future__ import annotations

import inspect
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi, constants, errors

from schemas import ConfigError, TrainConfig
from tests.fake_hub import FakeHub
from trainer import loop
from trainer.output import hub

Start = Callable[..., int]
TOKEN = "hf_" + "s" * 30
REPO = "me/loras"


def answer(kind: type[Exception], status: int, text: str = "no") -> Exception:
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(text, response=response)  # type: ignore[call-arg]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    made = FakeHub()
    monkeypatch.setattr(hub, "connect", lambda config: made)
    return made


def uploads(folder: Path, api: FakeHub, **options: Any) -> hub.Uploads:
    return hub.Uploads(TrainConfig(**{"huggingface_repo_id": REPO, **options}), folder / "n.run", api)


def test_every_saved_file_goes_up(start: Start, fake: FakeHub, tmp_path: Path, capsys: Any) -> None:
    assert start(huggingface_repo_id=REPO, huggingface_path_in_repo="/sd/", save_every_n_steps=2, save_peft=True,
                 save_state=True, save_state_to_huggingface=True, huggingface_token=TOKEN) == 0  # fmt: skip
    names = {name.removeprefix(f"{REPO}:sd/") for name in fake.files}
    assert {"n0m3-step00000002.safetensors", "n0m3.safetensors", "n0m3.peft.safetensors"} <= names
    assert {"n0m3-step00000002-state/complete", "n0m3-state/optimizer.pt"} <= names
    assert fake.files[f"{REPO}:sd/n0m3.safetensors"] == (tmp_path / "out" / "n0m3.safetensors").read_bytes()
    said = capsys.readouterr()
    assert "saved files go to the hub as well: me/loras/sd (private model repository)" in said.out
    assert TOKEN not in said.out + said.err
    assert all(TOKEN.encode() not in file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())


def test_without_a_folder_files_are_at_the_top(tmp_path: Path) -> None:
    """Trap T34."""
    sent = uploads(tmp_path, FakeHub())
    assert sent.place_of("a.safetensors") == "a.safetensors"


@pytest.mark.parametrize(
    ("call", "fault", "code", "said"),
    [
        ("whoami", errors.LocalTokenNotFoundError("none"), "hub-token", "hf auth login"),
        ("whoami", answer(errors.HfHubHTTPError, 401, f"bad {TOKEN}"), "hub-token", "does not accept the token"),
        ("auth_check", answer(errors.HfHubHTTPError, 403), "hub-access", "may not write"),
        ("create_repo", answer(errors.RepositoryNotFoundError, 404), "hub-access", "is not there"),
        ("create_repo", errors.HFValidationError("two dots"), "bad-repository", "two dots"),
        ("create_repo", answer(errors.HfHubHTTPError, 503), "hub-unreachable", "check the connection"),
        ("whoami", OSError("no route to host"), "hub-unreachable", "no route to host"),
    ],
)
def test_what_is_wrong_with_the_hub_is_said_before_models_load(
    call: str, fault: Exception, code: str, said: str, start: Start, fake: FakeHub, tmp_path: Path, capsys: Any
) -> None:
    fake.wrong[call] = [fault]
    assert start(huggingface_repo_id=REPO, huggingface_token=TOKEN) == 1
    shown = capsys.readouterr()
    assert said in shown.err
    assert "loading" not in shown.out
    assert TOKEN not in shown.err
    assert not (tmp_path / "out").exists()
    fake.wrong[call] = [fault]
    with pytest.raises(ConfigError) as caught:
        uploads(tmp_path, fake).check()
    assert [problem.code for problem in caught.value.problems] == [code]


def test_offline_is_a_reason_of_its_own(
    start: Start, fake: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert start(huggingface_repo_id=REPO) == 1
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    assert not fake.calls


def test_a_failed_upload_is_said_and_tried_again_at_the_end(start: Start, fake: FakeHub, capsys: Any) -> None:
    fake.wrong["upload_file"] = [OSError("reset"), OSError("reset again")]  # steps 2 and 4
    assert start(huggingface_repo_id=REPO, huggingface_repo_type="dataset", save_every_n_steps=2) == 0
    said = capsys.readouterr().out
    assert "warning: n0m3-step00000002.safetensors was not uploaded to me/loras: OSError: reset\n" in said
    assert "by hand: hf upload me/loras " in said
    assert "n0m3-step00000002.safetensors n0m3-step00000002.safetensors --repo-type dataset" in said
    assert f"{REPO}:n0m3-step00000002.safetensors" in fake.files  # at the end, once more
    assert [call for call, _ in fake.calls].count("upload_file") == 5


def test_in_the_background_a_file_goes_up_though_rotation_has_removed_it(tmp_path: Path) -> None:
    api, gate = FakeHub(), threading.Event()
    real = api.upload_file
    api.upload_file = lambda **said: (gate.wait(20), real(**said))  # type: ignore[assignment,method-assign,func-returns-value]
    sent = uploads(tmp_path, api, async_upload=True)
    file, state = tmp_path / "a.safetensors", tmp_path / "state-1"
    file.write_bytes(b"weights")
    state.mkdir()
    (state / "complete").write_text("{}")
    sent.send(file)
    sent.send(state, "n-state")
    file.unlink()
    shutil.rmtree(state)
    gate.set()
    sent.close()
    assert api.files == {f"{REPO}:a.safetensors": b"weights", f"{REPO}:n-state/complete": b"{}"}
    assert api.thread == {"upload"}
    assert not (tmp_path / "n.run" / hub.SPOOL).exists()


def test_a_background_run_ends_with_everything_uploaded(start: Start, fake: FakeHub) -> None:
    assert start(huggingface_repo_id="loras", async_upload=True, save_every_n_steps=1) == 0
    assert len(fake.files) == 5
    assert all(name.startswith(REPO) for name in fake.files)  # the owner came from the hub


def test_a_public_repository_is_pointed_out(tmp_path: Path, capsys: Any) -> None:
    api = FakeHub()
    api.private = False
    uploads(tmp_path, api).check()
    assert "everybody will see" in capsys.readouterr().out
    uploads(tmp_path, api, huggingface_repo_visibility="public").check()
    assert "everybody" not in capsys.readouterr().out
    assert [said["private"] for name, said in api.calls if name == "create_repo"] == [True, False]


def test_a_run_goes_on_from_a_state_on_the_hub(start: Start, fake: FakeHub, tmp_path: Path) -> None:
    kept = {"save_every_n_steps": 2, "save_state": True, "output_name": "n0m3"}
    assert start(huggingface_repo_id=REPO, save_state_to_huggingface=True, **kept) == 0
    (tmp_path / "out").rename(tmp_path / "whole")
    place = f"{REPO}/n0m3-step00000002-state:main:model"
    assert start(resume=place, resume_from_huggingface=True) == 0
    last = "n0m3.safetensors"
    from safetensors.torch import load_file

    one, other = load_file(tmp_path / "whole" / last), load_file(tmp_path / "out" / last)
    assert all(one[name].equal(other[name]) for name in one)
    assert {path.name for path in (tmp_path / "out" / "n0m3.run").iterdir()} == {"config.toml", "log.jsonl"}


def test_a_missing_state_names_those_there_are(start: Start, fake: FakeHub, tmp_path: Path, capsys: Any) -> None:
    fake.files = {f"{REPO}:old/n-state/complete": b"{}", f"{REPO}:x.safetensors": b""}
    assert start(resume=f"{REPO}/n-state", resume_from_huggingface=True) == 1
    said = capsys.readouterr().err
    assert "is no finished state in me/loras" in said
    assert "name one of old/n-state" in said
    assert not (tmp_path / "out").exists()


def test_the_client_takes_the_configs_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.connect(TrainConfig(huggingface_token=TOKEN)).token == TOKEN
    assert hub.connect(TrainConfig()).token is None  # huggingface_hub's own login then


@pytest.mark.parametrize("name", [name for name in vars(FakeHub) if not name.startswith("_")])
def test_the_real_client_takes_the_same_calls(name: str) -> None:
    theirs = inspect.signature(getattr(HfApi, name)).parameters
    ours = inspect.signature(getattr(FakeHub, name)).parameters.values()
    assert {one.name for one in ours if one.kind is one.KEYWORD_ONLY} <= set(theirs)


def test_a_stop_by_signal_uploads_what_it_saves(
    start: Start, fake: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    update = loop.Run.update

    def asked(run: Any, *given: Any, stop: bool) -> Any:
        return update(run, *given, stop=run.at.step == 1)

    monkeypatch.setattr(loop.Run, "update", asked)
    assert start(huggingface_repo_id=REPO, async_upload=True) == 130
    assert list(fake.files) == [f"{REPO}:n0m3-step00000002.safetensors"]


def test_a_run_that_fails_uploads_what_it_has_saved(
    start: Start, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = loop.Run.update

    def failing(run: Any, *given: Any, **said: Any) -> Any:
        if run.at.step == 2:
            raise RuntimeError("CUDA error")
        return update(run, *given, **said)

    monkeypatch.setattr(loop.Run, "update", failing)
    assert start(huggingface_repo_id=REPO, async_upload=True, save_every_n_steps=1) == 3
    assert len(fake.files) == 2
