"""What a file may not decide alone: it is data, possibly a stranger's, and is asked about before it reaches further.

Consent is given for one run, on its command line: by `--set` for a value, by `--trust NAME` for a name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.check.resolve import Resolved
from launcher.formats.base import Draft, Setting
from schemas.config import table
from schemas.files.places import protected
from schemas.problems import Problem
from schemas.rules.names import caches_beside_images, document_places, written_places
from schemas.terminal import shell_word

FREE_WORDS = "extra_accelerate_launch_args"
# `accelerate launch`: options that only say how many processes start and in which number format
FLAGS = frozenset((
    "multi_gpu", "cpu", "quiet", "same_network", "debug", "enable_cpu_affinity", "dynamo_use_fullgraph",
    "dynamo_use_dynamic", "dynamo_use_regional_compilation", "downcast_bf16", "use_cpu",
))  # fmt: skip
VALUES = frozenset((
    "num_processes", "num_machines", "machine_rank", "main_process_port", "gpu_ids", "mixed_precision",
    "num_cpu_threads_per_process", "dynamo_backend", "dynamo_mode", "gradient_accumulation_steps",
))  # fmt: skip
HEEDED = frozenset((
    "num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port", "gpu_ids",
    "num_cpu_threads_per_process", "mixed_precision", "multi_gpu", "cpu",
))  # fmt: skip
# those that start other code, talk to other machines or write elsewhere, and what they would do
REACHING = {
    "m": "runs a module of that name", "module": "runs a module of that name",
    "no_python": "runs the next word as a program", "main_training_function": "runs a function of that name",
    "config_file": "reads a launch config, which can name programs and machines",
    "main_process_ip": "connects to another machine", "rdzv_backend": "connects to another machine",
    "rdzv_conf": "connects to another machine", "env": "sets environment variables",
    "vm": "runs commands on a remote machine", "tpu_use_sudo": "runs commands as root",
    "deepspeed_config_file": "reads a DeepSpeed config", "deepspeed_hostfile": "starts programs on other machines",
    "deepspeed_multinode_launcher": "starts programs on other machines",
    "deepspeed_inclusion_filter": "starts programs on other machines",
    "deepspeed_exclusion_filter": "starts programs on other machines",
    "mpirun_hostfile": "starts programs on other machines", "mpirun_ccl": "sets environment variables",
    "log_dir": "writes log files outside the run", "tee": "writes log files outside the run",
    "redirects": "writes log files outside the run", "aws_access_key_id": "uses an account of Amazon's",
    "aws_secret_access_key": "uses an account of Amazon's",
}  # fmt: skip
# a file's options that reach outside the run, and what they would do
OUTSIDE = {
    "log_tracker_config": "hands a file of settings to the tracker, which can name accounts, hosts and folders",
    "console_log_file": "writes a file outside the run",
}
TEXT_OUTSIDE = {
    "output_dir": "moves the results elsewhere than the form says",
    "logging_dir": "writes logs outside the run",
    "wandb_api_key": "sends the curves to another account",
}
UPLOADS = ("huggingface_repo_id", "save_state_to_huggingface", "resume_from_huggingface")
OF_THE_USER = ("trust", "overwrite")
FREE_TEXT = "additional_parameters"


def asked(resolved: Resolved) -> list[Problem]:
    """Everything of the file that needs consent, whatever trains."""
    found = [*_own_consent(resolved), *_outside(resolved), *_places(resolved)]
    found += [*launch_words(resolved.draft, resolved.config.trust)]
    return [resolved.placed(problem) for problem in found]


def asked_by_sd_scripts(resolved: Resolved) -> list[Problem]:
    """What besides needs consent when sd-scripts trains: our own trainer does none of it."""
    found: list[Problem] = []
    dataset = resolved.config.dataset_class
    if dataset and not _trusted(resolved.config.trust, dataset):
        found.append(_untrusted("dataset_class", dataset))
    if any(problem.code == "other-config-file" for problem in resolved.problems):
        must = "--config_file: sd-scripts would train what that file says, and nothing of this one"
        fix = f"remove it from {FREE_TEXT}, or launch that file itself"
        found.append(Problem(code="other-config-file", key=FREE_TEXT, must=must, fix=fix))
    return [resolved.placed(problem) for problem in found]


def _from_file(setting: Setting | None) -> bool:
    return setting is not None and setting.origin in ("file", "preset")


def _trusted(trust: Sequence[str], name: str) -> bool:
    return any(name == given or name.startswith(f"{given}.") for given in trust)


def _own_consent(resolved: Resolved) -> Iterator[Problem]:
    """A file that gives its own consent, or replaces the results of other runs."""
    for name in OF_THE_USER:
        setting = resolved.settings.get(name)
        if setting is not None and _from_file(setting) and getattr(resolved.config, name):
            fix = f"remove it and, if you agree, give --{name}" + (" NAME" if name == "trust" else "")
            must = "is not a file's to give: only the command line can"
            yield Problem(code="needs-consent", key=name, got=setting.value, must=must, fix=fix)


def _outside(resolved: Resolved) -> Iterator[Problem]:
    """Options that write or send outside the run: everywhere, or where they hide in a form's free text."""
    for name, does in OUTSIDE.items():
        value, setting = getattr(resolved.config, name), resolved.settings.get(name)
        inside = name == "console_log_file" and value and _inside(value, resolved.config.output_dir)
        if value and _from_file(setting) and not inside:
            yield from _consent(resolved, name, does)
    for name in UPLOADS:
        if getattr(resolved.config, name) and _from_file(resolved.settings.get(name)):
            yield from _consent(resolved, name, "sends files to, or takes them from, an account on the hub")
    for name, does in TEXT_OUTSIDE.items():
        value, setting = getattr(resolved.config, name), resolved.settings.get(name)
        if not value or setting is None or setting.key != FREE_TEXT or not _from_file(setting):
            continue
        form = resolved.draft.carry.get("form", {})
        home = form.get("output_dir") or resolved.config.output_dir
        if name == "wandb_api_key" or not _inside(value, home):
            yield from _consent(resolved, name, does)


