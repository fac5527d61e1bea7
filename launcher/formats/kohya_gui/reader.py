"""A form JSON of any age -> Draft: the arguments Kohya's trainer would have received, and what became of every key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from launcher.formats.base import DraftBuilder, GuiSteps, Kind, Origin, Setting
from launcher.formats.kohya_gui.checks import age_warnings, kind_problems, refusals
from launcher.formats.kohya_gui.document import Document, parse
from launcher.formats.kohya_gui.entries import IDLE_ENTRIES, Entry, entries, free_words, launch_options
from launcher.formats.kohya_gui.fates import SNAPSHOT, Judge
from launcher.formats.kohya_gui.form import Form, load
from launcher.formats.kohya_gui.networks import key_of
from launcher.formats.kohya_gui.parameters import Words, launcher_words, trainer_words
from launcher.formats.kohya_gui.table import clean, hidden, keys, unset
from schemas.config import BadValue, mend, read_value
from schemas.config import table as options
from schemas.problems import Problem

LORA_KEYS = {"LoRA_type", "network_dim", "network_alpha", "lora_network_weights", "unet_lr", "locon", "conv_dim"}
TAB_KINDS: tuple[Kind, ...] = ("textual-inversion", "finetune", "dreambooth")
WHOLE_FORM = 20  # with so many keys and none of the LoRA tab, a file is another tab's form
PREVIEWS = ("sample_every_n_steps", "sample_every_n_epochs")


def read(text: str, *, file: str | None = None, overrides: Mapping[str, Any] | None = None) -> DraftBuilder:
    """The draft of a form JSON. `overrides` are keys of the form typed over the file's (from --set).

    Raises ConfigError where the text is no JSON object; everything else is in `problems`.
    """
    return read_document(parse(text, file=file), file=file, overrides=overrides)


def read_document(
    document: Document, *, file: str | None = None, overrides: Mapping[str, Any] | None = None
) -> DraftBuilder:
    """`read` of an already parsed document."""
    overrides = dict(overrides or {})
    form = load(document, overrides, file=file)
    draft = DraftBuilder(format="kohya-gui", file=file, lines=dict(document.lines), document=document.values)
    draft.kind, draft.family = kind_of(document.values), family_of(form, document.values)
    draft.problems = [*document.problems, *form.problems]
    found = entries(form)
    said = trainer_words(free_words(form["additional_parameters"]), foreign=form.family not in ("sd", "sdxl"))
    _fill(draft, form, found)
    _lay_over(draft, said)
    _own(draft, document.values.get(SNAPSHOT))
    _length(draft, form)
    _prompts(draft, form)
    draft.accelerate = {**launcher_words(free_words(form["extra_accelerate_launch_args"]))}
    draft.accelerate |= {name: value for name, value in launch_options(form.values).items() if name != "extra"}
    draft.carry["form"] = {
        name: value for name, value in form.values.items() if not keys()[name].secret and hidden(name, value) == value
    }
    draft.problems += kind_problems(draft, document) + refusals(form, draft) + age_warnings(form, document, draft)
    judge = Judge(form, draft, found, set(said.arguments), set(overrides))
    for name, raw in {**document.values, **overrides}.items():
        draft.keys[name] = judge.fate(name, raw)
    draft.problems = sorted(map(_clean, draft.problems + judge.problems), key=lambda problem: problem.line or 0)
    return draft


def _clean(problem: Problem) -> Problem:
    return replace(problem, must=clean(problem.must), fix=problem.fix and clean(problem.fix))


def kind_of(values: Mapping[str, Any]) -> Kind:
    """Which tab of Kohya's GUI wrote the file."""
    if LORA_KEYS & values.keys():
        return "lora"
    tabs = {key.tab for name in values if (key := keys().get(name)) is not None and key.tab}
    for kind in TAB_KINDS:
        if kind in tabs:
            return kind
    known = sum(name in keys() for name in values)
    return "dreambooth" if known >= WHOLE_FORM and not tabs & {"leco", "controlnet-lllite"} else "lora"


def family_of(form: Form, values: Mapping[str, Any]) -> str:
    """sd15, sd2, sdxl, flux, sd3, ... as the form's boxes say."""
    if form.family == "sd":
        return "sdxl" if values.get("sdxl_checkbox") is True else "sd2" if form["v2"] else "sd15"
    return form.family


