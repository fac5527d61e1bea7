"""A file of ours, loaded by diffusers into a fresh base model, gives the pictures that it was trained to give."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

from schemas.options import NetworkOptions
from trainer.adapters import attach
from trainer.output.lora_file import load_weights, save_peft_copy, save_weights

LOADERS = {"sd15": StableDiffusionLoraLoaderMixin, "sdxl": StableDiffusionXLLoraLoaderMixin}


def unet_output(models):
    torch.manual_seed(1)
    width = models.unet.config.cross_attention_dim
    x, text = torch.randn(1, 4, 16, 16), torch.randn(1, 5, width)
    added = {"text_embeds": torch.randn(1, 32), "time_ids": torch.randn(1, 6)} if models.family == "sdxl" else None
    return models.unet(x, torch.tensor(5), text, added_cond_kwargs=added).sample


def trained(models, targets, *args):
    adapter = attach(models, targets, NetworkOptions(network_dim=4, network_alpha=2.0, network_args=args))
    torch.manual_seed(3)
    for layer in adapter.layers.values():
        torch.nn.init.normal_(layer.up.weight, std=0.05)
    return adapter


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("args", [(), ("conv_dim=2", "conv_alpha=1")], ids=["lora", "locon"])
def test_unet_part(tiny, tmp_path, family, args):
    models, targets = tiny(family)
    before = unet_output(models)
    save_weights(tmp_path / "a.safetensors", trained(models, targets, *args).state_dict(), {})
    wanted = unet_output(models)
    fresh, _ = tiny(family)
    loader = LOADERS[family]
    state, alphas, *_ = loader.lora_state_dict(str(tmp_path / "a.safetensors"), unet_config=fresh.unet.config)
    loader.load_lora_into_unet(state, network_alphas=alphas, unet=fresh.unet)
    torch.testing.assert_close(unet_output(fresh), wanted, atol=1e-4, rtol=1e-4)
    assert (wanted - before).abs().max() > 0.01


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_peft_names_of_diffusers_come_back(tiny, tmp_path, family):
    """diffusers → its own file form → ours."""
    models, targets = tiny(family)
    adapter = trained(models, targets)
    save_weights(tmp_path / "a.safetensors", adapter.state_dict(), {})
    loader = LOADERS[family]
    state, alphas, *_ = loader.lora_state_dict(str(tmp_path / "a.safetensors"), unet_config=models.unet.config)
    save_weights(tmp_path / "b.safetensors", state | {name: torch.tensor(a) for name, a in alphas.items()}, {})
    found = load_weights(tmp_path / "b.safetensors", targets, family)
    for name, tensor in adapter.state_dict().items():
        torch.testing.assert_close(found[name].float(), tensor)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_text_part(tiny, tmp_path, family):
    models, targets = tiny(family)
    ids = torch.tensor([[1, 2, 3]])
    save_weights(tmp_path / "a.safetensors", trained(models, targets).state_dict(), {})
    wanted = [encoder(ids).last_hidden_state for encoder in models.text_encoders]
    fresh, _ = tiny(family)
    loader = LOADERS[family]
    state, alphas, *_ = loader.lora_state_dict(str(tmp_path / "a.safetensors"), unet_config=fresh.unet.config)
    for prefix, encoder, output in zip(("text_encoder", "text_encoder_2"), fresh.text_encoders, wanted, strict=False):
        assert (encoder(ids).last_hidden_state - output).abs().max() > 0.01
        loader.load_lora_into_text_encoder(state, network_alphas=alphas, text_encoder=encoder, prefix=prefix)
        torch.testing.assert_close(encoder(ids).last_hidden_state, output, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("algo", ["dora", "locon", "ranks"])
def test_peft_copy(tiny, tmp_path, family, algo):
    """Of a DoRA only the copy: from kohya's names diffusers drops dora_scale, with a warning."""
    models, targets = tiny(family)
    kind = {"dora": ("dora_wd=True", "preset=attn-mlp"), "locon": ("conv_dim=2",)}.get(algo, ())
    module = "lycoris.kohya" if algo == "dora" else "networks.lora"
    if algo == "ranks":  # another rank in every block
        kind = ("block_dims=" + ",".join(str(2 + n % 5) for n in range(23 if family == "sdxl" else 25)),)
    options = NetworkOptions(
        network_module=module, network_dim=4, network_alpha=2.0, network_args=kind, network_train_unet_only=True
    )
    adapter = attach(models, targets, options)
    torch.manual_seed(3)
    for parameter in adapter.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    file = save_peft_copy(tmp_path / "a.safetensors", adapter.state_dict(), adapter.targets)
    wanted = unet_output(models)
    fresh, _ = tiny(family)
    loader = LOADERS[family]
    state, alphas, metadata = loader.lora_state_dict(
        str(file), unet_config=fresh.unet.config, return_lora_metadata=True
    )
    loader.load_lora_into_unet(state, network_alphas=alphas, unet=fresh.unet, metadata=metadata)
    torch.testing.assert_close(unet_output(fresh), wanted, atol=1e-4, rtol=1e-4)
    again, targets = tiny(family)  # and our own trainer reads it back
    attach(again, targets, replace(options, dim_from_weights=True), weights=load_weights(file, targets, family))
    torch.testing.assert_close(unet_output(again), wanted, atol=1e-4, rtol=1e-4)


def test_kinds_that_diffusers_cannot_read(tiny, tmp_path):
    """LoHa and LoKr stay kohya's; a DoRA under kohya's names loses what makes it one."""
    config, loader = tiny("sd15")[0].unet.config, LOADERS["sd15"]
    for algo, lost in (("loha", None), ("lokr", None), ("locon", "dora_scale")):
        args = (f"algo={algo}", "preset=attn-mlp", *(("dora_wd=True",) if lost else ()))
        options = NetworkOptions(network_module="lycoris.kohya", network_args=args)
        save_weights(tmp_path / f"{algo}.safetensors", attach(*tiny("sd15"), options).state_dict(), {})
        if lost:
            state, *_ = loader.lora_state_dict(str(tmp_path / f"{algo}.safetensors"), unet_config=config)
            assert not any("magnitude" in name or lost in name for name in state)
        else:
            with pytest.raises(ValueError, match="have not been correctly renamed"):
                loader.lora_state_dict(str(tmp_path / f"{algo}.safetensors"), unet_config=config)
