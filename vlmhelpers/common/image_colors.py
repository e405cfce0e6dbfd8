"""Plain RGB of whatever colors, turns and frames an image has, made in strips: memory holds it once more at most."""

from collections.abc import Iterator

from PIL import Image
from PIL.ExifTags import Base
from PIL.Image import Transpose
from PIL.TiffImagePlugin import SAMPLESPERPIXEL

from vlmhelpers.common.image_grays import Shades, is_gray, rare

_STRIP = 2**21  # pixels
_TURNS = dict(
    zip(
        range(2, 9),
        [
            Transpose.FLIP_LEFT_RIGHT,
            Transpose.ROTATE_180,
            Transpose.FLIP_TOP_BOTTOM,
            Transpose.TRANSPOSE,
            Transpose.ROTATE_270,
            Transpose.TRANSVERSE,
            Transpose.ROTATE_90,
        ],
        strict=True,
    )
)
_FROM_THE_END = (3, 4, 6, 7)  # EXIF orientations whose first row becomes the last one, or the last column
_FEW_BITS = {"L;2": 85, "L;4": 17}  # of gray -> by what Pillow multiplies it
_DARK = 64  # of 256: what 14 bits or fewer, stored in 16, leave of 16


def repair(image: Image.Image) -> Image.Image:
    """The image as a person sees it, in plain RGB; a plain RGB image is returned as it is.

    Takes an animation's first frame or a file's first page, obeys the EXIF orientation and lays transparency on white.
    Gray of more than 8 bits is scaled to 8 by the smallest usual range that holds it: 10, 12, 14 or 16 bits, also 8 for
    32-bit gray, and 0 to 1 for float gray; gray that fits none, by its own range. A value or a few pixels that are far
    from all others, such as -9999 for no data, do not count for that. EXIF that cannot be read is ignored.
    Raises ValueError for a mode that Pillow cannot convert.
    """
    return repair_and_tell(image)[0]


def repair_and_tell(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """The repaired image and, in words, each change that a viewer could see."""
    repairs = []
    if getattr(image, "is_animated", False):
        image.seek(0)
        repairs += ["first of several frames taken"] * (image.format != "MPO")  # a phone's photo with its preview
    orientation = _orientation(image)
    if orientation:
        repairs.append(f"turned upright (EXIF orientation {orientation})")
    bands, read = getattr(image, "tag_v2", {}).get(SAMPLESPERPIXEL, 1), len(image.getbands())
    if bands > read:
        repairs.append(f"{read} of {bands} bands read")
    shades = Shades(image, (strip for _, strip in strips(image))) if is_gray(image) else None
    if shades:
        repairs.append(f"gray of mode {image.mode} scaled to 8 bits{shades.cut}")
    if image.mode == "RGB" and not orientation and not image.has_transparency_data:
        return image, tuple(repairs)
    upright, opaque = _in_strips(image, orientation, shades)
    if not opaque:
        repairs.append("transparency laid on white")
    if not shades and not image.has_transparency_data and image.mode not in ("RGB", "L", "P", "1"):
        repairs.append(f"{image.mode} converted to RGB")
    return upright, tuple(repairs)


def _orientation(image):
    """2 to 8 as EXIF counts, 0 for an image that is upright."""
    try:
        orientation = image.getexif().get(Base.Orientation)
        return int(orientation) if orientation in range(2, 9) else 0
    except Exception:  # struct.error, SyntaxError and more, of metadata that no pixel depends on
        return 0


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image from top to bottom, in strips with the row that each begins with."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _in_strips(image, orientation, shades):
    """The image turned and in RGB, and whether all of it was opaque."""
    size = image.size[::-1] if orientation >= 5 else image.size
    upright, all_opaque = Image.new("RGB", size), True
    for top, strip in strips(image):
        plain, opaque = shades.to_rgb(strip) if shades else _to_rgb(strip)
        all_opaque = all_opaque and opaque
        place = image.height - top - strip.height if orientation in _FROM_THE_END else top
        plain = plain.transpose(_TURNS[orientation]) if orientation else plain
        upright.paste(plain, (place, 0) if orientation >= 5 else (0, place))
    return upright, all_opaque


def _to_rgb(image):
    if not image.has_transparency_data:
        return image.convert("RGB"), True
    layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if layer.getchannel("A").getextrema()[0] == 255:
        return layer.convert("RGB"), True
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"), False


def lost_contrast(image: Image.Image, depth: int) -> str | None:
    """Why a color image of `depth` bits per color, of which Pillow keeps the upper 8, cannot be used, or None."""
    if depth <= 8 or image.mode not in ("RGB", "RGBA", "RGBX", "LA", "CMYK"):
        return None
    few, bands = rare(image.width * image.height), [band for band in image.getbands() if band not in "AX"]
    if any(sum(image.getchannel(band).histogram()[_DARK:]) > few for band in bands):
        return None
    return f"too dark to keep: its colors use less than a quarter of their {depth} bits, of which only 8 are read"


def depth_of_colors(image: Image.Image) -> int:
    """Bits per color of an image that was only opened, not yet decoded; 8 where it is not known to be more."""
    arguments = image.tile[0].args if image.tile else ()
    if ";16" in str(arguments):  # the way in which Pillow unpacks it
        return 16
    if image.format == "PPM" and isinstance(arguments, tuple):
        return int(arguments[-1]).bit_length()  # by its largest value
    return _depth_of_jpeg2000(image.fp) if image.format == "JPEG2000" else 8


def scale_transparency(image: Image.Image) -> None:
    """Gives the color that a PNG, only opened, calls transparent the 8 bits to which Pillow scales all others."""
    way, clear = str(image.tile[0].args) if image.tile else "", image.info.get("transparency")
    if image.format == "PNG" and way == "RGB;16B" and isinstance(clear, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    elif image.format == "PNG" and way in _FEW_BITS and isinstance(clear, int):
        image.info["transparency"] = clear * _FEW_BITS[way] & 255


def _depth_of_jpeg2000(file):
    position = file.tell()
    file.seek(0)
    _, _, sizes = file.read(2**16).partition(b"\xff\x4f\xff\x51")  # start of the codestream, then its sizes
    file.seek(position)
    return (sizes[38] & 0x7F) + 1 if len(sizes) > 38 else 8
