"""The plan in the words and numbers of the page: derivation, memory by part, saves, the rate's curve, time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from launcher.check import show
from launcher.check.plan import Plan
from launcher.report.write import duration, size
from launcher.run.command import quoted
from launcher.ui.judging import Judged, command
from launcher.ui.runs import Runs
from schemas.problems import errors

PART_NAMES = {"unet": "U-Net", "text_encoder": "text encoder", "text_encoders": "text encoders", "vae": "VAE"}
CARDS = (4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 80)


def numbers(judged: Judged, runs: Runs) -> dict[str, Any] | None:
    """What stands beside the form; None where there is no plan."""
    plan = judged.plan
    if plan is None:
        return None
    data, seconds, price = plan.dataset_json() or {}, _seconds(plan, runs), judged.entry.words.get("price")
    found: dict[str, Any] = {
        "images": data.get("images"),
        "repeats": data.get("repeats_total"),
        "without_caption": data.get("without_caption", 0),
        "held_out": len(plan.checked.scan.validation) if plan.checked.scan else 0,
        "buckets": data.get("buckets", []),
        "subsets": data.get("subsets", []),
        "derivation": show.derivation(plan),
        "total": plan.steps.total if plan.steps else None,
        "epochs": plan.steps.epochs if plan.steps else None,
        "warmup": plan.steps.warmup if plan.steps else None,
        "saves": [save.file for save in plan.saves],
        "previews": plan.previews if plan.config.sample_prompts else [],
        "disk": size(plan.disk_bytes) if plan.disk_bytes is not None else None,
        "rate": _curve(plan),
        "adapted": [change.as_json() for change in plan.checked.adapted],
        "fits": [{**one, "saves": size(one["saves_bytes"])} for one in plan.fits or ()],
        "fitted": plan.fits is not None,
        "command": quoted(command(judged.entry, judged.entry.file)),
        "errors": len(errors(judged.problems)),
        "warnings": sum(one.severity == "warning" for one in judged.problems),
        "word": _word(plan),
        "time": duration(seconds) if seconds is not None else None,
        "price": price,
        "cost": f"{seconds / 3600 * price:.2f}" if seconds is not None and price else None,
        "results": str(plan.config.output_dir or "."),
    }
    return found | _memory(judged, plan)


def _memory(judged: Judged, plan: Plan) -> dict[str, Any]:
    """Bytes by part against the card chosen, as shares of a bar."""
    if plan.memory is None:
        return {"memory": None, "parts": [], "vram": judged.entry.words.get("vram")}
    chosen = judged.entry.words.get("vram")
    used = plan.memory.device_bytes
    whole = max(used, int((chosen or 0) * 2**30)) or 1
    at = 0.0
    parts = []
    for name, count in plan.memory.parts.items():
        share = 100 * count / whole
        if count > 0 and at + share <= 100.5:
            label = PART_NAMES.get(name, name.replace("_", " "))
            parts.append({"name": label, "bytes": size(count), "at": round(at, 2), "share": round(share, 2)})
            at += share
    return {
        "memory": size(used),
        "host": size(plan.memory.host_bytes),
        "parts": parts,
        "vram": chosen,
        "over": bool(chosen and used > chosen * 2**30),
        "cpu": plan.launch.cpu,
    }


def _curve(plan: Plan) -> list[list[float]]:
    return [[float(step), float(rate)] for step, rate in (row[:2] for row in plan.rates)]


def polyline(points: Iterable[Iterable[float]], width: int = 300, height: int = 60) -> str:
    """Points of a small curve, its highest at the top."""
    rows = [list(one) for one in points]
    if not rows:
        return ""
    last = rows[-1][0] - rows[0][0] or 1.0
    top = max(one[1] for one in rows) or 1.0
    return " ".join(f"{(x - rows[0][0]) / last * width:.1f},{height - 3 - y / top * (height - 8):.1f}" for x, y in rows)


def _word(plan: Plan) -> str | None:
    """The word that will call what is trained, as the captions or the folder say it."""
    from launcher.check.preset_defaults import trigger_word

    scan = plan.checked.scan
    if scan is None:
        return None
    return trigger_word(scan, [sample for sample in scan.samples if not sample.is_reg]) or None


def _seconds(plan: Plan, runs: Runs) -> float | None:
    """How long it takes, from a run of the same kind that this machine has in its folders."""
    pace = runs.seconds_a_step(plan.family, plan.config)
    return None if pace is None or plan.steps is None else pace * plan.steps.total
