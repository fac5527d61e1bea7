"""The Hugging Face hub: files go there after each save, a state comes from there (reference sections 11.3 and 11.4).

Access is checked before any model is loaded (trap T34); a failed upload is said and never ends the run.
"""

from __future__ import annotations

import glob
import inspect
import os
import queue
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas import ConfigError, TrainConfig, error, terminal
from schemas.files.run_folder import MANIFEST, judge
from schemas.rules.hub import state_place

SPOOL = "uploads"  # in the run folder: what waits for the background thread
FETCHED = "from-hub"  # in the run folder: the state that resume_from_huggingface names
LOGIN = "`hf auth login`, or set HF_TOKEN or huggingface_token to a token of https://huggingface.co/settings/tokens"


def connect(config: TrainConfig) -> Any:
    """huggingface_hub's client with the config's token, else with huggingface_hub's own login (HF_TOKEN, hf auth)."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    return HfApi(token=config.huggingface_token or None, library_name="kohyakit")


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def say(text: str) -> None:
    terminal.say(text)


@dataclass(frozen=True)
class Job:
    """One upload: the file or folder, where it can be read undisturbed, its name on the hub."""

    path: Path
    source: Path
    name: str


class Uploads:
    """Everything that a run sends to its repository. To be used by the main process only."""

    def __init__(self, config: TrainConfig, run_folder: Path, api: Any = None) -> None:
        self.config, self.api = config, api or connect(config)
        self.repo, self.kind = str(config.huggingface_repo_id), config.huggingface_repo_type or "model"
        self.failed: list[Job] = []
        self._spool = run_folder / SPOOL
        self._sent: Counter[str] = Counter()
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None

    def check(self) -> None:
        """Makes the repository if it is missing; ConfigError when this run could not write to it."""
        config = self.config
        private = config.huggingface_repo_visibility != "public"

        def ask() -> Any:
            self.api.whoami()
            made = self.api.create_repo(self.repo, private=private, repo_type=self.kind, exist_ok=True)
            self.repo = made.repo_id  # with the owner, if only a name was given
            # before huggingface_hub 2 only reading can be asked for
            able = inspect.signature(self.api.auth_check).parameters
            self.api.auth_check(self.repo, repo_type=self.kind, **({"write": True} if "write" in able else {}))
            return self.api.repo_info(self.repo, repo_type=self.kind)

        info = explained(ask, "huggingface_repo_id", self.repo, config)
        seen = "private" if info.private else "public"
        where = "/".join(part for part in (self.repo, self._folder()) if part)
        say(f"saved files go to the hub as well: {where} ({seen} {self.kind} repository)")
        if private and not info.private:
            say(f"warning: {self.repo} was public before this run, so everybody will see what is uploaded")

    def _folder(self) -> str:
        return (self.config.huggingface_path_in_repo or "").strip("/")

    def place_of(self, name: str) -> str:
        """Path inside the repository: its top, or huggingface_path_in_repo."""
        return "/".join(part for part in (self._folder(), name) if part)

    def send(self, path: Path, name: str | None = None) -> None:
        """Uploads a file or folder, under its own name or `name`: now, or with async_upload in the background."""
        name = name or path.name
        if not self.config.async_upload:
            self._upload(Job(path, path, name))
            return
        try:
            self._waiting.put(Job(path, self._kept(path, name), name))
        except OSError as fault:
            self._fail(Job(path, path, name), fault)
            return
        if self._worker is None:
            # a daemon: a second signal must not wait for a slow line
            self._worker = threading.Thread(target=self._work, name="upload", daemon=True)
            self._worker.start()

    def _kept(self, path: Path, name: str) -> Path:
        """The same files under links that rotation does not touch; a copy where the file system has no links."""
        self._sent[name] += 1
        place = self._spool / f"{name}.{self._sent[name]}"
        if path.is_dir():
            shutil.copytree(path, place, copy_function=_link, dirs_exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            _link(str(path), str(place))
        return place

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            self._upload(job)
            if job.source.is_dir():
                shutil.rmtree(job.source, ignore_errors=True)
            else:
                job.source.unlink(missing_ok=True)

    def _upload(self, job: Job) -> None:
        place: dict[str, Any] = {"path_in_repo": self.place_of(job.name), "repo_id": self.repo, "repo_type": self.kind}
        try:
            if job.source.is_dir():
                self.api.upload_folder(folder_path=str(job.source), **place)
            else:
                self.api.upload_file(path_or_fileobj=str(job.source), **place)
        except Exception as fault:
            self._fail(job, fault)
        else:
            say(f"uploaded {job.name} to {self.repo}")

    def _fail(self, job: Job, fault: Exception) -> None:
        self.failed.append(Job(job.path, job.path, job.name))
        say(f"warning: {job.name} was not uploaded to {self.repo}: {reason(fault, self.config)}")
        say(f"    by hand: {self.command(job)}")

    def command(self, job: Job) -> str:
        """What uploads that file by hand."""
        kind = [] if self.kind == "model" else ["--repo-type", self.kind]
        return terminal.shell_words(["hf", "upload", self.repo, str(job.path), self.place_of(job.name), *kind])

    def close(self) -> None:
        """Waits for what is under way and tries once more what failed; to be called when the run has saved its last."""
        if self._worker is not None:
            if not self._waiting.empty():
                say("waiting for the uploads")
            self._waiting.put(None)
            self._worker.join()
            self._worker = None
        shutil.rmtree(self._spool, ignore_errors=True)
        again, self.failed = [job for job in self.failed if job.path.exists()], []
        for job in again:
            self._upload(job)


def _link(source: str, place: str) -> None:
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)


class HubState:
    """The state that resume_from_huggingface names."""

    def __init__(self, config: TrainConfig, api: Any = None) -> None:
        found = state_place(str(config.resume))
        assert found is not None  # a rule has seen to it
        self.config, self.place, self.api = config, found, api or connect(config)

    def check(self) -> None:
        """ConfigError when the repository cannot be read or holds no finished state there."""
        place = self.place
        files: list[str] = explained(
            lambda: self.api.list_repo_files(place.repo, revision=place.revision, repo_type=place.kind),
            "resume", str(self.config.resume), self.config,
        )  # fmt: skip
        states = sorted(name.removesuffix(f"/{MANIFEST}") for name in files if name.endswith(f"/{MANIFEST}"))
        if place.path not in states:
            fix = f"name one of {', '.join(states[-5:])}" if states else "name a repository with states of kohyakit"
            raise error("no-state", f"is no finished state in {place.repo}", key="resume", got=place.path, fix=fix)

    def fetch(self, run_folder: Path) -> Path:
        """The state, downloaded into the run folder."""
        folder, place = run_folder / FETCHED, self.place
        say(f"fetching the state {place.path} of {place.repo}")
        explained(
            lambda: self.api.snapshot_download(place.repo, revision=place.revision, repo_type=place.kind,
                                               local_dir=folder, allow_patterns=[f"{glob.escape(place.path)}/*"]),
            "resume", str(self.config.resume), self.config,
        )  # fmt: skip
        state = judge(folder / place.path, contents=True)
        if not state.whole:
            raise error("unfinished-state", f"has come incomplete from the hub: {state.said}", key="resume",
                        got=str(state.path), fix="start the run once more, or name another state")  # fmt: skip
        return state.path


def remove_fetched(run_folder: Path) -> None:
    """A finished run does not need the state any more that it began with."""
    shutil.rmtree(run_folder / FETCHED, ignore_errors=True)


def explained(ask: Callable[[], Any], key: str, got: str, config: TrainConfig) -> Any:
    """What `ask` gives; what goes wrong with the hub then is a ConfigError that says how to mend it."""
    without = "or download the state and name its folder" if key == "resume" else f"or remove {key} to go on without"
    if offline():
        raise error("hub-offline", "needs the hub, but HF_HUB_OFFLINE is set", key=key, got=got,
                    fix=f"unset HF_HUB_OFFLINE, {without}")  # fmt: skip
    try:
        return ask()
    except Exception as fault:
        raise _refusal(fault, key, got, config, without) from None


def _refusal(fault: Exception, key: str, got: str, config: TrainConfig, without: str) -> ConfigError:
    from huggingface_hub import errors

    status = getattr(getattr(fault, "response", None), "status_code", None)
    said = reason(fault, config)
    if isinstance(fault, errors.LocalTokenNotFoundError):
        return error("hub-token", "needs a login, and there is no token on this machine", key=key, got=got, fix=LOGIN)
    if status == 401 and not isinstance(fault, errors.RepositoryNotFoundError):
        return error("hub-token", f"the hub does not accept the token ({said})", key=key, got=got, fix=LOGIN)
    if status == 403 or isinstance(fault, errors.GatedRepoError):
        right = "read" if key == "resume" else "write to"
        return error("hub-access", f"the token may not {right} this repository ({said})", key=key, got=got,
                     fix=f"use a token with that right, {without}")  # fmt: skip
    if isinstance(fault, errors.RevisionNotFoundError | errors.RepositoryNotFoundError):
        return error("hub-access", f"is not there, or not for this token to see ({said})", key=key, got=got,
                     fix=f"check its name and type, {LOGIN}")  # fmt: skip
    if isinstance(fault, errors.HFValidationError | ValueError) or (status is not None and status < 500):
        return error("bad-repository", f"is refused by the hub: {said}", key=key, got=got, fix=f"correct it, {without}")
    return error("hub-unreachable", f"the hub cannot be reached: {said}", key=key, got=got,
                 fix=f"check the connection, {without}")  # fmt: skip


def reason(fault: Exception, config: TrainConfig) -> str:
    """The first line that a fault says, without the token."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    text = f"{type(fault).__name__}: {lines[0]}" if lines else type(fault).__name__
    for token in (config.huggingface_token, os.environ.get("HF_TOKEN")):
        text = text.replace(token, "***") if token else text
    return text