def _places(resolved: Resolved) -> Iterator[Problem]:
    """Folders of the system, and hidden ones of the user, that a file would have written to."""
    config = resolved.config
    for name, value in written_places(config):
        why = protected(value) if _from_file(resolved.settings.get(name)) else None
        if why is not None:
            yield from _consent(resolved, name, f"writes into {value}, which {why}")
    if caches_beside_images(config) and resolved.draft.datasets is not None and "image_dir" not in config.trust:
        for value in document_places(resolved.draft.datasets):
            why = protected(value)
            if why is not None:
                must, fix = f"caches written beside the images go into a place that {why}", "--trust image_dir"
                yield Problem(code="needs-consent", key="image_dir", got=value, must=must, fix=f"if you agree: {fix}")


def _consent(resolved: Resolved, name: str, does: str) -> Iterator[Problem]:
    if name in resolved.config.trust:
        return
    value = "***" if table()[name].secret else getattr(resolved.config, name)
    fix = f"remove it, or if you agree: --trust {shell_word(name)}"
    yield Problem(code="needs-consent", key=name, got=value, must=f"--{name} {does}", fix=fix)


def _untrusted(key: str, name: str) -> Problem:
    fix = f"remove it, or if you trust it: --trust {shell_word(name)}"
    return Problem(code="untrusted-module", key=key, got=name, must="would run its code", fix=fix)


def _inside(path: str, folder: str | None) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder or "."))


def launch_words(draft: Draft, trust: Sequence[str] = ()) -> Iterator[Problem]:
    """Words for `accelerate launch` that do more than count processes, that it does not know, or that stand alone.

    It also takes beginnings of names, so that an unknown one is refused like the option that it may begin.
    """
    form = draft.carry.get("form", {})
    if FREE_WORDS in form:
        yield from _free_words(str(form[FREE_WORDS] or ""), trust)
        return
    for name, value in draft.accelerate.items():
        plain = name.replace("-", "_")
        if plain in FLAGS and value not in (True, False, None, ""):
            yield _stray(name, str(value))
        elif value not in (False, None, ""):
            yield from _launch_word(plain, name, trust)


def _free_words(text: str, trust: Sequence[str]) -> Iterator[Problem]:
    words, place = text.replace('"', "").split(), 0
    while place < len(words):
        word = words[place]
        place += 1
        name, equals, _ = word.lstrip("-").partition("=")
        plain = name.replace("-", "_")
        if not word.startswith("-"):
            yield _stray(FREE_WORDS, word)
            continue
        yield from _launch_word(plain, FREE_WORDS, trust)
        if plain not in FLAGS and not equals and place < len(words) and not words[place].startswith("-"):
            place += 1


def _launch_word(name: str, key: str, trust: Sequence[str]) -> Iterator[Problem]:
    if name in trust:
        return
    if name in REACHING:
        fix = f"remove it, or if you agree: --trust {shell_word(name)}"
        yield Problem(code="needs-consent", key=key, got=name, must=f"--{name} {REACHING[name]}", fix=fix)
    elif name not in FLAGS and name not in VALUES:
        must = "is not one of the launch options that a file may set"
        yield Problem(
            code="unknown-launch-word", key=key, got=name, must=must, fix=f"remove it, or --trust {shell_word(name)}"
        )
    elif name not in HEEDED and not name.startswith("dynamo_"):
        must = "has no effect on the bundled trainer"
        yield Problem(code="no-effect", severity="note", key=key, got=name, must=must)


def _stray(key: str, word: str) -> Problem:
    must = "belongs to no launch option; accelerate would run it as the training script"
    return Problem(code="stray-launch-word", key=key, got=word, must=must, fix="remove it")
