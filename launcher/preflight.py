"""Everything that can be known before torch loads: rules, machine, paths, base model, pictures. Writes nothing."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import paths
from launcher.machine import Machine, adapt
from launcher.resolve import Resolved
from schemas.problems import ConfigError, Problem, errors
from trainer.plan.adapt import Adapted

if TYPE_CHECKING:
    from schemas.weights import LoraFacts
    from trainer.dataset.files import Scan
    from trainer.dataset.order import Assignment

# What a file that is made to be shared leaves to its reader.
LEFT_OPEN = ("pretrained_model_name_or_path", "output_dir", "train_data_dir", "dataset_config", "resolution")
FAMILIES = {"sd15": "SD 1.5", "sd2": "SD 2.x", "sdxl": "SDXL"}
GUI_PICTURES = (".jpg", ".jpeg", ".png", ".webp")  # what the GUI counts; the trainer takes more


@dataclass(frozen=True)
class Checked:
    """A config with all findings about it. `scan` and `assignment` are None where the pictures cannot be read."""

    resolved: Resolved
    family: str | None
    problems: list[Problem]
    adapted: list[Adapted] = field(default_factory=list)
    scan: Scan | None = None
    assignment: Assignment | None = None

    @property
    def ok(self) -> bool:
        return not errors(self.problems)


def check_file(resolved: Resolved) -> Checked:
    """`validate`: what the file says of itself. Paths may belong to another machine, so they are only warned about."""
    from launcher import consent, data, json_schemas

    resolved, problems = effective(data.unpack(resolved))
    problems += json_schemas.problems(resolved.draft, problems)
    problems += consent.asked(resolved)
    family = resolved.draft.family
    for problem in rules_say(resolved, family):
        if problem.code == "missing-package":
            problem = replace(problem, severity="warning")
        elif problem.code == "missing-option" and problem.key in LEFT_OPEN:
            problem = replace(problem, severity="note")  # a file to be shared leaves its reader's own places open
        problems.append(resolved.placed(problem))
        _idle(resolved, problems[-1])
    model, family_found, found = base_model(resolved)
    found = [replace(one, severity="note") if one.code == "not-downloaded" else one for one in found]
    problems += paths.as_warnings([*found, *paths.path_problems(model)])
    return Checked(resolved, family or family_found, unique(problems))


def _idle(resolved: Resolved, problem: Problem) -> None:
    """A key that a rule between options leaves without effect has that fate."""
    keys, name = resolved.draft.keys, problem.key or ""
    if problem.code == "no-effect" and name in keys and keys[name].status in ("used", "renamed"):
        keys[name] = replace(keys[name], status="no-effect", why=problem.must)


def rules_say(resolved: Resolved, family: str | None) -> list[Problem]:
    """Findings of `schemas.rules`, pickles that would run code, and the kinds of training that are not done here."""
    from schemas import pickles, rules

    found = rules.check(resolved.config, family) + pickles.check(resolved.config)
    if resolved.draft.kind != "lora":
        must = f"is a {resolved.draft.kind} config; LoRA training is what is done here"
        found.append(Problem(code="unsupported-kind", must=must, file=resolved.draft.file, fix="use a LoRA config"))
    return found


def check_run(resolved: Resolved, machine: Machine | None = None, *, resuming: bool = False) -> Checked:
    """`plan` and `launch`: every problem at once, with the disk and, unless None, the machine in view."""
    from launcher import consent, data

    resolved, problems = effective(data.unpack(resolved))
    adapted: list[Adapted] = []
    if machine is not None:
        _, adapted = adapt(resolved.config, machine)
        for change in adapted:
            resolved = resolved.change(change.argument, change.after, "adapted")
        resolved, more = effective(resolved)
        problems += more
    resolved, family, found = base_model(resolved)
    problems += found
    mismatch = any(problem.code == "family-mismatch" for problem in found)  # said once is enough
    meant = resolved.draft.family if mismatch else family or resolved.draft.family
    problems += [resolved.placed(problem) for problem in rules_say(resolved, meant)]
    problems += consent.asked(resolved) + paths.path_problems(resolved)
    problems += network_weights(resolved, family) + data.prompt_problems(resolved)
    if not resuming:
        problems += [problem for problem in [paths.overwrite_problem(resolved)] if problem]
    scan, assignment, found = pictures(resolved, problems)
    problems += found
    if scan is not None:
        from trainer.dataset.checks import bucket_steps

        problems += [resolved.placed(problem) for problem in bucket_steps(scan.specs, resolved.config, family)]
        resolved, found = gui_steps(resolved, scan)
        problems += found
    return Checked(resolved, family or resolved.draft.family, unique(problems), adapted, scan, assignment)


def effective(resolved: Resolved) -> tuple[Resolved, list[Problem]]:
    """With the reference's silent rewrites made, each said; the fates of the file's keys follow."""
    from schemas import rules

    _, rewrites = rules.effective(resolved.config)
    problems = list(resolved.problems)
    for rewrite in rewrites:
        setting = resolved.settings.get(rewrite.argument)
        resolved = resolved.change(rewrite.argument, rewrite.after, "computed")
        key = setting.key if setting else None
        fate = resolved.draft.keys.get(key or "")
        if key is not None and fate is not None and fate.argument == rewrite.argument:
            resolved.draft.keys[key] = replace(fate, value=rewrite.after, why=rewrite.why)
        must = f"trains as {rewrite.after!r}: {rewrite.why}"
        found = Problem(code="rewritten", key=rewrite.argument, got=rewrite.before, must=must, severity="note")
        problems.append(resolved.placed(found))
    return replace(resolved, problems=tuple(problems)), problems


def base_model(resolved: Resolved) -> tuple[Resolved, str | None, list[Problem]]:
    """The base model's family, read from its file; a hub id that has been downloaded before becomes its folder."""
    name = "pretrained_model_name_or_path"
    model = resolved.config.pretrained_model_name_or_path
    fix = f"--set {name}=PATH/TO/MODEL.safetensors"

    def problem(code: str, must: str, way_out: str = fix) -> list[Problem]:
        return [resolved.placed(Problem(code=code, key=name, got=model, must=must, fix=way_out))]

    if not model:
        return resolved, None, []  # schemas.rules asks for one
    if not os.path.exists(model):
        kept = _downloaded(model)
        if kept is None:
            if paths.foreign(model):
                return resolved, None, problem("foreign-path", "is a path of another machine")
            if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not model.endswith((".safetensors", ".ckpt")):
                way_out = f"hf download {model}, or {fix}"
                return resolved, None, problem("not-downloaded", "is a hub id that is not on this machine", way_out)
            return resolved, None, problem("no-file", "does not exist")
        resolved = resolved.change(name, str(kept), "computed")
        model = str(kept)
    from schemas import weights

    try:
        family = weights.checkpoint_family(model)
    except ConfigError as fault:
        return resolved, None, _of_option(resolved, name, model, fault)
    return resolved, *_fits(resolved, family, problem, fix)


