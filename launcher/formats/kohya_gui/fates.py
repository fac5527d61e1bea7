"""What became of every key of a form JSON."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from launcher.formats.base import DraftBuilder, Fate
from launcher.formats.kohya_gui.entries import NOISE, Entry, free_words
from launcher.formats.kohya_gui.form import Form
from launcher.formats.kohya_gui.networks import key_of, pairs_of, users_of
from launcher.formats.kohya_gui.table import Key, clean, hidden, keys, read_key, unset
from launcher.formats.registry import Keys
from schemas.config import table as options
from schemas.problems import Problem, Severity
from schemas.terminal import shell_word

SNAPSHOT = "kohyakit_snapshot"  # what a snapshot keeps beside the form
COMMENT_STARTS = ("$", "_", "#", "//", "==")
FORM_NAMES = {
    "resolution": "max_resolution", "optimizer_type": "optimizer", "sdpa": "xformers", "epochs": "epoch",
    "network_module": "LoRA_type", "network_train_unet_only": "text_encoder_lr",
    "network_train_text_encoder_only": "unet_lr", "lora_rank": "network_dim", "lora_alpha": "network_alpha",
    "lora_dropout": "network_dropout",
}  # fmt: skip
NEVER_SENT = {
    "lowvram": "the form no longer sends it",
    "stop_text_encoder_training": "Kohya's LoRA trainers have no such option; the form resets it to 0",
    "train_blocks": "the form sends train_blocks=single only, and only with split_mode",
    "no_token_padding": "the trainer no longer has this option",
    "block_lr": "existed for a day; nothing reads it",
    "stable_cascade": "existed on a development branch only",
}
# What the flags of older forms stand for today.
OLD_VALUES = {
    "use_8bit_adam": "AdamW8bit", "locon": "LyCORIS/LoCon", "use_wandb": "wandb", "use_wandb_checkbox": "wandb",
}  # fmt: skip


def _here(name: str, raw: Any) -> str | None:
    """How to have here what Kohya leaves out; the form's number is a per cent of the run."""
    if name == "stop_text_encoder_training" and isinstance(raw, (int, float)) and 0 < raw <= 100:
        return f"--set {name}={raw / 100:g} to have it"
    return None


TRACKERS = ("tensorboard", "wandb")  # packages under the names that log_with has for them


def _set(name: str, value: Any) -> str:
    """The words that give `name` that value, and what it needs first."""
    word = str(value).lower() if isinstance(value, bool) else shell_word(hidden(name, value))
    needs = value if name == "log_with" and value in TRACKERS and importlib.util.find_spec(value) is None else None
    return f"--set {name}={word} to have it" + (f" (first: pip install {needs})" if needs else "")


