"""`--on sky`: the run as a SkyPilot task on a rented machine; a spot machine that is taken away goes on by `resume`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.check import paths
from launcher.check.machine import Gpu, Machine
from launcher.check.plan import Plan
from launcher.check.resolve import PRESETS
from launcher.queue.add import Wish, job_of
from launcher.queue.jobs import Job
from launcher.run.command import ROOT
from launcher.run.files import secrets_of, write_text
from launcher.run.launch import SECRET_VARIABLES
from launcher.run.resume import MOVABLE
from schemas.blanking import without_secrets
from schemas.config import table
from schemas.files.documents import parse_toml
from schemas.files.textfile import CONFIG, read_text
from schemas.problems import error
from schemas.terminal import say, say_file, shell_word, shell_words

HOME = "~/kohyakit"
STDERR = 2  # stdout belongs to one JSON document
DATASET = f"{HOME}/dataset.toml"  # with the home folder that the machine has
IN, OUT = f"{HOME}/in", f"{HOME}/out"
GPU = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(?::(?P<count>[1-9]\d*))?")
# What copies a bucket's folder to this machine, by the scheme of its address.
FETCH = {"s3": ("aws", "s3", "sync"), "gs": ("gcloud", "storage", "rsync", "--recursive")}
NOT_MOVED = ("output_dir", "logging_dir", "dataset_config", "config_file")  # there they have places of their own
DATASET_PATHS = ("image_dir", "metadata_file", "conditioning_data_dir")


@dataclass(frozen=True)
class Task:
    """A task before it is started: `document` is its YAML, `files` are what it needs beside it, by name."""

    job: Job
    output: Path
    folder: Path
    document: Mapping[str, Any]
    files: Mapping[str, str]
    spot: bool
    bucket: str | None
    build: bool

    @property
    def yaml(self) -> Path:
        return self.folder / "task.yaml"

    @property
    def commands(self) -> list[list[str]]:
        """What starts it, and what brings its results back; the machine is given back by itself."""
        name = cluster_name(self.job.name)
        secrets = [word for variable in self.document.get("secrets", {}) for word in ("--secret", variable)]
        if self.bucket is None:
            start = ["sky", "launch", "-y", "-c", name, *secrets, "-i", "30", "--down", str(self.yaml)]
            fetch = ["rsync", "-az", f"{name}:{OUT.removeprefix('~/')}/{name}/", f"{self.output}/"]
            return [start, fetch, ["sky", "down", "-y", name]]
        start = ["sky", "jobs", "launch", "-y", "-n", name, *secrets, str(self.yaml)]
        return [start, [*FETCH[self.bucket.partition("://")[0]], f"{self.bucket}/{name}/", f"{self.output}/"]]

    def as_json(self) -> dict[str, Any]:
        found = {"on": "sky", "task": self.document, "commands": self.commands, "folder": str(self.folder)}
        return {**found, "run_folder": self.job.run_folder, "words": list(self.job.words)}


def cluster_name(name: str) -> str:
    """As clouds take it: letters, digits and dashes, beginning with a letter."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return plain if plain[:1].isalpha() else f"run-{plain}".rstrip("-")


def prepare(wish: Wish, words: Mapping[str, Any]) -> Task:
    """Checks and plans for that GPU; writes nothing. ConfigError with everything that is wrong."""
    gpu = GPU.fullmatch(words["gpu"])
    if gpu is None:
        raise error("bad-value", "is no GPU's name", key="--gpu", got=words["gpu"], fix="--gpu RTX4090, or A100:2")
    _check_bucket(words)
    count = int(gpu["count"] or 1)
    machine = Machine(gpus=(Gpu(gpu["name"]),) * count, cores=4, fast_bf16=True, packages=frozenset({"bitsandbytes"}))
    if wish.goes_on:
        fix = "kohyakit launch FILE --on sky; what a spot machine has begun there goes on by itself"
        raise error("bad-value", "starts runs, and goes on with those that it has started", key="--on sky", fix=fix)
    job, plan = job_of(replace(wish, processes=wish.processes or count), on=machine)
    output = paths.output_dir(plan.checked.resolved).absolute()
    folder = output / f"{job.name}.sky"
    mounts, sets, files = _moved(plan, folder)
    wheel = Path(words["wheel"]).absolute() if words["wheel"] else folder / _wheel_name()
    if words["wheel"] and not wheel.is_file():
        raise error("no-file", "does not exist", key="--wheel", file=str(wheel), fix="check the path")
    if not words["wheel"] and not (ROOT / "pyproject.toml").is_file():
        fix = "--wheel FILE.whl with the one that this kohyakit was installed from"
        raise error("no-file", "is needed: this is no checkout that one could be made of", key="--wheel", fix=fix)
    mounts[f"{IN}/{wheel.name}"] = str(wheel)
    resources = {
        "accelerators": f"{gpu['name']}:{count}", "use_spot": bool(words["spot"]), "infra": words["cloud"],
        "disk_size": words["disk"],
    }  # fmt: skip
    secrets = {SECRET_VARIABLES.get(name, name.upper()): None for name in secrets_of(plan.config)}
    document: dict[str, Any] = {
        "name": cluster_name(job.name),
        "resources": {name: value for name, value in resources.items() if value not in (None, False)},
        "file_mounts": _mounts(mounts, words["bucket"]),
        "secrets": secrets,
        "setup": f"pip install {shell_path(f'{IN}/{wheel.name}')}\n",
        "run": _script(job, plan, sets),
    }
    document = {name: value for name, value in document.items() if value}
    return Task(job, output, folder, document, files, bool(words["spot"]), words["bucket"], not words["wheel"])


