"""`kohyakit queue` as it is typed: what is added is checked, kept in plain files, listed, moved, removed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from launcher.queue.folder import Queue, default_folder


@pytest.fixture
def queue(kohyakit, tmp_path: Path):
    """`queue(*words)`: the command on a queue of its own."""
    return lambda *words: kohyakit("queue", words[0], "--queue", tmp_path / "queue", *words[1:])


def listed(queue) -> dict:
    return json.loads(queue("list", "--json").stdout)


def test_what_is_added_is_planned_and_kept_with_its_sets(queue, preset, tmp_path: Path) -> None:
    found = queue("add", preset(), "--set", "network_dim=8", "--vram", "8", "--json")
    assert found.exit_code == 0, found.stderr
    document = json.loads(found.stdout)
    words = ["launch", str(tmp_path / "frog.json"), "--vram", "8.0", "--set", "network_dim=8"]
    assert (document["id"], document["state"], document["words"]) == (1, "waiting", words)
    assert (document["total"], document["run_folder"]) == (12, str(tmp_path / "out" / "frog.run"))
    assert [job["id"] for job in listed(queue)["jobs"]] == [1]
    assert not (tmp_path / "out").exists()


def test_input_errors_are_found_when_it_is_added(queue, preset, tmp_path: Path) -> None:
    found = queue("add", preset(train_data_dir="/content/img"))
    assert found.exit_code == 1
    assert "train_data_dir" in found.stderr
    assert listed(queue)["jobs"] == []
    assert not (tmp_path / "queue").exists()


def test_one_run_folder_is_queued_once(queue, preset) -> None:
    assert queue("add", preset()).exit_code == 0
    again = queue("add", preset())
    assert (again.exit_code, "is already queued as 1" in again.stderr) == (1, True)
    assert queue("add", preset(), "--set", "output_name=other").exit_code == 0


def test_a_run_is_queued_to_be_gone_on_with(queue, cut) -> None:
    assert queue("add", cut).exit_code == 0
    (job,) = listed(queue)["jobs"]
    assert (job["words"], job["run_folder"]) == (["resume", str(cut)], str(cut))
    assert queue("add", cut, "--vram", "8").exit_code == 1


def test_a_finished_run_is_queued_to_be_trained_longer(kohyakit, queue, preset, trainer, lora, tmp_path: Path) -> None:
    kohyakit("launch", preset())
    lora("out/frog.safetensors")
    assert "--epochs" in queue("add", tmp_path / "out" / "frog.run").stderr
    assert queue("add", tmp_path / "out" / "frog.run", "--epochs", "2").exit_code == 0
    assert listed(queue)["jobs"][0]["words"][-2:] == ["--epochs", "2"]


@pytest.mark.parametrize("word", ["wandb_api_key=" + "0" * 40, "training_comment=hf_abcdefghijklmnopqrstu"])
def test_a_secret_is_not_kept(queue, preset, tmp_path: Path, word: str) -> None:
    found = queue("add", preset(), "--set", word)
    assert (found.exit_code, "secret" in found.stderr) == (1, True)
    assert not (tmp_path / "queue").exists()


def test_numbers_are_not_given_twice(queue, preset) -> None:
    for name in ("a", "b"):
        queue("add", preset(), "--set", f"output_name={name}")
    assert queue("remove", 2).exit_code == 0
    queue("add", preset(), "--set", "output_name=c")
    assert [job["id"] for job in listed(queue)["jobs"]] == [1, 3]


def test_the_order_is_changed(queue, preset) -> None:
    for name in "abcd":
        queue("add", preset(), "--set", f"output_name={name}")

    def order() -> str:
        return "".join(job["name"] for job in listed(queue)["jobs"])

    queue("move", 3, "--first")
    assert order() == "cabd"
    queue("move", 4, "--before", 2)
    assert order() == "cadb"
    queue("move", 1, "--last")
    assert order() == "cdba"
    queue("add", preset(), "--set", "output_name=e", "--first")
    assert order() == "ecdba"
    assert queue("move", 1).exit_code == 2
    assert queue("move", 1, "--first", "--last").exit_code == 2


@pytest.mark.parametrize("words", [("pause", 9), ("resume", 9), ("retry", 9), ("move", 9, "--first"), ("remove", 9)])
def test_a_number_that_is_not_there_is_named(queue, preset, words) -> None:
    queue("add", preset())
    found = queue(*words)
    assert (found.exit_code, "is not in the queue, which has: 1" in found.stderr) == (1, True)


@pytest.mark.parametrize("words", [("resume", 1), ("retry", 1)])
def test_a_wish_that_does_not_fit_the_state_is_refused(queue, preset, words) -> None:
    queue("add", preset())
    found = queue(*words)
    assert (found.exit_code, "is waiting" in found.stderr) == (1, True)


def test_remove_leaves_the_run_alone(queue, cut, files) -> None:
    before = files(cut)
    queue("add", cut)
    assert queue("remove", 1).exit_code == 0
    assert (listed(queue)["jobs"], files(cut)) == ([], before)


def test_a_folder_that_is_no_queue_is_not_written_into(queue, preset, tmp_path: Path) -> None:
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / "photo.png").write_text("")
    assert "holds other files, and no queue" in queue("add", preset()).stderr
    assert [path.name for path in (tmp_path / "queue").iterdir()] == ["photo.png"]


def test_nobody_to_stop_is_said(queue) -> None:
    found = queue("stop")
    assert (found.exit_code, "no process" in found.stderr) == (1, True)


def test_an_empty_queue_ends_at_once(queue) -> None:
    before = signal.getsignal(signal.SIGHUP)
    assert queue("run").exit_code == 0
    assert signal.getsignal(signal.SIGHUP) == before  # a closed terminal ends what runs afterwards again
    assert json.loads(queue("run", "--json").stdout)["jobs"] == []


def test_unknown_gpus_are_named(queue) -> None:
    found = queue("run", "--gpus", "0,7")
    assert (found.exit_code, "is no GPU of this machine, which has: none" in found.stderr) == (1, True)


def test_the_queue_of_a_user_lies_in_the_state_folder(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "kohyakit" / "queue"
    assert Queue.at(None).path == default_folder()
