"""docs/formats.md: every key of every format, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from launcher.formats import civitai, easy_training, lora_header, lora_scripts, sd_scripts
from launcher.formats.kohya_gui import keys
from launcher.formats.kohya_gui.fates import NEVER_SENT
from schemas.config import table
from schemas.rules import UNSUPPORTED, WITHOUT_EFFECT

HEAD = """# Formats

What each format may hold, and what becomes of it. Written by `python docs/generate.py` from the tables that the
readers run on; edit those instead. `kohyakit validate --keys FILE` tells the fate of every key of one file,
`kohyakit explain KEY` everything about one key, `kohyakit schema FORMAT` prints the JSON Schema.

**Used** keys reach the trainer, the launcher or the choice of the model. **Idle** ones are known and change nothing
here, with the reason in their fate. **Refused** ones stop the run when they are set to more than their default.
Keys that no tool wrote are reported with the nearest known name.
"""
KINDS = {
    "kohya-gui": "Form JSON of the Kohya_ss GUI's LoRA tab, of any age; also its config.toml of defaults",
    "snapshot": "kohyakit's own: a form JSON with one more key, `kohyakit_snapshot`",
    "sd-scripts": "Training TOML, or a command line in a text, .sh, .bat or .ps1 file",
    "dataset": "dataset_config of sd-scripts, TOML or JSON",
    "civitai": "Training parameters of CivitAI's on-site trainer, as people paste them",
    "easy-training": "TOML and old JSON of LoRA_Easy_Training_Scripts",
    "lora-scripts": "TOML of lora-scripts (SD-Trainer)",
    "kohya-colab": "training_config.toml of the kohya-colab notebooks",
    "lora": "Header of a LoRA file",
}
WRITTEN = ("kohya-gui", "sd-scripts", "civitai", "snapshot")


@dataclass
class Keys:
    """The keys of one format by what becomes of them; `refused` and `idle` with the reason."""

    used: set[str] = field(default_factory=set)
    idle: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def known(self) -> int:
        return len(self.used | self.idle.keys() | self.refused.keys())


def _arguments(names: Iterable[str]) -> Keys:
    """Keys that are arguments under their own name."""
    found = Keys()
    for name in names:
        _file(found, name, name)
    return found


def _file(found: Keys, key: str, argument: str) -> None:
    if argument in UNSUPPORTED:
        found.refused[key] = UNSUPPORTED[argument]
    elif argument in WITHOUT_EFFECT:
        found.idle[key] = WITHOUT_EFFECT[argument]
    else:
        found.used.add(key)


def _kohya_gui() -> Keys:
    found = Keys()
    for key in keys().values():
        if key.tab:
            found.idle[key.name] = f"a key of the {key.tab} tab"
        elif key.retired:
            found.idle[key.name] = f"retired in {key.retired}" + (f"; now {key.renamed_to}" if key.renamed_to else "")
        elif key.only and not {"sd", "sdxl"} & set(key.only):
            found.idle[key.name] = f"for {' and '.join(key.only)} only"
        elif key.name in NEVER_SENT or key.name in sd_scripts.LEFTOVERS:
            found.idle[key.name] = NEVER_SENT.get(key.name) or sd_scripts.LEFTOVERS[key.name]
        else:
            _file(found, key.name, key.argument or key.name)
    return found


def _sd_scripts() -> Keys:
    found = _arguments(name for name, option in table().items() if not option.kit)
    found.idle |= {name: f"for {family} only" for family, names in sd_scripts.FAMILY_KEYS.items() for name in names}
    found.idle |= {name: f"for {kind} training only" for name, kind in sd_scripts.KIND_KEYS.items()}
    found.idle |= sd_scripts.LEFTOVERS
    found.used |= sd_scripts.RENAMED.keys()
    return found


def _dataset() -> Keys:
    from trainer.dataset.document import DATASET_KEYS, KIND_KEYS, OWN_KEYS, SUBSET_KEYS

    own = [name for group in (*KIND_KEYS.values(), *OWN_KEYS.values()) for name in group]
    found = _arguments(dict.fromkeys([*DATASET_KEYS, *SUBSET_KEYS, *own]))
    found.used |= {"general", "datasets", "subsets", *(found.idle.keys() & {"conditioning_data_dir"})}
    found.idle.pop("conditioning_data_dir", None)
    return found


def _civitai() -> Keys:
    found = Keys(used={*civitai.ARGUMENTS, *civitai.AI_TOOLKIT, "numRepeats", "steps", "trainTextEncoder"})
    found.used |= {"engine", "baseModel", "baseModelType", "ecosystem"}
    found.idle = {name: why for name, why in civitai.NOT_ARGUMENTS.items() if name not in found.used}
    found.idle["targetSteps"] = "computed from pictures, repeats, epochs and batch size"
    return found


def _easy_training() -> Keys:
    found = _sd_scripts()
    found.used |= {*easy_training.OLD, "sdxl", "fa", "warmup_ratio", "batch_size", "train_mode", "subsets"}
    window = (*easy_training.GUI_ONLY, *easy_training.OLD_GUI_ONLY)
    found.idle |= dict.fromkeys(window, "for that tool's window only") | easy_training.FORK_KEYS
    found.idle.pop("sdxl", None)
    return found


def _lora_scripts() -> Keys:
    found = _sd_scripts()
    found.used |= {*lora_scripts.OWN} - {"gpu_ids"}
    found.idle["gpu_ids"] = "not an argument: --gpu-ids chooses"
    return found


def _lora() -> Keys:
    renamed = lora_header.OTHER_NAMES
    names = {name for name, option in table().items() if not option.kit and not option.path and not option.secret}
    return Keys(used={*renamed, "kohyakit_config", "ss_datasets", *(f"ss_{name}" for name in names)})


FORMATS = {
    "kohya-gui": _kohya_gui,
    "snapshot": _kohya_gui,
    "sd-scripts": _sd_scripts,
    "dataset": _dataset,
    "civitai": _civitai,
    "easy-training": _easy_training,
    "lora-scripts": _lora_scripts,
    "kohya-colab": _sd_scripts,
    "lora": _lora,
}


def page() -> str:
    """The whole page as Markdown: a table of the formats, then the keys of those with lists of their own."""
    return "\n".join([HEAD, *_overview(), *_sections()]).rstrip("\n") + "\n"


def _overview() -> Iterator[str]:
    yield "| format | what it is | written by `convert` | known | used | idle | refused |"
    yield "|---|---|---|---|---|---|---|"
    for name, collect in FORMATS.items():
        found = collect()
        written = "yes" if name in WRITTEN else "with sd-scripts" if name == "dataset" else ""
        counts = f"{found.known} | {len(found.used)} | {len(found.idle)} | {len(found.refused)}"
        yield f"| `{name}` | {KINDS[name]} | {written} | {counts} |"
    yield ""


def _sections() -> Iterator[str]:
    for name in ("kohya-gui", "sd-scripts", "dataset", "civitai"):
        found = FORMATS[name]()
        yield f"## {name}\n"
        used = sorted(found.used, key=lambda key: (key.lower(), key))
        yield "Used: " + ", ".join(f"`{key}`" for key in used) + ".\n"
        yield from _reasons("Idle", found.idle)
        yield from _reasons("Refused", found.refused)


def _reasons(title: str, reasons: Mapping[str, str]) -> Iterator[str]:
    if reasons:
        yield f"| {title.lower()} | why |\n|---|---|"
        yield from (
            f"| `{key}` | {why} |" for key, why in sorted(reasons.items(), key=lambda item: (item[0].lower(), item[0]))
        )
        yield ""
