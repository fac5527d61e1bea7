"""Runs through the page: found wherever they were started, started so that they outlive the server, stopped, gone on with."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from launcher.ui import running
from launcher.ui.app import application
from launcher.ui.log import GrowingLog
from launcher.ui.runs import Runs, run_id
from launcher.ui.site import Site
from launcher.ui.work import Work
from schemas.files.run_lock import hold_for_launcher
from tests.launcher.ui.conftest import OWN, SECRET


def line(step: int, **more: Any) -> str:
    entry = {
        "step": step,
        "epoch": 1 + (step - 1) // 10,
        "loss": 1 / step,
        "lr": {"unet": 1e-4, "te": 5e-5},
        "seconds": 0.5,
        "memory": 2**30,
    }
    return json.dumps({**entry, **more}) + "\n"


@pytest.fixture
def make_run(tmp_path: Path):
    """`make_run(name, steps=..., exit=...)`: a run folder as a run leaves it."""

    def make(name: str = "frog", steps: int = 20, exit: Any = 0, **record: Any) -> Path:
        run = tmp_path / "out" / f"{name}.run"
        run.mkdir(parents=True)
        (run / "config.toml").write_text(
            f'output_name = "{name}"\noutput_dir = "{run.parent}"\nsave_every_n_epochs = 1\n'
        )
        (run / "log.jsonl").write_text("".join(line(step) for step in range(1, steps + 1)))
        begin = {"begin": "2026-01-31T12:00:00+01:00", "exit": exit, "mode": "launch"}
        kept = {"family": "sd15", "steps": {"total": 20, "updates_per_epoch": 10, "epochs": 2}, "starts": [begin],
                "options": {"network_dim": 8, "train_batch_size": 2}, **record}  # fmt: skip
        (run / "run.json").write_text(json.dumps(kept))
        return run

    return make


def about(page: TestClient, run: Path) -> dict[str, Any]:
    found: dict[str, Any] = page.get(f"/api/run/{run_id(run)}").json()
    return found


@pytest.mark.parametrize(
    ("exit", "state"),
    [(0, "finished"), (1, "refused"), (130, "interrupted"), (3, "failed"), (None, "killed"), ("x", "failed")],
)
def test_a_run_of_the_terminal_is_found_with_its_state(page, make_run, exit: Any, state: str) -> None:
    run = make_run(exit=exit)
    (found,) = page.get("/api/runs").json()["runs"]
    assert (found["name"], found["state"], found["step"], found["total"]) == ("frog", state, 20, 20)
    assert found["id"] == run_id(run)
    assert found["images_per_second"] == 4
    assert page.get(f"/run/{found['id']}").status_code == 200
    assert "frog" in page.get("/parts/runs").text


def test_a_run_at_work_is_known_by_its_lock_and_its_time_left(page, make_run, tmp_path: Path) -> None:
    run = make_run(steps=8, exit=None)
    code = f"""
import time
from pathlib import Path
from schemas.files.run_lock import hold_for_launcher
lock, token = hold_for_launcher(Path({str(run)!r}))
print("held", flush=True)
time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        found = about(page, run)
        assert (found["state"], found["seconds_left"]) == ("running", 6.0)
        assert [one["name"] for one in page.get("/api/queue").json()["runs"]] == ["frog"]
        busy = page.post(f"/api/run/{run_id(run)}/resume", json={})
        assert busy.json()["problems"][0]["code"] == "run-in-use"
        assert page.post(f"/api/run/{run_id(run)}/stop", json={}).json()["ok"]
        assert holder.wait(10) != 0
        assert about(page, run)["state"] == "killed"
        gone = page.post(f"/api/run/{run_id(run)}/stop", json={})
        assert gone.json()["problems"][0]["code"] == "not-running"
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()


