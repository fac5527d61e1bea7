"""How much memory and disk a run takes, and what to change so that it fits: estimates from counts, without torch.

Weights, adapters, gradients and optimizer states are counted. Activations are linear in pixels: bytes of tensors kept
for backward were counted once, by saved-tensor hooks on diffusers' U-Nets with rank-16 adapters, under the GPU's
autocast rules and scaled-dot-product attention. The CUDA context and the allocator's waste are rounded figures; trust
the total to about a tenth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.config import TrainConfig
from schemas.files.weights import read_header
from schemas.optimizers import TORCH, resolve, row_of, state_bytes
from schemas.problems import ConfigError
from trainer.plan.adapter import saved_numbers, trained_numbers
from trainer.plan.marks import saves
from trainer.plan.modules import Layer, layers_of, usual
from trainer.plan.steps import Steps

CONTEXT = 600_000_000  # CUDA context, kernels and cuBLAS workspace
WASTE = 0.04  # of everything else: the allocator's rounding and gaps
HOST_PROCESS = 2_000_000_000  # Python, torch and CUDA libraries in one training process
HOST_WORKER = 250_000_000  # one data-loader process beyond what it shares
VAE = 83_653_863
VAE_PIXEL = {2: 1536, 4: 2048}  # bytes of the encoder's widest layers, by bytes per number
GIB = 1024**3


@dataclass(frozen=True)
class Shape:
    """What a family's sizes are: parameters of its models, the layers that adapters know, activation bytes.

    Activation bytes are for one latent pixel (8x8 image pixels) of one picture: `kept` all of them, `marks` only what
    gradient checkpointing keeps, `block` the largest block that it computes again; each for 2 and 4 bytes a number.
    Without `layers` they are those of the family's full size.
    """

    unet: int
    text: tuple[int, ...]
    text_layers: tuple[tuple[int, int], ...]  # layers, width
    kept: Mapping[int, int]
    marks: Mapping[int, int]
    block: Mapping[int, int]
    vae: int = VAE
    layers: tuple[Layer, ...] = ()


SD15 = Shape(
    unet=859_520_964, text=(123_060_480,), text_layers=((12, 768),), kept={2: 306_000, 4: 452_000},
    marks={2: 48_700, 4: 73_800}, block={2: 21_600, 4: 36_500},
)  # fmt: skip
SDXL = Shape(
    unet=2_567_463_684, text=(123_060_480, 694_659_840), text_layers=((12, 768), (32, 1280)),
    kept={2: 517_000, 4: 833_000}, marks={2: 37_800, 4: 67_200}, block={2: 14_700, 4: 18_300},
)  # fmt: skip
SHAPES: dict[str, Shape] = {
    "sd15": SD15,
    "sd2": dataclasses.replace(SD15, unet=865_910_724, text=(340_387_840,), text_layers=((23, 1024),)),
    "sdxl": SDXL,
}
PREFIXES = {  # in a single file; a diffusers folder has folders of these names
    "unet": ("model.diffusion_model.",),
    "text": ("cond_stage_model.", "conditioner."),
    "vae": ("first_stage_model.",),
}
FOLDERS = {"unet": ("unet",), "text": ("text_encoder", "text_encoder_2"), "vae": ("vae",)}


@dataclass(frozen=True)
class Memory:
    """Peak bytes: `device_bytes` on each GPU, `host_bytes` on the machine; `parts` add up to `device_bytes`."""

    device_bytes: int
    host_bytes: int
    parts: dict[str, int]


@dataclass(frozen=True)
class Change:
    """A change of one argument that saves device memory.

    `changes_result`: something else is computed, beyond rounding and the order of random draws.
    """

    argument: str
    before: Any
    after: Any
    saves_bytes: int
    cost: str
    changes_result: bool


def shape_of(family: str, model: str | None = None) -> Shape:
    """The family's sizes, scaled to the parameters of the checkpoint `model` where its headers tell them.

    Weights go with the square of the width, activations with the width.
    """
    usual = SHAPES[family]
    found = _parameters(model) if model else {}

    def ratio(part: str, of: int) -> float:
        scale = found.get(part, of) / of
        return scale if scale and not 0.9 < scale < 1.1 else 1.0  # further tensors of a whole model are no other size

    unet, text, vae = ratio("unet", usual.unet), ratio("text", sum(usual.text)), ratio("vae", usual.vae)
    layers = layers_of(family, model)
    if unet == text == vae == 1.0:
        return dataclasses.replace(usual, layers=layers)
    wide, wide_text = math.sqrt(unet), math.sqrt(text)
    return Shape(
        unet=int(usual.unet * unet),
        text=tuple(int(count * text) for count in usual.text),
        text_layers=tuple((layers, int(width * wide_text)) for layers, width in usual.text_layers),
        kept={size: int(count * wide) for size, count in usual.kept.items()},
        marks={size: int(count * wide) for size, count in usual.marks.items()},
        block={size: int(count * wide) for size, count in usual.block.items()},
        vae=int(usual.vae * vae),
        layers=layers,
    )


def _parameters(model: str) -> dict[str, int]:
    """Numbers in the U-Net, the text encoders and the VAE; parts whose header cannot be read are left out."""
    place, counts = Path(model), dict.fromkeys(PREFIXES, 0)
    try:
        if place.is_dir():
            for part, folders in FOLDERS.items():
                files = [file for folder in folders for file in _of_one_precision(place / folder)]
                counts[part] = sum(_numbers(file, ("",)) for file in files)
        elif place.suffix.lower() == ".safetensors":
            counts = {part: _numbers(place, prefixes) for part, prefixes in PREFIXES.items()}
    except ConfigError:
        return {}
    return {part: count for part, count in counts.items() if count}


def _of_one_precision(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if ".fp16." not in file.name] or files


def _numbers(file: Path, prefixes: tuple[str, ...]) -> int:
    tensors = read_header(file).tensors.items()
    return sum(math.prod(info.shape) for name, info in tensors if name.startswith(prefixes))


def number_bytes(config: TrainConfig) -> int:
    """Bytes of one number of the frozen models."""
    return 4 if config.mixed_precision == "no" else 2


def trains(config: TrainConfig) -> tuple[bool, bool]:
    """Whether the U-Net's and the text encoders' adapters are trained; a rate of 0 leaves a part out."""
    unet_lr = config.learning_rate if config.unet_lr is None else config.unet_lr
    text_lr = max(config.text_encoder_lr or (config.learning_rate,))
    return (
        not config.network_train_text_encoder_only and unet_lr > 0,
        not config.network_train_unet_only and text_lr > 0,
    )


def adapter_parameters(config: TrainConfig, family: str, shape: Shape | None = None) -> int:
    """Trained numbers, for every kind of network."""
    return trained_numbers(config, family, (shape or SHAPES[family]).layers or usual(family))


def optimizer_bytes(config: TrainConfig) -> float:
    """Bytes of optimizer state for each trained number, wherever it lies."""
    name = "AdamW8bit" if config.use_8bit_adam else "Lion" if config.use_lion_optimizer else config.optimizer_type
    made = (resolve(name) or name).rpartition(".")[2]
    full = state_bytes(made)
    return full if made.endswith("8bit") else full * adapter_bytes(config) / 4


def adapter_bytes(config: TrainConfig) -> int:
    """Bytes of one trained number."""
    return 2 if config.full_fp16 or config.full_bf16 else 4


def estimate(
    config: TrainConfig,
    family: str,
    largest_bucket: tuple[int, int],
    processes: int = 1,
    *,
    shape: Shape | None = None,
) -> Memory:
    """Peak memory of training on pictures of `largest_bucket` (width, height in pixels).

    `processes` run on this machine, a GPU each. `shape` is that of the checkpoint, see `shape_of`.
    """
    shape, size = shape or SHAPES[family], number_bytes(config)
    trained = adapter_parameters(config, family, shape)
    states = int(trained * optimizer_bytes(config))
    paged = (resolve(config.optimizer_type) or "").rpartition(".")[2].startswith("Paged")
    copies = size if size < adapter_bytes(config) else 0  # autocast keeps the adapter in half precision too
    parts = {
        "unet": shape.unet * (1 if config.fp8_base or config.fp8_base_unet else size),
        "text_encoders": 0 if config.cache_text_encoder_outputs else sum(shape.text) * (1 if config.fp8_base else size),
        "vae": 0 if _cached(config) else shape.vae * (4 if config.no_half_vae else size),
        "adapter": trained * (adapter_bytes(config) + copies),
        "gradients": trained * adapter_bytes(config),
        "optimizer": 0 if paged else states,
        "activations": activation_bytes(config, family, largest_bucket, shape),
    }
    if config.ema_decay:
        parts["ema"] = 4 * trained
    parts["overhead"] = CONTEXT + int(WASTE * sum(parts.values()))
    loading = (shape.unet + sum(shape.text) + shape.vae) * size
    host = processes * (HOST_PROCESS + config.max_data_loader_n_workers * HOST_WORKER + (states if paged else 0))
    return Memory(sum(parts.values()), host + loading, parts)


def _cached(config: TrainConfig) -> bool:
    return config.cache_latents or config.cache_latents_to_disk


def activation_bytes(
    config: TrainConfig, family: str, largest_bucket: tuple[int, int], shape: Shape | None = None
) -> int:
    """Bytes kept from forward to backward, gradients of the running block included."""
    shape, size, batch = shape or SHAPES[family], number_bytes(config), config.train_batch_size
    pixels = largest_bucket[0] * largest_bucket[1]
    block = shape.block[size]  # once kept, once as gradients
    of_pixel = shape.marks[size] + 2 * block if config.gradient_checkpointing else shape.kept[size] + block
    training = of_pixel * batch * pixels // 64
    if trains(config)[1] and not config.cache_text_encoder_outputs:
        tokens = batch * 77 * ((config.max_token_length or 75) // 75)
        of_layer = size if config.gradient_checkpointing else 20 * size  # of one token and one unit of width
        training += tokens * of_layer * sum(layers * width for layers, width in shape.text_layers)
    of_encoding = 0.0 if _cached(config) else VAE_PIXEL[4 if config.no_half_vae else size] * math.sqrt(shape.vae / VAE)
    encoding = int(of_encoding * config.vae_batch_size * pixels)
    return max(training, encoding)  # the VAE is done before the U-Net begins


def disk_bytes(
    config: TrainConfig,
    family: str,
    steps: Steps,
    *,
    cached_pixels: int = 0,
    cached_captions: int = 0,
    shape: Shape | None = None,
) -> int:
    """Bytes in output_dir and of caches at the run's fullest moment, one state in the run folder included.

    Previews and logs are not counted; files that rotation removes are, until it does. `cached_pixels` are the pixels
    of all pictures whose latents go to disk, `cached_captions` the captions whose text-encoder outputs do.
    """
    trained = adapter_parameters(config, family, shape)
    saved = saved_numbers(config, family, (shape or SHAPES[family]).layers or usual(family))
    model = saved * {"fp16": 2, "bf16": 2, "float": 4, None: adapter_bytes(config)}[config.save_precision]
    model *= 1 + bool(config.ema_decay) + config.save_peft
    state = int(trained * (adapter_bytes(config) + optimizer_bytes(config) + (4 if config.ema_decay else 0)))
    held: dict[str, int] = {}
    there = fullest = 0
    for save in saves(config, steps):
        for name in save.written:
            size = state if name.endswith("-state") else model
            there += size - held.get(name, 0)
            held[name] = size
        fullest = max(fullest, there)
        there -= sum(held.pop(name, 0) for name in save.removes)
    latents = cached_pixels // 64 * 4 * 4 * (2 if config.flip_aug else 1)  # 4 channels of float32
    tokens = 75 * ((config.max_token_length or 75) // 75) + 2
    texts = cached_captions * (tokens * (768 + 1280) + 1280) * 4
    return fullest + state + latents + texts


def fit(
    config: TrainConfig,
    family: str,
    largest_bucket: tuple[int, int],
    vram_gb: float,
    *,
    shape: Shape | None = None,
) -> list[Change]:
    """Changes, the least harmful first, until the estimate is within `vram_gb` GiB; all that help if none suffices.

    Empty when it fits already. `apply` gives the changed config, whose estimate says whether it fits now.
    """
    found: list[Change] = []
    while (used := estimate(config, family, largest_bucket, shape=shape).device_bytes) > vram_gb * GIB:
        change = next(_changes(config, family, used, largest_bucket, shape), None)
        if change is None:
            break
        found += change
        config = apply(config, change)
    return _merged(found)


def _merged(changes: list[Change]) -> list[Change]:
    """`changes` with those of one argument, such as batch sizes 4 to 2 and 2 to 1, made one."""
    found: dict[str, Change] = {}
    for change in changes:
        earlier = found.get(change.argument, dataclasses.replace(change, saves_bytes=0))
        saved = earlier.saves_bytes + change.saves_bytes
        found[change.argument] = dataclasses.replace(change, before=earlier.before, saves_bytes=saved)
    return list(found.values())


def apply(config: TrainConfig, changes: list[Change]) -> TrainConfig:
    """`config` with every change made."""
    values: dict[str, Any] = {change.argument: change.after for change in changes}
    return dataclasses.replace(config, **values)


def _changes(
    config: TrainConfig, family: str, used: int, largest_bucket: tuple[int, int], shape: Shape | None
) -> Iterator[list[Change]]:
    """The steps still possible, in order; each is one change, or several that only work together."""
    for cost, changes_result, values in _offers(config, family):
        after = dataclasses.replace(config, **values)
        saved = used - estimate(after, family, largest_bucket, shape=shape).device_bytes
        if saved > 0:
            first, *others = values
            head = Change(first, getattr(config, first), values[first], saved, cost, changes_result)
            with_it = [
                Change(name, getattr(config, name), values[name], 0, f"goes with {first}", changes_result)
                for name in others
            ]
            yield [head, *with_it]


def _offers(config: TrainConfig, family: str) -> Iterator[tuple[str, bool, dict[str, Any]]]:
    """(cost, changes_result, new values), the least harmful first."""
    if not config.gradient_checkpointing:
        yield "steps take about a third longer", False, {"gradient_checkpointing": True}
    if not _cached(config) and not config.color_aug and not config.random_crop:
        yield "one pass over the pictures before training; steps get faster", False, {"cache_latents": True}
    optimizer = "Lion" if config.use_lion_optimizer else config.optimizer_type or "AdamW"
    row = row_of(resolve(optimizer))
    smaller = row.eight_bit if row and "." not in optimizer and optimizer not in TORCH else None
    if smaller and not config.use_8bit_adam:
        switch = {"use_lion_optimizer": False} if config.use_lion_optimizer else {}
        yield "none; optimizer states are rounded to 8 bit", True, {"optimizer_type": smaller, **switch}
    if config.mixed_precision == "no":
        yield "none, steps get faster; GPUs from before 2020 need fp16 instead", True, {"mixed_precision": "bf16"}
    if family == "sdxl" and not config.cache_text_encoder_outputs and _captions_stay(config):
        values: dict[str, Any] = {"cache_text_encoder_outputs": True}
        if not config.network_train_unet_only:
            values["network_train_unet_only"] = True
        yield "none, steps get faster; the text encoders are not trained", trains(config)[1], values
    if config.mixed_precision != "no" and not config.fp8_base:
        yield "steps take slightly longer; the base model is rounded to 8 bit", True, {"fp8_base": True}
    if config.train_batch_size > 1:
        smallest = next(n for n in range(2, config.train_batch_size + 1) if config.train_batch_size % n == 0)
        values = {
            "train_batch_size": config.train_batch_size // smallest,
            "gradient_accumulation_steps": config.gradient_accumulation_steps * smallest,
        }
        yield "steps take longer: more, smaller batches make up one", False, values


def _captions_stay(config: TrainConfig) -> bool:
    """Whether the text encoders may give their outputs once: neither trained alone nor fed with varying captions."""
    varied = config.shuffle_caption or config.caption_dropout_rate or config.caption_tag_dropout_rate
    return not (varied or config.token_warmup_step or config.network_train_text_encoder_only)
