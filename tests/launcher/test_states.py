"""States as a user meets them: damaged, missing, without their record, in use; nothing is lost by asking for one."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas import read
from schemas.files.run_folder import (
    judge,
    newest_whole,
    read_record,
    sealed,
)
from tests.launcher.conftest import tree

ROOT = Path(__file__).parents[2]


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def truncated(file: Path) -> None:
    file.write_bytes(b"")


def progress(text: str) -> Callable[[Path], Any]:
    return lambda state: (state / "progress.json").write_text(text)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "adapter is empty": (lambda state: truncated(state / "adapter.safetensors"), "adapter.safetensors is empty"),
    "adapter cut off": (
        lambda state: (state / "adapter.safetensors").write_bytes(b"ab"),
        "adapter.safetensors has 2 bytes where 420 were written",
    ),
    "one bit of the adapter": (
        lambda state: flipped(state / "adapter.safetensors"),
        "adapter.safetensors is not what was written",
    ),
    "one bit of the optimizer": (lambda state: flipped(state / "optimizer.pt"), "optimizer.pt is not what was written"),
    "optimizer missing": (lambda state: (state / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "a folder for a file": (
        lambda state: ((state / "optimizer.pt").unlink(), (state / "optimizer.pt").mkdir()),
        "optimizer.pt is no regular file",
    ),
    "manifest missing": (lambda state: (state / "complete").unlink(), "complete is missing"),
    "manifest damaged": (lambda state: (state / "complete").write_text("[" * 5000), "complete is damaged"),
    "manifest leads out": (
        lambda state: (state / "complete").write_text('{"../config.toml": 3}'),
        "../config.toml is no name of a file in this folder",
    ),
    "progress missing": (lambda state: (state / "progress.json").unlink(), "progress.json is missing"),
    "progress empty": (progress(""), "progress.json is damaged"),
    "progress a list": (progress("[6]"), "progress.json is no object with a step"),
    "progress negative": (progress('{"step": -6}'), "progress.json says step -6, which no run can reach"),
    "progress absurd": (progress('{"step": 1000000000}'), "progress.json says step 1000000000"),
    "progress of text": (progress('{"step": "6"}'), "progress.json says step '6'"),
    "progress of another state": (
        progress(json.dumps(sealed({"step": 4}))),
        "progress.json says step 4, the folder's name says 6",
    ),
    "progress changed": (progress('{"step": 6}'), "progress.json is not what was written"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_with_its_file_and_the_state_before_is_used(kohyakit, cut: Path, kind: str) -> None:
    spoil, said = DAMAGE[kind]
    spoil(cut / "state-00000006")
    assert judge(cut / "state-00000006", contents=True).said.startswith(said)
    found = kohyakit("resume", cut)
    assert found.exit_code == 0, found.output
    assert f"resume: exactly, from step 4 of 12, state {cut / 'state-00000004'}" in found.stdout
    assert "state-00000006 is damaged and not used: " + said in found.stdout


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_state_that_is_asked_for_is_refused_and_nothing_is_lost(kohyakit, cut: Path, trainer, kind) -> None:
    spoil, said = DAMAGE[kind]
    spoil(cut / "state-00000006")
    before = tree(cut.parent)
    found = kohyakit("resume", cut / "state-00000006")
    assert (found.exit_code, tree(cut.parent), len(trainer.starts)) == (1, before, 1)
    assert said in found.stderr
    assert f"fix: kohyakit resume {cut / 'state-00000004'}, which is whole" in found.stderr


def test_a_state_that_is_not_there_is_refused_and_nothing_is_lost(kohyakit, cut: Path, trainer) -> None:
    before = tree(cut.parent)
    found = kohyakit("resume", cut / "state-00000005")
    assert (found.exit_code, tree(cut.parent), len(trainer.starts)) == (1, before, 1)
    assert "does not exist" in found.stderr
    assert str(cut / "state-00000004") in found.stderr


def test_where_every_state_is_damaged_none_is_passed_over_in_silence(kohyakit, cut: Path, trainer) -> None:
    for state in cut.glob("state-*"):
        truncated(state / "optimizer.pt")
    found = kohyakit("resume", cut)
    assert (found.exit_code, len(trainer.starts)) == (1, 1)
    assert "holds no state that is whole: state-00000006: optimizer.pt is empty" in found.stderr
    newest, damaged = newest_whole(cut)
    assert (newest, len(damaged)) == (None, 3)


def test_states_of_the_previous_version_resume_by_their_sizes(kohyakit, cut: Path) -> None:
    state = cut / "state-00000006"
    (state / "progress.json").write_text('{"step": 6, "epoch": 1, "batch": 6, "processes": 1, "saves": []}')
    sizes = {path.name: path.stat().st_size for path in state.glob("*.*") if path.name != "progress.json"}
    (state / "complete").write_text(json.dumps(sizes))
    found = kohyakit("resume", cut)
    assert found.stdout.startswith("resume: exactly, from step 6 of 12")
    assert "without checksums: sizes alone were compared" in found.stdout
    truncated(state / "optimizer.pt")
    assert "from step 4 of 12" in kohyakit("resume", cut, "--to-end").stdout


@pytest.mark.parametrize(
    "text", [None, "", "[]", "null", '{"starts":[5]}', '{"starts":{}}', '{"starts":[{}],"options":3}', "[" * 9000,
             '{"steps":{"total":"x"},"accelerate":[1],"origins":{"seed":1},"dataset":{"files":{"a":1}},"starts":[]}']
)  # fmt: skip
def test_states_alone_are_enough_to_go_on(kohyakit, cut: Path, trainer, text: str | None) -> None:
    (cut / "run.json").unlink()
    if text is not None:
        (cut / "run.json").write_text(text)
    assert kohyakit("report", cut).exit_code == 0
    found = kohyakit("resume", cut)
    assert found.exit_code == 0, found.output
    assert "from step 6 of" in found.stdout
    assert read(cut / "config.toml")[0].resume == str(cut)
    (start,) = read_record(cut)["starts"][-1:]
    assert (start["mode"], start["exit"]) == ("resume", 0)


def test_states_without_a_config_lead_to_the_command_that_goes_on(kohyakit, cut: Path, preset, trainer) -> None:
    (cut / "config.toml").unlink()
    refused = kohyakit("resume", cut)
    assert (refused.exit_code, f"kohyakit launch FILE --set resume={cut}" in refused.stderr) == (1, True)
    assert kohyakit("launch", preset(), "--set", f"resume={cut}").exit_code == 0
    assert {path.name for path in cut.glob("state-*")} >= {"state-00000006"}


@pytest.mark.parametrize("command", ["launch", "resume"])
def test_a_start_killed_before_its_first_state_is_begun_again(kohyakit, preset, trainer, tmp_path, command) -> None:
    trainer.code, trainer.steps, trainer.leaves = -9, 0, ()
    kohyakit("launch", preset())
    run = tmp_path / "out" / "frog.run"
    assert (run / "log.jsonl").read_text() == ""
    trainer.code, trainer.steps, trainer.leaves = 0, 12, ("frog.safetensors",)
    found = kohyakit("launch", preset()) if command == "launch" else kohyakit("resume", run)
    assert found.exit_code == 0, found.output
    assert "from the beginning" in found.output
    assert "starts a new run from its weights" not in found.output


def test_a_run_that_ended_after_its_launcher_is_complete(kohyakit, preset, trainer, lora, tmp_path: Path) -> None:
    """Nobody was left to write the end into run.json."""
    kohyakit("launch", preset())
    run = tmp_path / "out" / "frog.run"
    kept = json.loads((run / "run.json").read_text())
    kept["starts"][0]["exit"] = None
    (run / "run.json").write_text(json.dumps(kept))
    found = kohyakit("resume", run)
    assert (found.exit_code, "is complete, so say how much further" in found.stderr) == (1, True)


def test_a_refusal_by_the_trainer_is_no_failure_of_the_run(kohyakit, cut: Path, trainer) -> None:
    trainer.code, trainer.steps, trainer.leaves, trainer.lines = 1, 0, (), ("error: resume: x",)
    assert kohyakit("resume", cut).exit_code == 1


@pytest.fixture
def at_work(tmp_path: Path):
    """at_work(run, who) holds that lock of a run folder in a process of its own until it is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def hold(run: Path, who: str) -> subprocess.Popen[bytes]:
        words = {"trainer": f"hold_for_trainer({run!r}, [os.getpid()])", "launcher": f"hold_for_launcher({run!r})"}
        code = "import os\nfrom pathlib import Path, PosixPath\nfrom schemas.files.run_lock import *\n"
        code += f"from schemas.files.run_lock import hold_for_launcher, hold_for_trainer\nheld = {words[who]}\n"
        started.append(subprocess.Popen([sys.executable, "-c", code + "print(1, flush=True)\ninput()"], cwd=ROOT,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE))  # fmt: skip
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == b"1\n"
        return started[-1]

    yield hold
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("who", ["launcher", "trainer"])
@pytest.mark.parametrize(
    "words", [("resume", "RUN"), ("resume", "RUN", "--epochs", "2"), ("resume", "RUN/state-00000002"),
              ("launch", "FILE"), ("launch", "FILE", "--overwrite"), ("launch", "FILE", "--set", "resume=RUN")]
)  # fmt: skip
def test_a_run_in_use_is_left_alone(kohyakit, cut: Path, preset, trainer, lora, at_work, words, who: str) -> None:
    lora("out/frog.safetensors")
    file = str(preset())
    process = at_work(cut, who)
    before = tree(cut.parent)
    found = kohyakit(*(word.replace("RUN", str(cut)).replace("FILE", file) for word in words))
    assert (found.exit_code, tree(cut.parent), len(trainer.starts)) == (1, before, 1), found.output
    assert f"is being trained by process {process.pid}" in found.stderr
    process.kill()
    process.wait()
    assert kohyakit("resume", cut).exit_code == 0  # a killed one's lock opens by itself


