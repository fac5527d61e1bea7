"""Writes docs/formats.md, the page of every key of every format: `python -m launcher.format_docs`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from launcher.formats import civitai, easy_training, lora_header, lora_scripts, sd_scripts
from launcher.formats.kohya_gui import keys
from launcher.formats.kohya_gui.fates import NEVER_SENT
from launcher.formats.registry import Keys, having
from schemas.config import table
from schemas.datasets import SETTINGS
from schemas.rules import UNSUPPORTED, WITHOUT_EFFECT
from schemas.terminal import say

PAGE = Path(__file__).resolve().parent.parent / "docs" / "formats.md"
HEAD = """# Formats

What each format may hold, and what becomes of it. Written by `python -m launcher.format_docs` from the tables that the
readers run on; edit those instead. `kohyakit validate --keys FILE` tells the fate of every key of one file,
`kohyakit explain KEY` everything about one key, `kohyakit schema FORMAT` prints the JSON Schema.

**Used** keys reach the trainer, the launcher or the choice of the model. **Idle** ones are known and change nothing
here, with the reason in their fate. **Refused** ones stop the run when they are set to more than their default.
Keys that no tool wrote are reported with the nearest known name.
"""


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


def kohya_gui_keys() -> Keys:
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


def sd_scripts_keys() -> Keys:
    found = _arguments(name for name, option in table().items() if not option.kit)
    found.idle |= {name: f"for {family} only" for family, names in sd_scripts.FAMILY_KEYS.items() for name in names}
    found.idle |= {name: f"for {kind} training only" for name, kind in sd_scripts.KIND_KEYS.items()}
    found.idle |= sd_scripts.LEFTOVERS
    found.used |= sd_scripts.RENAMED.keys()
    return found


def dataset_keys() -> Keys:
    idle = {name: row.idle for name, row in SETTINGS.items() if row.idle}
    return Keys(used={"general", "datasets", "subsets", *(SETTINGS.keys() - idle.keys())}, idle=idle)


def civitai_keys() -> Keys:
    found = Keys(used={*civitai.ARGUMENTS, *civitai.AI_TOOLKIT, "numRepeats", "steps", "trainTextEncoder"})
    found.used |= {"engine", "baseModel", "baseModelType", "ecosystem"}
    found.idle = {name: why for name, why in civitai.NOT_ARGUMENTS.items() if name not in found.used}
    found.idle["targetSteps"] = "computed from pictures, repeats, epochs and batch size"
    return found


def easy_training_keys() -> Keys:
    found = sd_scripts_keys()
    found.used |= {*easy_training.OLD, "sdxl", "fa", "warmup_ratio", "batch_size", "train_mode", "subsets"}
    window = (*easy_training.GUI_ONLY, *easy_training.OLD_GUI_ONLY)
    found.idle |= dict.fromkeys(window, "for that tool's window only") | easy_training.FORK_KEYS
    found.idle.pop("sdxl", None)
    return found


def lora_scripts_keys() -> Keys:
    found = sd_scripts_keys()
    found.used |= {*lora_scripts.OWN} - {"gpu_ids"}
    found.idle["gpu_ids"] = "not an argument: --gpu-ids chooses"
    return found


def lora_keys() -> Keys:
    renamed = lora_header.OTHER_NAMES
    names = {name for name, option in table().items() if not option.kit and not option.path and not option.secret}
    return Keys(used={*renamed, "kohyakit_config", "ss_datasets", *(f"ss_{name}" for name in names)})


def page() -> str:
    """The whole page as Markdown: a table of the formats, then the keys of those with lists of their own."""
    return "\n".join([HEAD, *_overview(), *_sections()]).rstrip("\n") + "\n"


def _overview() -> Iterator[str]:
    yield "| format | what it is | written by `convert` | known | used | idle | refused |"
    yield "|---|---|---|---|---|---|---|"
    for name, row in having("keys").items():
        found = row.part("keys")()
        written = "yes" if row.writer else f"with {row.beside}" if row.beside else ""
        counts = f"{found.known} | {len(found.used)} | {len(found.idle)} | {len(found.refused)}"
        yield f"| `{name}` | {row.title} | {written} | {counts} |"
    yield ""


def _sections() -> Iterator[str]:
    for name, row in having("section").items():
        found = row.part("keys")()
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


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    say(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
