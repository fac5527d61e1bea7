"""Rules on names that become file names, and on files that become part of the trained file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from schemas.config import TrainConfig, table
from schemas.files.places import LONGEST_ENDING, LONGEST_PATH
from schemas.problems import Problem
from schemas.rules.registry import rule
from schemas.terminal import shell_word

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
            fix=f"--set output_name={shell_word(clean)}",
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
def files_fit_their_folder(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """The longest path of a file that the run will write can exist: output_dir, a folder in it, and a name."""
    name = config.output_name or "last"
    folder = os.path.abspath(config.output_dir or ".")
    length = len(os.fsencode(folder)) + 2 * (len(os.fsencode(name)) + LONGEST_ENDING)
    if length > LONGEST_PATH:
        must = f"must leave room for the names of the files in it: the longest path would have {length} bytes"
        fix = "--set output_dir=PATH, a shorter one"
        yield Problem(code="path-too-long", key="output_dir", got=config.output_dir, must=must, fix=fix)


def irregular(config: TrainConfig) -> Iterator[Problem]:
    """Paths that are there and are neither file nor folder: reading a pipe or a device waits or never ends."""
    for name, option in table().items():
        value = getattr(config, name) if option.path else None
        for path in value if isinstance(value, tuple) else (value,):
            if path and os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
                must = "is a pipe, a device or a socket; it must be a regular file or a folder"
                yield Problem(code="irregular-path", key=name, got=path, must=must, fix=f"--set {name}=PATH")


def written_places(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """(option, folder or file) of everything that a run writes to, caches beside the images included."""
    names = ["output_dir", "logging_dir", "console_log_file"]
    names += ["train_data_dir", "reg_data_dir", "in_json"] if caches_beside_images(config) else []
    for name in names:
        value = getattr(config, name)
        if value:
            yield name, value


def caches_beside_images(config: TrainConfig) -> bool:
    """Whether latents or text outputs are written into the folders of the images."""
    return config.cache_latents_to_disk or config.cache_text_encoder_outputs_to_disk


def document_places(document: Any) -> Iterator[str]:
    """The image folders that a dataset_config document names."""
    if isinstance(document, Mapping):
        for name, value in document.items():
            if name == "image_dir" and isinstance(value, str):
                yield value
            else:
                yield from document_places(value)
    elif isinstance(document, list):
        for one in document:
            yield from document_places(one)


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