def test_the_lock_is_asked_again_before_anything_is_written(
    kohyakit, cut, preset, trainer, at_work, monkeypatch
) -> None:
    from launcher.commands import runs

    monkeypatch.setattr(runs, "_refuse_in_use", lambda *words: None)
    at_work(cut, "trainer")
    before = tree(cut.parent)
    for words in (("launch", preset(), "--overwrite"), ("resume", cut)):
        found = kohyakit(*words)
        assert (found.exit_code, tree(cut.parent), len(trainer.starts)) == (1, before, 1), found.output


def test_the_lock_is_gone_with_the_run(kohyakit, preset, trainer, tmp_path: Path) -> None:
    held: list[bool] = []
    real = trainer.__class__.__call__

    def seen(self, words, environment, write, *, terminal=False):
        held.append((tmp_path / "out" / ".frog.lock").exists() and bool(environment["KOHYAKIT_LOCK"]))
        return real(self, words, environment, write, terminal=terminal)

    trainer.__class__.__call__ = seen
    assert kohyakit("launch", preset()).exit_code == 0
    assert held == [True]
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.endswith("lock")]


def test_two_launches_at_once_leave_one_snapshot(preset, trainer, kohyakit, tmp_path: Path, monkeypatch) -> None:
    """The second one has planned before the first one wrote; it asks for the lock after the first one has ended."""
    from launcher.run import launch as run

    file, real, second = preset(), run.locked, []

    def late(plan):
        if not second:
            second.append(None)
            second[0] = kohyakit("launch", file)
        return real(plan)

    monkeypatch.setattr(run, "locked", late)
    first = kohyakit("launch", file)
    assert (first.exit_code, second[0].exit_code, len(trainer.starts)) == (1, 0, 1)
    assert "already has results" in first.stderr
    assert len(list((tmp_path / "out").glob("frog_*.json"))) == 1


