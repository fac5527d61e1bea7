"""The LoRA in other programs' hands: diffusers loads it under kohya's keys, and the picture changes as trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from schemas import TrainConfig
from schemas.options import NetworkOptions
from trainer.adapters import attach, merge_weights
from trainer.families import Models, get
from trainer.output.lora_file import load_weights

Start = Callable[..., int]


def pipeline(models: Models) -> Any:
    """The stock diffusers pipeline around our modules."""
    # steps_offset as the published models have it
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    parts: dict[str, Any] = {"vae": models.vae, "unet": models.unet, "scheduler": scheduler}
    parts |= {"text_encoder": models.text_encoders[0], "tokenizer": models.tokenizers[0]}
    if len(models.text_encoders) == 1:
        return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None)
    return StableDiffusionXLPipeline(
        **parts, text_encoder_2=models.text_encoders[1], tokenizer_2=models.tokenizers[1], add_watermarker=False
    )


def latents_of(pipe: Any) -> torch.Tensor:
    """Two steps from fixed noise."""
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found: torch.Tensor = pipe(
        "n0m3", height=64, width=64, num_inference_steps=2, latents=noise, output_type="latent"
    ).images
    return found


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("network_args", [[], ["conv_dim=2", "conv_alpha=1"]], ids=["lora", "locon"])
def test_diffusers_loads_the_lora_and_computes_what_the_trainer_does(
    family: str, network_args: list[str], start: Start, base_models: dict[str, Path], tmp_path: Path
) -> None:
    options = {"network_args": network_args} if network_args else {}
    assert start(family, max_train_steps=2, learning_rate=3e-2, save_peft=True, **options) == 0
    file = tmp_path / "out" / "n0m3.safetensors"
    config = TrainConfig(pretrained_model_name_or_path=str(base_models[family]))
    load = get(family).load

    pipe = pipeline(load(config, dtype=torch.float32))
    plain = latents_of(pipe)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    theirs = latents_of(pipe)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(str(file.parent), weight_name="n0m3.peft.safetensors")
    copied = latents_of(pipe)

    models = load(config, dtype=torch.float32)
    targets = get(family).targets(models)
    wanted = NetworkOptions(network_dim=4, network_args=tuple(network_args))
    attach(models, targets, wanted, weights=load_weights(file, targets)).eval()
    ours = latents_of(pipeline(models))

    change = (ours - plain).norm()
    assert change > 0.01 * plain.norm()
    assert (theirs - ours).norm() < 1e-3 * change
    assert (copied - ours).norm() < 1e-3 * change


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_merged_and_in_peft_it_is_the_same_as_the_adapter(
    family: str, start: Start, base_models: dict[str, Path], tmp_path: Path
) -> None:
    args = ["conv_dim=2", "conv_alpha=1"]
    assert start(family, max_train_steps=2, learning_rate=3e-2, save_peft=True, network_args=args) == 0
    file = tmp_path / "out" / "n0m3.safetensors"
    config = TrainConfig(pretrained_model_name_or_path=str(base_models[family]))

    def fresh() -> Models:
        return get(family).load(config, dtype=torch.float32)

    models = fresh()
    plain, targets = latents_of(pipeline(models)), get(family).targets(models)
    weights = load_weights(file, targets)
    merged = fresh()
    assert merge_weights(merged, targets, weights) == len({name.partition(".")[0] for name in weights})
    in_peft = fresh()
    for name, model in zip(("unet", "text_encoder", "text_encoder_2"), (in_peft.unet, *in_peft.text_encoders),
                           strict=False):  # fmt: skip
        read_by_peft(file.with_name("n0m3.peft.safetensors"), name, model)
    wanted = NetworkOptions(network_dim=4, network_args=tuple(args))
    attach(models, targets, wanted, weights=weights).eval()
    ours = latents_of(pipeline(models))

    change = (ours - plain).norm()
    assert change > 0.01 * plain.norm()
    assert (latents_of(pipeline(merged)) - ours).norm() < 1e-3 * change
    assert (latents_of(pipeline(in_peft)) - ours).norm() < 1e-3 * change


def read_by_peft(file: Path, component: str, model: torch.nn.Module) -> None:
    """What peft itself, without diffusers, makes of the copy."""
    with safe_open(file, "pt") as opened:
        settings = json.loads(opened.metadata()["lora_adapter_metadata"])
    start = f"{component}."
    own = {name.removeprefix(start): value for name, value in settings.items() if name.startswith(start)}
    tensors = {name.removeprefix(start): tensor for name, tensor in load_file(file).items() if name.startswith(start)}
    if not hasattr(model, "text_model"):  # a level that newer text encoders do not have any more
        tensors = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    peft.inject_adapter_in_model(peft.LoraConfig(**own), model)
    outcome = peft.set_peft_model_state_dict(model, tensors)
    assert not outcome.unexpected_keys
    assert len(tensors) == 2 * len(own["target_modules"])


KINDS: list[tuple[str, dict[str, Any], str]] = [
    ("sdxl", {"network_module": "networks.dylora", "network_args": ["unit=2"]}, "lora_up.weight"),
    ("sd15", {"network_module": "networks.lora_fa", "network_args": ["conv_dim=2"]}, "lora_up.weight"),
    ("sd15", {"network_module": "networks.oft", "network_alpha": 0.1}, "oft_blocks"),
    ("sdxl", {"network_module": "networks.loha", "network_args": ["conv_dim=2"]}, "hada_w2_a"),
    ("sd15", {"network_module": "networks.lokr", "network_args": ["factor=4"]}, "lokr_w1"),
    ("sd15", {"network_module": "lycoris.kohya", "network_args": ["algo=locon", "dora_wd=True"]}, "dora_scale"),
]


@pytest.mark.parametrize(("family", "options", "ending"), KINDS, ids=[str(kind[1]["network_module"]) for kind in KINDS])
def test_every_kind_trains_and_goes_on_from_its_own_file(
    family: str, options: dict[str, Any], ending: str, start: Start, tmp_path: Path
) -> None:
    assert start(family, max_train_steps=2, gradient_checkpointing=True, **options) == 0
    first = load_file(tmp_path / "out" / "n0m3.safetensors")
    learnt = [name for name, tensor in first.items() if name.endswith(ending) and tensor.any()]
    assert len(learnt) > 50
    again = {"network_weights": tmp_path / "out" / "n0m3.safetensors", "output_name": "more", "learning_rate": 1e-9}
    assert start(family, max_train_steps=1, dim_from_weights=True, **options, **again) == 0
    second = load_file(tmp_path / "out" / "more.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_a_plug_in_named_in_trust_trains_and_goes_on(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # LyCORIS' entry point under a name of its own: a plug-in as users have them
    (tmp_path / "their_network.py").write_text(
        "from lycoris.kohya import create_network, create_network_from_weights\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = {"network_module": "their_network", "network_args": ["algo=loha", "preset=attn-mlp"]}
    assert start("sd15", max_train_steps=1, **options) == 1  # not trusted
    assert start("sd15", max_train_steps=2, trust="their_network", scale_weight_norms=1, **options) == 0
    first = load_file(tmp_path / "out" / "n0m3.safetensors")
    assert any(name.endswith("hada_w2_a") and tensor.any() for name, tensor in first.items())
    again = {"network_weights": tmp_path / "out" / "n0m3.safetensors", "output_name": "more", "learning_rate": 1e-9}
    assert start("sd15", max_train_steps=1, trust="their_network", **options, **again) == 0
    second = load_file(tmp_path / "out" / "more.safetensors")
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
