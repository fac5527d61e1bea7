"""Every setting of a dataset_config as one row: where it may stand, what it may be, what it means (section 2.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from schemas.argument import Argument
from schemas.config import Option, table
from schemas.files.places import fault_of_path
from schemas.problems import Problem

Kind = Literal["dreambooth", "finetuning", "controlnet"]
Form = Literal["int", "bool", "str", "path", "float", "pair", "table", "filter", "resolution"]
Level = Literal["general", "dataset", "subset"]
Size = tuple[int, int]
FILTERS = ("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box")
WORDS: dict[Form, str] = {
    "int": "a whole number", "bool": "true or false", "str": "text", "path": "text", "float": "a number",
    "pair": "two numbers", "table": "a table", "filter": "one of " + ", ".join(FILTERS),
    "resolution": "a whole number or [width, height]",
}  # fmt: skip
CAPTIONED: tuple[Kind, ...] = ("dreambooth", "controlnet")
ALL: tuple[Kind, ...] = ("dreambooth", "finetuning", "controlnet")
SMALLEST = 64  # pixels of a side of resolution


@dataclass(frozen=True)
class Setting:
    """One setting.

    `level` is where it may stand: in a subset only, in a dataset and [general] only, or anywhere. `kinds` of dataset
    know it, `needed` of them must have it. `argument` is the option that counts where it is not given, of its own name
    unless said otherwise. `idle` says why it has no effect. `meaning` is the sentence where the option's is not it.
    """

    form: Form
    level: Literal["anywhere", "dataset", "subset"] = "anywhere"
    kinds: tuple[Kind, ...] = ALL
    needed: tuple[Kind, ...] = ()
    argument: str = ""
    idle: str = ""
    meaning: str = ""


SETTINGS: dict[str, Setting] = {
    "image_dir": Setting("path", "subset", needed=CAPTIONED, meaning="Folder of the pictures, without subfolders."),
    "metadata_file": Setting("path", "subset", ("finetuning",), ("finetuning",),
                             meaning="JSON with captions and sizes by picture (fine-tuning form)."),
    "conditioning_data_dir": Setting("path", "subset", ("controlnet",), ("controlnet",),
                                     meaning="Folder of control pictures (ControlNet form)."),
    "is_reg": Setting("bool", "subset", ("dreambooth",), meaning="These are regularisation pictures."),
    "alpha_mask": Setting("bool", "subset", ("dreambooth", "finetuning"),
                          meaning="Use the alpha channel as loss mask."),
    "num_repeats": Setting("int", argument="dataset_repeats", meaning="Times that each picture is seen per epoch."),
    "caption_extension": Setting("str", kinds=CAPTIONED),
    "class_tokens": Setting("str", kinds=("dreambooth",), meaning="Caption of pictures that have none."),
    "cache_info": Setting("bool", kinds=CAPTIONED,
                          meaning="Remember sizes and captions in the folder, for a faster start."),
    "shuffle_caption": Setting("bool"),
    "caption_separator": Setting("str"),
    "keep_tokens": Setting("int"),
    "keep_tokens_separator": Setting("str"),
    "secondary_separator": Setting("str"),
    "enable_wildcard": Setting("bool"),
    "caption_prefix": Setting("str"),
    "caption_suffix": Setting("str"),
    "caption_dropout_rate": Setting("float"),
    "caption_dropout_every_n_epochs": Setting("int"),
    "caption_tag_dropout_rate": Setting("float"),
    "token_warmup_min": Setting("int"),
    "token_warmup_step": Setting("float"),
    "color_aug": Setting("bool"),
    "flip_aug": Setting("bool"),
    "face_crop_aug_range": Setting("pair"),
    "random_crop": Setting("bool"),
    "resize_interpolation": Setting("filter"),
    "custom_attributes": Setting("table", meaning="A table; diff_output_preservation = true holds these pictures to"
                                 " the bare model's output."),
    "batch_size": Setting("int", "dataset", argument="train_batch_size",
                          meaning="Pictures per step (train_batch_size)."),
    "resolution": Setting("resolution", "dataset"),
    "enable_bucket": Setting("bool", "dataset"),
    "min_bucket_reso": Setting("int", "dataset"),
    "max_bucket_reso": Setting("int", "dataset"),
    "bucket_reso_steps": Setting("int", "dataset"),
    "bucket_no_upscale": Setting("bool", "dataset"),
    "network_multiplier": Setting("float", "dataset", idle="the adapter trains at strength 1 on every dataset",
                                  meaning="Has no effect: the adapter trains at strength 1 on every dataset."),
    "validation_seed": Setting("int", "dataset", meaning="Seed of the choice of validation pictures."),
    "validation_split": Setting("float", "dataset",
                                meaning="Share of the pictures that is kept for validation."),
}  # fmt: skip


def option_of(name: str) -> Option | None:
    """The option that gives a setting's value where no table does."""
    setting = SETTINGS.get(name)
    return table().get((setting.argument if setting else "") or name)


