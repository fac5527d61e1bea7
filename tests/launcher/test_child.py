from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from launcher.child import Finished, LineFilter, exit_code, run_child

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


def test_the_second_interrupt_kills() -> None:
    stubborn = SAVES.replace("time.sleep(0.2); ", "time.sleep(30); ")
    finished = interrupted(stubborn, 2)
    assert "saved" not in finished.lines
    assert finished.code == 130


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    run("pass")
    assert signal.getsignal(signal.SIGINT) is before
