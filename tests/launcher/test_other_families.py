"""Forms of other model families, and SD's, under checkpoints of each: refused or planned, never a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

FORMS: dict[str, dict[str, Any]] = {
    "flux": {"flux1_checkbox": True, "LoRA_type": "Flux1"},
    "sd3": {"sd3_checkbox": True},
    "sdxl": {"sdxl": True, "LoRA_type": "Standard"},
    "sd2": {"v2": True},
    "sd15": {},
}
COMMANDS = (("plan",), ("plan", "--vram", "8"), ("plan", "--json"), ("launch", "--print-command"), ("launch",))


@pytest.mark.parametrize("model", ["sd15", "sdxl", "flux"])
@pytest.mark.parametrize("form", FORMS)
def test_no_command_ends_in_a_traceback(form: str, model: str, preset, checkpoint, kohyakit, tmp_path: Path) -> None:
    file = preset(**FORMS[form], pretrained_model_name_or_path=str(checkpoint(model)))
    found = {
        words: kohyakit(words[0], file, *words[1:]) for words in COMMANDS if (form, words) != ("sd15", ("launch",))
    }
    for words, result in found.items():
        assert result.exception is None or isinstance(result.exception, SystemExit), words
        if form in ("flux", "sd3") or model == "flux":
            assert result.exit_code == 1, words
            said = result.output.lower()
            assert ("a flux model" if form not in ("flux", "sd3") else form) in said or "family" in said


@pytest.mark.parametrize("form", ["flux", "sd3"])
def test_other_families_are_refused_by_name(form: str, preset, checkpoint, kohyakit) -> None:
    file = preset(**FORMS[form], pretrained_model_name_or_path=str(checkpoint("sd15")))
    for command in ("validate", "plan", "launch"):
        result = kohyakit(command, file)
        assert result.exit_code == 1
        assert "unsupported" in result.output or "SD1.5" in result.output
