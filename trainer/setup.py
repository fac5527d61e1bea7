"""What a run sets up before its first step: processes, seed, frozen models, caches."""

from __future__ import annotations

import datetime
import importlib
import importlib.util
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from random import SystemRandom
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object, set_seed

from schemas import TrainConfig, table, to_flat
from schemas.files.documents import parse_toml
from schemas.files.resuming import kept_seed
from schemas.files.textfile import CONFIG, read_text
from schemas.problems import error
from schemas.progress import Progress
from trainer.adapters import Adapter, import_plugin, is_plugin, merge_by_plugin, merge_weights
from trainer.dataset.files import Scan, held_out
from trainer.dataset.order import assign
from trainer.families import Family, Models
from trainer.input.cache import LatentCache, TextCache
from trainer.learning import checkpointing
from trainer.learning.float8 import to_float8
from trainer.learning.quantized import quantize
from trainer.learning.streaming import stream
from trainer.output.lora_file import load_weights
from trainer.watch import connection

Say = Callable[[str], None]
Encode = Callable[[torch.Tensor], torch.Tensor]
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def precision(config: TrainConfig) -> torch.dtype:
    """The number format of the frozen models."""
    return DTYPES[config.mixed_precision]


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The processes of this run; gradients are accumulated and shared by the loop itself."""
    minutes = config.ddp_timeout or 30
    backend = "gloo" if sys.platform == "win32" else None  # PyTorch has no NCCL on Windows
    handlers: list[Any] = [InitProcessGroupKwargs(backend=backend, timeout=datetime.timedelta(minutes=minutes))]
    trackers, project = None, None
    if config.log_with or config.logging_dir:
        trackers = ["tensorboard", "wandb"] if config.log_with == "all" else [config.log_with or "tensorboard"]
        stamp = time.strftime("%Y%m%d%H%M%S")
        project = Path(config.logging_dir or str(config.output_dir)) / f"{config.log_prefix or ''}{stamp}"
    with connection.explained():
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision, kwargs_handlers=handlers, log_with=trackers, project_dir=project
        )
    connection.self_test(accelerator)
    if trackers:
        accelerator.init_trackers(
            config.log_tracker_name or "network_train", loggable(config) if config.log_config else None,
            tracker_settings(config),
        )  # fmt: skip
    return accelerator


class Scaler(torch.amp.GradScaler):
    """Loss scaling that also takes fp16 gradients, which full_fp16 makes; torch's own refuses them."""

    def _unscale_grads_(self, optimizer: Any, inv_scale: Any, found_inf: Any, allow_fp16: bool) -> Any:
        return super()._unscale_grads_(optimizer, inv_scale, found_inf, True)


def make_scaler(config: TrainConfig, device: torch.device) -> Scaler:
    """Scales the loss under fp16, does nothing otherwise."""
    return Scaler(device.type, enabled=config.mixed_precision == "fp16")


def tracker_settings(config: TrainConfig) -> dict[str, Any]:
    """Settings by tracker name: log_tracker_config where given, else the name of the wandb run."""
    if config.wandb_api_key and config.log_with in ("wandb", "all"):
        importlib.import_module("wandb").login(key=config.wandb_api_key)
    if config.log_tracker_config:
        try:
            return parse_toml(read_text(config.log_tracker_config, limit=CONFIG, what="log_tracker_config"))
        except ValueError as fault:
            file = config.log_tracker_config
            raise error("not-toml", f"is not TOML: {fault}", file=file, fix="mend that line") from None
    return {"wandb": {"name": config.wandb_run_name or config.output_name}}


def loggable(config: TrainConfig) -> dict[str, Any]:
    """The options as trackers take them, without secrets and personal paths."""
    flat = to_flat(config, defaults=True)
    return {name: str(value) for name, value in flat.items() if not table()[name].path}


def drawn_seed(config: TrainConfig, accelerator: Accelerator) -> TrainConfig:
    """The config with a seed that all processes share: the user's, that of the run gone on with, or one drawn now."""
    given = config.seed if config.seed is not None else kept_seed(config.resume)
    seed = [given if given is not None else SystemRandom().randrange(2**32 - 1)]
    broadcast_object_list(seed)
    set_seed(seed[0])
    return replace(config, seed=seed[0])


def load_models(family: Family, config: TrainConfig, accelerator: Accelerator, say: Say) -> Models:
    """The base model in the run's number format, base_weights merged in."""
    say(f"loading {config.pretrained_model_name_or_path}")
    with accelerator.local_main_process_first():
        models = family.load(config, dtype=precision(config), device=accelerator.device if config.lowram else "cpu")
    targets = family.targets(models) if config.base_weights else []
    strengths = [*config.base_weights_multiplier, *[1.0] * len(config.base_weights)]
    for file, strength in zip(config.base_weights, strengths, strict=False):
        if is_plugin(config.network_module):
            merge_by_plugin(models, import_plugin(str(config.network_module)), file, strength, precision(config))
            say(f"{config.network_module} merged {file} x {strength:g} into the base model")
            continue
        weights = load_weights(Path(file), targets, family.facts.name, trust=config.trust, key="base_weights")
        merged = merge_weights(models, targets, weights, strength)
        say(f"merged {file} x {strength:g} into the base model ({merged} modules)")
    if config.fp8_base or config.fp8_base_unet:
        unet = () if config.quantize_base else (models.unet,)
        for model in (*unet, *(models.text_encoders if config.fp8_base else ())):
            to_float8(model.requires_grad_(False))
    if config.quantize_base:
        quantize(models.unet.requires_grad_(False), config.quantize_base)
    return models


