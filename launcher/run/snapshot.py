"""What lies beside the LoRA for people: a Kohya GUI JSON of the run, which the GUI and kohyakit load."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from launcher.check import paths
from launcher.check.consent import OF_THE_USER
from launcher.check.plan import Plan
from launcher.check.resolve import Resolved
from launcher.formats.kohya_gui.fates import SNAPSHOT as MARK
from launcher.run.files import write_text
from schemas.config import table
from trainer.plan.adapt import Adapted


def marks(resolved: Resolved, adapted: Iterable[Adapted]) -> dict[str, Any]:
    """Our own entry in the snapshot, which the GUI passes over."""
    return {
        "version": 1,
        "source": Path(resolved.draft.file).name if resolved.draft.file else None,
        "format": resolved.draft.format,
        "family": resolved.draft.family,
        "adapted": [change.as_json() for change in adapted],
        "arguments": own_arguments(resolved),
    }


def own_arguments(resolved: Resolved) -> dict[str, Any]:
    """Options that are not the reference's, for which the form has no field; consent is never kept."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, option in table().items()
        if option.kit and name not in OF_THE_USER and (value := getattr(resolved.config, name)) != option.default
    }


def write_snapshot(plan: Plan) -> Path:
    """`<output_dir>/<output_name>_YYYYMMDD-HHMMSS.json`, local time."""
    from dataclasses import replace

    from launcher.about.convert import form_text

    resolved = plan.checked.resolved
    draft = replace(resolved.draft, family=plan.family, gui_steps=None, accelerate=_words(plan))
    resolved = replace(resolved, draft=draft)
    text, _ = form_text(resolved, {MARK: marks(resolved, plan.checked.adapted)})
    path = paths.output_dir(resolved) / f"{paths.run_name(resolved)}_{time.strftime('%Y%m%d-%H%M%S')}.json"
    write_text(path, text)
    return path


def _words(plan: Plan) -> dict[str, Any]:
    """The file's launch words with the decided number of processes; addresses and ports are of this start only."""
    passing = ("main_process_port", "main_process_ip", "machine_rank", "gpu_ids")
    kept = {name: value for name, value in plan.checked.resolved.draft.accelerate.items() if name not in passing}
    return {**kept, "num_processes": plan.launch.num_processes, "num_machines": plan.launch.num_machines}
