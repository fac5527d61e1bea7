"""The dry run: what would be trained, on what, for how long, with which command. Computes, writes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from launcher.check import paths
from launcher.check.machine import Machine
from launcher.check.preflight import Checked, check_run, unique
from launcher.check.processes import keep_samples, load_of
from launcher.check.resolve import Resolved
from launcher.run.command import (
    Accelerate,
    LaunchOptions,
    decide,
    free_port,
    launch_command,
)
from schemas.config import TrainConfig
from schemas.families import FAMILIES
from schemas.problems import ConfigError, Problem

if TYPE_CHECKING:
    from trainer.plan.marks import Save
    from trainer.plan.memory import Memory
    from trainer.plan.steps import Steps
    from trainer.plan.work import Time


@dataclass(frozen=True)
class Plan:
    """A checked config with its numbers; those are None where an error stands in the way."""

    checked: Checked
    launch: Accelerate
    command: list[str]
    steps: Steps | None = None
    saves: list[Save] = field(default_factory=list)
    previews: list[int] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)
    disk_bytes: int | None = None
    memory: Memory | None = None
    time: Time | None = None
    problems: list[Problem] = field(default_factory=list)
    fits: list[dict[str, Any]] | None = None
    done: int = 0  # steps that the state has behind it from which the run goes on

    @property
    def config(self) -> TrainConfig:
        return self.checked.resolved.config

    @property
    def family(self) -> str | None:
        return self.checked.family

    @property
    def untold(self) -> list[str]:
        """Of a LoRA that is trained like: options of which its header says nothing, and nobody else either."""
        from launcher.formats.lora_header import untold

        resolved = self.checked.resolved
        return [name for name in untold(resolved.draft) if name not in resolved.settings]

    def as_json(self) -> dict[str, Any]:
        """The document of `plan --json`."""
        found: dict[str, Any] = {
            "family": self.family,
            "arguments": self.checked.resolved.argument_table(),
            "command": self.command,
            "accelerate": self.launch.as_json(),
            "dataset": self.dataset_json(),
            "steps": self.steps_json(),
            "learning_rate": self.rates,
            "disk_bytes": self.disk_bytes,
            "memory": self.memory_json(),
            "time": asdict(self.time) if self.time else None,
            "adapted": [change.as_json() for change in self.checked.adapted],
            "problems": [self.problem_json(problem) for problem in self.problems],
        }
        if self.untold:
            found["unknown"] = self.untold
        if self.fits is not None:
            found["fit"] = self.fits
        if self.steps is not None and self.launch.num_processes > 1:
            found["load"] = asdict(load_of(self.checked, self.steps))
        return found

    def problem_json(self, problem: Problem) -> dict[str, Any]:
        """A finding; `file` where it is another one than the config, such as an image."""
        elsewhere = problem.file is not None and problem.file != self.checked.resolved.draft.file
        return problem.as_json() | ({"file": problem.file} if elsewhere else {})

    def steps_json(self) -> dict[str, Any] | None:
        if self.steps is None:
            return None
        saves = [{"step": s.step, "epoch": s.epoch, "file": s.file, "state": s.state} for s in self.saves]
        return {
            "batches_per_epoch": self.steps.batches_per_epoch,
            "updates_per_epoch": self.steps.updates_per_epoch,
            "epochs": self.steps.epochs,
            "total": self.steps.total,
            "warmup": self.steps.warmup,
            "text_encoder": self.steps.text_encoder,
            "processes": self.steps.processes,
            "saves": saves,
            "previews": self.previews,
            **({"done": self.done} if self.done else {}),
        }

    def memory_json(self) -> dict[str, Any] | None:
        if self.memory is None:
            return None
        memory = self.memory
        return {"device_bytes": memory.device_bytes, "host_bytes": memory.host_bytes, "parts": dict(memory.parts)}

    def dataset_json(self) -> dict[str, Any] | None:
        """Subsets, pictures and buckets; regularisation pictures are counted apart."""
        scan, assignment = self.checked.scan, self.checked.assignment
        if scan is None:
            return None
        own = [sample for sample in scan.samples if not sample.is_reg]
        reg = [sample for sample in scan.samples if sample.is_reg]
        buckets = Counter[tuple[int, int]]()
        for (_, width, height), members in (assignment.buckets if assignment else {}).items():
            buckets[width, height] += len(members)
        return {
            "subsets": _subsets(self.checked),
            "images": len(own),
            "repeats_total": sum(sample.repeats for sample in own),
            "reg_images": len(reg),
            "reg_repeats_total": sum(sample.repeats for sample in reg),
            "buckets": [{"resolution": list(size), "images": buckets[size]} for size in sorted(buckets)],
            "without_caption": sum(not sample.has_caption for sample in own),
            "problems": [self.problem_json(problem) for problem in scan.problems],
        }


def _subsets(checked: Checked) -> list[dict[str, Any]]:
    found = []
    scan = checked.scan
    for number, spec in enumerate(scan.specs if scan else ()):
        for index, subset in enumerate(spec.subsets):
            mine = [s for s in (scan.samples if scan else ()) if (s.dataset, s.subset) == (number, index)]
            found.append(
                {
                    "dataset": number,
                    "folder": subset.image_dir or subset.metadata_file,
                    "repeats": subset.num_repeats,
                    "class_tokens": subset.class_tokens,
                    "is_reg": subset.is_reg,
                    "images": len(mine),
                    "without_caption": sum(not sample.has_caption for sample in mine),
                    "resolution": list(spec.resolution) if spec.resolution else None,
                    "batch_size": spec.batch_size,
                }
            )
    return found


def make_plan(
    resolved: Resolved,
    machine: Machine,
    options: LaunchOptions | None = None,
    *,
    resuming: bool = False,
    vram: float | None = None,
    keep_results: bool = False,
) -> Plan:
    """The plan of a resolved file. Input errors are in its `problems`, never raised. `vram` in GB applies what fits."""
    options = options or LaunchOptions()
    checked = check_run(resolved, machine, resuming=resuming or keep_results)
    fits = None
    if vram is not None and checked.family in FAMILIES:
        checked, fits = fit(checked, vram, machine, resuming=resuming or keep_results)
    config = checked.resolved.config
    launch = decide(options, checked.resolved.draft.accelerate, config.mixed_precision, machine)
    if launch.distributed and launch.num_machines == 1 and launch.main_process_port is None:
        launch = decide(_with_port(options), checked.resolved.draft.accelerate, config.mixed_precision, machine)
    problems = [*checked.problems, *_process_problems(launch, machine)]
    if options.keep_samples:
        checked, notes = keep_samples(checked, launch.num_processes)
        problems += notes
    config_file = paths.run_folder(checked.resolved) / launch.config_name
    command = launch_command(launch, config_file, checked.resolved.config.trust)
    plan = Plan(checked, launch, command, problems=problems, fits=fits)
    return _with_numbers(plan, machine)


def _with_port(options: LaunchOptions) -> LaunchOptions:
    return replace(options, main_port=free_port())


def _process_problems(launch: Accelerate, machine: Machine) -> list[Problem]:
    local = -(-launch.num_processes // launch.num_machines)
    cards = len(launch.gpu_ids.split(",")) if launch.gpu_ids and launch.gpu_ids != "all" else len(machine.gpus)
    found = []
    if machine.gpus and local > cards:
        found.append(
            Problem(
                code="too-few-gpus",
                key="num_processes",
                got=local,
                must=f"is more than the {cards} GPUs",
                fix=f"--processes {cards}",
            )
        )
    if launch.plugin:
        must = "shards what is trained; a LoRA is too small for that: base models and adapter stay whole on every GPU"
        fix = "go without --accelerate-config, or name a file without a plug-in"
        problem = Problem(code="no-effect", key="accelerate_config", severity="warning", must=must, fix=fix)
        found.append(replace(problem, got=launch.config_file))
    if launch.num_machines > 1 and not (launch.main_process_ip and launch.main_process_port):
        found.append(
            Problem(
                code="no-main-address",
                key="num_machines",
                got=launch.num_machines,
                must="needs the first machine's address",
                fix="--main-ip IP --main-port PORT",
            )
        )
    return found


def _with_numbers(plan: Plan, machine: Machine) -> Plan:
    """Steps, marks, curve, memory and disk, as far as no error prevents them."""
    from trainer.dataset.order import batches_per_epoch
    from trainer.plan import activations, batching, cards, marks, memory, rates, work
    from trainer.plan.steps import count

    checked, config = plan.checked, plan.config
    if checked.scan is None or checked.assignment is None:
        return replace(plan, problems=unique(plan.problems))
    problems, resolved = list(plan.problems), checked.resolved
    found: dict[str, Any] = {}
    try:
        steps = count(config, batches_per_epoch(checked.assignment), plan.launch.num_processes)
        found |= {"steps": steps, "saves": marks.saves(config, steps), "previews": marks.previews(config, steps)}
        found["rates"] = rates.curve(config, steps, 101)
        problems += [resolved.placed(one) for one in batching.remarks(checked.assignment, steps, config)]
        problems += _fewer_epochs(resolved, steps)
        if checked.family in FAMILIES:
            shape = memory.shape_of(checked.family, config.pretrained_model_name_or_path)
            found["disk_bytes"] = memory.disk_bytes(config, checked.family, steps, shape=shape)
            local = -(-plan.launch.num_processes // plan.launch.num_machines)
            bucket = largest_bucket(checked)
            found["memory"] = memory.estimate(config, checked.family, bucket, local, shape=shape)
            card = cards.find(machine.gpus[0].name, machine.gpus[0].memory) if machine.gpus else None
            if card and activations.measured(checked.family):  # its work is in the same table
                pixels = usual_pixels(checked) // FAMILIES[checked.family].latents.side ** 2
                found["time"] = work.time_of(config, checked.family, pixels, steps, card, shape=shape)
    except ConfigError as fault:
        problems += [resolved.placed(problem) for problem in fault.problems]
    problems += [
        *_disk(resolved, found.get("disk_bytes")),
        *_memory(found.get("memory"), machine, changed=plan.fits is not None),
    ]
    return replace(plan, **found, problems=unique(problems))


def _fewer_epochs(resolved: Resolved, steps: Steps) -> list[Problem]:
    """A form's own count of steps knows no buckets and no short batches; far from its epochs, it is told."""
    wanted, setting = resolved.draft.gui_steps, resolved.settings.get("max_train_steps")
    if wanted is None or resolved.config.max_train_epochs or setting is None or setting.origin != "computed":
        return []
    done = steps.total / steps.updates_per_epoch
    if abs(done - wanted.epoch) <= max(1.0, 0.2 * wanted.epoch):
        return []
    must = f"is {wanted.epoch:g}, which the form's own formula makes {steps.total} steps; these are {done:.1f} epochs"
    fix = f"--set max_train_epochs={max(1, round(wanted.epoch))} to train all of them"
    return [resolved.placed(Problem(code="fewer-epochs", severity="warning", key="epoch", must=must, fix=fix))]


