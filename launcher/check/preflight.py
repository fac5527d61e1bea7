"""Everything that can be known before torch loads: rules, machine, paths, base model, pictures. Writes nothing."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.check import paths
from launcher.check.machine import Machine, adapt
from launcher.check.resolve import Resolved, standing
from schemas.problems import ConfigError, Problem, errors
from schemas.terminal import shell_word
from trainer.plan.adapt import Adapted

if TYPE_CHECKING:
    from schemas.files.lora_names import Module
    from schemas.files.weights import Header, LoraFacts
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
    from launcher import json_schemas
    from launcher.check import consent, data

    resolved, problems = effective(data.unpack(resolved))
    problems += standing(resolved.draft, resolved.sets, json_schemas.problems(resolved.draft, problems))
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
    found += results(model, family_found or family)
    problems += paths.as_warnings([*found, *paths.path_problems(model)])
    return Checked(resolved, family or family_found, unique(problems))


def _idle(resolved: Resolved, problem: Problem) -> None:
    """A key that a rule between options leaves without effect has that fate."""
    keys, name = resolved.draft.keys, problem.key or ""
    if problem.code == "no-effect" and name in keys and keys[name].status in ("used", "renamed"):
        keys[name] = replace(keys[name], status="no-effect", why=problem.must)


def rules_say(resolved: Resolved, family: str | None) -> list[Problem]:
    """Findings of `schemas.rules`, pickles that would run code, and the kinds of training that are not done here."""
    from schemas import rules
    from schemas.files import pickles

    found = rules.check(resolved.config, family) + pickles.check(resolved.config)
    if family in FAMILIES:
        from trainer.plan import adapter

        found += adapter.misfits(resolved.config, str(family), resolved.config.pretrained_model_name_or_path)
    if resolved.draft.kind != "lora":
        must = f"is a {resolved.draft.kind} config; LoRA training is what is done here"
        found.append(Problem(code="unsupported-kind", must=must, file=resolved.draft.file, fix="use a LoRA config"))
    return found


def check_run(resolved: Resolved, machine: Machine | None = None, *, resuming: bool = False) -> Checked:
    """`plan` and `launch`: every problem at once, with the disk and, unless None, the machine in view."""
    from launcher.check import consent, data, preset_defaults

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
    problems += network_weights(resolved, family) + data.prompt_problems(resolved) + results(resolved, meant)
    if not resuming:
        problems += [problem for problem in [paths.overwrite_problem(resolved)] if problem]
        resolved, found = preset_defaults.with_validation(resolved)
        problems += found
    scan, assignment, found = pictures(resolved, problems)
    problems += found
    if scan is not None and not resuming:
        resolved, found = preset_defaults.with_previews(resolved, scan)
        if found:  # prompts are missing no more
            problems = [one for one in problems if (one.code, one.key) != ("missing-option", "sample_prompts")]
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
    from schemas.files import weights

    try:
        family = weights.checkpoint_family(model)
    except ConfigError as fault:
        return resolved, None, _of_option(resolved, name, model, fault)
    fitting, problems = _fits(resolved, family, problem, fix)
    resolved, said = _own_word(resolved, model) if fitting in FAMILIES else (resolved, [])
    return resolved, fitting, [*problems, *said]


def _own_word(resolved: Resolved, model: str) -> tuple[Resolved, list[Problem]]:
    """What the base model says of itself: laid under a config that is silent, held against one that is not."""
    from schemas.files import own_word

    word, given = own_word.own_word(model), set(resolved.settings)
    typed = {name for name in given if resolved.settings[name].origin == "--set"}
    taken, found = own_word.settle(word, resolved.config, given, typed)
    for name in taken:
        resolved = resolved.change(name, True, "computed")
    found += own_word.other_input(word, model)
    return resolved, [resolved.placed(problem) for problem in found]


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
        model = shell_word(resolved.config.pretrained_model_name_or_path)
        return None, problem(
            "not-a-checkpoint",
            "is a LoRA, not a base model",
            f"{fix} (to start from this LoRA: --set network_weights={model})",
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
    from launcher.check.resolve import presets

    names = [path.stem for path in presets()]
    name = Path(resolved.draft.file or "").stem
    before, _, purpose = name.partition("-")
    if name not in names or before not in FAMILIES:
        return None
    wanted = [f"{family}-{purpose}", f"{family}-character", f"{family}-style"]
    return next((one for one in wanted if one in names), None)


def _unknown(said: str | None, model: str, problem: Any, fix: str) -> tuple[str | None, list[Problem]]:
    """A pickle's tensors are only seen by the trainer; everything else has to say what it is."""
    from schemas.files.weights import PICKLES

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


def results(resolved: Resolved, family: str | None) -> list[Problem]:
    """What should be known of the trained file beforehand: where it works, and how SDXL's texts are read."""
    from schemas.rules import interop, model

    found = [*interop.other_programs(resolved.config, family), *model.text_projection_of_sdxl(resolved.config, family)]
    return [resolved.placed(problem) for problem in found]


