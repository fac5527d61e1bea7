"""LoRA_type and its keys against the table of GUI notes, section 2.2."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.formats import kohya_gui
from launcher.formats.kohya_gui import Document
from launcher.formats.kohya_gui.networks import TYPES, module_of, pairs_of, type_for, words_of


def words(**values: Any) -> list[str]:
    form = kohya_gui.load(Document(values))
    return words_of(pairs_of(form.values, form.family))


def test_standard_ignores_convolutions() -> None:
    assert words(LoRA_type="Standard", conv_dim=8, conv_alpha=4, rank_dropout=0.1) == ["rank_dropout=0.1"]


def test_kohya_locon_always_sends_convolutions() -> None:
    assert words(LoRA_type="Kohya LoCon", conv_dim=0, conv_alpha=1) == ["conv_dim=0", "conv_alpha=1"]


def test_kohya_lokr_sends_alpha_with_a_dim_and_factor_unless_automatic() -> None:
    assert words(LoRA_type="Kohya LoKr", sdxl=True, conv_dim=0, conv_alpha=4) == []
    sent = words(LoRA_type="Kohya LoKr", sdxl=True, conv_dim=4, conv_alpha=2, factor=8)
    assert sent == ["conv_dim=4", "conv_alpha=2", "factor=8"]


def test_dylora_unit_has_two_names() -> None:
    assert "unit=4" in words(LoRA_type="Kohya DyLoRA", unit=4)
    assert "block_size=4" in words(LoRA_type="LyCORIS/DyLoRA", unit=4)


def test_lycoris_sends_false_and_zero() -> None:
    sent = words(LoRA_type="LyCORIS/LoHa", LyCORIS_preset="attn-mlp", conv_dim=8, conv_alpha=4)
    assert {"preset=attn-mlp", "use_tucker=False", "module_dropout=0.0", "algo=loha", "dora_wd=False"} <= set(sent)


def test_constrain_is_spelled_constraint() -> None:
    assert "constraint=0.5" in words(LoRA_type="LyCORIS/Diag-OFT", constrain=0.5)


def test_loraplus_comes_last_in_its_order() -> None:
    sent = words(loraplus_text_encoder_lr_ratio=4, loraplus_lr_ratio=16, loraplus_unet_lr_ratio=8)
    assert sent == ["loraplus_lr_ratio=16", "loraplus_unet_lr_ratio=8", "loraplus_text_encoder_lr_ratio=4"]


def test_blanks_break_values_apart_as_on_kohyas_way() -> None:
    assert words(down_lr_weight='"1, 0"') == ["down_lr_weight=1,", "0"]


def test_flux_blocks() -> None:
    sent = words(LoRA_type="Flux1", flux1_checkbox=True, split_mode=True, train_t5xxl=True, img_attn_dim="4")
    assert {"train_blocks=single", "train_t5xxl=True", "img_attn_dim=4", "train_double_block_indices=all"} <= set(sent)
    assert "train_t5xxl=True" not in words(LoRA_type="Flux1", train_t5xxl=True)


def test_sd3_has_a_module_of_its_own() -> None:
    form = kohya_gui.load(Document({"sd3_checkbox": True, "LoRA_type": "Kohya LoCon"}))
    assert module_of(form.values, form.family) == "networks.lora_sd3"


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in ("Kohya LoCon",)])
def test_every_type_is_found_again_from_what_it_sends(kind: str) -> None:
    form = kohya_gui.load(Document({"LoRA_type": kind}))
    pairs = {name: str(value) for name, value in pairs_of(form.values, form.family)}
    assert type_for(TYPES[kind].module, pairs, "sd") == kind


def test_every_choice_of_the_form_is_known() -> None:
    assert set(TYPES) == set(kohya_gui.keys()["LoRA_type"].choices)
