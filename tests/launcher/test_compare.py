from __future__ import annotations

import json
from pathlib import Path

from launcher.about.diff import compare
from launcher.check.resolve import resolve


def differing(a, b) -> list[str]:
    return [entry["argument"] for entry in compare(resolve(str(a)), resolve(str(b)))[0]]


def test_a_file_equals_itself(preset) -> None:
    assert differing(preset(), preset("b.json")) == []


def test_what_trains_differently_is_named(kohyakit, preset) -> None:
    one, other = preset(), preset("b.json", network_dim=8, output_name="toad")
    found = json.loads(kohyakit("diff", one, other, "--json").stdout)
    assert found["differences"] == [{"argument": "network_dim", "a": 4, "b": 8}]
    assert [entry["argument"] for entry in found["other"]] == ["output_name"]


def test_formats_do_not_matter(preset, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('network_dim = 16\nlearning_rate = 1e-4\noptimizer_type = "AdamW"\n')
    (tmp_path / "a.sh").write_text(
        "accelerate launch train_network.py --network_dim 16 --learning_rate 1e-4 --unet_lr 1e-4\n"
    )
    assert differing(tmp_path / "a.toml", tmp_path / "a.sh") == []


def test_a_lora_is_a_config_too(kohyakit, preset, lora) -> None:
    found = kohyakit("diff", preset(), lora(rank=8, alpha=4))
    assert found.exit_code == 0
    assert "network_dim" in found.stdout


def test_the_forms_steps_are_compared_by_their_rule(preset) -> None:
    assert differing(preset(epoch=2), preset("b.json", epoch=3)) == ["max_train_steps"]