def may_stand(place: Level, kind: Kind | None = None) -> dict[str, Setting]:
    """The settings that a table may hold; in [general], and without `kind`, those of any kind of dataset."""
    without = "dataset" if place == "subset" else "subset"
    return {name: row for name, row in SETTINGS.items() if row.level != without and (kind is None or kind in row.kinds)}


def wrong(name: str, value: Any) -> str | None:
    """What a value must be that is not of its setting's type or not within its bounds; None where it is.

    Whole numbers pass as floats, other than in the reference. A path's fault is `fault_of_path`'s.
    """
    setting, option = SETTINGS[name], option_of(name)
    if setting.form == "path" and isinstance(value, str):
        fault = fault_of_path(value)
        return fault[0] if fault else None
    bounds = {mark: option.marks[mark] for mark in ("ge", "le") if option and mark in option.marks}
    within = not isinstance(value, (int, float)) or bounds.get("ge", value) <= value <= bounds.get("le", value)
    if _fits(setting.form, value) and within:
        return None
    said = " and ".join(f"{'at least' if mark == 'ge' else 'at most'} {bound}" for mark, bound in bounds.items())
    return f"must be {WORDS[setting.form]}" + (f" of {said}" if said else "")


def _fits(form: Form, value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    match form:
        case "resolution":
            return (whole and value > 0) or (pair and all(type(side) is int and side > 0 for side in value))
        case "pair":
            return pair and all(type(end) in (int, float) for end in value)
        case "filter":
            return value in FILTERS
        case "table":
            return isinstance(value, Mapping)
        case "int":
            return whole
        case "float":
            return whole or isinstance(value, float)
        case "bool":
            return isinstance(value, bool)
    return isinstance(value, str)


SIDES, ENDS = Argument("wholes", ge=SMALLEST), Argument("numbers", gt=0, count=2)


def parse_resolution(value: Any) -> tuple[Size | None, list[Problem]]:
    """(width, height) of 512, "512", "512,768" or [512, 768]; None where there is none."""
    if value in (None, ""):
        return None, []
    try:
        sides = SIDES.read(value) if isinstance(value, str) else tuple(value) if isinstance(value, list) else (value,)
    except ValueError:
        sides = ()
    if len(sides) in (1, 2) and SIDES.fits(sides):
        return (sides[0], sides[-1]), []
    must = f"must be one number or width,height, each at least {SMALLEST}"
    return None, [Problem(code="bad-resolution", key="resolution", got=value, must=must,
                          fix="--set resolution=512,512")]  # fmt: skip


def parse_range(value: Any) -> tuple[tuple[float, float] | None, list[Problem]]:
    """(least, most) of "2.0,4.0" or [2.0, 4.0]; None where there is none."""
    if value in (None, ""):
        return None, []
    try:
        ends = ENDS.read(value) if isinstance(value, str) else tuple(value)
    except ValueError:
        ends = ()
    if ENDS.fits(ends) and ends[0] <= ends[1]:
        return (float(ends[0]), float(ends[1])), []
    return None, [Problem(code="bad-range", key="face_crop_aug_range", got=value, fix="write for example 2.0,4.0",
                          must="must be two numbers above 0, the smaller first")]  # fmt: skip