def test_a_run_without_a_step_or_with_a_damaged_record_has_its_page(page, make_run) -> None:
    run = make_run("young", steps=0, exit=None)
    (run / "log.jsonl").unlink()
    (run / "run.json").write_text('{"starts": [5], "steps": 3, "options": [1]}')
    assert about(page, run)["step"] == 0
    for address in ("", "/compare", "/part/report", "/part/previews"):
        assert page.get(f"/run/{run_id(run)}{address}").status_code == 200
    assert page.get("/run/none-00000000").status_code == 404
    assert page.get("/api/run/none-00000000/events").status_code == 404
    assert page.get(f"/run/{run_id(run)}/part/other").status_code == 404


def test_the_log_is_read_as_it_grows_and_anew_when_it_was_cut_back(tmp_path: Path) -> None:
    log = GrowingLog(tmp_path)
    assert not log.update()
    file = tmp_path / "log.jsonl"
    file.write_text(line(1) + line(2)[:9])
    assert log.update()
    assert list(log.steps) == [1]
    with file.open("a") as stream:
        stream.write(line(2)[9:] + "damaged\n" + line(3, loss=math.nan) + line(4, lr={"unet": 1e-4, "new": 1.0}))
    assert log.update()
    assert list(log.steps) == [1, 2, 3, 4]
    curve = log.curve()
    assert curve["mean"] == [1.0, 0.5, None, 0.25]
    assert curve["rates"]["new"] == [None, None, None, 1.0]
    assert log.curve(after=3)["step"] == [4]
    before = log.generation
    file.write_text(line(1))  # the same file, shorter
    log.update()
    assert (list(log.steps), log.generation) == ([1], before + 1)
    other = tmp_path / "other"
    other.write_text(line(1) + line(2) + line(2, loss=7.0))
    os.replace(other, file)
    log.update()
    assert (list(log.steps), list(log.losses)) == ([1, 2], [1.0, 7.0])


def test_a_curve_of_any_length_is_a_bounded_number_of_points_that_hide_no_peak(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        "".join(line(step, loss=9.0 if step == 77_777 else 0.1) for step in range(1, 100_001))
    )
    log = GrowingLog(tmp_path)
    begin = time.perf_counter()
    log.update()
    curve = log.curve()
    assert time.perf_counter() - begin < 5  # a second on a quiet machine
    assert len(curve["step"]) <= 1000
    assert curve["step"][-1] == 100_000
    assert max(curve["high"]) == 9.0
    assert min(curve["low"]) == 0.1


def test_news_are_sent_once_and_a_resume_is_said(site: Site, make_run) -> None:
    run, seen = make_run(steps=5, exit=None), {"after": 3, "generation": None}
    news = dict(running._news(site, run_id(run), seen))
    assert news["steps"]["step"] == [4, 5]
    assert news["state"]["step"] == 5
    assert running._news(site, run_id(run), seen) == []
    with (run / "log.jsonl").open("a") as stream:
        stream.write(line(6))
    assert dict(running._news(site, run_id(run), seen))["steps"]["step"] == [6]
    (run / "log.jsonl").write_text(line(1))
    assert [kind for kind, _ in running._news(site, run_id(run), seen)][:2] == ["restart", "steps"]
    Image.new("RGB", (8, 8)).save(run.parent / "frog.png")
    os.utime(run.parent, (1, 1))
    assert ("results", {}) in running._news(site, run_id(run), seen)


def test_events_are_a_stream_that_ends_when_the_run_has_gone(site: Site, make_run, monkeypatch) -> None:
    monkeypatch.setattr(running, "TICK", 0.01)
    run = make_run(steps=3, exit=None)
    name = run_id(run)

    class Browser:
        async def is_disconnected(self) -> bool:
            return False

    async def listen() -> bytes:
        found = b""
        async for piece in running._events(Browser(), site, name, 0):  # type: ignore[arg-type]
            found += piece
            if b"event: state" in found and run.exists():
                run.rename(run.with_suffix(".gone"))
                site.runs._seen = (-1e9, [])
        return found

    said = asyncio.run(asyncio.wait_for(listen(), 20))
    assert b'event: steps\ndata: {"step": [1, 2, 3]' in said
    assert said.endswith(b"event: gone\ndata: {}\n\n")


