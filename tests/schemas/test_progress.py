"""How far long work is: a bar on a terminal, lines elsewhere, nothing of short work."""

from __future__ import annotations

import io

import pytest

from schemas.progress import Progress, hours, over, rate
from schemas.terminal import say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(stream: io.StringIO, seconds_each: float, items: int = 10) -> str:
    clock = Clock()
    progress = Progress("encoding", stream=stream, hint="--no leaves this out", clock=clock)
    for done in range(1, items + 1):
        clock.now += seconds_each
        progress(done, items)
    return stream.getvalue()


def test_a_terminal_has_a_bar_with_rate_and_time_left_that_goes_at_the_end() -> None:
    said = run(Terminal(), 2.0)
    assert "\rencoding [############............] 5 of 10, 2.0 s each, 0:00:10 left\x1b[K" in said
    assert said.endswith("\r\x1b[K")
    assert "\n" not in said


def test_elsewhere_a_line_now_and_then() -> None:
    lines = run(io.StringIO(), 2.0).splitlines()
    assert lines == [
        f"encoding: {done} of 10, 2.0 s each, {left} left; --no leaves this out"
        for done, left in ((3, "0:00:14"), (6, "0:00:08"), (9, "0:00:02"))
    ]


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_short_work_shows_nothing(stream: type[io.StringIO]) -> None:
    assert run(stream(), 0.01) == ""


def test_a_line_that_is_said_takes_the_place_of_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    stream, clock = Terminal(), Clock()
    for item in over([1, 2, 3], Progress("checking", stream=stream, clock=clock)):
        clock.now += 1
        if item == 3:
            say("error: x")
            break
    assert stream.getvalue().count("checking [") == 2
    assert stream.getvalue().endswith("left\x1b[K\r\x1b[K")
    assert capsys.readouterr().out == "error: x\n"


def test_numbers_as_people_read_them() -> None:
    assert (rate(12.34), rate(0.25), hours(3725)) == ("12.3/s", "4.0 s each", "1:02:05")
