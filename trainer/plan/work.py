"""How much a run computes: FLOPs of a step, and from them its time on a card and its price."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.config import TrainConfig
from trainer.plan.activations import TOKENS, blocks, recomputed, table
from trainer.plan.cards import SHARE, Card, peak
from trainer.plan.memory import Shape, trains
from trainer.plan.steps import Steps

RANK = 16  # that the table's `step` was counted with


@dataclass(frozen=True)
class Time:
    """An estimate before the run: seconds of a step and of the whole; `cost` where a price an hour is given."""

    card: str
    step_flops: float
    step_seconds: float
    seconds: float
    share_of_peak: float
    cost: float | None = None


def step_flops(
    config: TrainConfig, family: str, latent_pixels: int, images: int | None = None, shape: Shape | None = None
) -> float:
    """FLOPs of forward and backward of one batch, of `images` instead of train_batch_size.

    The table has them as p n + q n² for n latent pixels; what is computed twice and a rank come on top.
    """
    shape, found, n = shape or Shape.usual(family), table(family)["flops"], latent_pixels
    batch = config.train_batch_size if images is None else images
    p, q = found["step"]
    again_p, again_q = found["again"]
    share = len(recomputed(config, family)) / max(1, len(blocks(family)))
    unet = (p + share * again_p) * n + (q + share * again_q) * n * n
    unet += ((config.rank) - RANK) * n * found["rank"]
    tokens = TOKENS * max(1, (config.max_token_length or 75) // 75)
    passes = 0 if config.cache_text_encoder_outputs else 3 if trains(config)[1] else 1  # backward is two of the forward
    return float(batch * (unet * shape.wide + 2.0 * sum(shape.text) * tokens * passes))


def time_of(
    config: TrainConfig, family: str, latent_pixels: int, steps: Steps, card: Card, *, shape: Shape | None = None,
) -> Time:  # fmt: skip
    """How long the run takes on `card`, and what it costs at price_per_hour; `latent_pixels` are a usual image's."""
    share = SHARE["whole" if config.mixed_precision == "no" else "half"]
    flops = step_flops(config, family, latent_pixels, shape=shape) * config.gradient_accumulation_steps
    of_step = flops / (share * peak(card, config.mixed_precision))
    seconds, price = of_step * steps.total, config.price_per_hour
    return Time(card.name, flops, of_step, seconds, share, None if price is None else price * seconds / 3600)
