"""Gray of more than 8 bits, scaled to 8 by the range of values that it uses."""

import math
from collections.abc import Iterable

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

_DEPTHS = (1023, 4095, 16383, 65535)  # the largest values of cameras and scanners that store 10 to 16 bits in 16
_USUAL = {"I": (255, *_DEPTHS), "F": (1, 255, *_DEPTHS)}
_SAMPLE = 2**20  # pixels by which the range of most is found
_FAR = 3  # times that range: from there on a value would leave the others less than a quarter of all shades


def is_gray(image: Image.Image) -> bool:
    """Whether it is gray of more than 8 bits."""
    return image.mode in _USUAL or image.mode.startswith("I;16")


def rare(pixels: int) -> int:
    """How many of so many pixels may say nothing of the others, such as a camera's dead ones."""
    return max(1, pixels // 10_000)


class Shades:
    """The shades of a gray image, of which `strips` are all of it: `black` and `white` are the values that become so.

    They are the smallest usual range that holds the image, else its own. A value that marks what has none, such as
    -9999, and a few pixels count for neither where they are far from all others; `cut` says so in words, else "".
    """

    def __init__(self, image: Image.Image, strips: Iterable[Image.Image]):
        tags = getattr(image, "tag_v2", {SAMPLEFORMAT: (2,)})
        self._is_unsigned = image.mode == "I" and tags.get(SAMPLEFORMAT, (1,))[0] == 1  # Pillow takes it for signed
        step = math.ceil(math.sqrt(image.width * image.height / _SAMPLE))
        seen = [(values.min(), values.max(), values[::step, ::step].ravel()) for values in map(self._values, strips)]
        lows, highs, samples = zip(*seen, strict=True)
        whole = min(lows).item(), max(highs).item()
        low, high = _range_of_most(*whole, np.concatenate(samples))
        self.cut = f", but for values beyond {low:g} to {high:g}" if (low, high) != whole else ""
        tops = [top for top in _USUAL.get(image.mode, _DEPTHS) if low >= 0 and high <= top]
        self.black, self.white = (0, tops[0]) if tops else (low, max(high, low + 1))
        if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # zero is white; Pillow only inverts 8 bits
            self.black, self.white = self.white, self.black

    def _values(self, strip):
        values = np.asarray(strip)
        if self._is_unsigned:
            return values.view(np.uint32)
        sound = strip.mode != "F" or np.isfinite([values.min(), values.max()]).all()
        return values if sound else np.nan_to_num(values, posinf=0, neginf=0)

    def to_rgb(self, strip: Image.Image) -> tuple[Image.Image, bool]:
        """A strip in RGB, and whether all of it was opaque."""
        values = self._values(strip)
        within = np.clip(values, *sorted((self.black, self.white))) if self.cut else values
        scaled = np.subtract(within, self.black, dtype=np.float32)
        scaled *= 255 / (self.white - self.black)
        scaled = np.rint(scaled, out=scaled).astype(np.uint8)
        opaque = True
        if "transparency" in strip.info:  # the one value that PNG may call so
            clear = values == strip.info["transparency"]
            scaled[clear], opaque = 255, not clear.any()
        return Image.fromarray(scaled).convert("RGB"), opaque


def _range_of_most(low, high, values):
    """The least and the largest value, without what is far from all others."""
    inner = values[(values > low) & (values < high)]
    few = rare(inner.size)
    if inner.size <= 2 * few:
        return low, high
    bottom, top = np.partition(inner, (few, -1 - few))[[few, -1 - few]].tolist()
    far = _FAR * (top - bottom) or math.inf  # of three values none is far
    return bottom if bottom - low > far else low, top if high - top > far else high
