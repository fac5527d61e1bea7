"""What the trainer makes of signals, phase by phase."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import schemas.signals
from schemas.signals import STOPPING, held_off, install, interruptible, restore
from trainer.watch.signals import StopRequest


@pytest.mark.parametrize("number", STOPPING)
def test_a_stop_while_saving_is_a_wish(number: int) -> None:
    with StopRequest().saving() as stop:
        signal.raise_signal(number)
        assert stop.asked


@pytest.mark.parametrize("number", STOPPING)
def test_a_stop_while_models_are_loaded_is_an_interrupt(number: int) -> None:
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert stop.asked


def test_signals_of_several_kinds_at_once_are_one_wish() -> None:
    with StopRequest().saving() as stop:
        for number in (*STOPPING, *STOPPING):
            signal.raise_signal(number)
        assert stop.asked


def test_a_later_one_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas.signals, "ONE_WISH", 0.0)
    with StopRequest().saving():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_a_stop_that_met_a_finaliser_is_kept_for_the_first_step() -> None:
    with StopRequest() as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with stop.saving() as same:
            assert same.asked


def test_who_has_entered_it_before_keeps_it_to_the_end() -> None:
    """The last moments of a run that is complete are not interrupted."""
    with StopRequest() as stop:
        with stop.saving():
            pass
        signal.raise_signal(signal.SIGINT)
        assert stop.asked


def test_handlers_are_put_back_and_nohup_is_respected() -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    for context in (StopRequest(), StopRequest().saving(), interruptible(), held_off()):
        with context:
            pass
    assert [signal.getsignal(number) for number in STOPPING] == before
    kept = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest().saving() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, kept)


def test_tidying_up_after_an_interrupt_is_not_interrupted() -> None:
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)


def test_held_off_hears_nothing() -> None:
    before = install(lambda number, frame: pytest.fail("heard"))
    try:
        with held_off():
            signal.raise_signal(signal.SIGTERM)
    finally:
        restore(before)


IMPORTING = """
import signal, sys
from trainer.watch.signals import StopRequest
with StopRequest(begun=False):
    try:
        signal.raise_signal(signal.{name})
    finally:
        print("unwound")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_stop_during_imports_is_one_line(name: str) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", IMPORTING.format(name=name)], capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted before the first step\n")


def test_writing_to_a_closed_pipe_is_no_fault() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from schemas.signals import outlast_terminal; outlast_terminal(); "
    code += "print('x' * 99999, flush=True); print('y', file=sys.stderr, flush=True); sys.exit(7)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=writer, cwd=root)
    os.close(writer)
    assert done.returncode == 7


def test_a_trainer_that_waits_in_a_library_ends_with_its_launcher() -> None:
    """Such as for a process that has died meanwhile: the main thread comes to no handler there."""
    code = (
        "import signal, time\nimport trainer.watch.signals\ntrainer.watch.signals.DEAF_SECONDS = 0.1\n"
        "with trainer.watch.signals.StopRequest():\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "    print('deaf', flush=True)\n    time.sleep(60)\n"
    )
    environment = {**os.environ, "KOHYAKIT_LIFELINE": "stdin"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as child:  # type: ignore[call-overload]
        assert child.stdout.readline() == b"deaf\n"
        _, said = child.communicate(timeout=30)  # which closes its stdin
    assert (child.returncode, said) == (130, b"interrupted before the first step\n")
