"""Where a mask comes from: transparency, masks that are there, a face, a cut-out. uint8 [H,W], 255 is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from schemas.problems import error
from trainer.dataset.names import fold
from trainer.dataset.pictures import pictures_in
from trainer.input import pixels

Mask = np.ndarray
# The mask of an image, or ValueError, saying why there is none.
Source = Callable[[Path], Mask]

SOURCES = ("alpha", "folder", "face", "rembg")
FACE_SIDE = 480  # pixels of the shorter side at which faces are looked for
SMALLEST_FACE = 0.06  # of the shorter side
TALL = 1.5  # a head is higher than the square that a detector finds


def source_of(kind: str, *, folder: Path | None, grow: float) -> Source:
    """What makes the masks. ConfigError `missing-package`, `no-folder` before anything is written."""
    if kind == "alpha":
        return from_alpha
    if kind == "folder":
        return from_folder(folder)
    return from_face(grow) if kind == "face" else from_rembg()


def from_alpha(path: Path) -> Mask:
    """The image's own transparency."""
    alpha = pixels.read(path, alpha=True)[1]
    assert alpha is not None
    if alpha.min() == 255:
        raise ValueError("has no transparent part")
    return alpha[..., 0]


def from_folder(folder: Path | None) -> Source:
    """Masks of the same names in another folder, scaled to their images: white or opaque is trained."""
    if folder is None or not folder.is_dir():
        must = "must be a folder of masks" if folder else "is needed: the folder that the masks are in"
        got = str(folder) if folder else None
        raise error("no-folder", must, key="--masks", got=got, fix="--masks FOLDER")
    masks = {fold(path.stem): path for path in reversed(pictures_in(folder))}

    def make(path: Path) -> Mask:
        mask = masks.get(fold(path.stem))
        if mask is None:
            raise ValueError(f"has no mask in {folder.name}")
        found, alpha = pixels.read(mask, alpha=True)
        assert alpha is not None
        grey = alpha[..., 0] if alpha.min() < 255 else found[..., 0]
        height, width = pixels.read(path)[0].shape[:2]
        if abs(grey.shape[1] * height - grey.shape[0] * width) > 0.02 * grey.shape[1] * height:
            raise ValueError(f"its mask has another shape: {grey.shape[1]}x{grey.shape[0]}, not {width}x{height}")
        return np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR))

    return make


def from_face(grow: float) -> Source:
    """An ellipse round every face, `grow` times as large, its edge soft."""
    try:
        import cv2

        folder: str = vars(cv2)["data"].haarcascades  # its type information leaves `data` out
        detector = cv2.CascadeClassifier(folder + "haarcascade_frontalface_default.xml")
    except (ImportError, AttributeError, KeyError):
        fix = "pip install 'opencv-python-headless<5' (kohyakit's extra `masks`)"
        raise error("missing-package", "needs opencv below version 5", key="--from", got="face", fix=fix) from None

    def make(path: Path) -> Mask:
        image = Image.fromarray(pixels.read(path)[0]).convert("L")
        scale = min(1.0, FACE_SIDE / min(image.size))
        small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        least = max(20, round(SMALLEST_FACE * min(small.size)))
        faces, _, weights = detector.detectMultiScale3(
            np.asarray(small), 1.1, 6, minSize=(least, least), outputRejectLevels=True
        )
        if not len(faces):
            raise ValueError("shows no face that is found")
        sure = [face for face, weight in zip(faces, weights, strict=True) if weight >= 0.5 * max(weights)]
        return ellipses(image.size, [tuple(float(side) / scale for side in face) for face in sure], grow)

    return make


def ellipses(size: tuple[int, int], faces: list[tuple[float, ...]], grow: float) -> Mask:
    """White ellipses round boxes (left, top, width, height) on black, softened at their edge."""
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    softness = 1.0
    for left, top, width, height in faces:
        across, down = width * grow / 2, height * grow * TALL / 2
        x, y = left + width / 2, top + height / 2
        draw.ellipse((x - across, y - down, x + across, y + down), fill=255)
        softness = max(softness, 0.06 * min(across, down))
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(softness)))


def from_rembg() -> Source:
    """The subject, cut out by rembg's network, which it fetches once."""
    try:
        from rembg import new_session, remove
    except ImportError:
        fix = "pip install rembg onnxruntime (kohyakit's extra `masks`)"
        raise error("missing-package", "needs rembg", key="--from", got="rembg", fix=fix) from None
    try:
        session = new_session()
    except Exception as fault:  # of the network, in many classes
        said = str(fault).strip().splitlines()
        must = f"rembg cannot load its model: {said[0] if said else type(fault).__name__}"
        raise error("no-model", must, key="--from", got="rembg", fix="let rembg fetch its model once") from None

    def make(path: Path) -> Mask:
        return np.asarray(remove(Image.fromarray(pixels.read(path)[0]), session=session, only_mask=True).convert("L"))

    return make
