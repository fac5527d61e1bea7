"""What to try after a run. Every rule is one function: its docstring says when it speaks, its text says why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from launcher.report.facts import Copy, Run

FEW_LOOKS, MANY_LOOKS, GOOD_LOOKS = 50, 400, 100  # how often a picture is seen
QUARTER = 5  # fewer steps in a quarter of the run say nothing about a trend
CLEAR = 2.0  # standard errors between two quarters that count as a change
MOVED = 0.9  # share of modules that have left their start in a run that has learned


@dataclass(frozen=True)
class Suggestion:
    """One thing to try; `command` can be typed as it stands."""

    code: str
    title: str
    reason: str
    command: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {"code": self.code, "title": self.title, "reason": self.reason, "command": list(self.command)}


@dataclass(frozen=True)
class Trend:
    """Mean loss of the last quarter of the steps and of the quarter before it; `error` is that of their difference."""

    before: float
    after: float
    error: float

    @property
    def word(self) -> str:
        change = self.after - self.before
        return "falling" if change < -CLEAR * self.error else "rising" if change > CLEAR * self.error else "flat"


@dataclass(frozen=True)
class Case:
    """What the rules look at. Commands name files below `base`; `health` is that of the newest weights."""

    run: Run
    base: PurePath
    health: Mapping[str, Any] | None
    trend: Trend | None

    @property
    def folder(self) -> str:
        return str(self.base / self.run.folder.name)

    @property
    def ended(self) -> bool:
        """Whether the run came to its end with numbers that mean something."""
        return self.run.exit == 0 and first_lost(self.run) is None

    def anew(self, sets: Mapping[str, Any]) -> tuple[str, ...]:
        """The same run once more under a free name, with changes."""
        number = 2
        while any(self.run.output.glob(f"{self.run.name}-{number}[.-]*")):
            number += 1
        words = {"output_name": f"{self.run.name}-{number}"}
        if self.run.config.resume:
            words["resume"] = ""
        return ("kohyakit", "launch", str(self.base / self.run.folder.name / "config.toml"), *_words({**words, **sets}))

    def further(self, start: str, epochs: int, sets: Mapping[str, Any] = {}) -> tuple[str, ...]:
        """A new run from weights."""
        return ("kohyakit", "resume", start, "--epochs", str(epochs), *_words(sets))


def _words(sets: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(word for name, value in sets.items() for word in ("--set", f"{name}={value}"))


def advise(run: Run, base: PurePath, health: Mapping[str, Any] | None) -> list[Suggestion]:
    """All suggestions, most important first."""
    case = Case(run, base, health, trend([step.loss for step in run.steps]))
    return [said for rule in RULES if (said := rule(case)) is not None] or [nothing_stands_out(case)]


def trend(losses: list[float]) -> Trend | None:
    """None for runs that are too short, or that have lost their numbers."""
    size = len(losses) // 4
    if size < QUARTER or not all(math.isfinite(loss) for loss in losses):
        return None
    before, after = losses[-2 * size : -size], losses[-size:]
    means = [sum(part) / size for part in (before, after)]
    spread = sum(
        sum((loss - mean) ** 2 for loss in part) / (size - 1) / size
        for part, mean in zip((before, after), means, strict=True)
    )
    return Trend(means[0], means[1], math.sqrt(spread))


def first_lost(run: Run) -> int | None:
    """The first step whose loss is not a number, as the log or the trainer's own stop shows it."""
    lost = next((step.step for step in run.steps if not math.isfinite(step.loss)), None)
    return run.last.step + 1 if lost is None and run.stopped_itself else lost


def rates(run: Run, factor: float) -> dict[str, str]:
    """--set words for every learning rate that counts."""
    config = run.config
    found = {"learning_rate": f"{config.learning_rate * factor:.3g}"}
    if config.unet_lr is not None:
        found["unet_lr"] = f"{config.unet_lr * factor:.3g}"
    if config.text_encoder_lr:
        found["text_encoder_lr"] = " ".join(f"{rate * factor:.3g}" for rate in config.text_encoder_lr)
    return found


def epochs_left(run: Run) -> int:
    return max(1, math.ceil((run.total - run.last.step) / run.per_epoch))


