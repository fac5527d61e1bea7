from __future__ import annotations

from typing import Any

import pytest

from launcher.formats.toml_text import parse
from schemas.problems import ConfigError

MENDED: list[tuple[str, dict[str, Any]]] = [
    ('caption_extension = ".txt",', {"caption_extension": ".txt"}),
    ("mixed_precision = bf16  # NOT fp16", {"mixed_precision": "bf16"}),
    ("learning_rate = 1e-4 (0.0001)", {"learning_rate": 1e-4}),
    (r'train_data_dir = "D:\train_data\x"', {"train_data_dir": r"D:\train_data\x"}),
    ("cache_latents = True", {"cache_latents": True}),
    ("learning_rate = 0,0003", {"learning_rate": "0,0003"}),
    ("resolution = 768, 1024", {"resolution": "768, 1024"}),
    ("seed = 1\n... and so on", {"seed": 1}),
    ("seed = 1\nepoch = 2\nseed = 3", {"seed": 3, "epoch": 2}),
    ("vae =\nseed = 1", {"seed": 1}),
]


@pytest.mark.parametrize(
    ("text", "values"), MENDED, ids=[text.split(" =")[0] + str(n) for n, (text, _) in enumerate(MENDED)]
)
def test_damage_is_mended_and_named_with_its_line(text: str, values: dict[str, Any]) -> None:
    document = parse(f"# a comment\n{text}\n")
    assert document.values == values
    assert [problem.code for problem in document.problems] == ["mended-toml"]
    assert document.problems[0].line is not None
    assert document.problems[0].line >= 2


def test_sound_text_is_left_alone() -> None:
    document = parse('a = "x # y"\r\n[t]\r\nb = [\r\n 1,\r\n 2,\r\n]\r\n')
    assert document.values == {"a": "x # y", "t": {"b": [1, 2]}}
    assert document.problems == []


def test_template_fields_are_refused_with_their_line() -> None:
    with pytest.raises(ConfigError) as fault:
        parse("seed = 1\nnum_repeats = {repeats}\n")
    problem = fault.value.problems[-1]
    assert (problem.code, problem.line) == ("not-toml", 2)


def test_lines_of_keys_by_path() -> None:
    lines = parse(
        "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = 'a'\n[[datasets.subsets]]\nimage_dir = 'b'\n"
    ).lines
    assert (
        lines["datasets.0.resolution"],
        lines["datasets.0.subsets.0.image_dir"],
        lines["datasets.0.subsets.1.image_dir"],
    ) == (2, 4, 6)


def test_lines_restart_in_the_next_table() -> None:
    text = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'b'\n"
    assert parse(text).lines["datasets.1.subsets.0.image_dir"] == 6


def test_what_only_kohyas_parser_takes_is_read_as_it_does() -> None:
    document = parse("a = [1, 2,\n")
    assert document.values == {"a": [1, 2]}
    assert [(problem.code, problem.severity) for problem in document.problems] == [("loose-toml", "note")]