def add_results(run: Path, lora) -> None:
    (run.parent / "sample").mkdir()
    for epoch in (1, 2):
        lora(f"out/frog-00000{epoch}.safetensors", metadata={"ss_steps": str(10 * epoch), "ss_epoch": str(epoch)})
        Image.new("RGB", (16, 16), (90 * epoch, 0, 0)).save(
            run.parent / "sample" / f"frog_e00000{epoch}_00_20260131120500_1.png"
        )
    (run / "validation.jsonl").write_text(
        json.dumps({"step": 10, "loss": 0.2}) + "\n" + json.dumps({"step": 20, "loss": 0.3}) + "\n"
    )


def test_previews_stand_by_prompt_and_moment_and_only_they_are_served(page, make_run, lora) -> None:
    run = make_run()
    add_results(run, lora)
    shown = about(page, run)["previews"]
    assert [(one["epoch"], one["step"]) for one in shown["moments"]] == [(1, 10), (2, 20)]
    name = shown["moments"][0]["previews"]["0"]
    answer = page.get(f"/run/{run_id(run)}/preview", params={"file": name})
    assert (answer.headers["content-type"], answer.content[:4]) == ("image/png", b"\x89PNG")
    for other in ("run.json", "../frog.run/run.json", f"../sample/{name}", ""):
        assert page.get(f"/run/{run_id(run)}/preview", params={"file": other}).status_code == 404


def test_epochs_are_compared_and_one_is_kept_without_loss(page, make_run, lora) -> None:
    run = make_run()
    add_results(run, lora)
    text = page.get(f"/run/{run_id(run)}/compare").text
    assert 'id="slider"' in text
    assert "lowest after step <b>10</b>" in text
    keep = f"/api/run/{run_id(run)}/keep"
    kept = Path(page.post(keep, json={"file": "frog-000001.safetensors"}).json()["kept"])
    original = (run.parent / "frog-000001.safetensors").read_bytes()
    assert (kept, kept.read_bytes()) == (run.parent / "kept" / "frog-000001.safetensors", original)
    assert page.post(keep, json={"file": "frog-000001.safetensors"}).json()["kept"] == str(kept)
    kept.write_bytes(b"something of the user's")
    other = Path(page.post(keep, json={"file": "frog-000001.safetensors"}).json()["kept"])
    assert (other.name, kept.read_bytes()) == ("frog-000001-2.safetensors", b"something of the user's")
    assert page.post(keep, json={"file": "../frog.run/run.json"}).status_code == 404
    found = page.get(f"/api/run/{run_id(run)}/compare").json()
    assert [one["loss"] for one in found["held_out"]] == [0.2, 0.3]


def test_the_page_of_a_run_holds_the_sections_of_its_report(page, make_run, lora) -> None:
    run = make_run(exit=130)
    add_results(run, lora)
    text = page.get(f"/run/{run_id(run)}/part/report").text
    for heading in ("What to try next", "Saved files", "Settings", "Starts"):
        assert heading in text
    assert "frog-000002.safetensors" in text
    assert "kohyakit" in text


class Process:
    """Stands in for the process of a run."""

    def __init__(self, words: list[str], **options: Any) -> None:
        self.words, self.options, self.pid, self.code = words, options, 2**22 + 1, None

    def poll(self) -> int | None:
        return self.code


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    found: list[Process] = []

    def start(words: list[str], **options: Any) -> Process:
        found.append(Process(words, **options))
        os.write(options["stdout"], b"loading\r10 %\r20 %\nhf_" + b"y" * 20 + b"\nerror: <b>no</b>\n")
        return found[-1]

    monkeypatch.setattr("launcher.ui.runs.Popen", start)
    return found


def test_train_starts_the_command_that_the_page_shows_in_a_session_of_its_own(
    page, opened, config, preset, processes, site
) -> None:
    name = opened(preset())
    config(name, "words", {"vram": "6", "overwrite": "true"})
    shown = config(name)["plan"]["command"]
    answer = config(name, "launch")
    (process,) = processes
    file = str(site.work.folder / "frog.json")
    assert process.words[:4] == [sys.executable, "-P", "-m", "launcher"]
    assert process.words[4:] == ["launch", file, "--vram", "6", "--overwrite"]
    assert shown == "kohyakit launch frog.json --vram 6 --overwrite"
    assert process.options.get("start_new_session") or os.name == "nt"
    assert config(name)["words"] == ["--vram", "6"]  # consent is for one start
    assert page.get(f"/api/run/{answer['run']}").json()["state"] == "starting"
    text = page.get(answer["address"]).text
    assert "the model is being loaded" in text or "No previews yet" in text


