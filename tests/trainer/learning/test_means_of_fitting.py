"""Partial checkpointing, streaming and narrow base weights against the plain step, with adapters of every kind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from schemas import TrainConfig
from tests.tiny import stir, tiny_checkpoint
from trainer import __main__, setup
from trainer.adapters import attach
from trainer.families import Models, get
from trainer.learning import checkpointing, quantized, streaming
from trainer.plan.blocks import checkpoint_order, in_forward_order, is_block, stream_order

Start = Callable[..., int]
KINDS = {
    "lora": {},
    "lora-fa": {"network_module": "networks.lora_fa"},
    "locon": {"network_args": ("conv_dim=4",)},
    "loha": {"network_module": "networks.loha"},
    "lokr": {"network_module": "lycoris.kohya", "network_args": ("algo=lokr", "factor=4")},
    "dora": {"network_module": "lycoris.kohya", "network_args": ("algo=lora", "dora_wd=True")},
    "oft": {"network_module": "networks.oft"},
    "lycoris-full": {"network_module": "lycoris.kohya", "network_args": ("algo=full",)},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Models:
    file = tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "sdxl")
    config = TrainConfig(pretrained_model_name_or_path=str(file), no_half_vae=True)
    return get("sdxl").load(config, dtype=torch.float32)


def prepared(tiny: Models, config: TrainConfig) -> tuple[Models, Any]:
    models = Models("sdxl", copy.deepcopy(tiny.unet), tiny.vae, tiny.text_encoders, tiny.tokenizers)
    if config.quantize_base:
        quantized.quantize(models.unet, config.quantize_base)
    torch.manual_seed(0)
    adapter = attach(models, get("sdxl").targets(models), config)
    stir(adapter, 0.01)
    adapter.train()
    return models, adapter


def options(kind: str, **more: Any) -> TrainConfig:
    return TrainConfig(**{"network_module": "networks.lora", "network_dim": 4, "network_train_unet_only": True,
                          **KINDS[kind], **more})  # fmt: skip


def step(models: Models, adapter: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Loss and gradients of two steps, and a forward pass without gradients between them."""
    torch.manual_seed(1)
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 64)
    added = {"text_embeds": torch.randn(1, 32), "time_ids": torch.ones(1, 6)}

    def predict() -> Tensor:
        found: Tensor = models.unet(x, torch.tensor(5), text, added_cond_kwargs=added).sample
        return found

    loss = predict().square().mean()
    loss.backward()
    with torch.no_grad():
        loss = loss + predict().square().mean()
    predict().square().mean().backward()
    return loss.detach(), [weight.grad for weight in adapter.parameters()]


def equal(one: tuple[Tensor, list[Tensor | None]], other: tuple[Tensor, list[Tensor | None]]) -> bool:
    pairs = zip(one[1], other[1], strict=True)
    return torch.equal(one[0], other[0]) and all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_streamed_step_is_the_plain_step_bit_for_bit(kind: str, tiny: Models) -> None:
    models, adapter = prepared(tiny, options(kind))
    plain = step(models, adapter)
    config = options(kind, streamed_blocks=7, gradient_checkpointing=True, checkpointed_blocks=3)
    models, adapter = prepared(tiny, config)
    kept = {id(weight) for _, weight in adapter.named_parameters()}
    streamer = streaming.stream(models.unet, config, torch.device("cpu"), kept)
    assert streamer is not None
    assert len(streamer.blocks) == 7
    checkpointing.enable(models.unet, config, streamer.names)
    assert equal(step(models, adapter), plain)
    assert any(grad is not None for grad in plain[1])


def test_a_streamed_block_computes_with_what_was_fetched_and_two_lie_on_the_device(tiny: Models) -> None:
    config = options("lora", streamed_blocks=100)
    models, adapter = prepared(tiny, config)
    streamer = streaming.stream(models.unet, config, torch.device("cpu"), ())
    assert streamer is not None
    assert set(streamer.names) == {name for name, _ in models.unet.named_modules() if is_block(name)}
    checkpointing.enable(models.unet, config, streamer.names)
    largest = max(block.host.nbytes for block in streamer.blocks)
    assert [buffer.nbytes for buffer in streamer.buffers] == [largest, largest]
    for block in streamer.blocks:
        block.host.zero_()
    silent, _ = step(models, adapter)
    fresh, other = prepared(tiny, options("lora"))
    assert not torch.equal(silent, step(fresh, other)[0])


def test_moving_the_unet_leaves_streamed_weights_where_they_are(tiny: Models) -> None:
    config = options("lora", streamed_blocks=2)
    models, _ = prepared(tiny, config)
    streamer = streaming.stream(models.unet, config, torch.device("cpu"), ())
    assert streamer is not None
    with streamer.absent():
        models.unet.to("meta")
    block = models.unet.get_submodule(streamer.names[0])
    assert {weight.device.type for weight in block.parameters() if not weight.requires_grad} == {"cpu"}


