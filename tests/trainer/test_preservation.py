"""Differential output preservation: marked pictures are held to the bare model, the others to their noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import loop
from trainer.learning.preservation import marked

Start = Callable[..., int]


def dataset(folder: Path, pictures: Path, **attributes: Any) -> Path:
    file = folder / "data.toml"
    words = ", ".join(f"{name} = {str(value).lower()}" for name, value in attributes.items())
    file.write_text(
        f"[[datasets]]\nresolution = 64\nbatch_size = 2\nenable_bucket = true\nmin_bucket_reso = 64\n"
        f"[[datasets.subsets]]\nimage_dir = '{pictures / '2_n0m3'}'\ncaption_extension = '.txt'\n"
        f"custom_attributes = {{ {words} }}\n",
        encoding="utf-8",
    )
    return file


def test_only_a_true_mark_counts() -> None:
    given = [{}, {"diff_output_preservation": True}, {"diff_output_preservation": False, "other": 1}]
    assert marked(given) == [1]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_marked_pictures_pull_a_new_lora_nowhere(family: str, start: Start, pictures: Path, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """An adapter that changes nothing yet is already where preservation wants it."""
    real, found = loop.Run.batch_loss, []
    monkeypatch.setattr(loop.Run, "batch_loss", lambda run, *rest: (found.append(real(run, *rest)), found[-1])[1])
    data = dataset(tmp_path, pictures, diff_output_preservation=True)
    assert start(family, train_data_dir=None, dataset_config=data, max_train_steps=2) == 0
    # With and without the adapter another order of additions may round differently; Adam makes steps of that, too.
    assert [float(loss) for loss in found] == pytest.approx([0.0, 0.0], abs=1e-7)


@pytest.mark.parametrize("module", ["networks.lora", "networks.oft", "lycoris.kohya"])
def test_marked_rows_are_the_bare_model_and_the_others_as_before(
    module: str, start: Start, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = loop.Run.batch_loss, {}

    def spied(run: loop.Run, batch: Any, *rest: Any) -> torch.Tensor:
        if run.at.step == 2 and len(batch.samples) == 2:
            for parameter in run.adapter.parameters():
                parameter.data += 0.05
            batch.attributes = ({}, {"diff_output_preservation": True})
            monkeypatch.setattr(loop, "objective", Spy(loop.objective, seen))
        return real(run, batch, *rest)

    class Spy:
        def __init__(self, module: Any, seen: dict[str, Any]) -> None:
            self.module, self.seen = module, seen

        def __getattr__(self, name: str) -> Any:
            return getattr(self.module, name)

        def loss(self, predicted: torch.Tensor, wanted: torch.Tensor, *rest: Any) -> torch.Tensor:
            self.seen["rows"] = predicted.detach(), wanted.detach()
            return self.module.loss(predicted, wanted, *rest)

        def target(self, latents: torch.Tensor, noise: torch.Tensor, *rest: Any) -> torch.Tensor:
            self.seen["noise"] = noise
            return noise

    monkeypatch.setattr(loop.Run, "batch_loss", spied)
    data = dataset(tmp_path, pictures, other=True)
    assert start(train_data_dir=None, dataset_config=data, max_train_steps=3, network_module=module) == 0
    predicted, wanted = seen["rows"]
    assert torch.equal(wanted[0], seen["noise"][0])
    assert not torch.equal(wanted[1], seen["noise"][1])
    assert not torch.allclose(predicted[1], wanted[1], atol=1e-4)  # the adapter is on again
