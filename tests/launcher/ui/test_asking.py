"""Commands that the page asks in processes of their own: the queue, and which epoch to keep."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from launcher.ui import asking, site
from launcher.ui.runs import run_id
from schemas.problems import ConfigError

JOB = {
    "id": 3,
    "name": "frog",
    "file": "frog.json",
    "state": "waiting",
    "step": None,
    "total": 12,
    "reason": "<b>why</b>",
    "fix": None,
    "run_folder": "x",
}
QUEUE = {"queue": "q", "runner": None, "paused": False, "stopped": None, "jobs": [JOB], "damaged": []}


class Command:
    """Stands in for `kohyakit`: what it was asked, and what it answers."""

    asked: list[list[str]]
    answers: dict[str, Any]
    code = 0

    def __init__(self) -> None:
        self.asked, self.answers = [], {}

    def __call__(self, words: list[str], **options: Any) -> Command:
        self.asked.append(words[4:])
        self.said = self.answers.get(" ".join(words[4:6]), self.answers.get(words[4], {"ok": True}))
        self.pid, self.returncode = 2**22 + 1, self.code
        if isinstance(options.get("stdout"), int) and options["stdout"] >= 0:
            os.write(options["stdout"], json.dumps(self.said).encode())
        return self

    def communicate(self, timeout: float | None = None) -> tuple[bytes, None]:
        return (json.dumps(self.said) if self.said is not None else "no JSON").encode(), None

    def poll(self) -> int | None:
        return self.returncode


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    found = Command()
    monkeypatch.setattr(asking, "Popen", found)
    monkeypatch.setattr("launcher.ui.runs.Popen", found)
    monkeypatch.setattr(asking, "known", lambda name: True)
    monkeypatch.setattr(site, "known", lambda name: True)
    found.answers["queue list"] = QUEUE
    return found


def test_a_command_is_asked_for_its_document() -> None:
    assert asking.ask(["explain", "seed"])["argument"] == "seed"
    with pytest.raises(ConfigError) as said:
        asking.ask(["validate", "no such file"])
    assert said.value.problems
    assert site.known("explain")
    assert not site.known("no-such-command")


def test_a_config_is_queued_with_the_words_of_its_launch(page, opened, config, preset, command, tmp_path: Path) -> None:
    name = opened(preset())
    config(name, "words", {"vram": "6"})
    answer = config(name, "queue")
    assert answer["address"] == "/queue"
    assert command.asked[-1] == ["queue", "add", str(tmp_path / "work" / "frog.json"), "--vram", "6", "--json"]
    assert 'data-do="queue"' in page.get(f"/config/{name}").text
    config(opened(preset("bad.json", network_dropout=3)), "queue", status=422)


def test_the_queue_is_shown_and_changed_by_its_own_commands(page, command) -> None:
    text = page.get("/queue").text
    assert "nobody works through it" in text
    assert "<b>why</b>" not in text
    assert page.get("/api/queue").json()["waiting"]["jobs"][0]["id"] == 3
    assert page.post("/api/queue/pause", json={"id": "3"}).status_code == 200
    assert command.asked[-1] == ["queue", "pause", "3", "--json"]
    assert page.post("/api/queue/run", json={}).status_code == 200
    assert command.asked[-1] == ["queue", "run"]
    before = len(command.asked)
    for what, number in (("remove", ""), ("pause", "x"), ("add", "3"), ("stop", "--all")):
        assert page.post(f"/api/queue/{what}", json={"id": number}).status_code == 422
    assert len(command.asked) == before


def test_what_a_command_refuses_is_said(page, command) -> None:
    command.code = 1
    command.answers["queue pause"] = {
        "ok": False,
        "problems": [{"code": "wrong-state", "must": "is done", "fix": "retry"}],
    }
    said = page.post("/api/queue/pause", json={"id": "3"})
    assert (said.status_code, said.json()["problems"][0]["code"]) == (422, "wrong-state")
    command.answers["queue list"] = None
    assert "ended with code 1" in page.get("/queue").text


def test_epochs_are_measured_once_and_the_verdict_is_shown(page, command, cut: Path) -> None:
    verdict = {
        "sentence": "Keep epoch 1 <b>",
        "evidence": ["held-out lowest"],
        "doubt": ["few images"],
        "next": ["kohyakit", "report"],
    }
    command.answers["compare"] = {"ok": True, "verdict": verdict, "epochs": [{"epoch": 1}]}
    address = f"/run/{run_id(cut)}/compare"
    assert "Measure which one to keep" in page.get(address).text
    command.code = None  # under way
    page.post(f"/api{address}", json={})
    page.post(f"/api{address}", json={})
    assert command.asked.count(["compare", str(cut), "--json"]) == 1
    assert "Being measured" in page.get(address).text
    command.returncode = 0
    text = page.get(address).text
    assert "Keep epoch 1 &lt;b&gt;" in text
    assert "doubt: few images" in text
    assert page.get(f"/api{address}").json()["verdict"]["evidence"] == ["held-out lowest"]


def test_a_measuring_that_outlived_its_server_is_taken(page, command, cut: Path) -> None:
    address = f"/run/{run_id(cut)}/compare"
    command.code = None
    command.answers["compare"] = {"ok": False, "problems": [{"must": "is not on this machine"}]}
    page.post(f"/api{address}", json={})
    asking.MEASURING.clear()
    assert "is not on this machine" in page.get(address).text


def test_without_the_commands_there_are_no_buttons(page, opened, preset, cut: Path, monkeypatch) -> None:
    monkeypatch.setattr(asking, "known", lambda name: False)
    monkeypatch.setattr(site, "known", lambda name: False)
    assert "Measure which one" not in page.get(f"/run/{run_id(cut)}/compare").text
    assert page.post(f"/api/run/{run_id(cut)}/compare", json={}).status_code == 404
    assert 'data-do="queue"' not in page.get(f"/config/{opened(preset())}").text
    assert page.get("/api/queue").json()["waiting"] is None
    assert page.get("/queue").status_code == 200
