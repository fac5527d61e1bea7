"""The measured rows of who reads which LoRA, and what plan, inspect and the page make of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas import TrainConfig, interop, rules
from schemas.rules.interop import kinds, other_programs

DOCS = Path(__file__).parents[2] / "docs"
DORA = ("algo=locon", "dora_wd=True")
RIGHT, WRONG = "right", "wrong"


def read(module, *args, family="sd15", **more):
    config = TrainConfig(network_module=module, network_args=args, **more)
    return {program: found.verdict for program, found in interop.readings(kinds(config), family).items()}


def warned(module, *args, family="sd15", **more):
    config = TrainConfig(network_module=module, network_args=args, **more)
    return [*other_programs(config, family)]


def test_every_row_has_a_reading_of_every_program():
    for kind in interop.KINDS.values():
        assert len(kind.reads) == len(interop.PROGRAMS)


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
@pytest.mark.parametrize("module", ["networks.lora", "networks.lora_fa", "networks.dylora"])
def test_plain_loras_are_read_everywhere(module, family):
    assert set(read(module, "conv_dim=4", family=family).values()) == {RIGHT}
    assert not warned(module, family=family)


@pytest.mark.parametrize("yes", ["True", "true", "1", "yes"])
def test_dora_is_read_right_in_the_other_form(yes):
    assert set(read("lycoris.kohya", "algo=lora", f"dora_wd={yes}").values()) == {WRONG}
    (found,) = warned("lycoris.kohya", *DORA)
    assert found.severity == "warning"
    assert "ComfyUI, Forge" in found.must
    assert "A1111, InvokeAI" in found.must
    assert "wd_on_output=False" in found.fix
    other = read("lycoris.kohya", *DORA, "wd_on_output=False")
    assert [other[program] for program in ("ComfyUI", "A1111", "Forge", "InvokeAI")] == [RIGHT] * 4
    assert [one.severity for one in warned("lycoris.kohya", *DORA, "wd_on_output=False")] == ["note"]


def test_no_dora_where_lycoris_knows_none():
    assert kinds(TrainConfig(network_module="lycoris.kohya", network_args=("algo=glora", "dora_wd=True"))) == ("glora",)
    said = rules.check(TrainConfig(network_module="lycoris.kohya", network_args=("algo=boft", "dora_wd=True")))
    assert any("boft has no DoRA" in problem.must for problem in said)


def test_families_that_are_read_differently():
    assert read("networks.lokr")["InvokeAI"] == "nothing"
    assert read("networks.lokr", family="sd2")["InvokeAI"] == "nothing"
    assert read("networks.lokr", family="sdxl")["InvokeAI"] == RIGHT
    assert read("networks.lokr", family=None)["InvokeAI"] == "nothing"
    assert read("lycoris.kohya", "algo=lokr", "full_matrix=True")["InvokeAI"] == RIGHT
    assert read("lycoris.kohya", "algo=lokr", network_dim=100000)["InvokeAI"] == RIGHT
    assert (read("networks.oft")["A1111"], read("networks.oft", family="sdxl")["A1111"]) == ("nothing", RIGHT)
    assert read("networks.oft")["Forge"] == read("lycoris.kohya", "algo=diag-oft")["Forge"] == "refused"


def test_the_worst_of_two_kinds_counts():
    found = read("lycoris.kohya", "algo=locon", "train_norm=True")
    assert (found["ComfyUI"], found["diffusers"]) == (RIGHT, "refused")


def test_bounded_and_rescaled_rotations():
    for more in ("constraint=0.01", "rescaled=True"):
        found = read("lycoris.kohya", "algo=diag-oft", more)
        assert (found["ComfyUI"], found["A1111"]) == (WRONG, RIGHT)
    assert read("lycoris.kohya", "algo=diag-oft", "constraint=0")["ComfyUI"] == RIGHT


def test_a_plug_in_is_nobodys():
    assert read("my.network", trust=("my.network",)) == {}


@pytest.mark.parametrize(("args", "word"), [
    (("algo=ia3", "bypass_mode=True"), "bias"), (("algo=loha", "dora_wd=True", "bypass_mode=True"), "without DoRA"),
])  # fmt: skip
def test_what_a_file_cannot_carry_is_said(args, word):
    said = rules.check(TrainConfig(network_module="lycoris.kohya", network_args=args))
    assert any(problem.code == "lycoris-trait" and word in problem.must for problem in said)
