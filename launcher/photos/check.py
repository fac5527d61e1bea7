"""`dataset check`: what is wrong, or could be better, in a folder of training pictures. Changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.photos.facing import Facing, facing
from launcher.photos.folders import Folder, moved, relative, training_folders
from launcher.photos.image import CAPTIONS, as_trained, is_transparent, open_picture
from launcher.photos.likeness import Look, duplicates, look
from launcher.photos.quality import DARK, Quality, measure
from schemas.config import TrainConfig, from_flat
from schemas.problems import ConfigError, Problem, Severity, errors
from trainer.dataset.buckets import Choice
from trainer.dataset.captions import captions_like, read_text_of
from trainer.dataset.files import Scan, scan
from trainer.dataset.images import Unreadable
from trainer.dataset.names import fold
from trainer.dataset.order import assign
from trainer.dataset.pictures import ahead, decoders

SMALLEST, LARGEST = 256, 2048  # pixels of a side
SHOWN = 5  # names given as examples
# What the scan of a run says of files, which the same scan says here.
SCANNED = (
    "unsupported-pictures", "unusual-extension", "two-captions", "caption-case", "too-deep", "caption-tokens",
    "tiny-image",
)  # fmt: skip
WORDS = {
    "exact": "is the same image as",
    "near": "is nearly the same image as",
    "cropped": "shows the same, cropped otherwise, as",
    "mirrored": "is the mirror image of",
}
LOST = 0.2  # share of an image above which what the bucket cuts off is said
ENLARGED = 1.1  # times by which an image is enlarged above which that is said
TAGGED = (".tags", ".wd14", *CAPTIONS)  # where the tags of a tagger may lie beside the captions


@dataclass(frozen=True)
class Cut:
    """What is trained of an image: its bucket, and the part of the upright image (left, top, width, height) in it."""

    bucket: tuple[int, int]
    part: tuple[float, float, float, float]
    scale: float  # above 1 the image is enlarged

    def loss(self, size: tuple[int, int]) -> float:
        """The share of the image that is cut off."""
        return max(0.0, 1 - self.part[2] * self.part[3] / (size[0] * size[1]))


@dataclass(frozen=True)
class Shot:
    """One readable image: (width, height) upright, caption or None, its file or None; `cut` where it is trained."""

    path: Path
    size: tuple[int, int]
    caption: str | None
    caption_file: Path | None = None
    quality: Quality | None = None
    cut: Cut | None = None
    selfie: bool = False


@dataclass
class Checkup:
    """Everything `check` found. Problem keys are paths relative to `directory`."""

    directory: Path
    folders: list[Folder] = field(default_factory=list)
    shots: list[Shot] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)
    duplicates: list[tuple[str, str, str]] = field(default_factory=list)
    buckets: list[tuple[tuple[int, int], int]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def facing(self) -> Facing:
        """Whether the set shows things one way round."""
        return facing(self.duplicates, [self.relative(shot.path) for shot in self.shots if shot.selfie])

    @property
    def ok(self) -> bool:
        return not errors(self.problems)

    @property
    def tags(self) -> Counter[str]:
        """How many captions hold each tag."""
        texts = (shot.caption.splitlines()[0] for shot in self.shots if shot.caption and shot.caption.strip())
        return Counter(tag for text in texts for tag in {part.strip() for part in text.split(",")} if tag)

    def relative(self, path: Path) -> str:
        return relative(path, self.directory)

    def add(self, severity: Severity, code: str, path: Path | None, must: str, fix: str, got: Any = None) -> None:
        key = self.relative(path) if path else None
        self.problems.append(Problem(severity=severity, code=code, key=key, must=must, fix=fix, got=got))

    def as_json(self) -> dict[str, Any]:
        """The document of `dataset check --json`."""
        return {
            "directory": str(self.directory),
            "ok": self.ok,
            "images": len(self.shots),
            "folders": [
                {
                    "path": self.relative(folder.path),
                    "repeats": folder.repeats,
                    "name": folder.name,
                    "images": sum(shot.path.parent == folder.path for shot in self.shots),
                }
                for folder in self.folders
            ],
            "without_caption": [self.relative(shot.path) for shot in self.shots if not shot.caption],
            "duplicates": [{"kind": kind, "files": [first, second]} for kind, first, second in self.duplicates],
            "orientation": self.facing.as_json(),
            "files": [self._shot_json(shot) for shot in self.shots],
            "buckets": [{"resolution": list(size), "images": count} for size, count in self.buckets],
            "tags": dict(self.tags.most_common()),
            "problems": [problem.as_json() for problem in self.problems],
        }

    def _shot_json(self, shot: Shot) -> dict[str, Any]:
        cut, quality = shot.cut, shot.quality
        return {
            "file": self.relative(shot.path),
            "width": shot.size[0],
            "height": shot.size[1],
            "caption": shot.caption,
            "bucket": list(cut.bucket) if cut else None,
            "crop": [round(one, 1) for one in cut.part] if cut else None,
            "crop_loss": round(cut.loss(shot.size), 4) if cut else None,
            "scale": round(cut.scale, 4) if cut else None,
            "sharpness": round(quality.sharpness, 1) if quality else None,
            "brightness": round(quality.brightness, 1) if quality else None,
            "white": round(quality.white, 4) if quality else None,
        }


@dataclass(frozen=True)
class _Seen:
    """What one decoded picture shows."""

    size: tuple[int, int]
    orientation: int
    transparent: bool
    look: Look
    quality: Quality
    selfie: bool


def check(
    directory: Path,
    *,
    caption_extension: str = ".txt",
    resolution: str = "512,512",
    upscale: bool = False,
    max_token_length: int | None = None,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> Checkup:
    """Look at every file under `directory`. ConfigError only where there is no folder, or no picture at all."""
    where = training_folders(directory)
    place = where.place
    found = Checkup(directory, list(where.folders), problems=list(where.problems))
    looks: list[Look] = []
    paths = [(folder, path) for folder in found.folders for path in folder.images()]
    seen = ahead(_look_at, [path for _, path in paths], decoders())
    for (folder, path), one in zip(progress(paths), seen, strict=True):
        if isinstance(one, _Seen):
            file = folder.caption_file(path, caption_extension)
            caption = _caption(found, file)
            found.shots.append(Shot(path, one.size, caption, file, one.quality, selfie=one.selfie))
            looks.append(one.look)
            _remarks(found, path, one)
        else:
            found.broken.append(path)
            found.add("error", "unreadable-image", path, one, "replace or remove the file")
    for folder in found.folders:
        _names(found, folder, caption_extension)
    _captions(found, caption_extension)
    _triggers(found)
    _unnamed(found, caption_extension)
    _likeness(found, looks)
    _facing(found)
    _count(found)
    if place is not None:
        values = {
            "resolution": resolution,
            "enable_bucket": True,
            "caption_extension": caption_extension,
            "bucket_no_upscale": not upscale,
            "max_token_length": max_token_length,
            "train_data_dir": str(place),
        }
        _as_scanned(found, from_flat({name: value for name, value in values.items() if value is not None})[0])
    return found


def _look_at(path: Path) -> _Seen | str:
    """Decode one picture; why it cannot be."""
    try:
        picture = open_picture(path)
    except Unreadable as fault:
        return str(fault)
    image = picture.image
    rgb = as_trained(image)
    return _Seen(image.size, picture.orientation, is_transparent(image), look(rgb), measure(rgb), picture.selfie)


def _remarks(found: Checkup, path: Path, seen: _Seen) -> None:
    width, height = size = seen.size
    if min(size) < SMALLEST:
        fix = "use a larger original: enlarging blurs"
        found.add("warning", "small-image", path, f"has a side below {SMALLEST} pixels", fix, f"{width}x{height}")
    if max(size) > LARGEST:
        fix = "nothing is wrong, but smaller files load faster"
        found.add("note", "large-image", path, f"has a side above {LARGEST} pixels", fix, f"{width}x{height}")
    if seen.orientation != 1:
        found.add(
            "note", "exif-rotation", path, "is turned by its EXIF data: kohyakit turns it too, other trainers do not",
            "run it through `kohyakit dataset prepare`",
        )  # fmt: skip
    if seen.transparent:
        found.add(
            "warning", "transparency", path, "has transparent parts, which become white unless alpha_mask is set",
            "put a background behind it, or set alpha_mask",
        )  # fmt: skip
    quality = seen.quality
    if quality.blurred:
        must = "may be blurred: its fine detail (variance of the Laplacian) is below what sharp photos have"
        found.add(
            "note", "blurred-image", path, must, "look at it; a sharper one teaches more", round(quality.sharpness, 1)
        )
    if quality.dark:
        must = f"is dark: its mean brightness, of 255, is below {DARK:g}"
        found.add(
            "note", "dark-image", path, must, "look at it; brighten it or leave it out", round(quality.brightness, 1)
        )
    if quality.burnt and not seen.transparent:
        must = "may be burnt out, or have a plain white background: so many of its pixels are white"
        found.add("note", "burnt-out-image", path, must, "look at it; white teaches nothing", f"{quality.white:.0%}")


def _caption(found: Checkup, file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        text = read_text_of(file)
    except ValueError as fault:
        encoding = "UTF-8" in str(fault)
        fix = "save it again as UTF-8" if encoding else "replace it by a plain text file"
        found.add("error", "caption-encoding" if encoding else "unreadable-caption", file, str(fault), fix)
        return None
    if not text.strip():
        found.add("warning", "caption-empty", file, "is empty", "write a caption, or remove the file")
    elif not text.splitlines()[0].strip():
        fix = "move the caption to the first line"
        found.add("warning", "caption-empty", file, "has an empty first line, which is what is trained", fix)
    return text


def _names(found: Checkup, folder: Folder, extension: str) -> None:
    """Pictures that share a stem, captions without a picture."""
    sharing: dict[str, list[str]] = {}
    for path in folder.images():
        sharing.setdefault(fold(path.stem), []).append(path.name)
    for stem, alike in sharing.items():
        files = {folder.caption_file(folder.path / name, extension) for name in alike}
        if len(alike) > 1 and (len(files) == 1 or len({Path(name).stem for name in alike}) < len(alike)):
            must = f"{' and '.join(alike)} share one caption and one cache"
            found.add("warning", "same-stem", folder.path / stem, must, "rename one of them, caption included")
    used = {name for path in folder.listing.images for one in {*CAPTIONS, extension}
            for name in captions_like(path.name, one, folder.listing.names)}  # fmt: skip
    for name in sorted(folder.listing.names.exact - used):
        file = folder.path / name
        if file.suffix.lower() in CAPTIONS and not file.is_dir():
            fix = "remove it, or give it its image's name"
            found.add("note", "caption-orphan", file, "is a caption without an image", fix)


def _captions(found: Checkup, extension: str) -> None:
    folders = {folder.path: folder for folder in found.folders}
    missing = [shot for shot in found.shots if shot.caption_file is None]
    if not missing:
        return
    others = Counter(
        other
        for shot in missing
        for other in CAPTIONS
        if other != extension and folders[shot.path.parent].caption_file(shot.path, other)
    )
    for other, count in others.most_common(1):
        found.add(
            "warning", "caption-extension", None, f"{count} captions end in {other}, not in {extension}",
            f"set caption_extension to {other}, or rename them",
        )  # fmt: skip
        return
    if len(missing) == len(found.shots):
        found.add(
            "warning", "caption-missing", None, "no image has a caption: all are trained on their folder's name",
            f"write NAME{extension} files, or run `kohyakit dataset caption`",
        )  # fmt: skip
        return
    for shot in missing:
        found.add(
            "warning", "caption-missing", shot.path, "has no caption: it is trained on its folder's name",
            f"write NAME{extension} files, or run `kohyakit dataset caption`",
        )  # fmt: skip


def _triggers(found: Checkup) -> None:
    """Captions that do not begin with the word of their folder."""
    for folder in found.folders:
        word = next(iter(folder.name.split()), "").strip(",")
        if not folder.repeats or not word:
            continue
        captions = [shot for shot in found.shots if shot.path.parent == folder.path and (shot.caption or "").strip()]
        others = [shot for shot in captions if not _begins(shot.caption or "", word)]
        if not others:
            continue
        examples = [f"{shot.path.name}: {(shot.caption or '').strip().splitlines()[0][:60]}" for shot in others]
        must = (
            f"{len(others)} of {len(captions)} captions do not begin with its word, {word}: what they show is learned "
        )
        must += "without it"
        fix = f"begin them with {word}, or leave it so for a style without a word"
        found.add("note", "caption-trigger", folder.path, must, fix, examples[:SHOWN])


def _begins(caption: str, word: str) -> bool:
    text, wanted = fold(caption.strip()), fold(word)
    return text.startswith(wanted) and not text[len(wanted) : len(wanted) + 1].isalnum()


def _likeness(found: Checkup, looks: list[Look]) -> None:
    for kind, i, j in duplicates(looks):
        first, second = found.shots[i].path, found.shots[j].path
        found.duplicates.append((kind, found.relative(first), found.relative(second)))
        fix = "keep one side: a face that is trained both ways round loses its asymmetry" if kind == "mirrored" else (
            "remove one of them: what is shown twice is learned twice as hard"
        )  # fmt: skip
        found.add("warning", f"{kind}-duplicate", second, f"{WORDS[kind]} {found.relative(first)}", fix)


def _facing(found: Checkup) -> None:
    """The verdict on the whole set, where it is mixed."""
    verdict = found.facing
    if verdict.verdict == "both-ways":
        names = list(verdict.turned)
        must = f"the set shows both ways round: {len(names)} of its images are mirror images of others"
        fix = "mirror these or remove them: what is not symmetrical, such as a face, is learned as a blend of both"
        found.add("warning", "mixed-orientation", None, must, fix, names[:SHOWN])
    if verdict.selfies and len(verdict.selfies) < len(found.shots):
        must = f"{len(verdict.selfies)} images come from a front camera, which many phones store mirrored"
        fix = "look whether writing in them reads rightly; mirror those that do not"
        found.add("note", "front-camera", None, must, fix, list(verdict.selfies[:SHOWN]))


def _unnamed(found: Checkup, extension: str) -> None:
    """What a tagger has seen (in a file beside the caption) and no caption names: it becomes part of the word."""
    folders = {folder.path: folder for folder in found.folders}
    missed: Counter[str] = Counter()
    compared = 0
    for shot in found.shots:
        file = next(
            (
                other
                for one in TAGGED
                if one != extension and (other := folders[shot.path.parent].caption_file(shot.path, one))
            ),
            None,
        )
        if file is None or not (shot.caption or "").strip():
            continue
        try:
            tags = [tag.strip() for tag in read_text_of(file).split(",") if tag.strip()]
        except ValueError:
            continue
        compared += 1
        text = fold(shot.caption or "")
        missed.update(tag for tag in set(tags) if not any(word in text for word in _stems(tag)))
    often = [f"{tag} ({count})" for tag, count in missed.most_common(2 * SHOWN)]
    if often:
        must = f"in {compared} images a tagger saw what their captions do not name, so that it is learned with the word"
        fix = "name what should stay changeable; leave out what belongs to the subject"
        found.add("note", "caption-tags", None, must, fix, often)


def _stems(tag: str) -> list[str]:
    words = [word for word in fold(tag).replace("_", " ").split() if len(word) > 2] or [fold(tag)]
    return [word[:-1] if word.endswith("s") and len(word) > 4 else word for word in words]


def _count(found: Checkup) -> None:
    """The usual advice on how many pictures a character or style wants."""
    images = len(found.shots)
    advice: tuple[tuple[int, Severity, str, str], ...] = (
        (4, "warning", "very few images", "add some: 21 to 50 work best"),
        (10, "warning", "few images", "add some: 21 to 50 work best"),
        (20, "note", "a good number of images", "21 to 50 work best"),
        (50, "note", "the best number of images", "keep them as they are"),
        (100, "note", "many images", "50 well-chosen ones often do as well"),
    )
    for most, severity, must, fix in advice:
        if images <= most:
            found.add(severity, "image-count", None, must, fix, images)
            return
    fix = "choose the best 50, unless this is a style or a finetune"
    found.add("warning", "image-count", None, "more images than a character or a style needs", fix, images)


def _as_scanned(found: Checkup, config: TrainConfig) -> None:
    """What the trainer's own scan says of the same files, and the bucket table by its arithmetic."""
    try:
        seen = scan(config)
        found.problems += [moved(problem, found.directory) for problem in _unsaid(found, seen)]
        if not seen.samples:
            return
        assignment = assign(seen, config)  # of those that can be read
    except ConfigError as fault:
        found.problems += [moved(problem, found.directory) for problem in fault.problems]
        return
    counts: Counter[tuple[int, int]] = Counter(choice.bucket for choice in assignment.choices)
    found.buckets = sorted(counts.items())
    choices = {sample.path: choice for sample, choice in zip(seen.samples, assignment.choices, strict=True)}
    found.shots = [replace(shot, cut=_cut(shot, choices.get(shot.path))) for shot in found.shots]
    for shot in found.shots:
        _cut_remarks(found, shot)


