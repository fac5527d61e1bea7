from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import schemas.signals
from launcher.run.child import (
    Finished,
    LineFilter,
    exit_code,
    run_child,
)

WRAPPER = b"""Traceback (most recent call last):
  File "accelerate/commands/launch.py", line 1, in <module>
    raise subprocess.CalledProcessError(returncode=process.returncode, cmd=cmd)
subprocess.CalledProcessError: Command '['python']' returned non-zero exit status 3.
"""
OWN = b"Traceback (most recent call last):\n  File 'x', line 1\nRuntimeError: real\n"


def passed(*pieces: bytes) -> tuple[bytes, list[str]]:
    out: list[bytes] = []
    lines = LineFilter(out.append)
    for piece in pieces:
        lines.feed(piece)
    lines.close()
    return b"".join(out), list(lines.lines)


def run(code: str, **options) -> tuple[Finished, bytes]:
    out: list[bytes] = []
    return run_child([sys.executable, "-c", code], os.environ, out.append, **options), b"".join(out)


@pytest.mark.parametrize(
    "text", [b"a\nb\n", b"no end", b"50%\r60%\r", b"Trace of it\n", b"T", OWN, b"a\n" + OWN + b"b\n"]
)
def test_output_is_passed_on_unchanged(text) -> None:
    assert passed(text)[0] == text
    assert passed(*(bytes([byte]) for byte in text))[0] == text


def test_the_launchers_own_traceback_is_dropped_but_kept_for_the_diagnosis() -> None:
    text, lines = passed(b"step 1\n", OWN, WRAPPER)
    assert text == b"step 1\n" + OWN
    assert lines[-1].endswith("exit status 3.")


REPORT = b"""Traceback (most recent call last):
  File "torch/distributed/launcher/api.py", line 383, in launch_agent
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
trainer FAILED
  exitcode  : 3 (pid: 7)
============================================================
"""


def test_the_distributed_starters_report_is_dropped_too() -> None:
    text, lines = passed(b"a\n", REPORT, b"b\n")
    assert text == b"a\nb\n"
    assert exit_code(1, lines) == 3


def test_progress_is_shown_before_its_line_ends() -> None:
    out: list[bytes] = []
    LineFilter(out.append).feed(b"step 1 of 2")
    assert b"".join(out) == b"step 1 of 2"


def test_exit_code_and_output() -> None:
    finished, text = run("import sys; print('hello'); print('fault', file=sys.stderr); sys.exit(3)")
    assert (finished.code, finished.lines, text) == (3, ("hello", "fault"), b"hello\nfault\n")


def test_a_terminal_is_a_terminal_for_the_child() -> None:
    finished, _ = run("import sys; print(sys.stdout.isatty())", terminal=True)
    assert finished.lines == ("True",)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("subprocess.CalledProcessError: Command '['x']' returned non-zero exit status 130.", 130),
        ("subprocess.CalledProcessError: Command '['x']' died with <Signals.SIGKILL: 9>.", -9),
        ("  exitcode  : 3 (pid: 77)", 3),
        ("something else", 1),
    ],
)
def test_the_trainers_own_code_is_found_in_the_launchers_words(line, code) -> None:
    assert exit_code(1, [line]) == code


SAVES = """
import os, signal, sys, time
def stop(number, frame):
    print('saving', flush=True); time.sleep(0.2); print('saved', flush=True); sys.exit(130)
signal.signal(signal.SIGINT, stop)
os.write(1, b'ready\\n')
for _ in range(300):
    time.sleep(0.1)
"""
STARTER = "import subprocess, sys; sys.exit(1 if subprocess.call([sys.executable, '-c', {code!r}]) else 0)"


def interrupted(code: str, signals: int) -> Finished:
    """Interrupts this very process as soon as the child is ready."""
    ready = threading.Event()

    def press() -> None:
        ready.wait(20)
        for _ in range(signals):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.1)

    presser = threading.Thread(target=press)
    presser.start()
    words = [sys.executable, "-c", STARTER.format(code=code)]
    finished = run_child(words, os.environ, lambda data: ready.set() if b"ready" in data else None)
    presser.join()
    return finished


