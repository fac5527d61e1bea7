"""Files that are whole or not there, under temporary names that say which process is writing them."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

FOREIGN_SECONDS = 600.0  # no write of another machine pauses for so long; its processes cannot be asked for
LONGEST = 160  # bytes of a name that are kept in its temporary name, which must not become too long itself
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)@(?P<host>[0-9a-f]{8})\.tmp")
# A disk that is full, out of quota, broken, or not to be written any more. The files on it are as they were.
DISK = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EIO, errno.EROFS)


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], object], check: Callable[[Path], object] | None = None
) -> None:
    """Run `write` on a temporary file beside `path`, flush it to the disk, rename: readers see all or nothing.

    What `check` raises about the temporary file leaves an older file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_of(path)
    try:
        with scratch.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        if check is not None:
            check(scratch)
        scratch.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the fault itself is what must be told
            scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` last; file systems that cannot are left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def scratch_of(path: Path) -> Path:
    """The temporary name of `path` for this process: hidden, beside it, with process and machine in it."""
    name = path.name
    if len(os.fsencode(name)) > LONGEST:
        name = hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()
    return path.with_name(f".{name}.{os.getpid()}@{this_host()}.tmp")


@functools.cache
def this_host() -> str:
    """Names those processes whose numbers mean the same: of this machine and, in a container, of this container."""
    space = b""
    with contextlib.suppress(OSError):
        space = os.fsencode(os.readlink("/proc/self/ns/pid"))
    return hashlib.blake2b(os.fsencode(socket.gethostname()) + space, digest_size=4).hexdigest()


def sweep(folders: Iterable[Path]) -> None:
    """Remove the temporary files and folders that no living process is writing."""
    for folder in folders:
        for path in _entries(folder):
            if abandoned(path):
                remove(path)


def _entries(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder) if name.endswith(".tmp")]
    except OSError:
        return []


def remove(path: Path) -> None:
    """A file, or a folder with all in it; somebody else may have done it already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def abandoned(path: Path) -> bool:
    """Whether `path` has a temporary name whose process has ended. Of another machine only time can tell."""
    match = TEMPORARY.fullmatch(path.name)
    if match is None:
        return False
    try:
        changed = path.stat().st_mtime
    except OSError:
        return False
    if match["host"] != this_host() or sys.platform == "win32":  # there os.kill(pid, 0) would end it
        return time.time() - changed > FOREIGN_SECONDS
    pid = int(match["pid"])
    return pid != os.getpid() and not _lives(pid, changed)


def _lives(pid: int, since: float) -> bool:
    """Whether process `pid` is there and was at the time `since`: numbers are given out again."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            fields = stream.read().rpartition(")")[2].split()
        with open("/proc/stat", encoding="utf-8") as stream:
            booted = next(float(line.split()[1]) for line in stream if line.startswith("btime "))
        if fields[0] in "ZX":  # has ended, its parent has not asked yet
            return False
        return booted + int(fields[19]) / os.sysconf("SC_CLK_TCK") < since + 2  # clocks are not that exact
    except (OSError, ValueError, IndexError, StopIteration):
        return True


def disk_fault(fault: BaseException | None) -> OSError | None:
    """The system's own error behind `fault` if the disk is to blame; libraries wrap it."""
    while fault is not None:
        if isinstance(fault, OSError) and fault.errno in DISK:
            return fault
        fault = fault.__cause__ or fault.__context__
    return None


def disk_words(fault: OSError) -> str:
    """The system's words for it, and the file if it names one; of several files the first one's."""
    if isinstance(fault, shutil.Error):
        _, _, why = fault.args[0][0] if isinstance(fault.args[0], list) else ("", "", fault)
        return str(why)
    return f"{fault.strerror or fault}{f': {os.fspath(fault.filename)}' if isinstance(fault.filename, str) else ''}"


def disk_advice(fault: OSError) -> str:
    """What to do before the next start."""
    if fault.errno == errno.ENOSPC:
        return "make room"
    return "look after the disk" if fault.errno in (errno.EIO, errno.EROFS) else "make room or ask for a larger quota"
