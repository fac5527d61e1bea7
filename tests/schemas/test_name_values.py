from __future__ import annotations

import pytest

from schemas.argument import name_values, parse_literal_args


def literal(*items: str) -> dict[str, object]:
    found, problems = parse_literal_args(items, "optimizer_args")
    assert [problem for problem in problems if problem.severity == "error"] == []
    return found


def test_python_literals() -> None:
    assert literal("weight_decay=0.1", "betas=0.9,0.99", "eps=(1e-30, 0.001)", "x=None") == {
        "weight_decay": 0.1, "betas": (0.9, 0.99), "eps": (1e-30, 0.001), "x": None,
    }  # fmt: skip


def test_friendly_words_are_taken_with_a_note() -> None:
    found, problems = parse_literal_args(["decouple=true", "mode=fast", "relative_step=False,"], "optimizer_args")
    assert found == {"decouple": True, "mode": "fast", "relative_step": False}
    assert [problem.severity for problem in problems] == ["note"] * 3


@pytest.mark.parametrize("item", ["weight_decay", "=1", "a b=1", "x=", "x=(1", "x=__import__('os')", "x=" + "(" * 50])
def test_bad_items_are_named(item: str) -> None:
    found, problems = parse_literal_args([item], "lr_scheduler_args")
    assert found == {}
    assert [(problem.severity, problem.key, problem.got) for problem in problems] == [
        ("error", "lr_scheduler_args", item)
    ]


def test_a_very_long_value_is_refused() -> None:
    assert parse_literal_args(["x=" + "1" * 5000], "optimizer_args")[1][0].code == "bad-literal"


def test_repeated_argument_warns_and_the_last_counts() -> None:
    found, problems = parse_literal_args(["x=1", "x=2"], "optimizer_args")
    assert found == {"x": 2}
    assert problems[0].code == "argument-twice"


def test_network_args_are_text_split_at_the_first_sign() -> None:
    texts = {"conv_dim": "4", "preset": "a=b"}
    assert name_values(["conv_dim=4", "preset = a=b"], "network_args") == (texts, [])


def test_network_args_without_a_sign_are_named_all_at_once() -> None:
    texts, problems = name_values(["conv_dim", "=4"], "network_args")
    assert texts == {}
    assert [(problem.severity, problem.key, problem.got) for problem in problems] == [
        ("error", "network_args", "conv_dim"), ("error", "network_args", "=4"),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["weight_decay=0.01 betas=0.9,0.99", "weight_decay=0.01, betas=0.9,0.99"])
def test_several_arguments_in_one_text_are_written_apart(text: str) -> None:
    _, (problem,) = parse_literal_args([text], "optimizer_args")
    assert problem.fix == 'write them apart: ["weight_decay=0.01", "betas=0.9,0.99"]'
    _, (problem,) = parse_literal_args(["name=a b"], "optimizer_args")
    assert problem.fix == "put the text in quotes: name='a b'"
