"""The panel's widgets as a whole: its title, its language, its tabs, and the code below them."""

from collections.abc import Callable

import ipywidgets as widgets
from markupsafe import Markup

from vlmhelpers.studio.code_pane import CodePane
from vlmhelpers.studio.look import STYLE
from vlmhelpers.studio.tabs import TABS
from vlmhelpers.studio.texts import LANGUAGES


class View:
    """`widget`: the panel. `tabs`: by name."""

    def __init__(self, studio, page_clock: bool, every: float):
        """`studio`: the `Studio` that it shows. `page_clock`: the browser has it look again, `every` seconds."""
        self.tabs, self.code = {tab.name: tab(studio) for tab in TABS}, CodePane(studio)
        self._title = widgets.HTML()
        self._tab = widgets.Tab([tab.widget for tab in self.tabs.values()])
        layout = widgets.Layout(justify_content="space-between", flex_flow="row wrap")
        head = widgets.HBox([self._title, self._make_languages(studio)], layout=layout)
        clock = [_page_clock(studio.refresh, every)] if page_clock else []
        self.widget = widgets.VBox([widgets.HTML(STYLE), head, self._tab, self.code.widget, *clock])
        self.widget.add_class("studio")

    def _make_languages(self, studio):
        self._languages = widgets.Dropdown(options=[(text, locale) for locale, text in LANGUAGES.items()])
        self._languages.value = studio.locale
        self._languages.observe(
            lambda change: change["new"] != studio.locale and studio.speak(change["new"]), names="value"
        )
        self._languages.add_class("studio-locale")
        return self._languages

    def speak(self, locale: str, texts: dict[str, str]) -> None:
        """Shows all in a language."""
        self._languages.value = locale
        self._title.value = Markup("<h3>{}</h3>").format(texts["title"])
        self._languages.description = texts["language"]
        for number, name in enumerate(self.tabs):
            self._tab.set_title(number, texts[f"tab.{name}"])
        for part in (*self.tabs.values(), self.code):
            part.speak(texts)

    def clear(self) -> None:
        """Takes away what came of buttons."""
        for tab in self.tabs.values():
            tab.clear()

    def refresh(self) -> None:
        """Shows what has changed in the run's folder."""
        for tab in self.tabs.values():
            tab.refresh()


def _page_clock(act: Callable[[], object], every):
    """A widget that runs in the browser and calls back, as a hand on a control does."""
    clock = widgets.Play(min=0, max=2**31 - 1, interval=1000 * every, layout=widgets.Layout(display="none"))
    clock.observe(lambda change: act(), names="value")
    playing = "playing" if clock.has_trait("playing") else "_playing"  # ipywidgets 8, 7
    setattr(clock, playing, True)
    return clock