def test_the_first_interrupt_lets_the_trainer_save() -> None:
    finished = interrupted(SAVES, 1)
    assert (finished.code, finished.lines[-2:]) == (130, ("saving", "saved"))


def test_a_second_wish_kills(monkeypatch) -> None:
    monkeypatch.setattr(schemas.signals, "ONE_WISH", 0.05)
    stubborn = SAVES.replace("time.sleep(0.2); ", "time.sleep(30); ")
    finished = interrupted(stubborn, 2)
    assert "saved" not in finished.lines
    assert finished.code == 130


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    run("pass")
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_that_come_together_are_one_wish() -> None:
    finished = interrupted(SAVES.replace("time.sleep(0.2)", "time.sleep(1)"), 3)
    assert (finished.code, finished.lines[-2:]) == (130, ("saving", "saved"))
    assert finished.signals == 1


WATCHES = """
import os, sys, time
from schemas.signals import LIFELINE, let_in
from trainer.watch.signals import StopRequest
with StopRequest().saving() as stop:
    print('ready', flush=True)
    for _ in range(600):
        if stop.asked:
            print('saved', flush=True); sys.exit(130)
        time.sleep(0.05)
"""


def launched(code: str, **extra: str) -> tuple[list[str], dict[str, str]]:
    """The words and variables of a child that is our own trainer, below a starter."""
    root = str(Path(__file__).parents[2])
    return [sys.executable, "-c", STARTER.format(code=code)], {
        **os.environ, "KOHYAKIT_LAUNCHED": "1", "PYTHONPATH": root, **extra
    }  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_our_trainer_hears_every_kind_of_stop_by_its_lifeline(number: int) -> None:
    words, variables = launched(WATCHES)

    def heard(data: bytes) -> None:
        if b"ready" in data:
            os.kill(os.getpid(), number)

    finished = run_child(words, variables, heard)
    assert (finished.code, finished.lines) == (130, ("ready", "saved"))


def test_a_signal_to_every_process_is_one_wish_and_the_starter_lives_to_tell_the_code() -> None:
    words, variables = launched(WATCHES)

    def heard(data: bytes) -> None:
        if b"ready" in data:
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                process.send_signal(signal.SIGTERM)

    finished = run_child(words, variables, heard)
    assert (finished.code, finished.lines) == (130, ("ready", "saved"))


def test_a_stop_before_the_trainer_is_there_ends_at_once() -> None:
    words, variables = launched(WATCHES)
    words[2] = f"print('starting', flush=True); import time; time.sleep(30); {words[2]}"
    began = time.monotonic()

    def heard(data: bytes) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    finished = run_child(words, variables, heard)
    assert (finished.code, finished.lines) == (130, ("starting",))
    assert time.monotonic() - began < 20


def test_the_death_of_the_launcher_alone_lets_the_trainer_save(tmp_path: Path) -> None:
    """Nobody is left to pass on a signal, or to read what the trainer says."""
    mark = tmp_path / "saved"
    loud = WATCHES.replace("sys.exit(130)", f"open({str(mark)!r}, 'w'); sys.exit(130)")
    loud = loud.replace("with Stop", "from schemas.signals import outlast_terminal\noutlast_terminal()\nwith Stop")
    words, variables = launched(loud)
    code = "import os; from launcher.run.child import run_child; "
    code += f"run_child({words!r}, dict(os.environ), lambda data: os.write(1, data))"
    launcher = subprocess.Popen([sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE)
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"ready\n"
    below = psutil.Process(launcher.pid).children(recursive=True)
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    _, alive = psutil.wait_procs(below, timeout=20)
    assert alive == []
    assert mark.exists()


def test_trainers_whose_starter_was_killed_are_asked_to_stop() -> None:
    """Several wait for each other through it, so without it they would wait for ever."""
    trainer = "import sys; sys.stdin.read(); print('heard', flush=True)"
    starter = (
        "import os, signal, subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {trainer!r}], start_new_session=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    written: list[bytes] = []
    finished = run_child([sys.executable, "-c", starter], {**os.environ, "KOHYAKIT_LAUNCHED": "1"}, written.append)
    assert (finished.code, b"".join(written)) == (-signal.SIGKILL, b"heard\n")
