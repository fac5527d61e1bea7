from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from schemas import ConfigError
from trainer.dataset.checks import bad_weight
from trainer.dataset.clip_text import token_count
from trainer.families import tokenizer

CASES = json.loads((Path(__file__).parents[2] / "golden" / "tokens.json").read_text(encoding="utf-8"))["cases"]
PLAIN = [case for case in CASES if case["kind"] == "ids"]
WEIGHTED = [case for case in CASES if case["kind"] == "weighted" and "refused" not in case]
LENGTHS = [(None, "null"), (150, "150"), (225, "225")]
PADS = [("sd15", tokenizer.END), ("sdxl_2", 0)]


def rows(stored):
    return [row["head"] + [row["fill"]] * row["fill_count"] for row in stored]


def runs(weights):
    return [[[weight, len(list(same))] for weight, same in itertools.groupby(row)] for row in weights]


@pytest.mark.parametrize("case", PLAIN, ids=range(len(PLAIN)))
def test_ids_are_the_references(case):
    for (length, name), (encoder, pad) in itertools.product(LENGTHS, PADS):
        assert tokenizer.windows(case["caption"], length, pad) == rows(case["ids"][name][encoder])


@pytest.mark.parametrize("case", WEIGHTED, ids=range(len(WEIGHTED)))
def test_weighted_ids_are_the_references(case):
    assert tokenizer.parse_weights(case["caption"]) == [tuple(piece) for piece in case["parsed"]]
    for (length, name), (encoder, pad) in itertools.product(LENGTHS, PADS):
        ids, weights = tokenizer.weighted_windows(case["caption"], length, pad)
        assert ids == rows(case["ids"][name][encoder])
        expected = [run for row in case["ids"][name][f"{encoder}_weights"] for run in row]
        found = [run for row in runs(weights) for run in row]
        assert [count for _, count in found] == [count for _, count in expected]
        assert [weight for weight, _ in found] == pytest.approx([weight for weight, _ in expected], rel=1e-6)


def test_a_weight_that_is_no_number_is_refused_with_the_text():
    with pytest.raises(ConfigError, match=r"1\.2\.3"):
        tokenizer.parse_weights("(word:1.2.3)")


def test_every_refused_golden_case_is_refused():
    for case in CASES:
        if "refused" in case:
            with pytest.raises(ConfigError):
                tokenizer.parse_weights(case["caption"])


def test_exclamation_mark_is_the_pad_token_where_that_is_id_0():
    assert tokenizer.token_ids("oh no! !", pad=0)[-2:] == [0, 0]
    assert tokenizer.token_ids("oh no!")[-1] == 256


@pytest.mark.parametrize(
    "text",
    [
        "a photo of ohwx frog, sitting!!! on a (red:1.2) chair",
        "it's we've can't 12345 naïve café ß ½ ² ａｂｃ 日本語の猫 안녕 😀🎉 \u0301e",
        "<|endoftext|> x <|startoftext|>",
        "   ",
        "don't'll ''s x's2nd ab_cd-ef--gh ...,,,",
        "١٢٣ Ⅷ ⅷ ǅ İstanbul \u0645\u0631\u062d\u0628\u0627 a\u00a0b\u2003c\u200bd",
        *[case["caption"] for case in PLAIN],
    ],
)
@pytest.mark.parametrize("pad", [tokenizer.END, 0])
def test_tokens_are_counted_without_the_tokenizer(text, pad):
    assert token_count(text, pad) == len(tokenizer.token_ids(text, pad))


def test_vocabulary_has_every_id_once():
    vocabulary = tokenizer.clip_tokenizer().get_vocab()
    assert sorted(vocabulary.values()) == list(range(49408))


@pytest.mark.parametrize(
    ("written", "read"),
    [("it’s “ok”", 'it\'s "ok"'), ("ﬁne", "fine"), ("&amp;amp;", "&"), ("<b> &amp;", "<b> &amp;"), ("a\x00b", "ab")],
)
def test_text_is_repaired(written, read):
    assert tokenizer.clean(written) == read


@pytest.mark.parametrize("text", ["(a smile :-) here", "(a:1,2) b", "(a:+) b"])
def test_what_only_looks_like_a_weight_is_text(text):
    assert tokenizer.parse_weights(text)[0][1] == pytest.approx(1.1)
    assert bad_weight(text) is None


def test_bad_weights_are_found_before_training_where_the_parser_refuses_them():
    texts = [case["caption"] for case in CASES if case["kind"] == "weighted"]
    for text in [*texts, r"\(a (b:..)", r"\(a:1.2.3)", "x:1.2.3)"]:
        try:
            tokenizer.parse_weights(text)
        except ConfigError:
            assert bad_weight(text)
        else:
            assert bad_weight(text) is None


def test_a_lone_backslash_of_a_weighted_caption_is_dropped() -> None:
    """As in the reference: a backslash escapes what follows it, and goes."""
    from trainer.families.tokenizer import parse_weights

    assert parse_weights("back\\slash (k:1.1)") == [("backslash ", 1.0), ("k", 1.1)]
    assert parse_weights("a \\(b\\) \\\\ c") == [("a (b) \\ c", 1.0)]
