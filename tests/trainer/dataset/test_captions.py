import json
import random
from pathlib import Path

import pytest

from trainer.dataset.captions import fixed, process, random_settings, read_caption
from trainer.dataset.files import balance, scan, tag_frequency
from trainer.dataset.spec import SubsetSpec

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "captions.json").read_text(encoding="utf-8"))["cases"]
# Ours on purpose: the divider never stays in the text, and the separator itself joins the tags again.
OURS = {
    ("k1 ||| a, b", False): ["k1, a, b"],
    ("a;b;c", True): ["c; b; a", "c; a; b", "b; c; a"],
}
# Words that textual inversion replaced, which a LoRA run has none of.
REPLACED = ("sks dog", "anything")
PROCESS = [case for case in GOLDEN if case["kind"] == "process" and case["caption"] not in REPLACED]


@pytest.mark.parametrize("case", PROCESS, ids=lambda case: f"{case['caption']!r}-{case['settings']}")
def test_texts_are_those_of_the_reference(case):
    spec, rng = SubsetSpec(**case["settings"]), random.Random(case.get("python_seed", 0))
    steps = [step for step, _ in case["by_step"]] if "by_step" in case else [0] * len(case.get("outputs", "1"))
    wanted = [text for _, text in case["by_step"]] if "by_step" in case else case.get("outputs", [case.get("output")])
    known = {"rng": rng, "epoch": case.get("epoch", 1), "max_train_steps": case.get("max_train_steps", 100)}
    made = [process(case["caption"], spec, step=step, **known) for step in steps]
    assert made == OURS.get((case["caption"], spec.shuffle_caption), wanted)


def test_random_settings_are_named_and_the_rest_can_be_fixed():
    assert random_settings(SubsetSpec(shuffle_caption=True, caption_prefix="a")) == ["shuffle_caption"]
    spec = SubsetSpec(caption_prefix="P,", keep_tokens_separator="|||", secondary_separator=";")
    assert fixed("a ||| b;c\nnever", spec) == "P, a, b,c"


@pytest.mark.parametrize(("data", "said"), [(b"", "is empty"), (b" \n\n", "is empty"), (b"caf\xe9", "is not UTF-8")])
def test_bad_caption_files_say_why(tmp_path, data, said):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=said):
        read_caption(path, wildcards=False)


def test_a_byte_order_mark_is_no_part_of_the_caption(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfcat\r\nsecond")
    assert read_caption(path, wildcards=False) == "cat"


@pytest.mark.parametrize("case", [case for case in GOLDEN if case["kind"] == "files"], ids=lambda case: case["name"])
def test_files_are_read_as_in_the_reference(case, tmp_path, one_subset):
    folder = tmp_path / "set"
    config = one_subset(folder, case["files"], {"caption_extension": ".txt", **case["settings"]})
    found = scan(config)
    codes = [problem.code for problem in found.problems if problem.severity == "error"]
    if "refused" in case:
        assert codes == ["empty-caption"]
        return
    if case["captions"]:
        assert {sample.path.name: sample.caption for sample in found.samples} == case["captions"]
    assert tag_frequency(found, 0) == case["tag_frequency"]
    repeats = sum(sample.repeats for sample in found.samples if not sample.is_reg)
    assert repeats == case["num_train_images"]


@pytest.mark.parametrize(
    ("repeats", "wanted", "made"),
    [([1, 1, 1], 2, [1, 1, 0]), ([2, 2], 7, [4, 3]), ([3], 1, [3]), ([], 4, [])],
)
def test_regularisation_repeats_are_balanced(repeats, wanted, made):
    assert balance(repeats, wanted) == made