def test_a_run_is_found_again_by_another_server_and_a_refusal_is_said(
    page, opened, config, preset, processes, site
) -> None:
    address = config(opened(preset()), "launch")["address"]
    again = Site(site.folders, Work(site.work.folder))
    other = TestClient(
        application(again, SECRET, 8765),
        base_url="http://127.0.0.1:8765",
        headers={**OWN, "Authorization": f"Bearer {SECRET}"},
    )
    found = other.get(f"/api{address}").json()
    assert (found["state"], found["config"]) == ("refused", "frog")  # that process is not there any more
    text = other.get(address).text
    assert "refused before the first step" in text
    assert "error: &lt;b&gt;no&lt;/b&gt;" in text
    assert "hf_yyy" not in text
    lines = other.get(f"/api{address}/log").json()["lines"]
    assert lines == ["loading", "10 %", "20 %", "***", "error: <b>no</b>"]
    assert other.get(f"/api{address}/log", params={"filter": "ERROR"}).json()["lines"] == ["error: <b>no</b>"]


def test_what_has_errors_is_not_started(page, opened, config, preset, processes) -> None:
    said = config(opened(preset(network_dropout=3)), "launch", status=422)
    assert said["problems"][0]["key"] == "network_dropout"
    assert processes == []


def test_a_run_in_use_is_not_started_twice(page, opened, config, preset, processes, tmp_path: Path) -> None:
    name = opened(preset())
    code = f"import time; from pathlib import Path; from schemas.files.run_lock import hold_for_launcher; x = hold_for_launcher(Path({str(tmp_path / 'out' / 'frog.run')!r})); print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        said = config(name, "launch", status=422)
        holder.kill()
    assert said["problems"][0]["code"] == "run-in-use"
    assert processes == []


def test_resume_and_continue_are_the_commands(page, cut, processes, site) -> None:
    name = run_id(cut)
    assert page.post(f"/api/run/{name}/resume", json={}).json()["ok"]
    assert processes[-1].words[4:] == ["resume", str(cut)]
    for bad in ("0", "-1", "x", "1.5", "9" * 9):
        assert page.post(f"/api/run/{name}/resume", json={"epochs": bad}).status_code == 422
    assert len(processes) == 1


def test_resume_says_beforehand_what_the_command_would_refuse(page, make_run, processes) -> None:
    run = make_run()  # finished, and nothing is left of it
    answer = page.post(f"/api/run/{run_id(run)}/resume", json={})
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["fix"]
    assert processes == []


def test_the_time_of_a_plan_comes_from_a_run_of_the_same_kind(site, opened, config, preset, make_run) -> None:
    name = opened(preset())
    assert config(name)["plan"]["time"] is None
    run = make_run("other")
    (run / "config.toml").write_text('train_batch_size = 2\nresolution = "64,64"\n')
    site.runs._seen = (-1e9, [])  # looks again
    assert config(name, "set", {"seed": "3"})["plan"]["time"] == "0:00:06"  # 12 steps of half a second


def test_folders_are_searched_for_runs_without_an_end(tmp_path: Path, site: Site, make_run) -> None:
    make_run()
    deep = tmp_path / "a" / "b" / "c" / "d" / "e" / "f" / "deep.run"
    deep.mkdir(parents=True)
    (deep / "config.toml").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    begin = time.perf_counter()
    assert [one.name for one in Runs(site.work.hidden, site.folders).all()] == ["frog"]
    assert time.perf_counter() - begin < 2


def test_a_lock_is_not_disturbed_by_looking(make_run, site: Site) -> None:
    run = make_run()
    site.runs.all()
    lock, _ = hold_for_launcher(run)
    lock.free()