def numbers_lost(case: Case) -> Suggestion | None:
    """A loss in the log is not finite, or the trainer stopped itself over one: the last good copy at half rates."""
    run = case.run
    lost = first_lost(run)
    if lost is None:
        return None
    sets = rates(run, 0.5)
    reason = f"At step {lost} the loss was no number any more. An exact resume would meet the same step again."
    if run.cause:
        which = "Cause" if run.cause.get("certain") else "Likely causes"
        reason += f" {which}: {'; '.join(map(str, run.cause.get('causes', [])))}."
    elif run.config.mixed_precision == "fp16":
        reason += " fp16 often is the cause; on a newer GPU mixed_precision=bf16 is the cure."
    good: Copy | None = next((copy for copy in reversed(run.copies) if copy.step < lost), None)
    if good is None:
        return Suggestion("numbers-lost", "Begin again with half the learning rates", reason, case.anew(sets))
    command = case.further(str(case.base / good.path.name), epochs_left(run), sets)
    return Suggestion("numbers-lost", f"Go on from {good.path.name} with half the learning rates", reason, command)


def cut_off(case: Case) -> Suggestion | None:
    """The last start did not come to its end: resume exactly, from the weights where there is no state, else again."""
    from launcher.run.record import newest_state

    run = case.run
    if run.exit == 0 or first_lost(run) is not None:
        return None
    words = {None: "has no end in its record: it is still running, or was killed", 130: "was interrupted"}
    how = words.get(run.exit, f"failed with exit code {run.exit}")
    reason = f"The run {how}, at step {run.last.step} of {run.total}."
    state = newest_state(run.folder)
    if state is not None:
        reason += f" {state.name} is whole: from there it goes on exactly as if nothing had happened."
        return Suggestion("cut-off", "Resume it", reason, ("kohyakit", "resume", case.folder))
    if run.copies:
        copy = run.copies[-1]
        reason += f" It has no state, but the weights of step {copy.step}."
        command = case.further(str(case.base / copy.path.name), epochs_left(run))
        return Suggestion("cut-off", f"Go on from {copy.path.name}", reason, command)
    return Suggestion("cut-off", "Begin again", f"{reason} It has left neither state nor weights.", case.anew({}))


def unsound_weights(case: Case) -> Suggestion | None:
    """The newest weights hold NaN or infinity, or fewer than 9 in 10 modules have left their start."""
    if case.health is None or not case.run.copies:
        return None
    name = case.run.copies[-1].path.name
    moved, modules = case.health["moved_modules"], case.health["modules"]
    if not case.health["finite"]:
        reason = f"{name} holds numbers that are not finite; images made with it are black. Take an older copy."
        return Suggestion("broken-weights", "Do not use the newest file", reason, case.anew(rates(case.run, 0.5)))
    if modules and moved < MOVED * modules and case.run.exit == 0:
        reason = f"Only {moved} of {modules} modules in {name} have moved from their start: it has hardly learned."
        return Suggestion("hardly-moved", "Double the learning rates", reason, case.anew(rates(case.run, 2)))
    return None


def rising(case: Case) -> Suggestion | None:
    """The loss of the last quarter lies two standard errors above that of the quarter before."""
    run = case.run
    if not case.ended or case.trend is None or case.trend.word != "rising":
        return None
    reason = f"The mean loss rose from {case.trend.before:.4f} to {case.trend.after:.4f} in the last quarter."
    good = next((copy for copy in reversed(run.copies) if copy.step <= 0.75 * run.last.step), None)
    if good is not None:
        reason += f" Compare {good.path.name} with the last file in the sheet first."
    return Suggestion("rising", "Halve the learning rates", reason, case.anew(rates(run, 0.5)))


def further(case: Case) -> Suggestion | None:
    """Fewer than 50 looks a picture, or the loss still falls at the end (as `rising`, downward): continue.

    Up to 100 looks, or a quarter of the run again, whichever is more. Not with more than 400 looks behind it; a run
    that itself continued another has looked more often than its own steps say, so few of them are no reason.
    """
    run, looks = case.run, case.run.looks
    few = looks is not None and looks < FEW_LOOKS and not run.config.network_weights
    falling = case.trend is not None and case.trend.word == "falling"
    rose = case.trend is not None and case.trend.word == "rising"
    if not case.ended or rose or not (few or falling) or (looks or 0) > MANY_LOOKS:
        return None
    done, reasons = run.last.step / run.per_epoch, []
    epochs = math.ceil(done / 4)
    if few and looks is not None:
        reasons.append(f"Each image was trained on about {looks:.0f} times; {GOOD_LOOKS} and more are usual.")
        epochs = max(epochs, math.ceil(done * (GOOD_LOOKS / looks - 1)))
    if falling and case.trend is not None:
        reasons.append(f"The loss still fell at the end, from {case.trend.before:.4f} to {case.trend.after:.4f}.")
    reasons.append("This is a new run from the newest weights; its learning rate begins from the start again.")
    title = f"Continue for {epochs} epoch{'' if epochs == 1 else 's'}"
    return Suggestion("continue", title, " ".join(reasons), case.further(case.folder, epochs))


