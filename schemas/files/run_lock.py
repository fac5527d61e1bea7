"""Who may write in a run folder: one launcher and one trainer at a time; a killed one's lock opens by itself.

There are two locks, for each must hold for as long as its own process lives: a launcher that is killed leaves its
trainer at work, and the run must not be open to another one then. The launcher's lies beside the run folder, which
`resume --epochs` renames; it is named to the trainer by a token in the environment. Each takes its own lock first and
looks at the other's then, so of two that begin at once at least one sees the other.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from schemas.files.run_folder import read_object
from schemas.problems import ConfigError, error

TRAINER = ".lock"  # in the run folder, while a trainer works there
VARIABLE = "KOHYAKIT_LOCK"  # the launcher's token, for the trainer that it starts


class Lock:
    """One lock file; the system lets go of it with the process. Where the file system knows no locks there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._release: weakref.finalize[..., Lock] | None = None

    def take(self, pids: Sequence[int], token: str | None = None) -> dict[str, Any] | None:
        """What the last holder had written there; None while that one still lives."""
        made = _make(self.path.parent)
        while True:
            stream = _open(self.path)
            said = read_object(self.path)
            if not _locked(stream, tries=5):
                stream.close()
                return None
            if sys.platform == "win32" or _same_file(stream, self.path):
                break
            stream.close()  # its holder has removed it meanwhile: the name stands for another file now
        self._release = weakref.finalize(self, _free, self.path, stream, os.getpid(), made)
        stream.truncate(0)
        stream.write(json.dumps({"host": socket.gethostname(), "pids": list(pids), "token": token}))
        stream.flush()
        return said

    def free(self) -> None:
        """The work is over, well or not: nothing is left of the lock, nor of folders made for it that stayed empty."""
        if self._release is not None:
            self._release()

    def holder(self) -> dict[str, Any] | None:
        """What the process that holds it has written; None where nobody does. Changes nothing."""
        try:
            stream = self.path.open("r+", encoding="utf-8")
        except OSError:
            return None
        with stream:
            return None if _locked(stream) else read_object(self.path)


def launcher_lock(run: Path) -> Lock:
    """The launcher's lock on a run folder and all results under its name."""
    return Lock(run.parent / f".{run.name.removesuffix('.run')}.lock")


def trainer_lock(run: Path) -> Lock:
    """The trainer's lock on a run folder."""
    return Lock(run / TRAINER)


def in_use(run: Path) -> ConfigError | None:
    """The refusal while a trainer or a launcher other than one's own is at work on a run. Changes nothing."""
    said = trainer_lock(run).holder()
    said = _other_launcher(run) if said is None else said
    return None if said is None else _refusal(run, said)


def _other_launcher(run: Path) -> dict[str, Any] | None:
    """What the launcher at work there has written, unless it is the one that started this process."""
    said = launcher_lock(run).holder()
    return None if said is None or said.get("token") == os.environ.get(VARIABLE, "") else said


def hold_for_launcher(run: Path) -> tuple[Lock, str]:
    """The launcher's lock and its token; ConfigError `run-in-use` while another launcher or any trainer is at work."""
    lock, token = launcher_lock(run), secrets.token_hex(8)
    if lock.take([os.getpid()], token) is None:
        raise _refusal(run, trainer_lock(run).holder() or read_object(lock.path))
    said = trainer_lock(run).holder()
    if said is not None:
        lock.free()
        raise _refusal(run, said)
    return lock, token


def hold_for_trainer(run: Path, pids: Sequence[int]) -> tuple[Lock, list[int]]:
    """The trainer's lock, and the processes of the last start if that was killed on this machine.

    ConfigError `run-in-use` while another trainer is at work, or a launcher that did not start this one.
    """
    lock = trainer_lock(run)
    before = lock.take(pids)
    if before is None:
        raise _refusal(run, read_object(lock.path))
    launcher = _other_launcher(run)
    if launcher is not None:
        lock.free()
        raise _refusal(run, launcher)
    here = before.get("host") == socket.gethostname()
    return lock, [pid for pid in _pids(before) if here and pid not in pids]


def _pids(said: dict[str, Any]) -> list[int]:
    found = said.get("pids")
    return [pid for pid in found if type(pid) is int] if isinstance(found, list) else []


def _refusal(run: Path, said: dict[str, Any]) -> ConfigError:
    process = next(iter(_pids(said)), "?")
    must = f"is being trained by process {process} on {said.get('host', '?')}; nothing was changed"
    fix = "wait for it or stop it, or choose another output_name"
    return error("run-in-use", must, key="output_name", got=str(run), fix=fix)


def _make(folder: Path) -> list[Path]:
    """Makes a folder; those that were not there, the innermost first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise _unwritable(folder, fault) from None
    return missing


def _open(path: Path) -> IO[str]:
    try:
        return path.open("a+", encoding="utf-8")
    except OSError as fault:
        raise _unwritable(path.parent, fault) from None


def _unwritable(folder: Path, fault: OSError) -> ConfigError:
    must = f"cannot be written: {fault.strerror}"
    return error("not-writable", must, key="output_dir", got=str(folder), fix="choose another output_dir")


def _free(path: Path, stream: IO[str], owner: int, made: Sequence[Path]) -> None:
    if os.getpid() != owner:  # a data worker, which has only inherited it
        return
    if sys.platform == "win32":  # an open file cannot be removed there
        stream.close()
        path.unlink(missing_ok=True)
    elif _same_file(stream, path):
        path.unlink(missing_ok=True)
    stream.close()
    for folder in made:
        try:
            folder.rmdir()
        except OSError:
            return


def _same_file(stream: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except OSError:
        return False


def _locked(stream: IO[str], tries: int = 1) -> bool:
    """Whether the lock is ours now; True as well where locks are not to be had. Who only looks holds it an instant."""
    for _ in range(tries - 1):
        if _locked(stream):
            return True
        time.sleep(0.02)
    if sys.platform == "win32":
        import msvcrt

        stream.seek(0x7FFFFFF)  # a place beyond the text, which stays readable
        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: data workers would inherit it and outlive us
    except OSError as fault:  # anything else than "taken": not every network file system has locks
        return fault.errno not in (errno.EACCES, errno.EAGAIN)
    return True
