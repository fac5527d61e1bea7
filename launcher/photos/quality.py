"""Signs of a photo that teaches little: blurred, dark, burnt out. Hints from numbers, not verdicts."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageFilter

SIDE = 512  # the longest side at which all is measured: what is sharp there is sharp enough to train
LAPLACIAN = ImageFilter.Kernel((3, 3), (0, 1, 0, 1, -4, 1, 0, 1, 0), scale=1, offset=128)
FLAT = 60.0  # variance of the Laplacian below which an image may be blurred
EDGE = 36  # and its strongest responses (the last thousandth), so that a sharp drawing of few lines passes
DARK = 40.0  # mean brightness of 255
BURNT = 0.35  # share of pixels without any detail in the lights
WHITE = 254


@dataclass(frozen=True)
class Quality:
    """`sharpness` is the variance of the Laplacian; `edge` its strongest responses; `brightness` 0..255."""

    sharpness: float
    edge: int
    brightness: float
    white: float  # share of pixels at the upper end

    @property
    def blurred(self) -> bool:
        gain = 128 / max(1.0, self.brightness) if self.dark else 1.0  # edges in the dark are faint, not blurred
        return self.sharpness * gain**2 < FLAT and self.edge * gain < EDGE

    @property
    def dark(self) -> bool:
        return self.brightness < DARK

    @property
    def burnt(self) -> bool:
        return self.white > BURNT


def measure(image: Image.Image) -> Quality:
    """The numbers of an RGB image."""
    grey = image.convert("L")
    if max(grey.size) > SIDE:
        grey.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    shades = grey.histogram()
    pixels = sum(shades)
    inner = (1, 1, max(2, grey.width - 1), max(2, grey.height - 1))  # the filter leaves the border as it is
    responses = grey.filter(LAPLACIAN).crop(inner).histogram()
    count = sum(responses)
    mean = sum(value * times for value, times in enumerate(responses)) / count
    variance = sum((value - mean) ** 2 * times for value, times in enumerate(responses)) / count
    brightness = sum(value * times for value, times in enumerate(shades)) / pixels
    return Quality(variance, _strongest(responses, count), brightness, sum(shades[WHITE:]) / pixels)


def _strongest(responses: list[int], count: int) -> int:
    """The size of response that all but a thousandth of the pixels stay below."""
    left = count / 1000
    for size in range(128, 0, -1):
        left -= responses[128 - size] + (responses[128 + size] if size < 128 else 0)
        if left < 0:
            return size
    return 0
