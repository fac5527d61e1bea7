"""The one door for files from outside: regular files only, bounded in size, the encoding found.

A name in a stranger's config may lead to a FIFO (which waits for ever), a device (which never ends) or a link to one.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.problems import ConfigError, error

MIB = 2**20
CONFIG = 64 * MIB  # bytes of a config, a prompt file, a record of a run; real ones have some kilobytes
CAPTION = MIB
LISTING = 2048 * MIB  # metadata JSONs and logs grow with the number of images and steps
KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)  # fmt: skip
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@contextmanager
def open_regular(path: str | os.PathLike[str], *, what: str) -> Iterator[io.BufferedReader]:
    """The file opened for reading its bytes. ConfigError `no-file`, `not-a-regular-file`, `cannot-read`."""
    with regular_stream(path, what=what) as stream:
        try:
            yield stream
        except OSError as fault:
            raise unreadable(os.fspath(path), fault) from None


def regular_stream(path: str | os.PathLike[str], *, what: str, limit: int | None = None) -> io.BufferedReader:
    """The same as a stream that its caller closes, and whose own faults stay what they are.

    ConfigError also `file-too-large` above `limit` bytes.
    """
    file = os.fspath(path)
    try:
        _regular(os.stat(file).st_mode, file, what)  # before opening: opening some devices does things
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as fault:
        raise unreadable(file, fault) from None
    stream = os.fdopen(handle, "rb")
    try:
        found = os.fstat(handle)
        _regular(found.st_mode, file, what)  # again: another may have taken the name meanwhile
        if limit is not None and found.st_size > limit:
            raise too_large(file, found.st_size, limit, what)
    except ConfigError:
        stream.close()
        raise
    return stream


def too_large(file: str, size: int, limit: int, what: str) -> ConfigError:
    """A file of more bytes than anything of its kind has."""
    must = f"is too large for {what}: {size} bytes, at most {limit}"
    return error("file-too-large", must, file=file, fix="choose the right file")


def read_bytes(path: str | os.PathLike[str], *, limit: int, what: str) -> bytes:
    """All bytes of a regular file of at most `limit` bytes; `what` names it in messages ("caption").

    ConfigError `no-file`, `not-a-regular-file`, `file-too-large`, `cannot-read`.
    """
    with open_regular(path, what=what) as stream:
        size = os.fstat(stream.fileno()).st_size
        data = stream.read(limit + 1) if size <= limit else b""
    if max(size, len(data)) > limit:
        raise too_large(os.fspath(path), max(size, len(data)), limit, what)
    return data


def read_text(path: str | os.PathLike[str], *, limit: int, what: str) -> str:
    """The text of such a file: UTF-8 with or without its mark, or UTF-16 with one. ConfigError also `not-utf8`."""
    data, file = read_bytes(path, limit=limit, what=what), os.fspath(path)
    name = "utf-16" if data.startswith(UTF16) else "utf-8-sig"
    try:
        return data.decode(name)
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        must = f"is not UTF-8 text: byte {fault.start} (0x{data[fault.start]:02x})"
        raise error("not-utf8", must, file=file, line=line, fix="save the file as UTF-8") from None


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Whether a regular file is there; False, too, for names that no file can have."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _regular(mode: int, file: str, what: str) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in KINDS if test(mode)), "no regular file")
        must = f"is {kind}; only a regular file can be read as {what}"
        raise error("not-a-regular-file", must, file=file, fix="choose the right file")


def unreadable(file: str, fault: OSError | ValueError) -> ConfigError:
    """What the system's word on a file means: it is missing, or it cannot be read."""
    number = getattr(fault, "errno", None)
    if number in (errno.ENOENT, errno.ENOTDIR):
        return error("no-file", "does not exist", file=file, fix="check the path")
    said = getattr(fault, "strerror", None) or str(fault)
    return error("cannot-read", f"cannot be read: {said}", file=file, fix="check the path and its rights")
