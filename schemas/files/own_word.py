"""What a base model says of how it was trained: of v-prediction, of zero terminal SNR, of what its U-Net reads.

A single file says it by tensors named v_pred and ztsnr and by the modelspec keys of its header; a diffusers folder by
its scheduler's and U-Net's config. What a config leaves open follows it; a contradiction is an error, but for what the
command line says.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.config import TrainConfig
from schemas.files.weights import PICKLES, json_file, read_header
from schemas.problems import Problem

UNET_IN = ("model.diffusion_model.input_blocks.0.0.weight", "input_blocks.0.0.weight", "conv_in.weight")
MARKS = {"v_pred": "v_parameterization", "ztsnr": "zero_terminal_snr"}  # tensors whose mere presence says it
PREDICTIONS = {"v": True, "v_prediction": True, "v-prediction": True, "vpred": True, "velocity": True,
               "eps": False, "epsilon": False}  # fmt: skip
SPEC = ("modelspec.prediction_type", "modelspec.predict_key")
OTHER_INPUTS = {9: "an inpainting model", 8: "an editing model (instruct-pix2pix)", 5: "a depth model"}
WORDS = {"v_parameterization": ("predicts noise", "predicts v (velocity)"),
         "zero_terminal_snr": ("has no zero terminal SNR", "was trained with zero terminal SNR")}  # fmt: skip


@dataclass(frozen=True)
class OwnWord:
    """`values`: argument -> what the model says; `where`: argument -> how it says it; `channels` its U-Net reads."""

    values: dict[str, bool] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    channels: int | None = None

    def said(self, name: str) -> str:
        """In a sentence, what the model says about an argument."""
        return f"the base model {WORDS[name][self.values[name]]}, as its {self.where[name]} says"


def own_word(model: str | os.PathLike[str]) -> OwnWord:
    """The word of a checkpoint or diffusers folder; nothing of a pickle. ConfigError for a header that is damaged."""
    place = Path(model)
    if place.is_dir():
        return _of_folder(place)
    if place.suffix.lower() in PICKLES:
        return OwnWord()
    header = read_header(place)
    return of_file({name: info.shape for name, info in header.tensors.items()}, header.metadata)


def of_file(shapes: dict[str, tuple[int, ...]], metadata: dict[str, str]) -> OwnWord:
    """The word of a single file's tensors and header."""
    values, where = {}, {}
    for key in SPEC:
        said = PREDICTIONS.get(str(metadata.get(key, "")).strip().lower())
        if said is not None and "v_parameterization" not in values:
            values["v_parameterization"], where["v_parameterization"] = said, f"header ({key})"
    for name, argument in MARKS.items():
        if name in shapes:
            values[argument], where[argument] = True, f"tensor {name}"
    first = next((shapes[name] for name in UNET_IN if len(shapes.get(name, ())) == 4), None)
    return OwnWord(values, where, first[1] if first else None)


def _of_folder(folder: Path) -> OwnWord:
    scheduler, unet = json_file(folder / "scheduler" / "scheduler_config.json"), json_file(folder / "unet/config.json")
    values, where = {}, {}
    said = PREDICTIONS.get(str(scheduler.get("prediction_type")).lower())
    if said is not None:
        values["v_parameterization"], where["v_parameterization"] = said, "scheduler_config.json (prediction_type)"
    if scheduler.get("rescale_betas_zero_snr") is True:  # false is what diffusers writes where nobody has asked
        values["zero_terminal_snr"] = True
        where["zero_terminal_snr"] = "scheduler_config.json (rescale_betas_zero_snr)"
    channels = unet.get("in_channels")
    return OwnWord(values, where, channels if isinstance(channels, int) else None)


def settle(
    word: OwnWord, config: TrainConfig, given: Collection[str], typed: Collection[str]
) -> tuple[dict[str, bool], list[Problem]]:
    """(arguments that the config leaves open and the model turns on, everything to be said).

    `given` are the arguments that the config states, `typed` those of them that the command line does.
    """
    open_ = {name: True for name, value in word.values.items() if value and name not in given}
    velocity = config.v_parameterization or "v_parameterization" in open_
    if not velocity:
        open_.pop("zero_terminal_snr", None)  # it goes with v alone
    found = [_filled(word, name) for name in open_]
    for name, value in word.values.items():
        mine = getattr(config, name)
        if name in given and mine != value and (velocity or name != "zero_terminal_snr"):
            found.append(_contradiction(word, name, mine, insisted=name in typed))
    return open_, found


def _filled(word: OwnWord, name: str) -> Problem:
    return Problem(
        code="from-base-model",
        severity="note",
        key=name,
        got=True,
        must=f"is taken: {word.said(name)}",
        fix=f"--set {name}=false to train otherwise",
    )


def _contradiction(word: OwnWord, name: str, mine: bool, *, insisted: bool) -> Problem:
    fix = f"--set {name}={str(not mine).lower()}"
    return Problem(
        code="base-model-contradicts",
        severity="warning" if insisted else "error",
        key=name,
        got=mine,
        must=word.said(name),
        fix=fix if insisted else f"{fix}, or --set {name}={str(mine).lower()} to insist",
    )


def other_input(word: OwnWord, model: Any) -> Iterator[Problem]:
    """A U-Net that reads more than the noisy image cannot be trained here."""
    if word.channels not in (None, 4):
        what = OTHER_INPUTS.get(int(word.channels or 0), "a model with further inputs")
        yield Problem(
            code="wrong-input",
            key="pretrained_model_name_or_path",
            got=str(model),
            must=f"is {what}: its U-Net has {word.channels} input channels, 4 are needed",
            fix="--set pretrained_model_name_or_path=MODEL with the base model that makes images from text alone",
        )
