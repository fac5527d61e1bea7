"""Plans, verdicts and differences as lines for people. Pure: takes facts, gives text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.check import paths
from launcher.check.preflight import Checked
from launcher.check.processes import load_of
from launcher.run.command import default_config, quoted
from schemas.diagnostics import relative
from schemas.families import facts_of
from schemas.terminal import style

if TYPE_CHECKING:
    from launcher.check.plan import Plan

SHOWN = 6  # entries of a long list that are named


def row(name: str, first: str, *more: str) -> Iterator[str]:
    """An entry of a table; further lines are indented under its first one."""
    yield f"  {style(f'{name:<10}', bold=True)} {first}"
    for line in more:
        yield f"  {'':<10} {line}"


def plan_lines(plan: Plan) -> Iterator[str]:
    """The dry run, most important first."""
    resolved = plan.checked.resolved
    facts = facts_of(plan.family)
    family = facts.title if facts else plan.family or "family unknown"
    yield style(f"{relative(str(resolved.draft.file))}: a {resolved.draft.kind} for {family}", bold=True)
    config = plan.config
    own = [f"{problem.key} {problem.must}" for problem in plan.problems if problem.code == "from-base-model"]
    own += [one.must for one in plan.checked.problems if one.code.startswith("text-projection")][:1]
    yield from row("model", config.pretrained_model_name_or_path or "not given", *own)
    yield from row("network", *_network(plan))
    yield from row("optimizer", _optimizer(plan))
    if config.ema_decay:
        beside = f"saved beside as {paths.run_name(resolved)}.ema.{config.save_model_as}"
        yield from row("average", f"EMA of the weights, decay {config.ema_decay:g}, {beside}")
    yield from _data(plan)
    yield from _steps(plan)
    yield from row(
        "results", relative(f"{paths.output_dir(resolved) / paths.run_name(resolved)}.{config.save_model_as}")
    )
    if plan.memory is not None:
        device = "" if plan.launch.cpu else f"{_bytes(plan.memory.device_bytes)} GPU, "
        disk = f", {_bytes(plan.disk_bytes)} on disk" if plan.disk_bytes is not None else ""
        yield from row("memory", f"about {device}{_bytes(plan.memory.host_bytes)} main memory{disk}")
    if plan.time is not None:
        yield from row("time", *_time(plan))
    for change in plan.checked.adapted:
        yield from row("adapted", f"{change.argument}: {change.before!r} -> {change.after!r}, {change.why}")
    if plan.untold:
        yield from row("not told", f"by the LoRA, so at its default: {', '.join(plan.untold)}")
    yield from fit_lines(plan)
    yield from _launch_file(plan)
    yield from row("command", quoted(plan.command))


def _time(plan: Plan) -> list[str]:
    """How long, before anything was measured."""
    time = plan.time
    if time is None:
        return []
    cost = f", {time.cost:.2f} at {plan.config.price_per_hour:g} an hour" if time.cost is not None else ""
    first = f"about {_duration(time.seconds)} on {time.card}, {time.step_seconds:.2g} s a step{cost}"
    why = f"{time.step_flops / 1e12:.3g} TFLOP a step, at {time.share_of_peak:.0%} of the card's peak"
    return [first, f"{why}; after 20 steps the progress line knows better"]


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), round(seconds % 3600 / 60)
    return f"{hours} h {minutes} min" if hours else f"{max(1, minutes)} min"


def _launch_file(plan: Plan) -> Iterator[str]:
    """Which file of `accelerate config` counts; nothing where there is none."""
    if plan.launch.config_file:
        yield from row("launch", f"settings of {plan.launch.config_file}, laid under the words of the command")
    elif unused := default_config():
        yield from row("launch", f"{unused} is not used; --accelerate-config FILE would use it")


def _network(plan: Plan) -> list[str]:
    config = plan.config
    parts = (
        "U-Net only"
        if config.network_train_unet_only
        else "text encoder only"
        if config.network_train_text_encoder_only
        else "U-Net and text encoder"
    )
    args = f", {' '.join(config.network_args)}" if config.network_args else ""
    start = [f"starts from {config.network_weights}"] if config.network_weights else []
    dim = config.rank
    return [f"{config.network_module}, rank {dim}, alpha {config.network_alpha or dim:g}{args}; {parts}", *start]


def _optimizer(plan: Plan) -> str:
    config = plan.config
    unet = config.learning_rate if config.unet_lr is None else config.unet_lr
    text = " ".join(f"{rate:g}" for rate in config.text_encoder_lr) or f"{config.learning_rate:g}"
    rates = [] if config.network_train_text_encoder_only else [f"U-Net {unet:g}"]
    rates += [] if config.network_train_unet_only else [f"text encoder {text}"]
    warmup = f", {plan.steps.warmup} steps of warm-up" if plan.steps and plan.steps.warmup else ""
    if plan.steps and plan.steps.text_encoder and not config.network_train_unet_only:
        warmup += f", text encoder until step {plan.steps.text_encoder}"
    precision = f"mixed precision {config.mixed_precision}"
    schedule = config.lr_scheduler_type or config.lr_scheduler
    return f"{config.optimizer_type or 'AdamW'}, {', '.join(rates)}, {schedule}{warmup}, {precision}"


def _data(plan: Plan) -> Iterator[str]:
    found = plan.dataset_json()
    if found is None:
        yield from row("data", plan.config.dataset_config or plan.config.train_data_dir or "not given")
        return
    lines = [f"{_count(found['images'], 'image')}, {found['repeats_total']} with repeats"]
    if found["without_caption"]:
        lines[0] += f", {found['without_caption']} without caption"
    if plan.checked.scan and plan.checked.scan.validation:
        share = f"{_count(len(plan.checked.scan.validation), 'image')} held out to measure over-training"
        lines.append(f"{share} (validation_split {plan.config.validation_split:g}){_way_out(plan, 'held-out')}")
    for subset in found["subsets"]:
        reg = " (regularisation)" if subset["is_reg"] else ""
        lines.append(f"{relative(subset['folder'])}: {subset['images']} x {subset['repeats']}{reg}")
    yield from row("data", *lines)
    sizes = [
        f"{width}x{height}: {entry['images']}" for entry in found["buckets"] for width, height in [entry["resolution"]]
    ]
    if sizes:
        yield from row("buckets", _some(sizes, 12))


def _steps(plan: Plan) -> Iterator[str]:
    steps = plan.steps
    if steps is None:
        return
    yield from row("steps", *derivation(plan))
    if plan.done:
        yield from row("", f"{plan.done} of them are done, {steps.total - plan.done} are left")
    names = [save.file for save in plan.saves]
    yield from row("saves", f"{len(names)}: {_some(names)}")
    if plan.config.sample_prompts and plan.previews:
        after = "after steps " + _some([str(step) for step in plan.previews], 10)
        yield from row("previews", after, *_made_prompts(plan))
    elif not plan.config.sample_prompts:
        yield from row("previews", "none: no prompts are given")


def _made_prompts(plan: Plan) -> list[str]:
    """The prompts, where the file leaves them to be made from the data."""
    way_out = _way_out(plan, "made-prompts")
    if not way_out:
        return []
    return [f"of prompts made from the captions{way_out}:", *(plan.checked.resolved.draft.prompts or "").splitlines()]


def _way_out(plan: Plan, code: str) -> str:
    """How to have what a shipped preset does by itself otherwise; nothing where it does not."""
    return next((f"; {problem.fix}" for problem in plan.problems if problem.code == code), "")


def derivation(plan: Plan) -> list[str]:
    """How the number of steps comes about, as a sum that can be followed."""
    steps, config = plan.steps, plan.config
    if steps is None:
        return []
    found = plan.dataset_json() or {}
    total = found.get("repeats_total", 0) + found.get("reg_repeats_total", 0)
    scan = plan.checked.scan
    sizes = sorted({spec.batch_size for spec in scan.specs}) if scan else []
    batches = " and ".join(map(str, sizes or [config.train_batch_size]))
    words = [f"{total} images in batches of {batches}, bucket by bucket"]
    words.append(
        f"= {steps.batches_per_epoch} batches an epoch"
        + (f" for each of {steps.processes} processes" if steps.processes > 1 else "")
    )
    if config.gradient_accumulation_steps > 1:
        words.append(f"/ {config.gradient_accumulation_steps} accumulated = {steps.updates_per_epoch} steps an epoch")
    setting = plan.checked.resolved.settings.get("max_train_steps")
    by = "max_train_epochs" if config.max_train_epochs else "max_train_steps"
    how = " (computed as the GUI does)" if setting and setting.origin == "computed" and by == "max_train_steps" else ""
    whole, rest = divmod(steps.total, steps.updates_per_epoch)
    if not rest:
        words.append(f"x {_count(whole, 'epoch')} = {steps.total} steps, set by {by}{how}")
    elif not whole:
        words.append(f"of which {_count(rest, 'step')} are trained, set by {by}{how}")
    else:
        words.append(
            f"x {_count(whole, 'epoch')} + {_count(rest, 'step')} of the next = {steps.total} steps, set by {by}{how}"
        )
    return [words[0] + " " + words[1], " ".join(words[2:])]


def process_lines(plan: Plan, single: Plan) -> Iterator[str]:
    """One process against several, side by side; `single` is the plan for one."""
    if plan.steps is None or single.steps is None:
        return
    one, many = load_of(single.checked, single.steps), load_of(plan.checked, plan.steps)
    yield from row("processes", f"{'':<34}{1:>10}{many.processes:>10}")
    for name, left, right in (
        ("images on a device at once", one.device_batch, many.device_batch),
        ("images in one step", one.global_batch, many.global_batch),
        ("batches per epoch and process", single.steps.batches_per_epoch, plan.steps.batches_per_epoch),
        ("steps per epoch", single.steps.updates_per_epoch, plan.steps.updates_per_epoch),
        ("epochs", single.steps.epochs, plan.steps.epochs),
        ("steps", one.steps, many.steps),
        ("images seen", one.samples, many.samples),
        ("learning rate", f"{one.learning_rate:g}", f"{many.learning_rate:g}"),
    ):
        yield from row("", f"{name:<34}{left:>10}{right:>10}")
    if many.samples > 1.1 * one.samples:
        yield from row("", "--keep-samples shortens the run so that as many images are seen as with one process")
    yield from row("", "gradients are averaged: a step is as large, but less noisy; the rate is yours")


def fit_lines(plan: Plan) -> Iterator[str]:
    """What --vram changes."""
    if plan.fits is None:
        return
    if not plan.fits:
        yield from row("fits", "as it is")
    for change in plan.fits:
        result = "changes the result" if change["changes_result"] else "same result"
        yield from row(
            "to fit",
            f"{change['argument']}: {change['from']!r} -> {change['to']!r} saves "
            f"{_bytes(change['saves_bytes'])}; {change['cost']}; {result}",
        )


def verdict_lines(checked: Checked, *, keys: bool) -> Iterator[str]:
    """`validate` of one file: the verdict, and the keys that do not simply count."""
    draft = checked.resolved.draft
    mark = style("ok", colour="green") if checked.ok else style("not ok", colour="red")
    yield f"{relative(str(draft.file))}: {draft.format}, {checked.family or 'family unknown'}, {draft.kind}: {mark}"
    for name, fate in draft.keys.items():
        if keys or fate.status not in ("used", "default"):
            target = f" -> {fate.argument}" if fate.argument and fate.argument != name else ""
            value = f" = {fate.value!r}" if keys and fate.value is not None else ""
            why = f" ({fate.why})" if fate.why else ""
            if keys or fate.status in ("no-effect", "renamed", "other-family"):
                yield f"    {fate.status:<12} {name}{target}{value}{why}"


def difference_lines(found: Iterable[dict[str, Any]], a: str, b: str) -> Iterator[str]:
    """`diff`: one line an argument."""
    rows = [(entry["argument"], entry["a"], entry["b"]) for entry in found]
    if not rows:
        yield f"{a} and {b} train the same"
        return
    width = max(len(name) for name, _, _ in rows)
    left = min(40, max(len(str(value)) for _, value, _ in rows))
    yield f"{'':<{width}}  {Path(a).name:<{left}}  {Path(b).name}"
    for name, one, other in rows:
        yield f"{name:<{width}}  {one!s:<{left}}  {other!s}"


def _some(items: list[str], shown: int = SHOWN) -> str:
    if len(items) <= shown:
        return ", ".join(items)
    return ", ".join([*items[: shown - 1], "...", items[-1]])


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _bytes(number: int | None) -> str:
    if number is None:
        return "?"
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
