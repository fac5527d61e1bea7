"""The training JSON of CivitAI's on-site trainer, kohya form and ai-toolkit form, both ways.

Facts: reference notes on the site's trainer at its state of 2026-08.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from launcher.formats import civitai_text, sd_scripts
from launcher.formats.base import Draft, Fate, Setting
from schemas.config import table
from schemas.files.documents import parse_json
from schemas.problems import Problem
from schemas.schedulers import SCHEDULERS
from schemas.terminal import shell_word

# the order in which the site's database prints them
ORDER = (
    "engine", "unetLR", "clipSkip", "loraType", "keepTokens", "networkDim", "numRepeats", "resolution", "lrScheduler",
    "minSnrGamma", "noiseOffset", "targetSteps", "enableBucket", "networkAlpha", "optimizerArgs", "optimizerType",
    "textEncoderLR", "maxTrainEpochs", "shuffleCaption", "trainBatchSize", "flipAugmentation", "lrSchedulerNumCycles",
)  # fmt: skip
ARGUMENTS: dict[str, str] = {
    "unetLR": "unet_lr",
    "clipSkip": "clip_skip",
    "keepTokens": "keep_tokens",
    "networkDim": "network_dim",
    "resolution": "resolution",
    "lrScheduler": "lr_scheduler",
    "minSnrGamma": "min_snr_gamma",
    "noiseOffset": "noise_offset",
    "enableBucket": "enable_bucket",
    "networkAlpha": "network_alpha",
    "optimizerArgs": "optimizer_args",
    "optimizerType": "optimizer_type",
    "textEncoderLR": "text_encoder_lr",
    "maxTrainEpochs": "max_train_epochs",
    "shuffleCaption": "shuffle_caption",
    "trainBatchSize": "train_batch_size",
    "flipAugmentation": "flip_aug",
    "lrSchedulerNumCycles": "lr_scheduler_num_cycles",
    "saveEvery": "save_every_n_steps",
    "loraType": "network_module",
}
# names of the ai-toolkit form -> those of the kohya form
AI_TOOLKIT: dict[str, str] = {
    "lr": "unetLR",
    "textEncoderLr": "textEncoderLR",
    "batchSize": "trainBatchSize",
    "shuffleTokens": "shuffleCaption",
    "epochs": "maxTrainEpochs",
}
NOT_ARGUMENTS: dict[str, str] = {
    "engine": "which trainer the site used",
    "ecosystem": "the model family",
    "modelVariant": "the variant of the base model",
    "baseModel": "the base model's name on the site",
    "baseModelType": "the model family",
    "sampleCfgScale": "for the site's previews",
    "sampleStrength": "for the site's previews",
    "continueFrom": "a model id of the site; give a file with network_weights",
    "type": "the kind of model",
    "mediaType": "pictures or video",
    "staging": "the site's own",
    "highPriority": "the site's own",
    "$schema": "tells editors the schema",
    "samplePrompts": "for the site's previews",
    "negativePrompt": "for the site's previews",
}
SITE_SCHEDULERS = ("constant", "cosine", "cosine_with_restarts", "linear")
OPTIMIZERS = {"adamw8bit": "AdamW8bit", "adafactor": "AdaFactor", "prodigy": "Prodigy"}
HIDDEN = {
    "AdamW8bit": ["weight_decay=0.1"],
    "AdaFactor": ["scale_parameter=False", "relative_step=False", "warmup_init=False"],
    "Prodigy": ["weight_decay=0.5", "decouple=True", "betas=0.9,0.99", "use_bias_correction=False"],
}
BASES = {
    **dict.fromkeys(("sd_1_5", "anime", "semi", "realistic", "sd1"), "sd15"),
    **dict.fromkeys(("sdxl", "pony", "illustrious"), "sdxl"),
    **dict.fromkeys(("flux", "flux_dev", "flux1", "chroma"), "flux"),
    "sd3": "sd3",
}
RANGES: dict[str, tuple[float, float]] = {
    "maxTrainEpochs": (1, 500), "numRepeats": (1, 5000), "trainBatchSize": (1, 9), "targetSteps": (1, 10000),
    "resolution": (512, 2048), "keepTokens": (0, 3), "clipSkip": (0, 4), "unetLR": (0, 1), "textEncoderLR": (0, 1),
    "lrSchedulerNumCycles": (1, 4), "minSnrGamma": (0, 20), "networkDim": (1, 256), "networkAlpha": (1, 256),
    "noiseOffset": (0, 1),
}  # fmt: skip


def read(text: str, *, file: str | None = None, overrides: Mapping[str, Any] | None = None) -> Draft:
    """The draft of a training JSON, however pasted. `overrides` are keys of the JSON laid over it."""
    mended = civitai_text.parse(text, file)
    params, outer = _unwrap(mended.values)
    params = {
        **params,
        **{key: _literal(value) for key, value in (overrides or {}).items() if key in ORDER or key in NOT_ARGUMENTS},
    }
    draft = Draft(format="civitai", file=file, problems=mended.problems)
    draft.document = {key: value for key, value in _unwrap(mended.values)[0].items() if value not in (None, "")}
    draft.lines = {key: line for key, line in mended.lines.items() if key in params or key in outer}
    for key in outer:
        draft.keys[key] = Fate("no-effect", None, None, NOT_ARGUMENTS.get(key, "the site's own"))
    draft.family = _family(params, outer, draft)
    engine = str(params.get("engine") or ("ai-toolkit" if "ecosystem" in params else "kohya"))
    if engine == "ai-toolkit":
        _length_of_ai_toolkit(params, draft)
    elif engine != "kohya":
        _problem(
            draft,
            "other-engine",
            "engine",
            engine,
            "ran on another trainer: only rank, resolution and epochs mean the same here",
        )
    for key, value in params.items():
        _key(draft, key, value, params)
    _optimizer_arguments(draft, params, engine)
    _unsaid(draft, params)
    _images(draft, params)
    return draft


def _unwrap(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params, the rest) of the object itself, of `params` in it, or of `trainingDetails.params`."""
    details = values.get("trainingDetails")
    if isinstance(details, Mapping) and isinstance(details.get("params"), Mapping):
        return dict(details["params"]), {key: value for key, value in details.items() if key != "params"}
    if isinstance(values.get("params"), Mapping):
        return dict(values["params"]), {key: value for key, value in values.items() if key != "params"}
    return values, {}


