"""What lies beside the LoRA for people: a Kohya GUI JSON of the run, which the GUI and kohyakit load."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from launcher import paths
from launcher.files import write_text
from launcher.plan import Plan
from launcher.resolve import Resolved
from trainer.plan.adapt import Adapted

MARK = "kohyakit_snapshot"


def marks(resolved: Resolved, adapted: Iterable[Adapted]) -> dict[str, Any]:
    """Our own entry in the snapshot, which the GUI passes over."""
    config = resolved.config
    own = {"sdxl_text_projection": config.sdxl_text_projection} if config.sdxl_text_projection != "transposed" else {}
    lost = {"lost": [f"{name} = {value}: kohyakit's own, a form has no word for it" for name, value in own.items()]}
    return {
        **(lost if own else {}),
        "version": 1,
        "source": Path(resolved.draft.file).name if resolved.draft.file else None,
        "format": resolved.draft.format,
        "family": resolved.draft.family,
        "adapted": [change.as_json() for change in adapted],
    }


def write_snapshot(plan: Plan) -> Path:
    """`<output_dir>/<output_name>_YYYYMMDD-HHMMSS.json`, local time."""
    from dataclasses import replace

    from launcher.convert import form_text

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
