"""Going on with a run: exactly, from its state, or as a new run that starts from its weights."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from launcher.check import paths
from launcher.check.data import DATASET, PROMPTS
from launcher.check.plan import Plan
from launcher.check.preflight import unique
from launcher.check.resolve import (
    ACCELERATE,
    Resolved,
    UsageError,
    settle,
)
from launcher.formats.base import Draft, Setting
from launcher.run.changes import changes, verdict
from launcher.run.launch import Ended
from launcher.run.older import keep_older, moves, renamed
from schemas.config import BadValue, read_value, table
from schemas.files.documents import parse_toml
from schemas.files.resuming import (
    Choice,
    cannot_change,
    kept_config,
    kept_seed,
    not_on_resume,
    state_meant,
)
from schemas.files.run_folder import (
    CONFIG,
    MANIFEST,
    STATE,
    read_record,
    same_place,
    states_in,
)
from schemas.files.saved_names import BESIDE, SAVED
from schemas.files.textfile import CONFIG as LARGEST
from schemas.files.textfile import read_text
from schemas.problems import ConfigError, Problem, error, nearest

Mode = Literal["resume", "continue", "launch"]
LENGTHS = {"max_train_steps", "max_train_epochs"}
# Places that may change on a resume, renamed or on another machine: what stands there is compared by its content.
MOVABLE = ("train_data_dir", "reg_data_dir", "in_json", "pretrained_model_name_or_path", "vae")
ELSE = "--epochs N starts a new run from its weights"
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

    @cached_property
    def choice(self) -> Choice:
        """The state to go on from, read and compared; ConfigError where the one named, or every one, is damaged."""
        return state_meant(self.chosen or self.run, self.run) if self.run else Choice(None)

    @property
    def state(self) -> Path | None:
        return self.choice.state.path if self.choice.state else None

    @property
    def cut_off(self) -> bool:
        """Whether the last start of the run did not come to its end, or is to be gone back on.

        Without a record of starts the states alone tell; whether anything is left of the run shows in its plan.
        """
        if self.chosen or self.run is None:
            return self.chosen is not None
        starts = read_record(self.run).get("starts")
        return starts[-1].get("exit") != 0 if starts else bool(states_in(self.run)) or self.weights is None


@dataclass(frozen=True)
class Continuation:
    """A resolved config that goes on with an earlier run, and the first lines to print."""

    mode: Mode
    resolved: Resolved
    found: Found
    said: list[str]
    processes: int | None = None
    seen: tuple[str, ...] = ()  # the whole states of that run when this one was chosen, by name

    @property
    def own(self) -> bool:
        """Whether it goes on in the run folder that it comes from."""
        run = self.found.run
        return self.mode == "resume" and run is not None and same_place(run, paths.run_folder(self.resolved))


def find(path: str) -> Found:
    """The run, snapshot or weights that `path` names; ConfigError `nothing-to-resume` when there is none."""
    place = Path(path)
    run = Path(os.path.realpath(place)).parent  # resolve() fails at circles of links
    if (run / CONFIG).is_file() and run.suffix == ".run":  # a part of a run folder, such as a state of it
        found = _in_folder(run)
        if STATE.fullmatch(place.name) or (place / MANIFEST).exists():
            return replace(found, chosen=place)
        if place.exists():
            return found
    if not place.exists():
        raise error(
            "no-file", "does not exist", file=path, fix="name a run folder, a snapshot, an output folder or a LoRA"
        )
    if place.is_dir():
        return _in_folder(place)
    if place.suffix == ".safetensors":
        match = SAVED.fullmatch(place.name)
        name = match["name"] if match else place.stem
        return Found(place.parent, name, _run_of(place.parent, name), place, place)
    match = SNAPSHOT.fullmatch(place.name)
    name = match["name"] if match else place.stem
    return Found(place.parent, name, _run_of(place.parent, name), _newest_weights(place.parent, name), place)


def _in_folder(place: Path) -> Found:
    if (place / CONFIG).is_file():
        name = place.name.removesuffix(".run")
        return Found(place.parent, name, place, _newest_weights(place.parent, name))
    runs = sorted(place.glob(f"*.run/{CONFIG}"), key=lambda file: file.stat().st_mtime)
    runs = [run for run in runs if not re.search(r"-v\d+\.run$", run.parent.name)] or runs
    if runs:
        return _in_folder(runs[-1].parent)
    if states_in(place):
        must, fix = f"holds states, but no {CONFIG} to train by", f"kohyakit launch FILE --set resume={place}"
        raise error("nothing-to-resume", must, file=str(place), fix=fix)
    loras = sorted(place.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    loras = [file for file in loras if not file.stem.endswith(BESIDE)] or loras  # those are younger than their LoRA
    if not loras:
        raise error("nothing-to-resume", "holds no run and no LoRA", file=str(place), fix="name the LoRA file itself")
    return find(str(loras[-1]))


def _run_of(folder: Path, name: str) -> Path | None:
    run = folder / f"{name}.run"
    return run if (run / CONFIG).is_file() else None


def _newest_weights(folder: Path, name: str) -> Path | None:
    """The final file, or else the newest copy."""
    final = folder / f"{name}.safetensors"
    if final.is_file():
        return final
    copies = [
        path
        for path in folder.glob(f"{name}-*.safetensors")
        if (match := SAVED.fullmatch(path.name)) and match["name"] == name and not match["beside"]
    ]
    return max(copies, key=lambda path: path.stat().st_mtime, default=None)


def go_on(
    path: str, sets: Mapping[str, str], *, epochs: int | None = None, steps: int | None = None, to_end: bool = False
) -> Continuation:
    """Which of the two ways it is, and the config of it."""
    if sum((epochs is not None, steps is not None, to_end)) > 1:
        raise UsageError("--epochs, --steps and --to-end exclude each other")
    found = find(path)
    if epochs is not None or steps is not None:
        return _further(found, sets, epochs, steps)
    if to_end or found.cut_off or (found.state and not LENGTHS.isdisjoint(sets)):
        if found.state:
            return _exact(found, sets)
        if found.cut_off and found.run and found.weights is None:
            return _from_the_beginning(found, sets)
    ends = (found.name, *(f"{found.name}{kind}" for kind in BESIDE))
    finished = found.weights is not None and found.weights.stem in ends  # though nobody wrote that down
    if to_end or (found.cut_off and not finished):
        fix = "--epochs N or --steps N starts a new run from the weights"
        raise error("no-state", "has no state to resume from exactly", file=str(found.run or found.output), fix=fix)
    fix = "--epochs N or --steps N starts a new run from its weights"
    raise error("nothing-to-resume", "is complete, so say how much further", file=path, fix=fix)


def _exact(found: Found, sets: Mapping[str, str]) -> Continuation:
    assert found.run is not None
    assert found.state is not None
    draft = _own_draft(found, sets)
    # The newest state is chosen again by the trainer, under its lock; a state that was named is that one.
    resolved = settle(draft, sets).change("resume", str(found.chosen or found.run), "computed")
    return _going_on(found, resolved, [] if read_record(found.run) else _changed(sets))


def _from_the_beginning(found: Found, sets: Mapping[str, str]) -> Continuation:
    resolved = settle(_own_draft(found, sets), sets).change("resume", str(found.run), "computed")
    said = [f"resume: from the beginning: {found.run} was stopped before its first state"]
    kept = read_record(found.run) if found.run else {}
    processes = (kept.get("accelerate") or {}).get("num_processes")
    return Continuation("resume", resolved, found, said + _changed(sets), processes)


def _own_draft(found: Found, sets: Mapping[str, str]) -> Draft:
    draft = _kept_draft(found, carried=False)
    _take_launch_words(draft, sets)
    _refuse_changes(draft, sets)
    draft.arguments.pop("resume_from_huggingface", None)
    return draft


def _changed(sets: Mapping[str, str]) -> list[str]:
    return [f"    changed: {name}={'***' if _secret(name) else value}" for name, value in sets.items()]


def _secret(name: str) -> bool:
    return name in table() and table()[name].secret


def _going_on(found: Found, resolved: Resolved, more: list[str]) -> Continuation:
    """The way from a state that has been read and compared."""
    state, run = found.choice.state, found.run
    assert state is not None
    assert run is not None
    kept = read_record(run)
    total = (kept.get("steps") or {}).get("total", "?")
    said = [f"resume: exactly, from step {state.step} of {total}, state {state.path}"]
    said += [f"    {line}" for line in found.choice.said]
    whole = [one.path for one in states_in(run) if one.whole]
    if found.chosen and whole and not same_place(whole[-1], state.path):
        said.append(f"    goes back: newer states, down to {whole[-1].name}, and their records in the log are dropped")
    processes = (kept.get("accelerate") or {}).get("num_processes")
    return Continuation("resume", resolved, found, said + more, processes, tuple(path.name for path in whole))


def in_file(resolved: Resolved) -> Continuation | None:
    """What `kohyakit resume` does, for a file that sets `resume` itself; None where it does not.

    The options are the file's: `counted` refuses those that would make it another run. Its own run folder without a
    state means a start from the beginning.
    """
    asked = resolved.config.resume
    if not asked or resolved.config.resume_from_huggingface or (paths.foreign(asked) and not Path(asked).exists()):
        return None
    run = paths.run_folder(resolved)
    try:
        choice = state_meant(Path(asked), run)
    except ConfigError as fault:
        raise ConfigError([resolved.placed(problem) for problem in fault.problems]) from None
    if choice.state is None:
        if _newest_weights(run.parent, paths.run_name(resolved)) is None:
            beginning = resolved.change("resume", None, "computed")
            return Continuation("launch", beginning, Found(run.parent, paths.run_name(resolved)), [*choice.said])
        must, fix = f"is complete: {run} holds no state, and the LoRA is saved", f"kohyakit resume {run} --epochs N"
        raise ConfigError([resolved.placed(Problem(code="nothing-left", key="resume", got=asked, must=must, fix=fix))])
    source = choice.state.path.parent
    chosen = choice.state.path if same_place(choice.state.path, Path(asked)) else None
    found = Found(source.parent, source.name.removesuffix(".run"), source, chosen=chosen)
    found.__dict__["choice"] = choice  # read once
    more = []
    if same_place(source, run) and resolved.config.overwrite:
        resolved = resolved.change("overwrite", False, "computed")
        more = ["    overwrite has no effect: this goes on with the run that is there"]
    seed = kept_seed(str(choice.state.path))
    if resolved.config.seed is None and seed is not None:
        resolved = resolved.change("seed", seed, "computed")
    return _going_on(found, resolved, more)


def counted(plan: Plan, way: Continuation) -> Plan:
    """The plan from the state on; with errors for options that make it another run, and where nothing is left."""
    state = way.found.choice.state if way.mode == "resume" else None
    if state is None:
        return plan
    from trainer.plan.remaining import nothing_left, steps_done

    resolved = plan.checked.resolved
    before = kept_config(state.path)
    problems = list(not_on_resume(before, resolved.config, state.path.parent)) if before else []
    done = 0
    if plan.steps is not None:
        left = nothing_left(resolved.config, plan.steps, state, own=way.own)
        problems += [left] if left else []
        done = steps_done(state, plan.steps) or 0
    return replace(
        plan,
        done=done,
        saves=[save for save in plan.saves if save.step > done],
        previews=[step for step in plan.previews if step > done],
        rates=[point for point in plan.rates if point[0] >= done],
        problems=unique([*plan.problems, *(resolved.placed(problem) for problem in problems)]),
    )


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
            problems.append(cannot_change(f"--set {name}", before, text, ELSE))
    if problems:
        raise ConfigError(problems)


def _kept_draft(found: Found, *, carried: bool) -> Draft:
    """The draft of a run folder's config.toml, with the origins of the first start, wherever the folder is now."""
    from launcher import formats

    run = found.run
    if run is None:
        return formats.read(found.source or found.output)
    draft = formats.read(run / CONFIG, format="sd-scripts")
    kept = read_record(run)
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
    text = read_text(held, limit=LARGEST, what="file of a run")
    if name == "sample_prompts":
        draft.prompts = text
    else:
        draft.datasets = parse_toml(text)


