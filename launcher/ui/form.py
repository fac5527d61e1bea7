"""The form, made from the option table: sections, fields, who set each value, what is wrong with it, what helps."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from launcher.formats.kohya_gui import keys as form_keys
from launcher.ui.judging import Judged
from schemas.blanking import blanked
from schemas.config import GROUPS, Option, table
from schemas.derive import EXAMPLES
from schemas.rules import UNSUPPORTED, WITHOUT_EFFECT

# What a run cannot do without, in the order in which people think of it; GPU memory and the word stand beside them.
FIRST = (
    "pretrained_model_name_or_path", "train_data_dir", "output_name", "output_dir", "network_dim", "network_alpha",
    "learning_rate", "max_train_epochs",
)  # fmt: skip
LABELS = {
    "pretrained_model_name_or_path": "Base model",
    "train_data_dir": "Training images",
    "reg_data_dir": "Regularisation images",
    "output_dir": "Folder of results",
    "output_name": "Name of the LoRA",
    "network_dim": "Rank",
    "network_alpha": "Alpha",
    "network_module": "Kind of network",
    "network_args": "Further network settings",
    "learning_rate": "Learning rate",
    "unet_lr": "Learning rate of the U-Net",
    "text_encoder_lr": "Learning rate of the text encoder",
    "max_train_epochs": "Length in epochs",
    "max_train_steps": "Length in steps",
    "train_batch_size": "Batch size",
    "optimizer_type": "Optimizer",
    "optimizer_args": "Further optimizer settings",
    "lr_scheduler": "Schedule of the learning rate",
    "lr_warmup_steps": "Warm-up",
    "resolution": "Training size",
    "sdpa": "Attention by PyTorch (SDPA)",
    "xformers": "Attention by xFormers",
    "v2": "Stable Diffusion 2",
    "min_snr_gamma": "Min-SNR gamma",
    "mixed_precision": "Number format of the computation",
    "save_precision": "Number format of the file",
    "sample_prompts": "Prompts of the previews",
    "clip_skip": "Clip skip",
}
WORDS = {
    "lr": "learning rate", "dim": "rank", "reso": "size", "vae": "VAE", "unet": "U-Net", "ddp": "DDP", "ema": "EMA",
    "snr": "SNR", "fp16": "fp16", "bf16": "bf16", "fp8": "fp8", "config": "configuration", "dir": "folder", "args":
    "arguments", "num": "number of", "aug": "augmentation", "reg": "regularisation", "wandb": "wandb",
    "huggingface": "Hugging Face", "repo": "repository", "id": "id", "zero3": "ZeRO-3",
    "zero": "zero", "cpu": "CPU", "nvme": "NVMe", "json": "JSON", "pred": "prediction", "ip": "input",
}  # fmt: skip
UNITS = (("_reso", "px"), ("_reso_steps", "px"), ("_n_steps", "steps"), ("_n_epochs", "epochs"), ("_steps", "steps"),
         ("_epochs", "epochs"), ("_timestep", "of 1000"), ("_dropout_rate", "share"), ("_split", "share"))  # fmt: skip
OWN_UNITS = {"resolution": "px", "ddp_timeout": "minutes", "lr_warmup_steps": "steps or share",
             "network_dropout": "share", "max_train_steps": "steps", "train_batch_size": "images",
             "lr_decay_steps": "steps or share"}  # fmt: skip
SECTIONS = {
    "ModelOptions": "Model", "NetworkOptions": "Network", "OptimizerOptions": "Optimizer and rates",
    "SchedulerOptions": "Schedule", "LossOptions": "Loss", "NoiseOptions": "Noise", "DataOptions": "Data",
    "CaptionOptions": "Captions", "BucketOptions": "Buckets", "CacheOptions": "Caches",
    "PrecisionOptions": "Number formats", "MemoryOptions": "Speed and memory", "SavingOptions": "Saving",
    "StateOptions": "States and resume", "SamplingOptions": "Previews", "LoggingOptions": "Logging",
    "MetadataOptions": "What the file says of itself", "HubOptions": "Hugging Face hub",
    "DistributedOptions": "Several processes", "DeprecatedOptions": "Old spellings", "FileOptions": "Files",
}  # fmt: skip
HIDDEN = ("config_file", "output_config", "trust", "overwrite")  # words of a command line, which a form has otherwise
FOLDERS = (
    "train_data_dir",
    "reg_data_dir",
    "output_dir",
    "logging_dir",
    "conditioning_data_dir",
    "tokenizer_cache_dir",
)
WHO = {"file": "file", "preset": "preset", "--set": "launch", "default": "default", "computed": "computed",
       "adapted": "adapted"}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One field as the page shows it. `value` is the text in its input; `effective` what trains, where that differs."""

    name: str
    label: str
    help: str
    widget: str  # flag, choice, number, text, path, secret
    value: str
    who: str
    origin: str
    said: str | None
    effective: str | None
    unit: str
    choices: tuple[str, ...]
    examples: tuple[str, ...]
    default: str
    search: str
    idle: str | None
    findings: tuple[Mapping[str, Any], ...]
    changed: bool
    folder: bool