class Judge:
    """Tells the fate of each key, and collects what people should know about it in `problems`."""

    def __init__(
        self, form: Form, draft: DraftBuilder, found: Mapping[str, Entry], replaced: set[str], typed: set[str]
    ) -> None:
        """`found`: the form's entries; `replaced`: arguments set by additional_parameters; `typed`: keys from --set."""
        self.form, self.draft, self.found, self.replaced, self.typed = form, draft, found, replaced, typed
        self.problems: list[Problem] = []
        self.other_tab = any(problem.code == "not-a-lora-preset" for problem in draft.problems)
        self.network = {key_of(name): (name, value) for name, value in pairs_of(form.values, form.family)}

    def fate(self, name: str, raw: Any) -> Fate:
        """What became of the key `name` that holds `raw` in the file, secrets blanked."""
        found = self._fate(name, raw)
        return Fate(found.status, found.argument, hidden("", found.value), found.why and clean(found.why))

    def _fate(self, name: str, raw: Any) -> Fate:
        key = keys().get(name)
        if key is None:
            return self._stranger(name, raw)
        if key.role == "tab":
            return Fate("no-effect", None, None, f"a key of another tab ({key.tab}); the LoRA tab does not read it")
        if key.retired is not None:
            return self._retired(key, raw)
        if name in self.form.bad:
            return Fate("no-effect", key.argument, self.effective(key.argument), "its value cannot be read")
        if raw is None and name not in self.typed:
            why = f"null leaves the form's default, {hidden(name, key.default)!r}"
            return Fate("default", key.argument, self.effective(key.argument), why)
        if not key.counts_for(self.form.family):
            return self._foreign(key)
        return self._current(key)

    def effective(self, argument: str | None) -> Any:
        """The value the trainer will use, fit to be shown."""
        if argument is None:
            return None
        setting = self.draft.arguments.get(argument)
        if setting is not None:
            return hidden(argument, setting.value)
        if argument in options():
            return options()[argument].default
        return hidden(argument, self.draft.carry.get("arguments", {}).get(argument))

    def _own(self, name: str) -> tuple[str | None, Any]:
        """(argument, value) where an option of ours has the name of a key that Kohya no longer sends."""
        return (name, self.effective(name)) if name in options() else (None, None)

    def _say(self, code: str, key: str, must: str, severity: Severity, raw: Any, fix: str | None = None) -> None:
        if key not in self.typed:
            place: dict[str, Any] = {"key": key, "file": self.draft.file, "line": self.draft.lines.get(key)}
            got = hidden(key, raw)
            self.problems.append(Problem(code=code, must=must, severity=severity, got=got, fix=fix, **place))

    def _stranger(self, name: str, raw: Any) -> Fate:
        if name.startswith(COMMENT_STARTS):
            return Fate("gui-only", None, None, "a remark; nothing reads it")
        if name == SNAPSHOT:
            return Fate("used", None, None, "kohyakit's own entry; Kohya's form passes it over")
        form_key = FORM_NAMES.get(name)
        if name in options() and self.other_tab:
            return Fate("no-effect", name, self.effective(name), "a key of another tab")
        if name in options():
            known = f"the form's key is {form_key}" if form_key else "the form has no such key"
            why = f"is an argument of the trainer, but Kohya's form does not read it: {known}"
            same = unset(raw) or raw == self.effective(name)
            self._say("not-a-form-key", name, why, "note" if same else "warning", raw, _set(name, raw))
            return Fate("no-effect", name, self.effective(name), why)
        guess = form_key or self.draft.guess(name, [other for other, key in keys().items() if key.current])
        fix = f"did you mean {guess}?" if guess else "remove it"
        self._say("unknown-key", name, "is not a key of Kohya's form, which ignores it", "warning", raw, fix)
        return Fate("unknown", None, None, f"Kohya ignores it; {fix}")

    def _retired(self, key: Key, raw: Any) -> Fate:
        target = keys().get(key.renamed_to or "")
        while target is not None and target.retired is not None:
            target = keys().get(target.renamed_to or "")
        if key.name == "network_train":
            return self._old_training(raw)
        if target is None or target.argument is None or key.name == "stop_text_encoder_training_pct":
            why = NEVER_SENT.get(key.name) or NEVER_SENT.get(key.renamed_to or "") or key.meaning()
            if not unset(raw) and key.name not in ("block_lr", "use_wandb"):
                self._say("no-effect", key.name, why, "warning", raw, _here(key.renamed_to or "", raw))
            return Fate("no-effect", *self._own(key.renamed_to or ""), why)
        name, sent = self.network.get(target.name, ("", None))
        value = self.effective(target.argument) if target.role != "network" else f"{name}={sent}" if name else None
        if self.form.taken.get(target.name) == key.name:
            return Fate("renamed", target.argument, value, f"the old name of {target.name}; Kohya converts it on load")
        if raw is None or self._says_the_same(key, target, raw):
            return Fate("renamed", target.argument, value, f"the old name of {target.name}; it says the same")
        why = f"an old name of {target.name} that Kohya no longer reads"
        fix = _set(target.name, OLD_VALUES.get(key.name, raw))
        self._say("old-name", key.name, f"is {why}; {self._instead(target)} counts", "warning", raw, fix)
        return Fate("no-effect", target.argument, value, f"{why}; {fix}")

    def _instead(self, target: Key) -> str:
        return f"{target.name} {hidden(target.name, self.form[target.name])!r}"

    def _says_the_same(self, key: Key, target: Key, raw: Any) -> bool:
        if key.name in ("use_8bit_adam", "use_wandb", "use_wandb_checkbox", "locon"):
            return unset(raw) or bool(self.form[target.name] == OLD_VALUES[key.name])
        if isinstance(raw, (dict, list)):
            return False
        value = read_key(target, raw).value
        return bool(value == self.form[target.name] or (unset(value) and unset(self.form[target.name])))

    def _old_training(self, raw: Any) -> Fate:
        part = {"Text encoder only": "text_encoder", "Unet only": "unet"}.get(str(raw))
        flag = f"network_train_{part}_only" if part else None
        if flag is None:
            return Fate("no-effect", None, None, "both parts were trained; the rates decide today")
        if self.effective(flag):
            return Fate("renamed", flag, True, "the rates say the same")
        why = "Kohya no longer reads it: the rates decide"
        self._say("old-name", "network_train", why, "warning", raw, _set(flag, True))
        return Fate("no-effect", flag, False, why)

    def _foreign(self, key: Key) -> Fate:
        if key.only:
            why = f"counts for {', '.join(key.only)} models only; this is {self.draft.family}"
            return Fate("other-family", key.argument, None, why)
        return Fate("no-effect", key.argument, None, f"the form does not send it for {self.draft.family} models")

    def _current(self, key: Key) -> Fate:
        name = key.name
        if name in NEVER_SENT:
            if not unset(self.form[name]) and self.form[name] != key.default:
                self._say("no-effect", name, NEVER_SENT[name], "warning", self.form[name], _here(name, self.form[name]))
            return Fate("no-effect", *self._own(name), NEVER_SENT[name])
        if key.role == "box":
            picked = bool(self.form[name])
            return Fate("used", None, picked, f"decides the kind of model: {self.draft.family}")
        if key.role == "launch":
            value = hidden(name, self.form[name])
            return Fate("used", None, value, "goes to accelerate launch")
        if key.role == "parameters":
            words = free_words(hidden(name, self.form[name]))
            return Fate("used", None, words, "words for the trainer's command line") if words else Fate("default")
        if key.role == "form":
            why = {"noise_offset_type": "picks the group of noise settings"}.get(name, key.meaning())
            return Fate("gui-only", None, self.form.values.get(name), why)
        return self._network_key(key) if key.role == "network" else self._argument(key)

    def _network_key(self, key: Key) -> Fate:
        value, kind = self.form[key.name], self.form["LoRA_type"]
        if "network_args" in self.replaced:
            return Fate("no-effect", "network_args", None, "additional_parameters gives --network_args")
        if key.name in self.network:
            name, sent = self.network[key.name]
            return Fate("used", "network_args", sent, f"network_args {name}={sent}")
        users = users_of(key.name)
        if users and all(user.startswith("Flux1") for user in users) and self.form.family != "flux":
            return Fate("other-family", "network_args", None, f"counts for FLUX only; this is {self.draft.family}")
        if unset(value):
            return Fate("default", "network_args", None, "empty or 0 is unset")
        why = f"LoRA_type {kind} does not use it"
        if value != key.default:
            self._say("no-effect", key.name, f"has no effect: {why}", "note", value)
        return Fate("no-effect", "network_args", None, why)

    def _argument(self, key: Key) -> Fate:
        special = {
            "LoRA_type": self._kind, "max_train_steps": self._steps, "epoch": self._steps, "lr_warmup": self._warmup,
            "lr_warmup_steps": self._warmup, "text_encoder_lr": self._rate, "unet_lr": self._rate,
            "t5xxl_lr": self._rate, "xformers": self._attention, "sample_prompts": self._prompts,
            "wandb_run_name": self._run_name,
        }.get(key.name)  # fmt: skip
        argument = key.argument or key.name
        if argument in self.replaced:
            why = f"additional_parameters gives --{argument}"
            return Fate("no-effect", argument, self.effective(argument), why)
        return special(key) if special else self._plain(key, argument)

    def _plain(self, key: Key, argument: str) -> Fate:
        value, form_value = self.effective(argument), self.form[key.name]
        taken = self.form.taken.get(key.name)
        if taken is not None:
            return Fate("no-effect", argument, value, f"{taken} of the same file replaces it")
        entry = self.found.get(argument)
        if entry is None or entry.key != key.name:
            return self._inactive(key, argument, value)
        setting = self.draft.arguments.get(argument)
        if setting is not None or not unset(form_value):
            return self._sent(key, argument, value, form_value)
        if key.secret and form_value:
            return Fate("used", argument, "***")
        if form_value == value and not isinstance(form_value, str):
            return Fate("used", argument, value)
        if unset(value) or value == ():
            return Fate("default", argument, value, "empty or 0 is unset")
        return self._dropped(key, argument, value, form_value)

    def _sent(self, key: Key, argument: str, value: Any, form_value: Any) -> Fate:
        if argument == "train_inpainting":
            why = "newer trainers mask the pictures with it; here the whole picture is learnt"
            self._say("no-effect", key.name, f"has no effect: {why}", "warning", form_value)
            return Fate("no-effect", argument, None, why)
        if argument in self.draft.arguments or argument in self.draft.carry.get("arguments", {}):
            return Fate("used", argument, value)
        if argument.startswith("sample_every"):
            return Fate("no-effect", argument, None, "there are no sample_prompts, so no previews are made")
        if argument == "max_token_length":
            return Fate("used", argument, 75, "75 is the trainer's own length")
        if argument == "resume_from_huggingface":
            return Fate("no-effect", argument, False, "nothing is resumed")
        if argument in options() and argument not in ("xformers",):
            return Fate("no-effect", argument, value, "its value cannot be used")
        return Fate("used", argument, hidden(key.name, form_value))

    def _inactive(self, key: Key, argument: str, value: Any) -> Fate:
        group = next((kind for kind, names in NOISE.items() if key.name in names), None)
        if group is not None and self.form["noise_offset_type"] == group:
            why = "counts beside a noise_offset only"
        elif group is not None:
            why = f"counts with noise_offset_type {group} only"
        else:
            why = "the form does not send it here"
        if unset(self.form[key.name]):
            return Fate("default", argument, value, why)
        if self.form[key.name] != key.default:
            self._say("no-effect", key.name, f"has no effect: {why}", "note", self.form[key.name])
        return Fate("no-effect", argument, value, why)

    def _dropped(self, key: Key, argument: str, value: Any, form_value: Any) -> Fate:
        """An empty value or 0 that Kohya leaves out, so that another default takes its place."""
        shown = "an empty value" if form_value == "" else "0"
        why = f"Kohya leaves out {shown}, so the trainer's default {value!r} counts"
        if form_value == "" and argument != "caption_extension":
            return Fate("default", argument, value, why)
        if self._matters(argument):
            empty = form_value == ""
            fix = "write .txt" if empty else f"--set {argument}={form_value} for a real {form_value}"
            self._say("empty-dropped" if empty else "zero-dropped", key.name, why, "warning", form_value, fix)
        return Fate("no-effect", argument, value, why)

    def _matters(self, argument: str) -> bool:
        form = self.form
        cases: dict[str, bool] = {
            "vae_batch_size": False,
            "learning_rate": False,
            "lr_scheduler_num_cycles": form["lr_scheduler"] == "cosine_with_restarts",
            "lr_scheduler_power": form["lr_scheduler"] == "polynomial",
            "huber_c": form["loss_type"] in ("huber", "smooth_l1"),
            "huber_scale": form["loss_type"] in ("huber", "smooth_l1"),
            "multires_noise_discount": not unset(form["multires_noise_iterations"]),
            "prior_loss_weight": bool(form["reg_data_dir"] or form["dataset_config"]),
            "min_bucket_reso": bool(form["enable_bucket"]),
            "max_bucket_reso": bool(form["enable_bucket"]),
        }
        return cases.get(argument, True)

    def _kind(self, key: Key) -> Fate:
        return Fate("used", "network_module", self.effective("network_module"))

    def _steps(self, key: Key) -> Fate:
        argument, given = "max_train_steps", self.draft.arguments.get("max_train_steps")
        if "max_train_epochs" in self.draft.arguments:
            return Fate("no-effect", argument, None, "max_train_epochs decides the length")
        if self.draft.gui_steps is not None:
            said = "is a factor in the steps" if key.name == "epoch" else "0: the steps are"
            return Fate("used", argument, None, f"{said} computed from the pictures")
        if key.name == "epoch":
            why = "counts only where the form computes the steps, with max_train_steps 0"
            if self.form["epoch"] not in (0, 1):
                self._say("no-effect", "epoch", f"has no effect: {why}", "note", self.form["epoch"])
            return Fate("no-effect", argument, self.effective(argument), why)
        if given is not None:
            return Fate("used", argument, given.value)
        return Fate("default", argument, self.effective(argument), "the trainer's default counts")

    def _warmup(self, key: Key) -> Fate:
        argument = "lr_warmup_steps"
        value, setting = self.effective(argument), self.draft.arguments.get(argument)
        if self.form.taken.get(key.name) is not None:
            return Fate("no-effect", argument, value, "the constant schedule has no warmup")
        if setting is not None and self.found[argument].key == key.name:
            why = f"{self.form['lr_warmup']} per cent of the run" if key.name == "lr_warmup" else None
            return Fate("used", argument, value, why)
        if unset(self.form[key.name]):
            return Fate("used" if value == 0 else "default", argument, value)
        return Fate("no-effect", argument, value, "lr_warmup_steps replaces it")

    def _rate(self, key: Key) -> Fate:
        argument = "unet_lr" if key.name == "unet_lr" else "text_encoder_lr"
        flag = "network_train_text_encoder_only" if key.name == "unet_lr" else "network_train_unet_only"
        if not unset(self.form[key.name]):
            return Fate("used", argument, self.effective(argument))
        if key.name == "t5xxl_lr":
            return Fate("default", argument, self.effective(argument), "0 is unset")
        if flag in self.draft.arguments:
            return Fate("used", flag, True, "0 beside the other part's rate: that part alone is trained")
        return Fate("default", argument, self.effective(argument), "no rates for single parts: learning_rate counts")

    def _attention(self, key: Key) -> Fate:
        name = next((flag for flag in ("xformers", "sdpa") if self.effective(flag)), "xformers")
        return Fate("used", name, self.effective(name))

    def _prompts(self, key: Key) -> Fate:
        if self.draft.prompts is None:
            return Fate("default", "sample_prompts", None, "no prompts, no previews")
        return Fate("used", "sample_prompts", hidden("", self.draft.prompts), "written to sample/prompt.txt")

    def _run_name(self, key: Key) -> Fate:
        why = None if self.form["wandb_run_name"] else "empty: the output name"
        return Fate("used" if why is None else "default", "wandb_run_name", self.effective("wandb_run_name"), why)


def documented() -> Keys:
    """The form's keys for the page of formats."""
    from launcher.formats import sd_scripts

    found = Keys()
    for key in keys().values():
        if key.tab:
            found.idle[key.name] = f"a key of the {key.tab} tab"
        elif key.retired:
            found.idle[key.name] = f"retired in {key.retired}" + (f"; now {key.renamed_to}" if key.renamed_to else "")
        elif key.only and not {"sd", "sdxl"} & set(key.only):
            found.idle[key.name] = f"for {' and '.join(key.only)} only"
        elif key.name in NEVER_SENT or key.name in sd_scripts.LEFTOVERS:
            found.idle[key.name] = NEVER_SENT.get(key.name) or sd_scripts.LEFTOVERS[key.name]
        else:
            found.add(key.name, key.argument or key.name)
    return found