def _check_bucket(words: Mapping[str, Any]) -> None:
    bucket = words["bucket"]
    if bucket is None and words["spot"]:
        said = "is needed with --spot: a machine that is taken away takes its disk with it"
        raise error("bad-value", said, key="--bucket", fix="--bucket s3://NAME, or leave --spot out")
    if bucket is not None and not re.fullmatch(rf"(?:{'|'.join(FETCH)})://[^\s/]+", bucket):
        kinds = " or ".join(f"{scheme}://NAME" for scheme in FETCH)
        raise error("bad-value", "is no bucket's address", key="--bucket", got=bucket, fix=f"--bucket {kinds}")


def _wheel_name() -> str:
    from importlib import metadata

    try:
        version = metadata.version("kohyakit")
    except metadata.PackageNotFoundError:
        text = read_text(ROOT / "pyproject.toml", limit=CONFIG, what="project file")
        version = str(parse_toml(text)["project"]["version"])
    return f"kohyakit-{version}-py3-none-any.whl"


def _moved(plan: Plan, folder: Path) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """(what to mount: there -> here, the --set words with the places there, files to write here by name).

    Every path that exists here goes along; the user's file without its secrets.
    """
    config = plan.config
    mounts: dict[str, str] = {}
    place = f"{OUT}/{cluster_name(paths.run_name(plan.checked.resolved))}"
    sets: dict[str, str] = {"output_dir": place}
    files: dict[str, str] = {}

    def there(path: str) -> str:
        place = os.path.abspath(path)
        known = next((name for name, held in mounts.items() if held == place), None)
        name = known or f"{IN}/{len(mounts)}-{Path(place).name}"
        mounts[name] = place
        return name

    for option in table().values():
        value = getattr(config, option.name)
        if not option.path or not value or option.name in NOT_MOVED:
            continue
        given = [str(one) for one in (value if isinstance(value, tuple) else (value,))]
        if any(os.path.exists(one) for one in given):
            sets[option.name] = " ".join(there(one) if os.path.exists(one) else one for one in given)
    if config.logging_dir:
        sets["logging_dir"] = f"{place}/logs"
    if config.dataset_config and os.path.isfile(config.dataset_config):
        files["dataset.toml"] = _dataset(config.dataset_config, there)
        mounts[f"{IN}/dataset.toml"] = str(folder / "dataset.toml")
        sets["dataset_config"] = DATASET
    sets |= dict.fromkeys(secrets_of(config), "")
    _take_source(plan, files, mounts, folder)
    return mounts, sets, files


def _take_source(plan: Plan, files: dict[str, str], mounts: dict[str, str], folder: Path) -> None:
    """The user's file: a text without its secrets, anything else as it is; a shipped preset is there already."""
    source = Path(plan.checked.resolved.draft.file or "")
    if source.parent == PRESETS:
        return
    name = f"source{source.suffix or '.txt'}"
    if source.suffix == ".safetensors":
        mounts[f"{IN}/{name}"] = str(source.absolute())
        return
    text = read_text(source, limit=CONFIG, what="config file")
    files[name] = without_secrets(text, secrets_of(plan.config).values())
    mounts[f"{IN}/{name}"] = str(folder / name)


def _dataset(file: str, there: Any) -> str:
    """The dataset_config with the places that its images have there."""
    import toml

    document = parse_toml(read_text(file, limit=CONFIG, what="dataset config"))
    datasets = document.get("datasets")
    for dataset in datasets if isinstance(datasets, list) else []:
        subsets = dataset.get("subsets") if isinstance(dataset, dict) else None
        for subset in subsets if isinstance(subsets, list) else []:
            for name in DATASET_PATHS:
                if isinstance(subset.get(name), str) and os.path.exists(subset[name]):
                    subset[name] = there(subset[name])
    return toml.dumps(document)


def _mounts(mounts: Mapping[str, str], bucket: str | None) -> dict[str, Any]:
    """The bucket is a folder there, with a cache on the disk, because states are written whole and then renamed."""
    found: dict[str, Any] = dict(mounts)
    if bucket is not None:
        found[OUT] = {"source": bucket, "mode": "MOUNT_CACHED"}
    return found


def shell_path(path: str) -> str:
    """A path below the home folder there: ~ is the shell's to read, the rest is quoted."""
    return f'"$HOME"/{shell_word(path[2:])}' if path.startswith("~/") else shell_word(path)