def label(name: str) -> str:
    """The option's name in plain words."""
    if name in LABELS:
        return LABELS[name]
    from schemas.families import facts_of

    facts = [(word, facts_of(word)) for word in name.split("_")]
    words = [family.title if family else WORDS.get(word, word) for word, family in facts]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


@functools.cache
def search_text(name: str) -> str:
    """What the search box looks through: names in every format, label, help."""
    option = table()[name]
    rows = [row for row in form_keys().values() if row.argument == name]
    names = [name, name.replace("_", " "), label(name), option.doc, *(row.name for row in rows)]
    return " ".join(dict.fromkeys(names)).lower()


def shown(value: Any) -> str:
    """A value as the text of an input, which reads back to it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return " ".join(shown(one) for one in value)
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def fields(judged: Judged) -> dict[str, Field]:
    """Every option's field, in the order of the table."""
    findings: dict[str, list[Mapping[str, Any]]] = {}
    for one in judged.findings():
        if one["argument"] and one["severity"] != "note":
            findings.setdefault(one["argument"], []).append(one)
    idle = _idle(judged)
    return {
        name: _field(judged, option, tuple(findings.get(name, ())), idle.get(name))
        for name, option in table().items()
        if name not in HIDDEN
    }


def _field(judged: Judged, option: Option, found: tuple[Mapping[str, Any], ...], idle: str | None) -> Field:
    name, resolved = option.name, judged.plain
    value = getattr(resolved.config, name) if resolved is not None else option.default
    setting = resolved.settings.get(name) if resolved is not None else None
    planned = judged.plan.checked.resolved if judged.plan is not None else None
    trains = getattr(planned.config, name) if planned is not None else value
    made = planned.settings.get(name) if planned is not None else None
    origin: str = setting.origin if setting else "default"
    if made is not None and made.origin in ("computed", "adapted", "--set") and trains != value:
        origin = made.origin
    before = getattr(judged.before.config, name) if judged.before is not None else value
    changed = before != value and not _stands_as_before(judged, (setting.key if setting else None) or name)
    who = "you" if changed and origin in ("file", "preset", "default") else WHO.get(origin, origin)
    text = "" if option.secret else blanked(shown(value))
    raw = judged.resolved.draft.document if judged.resolved is not None else None
    key = setting.key if setting else None
    said = _said(raw, key or name, text) if not option.secret else None
    return Field(
        name=name,
        label=label(name),
        help=option.doc,
        widget=_widget(option),
        value=text,
        who=who,
        origin=_origin(who, key, name, before if changed else None),
        said=said,
        effective=None if option.secret else _effective(judged, name, value, trains),
        unit=unit(name),
        choices=option.choices,
        examples=tuple(
            " ".join(map(str, one)) if isinstance(one, list) else str(one) for one in EXAMPLES.get(name, ())
        ),
        default=shown(option.default),
        search=search_text(name),
        idle=idle,
        findings=found,
        changed=changed,
        folder=name in FOLDERS,
    )


def _effective(judged: Judged, name: str, value: Any, trains: Any) -> str | None:
    """What trains, where that is not what stands in the field."""
    steps = judged.plain.draft.gui_steps if judged.plain is not None else None
    if name == "max_train_epochs" and value is None and steps is not None:
        return f"{steps.epoch:g}, the form's epoch, from which it counts the steps"
    return None if shown(trains) == shown(value) else str(blanked(shown(trains))) or "unset"


def _stands_as_before(judged: Judged, key: str | None) -> bool:
    """Whether the key says the same as in the file that came: then a value follows from another that was changed."""
    now = judged.plain.draft.document if judged.plain is not None else None
    then = judged.before.draft.document if judged.before is not None else None
    if key is not None and key in table() and table()[key].many:
        return False  # put together from several keys
    both = isinstance(now, Mapping) and isinstance(then, Mapping) and key in now and key in then
    return bool(both and now[key] == then[key])  # type: ignore[index]