def _further(found: Found, sets: Mapping[str, str], epochs: int | None, steps: int | None) -> Continuation:
    from schemas.files.weights import lora_facts

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
    kept = read_record(way.found.run) if way.found.run else {}
    said = way.said
    if way.mode == "continue":
        said = said + [f"    renames: {path} -> {target.name}" for path, target in moves(plan)]
    if "options" not in kept or way.mode == "launch" or (way.mode == "resume" and way.found.state is None):
        return said
    found = changes(plan, kept)
    differs = [f"    differs: {change}" for change in found] or ["    nothing differs from the first start"]
    if way.mode == "continue":
        return [*said, *differs, "    verdict: a new run"]
    made = verdict(found)
    how, meaning = {
        "exact": ("exactly", "exact: the same numbers as without the interruption"),
        "equivalent": ("equivalently", "equivalent: the same run up to rounding and order, not bit for bit"),
        "new run": ("not exactly", "a new run from here on: other data or options"),
    }[made]
    first, *rest = said
    if plan.done and plan.steps is not None:  # the run may have another length by now
        first = re.sub(r" of \S+, state ", f" of {plan.steps.total}, state ", first, count=1)
    return [first.replace("exactly", how, 1), *rest, *differs, f"    verdict: {meaning}"]


def start(
    plan: Plan, way: Continuation, *, write: Callable[[bytes], Any], say: Callable[[str], Any], terminal: bool = False
) -> Ended:
    """Trains on: in the same run folder when exact, else in a new one after older results have been moved aside."""
    from launcher.run import launch as run

    plan = renamed(run.settled(plan), way)
    run.probe_writing(plan)
    with run.locked(plan) as token:
        if way.own:
            _refuse_meanwhile(plan, way)
        elif not plan.launch.machine_rank:
            keep_older(plan)
        ready = run.write_config if way.own else run.prepare
        return run.start(plan, mode=way.mode, ready=ready, write=write, say=say, terminal=terminal, token=token)


def _refuse_meanwhile(plan: Plan, way: Continuation) -> None:
    """ConfigError where another start has gone on with the run since this command looked at it. Under the lock."""
    run = paths.run_folder(plan.checked.resolved)
    now = tuple(state.path.name for state in states_in(run) if state.whole)
    if now != way.seen and not plan.launch.machine_rank:
        must, fix = "has been gone on with by another start meanwhile; nothing was changed", "run the command again"
        raise error("run-in-use", must, file=str(run), fix=fix)
