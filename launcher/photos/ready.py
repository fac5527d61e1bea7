"""`dataset prepare --preset`: a config with every path filled in, and the one command that trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher.photos.prepare import Prepared
from launcher.run.command import quoted
from launcher.run.files import write_text
from schemas.blanking import without_secrets

MODEL = "pretrained_model_name_or_path"


@dataclass(frozen=True)
class Ready:
    """The config beside the folder; `kept` where one of that name was there, which stays as it is."""

    file: Path
    kept: bool
    command: str


def ready(made: Prepared, preset: str) -> Ready:
    """Write `<directory>/<token>.json`, a Kohya GUI JSON that the GUI loads too."""
    from launcher.about.convert import convert
    from launcher.check.resolve import resolve

    sets = {
        "train_data_dir": str(made.train_data_dir.absolute()),
        "output_dir": str((made.directory / "result_current").absolute()),
        "output_name": made.token,
    }
    if made.reg is not None:
        sets["reg_data_dir"] = str(made.reg.train_data_dir.absolute())
    if any(one.caption is not None for one in made.written):
        sets["caption_extension"] = ".txt"
    resolved = resolve(preset, sets)
    file = made.directory / f"{made.token}.json"
    kept = file.exists()
    if not kept:
        write_text(file, without_secrets(convert(resolved, "kohya-gui", beside=file).text))
    words = ["kohyakit", "launch", str(file)]
    if not Path(str(getattr(resolved.config, MODEL, "") or "")).exists():
        words += ["--set", f"{MODEL}=MODEL.safetensors"]
    return Ready(file, kept, quoted(words))
