"""Rules on names that become file names, and on files that become part of the trained file."""

from __future__ import annotations

import re
from collections.abc import Iterator

from schemas.config import TrainConfig
from schemas.problems import Problem
from schemas.rules.registry import rule

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".avif")


@rule
def names_stay_in_their_folder(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """output_name is a name and not a path; log_prefix does not leave logging_dir."""
    name = config.output_name or ""
    if re.search(r"[/\\:\0]", name) or name in (".", ".."):
        clean = re.split(r"[/\\:\0]", name)[-1].strip(".") or "lora"
        yield Problem(
            code="not-a-name",
            key="output_name",
            got=name,
            must="must be a name, not a path: the folder is output_dir",
            fix=f"--set output_name={clean}",
        )
    prefix = config.log_prefix or ""
    if ".." in re.split(r"[/\\]", prefix) or re.match(r"[/\\~]|[A-Za-z]:", prefix):
        yield Problem(
            code="not-a-name",
            key="log_prefix",
            got=prefix,
            must="must not lead out of logging_dir",
            fix="--set log_prefix=",
        )


@rule
def thumbnail_is_a_picture(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """metadata_thumbnail is copied into the trained file, so it must be a picture."""
    place = config.metadata_thumbnail or ""
    if place and not place.lower().endswith(PICTURES) and not place.startswith("data:image/"):
        yield Problem(
            code="not-a-picture",
            key="metadata_thumbnail",
            got=place[:100],
            must="must be a picture file, or a data:image/... URL: it is copied into the trained file",
            fix="--set metadata_thumbnail=PICTURE.png",
        )