def _of_option(resolved: Resolved, name: str, path: str, fault: ConfigError) -> list[Problem]:
    """What is wrong with a file, as problems of the option that names it."""
    placed = (replace(one, key=name, got=path if one.got is None else one.got, file=None) for one in fault.problems)
    return [resolved.placed(one) for one in placed]


def _fits(resolved: Resolved, family: str, problem: Any, fix: str) -> tuple[str | None, list[Problem]]:
    """(family to go on with, problems) of a checkpoint that says `family` under a config that may say another."""
    said = resolved.draft.family
    if family == "unknown":
        return _unknown(said, str(resolved.config.pretrained_model_name_or_path), problem, fix)
    if family == "lora":
        return None, problem(
            "not-a-checkpoint",
            "is a LoRA, not a base model",
            f"{fix} (to start from this LoRA: --set network_weights={resolved.config.pretrained_model_name_or_path})",
        )
    if family not in FAMILIES:
        return None, problem("unsupported-family", f"is a {family} model; SD1.5, SD2 and SDXL can be trained")
    if said in FAMILIES and said != family:
        flag = {"sdxl": "--set sdxl=true", "sd15": "--set sdxl=false --set v2=false", "sd2": "--set v2=true"}[family]
        hint = f"{flag}, or {fix} with {FAMILIES[said or '']}" if resolved.draft.format == "kohya-gui" else fix
        if (other := _preset_for(resolved, family)) is not None:
            hint = f"use the preset {other}, or {fix} of {FAMILIES[said or '']}"
        must = f"is an {FAMILIES[family]} checkpoint under an {FAMILIES[said or '']} config"
        return family, problem("family-mismatch", must, hint)
    return family, []


def _preset_for(resolved: Resolved, family: str) -> str | None:
    """The shipped preset of the same purpose for another family; None where the config is no preset, or none is."""
    from launcher.resolve import presets

    names = [path.stem for path in presets()]
    name = Path(resolved.draft.file or "").stem
    before, _, purpose = name.partition("-")
    if name not in names or before not in FAMILIES:
        return None
    wanted = [f"{family}-{purpose}", f"{family}-character", f"{family}-style"]
    return next((one for one in wanted if one in names), None)


def _unknown(said: str | None, model: str, problem: Any, fix: str) -> tuple[str | None, list[Problem]]:
    """A pickle's tensors are only seen by the trainer; everything else has to say what it is."""
    from schemas.weights import PICKLES

    if model.lower().endswith(PICKLES):
        must = "is a pickle, which does not say what it holds; the config's word is taken"
        found = problem("unknown-family", must, "use a .safetensors checkpoint of SD1.5 or SDXL")
        return said, [replace(one, severity="warning") for one in found]
    if os.path.isdir(model):
        must = "is no diffusers folder: there is no unet/config.json in it that names a UNet2DConditionModel"
    else:
        must = "is no checkpoint of a base model: none of its tensors is a U-Net's"
    return None, problem("not-a-checkpoint", must, fix)


