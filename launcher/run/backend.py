"""The same run on a checkout of sd-scripts, exactly as Kohya's GUI would have started it."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.about.convert import arguments
from launcher.check import paths
from launcher.check.consent import asked_by_sd_scripts
from launcher.check.preflight import Checked, check_run
from launcher.check.resolve import Resolved
from launcher.run.command import quoted
from launcher.run.files import write_text
from schemas.problems import ConfigError, errors
from schemas.terminal import say, say_document

# Only our own trainer minds these.
OURS = (
    "unsupported-option",
    "unsupported-family",
    "unsupported-kind",
    "unsupported-network-module",
    "other-family-module",
    "not-downloaded",
    "missing-package",
)
SCRIPTS = {"sdxl": "sdxl_train_network.py"}


def sd_scripts(resolved: Resolved, folder: str | None, *, only_print: bool, as_json: bool = False) -> int:
    """Prints the GUI's command, or writes its TOML, prompt file and snapshot and starts it; the exit code."""
    from launcher.check.resolve import UsageError

    if folder is None and not only_print:
        raise UsageError("--backend sd-scripts needs --sd-scripts-dir")
    checked = check_run(resolved, None, resuming=only_print)
    wrong = [problem for problem in errors(checked.problems) if problem.code not in OURS]
    wrong += asked_by_sd_scripts(checked.resolved)
    if wrong:
        raise ConfigError(wrong)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    config_file = paths.output_dir(checked.resolved) / f"config_lora-{stamp}.toml"
    words = command(checked, config_file, folder or "")
    if only_print:
        text = {"command": words, "config": toml_values(checked)}
        _print_json(text) if as_json else say(quoted(words))
        return 0
    script = next(word for word in words if word.endswith(".py"))
    if not Path(script).is_file():
        raise UsageError(f"--sd-scripts-dir {folder}: has no {Path(script).name}")
    return _start(checked, words, config_file, str(folder), as_json)


def _print_json(document: dict[str, Any]) -> None:
    say_document(document)


def pictures(checked: Checked) -> int:
    """Sum of repeats x pictures, as the GUI counts."""
    return sum(sample.repeats for sample in (checked.scan.samples if checked.scan else ()) if not sample.is_reg)


def toml_values(checked: Checked) -> dict[str, Any]:
    """The TOML's entries: the GUI's own for a GUI file, with --set over them; else the arguments."""
    resolved = checked.resolved
    if "form" not in resolved.draft.carry:
        return arguments(resolved)
    from launcher.formats.kohya_gui import gui_toml

    found = gui_toml(resolved.draft, pictures(checked))
    flat = arguments(resolved)
    for name, setting in resolved.settings.items():
        if setting.origin == "--set":
            found.pop(name, None)
            if name in flat:
                found[name] = flat[name]
    if "output_dir" in found and not resolved.config.dataset_config:
        found["sample_prompts"] = f"{found['output_dir']}/sample/prompt.txt"
    return dict(sorted(found.items()))


def command(checked: Checked, config_file: Path, folder: str) -> list[str]:
    """`accelerate launch ... train_network.py --config_file ...`."""
    draft = checked.resolved.draft
    if "form" in draft.carry:
        from launcher.formats.kohya_gui import gui_command

        return gui_command(draft, str(config_file), folder)
    words = ["accelerate", "launch"]
    for name, value in draft.accelerate.items():
        if value not in (None, "", 0, False):
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    script = SCRIPTS.get(checked.family or "", "train_network.py")
    return [*words, os.path.join(folder, script), "--config_file", str(config_file)]


def _start(checked: Checked, words: list[str], config_file: Path, folder: str, as_json: bool) -> int:
    from launcher.formats import sd_scripts
    from launcher.run import launch as run
    from launcher.run.child import run_child
    from schemas.signals import INTERRUPTED

    resolved = checked.resolved
    output = paths.output_dir(resolved)
    (output / "sample").mkdir(parents=True, exist_ok=True)
    write_text(config_file, sd_scripts.write(toml_values(checked)))
    write_text(output / "sample" / "prompt.txt", resolved.draft.prompts or "")
    snapshot = replace(resolved, draft=replace(resolved.draft, family=checked.family))
    write_snapshot_of(snapshot)
    if shutil.which("accelerate") is None:
        words = [sys.executable, "-m", "accelerate.commands.launch", *words[2:]]
    variables = dict(os.environ)
    variables["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, [variables.get("PYTHONPATH", "")])])
    finished = run_child(
        words, variables, run.to_stderr if as_json else run.to_stdout, terminal=sys.stdout.isatty() and not as_json
    )
    code = finished.code if finished.code in (0, INTERRUPTED) else run.FAILED
    if as_json:
        _print_json({"ok": code == 0, "exit": code, "command": words, "config_file": str(config_file)})
    return code


def write_snapshot_of(resolved: Resolved) -> None:
    """The form as the GUI would have kept it."""
    from launcher.about.convert import form_text

    text, _ = form_text(resolved)
    name = f"{paths.run_name(resolved)}_{time.strftime('%Y%m%d-%H%M%S')}.json"
    write_text(paths.output_dir(resolved) / name, text)
