"""What is wrong or doubtful about a form as a whole: Kohya's own refusals, other tabs, defaults that have changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from launcher.formats.base import DraftBuilder
from launcher.formats.kohya_gui.document import Document
from launcher.formats.kohya_gui.form import BOXES, MODELS, READ_AS_UNSET, Form
from launcher.formats.kohya_gui.networks import TYPES
from launcher.formats.kohya_gui.parameters import pairs_problem
from launcher.formats.kohya_gui.table import hidden, keys
from schemas.problems import Problem

TABS = {
    "dreambooth": "trains the whole model (DreamBooth tab)",
    "finetune": "trains the whole model (fine-tuning tab)",
    "textual-inversion": "trains an embedding (textual inversion tab)",
    "leco": "edits concepts (LECO tab)",
    "controlnet-lllite": "trains a ControlNet-LLLite",
    "stable-cascade": "trains Stable Cascade",
}
FAMILY_TYPES = {
    "flux": {"Flux1", "Flux1 OFT", *(kind for kind in TYPES if kind.startswith("LyCORIS/"))},
    "anima": {"Anima", "Kohya LoHa", "Kohya LoKr"},
    "lumina": {"Lumina"},
}
TYPE_FAMILIES = {
    "Flux1": {"flux"}, "Flux1 OFT": {"flux"}, "Anima": {"anima"}, "Lumina": {"lumina"},
    "Kohya LoHa": {"sdxl", "anima"}, "Kohya LoKr": {"sdxl", "anima"},
}  # fmt: skip
NAMES = {"sd": "SD1.5/SD2", "sdxl": "SDXL", "flux": "FLUX", "sd3": "SD3", "anima": "Anima", "lumina": "Lumina"}


class _Place:
    """Makes Problems about keys of one file."""

    def __init__(self, draft: DraftBuilder) -> None:
        self.draft = draft

    def problem(self, key: str | None, code: str, must: str, **facts: Any) -> Problem:
        if "got" in facts:
            facts["got"] = hidden(key or "", facts["got"])
        line = self.draft.lines.get(key or "")
        return Problem(code=code, must=must, key=key, file=self.draft.file, line=line, **facts)


def kind_problems(draft: DraftBuilder, document: Document) -> list[Problem]:
    """Presets of other tabs, and of models that are not trained here."""
    place = _Place(draft)
    tabs = {key.tab: name for name in document.values if (key := keys().get(name)) is not None and key.tab}
    odd = next((tab for tab in ("leco", "controlnet-lllite", "stable-cascade") if tab in tabs), None)
    kind = draft.kind if draft.kind != "lora" else odd
    if kind is not None:
        shown = tabs.get(kind)
        must = f"is not a LoRA preset: it {TABS[kind]}"
        fix = "load a preset of the LoRA tab, or add LoRA_type and network_dim to train a LoRA with these values"
        return [place.problem(shown, "not-a-lora-preset", must, fix=fix)]
    if draft.family not in ("sd15", "sd2", "sdxl"):
        box = next((box for box, family in BOXES if family == draft.family), None)
        must = f"is a preset for {draft.family} models; the trainer here is for SD1.5, SD2 and SDXL"
        fix = "train it with --backend sd-scripts, or convert it"
        return [place.problem(box, "other-family", must, severity="warning", fix=fix)]
    return []


def refusals(form: Form, draft: DraftBuilder) -> list[Problem]:
    """Where Kohya itself shows a message and starts nothing."""
    if draft.kind != "lora":
        return []
    return [*_text_refusals(form, draft), *_rate_refusals(form, draft), *_type_refusals(form, draft)]


def _text_refusals(form: Form, draft: DraftBuilder) -> Iterator[Problem]:
    place = _Place(draft)
    for key in ("optimizer_args", "lr_scheduler_args"):
        said = pairs_problem(form[key])
        if said:
            clean = " ".join(form[key].replace(" =", "=").replace("= ", "=").split())
            yield place.problem(key, "bad-arguments-text", said, got=form[key], fix=f"write {clean!r}")
    if form["bucket_reso_steps"] in (0, "") or form["bucket_reso_steps"] < 1:
        must = "must be at least 1; Kohya refuses to start"
        yield place.problem("bucket_reso_steps", "bad-value", must, got=form["bucket_reso_steps"], fix="write 64")
    if not 0 <= (form["noise_offset"] or 0) <= 1:
        must = "must be between 0 and 1; Kohya refuses to start"
        yield place.problem("noise_offset", "bad-value", must, got=form["noise_offset"], fix="0.05 is usual")
    if not 0 <= (form["lr_warmup"] or 0) <= 100:
        must = "must be per cent of the run, 0 to 100"
        yield place.problem("lr_warmup", "bad-value", must, got=form["lr_warmup"], fix="for steps use lr_warmup_steps")
    preset = form["LyCORIS_preset"]
    if preset and preset not in keys()["LyCORIS_preset"].choices and not preset.endswith(".toml"):
        must = "is neither one of the form's presets nor a TOML file; Kohya refuses to start"
        yield place.problem("LyCORIS_preset", "lycoris-preset", must, severity="warning", got=preset, fix="write full")
    for key in READ_AS_UNSET:
        if key in form.emptied:
            must = "the text False is read as unset; Kohya takes it literally"
            yield place.problem(key, "text-false", must, severity="warning", fix=f"empty {key}")


def _rate_refusals(form: Form, draft: DraftBuilder) -> Iterator[Problem]:
    place = _Place(draft)
    rates = {name: form[name] or 0 for name in ("learning_rate", "text_encoder_lr", "unet_lr", "t5xxl_lr")}
    if not any(rates[name] for name in ("learning_rate", "text_encoder_lr", "unet_lr")):
        must = "learning_rate, text_encoder_lr and unet_lr are all 0; Kohya refuses to start"
        yield place.problem("learning_rate", "no-learning-rate", must, fix="--set learning_rate=0.0001")
    if rates["t5xxl_lr"] > 0 and not rates["text_encoder_lr"]:
        must = "needs a text_encoder_lr; Kohya refuses to start"
        yield place.problem("t5xxl_lr", "no-text-encoder-lr", must, got=rates["t5xxl_lr"], fix="--set t5xxl_lr=0")


def _type_refusals(form: Form, draft: DraftBuilder) -> Iterator[Problem]:
    place = _Place(draft)
    kind, family = form["LoRA_type"], form.family
    wrong = kind not in FAMILY_TYPES.get(family, {kind}) or family not in TYPE_FAMILIES.get(kind, {family})
    if wrong and "LoRA_type" not in form.bad:
        must = f"does not go with {NAMES.get(family, family)} models; Kohya refuses to start"
        yield place.problem("LoRA_type", "lora-type-family", must, got=kind, fix=_type_fix(kind, family))
    if family == "anima" and form["anima_compile"] and form["anima_torch_compile"]:
        must = "anima_compile and anima_torch_compile exclude each other"
        yield place.problem("anima_compile", "two-compilers", must, fix="switch one off")


def _type_fix(kind: str, family: str) -> str:
    if kind.startswith("Kohya Lo"):
        return f"choose LyCORIS/{kind[6:]}"
    allowed = FAMILY_TYPES.get(family)
    return f"choose {sorted(allowed)[0]}" if allowed else "choose Standard"


def age_warnings(form: Form, document: Document, draft: DraftBuilder) -> list[Problem]:
    """Where today's form default stands in for a key that the file's own time treated differently."""
    return [*_length_warnings(form, draft), *_model_warnings(form, document, draft)] if draft.kind == "lora" else []


def _length_warnings(form: Form, draft: DraftBuilder) -> Iterator[Problem]:
    place = _Place(draft)
    steps = draft.arguments.get("max_train_steps")
    if steps is not None and steps.origin == "default" and "max_train_epochs" not in draft.arguments:
        must = (
            f"is not in the file: today's form default {steps.value} counts; forms before v21.8.8 had no such key and"
            f" computed the steps from the pictures and epoch {form['epoch']}"
        )
        yield place.problem(
            "max_train_steps", "steps-not-in-file", must, severity="warning", fix="--set max_train_steps=0 to compute"
        )
    warmup = draft.arguments.get("lr_warmup_steps")
    if warmup is not None and warmup.origin == "default":
        must = f"is not in the file: today's form default, {form['lr_warmup']} per cent of the run, counts"
        yield place.problem(
            "lr_warmup", "warmup-not-in-file", must, severity="warning", fix="--set lr_warmup=0 for none"
        )
    if form.taken.get("lr_warmup") == "lr_scheduler" and "lr_warmup_steps" not in draft.arguments:
        said = "from the file" if form.origin("lr_warmup") != "default" else "of the form's default"
        must = f"the form sets the warmup {said} to 0, as the constant schedule has none"
        fix = "--set lr_scheduler=constant_with_warmup to warm up"
        severity = "warning" if form.origin("lr_warmup") != "default" else "note"
        yield place.problem("lr_warmup", "no-warmup", must, severity=severity, fix=fix)


def _model_warnings(form: Form, document: Document, draft: DraftBuilder) -> Iterator[Problem]:
    place = _Place(draft)
    model = MODELS.get(form["pretrained_model_name_or_path"])
    boxes = {"sdxl": "sdxl", "sd2": "v2"}
    if model is not None and draft.family in ("sd15", "sd2", "sdxl") and model != draft.family:
        if form.origin("pretrained_model_name_or_path") == "default":
            must = f"is not in the file, and the form's default is an {model} model while the boxes say {draft.family}"
            fix = "--set pretrained_model_name_or_path=..."
            yield place.problem("pretrained_model_name_or_path", "no-base-model", must, severity="warning", fix=fix)
            return
        must = f"is an {model} model, but the boxes say {draft.family}"
        fix = f"--set {boxes.get(model) or boxes.get(draft.family or '')}={'true' if model in boxes else 'false'}"
        yield place.problem(
            "pretrained_model_name_or_path", "model-and-boxes", must, severity="warning",
            got=form["pretrained_model_name_or_path"], fix=fix,
        )  # fmt: skip
    old = document.values.get("use_cp") is True and "use_tucker" not in document.values
    if old and form["LoRA_type"] in ("LyCORIS/LoHa", "LyCORIS/DyLoRA", "LyCORIS/LoCon"):
        must = f"switched Tucker decomposition on in its time; today's form reads use_tucker for {form['LoRA_type']}"
        yield place.problem(
            "use_cp", "old-use-cp", must, severity="warning", got=True, fix="--set use_tucker=true to have it"
        )