def network_weights(resolved: Resolved, family: str | None) -> list[Problem]:
    """Whether the LoRAs to start from and to merge are sound ones for this family, the first of the config's kind."""
    from schemas.files import finite, weights

    config, found = resolved.config, list[Problem]()
    files = [("network_weights", config.network_weights), *(("base_weights", file) for file in config.base_weights)]
    known = _known_modules(config.pretrained_model_name_or_path, family) if any(path for _, path in files) else None
    for key, path in files:
        file = str(weights.lora_file(path)) if path else ""
        if not path or not os.path.isfile(file) or not file.endswith(".safetensors"):
            continue
        go_without = f"{paths.without(resolved, key)} to go without"
        try:
            header = weights.read_header(file)
            facts = weights.lora_facts(file)
        except ConfigError as fault:
            found += _of_option(resolved, key, path, fault)
            continue
        broken = finite.not_finite(header)
        if broken:
            must = f"holds NaN or Inf in {len(broken)} of {len(header.tensors)} tensors, such as {broken[0]}"
            found.append(Problem(code="not-finite", key=key, got=path, must=must, fix=f"{go_without}, or a sound file"))
        other = list(_for_family(facts, family, key, path))
        found += other
        if key == "network_weights" and not other:
            found += _lora_fits(resolved, header, facts)
        if known is not None and not other and config.network_module not in config.trust:
            found += _names_fit(header, known, key, path, go_without)
    return [resolved.placed(problem) for problem in found]


def _known_modules(model: str | None, family: str | None) -> set[Module] | None:
    """The names of the base model's layers; None where its family is not known."""
    if family not in FAMILIES:
        return None
    from trainer.plan import modules

    layers = (*modules.layers_of(str(family), model), *modules.usual(str(family)))
    return modules.known_modules(layers)


def _names_fit(header: Header, known: set[Module], key: str, path: str, go_without: str) -> Iterable[Problem]:
    """A file of this family whose names mean none of the model's layers could not be loaded."""
    from schemas.files import lora_names, weights

    written = [name for name in header.tensors if weights.module_of(name)]
    if any(lora_names.same(lora_names.module(weights.module_of(name) or ""), known) for name in written):
        return
    count, first = len(header.tensors), written[0]
    must = f"holds {count} tensors, none under a name of the base model's layers; the first is {first}"
    fix = f"{go_without}, or a file in the form of kohya, diffusers, peft, OneTrainer or ComfyUI"
    yield Problem(code="unknown-lora-names", key=key, got=path, must=must, fix=fix)


def _for_family(facts: LoraFacts, family: str | None, key: str, path: str) -> Iterable[Problem]:
    if family and facts.family in FAMILIES and facts.family != family:
        must = f"is an {FAMILIES[facts.family]} LoRA, but the base model is {FAMILIES[family]}"
        fix = f"--set {key}= to go without, or another base model"
        yield Problem(code="lora-family", key=key, got=path, must=must, fix=fix)


def _lora_fits(resolved: Resolved, header: Header, facts: LoraFacts) -> Iterable[Problem]:
    from schemas.files import lora_shape
    from schemas.rules import interop

    config, path = resolved.config, resolved.config.network_weights
    shape = lora_shape.adapter_shape(header, facts)
    if not interop.continues(config, header, facts):
        words = f" --set 'network_args={' '.join(shape.network_args)}'" if shape.network_args else ""
        yield Problem(
            code="other-network-kind",
            key="network_weights",
            got=path,
            must=f"is another kind of network than {config.network_module or 'networks.lora'} trains as it is set",
            fix=f"--set network_module={shape.module}{words}",
        )
        return
    if config.dim_from_weights or interop.WHOLE_FACTORS & set(interop.kinds(config)):
        return
    conv = interop.file_conv_dim(config)
    if conv and facts.conv_dim and conv != facts.conv_dim:
        yield Problem(
            code="rank-mismatch",
            key="network_args",
            got=f"conv_dim={conv}",
            must=f"conv_dim is {facts.conv_dim} in {path}",
            fix="--set dim_from_weights=true, or the same conv_dim in network_args",
        )
    for name, mine, theirs in (
        ("network_dim", config.network_dim or 4, facts.dim),
        ("network_alpha", interop.file_alpha(config), facts.alpha),
    ):
        if theirs is not None and not math.isclose(float(mine), float(theirs), rel_tol=1e-3):
            yield Problem(
                code="rank-mismatch",
                key=name,
                got=getattr(config, name),
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
    from launcher.check.data import scan_pictures
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
    split = resolved.settings.get("validation_split")
    held_out = () if split is None or split.origin == "computed" else scan.validation  # the GUI counts all files
    total = sum(
        scan.subset(sample).num_repeats
        for sample in (*scan.samples, *held_out)
        if not sample.is_reg and sample.path.suffix.lower() in GUI_PICTURES
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
    """Without repetitions and consequences, errors first, otherwise in the order found."""
    seen: dict[tuple[Any, ...], Problem] = {}
    problems = list(problems)
    bad = {problem.key for problem in errors(problems) if problem.code == "bad-value"}
    for problem in problems:
        if problem.code == "missing-option" and problem.key in bad:
            continue  # it is given, and what is wrong with it is said
        seen.setdefault((problem.severity, problem.code, problem.key, problem.must, repr(problem.got)), problem)
    rank = {"error": 0, "warning": 1, "note": 2}
    return sorted(seen.values(), key=lambda problem: rank[problem.severity])