def too_long(case: Case) -> Suggestion | None:
    """More than 400 looks a picture: an older copy, or a shorter run of half of that."""
    run, looks = case.run, case.run.looks
    if not case.ended or looks is None or looks <= MANY_LOOKS:
        return None
    wanted = max(1, round(run.last.step * MANY_LOOKS / 2 / looks))
    near = min(run.copies, key=lambda copy: abs(copy.step - wanted), default=None)
    reason = f"Each image was trained on about {looks:.0f} times; over {MANY_LOOKS} it tends to be learned by heart."
    if near is not None and near.step < run.last.step:
        reason += f" {near.path.name} comes near {MANY_LOOKS // 2} exposures: compare it first."
    sets = {"max_train_epochs": "", "max_train_steps": wanted} if run.config.max_train_epochs else {}
    return Suggestion("too-long", "Train shorter", reason, case.anew(sets or {"max_train_steps": wanted}))


def same_rates(case: Case) -> Suggestion | None:
    """The text encoder's highest rate equals the U-Net's, under an optimizer that does not find the rate itself."""
    from schemas.optimizers import resolve, sets_its_own_rate

    run = case.run
    if sets_its_own_rate(resolve(run.config.optimizer_type) or ""):
        return None
    peaks: dict[str, float] = {}
    for step in run.steps:
        for name, rate in step.lr.items():
            part = "unet" if name.startswith("unet") else "text"
            peaks[part] = max(peaks.get(part, 0.0), rate)
    if len(peaks) < 2 or not math.isclose(peaks["text"], peaks["unet"], rel_tol=0.01):
        return None
    count = max(1, len(run.config.text_encoder_lr))
    rate = run.config.learning_rate if run.config.unet_lr is None else run.config.unet_lr
    half = " ".join([f"{rate / 2:.3g}"] * count)
    reason = (
        f"Text encoder and U-Net both learned at {rate:.3g}. The text encoder forgets sooner; half the U-Net's"
        " rate or less is usual."
    )
    return Suggestion("same-rates", "A lower rate for the text encoder", reason, case.anew({"text_encoder_lr": half}))


def nothing_to_compare(case: Case) -> Suggestion | None:
    """More than one epoch was trained, but only one file was saved."""
    if not case.ended or case.run.last.epoch < 2 or len(case.run.copies) != 1:
        return None
    reason = "Only one file was saved, so no earlier epoch can be chosen where the last has learned too much."
    return Suggestion("one-copy", "Keep a file of each epoch", reason, case.anew({"save_every_n_epochs": 1}))


def no_previews(case: Case) -> Suggestion | None:
    """A finished run without previews whose config names no prompt file."""
    if not case.ended or case.run.previews or case.run.config.sample_prompts:
        return None
    reason = "Without previews nothing shows what was learned when. prompts.txt is yours to write: one prompt a line."
    sets = {"sample_prompts": "prompts.txt", "sample_every_n_epochs": 1}
    return Suggestion("no-previews", "Make previews", reason, case.anew(sets))


def nothing_stands_out(case: Case) -> Suggestion:
    """No other rule has spoken."""
    name = case.run.copies[-1].path.name if case.run.copies else f"{case.run.folder.name}/config.toml"
    word = "inspect" if case.run.copies else "validate"
    reason = "No rule finds fault with this run. Use the file of the moment whose previews please most."
    return Suggestion("nothing", "Nothing stands out", reason, ("kohyakit", word, str(case.base / name)))


RULES: tuple[Callable[[Case], Suggestion | None], ...] = (
    numbers_lost, cut_off, unsound_weights, rising, further, too_long, same_rates, nothing_to_compare, no_previews,
)  # fmt: skip