def largest_bucket(checked: Checked) -> tuple[int, int]:
    """(width, height) of the bucket with the most pixels."""
    sizes = [(width, height) for _, width, height in (checked.assignment.buckets if checked.assignment else ())]
    return max(sizes, key=lambda size: size[0] * size[1], default=(512, 512))


def usual_pixels(checked: Checked) -> int:
    """Pixels of an image on average, over the buckets."""
    sizes = [
        (width * height, len(members))
        for (_, width, height), members in (checked.assignment.buckets if checked.assignment else {}).items()
    ]
    return sum(pixels * count for pixels, count in sizes) // max(1, sum(count for _, count in sizes))


def _disk(resolved: Resolved, needed: int | None) -> list[Problem]:
    import shutil

    parent = paths.output_dir(resolved).absolute()
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if needed and resolved.config.resume:
        needed -= paths.bytes_there(resolved)
    if not needed or needed < free:
        return []
    unit, size = ("GB", 1e9) if needed >= 1e9 else ("MB", 1e6)
    must = f"needs about {needed / size:,.1f} {unit}, {free / size:,.1f} {unit} are free in {parent}"
    fix = "make room, save less often, or --set output_dir=FOLDER on another disk"
    return [resolved.placed(Problem(code="disk-full", key="output_dir", must=must, fix=fix))]