def _origin(who: str, key: str | None, name: str, before: Any) -> str:
    """Who set it, in a sentence."""
    words = {
        "file": f"set by the file{f', where it is called {key}' if key and key != name else ''}",
        "preset": "set by the preset",
        "you": f"changed by you; it was {blanked(shown(before)) or 'unset'}",
        "launch": "set for the next launch only",
        "default": "the trainer's default",
        "computed": "computed from the other values or the data",
        "adapted": "adapted to this machine or to the memory asked for",
    }
    return words.get(who, who)


def _said(raw: Any, key: str, text: str) -> str | None:
    """What stands in the file, where it is written otherwise."""
    if not isinstance(raw, Mapping) or key not in raw or isinstance(raw[key], (Mapping, list)):
        return None
    found = blanked(shown(raw[key]))
    return None if found == text else found or '""'


def _widget(option: Option) -> str:
    if option.secret:
        return "secret"
    if option.kind is bool:
        return "flag"
    if option.choices:
        return "choice"
    if option.path and not option.many:
        return "path"
    return "number" if option.kind in (int, float) and not option.many else "text"


def unit(name: str) -> str:
    """What its number counts."""
    return OWN_UNITS.get(name) or next((word for ending, word in UNITS if name.endswith(ending)), "")


def _idle(judged: Judged) -> dict[str, str]:
    """Options that have no effect as the config stands, and why."""
    found = {name: f"refused: {why}" for name, why in UNSUPPORTED.items()}
    found |= {name: f"has no effect here: {why}" for name, why in WITHOUT_EFFECT.items()}
    for one in judged.problems:
        name = judged.about(one)
        if one.code == "no-effect" and name:
            found[name] = str(blanked(one.must))
    family = judged.plan.family if judged.plan is not None else None
    if family is not None:
        from schemas.families import facts_of, only_for

        facts = facts_of(family)
        for name, option in table().items():
            takers = only_for(option)
            if facts is not None and takers and facts.title not in takers:
                found[name] = f"counts for {' and '.join(takers)} only"
    return found


@dataclass(frozen=True)
class Section:
    """A group of the option table."""

    id: str
    title: str
    about: str
    fields: tuple[Field, ...]

    @property
    def set(self) -> int:
        """Fields that are not at their default."""
        return sum(one.who != "default" for one in self.fields)

    @property
    def worst(self) -> str | None:
        """The gravest finding in it."""
        found = {finding["severity"] for one in self.fields for finding in one.findings}
        return next((one for one in ("error", "warning") if one in found), None)


def sections(found: Mapping[str, Field]) -> Iterator[Section]:
    """The groups with their fields; those of the first eight stand above, and are not repeated."""
    for group in GROUPS:
        own = tuple(found[name] for name in group.__annotations__ if name in found and name not in FIRST)
        if own:
            title = SECTIONS.get(group.__name__, group.__name__)
            yield Section(group.__name__, title, (group.__doc__ or "").strip(), own)


def ignored(judged: Judged) -> list[dict[str, Any]]:
    """Keys of the file without effect, with the reason; what the GUI alone reads comes last."""
    if judged.checked is None:
        return []
    kinds = ("no-effect", "unknown", "other-family", "gui-only")
    rows = [
        {
            "key": key,
            "status": fate.status,
            "why": blanked(fate.why or ""),
            "line": judged.checked.resolved.draft.lines.get(key),
        }
        for key, fate in judged.checked.resolved.draft.keys.items()
        if fate.status in kinds
    ]
    return sorted(rows, key=lambda row: kinds.index(str(row["status"])))


def title_of(judged: Judged) -> dict[str, Any]:
    """The head of the editor: name, where it came from, family and kind."""
    from schemas.families import facts_of

    draft = judged.resolved.draft if judged.resolved else None
    family = judged.plan.family if judged.plan else None
    facts = facts_of(family)
    return {
        "file": judged.entry.file,
        "from": f"the preset {judged.entry.preset}" if judged.entry.preset else (
            PurePath(judged.entry.source).name if judged.entry.source else judged.entry.versions[0].file),
        "format": draft.format if draft else None,
        "family": facts.title if facts else family,
        "kind": draft.kind if draft else None,
    }  # fmt: skip