@pytest.mark.parametrize("count", [None, 6])
def test_as_many_blocks_are_computed_twice_as_asked_for(count: int | None, tiny: Models) -> None:
    models, adapter = prepared(tiny, options("lora"))
    plain = step(models, adapter)
    config = options("lora", gradient_checkpointing=True, checkpointed_blocks=count)
    models, adapter = prepared(tiny, config)
    runs: dict[str, int] = {}
    blocks = checkpointing.blocks_of(models.unet)
    for name, block in blocks.items():
        block.register_forward_pre_hook(lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1}))
    checkpointing.enable(models.unet, config)
    assert equal(step(models, adapter), plain)
    twice = {name for name, times in runs.items() if times == 5}
    order = checkpoint_order({name: checkpointing.width_of(block) for name, block in blocks.items()})
    chosen = set(order[: count or len(order)])
    assert twice == chosen - {"down_blocks.0.resnets.0", "down_blocks.0.resnets.1", "down_blocks.1.resnets.0"}
    assert twice  # nothing before those three is trained


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("form", "near"), [("int8", 0.02), ("nf4", 0.25)])
def test_a_narrow_base_is_near_the_plain_one(kind: str, form: Any, near: float, tiny: Models) -> None:
    plain, _ = step(*prepared(tiny, options(kind)))
    narrow, gradients = step(*prepared(tiny, options(kind, quantize_base=form)))
    assert narrow != plain
    assert abs(narrow - plain) < near * plain
    assert any(grad is not None and grad.abs().sum() > 0 for grad in gradients)


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_a_narrow_layer_computes_with_its_widened_weight(form: Any) -> None:
    for layer, shape in ((nn.Linear(64, 32), (3, 64)), (nn.Conv2d(16, 8, 3, padding=1), (2, 16, 5, 5))):
        layer.requires_grad_(False)
        holder = nn.Sequential(copy.deepcopy(layer))
        assert quantized.quantize(holder, form) == 1
        narrow: Any = holder[0]
        layer.weight.data = narrow.weight.clone()
        assert narrow.stored.nbytes == layer.weight.numel() / (1 if form == "int8" else 2)
        found = []
        for module in (narrow, layer):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
            y = module(x)
            y.square().sum().backward()
            found.append((y, x.grad))
        for ours, theirs in zip(*found, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_orders_name_every_block_once() -> None:
    names = ["up_blocks.1.resnets.0", "down_blocks.0.attentions.0.transformer_blocks.1", "down_blocks.0.resnets.0",
             "mid_block.resnets.1", "mid_block.attentions.0.transformer_blocks.0", "down_blocks.0.resnets.1",
             "down_blocks.0.attentions.0.transformer_blocks.0"]  # fmt: skip
    order = in_forward_order(names)
    assert order == [names[2], names[6], names[1], names[5], names[4], names[3], names[0]]
    assert checkpoint_order(dict.fromkeys(names, 1) | {names[2]: 2}) == [*order[1:], names[2]]
    assert set(stream_order(dict.fromkeys(names, 1))) == set(names)
    assert stream_order(dict.fromkeys(names, 1) | {names[0]: 2})[0] == names[0]
    assert not is_block("mid_block.resnets.0")
    assert not is_block("down_blocks.0.attentions.0")


def in_own_memory(unet: torch.nn.Module, config: TrainConfig, *rest: Any) -> streaming.Streamer | None:
    """Streaming of a network whose weights lie where torch puts them, not where they stand in the mapped file.

    A CPU's kernels sum in another order where a weight begins at another address.
    """
    for weight in unet.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.clone()
    return streaming.stream(unet, config, *rest)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_streamed_run_is_the_plain_one_and_goes_on_exactly_from_a_state(
    family: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU launcher and trainer leave streaming out; here they do not."""
    monkeypatch.setattr(__main__, "adapt_to", lambda read, **_: (replace(read, mixed_precision="no"), []))
    monkeypatch.setattr(setup, "stream", in_own_memory)
    more: dict[str, Any] = {"streamed_blocks": 5, "gradient_checkpointing": True, "checkpointed_blocks": 3}
    more["network_train_unet_only"] = True
    assert start(family, output_dir=tmp_path / "plain", max_train_steps=3, network_train_unet_only=True) == 0
    saved = {"save_every_n_steps": 2, "save_state": True}
    assert start(family, output_dir=tmp_path / "streamed", max_train_steps=3, **saved, **more) == 0
    state = tmp_path / "streamed" / "n0m3.run" / "state-00000002"
    resumed = {"output_dir": tmp_path / "on", "max_train_steps": 3, "resume": state}
    assert start(family, **resumed, **more) == 0
    plain, streamed, on = (load_file(tmp_path / name / "n0m3.safetensors") for name in ("plain", "streamed", "on"))
    assert all(torch.equal(streamed[key], on[key]) for key in on)
    assert all(torch.equal(plain[key], on[key]) for key in on)
