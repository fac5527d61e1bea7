"""Going on with a run: exactly, from its state, or as a new run that starts from its weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from launcher import paths, record
from launcher.changes import changes, verdict
from launcher.data import DATASET, PROMPTS
from launcher.formats.base import Draft, Setting
from launcher.plan import Plan
from launcher.resolve import ACCELERATE, Resolved, UsageError, settle
from launcher.run import Ended
from schemas.config import BadValue, read_value, table
from schemas.documents import object_in, parse_toml
from schemas.problems import ConfigError, Problem, error, nearest
from schemas.textfile import CONFIG, read_text

Mode = Literal["resume", "continue"]
# Places that may change on a resume, renamed or on another machine: what stands there is compared by its content.
MOVABLE = ("train_data_dir", "reg_data_dir", "in_json", "pretrained_model_name_or_path", "vae")
COPY = re.compile(r"(?P<name>.+?)(?P<copy>-\d{6}|-step\d{8})?\.(safetensors|ckpt|pt)")
SNAPSHOT = re.compile(r"(?P<name>.+)_\d{8}-\d{6}\.json")


@dataclass(frozen=True)
class Found:
    """What a PATH given to `resume` stands for; `name` is the base name of its results in `output`."""

    output: Path
    name: str
    run: Path | None = None
    weights: Path | None = None
    source: Path | None = None  # a snapshot, or the LoRA itself, where there is no run folder
    chosen: Path | None = None  # a state that was named instead of its run

    @property
    def state(self) -> Path | None:
        return self.chosen or (record.newest_state(self.run) if self.run else None)

    @property
    def cut_off(self) -> bool:
        """Whether the last start of the run did not come to its end, or is to be gone back on."""
        if self.chosen:
            return True
        starts = record.read_record(self.run).get("starts") if self.run else None
        return starts is not None and len(starts) > 0 and starts[-1].get("exit") != 0


@dataclass(frozen=True)
class Continuation:
    """A resolved config that goes on with an earlier run, and the first lines to print."""

    mode: Mode
    resolved: Resolved
    found: Found
    said: list[str]
    processes: int | None = None


def find(path: str) -> Found:
    """The run, snapshot or weights that `path` names; ConfigError `nothing-to-resume` when there is none."""
    place = Path(path)
    if not place.exists():
        raise error(
            "no-file", "does not exist", file=path, fix="name a run folder, a snapshot, an output folder or a LoRA"
        )
    run = place.resolve().parent
    if (run / "config.toml").is_file() and run.suffix == ".run":  # a part of a run folder, such as a state of it
        found = _in_folder(run)
        return replace(found, chosen=place) if place.is_dir() and record.is_whole(place) else found
    if place.is_dir():
        return _in_folder(place)
    if place.suffix == ".safetensors":
        match = COPY.fullmatch(place.name)
        name = match["name"] if match else place.stem
        return Found(place.parent, name, _run_of(place.parent, name), place, place)
    match = SNAPSHOT.fullmatch(place.name)
    name = match["name"] if match else place.stem
    return Found(place.parent, name, _run_of(place.parent, name), _newest_weights(place.parent, name), place)


def _in_folder(place: Path) -> Found:
    if (place / "config.toml").is_file():
        name = place.name.removesuffix(".run")
        return Found(place.parent, name, place, _newest_weights(place.parent, name))
    runs = sorted(place.glob("*.run/config.toml"), key=lambda file: file.stat().st_mtime)
    runs = [run for run in runs if not re.search(r"-v\d+\.run$", run.parent.name)] or runs
    if runs:
        return _in_folder(runs[-1].parent)
    loras = sorted(place.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    if not loras:
        raise error("nothing-to-resume", "holds no run and no LoRA", file=str(place), fix="name the LoRA file itself")
    return find(str(loras[-1]))


def _run_of(folder: Path, name: str) -> Path | None:
    run = folder / f"{name}.run"
    return run if (run / "config.toml").is_file() else None


def _newest_weights(folder: Path, name: str) -> Path | None:
    """The final file, or else the newest copy."""
    final = folder / f"{name}.safetensors"
    if final.is_file():
        return final
    copies = [
        path
        for path in folder.glob(f"{name}-*.safetensors")
        if (match := COPY.fullmatch(path.name)) and match["name"] == name
    ]
    return max(copies, key=lambda path: path.stat().st_mtime, default=None)


def go_on(
    path: str, sets: Mapping[str, str], *, epochs: int | None = None, steps: int | None = None, to_end: bool = False
) -> Continuation:
    """Which of the two ways it is, and the config of it."""
    if sum((epochs is not None, steps is not None, to_end)) > 1:
        raise UsageError("--epochs, --steps and --to-end exclude each other")
    found = find(path)
    if to_end or (epochs is None and steps is None and found.cut_off and found.state):
        return _exact(found, sets)
    if epochs is None and steps is None:
        what = "was stopped before its first state" if found.cut_off else "is complete"
        raise error(
            "nothing-to-resume",
            f"{what}, so say how much further",
            file=path,
            fix="--epochs N or --steps N starts a new run from its weights",
        )
    return _further(found, sets, epochs, steps)


def _exact(found: Found, sets: Mapping[str, str]) -> Continuation:
    state = found.state
    if found.run is None or state is None:
        raise error(
            "no-state",
            "has no state to resume from exactly",
            file=str(found.run or found.output),
            fix="--epochs N or --steps N starts a new run from the weights",
        )
    draft = _kept_draft(found, carried=False)
    _take_launch_words(draft, sets)
    _refuse_changes(draft, sets)
    draft.arguments.pop("resume_from_huggingface", None)
    resolved = settle(draft, sets).change("resume", str(state), "computed")
    kept = record.read_record(found.run)
    progress = _json(state / "progress.json")
    newest = record.newest_state(found.run)
    step, total = progress.get("step", "?"), (kept.get("steps") or {}).get("total", "?")
    said = [f"resume: exactly, from step {step} of {total}, state {state}"]
    if newest is not None and newest.resolve() != state.resolve():
        said.append(f"    goes back: newer states, down to {newest.name}, and their records in the log are dropped")
    if not kept:
        said += [f"    changed: {name}={value}" for name, value in sets.items()]
    return Continuation("resume", resolved, found, said, (kept.get("accelerate") or {}).get("num_processes"))


def _take_launch_words(draft: Draft, sets: Mapping[str, str]) -> None:
    """Words of --set that are about processes; UsageError for those that are no argument either."""
    for name, text in sets.items():
        if name in ACCELERATE:
            draft.accelerate[name] = text
        elif name not in table():
            guess = nearest(name, [*table(), *ACCELERATE])
            raise UsageError(f"--set {name}: no such option" + (f", did you mean {guess}?" if guess else ""))


def _refuse_changes(draft: Draft, sets: Mapping[str, str]) -> None:
    """ConfigError for every --set that would make it another run."""
    problems = []
    for name, text in sets.items():
        option = table().get(name)
        if option is None:
            continue  # a launch word
        before = draft.arguments[name].value if name in draft.arguments else option.default
        try:
            same = read_value(option, text)[0] == read_value(option, before)[0]
        except BadValue:
            continue  # told by `settle`
        if not (option.resumable or name in (*MOVABLE, "trust") or same):
            problems.append(
                Problem(
                    code="not-on-resume",
                    key=f"--set {name}",
                    got=text,
                    must=f"is {before!r} in this run and cannot change on an exact resume",
                    fix="--epochs N starts a new run from its weights",
                )
            )
    if problems:
        raise ConfigError(problems)


def _kept_draft(found: Found, *, carried: bool) -> Draft:
    """The draft of a run folder's config.toml, with the origins of the first start, wherever the folder is now."""
    from launcher import formats

    run = found.run
    if run is None:
        return formats.read(found.source or found.output)
    draft = formats.read(run / "config.toml", format="sd-scripts")
    kept = record.read_record(run)
    draft.family, draft.gui_steps, draft.keys = kept.get("family"), None, {}
    origins = kept.get("origins") or {}
    for name, setting in list(draft.arguments.items()):
        origin = origins.get(name, {})
        draft.arguments[name] = Setting(setting.value, origin.get("origin", "file"), origin.get("from"))
    for name, file in (("sample_prompts", PROMPTS), ("dataset_config", DATASET)):
        held = run / file
        if name in draft.arguments and Path(str(draft.arguments[name].value)).name == file and held.is_file():
            if carried:
                _carry(draft, name, held)
            else:
                draft.arguments[name] = Setting(str(held), "computed")
    draft.arguments["output_dir"] = Setting(str(found.output), "computed")
    draft.arguments["output_name"] = Setting(found.name, "computed")
    for name in ("trust", "overwrite"):
        draft.arguments.pop(name, None)  # consent was given for that start, and a run folder may be a stranger's
    return draft


