"""What an image of each format and color mode takes to be inspected, as the table of docs/reliability.md.

    python tools/image_table.py [MEGAPIXELS [FOLDER]]

Draws a photo of so many megapixels, by default the limit, stores it in every way, and inspects each file in a process
of its own without its limits: what it takes beyond its decoded pixels, in MB at the peak, and CPU seconds. The last
column is what validation says of it. Files that are in FOLDER already are taken as they are.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from vlmhelpers.common.image_costs import decoded_bytes
from vlmhelpers.common.image_workers import inspect_apart
from vlmhelpers.common.images import MAX_PIXELS, UnusableImage, inspect_image

EXIF = Image.Exif()
EXIF[0x0112] = 6


def gray_of(bits, kind):
    return lambda photo: Image.fromarray(np.asarray(photo.getchannel(0)).astype(kind) << (bits - 8))


def with_alpha(photo):
    photo = photo.copy()
    photo.putalpha(photo.getchannel(0))
    return photo


def plain(photo):
    return photo


WAYS = {
    "JPEG": (plain, "jpg", {"quality": 90}),
    "JPEG, turned": (plain, "jpg", {"quality": 90, "exif": EXIF}),
    "JPEG, progressive": (plain, "jpg", {"quality": 90, "progressive": True}),
    "JPEG, progressive 4:4:4": (plain, "jpg", {"quality": 90, "progressive": True, "subsampling": 0}),
    "JPEG, CMYK": (lambda photo: photo.convert("CMYK"), "jpg", {"quality": 90}),
    "JPEG, gray": (lambda photo: photo.convert("L"), "jpg", {"quality": 90}),
    "PNG": (plain, "png", {"compress_level": 1}),
    "PNG, RGBA": (with_alpha, "png", {"compress_level": 1}),
    "PNG, palette": (lambda photo: photo.quantize(64), "png", {"compress_level": 1}),
    "PNG, 12-bit gray": (gray_of(12, np.uint16), "png", {"compress_level": 1}),
    "GIF": (lambda photo: photo.quantize(64), "gif", {}),
    "BMP": (plain, "bmp", {}),
    "TIFF": (plain, "tif", {}),
    "TIFF, LZW": (plain, "tif", {"compression": "tiff_lzw"}),
    "TIFF, RGBA": (with_alpha, "tif", {}),
    "TIFF, CMYK": (lambda photo: photo.convert("CMYK"), "tif", {}),
    "TIFF, 32-bit gray": (gray_of(16, np.int32), "tif", {}),
    "TIFF, float gray": (lambda photo: photo.convert("F"), "tif", {}),
    "WebP": (plain, "webp", {"method": 0}),
    "AVIF": (plain, "avif", {"speed": 10}),
    "JPEG 2000": (plain, "jp2", {"quality_mode": "rates", "quality_layers": [30]}),
}


def main(megapixels=MAX_PIXELS / 1e6, folder=None):
    """Prints the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, photo = Path(folder or temporary), draw(int((float(megapixels) * 1e6) ** 0.5))
        print("| image | MB decoded | MB beyond | CPU s | |\n| --- | --- | --- | --- | --- |")
        for name, (change, ending, options) in WAYS.items():
            path = folder / f"{name.replace(' ', '_')}.{ending}"
            if not path.exists():
                change(photo).save(path, **options)
            print(f"| {name} | {' | '.join(row_of(path))} |", flush=True)


def draw(side: int) -> Image.Image:
    """Soft shapes under a fine noise, which no format stores in a few bytes."""
    random = np.random.default_rng(0)
    shapes = Image.fromarray(random.integers(0, 248, (side // 64 + 1, side // 64 + 1, 3), np.uint8))
    photo = np.asarray(shapes.resize((side, side), Image.Resampling.BILINEAR)).copy()
    photo += random.integers(0, 8, (side, side, 1), np.uint8)
    return Image.fromarray(photo)


def row_of(path: Path) -> list[str]:
    """MB decoded, MB beyond that, CPU seconds, and the verdict of validation."""
    command = [sys.executable, __file__, "--measure", str(path)]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    try:
        verdict = f"{inspect_apart(path).size[0]} pixels wide"
    except UnusableImage as error:
        verdict = error.reason
    return [*(f"{measured[name]:.0f}" for name in ("decoded", "beyond")), f"{measured['seconds']:.1f}", verdict]


def measure(path: str) -> dict[str, float]:
    """MB and CPU seconds of this process, which the tiny image before has made ready."""
    inspect_image(b"P6 1 1 255 ...")
    decoded, before, started = [0], peak(), time.process_time()
    try:
        inspect_image(path, before_decoding=lambda image: decoded.append(decoded_bytes(image)))
    except UnusableImage:
        pass
    seconds, beyond = time.process_time() - started, peak() - before - decoded[-1]
    return {"decoded": decoded[-1] / 1e6, "beyond": max(0, beyond) / 1e6, "seconds": seconds}


def peak() -> int:
    """The most bytes of memory that this process has had since its program started; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main(*sys.argv[1:])
