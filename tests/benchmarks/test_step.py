from __future__ import annotations

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from benchmarks import step


def test_it_compares_the_whole_step_with_the_bare_unet(capsys: pytest.CaptureFixture[str]) -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    assert step.main(["--size", "64", "--batch", "1", "--steps", "2", "--rank", "2"]) == 0
    report = capsys.readouterr().out.split("whole step")[1]
    assert "(2 pairs," in report
    assert float(report.split("ratio          median ")[1].split()[0]) > 0


def test_the_bare_unet_is_the_loaded_one_without_lora(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    made: list[step.BareUNet] = []
    build = step.BareUNet.__init__
    monkeypatch.setattr(step.BareUNet, "__init__", lambda bare, *rest: (made.append(bare), build(bare, *rest))[1])
    step.measure(step.arguments().parse_args(["--size", "64", "--batch", "1", "--steps", "1"]), tmp_path)
    assert not any("lora" in name for name, _ in made[0].unet.named_parameters())
    assert all(weight.grad is None and not weight.requires_grad for weight in made[0].unet.parameters())


def test_a_wrong_option_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main(["--steps", "1", "--set", "network_dimm=4"]) == 1
    assert "network_dim" in capsys.readouterr().err
