"""How much memory and disk a run takes, and what to change so that it fits: estimates from counts, without torch.

Weights, adapters, gradients and optimizer states are counted; activations come from a measured table, see
`activations`. `python -m benchmarks.memory` compares the sum with whole steps that were followed tensor by tensor. The
CUDA context and the allocator's waste are rounded figures.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas import optimizers
from schemas.config import TrainConfig
from schemas.families import FAMILIES, ModelSizes
from schemas.files.weights import read_header
from schemas.problems import ConfigError
from schemas.unet import Layer
from trainer.plan.activations import blocks, measured, peak, streamed_numbers, text_bytes
from trainer.plan.adapter import saved_numbers, trained_numbers
from trainer.plan.marks import saves
from trainer.plan.modules import layers_of, of_one_precision, usual
from trainer.plan.steps import Steps

CONTEXT = 600_000_000  # CUDA context, kernels and cuBLAS workspace
WASTE = 0.04  # of everything else: the allocator's rounding and gaps
HOST_PROCESS = 2_000_000_000  # Python, torch and CUDA libraries in one training process
HOST_WORKER = 250_000_000  # one data-loader process beyond what it shares
VAE = 83_653_863  # parameters of the VAE whose widest layers these are:
VAE_PIXEL = {2: 1536, 4: 2048}  # bytes of the encoder's widest layers, by bytes per number
GIB = 1024**3
VOCABULARY = 49_408 + 77  # rows of a text encoder's embeddings
NARROW = {"int8": 1.0, "nf4": 0.5 + 4 / 64}  # bytes of one number of quantize_base, scales included


@dataclass(frozen=True)
class Shape(ModelSizes):
    """The sizes of one base model, and its layers; without `layers` they are those of the family's full size.

    `wide` is the width of its network over that of the full size, with which activations go.
    """

    layers: tuple[Layer, ...] = ()
    wide: float = 1.0

    @classmethod
    def usual(cls, family: str) -> Shape:
        """The family at full size."""
        return cls(**vars(FAMILIES[family].sizes))


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


@dataclass(frozen=True)
class Offer:
    """New values of some arguments, and what they cost."""

    cost: str
    changes_result: bool
    values: dict[str, Any]


def shape_of(family: str, model: str | None = None) -> Shape:
    """The family's sizes, scaled to the parameters of the checkpoint `model` where its headers tell them.

    Weights go with the square of the width, activations with the width.
    """
    usual = Shape.usual(family)
    found = _parameters(family, model) if model else {}

    def ratio(part: str, of: int) -> float:
        scale = found.get(part, of) / of
        return scale if scale and not 0.9 < scale < 1.1 else 1.0  # further tensors of a whole model are no other size

    unet, text, vae = ratio("unet", usual.unet), ratio("text", sum(usual.text)), ratio("vae", usual.vae)
    layers = layers_of(family, model)
    if unet == text == vae == 1.0:
        return dataclasses.replace(usual, layers=layers)
    return dataclasses.replace(
        usual,
        unet=int(usual.unet * unet),
        text=tuple(int(count * text) for count in usual.text),
        text_layers=tuple((layers, int(width * math.sqrt(text))) for layers, width in usual.text_layers),
        vae=int(usual.vae * vae),
        layers=layers,
        wide=math.sqrt(unet),
    )


def _parameters(family: str, model: str) -> dict[str, int]:
    """Numbers in the U-Net, the text encoders and the VAE; parts whose header cannot be read are left out."""
    place, facts = Path(model), FAMILIES[family]
    counts: dict[str, int] = {}
    try:
        if place.is_dir():
            for part, folders in facts.folders.items():
                files = [file for folder in folders for file in of_one_precision(place / folder)]
                counts[part] = sum(_numbers(file, ("",)) for file in files)
        elif place.suffix.lower() == ".safetensors":
            counts = {part: _numbers(place, prefixes) for part, prefixes in facts.prefixes.items()}
    except ConfigError:
        return {}
    return {part: count for part, count in counts.items() if count}


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
    return trained_numbers(config, family, (shape or Shape.usual(family)).layers or usual(family))


def optimizer_bytes(config: TrainConfig) -> float:
    """Bytes of optimizer state for each trained number, wherever it lies."""
    chosen, _ = optimizers.read(config)
    return chosen.state if chosen.eight_bit else chosen.state * adapter_bytes(config) / 4


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
    shape, size = shape or Shape.usual(family), number_bytes(config)
    trained = adapter_parameters(config, family, shape)
    states = int(trained * optimizer_bytes(config))
    paged = optimizers.read(config)[0].paged
    saved = saved_numbers(config, family, shape.layers or usual(family))
    parts = {
        "unet": unet_bytes(config, family, shape),
        "text_encoders": 0 if config.cache_text_encoder_outputs else text_encoder_bytes(config, shape),
        "vae": 0 if _cached(config) else shape.vae * (4 if config.no_half_vae else size),
        "adapter": saved * adapter_bytes(config),
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


def unet_bytes(config: TrainConfig, family: str, shape: Shape) -> int:
    """The U-Net on the device: all of it, or without its streamed blocks and with two buffers for them."""
    narrow = NARROW.get(config.quantize_base or "") or (1.0 if config.fp8_base or config.fp8_base_unet else None)
    of_number = narrow or float(number_bytes(config))
    away, buffers = streamed_numbers(family, config.streamed_blocks)
    return int((shape.unet - (away - min(away, buffers)) * shape.wide**2) * of_number)


def text_encoder_bytes(config: TrainConfig, shape: Shape) -> int:
    """The text encoders on the device; 8-bit storage leaves their embeddings as they are."""
    size = number_bytes(config)
    embedded = sum(VOCABULARY * width for _, width in shape.text_layers)
    return size * embedded + (1 if config.fp8_base else size) * (sum(shape.text) - embedded)


def _cached(config: TrainConfig) -> bool:
    return config.cache_latents or config.cache_latents_to_disk


def activation_bytes(
    config: TrainConfig, family: str, largest_bucket: tuple[int, int], shape: Shape | None = None
) -> int:
    """Most bytes of forward and backward beyond weights and the adapter's gradients, which arrive one by one."""
    shape, size = shape or Shape.usual(family), number_bytes(config)
    pixels = largest_bucket[0] * largest_bucket[1]
    latent_pixels = pixels // FAMILIES[family].latents.side ** 2
    if measured(family):
        gradients = adapter_parameters(config, family, shape) * adapter_bytes(config)
        training = int((peak(config, family, latent_pixels, gradients) - gradients) * shape.wide)
    else:  # by the row's sizes: once kept, once as gradients of the running block
        block = shape.block[size]
        of_pixel = shape.marks[size] + 2 * block if config.gradient_checkpointing else shape.kept[size] + block
        training = int(of_pixel * config.train_batch_size * latent_pixels * shape.wide)
    if measured(family) and trains(config)[1] and not config.cache_text_encoder_outputs:
        training += text_bytes(config, family)
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
    saved = saved_numbers(config, family, (shape or Shape.usual(family)).layers or usual(family))
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
    form = FAMILIES[family].latents
    latents = cached_pixels // form.side**2 * form.channels * 4 * (2 if config.flip_aug else 1)  # of float32
    tokens = 75 * ((config.max_token_length or 75) // 75) + 2
    sizes = FAMILIES[family].sizes
    texts = cached_captions * (tokens * sum(width for _, width in sizes.text_layers) + sizes.pooled) * 4
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

    def used(one: TrainConfig) -> int:
        return estimate(one, family, largest_bucket, shape=shape).device_bytes

    limit, changed = vram_gb * GIB, config
    taken: list[Offer] = []
    while used(changed) > limit:
        helping = (offer for offer in _offers(changed, family) if used(_with(changed, offer)) < used(changed))
        offer = next(helping, None)
        if offer is None:
            break
        taken.append(offer)
        changed = _with(changed, offer)
    else:
        taken = list(_eased(config, taken, family, lambda one: used(one) <= limit))
    return _merged(list(_as_changes(config, taken, used)))


def _with(config: TrainConfig, *offers: Offer) -> TrainConfig:
    for offer in offers:
        config = dataclasses.replace(config, **offer.values)
    return config


def _eased(
    config: TrainConfig, taken: list[Offer], family: str, fits: Callable[[TrainConfig], bool]
) -> Iterator[Offer]:
    """The offers with no more blocks streamed, and then no more checkpointed, than it takes to fit."""
    most = len(blocks(family))
    for name, head in (("streamed_blocks", "streamed_blocks"), ("checkpointed_blocks", "gradient_checkpointing")):
        place = next((index for index, offer in enumerate(taken) if head in offer.values), None)
        if place is None:
            continue

        of = functools.partial(_counted, taken, place, name)
        least = 1 + bisect_left(range(1, most), True, key=lambda count: fits(_with(config, *of(count))))
        if least < most:
            taken = of(least)
    for offer in taken:
        count = offer.values.get("streamed_blocks") or offer.values.get("checkpointed_blocks") or most
        yield dataclasses.replace(offer, cost=offer.cost.format(count=count, most=most, share=33 * count // most))


def _counted(taken: list[Offer], place: int, name: str, count: int) -> list[Offer]:
    """`taken`, the offer at `place` with argument `name` = `count`."""
    offer = dataclasses.replace(taken[place], values=taken[place].values | {name: count})
    return [*taken[:place], offer, *taken[place + 1 :]]


def _as_changes(config: TrainConfig, taken: list[Offer], used: Callable[[TrainConfig], int]) -> Iterator[Change]:
    """One change for each argument; those that only work together save with the first."""
    for offer in taken:
        before, config = config, _with(config, offer)
        saved = used(before) - used(config)
        for index, (name, value) in enumerate(offer.values.items()):
            cost = offer.cost if index == 0 else f"goes with {next(iter(offer.values))}"
            yield Change(name, getattr(before, name), value, 0 if index else saved, cost, offer.changes_result)


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


def _offers(config: TrainConfig, family: str) -> Iterator[Offer]:
    """What could still be changed, the least harmful first."""
    cached = "one pass over the images before training; steps get faster"
    if not _cached(config) and not config.color_aug and not config.random_crop:
        yield Offer(cached, False, {"cache_latents": True})
    if not config.gradient_checkpointing:
        partly = "{count} of {most} blocks are computed twice: steps take about {share} % longer"
        again = partly if blocks(family) else "steps take about a third longer"
        yield Offer(again, False, {"gradient_checkpointing": True})
    if FAMILIES[family].caches_text and not config.cache_text_encoder_outputs and _captions_stay(config):
        if not trains(config)[1]:
            values: dict[str, Any] = {"cache_text_encoder_outputs": True}
            values |= {} if config.network_train_unet_only else {"network_train_unet_only": True}
            yield Offer("none, steps get faster; the text encoders are not trained anyway", False, values)
    if config.mixed_precision == "no":
        yield Offer(
            "none, steps get faster; GPUs from before 2020 need fp16 instead", True, {"mixed_precision": "bf16"}
        )
    if not config.streamed_blocks and not config.torch_compile and blocks(family):
        away = "{count} of {most} blocks wait in main memory and are fetched for each use: steps take longer"
        yield Offer(away, False, {"streamed_blocks": len(blocks(family))})
    yield from _offers_that_round(config, family)
    if config.train_batch_size > 1:
        smallest = next(n for n in range(2, config.train_batch_size + 1) if config.train_batch_size % n == 0)
        accumulated = config.gradient_accumulation_steps * smallest
        values = {"train_batch_size": config.train_batch_size // smallest, "gradient_accumulation_steps": accumulated}
        yield Offer("steps take longer: more, smaller batches make up one", False, values)


def _offers_that_round(config: TrainConfig, family: str) -> Iterator[Offer]:
    """Those that change what is learnt a little."""
    chosen, _ = optimizers.read(config)
    if chosen.by_name and chosen.row is not None and chosen.row.eight_bit:
        switch = {"use_lion_optimizer": False} if config.use_lion_optimizer else {}
        values = {"optimizer_type": chosen.row.eight_bit, **switch}
        yield Offer("none; optimizer states are rounded to 8 bit", True, values)
    if FAMILIES[family].caches_text and not config.cache_text_encoder_outputs and _captions_stay(config):
        values = {"cache_text_encoder_outputs": True, "network_train_unet_only": True}
        yield Offer("none, steps get faster; the text encoders are not trained", True, values)
    if config.mixed_precision != "no" and not config.fp8_base:
        yield Offer("steps take slightly longer; the base model is rounded to 8 bit", True, {"fp8_base": True})
    if config.quantize_base != "nf4" and blocks(family):
        yield Offer("steps take longer; the base model is rounded to 4 bit", True, {"quantize_base": "nf4"})


def _captions_stay(config: TrainConfig) -> bool:
    """Whether the text encoders may give their outputs once: neither trained alone nor fed with varying captions."""
    varied = config.shuffle_caption or config.caption_dropout_rate or config.caption_tag_dropout_rate
    return not (varied or config.token_warmup_step or config.network_train_text_encoder_only)
