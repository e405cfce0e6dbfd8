"""What the tabs of the panel have in common."""

from collections.abc import Callable, Iterable

import ipywidgets as widgets
from markupsafe import Markup, escape

from vlmhelpers.common.display import Html

_ROW = widgets.Layout(flex_flow="row wrap", align_items="flex-end")
_STYLES = {"start": "success", "stop": "warning", "abort": "danger", "send": "primary", "evaluate": "primary"}


class Tab:
    """A tab: `widget`, its `buttons` by name, `out`, where it shows what came of one."""

    name = ""

    def __init__(self, studio):
        """`studio`: the `Studio` whose tab it is."""
        self.studio, self.buttons = studio, {}
        self.out = widgets.HTML()
        self.out.add_class(f"studio-{self.name}-out")
        self.widget = widgets.VBox(list(self.build()))

    def build(self) -> Iterable[widgets.Widget]:
        """The widgets, from above to below."""
        raise NotImplementedError

    def button(self, name: str, act: Callable[[], object]) -> widgets.Button:
        """A button that is labeled in the panel's language."""
        made = widgets.Button(button_style=_STYLES.get(name, ""), layout=widgets.Layout(width="auto"))
        made.on_click(lambda _: act())
        made.add_class(f"studio-{name}")
        self.buttons[name] = made
        return made

    def row(self, *parts: widgets.Widget) -> widgets.HBox:
        """Widgets beside each other, below each other where the window is narrow."""
        return widgets.HBox(parts, layout=_ROW)

    def speak(self, texts: dict[str, str]) -> None:
        """Shows the tab in a language."""
        for name, button in self.buttons.items():
            button.description = texts[f"button.{name}"]

    def refresh(self) -> None:
        """Shows what has changed since the last second."""

    def work(self, button: str, act: Callable[[], object]) -> None:
        """Lets the panel do what a button stands for, and shows what came of it, or why nothing did."""
        texts = self.studio.texts
        what = texts[f"button.{button}"]
        self.out.value = said(texts["working"].format(what=what), "status")

        def done(found):
            self.show(found if found is not None else Html(said(texts["done"].format(what=what), "status"), what))

        self.studio.worker.do(act, done, self.fail)

    def show(self, found: object) -> None:
        """Shows what came of a button."""
        self.out.value = as_html(found)

    def clear(self) -> None:
        """Takes away what came of a button before."""
        self.out.value = ""

    def fail(self, error: BaseException) -> None:
        """Shows an error."""
        self.out.value = said(f"\u26a0 {str(error) or type(error).__name__}", "alert")


def said(text: str, role: str) -> Markup:
    """A line of text that a screen reader says when it changes."""
    return Markup('<p role="{}" class="studio-{}">{}</p>').format(role, role, text)


def as_html(found: object) -> str:
    """What an object shows of itself in a notebook, else its text."""
    if hasattr(found, "_repr_html_"):
        return found._repr_html_()
    return Markup('<pre style="white-space:pre-wrap">{}</pre>').format(escape(str(found)))
