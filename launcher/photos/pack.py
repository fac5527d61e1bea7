"""`dataset pack`: pictures and captions in one flat zip, the form that CivitAI's trainer takes."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections import Counter
from pathlib import Path

from launcher.photos.check import Checkup
from launcher.photos.source import inside
from schemas.files.textfile import read_bytes
from schemas.files.writing import scratch_of, sweep
from schemas.problems import ConfigError, Problem, error
from trainer.dataset.images import LARGEST_FILE
from trainer.dataset.names import fold


def pack(found: Checkup, target: Path) -> list[str]:
    """Write every checked picture with its .txt caption; the names in the zip.

    Folders are flattened, so pictures of two folders that share a name are refused (`same-stem`). ConfigError also
    `target-exists`, `no-folder`, `not-writable`, `link-outside` and `bad-file-name`.
    """
    check_target(target)
    _check_files(found)
    names = []
    sweep([target.parent])  # what a pack that was killed has left
    staging = scratch_of(target)
    try:
        with zipfile.ZipFile(staging, "w", zipfile.ZIP_STORED) as archive:
            for shot in found.shots:
                archive.writestr(shot.path.name, read_bytes(shot.path, limit=LARGEST_FILE, what="an image"))
                names.append(shot.path.name)
                if shot.caption is not None:
                    archive.writestr(f"{shot.path.stem}.txt", shot.caption)
                    names.append(f"{shot.path.stem}.txt")
        os.replace(staging, target)
    except OSError as fault:
        raise error("not-writable", f"{target}: cannot be written: {fault.strerror}", fix="choose another -o") from None
    finally:
        with contextlib.suppress(OSError):
            staging.unlink(missing_ok=True)
    return names


def check_target(target: Path) -> None:
    """ConfigError where the zip cannot be written; asked before the pictures are looked at."""
    if os.path.lexists(target):
        raise error("target-exists", f"{target}: is there already and is not overwritten", fix="choose another -o")
    if not target.parent.is_dir():
        raise error("no-folder", f"{target.parent}: there is no such folder", fix="make it, or choose another -o")


def _check_files(found: Checkup) -> None:
    """Refuses what must not leave this machine, and names that a flat zip cannot hold."""
    files = [file for shot in found.shots for file in (shot.path, shot.caption_file) if file]
    outside = [found.relative(file) for file in files if not inside(file, found.directory)]
    if outside:
        raise ConfigError(
            [
                Problem(
                    code="link-outside",
                    key=name,
                    must="is a link that leads out of the folder, and the zip is made to be given away",
                    fix="put the file itself there, or remove the link",
                )
                for name in outside
            ]
        )
    odd = [
        name
        for file in files
        if (name := file.name).encode("utf-8", "replace") != name.encode("utf-8", "surrogateescape")
    ]
    if odd:
        raise error(
            "bad-file-name", "is no UTF-8 text, which names in a zip must be", key=odd[0], fix="rename the file"
        )
    stems = Counter(fold(shot.path.stem) for shot in found.shots)
    doubled = sorted(stem for stem, count in stems.items() if count > 1)
    if doubled:
        raise error("same-stem", f"pictures share the name {', '.join(doubled[:5])}", fix="rename them: a zip is flat")