def _fill(draft: DraftBuilder, form: Form, found: Mapping[str, Entry]) -> None:
    """The form's entries as settings, without what Kohya leaves out and what its trainer does not know."""
    foreign: dict[str, Any] = {}
    for name, entry in found.items():
        if name in IDLE_ENTRIES or (unset(entry.value) and name != "max_data_loader_n_workers") or entry.value == []:
            continue
        option = options().get(name)
        if option is None:
            foreign[name] = entry.value
            continue
        if name == "dynamo_backend" and entry.value not in option.choices:
            continue
        if name == "resume_from_huggingface" and not form["resume"]:
            continue
        origin = _origin(form, name, entry)
        place: dict[str, Any] = {"key": entry.key, "file": draft.file, "line": draft.lines.get(entry.key)}
        try:
            value, _ = read_value(option, True if name == "resume_from_huggingface" else entry.value)
        except BadValue as bad:
            if entry.key not in form.bad:
                got, fix = hidden(name, form.values.get(entry.key)), mend(option, entry.value)
                draft.problems.append(Problem(code="bad-value", must=str(bad), got=got, fix=fix, **place))
            continue
        if value is not None:
            source = None if origin == "default" else form.taken.get(entry.key, entry.key)
            draft.arguments[name] = Setting(value, origin, source)
    if foreign:
        draft.carry["arguments"] = foreign


def _origin(form: Form, name: str, entry: Entry) -> Origin:
    """Who set an argument; network_args are the file's as soon as one of them is."""
    senders = [entry.key]
    if name == "network_args":
        senders += [key_of(word.partition("=")[0]) for word in entry.value]
    return next((form.origin(key) for key in senders if form.origin(key) != "default"), "default")


def _lay_over(draft: DraftBuilder, said: Words) -> None:
    """additional_parameters come later on the trainer's command line, so they win."""
    line = draft.lines.get("additional_parameters")
    place: dict[str, Any] = {"key": "additional_parameters", "file": draft.file, "line": line}
    for code, must, severity in said.findings:
        draft.problems.append(Problem(code=code, must=must, severity=severity, fix=None, **place))
    for name, value in said.arguments.items():
        before = draft.arguments.get(name)
        effective = before.value if before else options()[name].default
        if before is not None and effective != value:
            must = f"--{name} {hidden(name, _text(value))} replaces the form's {hidden(name, _text(effective))}"
            draft.problems.append(Problem(code="overridden", must=must, severity="note", **place))
        draft.arguments[name] = Setting(value, "file", "additional_parameters")
    if said.foreign:
        draft.carry["arguments"] = {**draft.carry.get("arguments", {}), **said.foreign}


def _own(draft: DraftBuilder, snapshot: Any) -> None:
    """Options of kohyakit's own that a snapshot keeps beside the form, whose own keys Kohya passes over."""
    kept = snapshot.get("arguments") if isinstance(snapshot, Mapping) else None
    for name, value in kept.items() if isinstance(kept, Mapping) else ():
        option = options().get(name)
        if option is None or not option.kit:
            continue
        place: dict[str, Any] = {"key": SNAPSHOT, "file": draft.file, "line": draft.lines.get(SNAPSHOT)}
        try:
            draft.arguments[name] = Setting(read_value(option, value)[0], "file", SNAPSHOT)
        except BadValue as bad:
            must, fix = f"{name} {bad}", f"--set {name}={option.default}"
            draft.problems.append(Problem(code="bad-value", must=must, got=hidden(name, value), fix=fix, **place))


def _text(value: Any) -> str:
    return " ".join(str(item) for item in value) if isinstance(value, (list, tuple)) else str(value)


def _length(draft: DraftBuilder, form: Form) -> None:
    """Leaves the steps to be counted where the form would count them."""
    given = {"max_train_steps", "max_train_epochs"} & draft.arguments.keys()
    if not given and not form["dataset_config"] and (form["epoch"] or 0) > 0 and "max_train_steps" not in form.bad:
        draft.gui_steps = GuiSteps(form["epoch"])


def _prompts(draft: DraftBuilder, form: Form) -> None:
    """The prompt text; without any, Kohya's trainer gets an empty file and makes no previews."""
    text = form["sample_prompts"]
    if "sample_prompts" in draft.arguments:
        return
    if any(line.strip() and not line.strip().startswith("#") for line in text.splitlines()):
        draft.prompts = text
        return
    for name in PREVIEWS:
        if name in draft.arguments and draft.arguments[name].key != "additional_parameters":
            del draft.arguments[name]