def _script(job: Job, plan: Plan, sets: Mapping[str, str]) -> str:
    """Launch, or go on with what an earlier machine has begun; nothing where it is finished."""
    name = paths.run_name(plan.checked.resolved)
    source = plan.checked.resolved.draft.file or ""
    first = Path(source).stem if Path(source).parent == PRESETS else f"{IN}/source{Path(source).suffix or '.txt'}"
    own = list(job.words[2:])
    given = [f"--set {key}={_joined(value)}" for key, value in sets.items()]
    place = sets["output_dir"]
    run, final = shell_path(f"{place}/{name}.run"), shell_path(f"{place}/{name}.safetensors")
    moved = " ".join(f"--set {key}={_joined(value)}" for key, value in sets.items() if key in MOVABLE)
    launch = " ".join(["kohyakit launch", shell_path(first), shell_words(own), *given]).replace("  ", " ")
    consent = " ".join(f"--trust {shell_word(own[i + 1])}" for i, word in enumerate(own) if word == "--trust")
    placed = f'sed "s|~/kohyakit/|$HOME/kohyakit/|g" {shell_path(f"{IN}/dataset.toml")} > {shell_path(DATASET)}'
    return "\n".join(
        [
            *([placed] if "dataset_config" in sets else []),
            f"mkdir -p {shell_path(place)}",
            f"if [ -f {final} ]; then",
            "  echo finished already",
            f"elif ls -d {run}/state-* > /dev/null 2>&1; then",
            f"  kohyakit resume {run} --to-end {moved} {consent}".rstrip(),
            f"elif [ -d {run} ]; then  # taken away before its first state",
            f"  {launch} --overwrite",
            "else",
            f"  {launch}",
            "fi",
            "",
        ]
    )


def _joined(value: str) -> str:
    """A --set value; several paths are one word, each with its home folder."""
    if not value:
        return ""
    return '" "'.join(shell_path(one) for one in value.split(" ")) if value.startswith("~/") else shell_word(value)


def as_yaml(document: Mapping[str, Any], level: int = 0) -> Iterator[str]:
    """The lines of a task's YAML: objects, texts (those of several lines as blocks), numbers, true and false."""
    pad = "  " * level
    for name, value in document.items():
        key = name if re.fullmatch(r"[A-Za-z_]\w*", name) else json.dumps(name)
        if isinstance(value, Mapping):
            yield f"{pad}{key}:"
            yield from as_yaml(value, level + 1)
        elif isinstance(value, str) and value.endswith("\n"):
            yield f"{pad}{key}: |"
            yield from (f"{pad}  {line}" for line in value.rstrip("\n").split("\n"))
        else:
            yield f"{pad}{key}: {json.dumps(value)}"


def run(wish: Wish, words: Mapping[str, Any], *, only_print: bool, as_json: bool) -> int:
    """Prints the task, or writes it, starts it and brings the run folder back. The exit code."""
    task = prepare(wish, words)
    text = "\n".join(as_yaml(task.document)) + "\n"
    if only_print:
        if as_json:
            from launcher.commands import print_json

            print_json({"ok": True, **task.as_json()})
        else:
            say_file(text)
            for command in task.commands:
                say(f"# {shell_words(command)}")
        return 0
    if shutil.which("sky") is None:
        said, fix = "needs SkyPilot, which is not installed", 'pip install "kohyakit[sky]", then sky check'
        raise error("missing-package", said, key="--on sky", fix=fix)
    _refuse_missing_secrets(task)
    write(task, text)
    code = _started(task, as_json)
    if as_json:
        from launcher.commands import print_json

        print_json({"ok": code == 0, **task.as_json()})
    return code


def _refuse_missing_secrets(task: Task) -> None:
    missing = [name for name in task.document.get("secrets", {}) if not os.environ.get(name)]
    if missing:
        said = "is in the config and does not go into files of a task; it is taken from the environment"
        raise error("secret-not-set", said, key=missing[0], fix=f"export {missing[0]}=... and try again")


def write(task: Task, text: str) -> None:
    """The folder of the task: its YAML, the files that go along, the wheel."""
    task.folder.mkdir(parents=True, exist_ok=True)
    for name, content in task.files.items():
        write_text(task.folder / name, content)
    write_text(task.yaml, text)
    if task.build:
        words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(task.folder), str(ROOT)]
        made = subprocess.run(words, capture_output=True, text=True)
        if made.returncode:
            why = " ".join(made.stderr.split())[-200:]
            fix = "--wheel FILE.whl with one that you have"
            raise error("no-wheel", f"could not be made: {why}", key="--wheel", file=str(ROOT), fix=fix)


def _started(task: Task, as_json: bool) -> int:
    """Starts it, waits, and brings back what it left, whether it ended well or not."""
    start, fetch, *after = task.commands
    say(f"starting: {shell_words(start)}", err=as_json)
    code = subprocess.run(start, stdout=STDERR if as_json else None).returncode
    task.output.mkdir(parents=True, exist_ok=True)
    fetched = subprocess.run(fetch, stdout=STDERR).returncode if shutil.which(fetch[0]) else 127
    if fetched:
        say(f"the results are still there; bring them with: {shell_words(fetch)}", err=True)
        return 3
    say(f"brought back: {task.job.run_folder}", err=as_json)
    for command in after:
        subprocess.run(command, stdout=STDERR)
    return 0 if code == 0 else 3
