"""The pictures of one subset with their captions: from a folder with caption files, or from a metadata file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from schemas.config import TrainConfig
from schemas.files.documents import parse_json
from schemas.files.textfile import LISTING, read_text
from schemas.problems import ConfigError, Problem
from trainer.dataset.captions import OTHER_EXTENSIONS, captions_like, read_caption
from trainer.dataset.names import Names, fold
from trainer.dataset.pictures import Listing, deeper, extensions, list_folder, pictures_in
from trainer.dataset.spec import SubsetSpec

SHOWN = 5  # names given as examples
LARGEST_METADATA = 1 << 30  # bytes; a line an image, for millions of images


@dataclass(frozen=True)
class Picture:
    """A picture file and its text as stored."""

    path: Path
    caption: str
    has_caption: bool
    mask: Path | None = None


def pictures_of(spec: SubsetSpec, config: TrainConfig, problems: list[Problem]) -> list[Picture]:
    """The pictures of a subset in order of their names; faults of folders and captions are appended to `problems`."""
    if spec.metadata_file:
        return list(_from_metadata(spec, problems))
    folder = spec.image_dir or ""
    for place, key in ((folder, "image_dir"), (spec.conditioning_data_dir, "conditioning_data_dir")):
        if place is not None and not os.path.isdir(place):
            problems.append(
                Problem(code="missing-folder", key=key, got=place, must="must be a folder", fix="check the path")
            )
            return []
    listing = list_folder(folder)
    problems += _left_out(folder, listing)
    masks = _masks(spec, listing.images, problems) if spec.conditioning_data_dir else {}
    return list(_captioned(spec, listing, masks, problems))


def _left_out(folder: str, listing: Listing) -> Iterator[Problem]:
    if listing.others:
        yield Problem(
            code="unsupported-pictures",
            severity="warning",
            key="image_dir",
            got=list(listing.others[:SHOWN]),
            file=folder,
            must=f"{len(listing.others)} images are of a kind that is not trained on and are left out",
            fix="save them as PNG",
        )
    if listing.unusual:
        yield Problem(
            code="unusual-extension",
            severity="note",
            key="image_dir",
            got=list(listing.unusual[:SHOWN]),
            file=folder,
            must=f"{len(listing.unusual)} images are known by their content and trained on; the reference goes by the "
            "extension and does not see them",
        )
    yield from too_deep(folder)
    if not listing.images:
        yield Problem(
            code="empty-folder",
            severity="warning",
            key="image_dir",
            got=folder,
            must="holds no pictures",
            fix="remove it, or put pictures into it",
        )


def too_deep(folder: str) -> Iterator[Problem]:
    """Images in folders below one that is trained on: they are not."""
    for place, count in deeper(folder):
        yield Problem(
            code="too-deep",
            severity="warning",
            key="image_dir",
            got=str(place),
            file=folder,
            must=f"{count} images lie in a folder below and are not trained on",
            fix=f"move them, with their captions, into {folder}",
        )


def _captioned(
    spec: SubsetSpec, listing: Listing, masks: Mapping[str, Path], problems: list[Problem]
) -> Iterator[Picture]:
    without: list[Path] = []
    alike: list[list[str]] = []  # captions found by a name that is written otherwise, or more than one
    stems = {path.stem for path in listing.images}
    for path in listing.images:
        caption, names = spec.class_tokens or "", captions_like(path.name, spec.caption_extension, listing.names)
        found = path.with_name(names[0]) if names else None
        if found is None:
            without.append(path)
        else:
            # The caption of another image whose name differs in case only is that image's own.
            others = [(name, Path(name).stem) for name in names[1:] if fold(name) == fold(names[0])]
            rivals = [name for name, stem in others if stem == path.stem or stem not in stems]
            if rivals or _differs(path, found):
                alike.append([path.name, names[0], *rivals])
            try:
                caption = read_caption(found, spec.enable_wildcard)
            except ValueError as fault:
                problems.append(_caption_fault(found, fault))
            else:
                if not caption:
                    problems.append(
                        Problem(
                            code="blank-first-line",
                            severity="warning",
                            file=str(found),
                            key="caption",
                            must="begins with a blank line, so the caption is empty",
                            fix="delete that line",
                        )
                    )
        yield Picture(path, caption, found is not None, masks.get(fold(path.stem)))
    problems += _uncaptioned(spec, without, listing.names)
    problems += _alike(spec, alike)


def _differs(path: Path, caption: Path) -> bool:
    """Whether a caption's name is written otherwise than its image's."""
    return not path.stem.startswith(caption.stem) or caption.suffix != caption.suffix.lower()


def _alike(spec: SubsetSpec, alike: Sequence[list[str]]) -> Iterator[Problem]:
    several = [f"{image}: {' or '.join(names)}" for image, *names in alike if len(names) > 1]
    if several:
        yield Problem(
            code="two-captions",
            severity="warning",
            key="caption_extension",
            file=spec.image_dir,
            got=several[:SHOWN],
            must=f"{len(several)} images have captions that differ in case or Unicode form only; the first is used",
            fix="keep one of each",
        )
    other = [f"{image}: {names[0]}" for image, *names in alike if len(names) == 1]
    if other:
        yield Problem(
            code="caption-case",
            severity="note",
            key="caption_extension",
            file=spec.image_dir,
            got=other[:SHOWN],
            must=f"{len(other)} captions are written otherwise than their images, in case or Unicode form, and are "
            "used; the reference finds them on Windows and macOS only",
        )


def _caption_fault(path: Path, fault: Exception) -> Problem:
    said = str(fault)
    code = {"is empty": "empty-caption"}.get(said, "caption-encoding" if "UTF-8" in said else "unreadable-caption")
    fix = {"empty-caption": "write a caption into it, or delete it", "caption-encoding": "save it as UTF-8"}.get(
        code, "replace it by a plain text file, or delete it"
    )
    return Problem(code=code, file=str(path), key="caption", must=f"cannot be used as a caption: {said}", fix=fix)


def _uncaptioned(spec: SubsetSpec, without: Sequence[Path], names: Names) -> Iterator[Problem]:
    """Warnings on pictures without a caption file; loud when their captions have another extension (traps T11)."""
    others = [
        extension for extension in OTHER_EXTENSIONS for path in without if captions_like(path.name, extension, names)
    ]
    used = f"the class words {spec.class_tokens!r} are" if spec.class_tokens else "an empty text is"
    if others:
        extension = max(set(others), key=others.count)
        yield Problem(
            code="captions-elsewhere",
            severity="warning",
            key="caption_extension",
            got=spec.caption_extension,
            file=spec.image_dir,
            must=f"{others.count(extension)} captions end in {extension} and are not read; {used} trained on instead",
            fix=f"set caption_extension to {extension}",
        )
    if without and len(others) < len(without):
        examples = ", ".join(path.name for path in without[:SHOWN])
        yield Problem(
            code="no-caption",
            severity="note" if spec.is_reg else "warning",
            key="caption_extension",
            file=spec.image_dir,
            got=f"{len(without)} images: {examples}",
            must=f"have no {spec.caption_extension} file; {used} trained on",
            fix="write captions, or leave it so for a plain class",
        )


def _masks(spec: SubsetSpec, paths: Sequence[Path], problems: list[Problem]) -> dict[str, Path]:
    """Mask pictures by folded stem; one missing or left over is an error, as in the reference."""
    folder = spec.conditioning_data_dir or ""
    masks = {fold(path.stem): path for path in reversed(pictures_in(folder))}
    stems = {fold(path.stem) for path in paths}
    lost = [path.name for path in paths if fold(path.stem) not in masks]
    extra = [path.name for stem, path in masks.items() if stem not in stems]
    for code, found, must in (
        ("missing-mask", lost, "have no mask of the same name in it"),
        ("extra-mask", extra, "belong to no picture"),
    ):
        if found:
            problems.append(
                Problem(
                    code=code,
                    key="conditioning_data_dir",
                    got=found[:SHOWN],
                    file=folder,
                    must=f"{len(found)} files {must}",
                    fix="add or remove files until both folders match",
                )
            )
    return masks


def _from_metadata(spec: SubsetSpec, problems: list[Problem]) -> Iterator[Picture]:
    """Pictures that a metadata file lists; they are known by their full path (traps T18)."""
    file = spec.metadata_file or ""
    try:
        entries = _read_metadata(file)
    except ConfigError as fault:
        problems += [replace(one, key="metadata_file", got=file) for one in fault.problems]
        return
    except (ValueError, TypeError, KeyError, RecursionError) as fault:
        problems.append(
            Problem(
                code="bad-metadata",
                key="metadata_file",
                got=file,
                file=file,
                must=f"is not a metadata file: {fault}",
                fix="give a JSON of pictures with captions or tags",
            )
        )
        return
    lost: list[str] = []
    for key, entry in entries.items():
        path = _picture_path(key, spec.image_dir)
        if path is None:
            lost.append(key)
            continue
        text = metadata_text(entry, spec)
        yield Picture(path, text, bool(text))
    if lost:
        problems.append(
            Problem(
                code="missing-image",
                key="metadata_file",
                got=lost[:SHOWN],
                file=file,
                must=f"names {len(lost)} images that are not there",
                fix="correct image_dir or the names",
            )
        )


def _read_metadata(file: str) -> dict[str, Mapping[str, Any]]:
    text = read_text(file, limit=LISTING, what="metadata file")
    if file.lower().endswith(".jsonl"):
        rows = [parse_json(line) for line in text.splitlines() if line.strip()]
        entries = {row["image_path"]: row for row in rows}
    else:
        entries = parse_json(text)
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError("it must be a table of tables")
    return entries


def _picture_path(key: str, folder: str | None) -> Path | None:
    """The file of a metadata key, which may lack its extension."""
    path = Path(key) if os.path.isabs(key) or not folder else Path(folder, key)
    if path.is_file() or path.suffix.lower() in extensions():
        return path if path.is_file() else None
    named = (
        path.with_name(path.name + ending)
        for extension in sorted(extensions())
        for ending in (extension, extension.upper())
    )
    return next((candidate for candidate in named if candidate.is_file()), None)


def metadata_text(entry: Mapping[str, Any], spec: SubsetSpec) -> str:
    """Caption and tags of a metadata entry as one text; with wildcards the tags follow every line (section 2.5)."""
    caption, tags = str(entry.get("caption") or ""), str(entry.get("tags") or "")
    if spec.enable_wildcard:
        tags = tags.replace("\n", spec.caption_separator)
        lines = [line.strip() for line in caption.split("\n") if line.strip()] or [""]
        return "\n".join(_with_tags(line, tags, spec) for line in lines)
    return _with_tags(caption, tags, spec)


def _with_tags(caption: str, tags: str, spec: SubsetSpec) -> str:
    if not tags:
        return caption
    return f"{caption}{spec.caption_separator}{tags}" if caption else tags
