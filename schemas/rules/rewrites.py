"""The reference's silent rewrites (section 17), made visible."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from schemas import optimizers
from schemas.config import TrainConfig


@dataclass(frozen=True)
class Rewrite:
    """One option that trains with another value than the one given."""

    argument: str
    before: Any
    after: Any
    why: str


def effective(config: TrainConfig) -> tuple[TrainConfig, list[Rewrite]]:
    """The config as it trains, and what was changed on the way. Applying it twice changes nothing more."""
    done: list[Rewrite] = []
    for step in (_defaults, _old_names, _caches, _marks, _bucket_limits, _adafactor):
        for change in step(config):
            done.append(change)
            config = dataclasses.replace(config, **{change.argument: change.after})
    return config, done


def _change(config: TrainConfig, argument: str, after: Any, why: str) -> list[Rewrite]:
    before = getattr(config, argument)
    return [] if before == after else [Rewrite(argument, before, after, why)]


def _defaults(config: TrainConfig) -> list[Rewrite]:
    return [] if config.network_module else _change(config, "network_module", "networks.lora", "it is the usual LoRA")


def _old_names(config: TrainConfig) -> list[Rewrite]:
    done: list[Rewrite] = []
    if config.caption_extention is not None:
        done += _change(config, "caption_extension", config.caption_extention, "caption_extention is its old spelling")
        done += _change(config, "caption_extention", None, "moved to caption_extension")
    if not config.optimizer_type and config.use_8bit_adam != config.use_lion_optimizer:
        old = "use_8bit_adam" if config.use_8bit_adam else "use_lion_optimizer"
        name = optimizers.OLD[old]
        done += _change(config, "optimizer_type", name, f"{old} is its old form")
        done += _change(config, old, False, "moved to optimizer_type")
    return done


def _caches(config: TrainConfig) -> list[Rewrite]:
    done: list[Rewrite] = []
    for base in ("cache_latents", "cache_text_encoder_outputs"):
        if getattr(config, f"{base}_to_disk"):
            done += _change(config, base, True, f"{base}_to_disk includes it")
    return done


def _marks(config: TrainConfig) -> list[Rewrite]:
    done: list[Rewrite] = []
    for name in (
        "sample_every_n_steps",
        "sample_every_n_epochs",
        "save_every_n_steps",
        "save_every_n_epochs",
        "save_n_epoch_ratio",
        "validate_every_n_steps",
        "validate_every_n_epochs",
        "max_validation_steps",
        "scale_weight_norms",
    ):
        value = getattr(config, name)
        if value is not None and value <= 0:
            done += _change(config, name, None, "0 turns it off")
    if config.save_n_epoch_ratio and config.max_train_epochs:
        every = max(1, config.max_train_epochs // config.save_n_epoch_ratio)
        done += _change(config, "save_every_n_epochs", every, "save_n_epoch_ratio decides it")
    return done


def _bucket_limits(config: TrainConfig) -> list[Rewrite]:
    if not config.enable_bucket or config.bucket_no_upscale:
        return []
    step = config.bucket_reso_steps
    why = "a multiple of bucket_reso_steps"
    low = max(step, config.min_bucket_reso // step * step)
    high = -(-config.max_bucket_reso // step) * step
    return _change(config, "min_bucket_reso", low, why) + _change(config, "max_bucket_reso", high, why)


def _adafactor(config: TrainConfig) -> list[Rewrite]:
    """Relative steps: Adafactor makes its own rate, learning_rate is only what is reported first (section 8.3)."""
    if not optimizers.read(config)[0].relative_step:
        return []
    why = "Adafactor's relative_step makes its own rate"
    done: list[Rewrite] = []
    if not config.lr_scheduler.startswith("adafactor:"):
        done += _change(config, "lr_scheduler", f"adafactor:{config.learning_rate}", why)
    # a rate of 0 still says which part is not trained, so it stays; so does the rate of a part beside a learning_rate 0
    if not config.learning_rate:
        return done
    if config.unet_lr:
        done += _change(config, "unet_lr", None, why)
    if config.text_encoder_lr and all(config.text_encoder_lr):
        done += _change(config, "text_encoder_lr", (), why)
    return done
