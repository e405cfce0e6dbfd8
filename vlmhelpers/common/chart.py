"""Figures. Modules import this where they draw one: matplotlib takes most of a second."""

import io
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager, get_font
from matplotlib.text import Text


class Chart(Figure):
    """A matplotlib figure that a notebook shows by itself: outside pyplot nothing is kept open or shown twice.

    Its texts, which may be anybody's, are no formulas, and get fonts that have their characters.
    """

    def draw(self, renderer) -> None:
        texts = self.findobj(Text)
        characters = frozenset().union(*(text.get_text() for text in texts))
        fonts = [*FontProperties().get_family(), *_fonts_with(characters)]
        for text in texts:
            text.set(parse_math=False, fontfamily=fonts)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # `_fonts_with` has said so
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


@cache
def _fonts_with(characters):
    """Installed families of fonts that have what the usual one lacks: matplotlib only asks those that are named."""
    usual = get_font(findfont(FontProperties())).get_charmap()
    families, lacking = [], {*map(ord, filter(str.isprintable, characters))} - usual.keys()
    paths = sorted(findSystemFonts(), key=lambda path: ("Regular" not in path, path)) if lacking else []
    for path in (path for path in paths if "LastResort" not in Path(path).name):  # which has but boxes
        with suppress(RuntimeError):  # a font that FreeType cannot read
            font = get_font(path)
            if font.scalable and (found := lacking & font.get_charmap().keys()):
                fontManager.addfont(path)
                families.append(font.family_name)
                lacking -= found
    if lacking:
        signs = "".join(map(chr, sorted(lacking)))
        print(f"no font here has {signs[:20]}, which a chart shows as boxes: install one, such as fonts-noto")
    return families
