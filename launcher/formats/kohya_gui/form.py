"""What the form holds after loading: today's defaults, the file's values over them, then Kohya's repairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from launcher.formats.base import Origin
from launcher.formats.kohya_gui.document import Document
from launcher.formats.kohya_gui.table import Key, defaults, hidden, keys, mend, outside, read_key, unset
from schemas.problems import Problem

BOXES = (
    ("sdxl", "sdxl"),
    ("flux1_checkbox", "flux"),
    ("sd3_checkbox", "sd3"),
    ("hunyuan_image_checkbox", "hunyuan-image"),
    ("anima_checkbox", "anima"),
    ("lumina_checkbox", "lumina"),
)
MODELS = {
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/stable-diffusion-xl-base-0.9": "sdxl",
    "stabilityai/stable-diffusion-2-1": "sd2",
    "stabilityai/stable-diffusion-2-1-base": "sd2",
    "stabilityai/stable-diffusion-2": "sd2",
    "stabilityai/stable-diffusion-2-base": "sd2",
    "runwayml/stable-diffusion-v1-5": "sd15",
    "CompVis/stable-diffusion-v1-4": "sd15",
}
VELOCITY_MODELS = ("stabilityai/stable-diffusion-2-1", "stabilityai/stable-diffusion-2")
READ_AS_UNSET = ("wandb_api_key", "huggingface_repo_id", "huggingface_token")


@dataclass
class Form:
    """The form after loading. `values` has every key; `taken` says which key of the file stands behind a form key
    where it is not the key itself; `bad` are keys whose value could not be read,
    `emptied` those whose text False is read as no text."""

    values: dict[str, Any]
    origins: dict[str, Origin] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    emptied: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def origin(self, key: str) -> Origin:
        return self.origins.get(key, "default")

    @property
    def family(self) -> str:
        """Which trainer script the boxes pick: the first true one, else "sd" (SD1.5 and SD2)."""
        return next((family for box, family in BOXES if self.values[box]), "sd")


def load(document: Document, overrides: Mapping[str, Any] | None = None, *, file: str | None = None) -> Form:
    """The form that Kohya would show after loading `document` into a fresh one, `overrides` typed over it."""
    form = Form(defaults())
    for name, raw in document.values.items():
        key = keys().get(name)
        if key is not None and key.current and raw is not None and name in form.values:
            _take(form, key, raw, {"file": file, "line": document.lines.get(name)})
    _repair(form, document, file)
    for name, raw in (overrides or {}).items():
        key = keys().get(name)
        if key is not None and key.current and name in form.values:
            _take(form, key, raw, {}, words=True)
    _settle(form)
    return form


def _take(form: Form, key: Key, raw: Any, place: Mapping[str, Any], *, words: bool = False) -> None:
    """Reads one value into the form and says what was unusual about it."""
    if key.name == "xformers" and isinstance(raw, bool):
        form.values["xformers"], form.origins["xformers"] = ("xformers" if raw else "none"), "file"
        return
    if key.name == "LoRA_type" and raw == "LoCon":
        raw = "LyCORIS/LoCon"
    if key.name == "save_model_as" and isinstance(raw, str) and raw not in key.choices:
        raw = "safetensors"
    reading = read_key(key, raw, words=words)
    shown = {**place, "key": f"--set {key.name}" if words else key.name, "got": hidden(key.name, raw)}
    if reading.severity == "error":
        form.bad.add(key.name)
        form.problems.append(Problem(code="bad-value", must=reading.said or "", fix=mend(key, raw), **shown))
        return
    form.bad.discard(key.name)
    form.values[key.name], form.origins[key.name] = reading.value, "--set" if words else "file"
    if reading.said and not words:
        code = "unusual-spelling" if reading.severity == "note" else "value-changed"
        fix = None if reading.severity == "note" else f"write the number you mean, or --set {key.name}=..."
        form.problems.append(Problem(code=code, must=reading.said, severity=reading.severity, fix=fix, **shown))
    said = outside(key, reading.value)
    if said and not words:
        form.problems.append(Problem(code="outside-form", must=said, severity="note", **shown))


def _repair(form: Form, document: Document, file: str | None) -> None:
    """The old keys that Kohya still converts when it loads a file."""
    raw = document.values
    if raw.get("optimizer") is None:
        old = raw.get("use_8bit_adam")
        form.values["optimizer"] = "AdamW8bit" if old else "AdamW"
        if old is not None:
            form.origins["optimizer"], form.taken["optimizer"] = "file", "use_8bit_adam"
    if str(raw.get("use_wandb")) == "True" and raw["use_wandb"] is not True:
        form.values["log_with"], form.origins["log_with"], form.taken["log_with"] = "wandb", "file", "use_wandb"
    old_name = "lora_network_weights"
    if raw.get(old_name) is not None:
        place = {"file": file, "line": document.lines.get(old_name)}
        _take(form, replace(keys()["network_weights"], name=old_name), raw[old_name], place)
        form.values["network_weights"] = form.values.pop(old_name, "")
        form.origins["network_weights"], form.taken["network_weights"] = "file", old_name
    model = MODELS.get(form["pretrained_model_name_or_path"])
    for box, family in (("sdxl", "sdxl"), ("v2", "sd2")):
        if raw.get(box) is None and model == family:
            form.values[box] = True
    if raw.get("v_parameterization") is None and form["pretrained_model_name_or_path"] in VELOCITY_MODELS:
        form.values["v_parameterization"] = True
    if form["model_list"] not in MODELS:
        form.values["model_list"] = "custom"


def _settle(form: Form) -> None:
    """What the form itself changes once it shows a value."""
    if form["lr_scheduler"] == "constant" and not unset(form["lr_warmup"]):
        form.taken["lr_warmup"] = "lr_scheduler"
        form.values["lr_warmup"] = 0
    for name in READ_AS_UNSET:
        if form[name] == "False":
            form.values[name] = ""
            form.emptied.add(name)
    if form["train_inpainting"] and form.family in ("sd", "sdxl"):
        form.values["cache_latents"] = form.values["cache_latents_to_disk"] = False
