"""What a notebook shows: tables, charts and thumbnails that need no script and no style sheet."""

import base64
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec

from markupsafe import Markup, escape
from PIL import Image

from vlmhelpers.common.images import repair
from vlmhelpers.common.printable import one_line, printable

_CELL = "text-align:left;vertical-align:top;max-width:18em;overflow-wrap:anywhere"
# Half transparent gray is light on a light page and dark on a dark one.
_BOX = "border:1px solid #888;border-left-width:5px;padding:.5em .8em;background:rgba(128,128,128,.15)"
# JupyterLab's and Colab's MathJax leaves what is of these classes alone: two prices are no formula between dollars.
NO_FORMULAS = "mathjax_ignore tex2jax_ignore"


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this code, so that rich output has somewhere to go."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def html_table(heads: Iterable[str], rows: Iterable[Sequence], style: str = _CELL) -> Markup:
    """An HTML table; `style` is that of every cell below the heads. All cells but those of `Markup` are escaped.

    It is printable, whatever the cells hold.
    """
    lines = ["".join(f"<th>{escape(head)}</th>" for head in heads)]
    lines += ["".join(f'<td style="{style}">{escape(value)}</td>' for value in row) for row in rows]
    lines = "".join(f"<tr>{line}</tr>" for line in lines)
    return printable(Markup(f'<table class="{NO_FORMULAS}">{lines}</table>'))


def thumbnail(image: Image.Image, side: int = 72) -> Markup:
    """An HTML `<img>` of `image`, at most `side` pixels wide and high, its bytes included (about 1 kB)."""
    return Markup('<img style="max-width:none" src="{}">').format(image_uri(image, side))


def image_uri(image: Image.Image, side: int = 72) -> str:
    """The data URI of a WebP file of `image`, at most `side` pixels wide and high."""
    image = repair(image).copy()  # plain RGB is returned as it is, and shrinking works in place
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


class Html:
    """HTML for a notebook, the same as plain text for a terminal; both printable."""

    def __init__(self, markup: str, text: str):
        self.markup, self.text = printable(markup), printable(text)

    def _repr_html_(self) -> str:
        return self.markup

    def __repr__(self) -> str:
        return self.text


def with_widget(shown: object, make_widget: Callable[[], object]) -> dict[str, object]:
    """What `shown` is as text and HTML and, in a live notebook with ipywidgets, as a widget, which is preferred there.

    For `_repr_mimebundle_`: a widget of ipywidgets 8 gives that by itself, one of version 7 does not.
    """
    bundle = {"text/plain": repr(shown), "text/html": shown._repr_html_()}
    if in_notebook() and find_spec("ipywidgets"):
        view = {"version_major": 2, "version_minor": 0, "model_id": make_widget().model_id}
        bundle["application/vnd.jupyter.widget-view+json"] = view
    return bundle


def show_note(title: str, text: str) -> None:
    """Shows a box with a title and a text in a notebook, and prints one line elsewhere."""
    line = one_line(f"{title}: {text}")
    if not in_notebook():
        print(line)
        return
    from IPython.display import display

    display(Html(Markup('<div style="{}"><b>{}</b><br>{}</div>').format(_BOX, title, text), line))