def _carry(draft: Draft, name: str, held: Path) -> None:
    """The held file becomes part of the draft, so that the new run writes its own."""
    del draft.arguments[name]
    text = read_text(held, limit=CONFIG, what="file of a run")
    if name == "sample_prompts":
        draft.prompts = text
    else:
        draft.datasets = parse_toml(text)


def _further(found: Found, sets: Mapping[str, str], epochs: int | None, steps: int | None) -> Continuation:
    from schemas.weights import lora_facts

    if found.weights is None:
        raise error(
            "no-weights",
            "has no LoRA to start from",
            file=str(found.run or found.output),
            fix="name the LoRA file itself",
        )
    draft = _kept_draft(found, carried=True)
    _take_launch_words(draft, sets)
    facts = lora_facts(found.weights)
    for name in (
        "resume",
        "resume_from_huggingface",
        "initial_epoch",
        "initial_step",
        "skip_until_initial_step",
        "max_train_epochs",
        "max_train_steps",
    ):
        draft.arguments.pop(name, None)
    draft.gui_steps = None
    given: dict[str, Any] = {
        "max_train_epochs": epochs,
        "max_train_steps": steps,
        "network_dim": facts.dim,
        "network_alpha": facts.alpha,
    }
    for name, value in given.items():
        if value is not None:
            draft.arguments[name] = Setting(value, "--set" if name.startswith("max") else "computed")
    draft.arguments["network_weights"] = Setting(str(found.weights), "computed")
    asked = {"network_dim", "network_alpha", "network_module"} & set(sets)
    if found.run is None and found.source == found.weights and facts.algo == "lora" and not asked:
        draft.arguments["dim_from_weights"] = Setting(True, "computed")  # module by module, as the file has them
    dropped = []
    if found.run is None:
        _place(draft, found)
        dropped = _leave_out(draft)
    resolved = settle(draft, sets)
    length = f"{epochs} epochs" if epochs is not None else f"{steps} steps"
    rank = ", ".join(
        f"{word} {value:g}" for word, value in (("rank", facts.dim), ("alpha", facts.alpha)) if value is not None
    )
    said = [f"continue: a new run of {length} from the weights {found.weights} ({rank}), through network_weights"]
    return Continuation("continue", resolved, found, said + dropped)


