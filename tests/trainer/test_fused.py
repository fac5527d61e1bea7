"""fused_backward_pass gives the numbers of an ordinary Adafactor step, one weight at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from schemas import TrainConfig
from schemas.rules import check
from trainer import loop
from trainer.learning import fused
from trainer.learning.fused import FusedBackward, can_fuse
from trainer.learning.optimizers import build_optimizer, build_scheduler
from trainer.plan.steps import count

Start = Callable[..., int]
ADAFACTOR: dict[str, Any] = {"optimizer_type": "AdaFactor", "max_grad_norm": 0, "fused_backward_pass": True}


def trained(*, fuse: bool, **options: Any) -> tuple[list[torch.Tensor], int]:
    """Weights after four steps on a small problem, and how many gradients were kept at the most."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    config = TrainConfig(optimizer_type="AdaFactor", max_train_steps=4, **{"learning_rate": 1e-2, **options})
    groups = [{"params": [*layer.parameters()], "lr": rate} for layer, rate in ((net[0], 1e-2), (net[2], 1e-3))]
    optimizer = build_optimizer(groups, config).optimizer
    scheduler = build_scheduler(optimizer, config, count(config, 4))
    hooks = FusedBackward(optimizer) if fuse else None
    kept = 0
    for _ in range(4):
        net(torch.randn(3, 6)).square().mean().backward()
        kept = max(kept, sum(weight.grad is not None for weight in net.parameters()))
        if hooks:
            assert float(hooks.norm(torch.device("cpu"))) > 0
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
    return [weight.detach() for weight in net.parameters()], kept


@pytest.mark.parametrize("options", [
    {"optimizer_args": ("relative_step=False", "weight_decay=0.1"), "lr_scheduler": "cosine"},
    {"optimizer_args": ("relative_step=True", "warmup_init=True")}, {},
], ids=["rates", "warmup", "relative"])  # fmt: skip
def test_the_weights_are_those_of_whole_steps_and_no_gradient_stays(options: dict[str, Any]) -> None:
    whole, held = trained(fuse=False, **options)
    single, left = trained(fuse=True, **options)
    assert (held, left) == (4, 0)
    assert all(torch.equal(one, other) for one, other in zip(whole, single, strict=True))


def test_a_whole_run_is_the_same_also_after_a_resume(start: Start, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    made: list[Any] = []
    real = fused.FusedBackward
    monkeypatch.setattr(loop, "FusedBackward", lambda optimizer: (made.append(1), real(optimizer))[1])
    plain = {**ADAFACTOR, "fused_backward_pass": False}
    assert start(output_dir=tmp_path / "plain", **plain) == 0
    assert not made
    assert start(output_dir=tmp_path / "fused", save_every_n_steps=2, save_state=True, **ADAFACTOR) == 0
    state = tmp_path / "fused" / "n0m3.run" / "state-00000002"
    assert start(output_dir=tmp_path / "more", resume=state, **ADAFACTOR) == 0
    one, other, third = (load_file(tmp_path / name / "n0m3.safetensors") for name in ("plain", "fused", "more"))
    assert len(made) == 2
    assert all(torch.equal(one[name], other[name]) and torch.equal(one[name], third[name]) for name in one)


@pytest.mark.parametrize(
    ("options", "processes", "reason"),
    [({}, 1, None), ({}, 2, "processes"), ({"max_grad_norm": 1.0}, 1, "max_grad_norm"),
     ({"mixed_precision": "fp16"}, 1, "fp16")],
)  # fmt: skip
def test_where_early_steps_would_give_other_numbers_there_are_none(
    options: dict[str, Any], processes: int, reason: str | None
) -> None:
    said = can_fuse(TrainConfig(**{**ADAFACTOR, **options}), processes)
    assert said is None if reason is None else reason in str(said)


def test_a_run_that_cannot_says_so(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(**{**ADAFACTOR, "max_grad_norm": 1, "max_train_steps": 1}) == 0
    assert "fused_backward_pass has no effect: max_grad_norm needs the norm" in capsys.readouterr().out


def test_an_option_that_saves_nothing_is_told() -> None:
    def told(**options: Any) -> set[str | None]:
        config = TrainConfig(**{**ADAFACTOR, **options})
        return {problem.key for problem in check(config, "sd15") if problem.code == "no-effect"}

    assert "fused_backward_pass" not in told()
    assert "fused_backward_pass" in told(max_grad_norm=1.0)
    assert "fused_backward_pass" in told(mixed_precision="fp16")
    assert "cpu_offload_checkpointing" in told(cpu_offload_checkpointing=True)
    assert "cpu_offload_checkpointing" not in told(cpu_offload_checkpointing=True, gradient_checkpointing=True)
