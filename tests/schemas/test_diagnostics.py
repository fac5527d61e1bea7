"""Findings for people: a file once, its line, a caret below the value, secrets blanked, nothing obeyed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from schemas import diagnostics
from schemas.blanking import source_without_secrets
from schemas.problems import Problem
from schemas.terminal import say

TEXT = """\
network_dim = "eight"
wandb_api_key = "geheim und lang"
network_args = [
    "conv_dim=4",
    "dropout=zwei",
]
名前 = "値値"  \x1b[31mx = 1
\tunet_lr = -1  # tab
"""


def said(
    capsys: pytest.CaptureFixture[str],
    problems: list[Problem],
    text: str = TEXT,
    named: str | None = None,
    who: str = "",
) -> list[str]:
    for line in diagnostics.report(problems, source=lambda file: text, named=named, who=who):
        say(line)
    return capsys.readouterr().out.splitlines()


def problem(line: int | None = None, key: str | None = None, got: object = None, **more: object) -> Problem:
    return Problem(**{"code": "bad-value", "must": "must be other", "file": "a.toml", "line": line, "key": key,
                      "got": got, **more})  # type: ignore[arg-type]  # fmt: skip


def test_a_file_is_named_once_errors_first_and_lines_in_order(capsys) -> None:
    found = [
        problem(8, "unet_lr", -1, severity="warning"),
        problem(8, "unet_lr", -1),
        problem(1, "network_dim", "eight", fix="write 8"),
    ]
    assert said(capsys, found) == [
        "a.toml",
        "  error[bad-value]: network_dim: must be other",
        '    1 | network_dim = "eight"',
        "      |               ^^^^^^^",
        "    fix: write 8",
        "  error[bad-value]: unet_lr: must be other",
        "    8 | unet_lr = -1  # tab",
        "      |           ^^",
        "  warning[bad-value]: unet_lr: must be other",
        "    8 | unet_lr = -1  # tab",
        "      |           ^^",
    ]
    assert diagnostics.counts(found) == "2 errors, 1 warning"
    assert (
        diagnostics.counts([*found, problem(severity="note")], hidden="--keys")
        == "2 errors, 1 warning, 1 note (--keys)"
    )


def test_a_caret_stands_below_the_entry_of_a_list_over_several_lines(capsys) -> None:
    assert said(capsys, [problem(3, "network_args", "dropout=zwei")])[-2:] == [
        '    5 | "dropout=zwei",',
        "      |  ^^^^^^^^^^^^",
    ]


def test_wide_letters_take_two_columns_and_control_characters_are_shown(capsys) -> None:
    source, carets = said(capsys, [problem(7, "名前", "値値")])[-2:]
    assert source == '    7 | 名前 = "値値"  \\x1b[31mx = 1'
    assert carets == "      |        ^^^^^^"


def test_an_unknown_key_is_marked_itself(capsys) -> None:
    assert said(capsys, [problem(1, "network_dim", "eight", code="unknown-option")])[-1] == "      | ^^^^^^^^^^^"


def test_the_place_of_a_parser_counts(capsys) -> None:
    assert said(capsys, [problem(1, column=15)])[-1] == "      |               ^"


def test_a_long_line_is_cut_around_the_value(capsys) -> None:
    text = '{"a": "' + "x" * 300 + '", "b": "here", "c": "' + "y" * 300 + '"}'
    source, carets = said(capsys, [problem(1, "b", "here")], text)[-2:]
    assert len(source) <= diagnostics.WIDTH + len("    1 | ")
    assert source[carets.index("^") : carets.rindex("^") + 1] == '"here"'
    assert source.count("…") == 2


def test_a_line_that_is_not_there_is_told_by_its_number(capsys) -> None:
    assert said(capsys, [problem(99, "x", 3)]) == ["a.toml", "  error[bad-value]: line 99: x: must be other (got 3)"]


def test_a_single_finding_without_a_line_is_one_line(capsys) -> None:
    assert said(capsys, [problem()]) == ["error[bad-value]: a.toml: must be other"]
    assert said(capsys, [problem()], named="a.toml") == ["  error[bad-value]: must be other"]
    assert said(capsys, [problem(file=None, key="--set x")], who="process 1: ") == [
        "error[bad-value]: process 1: --set x: must be other"
    ]


def test_a_file_that_cannot_be_read_costs_the_line_only(capsys) -> None:
    def gone(file: str) -> str:
        raise OSError

    for line in diagnostics.report([problem(1, "x", 3)], source=gone):
        say(line)
    assert "line 1: x: must be other (got 3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        'wandb_api_key = "geheim und lang"',
        'wandb_api_key = "geheim und lang',
        "wandb_api_key = geheim und lang",
        '"""x"""\nwandb_api_key = """\ngeheim und lang"""',
        "train.py --wandb_api_key \\\n  geheim --network_dim 4",
        "train.py --wandb_api_key=geheim",
        '{"WANDB_API_KEY" : "geheim \\" und lang", "x": 1}',
        "{“wandb_api_key”: “geheim und lang”}",
        "huggingface_token: 'geheim und'",
        "x = hf_geheimgeheimgeheimgeheim",
    ],
)
def test_no_secret_is_in_a_shown_line(text: str, capsys) -> None:
    shown = source_without_secrets(text)
    assert "geheim" not in shown
    assert shown.count("\n") == text.count("\n")
    for number in range(1, text.count("\n") + 2):
        found = [problem(number, "wandb_api_key", text.split("\n")[number - 1])]
        assert "geheim" not in "\n".join(said(capsys, found, text))


def test_the_value_of_a_secret_option_is_never_said(capsys) -> None:
    assert said(capsys, [problem(None, "wandb_api_key", "geheim", file=None)]) == [
        "error[bad-value]: wandb_api_key: must be other (got '***')"
    ]


def test_a_file_cannot_colour_or_add_lines(capsys) -> None:
    text = 'x = "\x1b[31mred\x9b\u202e"\u2028error: fake'
    lines = said(capsys, [problem(1, "x\ny", "\x1b[31mred", must="a\nb", fix="c\rd", file="e\x1bf.toml")], text)
    assert not any(letter in "".join(lines) for letter in "\x1b\x9b\u202e\u2028\r")
    assert len(lines) == 5 - ("^" not in "".join(lines))


def test_colour_only_on_a_terminal_and_not_with_no_color(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import sys

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31;1merror[bad-value]" in "\n".join(said(capsys, [problem(1, "network_dim", "eight")]))
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in "\n".join(said(capsys, [problem(1, "network_dim", "eight")]))


def test_paths_are_relative_where_that_is_shorter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert diagnostics.relative(str(tmp_path / "a" / "b.toml")) == os.path.join("a", "b.toml")
    assert diagnostics.relative("/x") == "/x"
    assert diagnostics.relative("b.toml") == "b.toml"