def _literal(value: Any) -> Any:
    try:
        return parse_json(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _family(params: Mapping[str, Any], outer: Mapping[str, Any], draft: Draft) -> str | None:
    for source in (outer, params):
        for key in ("baseModel", "baseModelType", "ecosystem"):
            found = BASES.get(str(source.get(key) or "").lower())
            if found:
                return found
    if isinstance(params.get("resolution"), (int, float)) and params["resolution"] >= 1024:
        draft.carry["family_hint"] = "sdxl"
        must = "suggests SDXL, but the JSON does not name its base model; the checkpoint decides"
        _problem(draft, "family-unsaid", "resolution", params["resolution"], must, severity="note")
    return None


def _length_of_ai_toolkit(params: dict[str, Any], draft: Draft) -> None:
    """With `steps` that is the length and epochs the number of copies; without it epochs are passes."""
    steps = params.get("steps")
    if isinstance(steps, (int, float)) and steps > 0:
        draft.arguments["max_train_steps"] = Setting(int(steps), "file", "steps")
        draft.keys["steps"] = Fate("renamed", "max_train_steps", int(steps))
        copies = params.pop("epochs", None)
        if isinstance(copies, int) and copies > 0:
            every = min(5000, max(50, round(steps / copies)))
            draft.arguments["save_every_n_steps"] = Setting(every, "file", "epochs")
            draft.keys["epochs"] = Fate(
                "renamed", "save_every_n_steps", every, f"{copies} copies of {int(steps)} steps"
            )
        params.pop("maxTrainEpochs", None)
    params.pop("steps", None)
    trains = params.pop("trainTextEncoder", None)
    if trains is not None:
        draft.keys["trainTextEncoder"] = Fate("renamed", "network_train_unet_only", not trains)
        draft.arguments["network_train_unet_only"] = Setting(not trains, "file", "trainTextEncoder")


def _key(draft: Draft, key: str, value: Any, params: Mapping[str, Any]) -> None:
    name = AI_TOOLKIT.get(key, key)
    argument = ARGUMENTS.get(name)
    if key in NOT_ARGUMENTS:
        draft.keys[key] = Fate("no-effect", None, None, NOT_ARGUMENTS[key])
    elif key == "numRepeats":
        if value is not None:
            draft.carry["num_repeats"] = value
        draft.keys[key] = Fate(
            "used", None, value, "the number before the name of the picture folder, or num_repeats of the subset"
        )
    elif key == "targetSteps":
        draft.keys[key] = Fate("no-effect", None, None, "computed from pictures, repeats, epochs and batch size")
    elif argument is None:
        _unknown(draft, key, value, params)
        return
    elif value is None or value == "":
        draft.keys[key] = Fate("no-effect", argument, table()[argument].default, "empty means off")
    elif isinstance(value, (Mapping, list)):
        _problem(
            draft,
            "bad-value",
            key,
            value,
            "must be one value",
            severity="error",
            fix=f"write one number or text for {key}, or remove {key}",
        )
        draft.keys[key] = Fate("renamed", argument, None)
    else:
        _argument(draft, key, name, argument, value, params)
    _range(draft, key, name, value)


def _argument(draft: Draft, key: str, name: str, argument: str, value: Any, params: Mapping[str, Any]) -> None:
    """One key with an argument: the conversions of the dialect."""
    off = {"clipSkip": "0 is unset", "minSnrGamma": "0 is off", "noiseOffset": "0 is off"}
    if name in off and value in (0, 0.0):
        draft.keys[key] = Fate("no-effect", argument, None, off[name])
        return
    if name == "textEncoderLR" and value in (0, 0.0):
        argument, value = "network_train_unet_only", True
    elif name == "textEncoderLR":
        value = [value]
    elif name == "unetLR":
        draft.arguments["learning_rate"] = Setting(value, "file", key)
    elif name == "resolution":
        value = f"{value},{value}"
    elif name == "loraType":
        value = "networks.lora" if str(value).lower() == "lora" else value
    elif name == "optimizerType":
        value = OPTIMIZERS.get(str(value).strip().lower(), str(value).strip())
    elif name == "optimizerArgs":
        value = [] if str(value).strip() in ("", "(empty)") else sd_scripts.split_pairs(str(value))
    elif name == "maxTrainEpochs":
        draft.arguments.setdefault("save_every_n_epochs", Setting(1, "default", None))
    shape = params.get("lrScheduler")
    if name == "lrSchedulerNumCycles" and shape != "cosine_with_restarts":
        draft.keys[key] = Fate("no-effect", argument, value, f"counts only with cosine_with_restarts, not with {shape}")
    elif name == "keepTokens" and not (params.get("shuffleCaption") or params.get("shuffleTokens")):
        draft.keys[key] = Fate("no-effect", argument, value, "counts only when captions are shuffled")
    else:
        draft.keys[key] = Fate("renamed", argument, value)
    draft.arguments[argument] = Setting(value, "file", key)


def _range(draft: Draft, key: str, name: str, value: Any) -> None:
    low, high = RANGES.get(name, (-math.inf, math.inf))
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not low <= value <= high:
        _problem(draft, "outside-range", key, value, f"lies outside what the site offers ({low} to {high})")


def _unknown(draft: Draft, key: str, value: Any, params: Mapping[str, Any]) -> None:
    """An unknown key; a scheduler's name under it is a guess worth offering, not applying."""
    fix = f"remove {key}"
    guess = draft.guess(key, ARGUMENTS)
    if isinstance(value, str) and value in SCHEDULERS and "lrScheduler" not in params:
        fix = f"probably lrScheduler: --set lr_scheduler={shell_word(value)}"
    elif guess:
        fix = f"did you mean {guess}?"
    draft.keys[key] = Fate("unknown", None, None, fix)
    _problem(draft, "unknown-key", key, value, "is not a key of CivitAI's trainer and is passed over", fix=fix)


def _optimizer_arguments(draft: Draft, params: Mapping[str, Any], engine: str) -> None:
    """The arguments that the site uses but does not show (not stored since 2024-03)."""
    chosen = draft.arguments.get("optimizer_type")
    if chosen is None or params.get("optimizerArgs") is not None or engine != "kohya":
        return
    hidden = HIDDEN.get(chosen.value)
    if hidden and draft.family != "flux":
        draft.arguments["optimizer_args"] = Setting(hidden, "default", None)
        _problem(
            draft,
            "hidden-optimizer-args",
            "optimizerType",
            chosen.value,
            f"goes with {', '.join(hidden)} on the site, which the JSON does not show; filled in",
            severity="note",
        )
    rate = params.get("unetLR")
    if chosen.value == "Prodigy" and rate != 1:
        _problem(draft, "prodigy-rate", "unetLR", rate, "the site trains Prodigy with 1", fix="--set unetLR=1")


def _unsaid(draft: Draft, params: Mapping[str, Any]) -> None:
    """What the site's worker settles without a key: the LoRA module, .txt captions, room for wide buckets."""
    draft.arguments.setdefault("network_module", Setting("networks.lora", "default", None))
    draft.arguments["caption_extension"] = Setting(".txt", "default", None)
    size = params.get("resolution")
    if isinstance(size, (int, float)) and size >= 1024 and params.get("enableBucket", True):
        draft.arguments["max_bucket_reso"] = Setting(2 * int(size), "default", None)


def images(steps: int, batch: int, repeats: int, epochs: int) -> list[int]:
    """The numbers of pictures n with ceil(n x repeats x epochs / batch) = steps."""
    share = repeats * epochs / batch
    guess = steps / share
    near = range(max(1, math.floor(guess) - 1), math.ceil(guess) + 2)
    return [n for n in near if math.ceil(n * repeats * epochs / batch) == steps]


def _images(draft: Draft, params: Mapping[str, Any]) -> None:
    values = [params.get(key) for key in ("targetSteps", "trainBatchSize", "numRepeats", "maxTrainEpochs")]
    values[2] = 200 if values[2] is None else values[2]
    if not all(isinstance(value, int) and 0 < value < 10**9 for value in values):
        return
    found = images(*(int(value) for value in values if value is not None))
    if found:
        draft.carry["images"] = found
    else:
        _problem(
            draft,
            "inconsistent-steps",
            "targetSteps",
            values[0],
            "fits no whole number of pictures with these repeats, epochs and batch size",
            severity="note",
        )


def _problem(
    draft: Draft, code: str, key: str, got: Any, must: str, *, severity: Any = "warning", fix: str | None = None
) -> None:
    draft.problems.append(
        Problem(
            code=code,
            severity=severity,
            key=key,
            got=got,
            must=must,
            fix=fix,
            file=draft.file,
            line=draft.lines.get(key),
        )
    )