def _memory(memory: Memory | None, machine: Machine, *, changed: bool) -> list[Problem]:
    if memory is None:
        return []
    found = []
    sizes = [gpu.memory for gpu in machine.gpus if gpu.memory]
    if sizes and memory.device_bytes > min(sizes):
        gigabytes = min(sizes) / 2**30
        must = f"about {memory.device_bytes / 2**30:.1f} GiB of GPU memory are needed, {gigabytes:.1f} GiB are there"
        fix = f"add --vram {gigabytes:.0f} to see what makes it fit, and to launch to apply it"
        fix = "a smaller resolution or network_dim; everything else is changed already" if changed else fix
        found.append(Problem(code="gpu-memory", must=must, severity="warning", fix=fix))
    if machine.memory and memory.host_bytes > machine.memory:
        needed, free = memory.host_bytes / 2**30, machine.memory / 2**30
        must = f"about {needed:.1f} GiB of main memory are needed, {free:.1f} GiB are free"
        found.append(
            Problem(
                code="main-memory",
                must=must,
                severity="warning",
                fix="close other programs, or --set max_data_loader_n_workers=0",
            )
        )
    return found


def fit(
    checked: Checked, gigabytes: float, machine: Machine, *, resuming: bool
) -> tuple[Checked, list[dict[str, Any]]]:
    """The config with the changes that bring it under `gigabytes` of GPU memory, and the list of these changes."""
    from trainer.plan import memory

    resolved, family = checked.resolved, str(checked.family)
    shape = memory.shape_of(family, resolved.config.pretrained_model_name_or_path)
    changes = memory.fit(resolved.config, family, largest_bucket(checked), gigabytes, shape=shape)
    found = []
    for change in changes:
        resolved = resolved.change(change.argument, change.after, "adapted")
        found.append(
            {
                "argument": change.argument,
                "from": change.before,
                "to": change.after,
                "cost": change.cost,
                "saves_bytes": change.saves_bytes,
                "changes_result": change.changes_result,
            }
        )
    if not found:
        return checked, found
    again = check_run(resolved, machine, resuming=resuming)
    return replace(again, adapted=[*checked.adapted, *again.adapted]), found
