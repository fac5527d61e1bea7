"""One resolved config as text of another format, with everything that format cannot say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.check.data import carried_files, document
from launcher.check.resolve import Resolved, settle
from schemas.config import table, to_flat

NAME = re.compile(r"[\s:]")
OLD_NAMES = {
    "caption_extention": "caption_extension", "use_8bit_adam": "optimizer_type", "use_lion_optimizer": "optimizer_type",
}  # fmt: skip
# What a target says elsewhere than in its text.
TOLD_AS = {"civitai": ("family", "save_every_n_epochs")}


@dataclass(frozen=True)
class Written:
    """`text` is the file itself, `beside` files that it names (ending -> text), `lost` what could not be said."""

    text: str
    suffix: str
    beside: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def convert(resolved: Resolved, target: str, *, beside: Path | None = None) -> Written:
    """`beside` is the file that will be written: further files take its name and are named in the text."""
    lost: list[str] = []
    if target in ("sd-scripts", "args"):
        resolved, lost = with_steps(resolved)
    lost += [
        f"{name} = ***: secrets are never written"
        for name, option in table().items()
        if option.secret and getattr(resolved.config, name)
    ]
    reading = resolved.config.sdxl_text_projection
    if reading != "transposed" and target != "snapshot":
        theirs = "it is how sd-scripts reads anyway" if target in ("sd-scripts", "args") else "it has no word there"
        lost.append(f"sdxl_text_projection = {reading}: {theirs}; kohyakit reads the new file as transposed")
    repeats = resolved.draft.carry.get("num_repeats")
    if repeats and target != "civitai" and document(resolved) is None:
        lost.append(f"num_repeats = {repeats}: call the picture folder {repeats}_NAME, as folder names say the repeats")
    found = TARGETS[target](resolved, beside)
    lost = list(dict.fromkeys([*lost, *found.lost]))
    return Written(found.text, found.suffix, found.beside, lost + _unsaid(resolved, target, found, lost))


def _unsaid(resolved: Resolved, target: str, found: Written, lost: list[str]) -> list[str]:
    """What reads differently from the text that was written, and is not in `lost` yet: the last check on honesty."""
    from launcher import formats
    from launcher.about.diff import compare

    told = {NAME.split(entry, maxsplit=1)[0] for entry in lost} | {"datasets", "prompts", *TOLD_AS.get(target, ())}
    told |= {OLD_NAMES[name] for name in told & OLD_NAMES.keys()}
    if found.beside or {"dataset_config", "sample_prompts"} & told:
        told |= {"dataset_config", "sample_prompts"}
    if "epoch" in told or (target == "civitai" and resolved.draft.gui_steps is not None):
        told |= {"max_train_steps", "max_train_epochs"}
    reader = "sd-scripts" if target == "args" else target
    back = settle(formats.read_text(found.text, reader, f"converted{found.suffix}"))
    training, beside = compare(resolved, back)
    return [
        f"{name} = {_plain(entry['a'])}: it reads as {_plain(entry['b'])} there"
        for entry in [*training, *beside]
        if (name := entry["argument"]) not in told and not (entry["b"] is None and name == "family")
    ]


def _plain(value: Any) -> str:
    return (
        "unset" if value is None else " ".join(map(str, value)) or "nothing" if isinstance(value, list) else str(value)
    )


def with_steps(resolved: Resolved) -> tuple[Resolved, list[str]]:
    """max_train_steps counted as the GUI does, where the pictures are at hand."""
    from launcher.check.preflight import gui_steps, pictures

    if resolved.draft.gui_steps is None or resolved.config.max_train_epochs:
        return resolved, []
    folder = resolved.config.train_data_dir
    if folder and Path(folder).is_dir():
        scan, _, _ = pictures(resolved, [])
        if scan is not None and scan.samples:
            return gui_steps(resolved, scan)[0], []
    must = f"epoch = {resolved.draft.gui_steps.epoch:g}: the steps follow from the pictures, which are not here; "
    return resolved, [must + "give them with --set max_train_steps=N or --set max_train_epochs=N"]


def arguments(resolved: Resolved) -> dict[str, Any]:
    """Every argument that differs from the trainer's default, without secrets and without kohyakit's own."""
    kit = {name for name, option in table().items() if option.kit} | {"config_file", "output_config"}
    flat = {name: value for name, value in to_flat(resolved.config).items() if name not in kit}
    return {**resolved.draft.carry.get("arguments", {}), **flat}


def form_text(resolved: Resolved, extra: dict[str, Any] | None = None) -> tuple[str, list[str]]:
    """(a whole Kohya form JSON, what it cannot say); `extra` are further keys, which the GUI passes over."""
    from launcher.formats.kohya_gui import writer

    draft = resolved.draft
    carry = {**draft.carry, "extra": {**draft.carry.get("extra", {}), **(extra or {})}}
    steps_open = draft.gui_steps is not None and "max_train_steps" not in resolved.settings
    given = arguments(resolved)
    if draft.prompts is not None:
        given.pop("sample_prompts", None)
    form, lost = writer.write(
        given, family=draft.family or "sd15", carry=carry, accelerate=draft.accelerate, prompts=draft.prompts
    )
    if steps_open and draft.gui_steps is not None:
        form |= {"max_train_steps": 0, "epoch": draft.gui_steps.epoch}
    if document(resolved) is not None and not resolved.config.dataset_config:
        lost.append("datasets: a form names a dataset file and does not hold one; convert to sd-scripts to get it")
    return writer.dumps(form), lost


def _kohya_gui(resolved: Resolved, beside: Path | None) -> Written:
    """A form names a dataset file, which is written beside it; prompts it holds itself."""
    from launcher.check.data import DATASET

    data = None if resolved.config.dataset_config else carried_files(resolved).get(DATASET)
    if data is None or beside is None:
        text, lost = form_text(resolved)
        return Written(text, ".json", {}, lost)
    place = beside.with_name(f"{beside.stem}-dataset.toml")
    named = replace(resolved, draft=replace(resolved.draft, datasets=None, gui_steps=None))
    for name in ("train_data_dir", "reg_data_dir", "in_json"):
        if getattr(named.config, name):
            named = named.change(name, None, "computed")
    text, lost = form_text(named.change("dataset_config", str(place), "computed"))
    return Written(text, ".json", {"-dataset.toml": data}, lost)


def _snapshot(resolved: Resolved, beside: Path | None) -> Written:
    from launcher.formats.kohya_gui.fates import SNAPSHOT as MARK
    from launcher.run.snapshot import marks

    text, lost = form_text(resolved, {MARK: marks(resolved, [])})
    return Written(text, ".json", {}, lost)


def _with_files(resolved: Resolved, beside: Path | None) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """(arguments, further files, lost) where data and prompts that the file carries become files of their own."""
    given, files, lost = arguments(resolved), {}, []
    carried = carried_files(resolved)
    for ending, name, option in (
        ("-dataset.toml", "dataset.toml", "dataset_config"),
        ("-prompts.txt", "prompt.txt", "sample_prompts"),
    ):
        if name not in carried:
            continue
        if beside is None:
            lost.append(f"{option}: it is a file of its own; write with -o to get both")
            continue
        files[ending] = carried[name]
        given[option] = str(beside.with_name(f"{beside.stem}{ending}"))
        if option == "dataset_config":
            for replaced in ("train_data_dir", "reg_data_dir", "in_json"):
                given.pop(replaced, None)
    return given, files, lost


def _launch_words_lost(resolved: Resolved) -> list[str]:
    plain = {
        "num_processes": 1,
        "num_machines": 1,
        "num_cpu_threads_per_process": 2,
        "dynamo_backend": "no",
        "dynamo_mode": "default",
        "mixed_precision": resolved.config.mixed_precision,
    }
    return [
        f"{name} = {value}: it belongs to accelerate launch"
        for name, value in resolved.draft.accelerate.items()
        if value not in (None, "", 0, False) and str(value) != str(plain.get(name))
    ]


def _sd_scripts(resolved: Resolved, beside: Path | None) -> Written:
    from launcher.formats import sd_scripts

    given, files, lost = _with_files(resolved, beside)
    return Written(sd_scripts.write(given), ".toml", files, lost + _launch_words_lost(resolved))


def _args(resolved: Resolved, beside: Path | None) -> Written:
    from launcher.formats import command_line

    given, files, lost = _with_files(resolved, beside)
    return Written(command_line.write(given) + "\n", ".txt", files, lost + _launch_words_lost(resolved))


def _civitai(resolved: Resolved, beside: Path | None) -> Written:
    from launcher.formats import civitai_writer

    repeats, steps, given = resolved.draft.carry.get("num_repeats"), resolved.draft.gui_steps, arguments(resolved)
    if steps is not None and not resolved.config.max_train_epochs and steps.epoch == int(steps.epoch):
        given["max_train_epochs"] = int(steps.epoch)  # the form's epochs, from which it counts the steps
    text, lost = civitai_writer.write(given, num_repeats=int(repeats) if repeats else None)
    if resolved.draft.prompts:
        lost.append("sample_prompts: the site makes previews of its own")
    if resolved.draft.datasets is not None:
        lost.append("datasets: the site takes one set of pictures without settings")
    return Written(text, ".json", {}, lost + _launch_words_lost(resolved))


TARGETS: dict[str, Callable[[Resolved, Path | None], Written]] = {
    "kohya-gui": _kohya_gui,
    "sd-scripts": _sd_scripts,
    "civitai": _civitai,
    "args": _args,
    "snapshot": _snapshot,
}