def _leave_out(draft: Draft) -> list[str]:
    """Takes out files of the first run that change no weight and are not here; a line for each."""
    said = []
    for name in ("sample_prompts", "logging_dir", "log_tracker_config", "console_log_file", "metadata_thumbnail"):
        setting = draft.arguments.get(name)
        if setting is not None and setting.value and not Path(str(setting.value)).exists():
            del draft.arguments[name]
            said.append(f"    left out: {name}={setting.value}, which is not here")
    return said


def _place(draft: Draft, found: Found) -> None:
    """Results of a run known only by its snapshot or LoRA go beside it, if its own folder is not here."""
    output = draft.arguments.get("output_dir")
    if output is None or not output.value or not Path(str(output.value)).is_dir():
        draft.arguments["output_dir"] = Setting(str(found.output), "computed")
    name = draft.arguments.get("output_name")
    if name is None or not name.value:
        draft.arguments["output_name"] = Setting(found.name, "computed")


def told(plan: Plan, way: Continuation) -> list[str]:
    """The first lines to print: which way it is, what is not as at the first start, and what going on therefore is."""
    kept = record.read_record(way.found.run) if way.found.run else {}
    if not kept:
        return way.said
    found = changes(plan, kept)
    differs = [f"    differs: {change}" for change in found] or ["    nothing differs from the first start"]
    if way.mode == "continue":
        return [*way.said, *differs, "    verdict: a new run"]
    made = verdict(found)
    how, meaning = {
        "exact": ("exactly", "exact: the same numbers as without the interruption"),
        "equivalent": ("equivalently", "equivalent: the same run up to rounding and order, not bit for bit"),
        "new run": ("not exactly", "a new run from here on: other data or options"),
    }[made]
    first, *rest = way.said
    return [first.replace("exactly", how, 1), *rest, *differs, f"    verdict: {meaning}"]


def moves(plan: Plan) -> list[tuple[Path, Path]]:
    """(result that stands in the way of a new run, the numbered name that it gets)."""
    resolved = plan.checked.resolved
    folder, name = paths.output_dir(resolved), paths.run_name(resolved)
    there = paths.existing_results(resolved)
    run = paths.run_folder(resolved)
    if run.is_dir() and run not in there:
        there.append(run)
    number = 1
    while any(folder.glob(f"{name}-v{number}[.-]*")):
        number += 1
    return [(path, folder / f"{name}-v{number}{path.name.removeprefix(name)}") for path in there]


def renamed(plan: Plan, way: Continuation) -> Plan:
    """The plan with `network_weights` under the name that the file will have when training starts."""
    resolved = plan.checked.resolved
    weights = resolved.config.network_weights
    if way.mode == "resume" or not weights:
        return plan
    for path, target in moves(plan):
        if path.resolve() == Path(weights).resolve():
            resolved = resolved.change("network_weights", str(target), "computed")
    return replace(plan, checked=replace(plan.checked, resolved=resolved))


def keep_older(plan: Plan) -> None:
    """Moves results that stand in the way to a numbered name; all of them, or none and a ConfigError."""
    moved: list[tuple[Path, Path]] = []
    try:
        for path, target in moves(plan):
            path.rename(target)
            moved.append((path, target))
    except OSError as fault:
        for path, target in reversed(moved):
            target.rename(path)
        must, folder = f"cannot be renamed: {fault.strerror}", paths.output_dir(plan.checked.resolved)
        raise error("not-writable", must, file=str(folder), fix="check its owner") from None


def _json(path: Path) -> dict[str, Any]:
    return object_in(path, what="file of a run")


def start(
    plan: Plan, way: Continuation, *, write: Callable[[bytes], Any], say: Callable[[str], Any], terminal: bool = False
) -> Ended:
    """Trains on: in the same run folder when exact, else in a new one after older results have been moved aside."""
    from launcher import run

    plan = renamed(run.settled(plan), way)
    run.probe_writing(plan)
    if way.mode == "resume":
        run.write_config(plan)
        return run.start(plan, mode="resume", write=write, say=say, terminal=terminal)
    if not plan.launch.machine_rank:
        keep_older(plan)
    run.prepare(plan)
    return run.start(plan, mode="continue", write=write, say=say, terminal=terminal)