def _downloaded(model: str) -> Path | None:
    """The newest local snapshot of a hub id, if there is one."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return None
    home = os.environ.get("HF_HOME") or os.path.join(os.path.expanduser("~"), ".cache", "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))
    snapshots = sorted((hub / ("models--" + model.replace("/", "--")) / "snapshots").glob("*/model_index.json"))
    return snapshots[-1].parent if snapshots else None


def network_weights(resolved: Resolved, family: str | None) -> list[Problem]:
    """Whether the LoRA to start from is one, is for this family, and has the config's rank and alpha."""
    path = resolved.config.network_weights
    if not path or not os.path.isfile(path) or not path.endswith(".safetensors"):
        return []
    from schemas import weights

    try:
        facts = weights.lora_facts(path)
    except ConfigError as fault:
        return _of_option(resolved, "network_weights", path, fault)
    return [resolved.placed(problem) for problem in _lora_fits(resolved, facts, family)]


def _lora_fits(resolved: Resolved, facts: LoraFacts, family: str | None) -> Iterable[Problem]:
    config, path = resolved.config, resolved.config.network_weights
    if facts.modules == 0:
        yield Problem(
            code="not-a-lora",
            key="network_weights",
            got=path,
            must="holds no LoRA weights",
            fix="--set network_weights= to start from zero",
        )
        return
    if family and facts.family in FAMILIES and facts.family != family:
        must = f"is an {FAMILIES[facts.family]} LoRA, but the base model is {FAMILIES[family]}"
        yield Problem(
            code="lora-family",
            key="network_weights",
            got=path,
            must=must,
            fix="--set network_weights= to start from zero, or another base model",
        )
    if config.dim_from_weights:
        return
    alpha = config.network_alpha or config.network_dim or 4
    for name, mine, theirs in (
        ("network_dim", config.network_dim or 4, facts.dim),
        ("network_alpha", alpha, facts.alpha),
    ):
        if theirs is not None and float(mine) != float(theirs):
            yield Problem(
                code="rank-mismatch",
                key=name,
                got=mine,
                must=f"is {theirs:g} in {path}",
                fix=f"--set {name}={theirs:g}, or --set dim_from_weights=true",
            )


def pictures(resolved: Resolved, known: list[Problem]) -> tuple[Scan | None, Assignment | None, list[Problem]]:
    """The scan of the training pictures and their buckets, unless their folder has been complained about already."""
    keys = {
        resolved.settings[name].key or name if name in resolved.settings else name
        for name in ("train_data_dir", "dataset_config", "in_json")
    }
    told = [problem.key for problem in errors(known)]
    if any(key in keys or (key or "").removeprefix("--set ") in keys for key in told):
        return None, None, []
    from launcher.data import scan_pictures
    from trainer.dataset.order import assign

    try:
        scan = scan_pictures(resolved)
    except ConfigError as fault:
        return None, None, [resolved.placed(problem) for problem in fault.problems]
    problems = [resolved.placed(problem) for problem in scan.problems]
    if errors(problems) or not scan.samples:
        return scan, None, problems
    try:
        return scan, assign(scan, resolved.config), problems
    except ConfigError as fault:
        return scan, None, problems + [resolved.placed(problem) for problem in fault.problems]


def gui_steps(resolved: Resolved, scan: Scan) -> tuple[Resolved, list[Problem]]:
    """max_train_steps as the GUI computes it: ceil(pictures x repeats / batch / accumulation x epoch x reg)."""
    wanted, config = resolved.draft.gui_steps, resolved.config
    if wanted is None or config.max_train_epochs:
        return resolved, []
    total = sum(
        sample.repeats for sample in scan.samples if not sample.is_reg and sample.path.suffix.lower() in GUI_PICTURES
    )
    if not total:
        return resolved, []  # the lack of pictures is told already
    reg = 2 if config.reg_data_dir else 1
    steps = math.ceil(total / config.train_batch_size / config.gradient_accumulation_steps * wanted.epoch * reg)
    if steps < 1:
        must = f"the file's epoch is {wanted.epoch:g}, which asks for no step; {config.max_train_steps} are made"
        return resolved, [Problem(code="no-steps", severity="warning", key="epoch", must=must, fix="--set epoch=1")]
    return resolved.change("max_train_steps", steps, "computed"), []


def unique(problems: Iterable[Problem]) -> list[Problem]:
    """Without repetitions, errors first, otherwise in the order found."""
    seen: dict[tuple[Any, ...], Problem] = {}
    for problem in problems:
        seen.setdefault((problem.severity, problem.code, problem.key, problem.must, repr(problem.got)), problem)
    rank = {"error": 0, "warning": 1, "note": 2}
    return sorted(seen.values(), key=lambda problem: rank[problem.severity])
