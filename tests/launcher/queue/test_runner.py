"""The order of starts, pausing, what kills and reboots leave behind, and everything that may go wrong in a night."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.queue import folder as folders
from launcher.queue import runner as runners
from launcher.queue.devices import Slot
from launcher.queue.runner import IN_VAIN
from launcher.queue.wishes import pause_all, pause_one, resume_all, resume_one, retry_one
from schemas.files.run_lock import trainer_lock
from tests.launcher.queue.conftest import full_disk

GPUS = {"0": Slot("0", "RTX 3060"), "1": Slot("1", "RTX 3060")}


def states(queue) -> dict[str, str]:
    return {job.name: job.state for job in queue.jobs()}


def test_one_at_a_time_on_a_cpu_in_the_order_of_the_queue(queue, put, work, pretended) -> None:
    jobs = [put(name) for name in ("a", "b", "c")]
    queue.move(3, first=True)
    runner = work()
    for name in ("c", "a", "b"):
        assert runner.step()
        assert runner.step()
        job = next(job for job in jobs if job.name == name)
        assert pretended.last.words[3:] == ["launch", job.file, "--json"]
        assert (pretended.last.cwd, pretended.last.environment["CUDA_VISIBLE_DEVICES"]) == (job.cwd, "")
        pretended.last.begin(job.run)
        pretended.last.end(0, job.run)
    assert runner.step() is False
    assert states(queue) == {"a": "done", "b": "done", "c": "done"}
    assert len(pretended.children) == 3


def test_one_run_a_gpu_and_a_large_one_is_not_passed_for_ever(queue, put, work, pretended) -> None:
    pretended.gpus = dict(GPUS)
    for name, processes in (("a", 1), ("both", 2), ("c", 1)):
        put(name, device="gpu", processes=processes)
    runner = work(*GPUS.values())
    runner.step()
    assert [child.environment["CUDA_VISIBLE_DEVICES"] for child in pretended.children] == ["0"]
    pretended.last.end(0)
    runner.step()
    assert pretended.last.environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert pretended.last.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    pretended.last.end(0)
    runner.step()
    assert [child.environment["CUDA_VISIBLE_DEVICES"] for child in pretended.children] == ["0", "0,1", "0"]


def test_a_run_that_wants_more_gpus_than_there_are_is_held(queue, put, work, pretended) -> None:
    pretended.gpus = {"0": GPUS["0"]}
    put("both", device="gpu", processes=2)
    put("one", device="gpu")
    work(GPUS["0"]).step()
    assert states(queue) == {"both": "held", "one": "running"}
    assert "wants 2 GPUs, this queue has 1" in str(queue.job(1).reason)


def test_a_paused_run_keeps_its_state_and_another_goes_first(queue, put, work, pretended) -> None:
    first, second = put("a"), put("b")
    runner = work()
    runner.step()
    pretended.last.begin(first.run)
    pause_one(queue, 1)
    assert queue.job(1).shown_state == "pausing"
    runner.step()
    runner.step()
    assert pretended.last.signals == 1  # asked once, however often it is looked at
    pretended.last.end(130, first.run)
    runner.step()
    assert states(queue) == {"a": "paused", "b": "running"}
    assert "paused at step 4" in str(queue.job(1).reason)
    pretended.last.begin(second.run)
    pretended.last.end(0, second.run)
    assert runner.step() is False
    resume_one(queue, 1)
    runner.step()
    assert pretended.last.words[3:] == ["resume", first.run_folder, "--to-end", "--json"]


def test_a_waiting_run_is_paused_at_once_and_a_paused_queue_starts_nothing(queue, put, work, pretended) -> None:
    put("a"), put("b")
    pause_one(queue, 1)
    pause_all(queue)
    runner = work()
    assert runner.step() is False
    resume_all(queue)
    runner.step()
    assert states(queue) == {"a": "paused", "b": "running"}


def test_consent_given_at_the_command_line_goes_with_the_run(queue, put, work, pretended) -> None:
    job = put("a", words=("launch", "a.toml", "--set", "trust=x.Y z", "--trust", "w"), fingerprint=None)
    runner = work()
    runner.step()
    pretended.last.begin(job.run)
    pretended.last.end(130, job.run)
    runner.step()
    resume_one(queue, 1)
    runner.step()
    assert pretended.last.words[5:-1] == ["--to-end", "--trust", "x.Y", "--trust", "z", "--trust", "w"]


# Kills and reboots


def test_what_a_reboot_cut_off_goes_on_from_its_state(queue, put, work, pretended, told) -> None:
    job = put("a")
    work().step()
    pretended.last.begin(job.run)
    pretended.last.returncode = -9  # with everything else: nobody writes anything down
    runner = work()
    assert "a waiting: cut off at step 4" in told.text
    runner.step()
    assert pretended.last.words[3:5] == ["resume", job.run_folder]


def test_what_was_killed_before_it_began_starts_as_it_was_queued(queue, put, work, pretended) -> None:
    job = put("a")
    work().step()
    pretended.last.returncode = -9
    work().step()
    assert pretended.last.words[3:] == ["launch", job.file, "--json"]


def test_what_was_cut_off_in_its_first_minute_starts_again_over_its_own_files(queue, put, work, pretended) -> None:
    job = put("a")
    work().step()
    pretended.last.begin(job.run)
    folders.remove(job.run / "state-00000004")
    pretended.last.returncode = -9
    work().step()
    assert pretended.last.words[3:] == ["launch", job.file, "--overwrite", "--json"]


def test_a_run_that_outlived_its_runner_is_watched_not_started_again(queue, put, work, pretended, told) -> None:
    job = put("a")
    work().step()
    pretended.last.begin(job.run)
    runner = work()
    assert "a is still running; it is watched from here on" in told.text
    assert runner.step()
    assert len(pretended.children) == 1
    pretended.last.end(0, job.run)
    runner.step()
    assert states(queue) == {"a": "done"}


def test_what_finished_while_no_runner_was_there_is_done(queue, put, work, pretended) -> None:
    job = put("a")
    work().step()
    pretended.last.begin(job.run)
    pretended.last.end(0, job.run)
    work()
    assert states(queue) == {"a": "done"}
    assert queue.job(1).starts[-1]["exit"] == 0


def test_an_older_run_in_its_place_is_not_taken_for_its_own(queue, put, work, pretended) -> None:
    """With --overwrite: the run folder still holds the run that is to be replaced, finished long ago."""
    job = put("a", words=("launch", "a.toml", "--overwrite"), fingerprint=None)
    job.run.mkdir(parents=True)
    (job.run / "config.toml").write_text("")
    old = {"starts": [{"begin": "2020-01-01T00:00:00+00:00", "exit": 0}]}
    (job.run / "run.json").write_text(json.dumps(old))
    work().step()
    pretended.last.returncode = -9
    runner = work()
    runner.step()
    assert states(queue) == {"a": "running"}
    assert pretended.last.words[3:5] == ["launch", "a.toml"]


def test_a_run_that_never_gets_further_is_left_alone(queue, put, work, pretended) -> None:
    job = put("a")
    for _ in range(IN_VAIN):
        work().step()
        pretended.last.begin(job.run)
        pretended.last.returncode = -9
    work()
    assert states(queue) == {"a": "failed"}
    assert f"was cut off {IN_VAIN} times without a step forward" in str(queue.job(1).reason)


def test_a_trainer_that_outlives_its_launcher_is_waited_for(queue, put, work, pretended, told, monkeypatch) -> None:
    job = put("a")
    put("b")
    busy = [job.run]
    monkeypatch.setattr(runners, "in_use", lambda run: Exception() if run in busy else None)
    runner = work()
    runner.step()
    runner.step()
    assert states(queue) == {"a": "waiting", "b": "running"}
    assert told.text.count("a is being trained by another process; it is waited for") == 1
    busy.clear()
    pretended.last.end(0)
    runner.step()
    assert states(queue) == {"a": "running", "b": "done"}


def test_stopping_the_queue_asks_each_run_once_and_puts_it_back(queue, put, work, pretended) -> None:
    job = put("a")
    runner = work()
    runner.step()
    pretended.last.begin(job.run)
    with queue.changing():
        queue.set_head(stop_asked=True)
    runner.step()
    runner.step()
    assert pretended.last.signals == 1
    pretended.last.end(130, job.run)
    assert runner.step() is False
    assert states(queue) == {"a": "waiting"}
    assert work().step()  # the wish was for that runner


# What goes wrong


def test_an_edited_file_is_held_and_the_next_one_goes_on(queue, put, work, pretended) -> None:
    job, other = put("a"), put("b")
    Path(job.file).write_text("seed = 2\n")
    runner = work()
    runner.step()
    assert states(queue) == {"a": "held", "b": "running"}
    assert queue.job(1).reason == f"{job.file} was edited since it was queued"
    pretended.last.begin(other.run)
    pretended.last.end(0, other.run)
    retry_one(queue, 1)
    runner.step()
    assert pretended.last.words[4] == job.file


def test_a_removed_file_is_held_until_it_is_back(kohyakit, queue, put, work, pretended) -> None:
    job = put("a")
    text = Path(job.file).read_text()
    Path(job.file).unlink()
    work().step()
    assert "was removed since it was queued" in str(queue.job(1).reason)
    refused = kohyakit("queue", "retry", "1", "--queue", queue.path)
    assert (refused.exit_code, states(queue)) == (1, {"a": "held"})
    Path(job.file).write_text(text)
    assert kohyakit("queue", "retry", "1", "--queue", queue.path).exit_code == 0
    work().step()
    assert states(queue) == {"a": "running"}


def test_a_file_edited_after_its_run_began_changes_nothing(queue, put, work, pretended) -> None:
    """From its first start on a run has a config of its own."""
    job = put("a")
    work().step()
    pretended.last.begin(job.run)
    pretended.last.returncode = -9
    Path(job.file).unlink()
    work().step()
    assert pretended.last.words[3] == "resume"


def test_a_failed_run_is_told_and_the_next_one_starts(queue, put, work, pretended, told) -> None:
    put("a"), put("b")
    runner = work()
    runner.step()
    pretended.last.end(3, cause="the loss or a gradient became NaN or infinite")
    runner.step()
    assert states(queue) == {"a": "failed", "b": "running"}
    assert "became NaN" in str(queue.job(1).reason)
    assert queue.job(1).fix == "kohyakit queue retry 1"
    pretended.last.end(1, problems=[{"severity": "error", "code": "no-file", "key": "vae", "must": "does not exist"}])
    runner.step()
    assert "vae: does not exist; see " in str(queue.job(2).reason)
    assert runner.failed == [1, 2]


def test_a_full_disk_stops_the_queue_and_loses_nothing(queue, put, work, pretended, told) -> None:
    job = put("a")
    put("b")
    runner = work()
    runner.step()
    pretended.last.begin(job.run)
    pretended.last.end(3, job.run, cause="the disk is full")
    assert runner.step() is False
    assert states(queue) == {"a": "waiting", "b": "waiting"}
    assert "make room" in str(runner.trouble)
    assert queue.head()["stopped"] == runner.trouble
    again = work()
    assert queue.head()["stopped"] is None
    again.step()
    assert pretended.last.words[3:5] == ["resume", job.run_folder]


def test_a_plan_that_finds_no_room_stops_the_queue_too(queue, put, work, pretended) -> None:
    put("a"), put("b")
    runner = work()
    runner.step()
    problem = {"severity": "error", "code": "disk-full", "key": "output_dir", "must": "needs about 3 GB, 1 GB are free"}
    pretended.last.end(1, problems=[problem])
    assert runner.step() is False
    assert states(queue) == {"a": "waiting", "b": "waiting"}


def test_an_end_that_cannot_be_written_down_is_found_out_later(queue, put, work, pretended, told, monkeypatch) -> None:
    job = put("a")
    runner = work()
    runner.step()
    pretended.last.begin(job.run)
    pretended.last.end(0, job.run)
    with monkeypatch.context() as disk:
        disk.setattr(folders, "write_json", full_disk)
        assert runners.work(runner, stay=False, hear=lambda: 0) == 3
    assert "the queue stops: No space left on device" in told.text
    assert states(queue) == {"a": "running"}
    work()
    assert states(queue) == {"a": "done"}


def test_a_gpu_that_vanishes_takes_nothing_with_it(queue, put, work, pretended, told) -> None:
    pretended.gpus = dict(GPUS)
    jobs = [put(name, device="gpu") for name in ("a", "b", "c")]
    runner = work(*GPUS.values())
    runner.step()
    for child, job in zip(pretended.children, jobs, strict=False):
        child.begin(job.run)
    del pretended.gpus["0"]
    pretended.children[0].end(3, jobs[0].run, cause="RuntimeError: CUDA error: unspecified launch failure")
    runner.step()
    assert states(queue) == {"a": "waiting", "b": "running", "c": "waiting"}
    assert "GPU 0 vanished at step 4" in str(queue.job(1).reason)
    assert "GPU 0 (RTX 3060) no longer answers; nothing more is started on it" in told.text
    pretended.children[1].end(0, jobs[1].run)
    runner.step()
    assert pretended.last.words[3:5] == ["resume", jobs[0].run_folder]
    assert pretended.last.environment["CUDA_VISIBLE_DEVICES"] == "1"


def test_no_gpu_left_stops_the_queue_instead_of_training_on_the_cpu(queue, put, work, pretended) -> None:
    pretended.gpus = {"0": GPUS["0"]}
    put("a", device="gpu")
    runner = work(GPUS["0"])
    pretended.gpus.clear()
    assert runner.step() is False
    assert "no GPU answers any more" in str(runner.trouble)
    assert (states(queue), pretended.children) == ({"a": "waiting"}, [])


def test_a_run_for_a_gpu_is_held_where_none_answers_unless_the_cpu_is_asked_for(queue, put, work, pretended) -> None:
    put("a", device="gpu")
    work().step()
    assert states(queue) == {"a": "held"}
    retry_one(queue, 1)
    work(cpu=True).step()
    assert states(queue) == {"a": "running"}


def test_a_second_runner_is_refused_and_named(kohyakit, queue, monkeypatch) -> None:
    said = {"host": "box", "pids": [4711]}
    monkeypatch.setattr(folders.Lock, "take", lambda lock, *words: None if lock.path.name == ".runner.lock" else {})
    monkeypatch.setattr(folders, "read_object", lambda path: said)
    found = kohyakit("queue", "run", "--queue", queue.path)
    assert found.exit_code == 1
    assert "process 4711 on box; nothing was started twice" in found.stderr


def test_a_real_lock_of_a_trainer_is_seen(queue, put, work, pretended, tmp_path) -> None:
    """The lock of another process, not of this one, which would not see its own."""
    import subprocess
    import sys

    job = put("a")
    code = (
        "import sys; from pathlib import Path; from schemas.files.run_lock import trainer_lock; "
        f"lock = trainer_lock(Path({job.run_folder!r})); lock.take([1]); print('held', flush=True); sys.stdin.read()"
    )
    root = str(Path(folders.__file__).parents[2])
    other = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdin=-1, stdout=-1, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        work().step()
        assert states(queue) == {"a": "waiting"}
    finally:
        other.communicate("")
    assert trainer_lock(job.run).holder() is None
    work().step()
    assert states(queue) == {"a": "running"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 1}', '{"id": "x"}'])
def test_a_damaged_job_is_listed_and_neither_run_nor_removed(text, kohyakit, queue, put, work, pretended) -> None:
    put("a"), put("b")
    file = queue.folder(1) / "job.json"
    file.write_text(text)
    work().step()
    assert states(queue) == {"b": "running"}
    found = kohyakit("queue", "list", "--queue", queue.path)
    assert (found.exit_code, "1  damaged" in found.stdout) == (0, True)
    assert file.read_text() == text