def test_states_of_sd_scripts_are_refused_by_name(kohyakit, preset, trainer, tmp_path: Path) -> None:
    state = tmp_path / "theirs-state"
    state.mkdir()
    for name in ("optimizer.bin", "random_states_0.pkl", "train_state.json", "model.safetensors"):
        (state / name).write_bytes(b"x")
    for command in ("plan", "launch"):
        found = kohyakit(command, preset(resume=str(state)))
        assert (found.exit_code, len(trainer.starts)) == (1, 0)
        assert "is a state of sd-scripts" in found.stderr
        assert "network_weights" in found.stderr


def test_copies_of_states_are_judged_alike_anywhere(cut: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(cut / "state-00000006", tmp_path / "NAME-state")
    assert judge(copy, contents=True).step == 6


def test_another_machine_joins_the_run_that_the_first_one_holds(kohyakit, preset, trainer, at_work, tmp_path) -> None:
    at_work(tmp_path / "out" / "frog.run", "launcher")
    words = ("--machines", "2", "--processes", "2", "--main-ip", "10.0.0.1", "--main-port", "29501")
    assert kohyakit("launch", preset(), *words, "--machine-rank", "0").exit_code == 1
    assert kohyakit("launch", preset(), *words, "--machine-rank", "1").exit_code == 0


SAMPLE = 12  # of some hundred; each runs three commands
JUNK = (None, 5, -1, "x", [], [5], {}, {"a": [1]}, 1e400, 10**400, True, "\u001b[31m")


def places(document: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document of JSON."""
    parts = document if isinstance(document, dict) else dict(enumerate(document)) if isinstance(document, list) else {}
    return [at, *(place for name, value in parts.items() for place in places(value, (*at, name)))]


def replaced(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = document.copy()
    copy[place[0]] = replaced(document[place[0]], place[1:], value)
    return copy


@pytest.mark.parametrize("name", ["run.json", "log.jsonl", "state-00000006/progress.json", "state-00000006/complete"])
def test_no_entry_of_what_a_run_leaves_can_break_a_command(kohyakit, cut: Path, name: str) -> None:
    file = cut / name
    text = file.read_text().splitlines()[0] if name == "log.jsonl" else file.read_text()
    document = json.loads(text)
    if name == "run.json":
        document["remarks"] = [{"code": "c", "text": "t", "fix": "f", "step": 1}]
        document["adapted"] = [{"argument": "a", "from": 1, "to": 2, "why": "w"}]
        document["options"] = {"network_dim": 4}
        document["versions"] = {"torch": "1"}
    spoiled = [(place, junk) for place in places(document) for junk in JUNK]
    for place, junk in random.Random(name).sample(spoiled, min(SAMPLE, len(spoiled))):
        file.write_text(json.dumps(replaced(document, place, junk)) + "\n")
        for words in (("report", cut, "--json"), ("resume", cut, "--print-command"), ("resume", cut, "--to-end")):
            found = kohyakit(*words)
            assert isinstance(found.exception, SystemExit | None), (place, junk, words, found.exception)
            assert found.exit_code in (0, 1)
