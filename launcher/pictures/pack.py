"""`dataset pack`: pictures and captions in one flat zip, the form that CivitAI's trainer takes."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from pathlib import Path

from launcher.pictures.check import Checkup
from schemas.problems import error
from schemas.writing import scratch_of, sweep


def pack(found: Checkup, target: Path) -> list[str]:
    """Write every checked picture with its .txt caption; the names in the zip. ConfigError `target-exists`.

    Folders are flattened, so pictures of two folders that share a name are refused (`same-stem`).
    """
    if target.exists():
        raise error("target-exists", f"{target}: is there already and is not overwritten", fix="choose another -o")
    stems = Counter(shot.path.stem for shot in found.shots)
    doubled = sorted(stem for stem, count in stems.items() if count > 1)
    if doubled:
        raise error("same-stem", f"pictures share the name {', '.join(doubled[:5])}", fix="rename them: a zip is flat")
    names = []
    sweep([target.parent])  # what a pack that was killed has left
    staging = scratch_of(target)
    try:
        with zipfile.ZipFile(staging, "w", zipfile.ZIP_STORED) as archive:
            for shot in found.shots:
                archive.write(shot.path, shot.path.name)
                names.append(shot.path.name)
                if shot.caption is not None:
                    archive.writestr(f"{shot.path.stem}.txt", shot.caption)
                    names.append(f"{shot.path.stem}.txt")
        os.replace(staging, target)
    finally:
        staging.unlink(missing_ok=True)
    return names
