"""Reading files that a user or a stranger named: regular files only, sizes bounded, UTF-8. One door for all text."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from schemas.problems import error


def open_regular(path: str | os.PathLike[str], *, limit: int, what: str) -> BinaryIO:
    """`path` opened for reading; ConfigError `not-a-regular-file`, `file-too-large` or `cannot-read`.

    Opened without waiting: a FIFO has no writer, and a device such as /dev/zero never ends.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        handle = os.open(path, flags)
    except (OSError, ValueError) as fault:  # ValueError: a zero byte in the name
        kind = _special(path)
        if kind:
            raise error(
                "not-a-regular-file", f"{what} must be a regular file, this is {kind}", file=str(path)
            ) from None
        said = fault.strerror if isinstance(fault, OSError) else str(fault)
        raise error("cannot-read", f"{what} cannot be read: {said}", file=str(path), fix="check the path") from None
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise error(
            "not-a-regular-file",
            f"{what} must be a regular file, this is {_named(found.st_mode)}",
            file=str(path),
            fix="replace it by a plain file",
        )
    if found.st_size > limit:
        os.close(handle)
        raise error(
            "file-too-large",
            f"{what} is larger than the {limit:,} bytes that are read",
            file=str(path),
            got=found.st_size,
            fix="check that it is the right file",
        )
    return os.fdopen(handle, "rb")


def _special(path: str | os.PathLike[str]) -> str | None:
    """What a path is that cannot be opened because of its kind (a socket)."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    return None if stat.S_ISREG(mode) else _named(mode)


def _named(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def read_bytes(path: Path, *, limit: int, what: str) -> bytes:
    """The content of a regular file of at most `limit` bytes; ConfigError as `open_regular`."""
    try:
        with open_regular(path, limit=limit, what=what) as stream:
            content = stream.read(limit + 1)  # a file may grow after its size was asked for
    except OSError as fault:
        raise error("cannot-read", f"{what} cannot be read: {fault.strerror}", file=str(path)) from None
    if len(content) > limit:
        raise error("file-too-large", f"{what} is larger than the {limit:,} bytes that are read", file=str(path))
    return content


def read_text(path: Path, *, limit: int, what: str) -> str:
    """The text of a regular UTF-8 file without its byte-order mark; ConfigError as `read_bytes`, or `not-utf8`."""
    try:
        return read_bytes(path, limit=limit, what=what).decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise error(
            "not-utf8",
            f"{what} is not UTF-8 (byte {fault.start + 1})",
            file=str(path),
            fix="save it again as UTF-8",
        ) from None
