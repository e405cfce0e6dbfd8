"""What a notebook shows: tables, charts and thumbnails that need no script and no style sheet."""

import base64
import io
import sys
from collections.abc import Iterable, Sequence

from markupsafe import Markup
from PIL import Image

from vlmhelpers.common.images import repair

CELL_STYLE = "text-align:left;vertical-align:top;max-width:18em;overflow-wrap:anywhere"


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this code, so that rich output has somewhere to go."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def html_table(heads: Iterable[str], rows: Iterable[Sequence], style: str = CELL_STYLE) -> Markup:
    """An HTML table with a line of heads and one for each row. All cells but those of `Markup` are escaped.

    `style` is the style of every cell of a row.
    """
    lines = [_line("<th>{}</th>", heads), *(_line(f'<td style="{style}">{{}}</td>', row) for row in rows)]
    return Markup("<table>{}</table>").format(Markup("").join(lines))


def _line(cell: str, values: Iterable) -> Markup:
    return Markup("<tr>{}</tr>").format(Markup("").join(Markup(cell).format(value) for value in values))


def printable(text: str) -> str:
    """`text` on one line, without line breaks or control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)


def thumbnail(image: Image.Image, side: int = 72) -> Markup:
    """An HTML `<img>` of `image`, at most `side` pixels wide and high, its bytes included (1-3 kB)."""
    image = repair(image).copy()  # plain RGB is returned as it is, and shrinking works in place
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return Markup('<img src="data:image/jpeg;base64,{}">').format(base64.b64encode(buffer.getvalue()).decode())


class Html:
    """HTML for a notebook, the same as plain text for a terminal."""

    def __init__(self, markup: str, text: str):
        self.markup, self.text = markup, text

    def _repr_html_(self) -> str:
        return self.markup

    def __repr__(self) -> str:
        return self.text