def _cut(shot: Shot, choice: Choice | None) -> Cut | None:
    if choice is None:
        return None
    across, down = (whole / resized for whole, resized in zip(shot.size, choice.resized, strict=True))
    (left, top), (width, height) = choice.crop, choice.bucket
    part = (left * across, top * down, min(width * across, shot.size[0]), min(height * down, shot.size[1]))
    return Cut(choice.bucket, part, max(choice.resized[0] / shot.size[0], choice.resized[1] / shot.size[1]))


def _cut_remarks(found: Checkup, shot: Shot) -> None:
    if shot.cut is None:
        return
    loss, bucket = shot.cut.loss(shot.size), "x".join(map(str, shot.cut.bucket))
    if loss > LOST:
        must = f"loses much of itself: only its middle fits its bucket of {bucket}"
        fix = "crop it yourself so that the subject stays whole; the sheet (--sheet) shows the cut"
        found.add("note", "crop-loss", shot.path, must, fix, f"{loss:.0%}")
    if shot.cut.scale > ENLARGED:
        must, fix = f"is enlarged to its bucket of {bucket}: blur is learned", "use a larger original, or remove it"
        found.add("warning", "enlarged-image", shot.path, must, fix, f"x {shot.cut.scale:.2f}")


def _unsaid(found: Checkup, seen: Scan) -> Iterator[Problem]:
    """Those of its findings that are not made here, and every error where there is none so far."""
    ok = found.ok
    for problem in seen.problems:
        if problem.code in SCANNED or (ok and problem.severity == "error"):
            yield problem