def ready_models(models: Models, adapter: Adapter, config: TrainConfig, accelerator: Accelerator,
                 caches: Caches) -> None:  # fmt: skip
    """Everything that trains or is needed every step goes to the device; the rest stays in main memory."""
    if config.full_fp16 or config.full_bf16:
        adapter.to_dtype(precision(config))
    kept = {id(weight) for _, weight in adapter.named_parameters()} if config.streamed_blocks else ()
    streamer = stream(models.unet, config, accelerator.device, kept)
    with streamer.absent() if streamer else nullcontext():
        models.unet.to(accelerator.device)
    models.vae.to("cpu" if caches.latents else accelerator.device)
    for encoder in models.text_encoders:
        encoder.to("cpu" if caches.texts else accelerator.device)
    if config.xformers and importlib.util.find_spec("xformers"):
        models.unet.enable_xformers_memory_efficient_attention()  # type: ignore[operator]
    if config.torch_compile:
        # By repeated block: the 70 transformers of an SDXL U-Net are compiled once, for every bucket's size.
        models.unet.compile_repeated_blocks(backend=config.dynamo_backend, dynamic=True)  # type: ignore[operator]
    checkpointing.enable(models.unet, config, streamer.names if streamer else ())
    if config.gradient_checkpointing:
        for encoder in models.text_encoders:
            if any(parameter.requires_grad for parameter in encoder.parameters()):
                encoder.train()
                # transformers renamed it in 5.x and drops the old name in 6
                name = "activation" if hasattr(encoder, "activation_checkpointing_enable") else "gradient"
                getattr(encoder, f"{name}_checkpointing_enable")({"use_reentrant": False})


@dataclass
class Held:
    """The pictures kept aside for validation, and their caches."""

    scan: Scan
    latents: LatentCache | None = None
    texts: TextCache | None = None


@dataclass
class Caches:
    """What was computed once: latents of all images, text outputs; `encode` is for pictures not cached."""

    encode: Encode
    latents: LatentCache | None = None
    texts: TextCache | None = None
    held: Held | None = None


@torch.no_grad()
def encode_latents(family: Family, vae: Any, pixels: torch.Tensor, device: torch.device, draws: Any) -> torch.Tensor:
    """Float32 latents [B,C,h,w], as the VAE gives them, of images [B,3,H,W] in -1..1."""
    return family.to_latents(vae, pixels.to(device, next(vae.parameters()).dtype), draws)


def fill_caches(
    found: Scan, config: TrainConfig, family: Family, models: Models, accelerator: Accelerator, say: Say
) -> Caches:  # fmt: skip
    """Encode what the config wants cached, and give back how to encode the rest."""
    vae, device = models.vae, accelerator.device

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return encode_latents(family, vae, pixels, device, None)

    def encode_once(pixels: torch.Tensor) -> torch.Tensor:
        """The draw depends on the picture and the seed alone: a cache made in pieces equals one made at once."""
        first = int(config.seed or 0) & 0xFFFFFFFF
        seeds = [zlib.crc32(picture.numpy().tobytes(), first) for picture in pixels.cpu()]
        return encode_latents(family, vae, pixels, device, [torch.Generator().manual_seed(seed) for seed in seeds])

    def encode_in_32_bit(pixels: torch.Tensor) -> torch.Tensor:
        dtype = next(vae.parameters()).dtype
        vae.float()
        try:
            return encode_once(pixels)
        finally:
            vae.to(dtype)

    caches = Caches(encode, held=Held(held_out(found)) if found.validation else None)
    kinds: list[tuple[Caches | Held, Scan]] = [(caches, found)]
    if caches.held:
        kinds.append((caches.held, caches.held.scan))
    if config.cache_latents:
        vae.to(device)
        for kept, scan in kinds:
            kept.latents = LatentCache(scan, assign(scan, config), config, family.facts)
            fill_latents(kept.latents, encode_once, encode_in_32_bit, accelerator, say)
        vae.to("cpu")
    if config.cache_text_encoder_outputs:
        for encoder in models.text_encoders:
            encoder.to(device)
        for kept, scan in kinds:
            kept.texts = TextCache(scan, config, family)
            with torch.no_grad():
                kept.texts.fill(
                    lambda captions: family.encode(models, captions, config), bar("encoding captions", accelerator)
                )
        for encoder in models.text_encoders:
            encoder.to("cpu")
    if not config.highvram and device.type == "cuda":
        torch.cuda.empty_cache()
    return caches


def bar(label: str, accelerator: Accelerator) -> Progress | None:
    """How far a cache is filled, as the first process sees its own share."""
    return Progress(label) if accelerator.is_main_process else None


def fill_latents(cache: LatentCache, encode: Encode, retry: Encode, accelerator: Accelerator, say: Say) -> None:
    """Encodes what a cache lacks; several processes share the work."""
    missing = len(cache.missing())
    say(f"encoding {missing} images once" if missing else "all latents were cached already")
    cache.fill(
        encode,
        bar("encoding images", accelerator),
        retry=retry,
        processes=accelerator.num_processes,
        rank=accelerator.process_index,
    )
    cache.exchange(gather_object)
    accelerator.wait_for_everyone()
    for note in cache.notes:
        say(f"{note.severity}: {note}")
