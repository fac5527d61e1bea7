import json
from pathlib import Path

import pytest

from schemas import ConfigError, Problem
from trainer.dataset.prompts import parse_line, read_prompts

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "samples.json").read_text(encoding="utf-8"))["cases"]
LINES = [case for case in GOLDEN if case["kind"] == "line"]
FILES = [case for case in GOLDEN if case["kind"] == "file"]
# The reference also reads an option from a prompt that begins like one; ours does not.
OURS = {
    "w 512": {"prompt": "w 512"},
    "d 5 dogs running": {"prompt": "d 5 dogs running"},
    "s 10 statues --w 64": {"prompt": "s 10 statues", "width": 64},
}


@pytest.mark.parametrize("case", LINES, ids=lambda case: case["line"])
def test_lines_are_read_as_in_the_reference(case):
    assert parse_line(case["line"]) == OURS.get(case["line"], case["parsed"])


@pytest.mark.parametrize("case", FILES, ids=lambda case: case["text"][:20])
def test_files_are_read_or_refused_as_in_the_reference(case, tmp_path):
    path = tmp_path / f"prompts{case['extension']}"
    path.write_bytes(case["text"].encode())
    if "refused" in case:
        with pytest.raises(ConfigError):
            read_prompts(path)
        return
    for prompt, wanted in zip(read_prompts(path), case["prompts"], strict=True):
        known = {name: value for name, value in wanted.items() if name != "enum" and value is not None}
        assert {name: getattr(prompt, name) for name in known} == known


def test_unset_values_have_the_defaults_of_the_reference(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n")
    (prompt,) = read_prompts(path)
    assert (prompt.sample_steps, prompt.scale, prompt.width, prompt.seed) == (30, 7.5, None, None)


def test_unread_options_and_samplers_are_told_with_their_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# first\na cat --x 3 --d -1\n")
    problems = []
    read_prompts(path, problems)
    assert [(problem.line, problem.got) for problem in problems] == [(2, "--x 3")]
    path.write_text("a cat --ss eulr_a\n")
    with pytest.raises(ConfigError, match="did you mean euler_a"):
        read_prompts(path)


def test_all_bad_values_are_told_at_once(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text('[{"prompt": "a", "width": "wide"}, {"prompt": 3, "scale": true}]')
    with pytest.raises(ConfigError) as caught:
        read_prompts(path)
    assert [problem.key for problem in caught.value.problems] == ["width", "prompt", "scale"]


def test_tables_may_lack_a_prompt_and_have_any_seed(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text('[{"seed": -1}, {"prompt": "a", "width": -64}]')
    with pytest.raises(ConfigError) as caught:
        read_prompts(path)
    assert [(problem.severity, problem.key) for problem in caught.value.problems] == [
        ("warning", "prompt"), ("error", "width"),
    ]  # fmt: skip
    path.write_text('[{"seed": -1}]')
    (prompt,) = read_prompts(path)
    assert (prompt.prompt, prompt.seed) == ("", -1)


@pytest.mark.parametrize(
    ("option", "said", "fix"),
    [
        ("--w 64x64", "is not an option of prompt lines, or lacks its value", "write --w 64 --h 64"),
        ("--steps 20", "is not an option of prompt lines, or lacks its value", "write --s 20"),
        ("--seed 5", "is not an option of prompt lines, or lacks its value", "write --d 5"),
        ("--cfg 7", "is not an option of prompt lines, or lacks its value", "write --l 7"),
        ("--neg bad", "is not an option of prompt lines, or lacks its value", "write --n bad"),
        ("--w 64abc", "is read as --w 64, the rest is left out", "write --w 64"),
        ("--l 7.5x", "is read as --l 7.5, the rest is left out", "write --l 7.5"),
    ],
)
def test_options_that_do_nothing_are_named_with_the_right_one(option: str, said: str, fix: str) -> None:
    problems: list[Problem] = []
    read_prompts("a.txt", problems, text=f"# remark\na frog {option} --d 3\n")
    assert [(one.severity, one.line, one.got, one.must, one.fix) for one in problems] == [
        ("warning", 2, option, said, fix)
    ]


@pytest.mark.parametrize("size", ["16385", "99999999999"])
def test_sizes_that_no_image_has_are_refused(size: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_prompts("a.txt", text=f"a frog --w {size}\n")
    assert (caught.value.problems[0].key, caught.value.problems[0].line) == ("width", 1)
