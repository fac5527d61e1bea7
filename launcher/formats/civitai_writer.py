"""Arguments as the training JSON of CivitAI's site, and what the site has no word for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.formats.civitai import ARGUMENTS, ORDER, RANGES, SITE_SCHEDULERS
from launcher.formats.kohya_gui.table import hidden
from launcher.formats.kohya_gui.writer import same
from schemas.config import BadValue, Option, read_value, table

ELSEWHERE = (
    "pretrained_model_name_or_path", "train_data_dir", "reg_data_dir", "output_dir", "output_name", "logging_dir",
)  # fmt: skip
SITE_OPTIMIZERS = {"adamw8bit": "AdamW8Bit", "adafactor": "Adafactor", "prodigy": "Prodigy"}


def write(
    arguments: Mapping[str, Any], *, num_repeats: int | None = None, pictures: int | None = None
) -> tuple[str, list[str]]:
    """(JSON text in the site's order, what it cannot say). `arguments` hold sd-scripts names and values."""
    given = _telling(arguments)
    found, said, lost = _spoken(arguments, given)
    if num_repeats is not None:
        found["numRepeats"] = num_repeats
    epochs, batch = found.get("maxTrainEpochs"), found["trainBatchSize"]
    if pictures and epochs:
        found["targetSteps"] = math.ceil(pictures * (num_repeats or 200) * epochs / batch)
    if not epochs:
        steps = arguments.get("max_train_steps") or table()["max_train_steps"].default
        lost.append(f"max_train_steps = {steps}: the site counts epochs, and none are given; add maxTrainEpochs")
        said.add("max_train_steps")
    elif "max_train_steps" in given:
        said.add("max_train_steps")  # epochs overrule it
    for name, value in sorted(given.items()):
        if name not in said:
            why = "the site asks for it elsewhere" if name in ELSEWHERE else "the site has no such setting"
            lost.append(f"{name} = {_plain(hidden(name, value))}: {why}")
    for key, (low, high) in RANGES.items():
        value = found.get(key)
        if value is not None and not low <= value <= high:
            lost.append(f"{key} = {value}: the site takes {low} to {high}")
    return json.dumps({key: found[key] for key in ORDER if key in found}, indent=2) + "\n", lost


def _telling(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that train or say something else than their default does."""
    options = table()
    plain = {name: option.default for name, option in options.items()}
    given = {name: _read(options[name], value) for name, value in arguments.items() if name in options}
    mine, default = same({**plain, **given}), same(plain)
    return {
        name: value
        for name, value in arguments.items()
        if value not in (None, [], ()) and (name not in options or mine[name] != default[name])
    }


def _read(option: Option, value: Any) -> Any:
    try:
        return read_value(option, value)[0]
    except BadValue:
        return value


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _spoken(arguments: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], set[str], list[str]]:
    """(keys, arguments that they say, arguments of which they say only a part)."""
    options = table()
    lost: list[str] = []

    def value(name: str) -> Any:
        return arguments[name] if arguments.get(name) is not None else options[name].default

    said = {*ARGUMENTS.values(), "learning_rate", "network_train_unet_only", "caption_extension", "max_bucket_reso"}
    rates: Sequence[float] = value("text_encoder_lr")
    side = _side(str(value("resolution") or "512"), lost)
    name = str(value("optimizer_type") or "AdamW")
    site = SITE_OPTIMIZERS.get(name.lower())
    if site is None:
        lost.append(f"optimizer_type = {name}: the site has AdamW8Bit, Adafactor and Prodigy; AdamW8Bit written")
    scheduler = value("lr_scheduler")
    if scheduler not in SITE_SCHEDULERS:
        lost.append(f"lr_scheduler = {scheduler}: the site has {', '.join(SITE_SCHEDULERS)}; constant written")
        scheduler = "constant"
    if given.get("network_module", "networks.lora") != "networks.lora":
        lost.append(f"network_module = {given['network_module']}: the site trains networks.lora only")
    if "save_every_n_steps" in given:
        lost.append(f"save_every_n_steps = {given['save_every_n_steps']}: the site saves after each epoch")
    if "save_every_n_epochs" in given and given["save_every_n_epochs"] == 1:
        said.add("save_every_n_epochs")
    unet_only = value("network_train_unet_only")
    unet = value("unet_lr") if arguments.get("unet_lr") is not None else value("learning_rate")
    found = {
        "engine": "kohya",
        "unetLR": unet,
        "clipSkip": value("clip_skip") or 1,
        "loraType": "lora",
        "keepTokens": value("keep_tokens"),
        "networkDim": value("network_dim") or 4,
        "resolution": side,
        "lrScheduler": scheduler,
        "minSnrGamma": value("min_snr_gamma") or 0,
        "noiseOffset": value("noise_offset") or 0,
        "enableBucket": value("enable_bucket"),
        "networkAlpha": value("network_alpha"),
        "optimizerArgs": ", ".join(value("optimizer_args")) or None,
        "optimizerType": site or "AdamW8Bit",
        "textEncoderLR": 0 if unet_only else rates[0] if rates else value("learning_rate"),
        "maxTrainEpochs": value("max_train_epochs"),
        "shuffleCaption": value("shuffle_caption"),
        "trainBatchSize": value("train_batch_size"),
        "flipAugmentation": value("flip_aug"),
        "lrSchedulerNumCycles": value("lr_scheduler_num_cycles"),
    }
    whole = {
        key: int(number) if isinstance(number, float) and number.is_integer() else number
        for key, number in found.items()
    }
    return {key: number for key, number in whole.items() if number is not None}, said, lost


def _side(resolution: str, lost: list[str]) -> int:
    """The side of the square that the site trains; what that leaves out goes to `lost`."""
    sides = [side.strip() for side in resolution.split(",")]
    if not all(side.isascii() and side.isdigit() for side in sides):
        lost.append(f"resolution = {resolution}: is no size; 512 written")
        return 512
    if len(set(sides)) > 1:
        lost.append(f"resolution = {resolution}: the site trains square; {sides[0]} written")
    return int(sides[0])
