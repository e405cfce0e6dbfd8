"""The pane below the tabs: what they stand for as notebook cells, as a settings file, and as a command."""

import ipywidgets as widgets
from markupsafe import Markup

from vlmhelpers.studio import code
from vlmhelpers.studio.tabs.tab import Tab, said

_WAYS = ("cells", "yaml", "command")
_PIECE = Markup('<pre tabindex="0" data-piece="{}"><code>{}</code></pre>')


class CodePane(Tab):
    """Cells, YAML and command line of the panel's settings, live; the settings saved to a file, and loaded."""

    name = "code"

    def build(self):
        self.title, self.ways = widgets.HTML(), {way: widgets.HTML() for way in _WAYS}
        for way, widget in self.ways.items():
            widget.add_class(f"studio-code-{way}")
        self.tabs = widgets.Tab(list(self.ways.values()))
        file, layout = str(self.studio.folder / "settings.yaml"), widgets.Layout(width="auto")
        self.file = widgets.Text(value=file, continuous_update=False, layout=layout)
        self.file.add_class("studio-settings_file")
        self.file.observe(lambda change: self.show_code(), names="value")
        self._asked = 0
        yield from (self.title, self.tabs, self.file)
        yield self.row(
            self.button("save", lambda: self._act("save", "saved")),
            self.button("load", lambda: self._act("load", "loaded")),
        )
        yield self.out

    def _act(self, name, key):
        try:
            getattr(self.studio, name)(self.file.value)
        except (ValueError, OSError) as error:
            self.fail(error)
        else:
            self.out.value = said(self.studio.texts[key].format(file=self.file.value), "status")

    def speak(self, texts):
        super().speak(texts)
        self.title.value = Markup("<h4>{}</h4><p>{}</p>").format(texts["code"], texts["code.help"])
        for number, way in enumerate(_WAYS):
            self.tabs.set_title(number, texts[f"code.{way}"])
        self.file.description = texts["label.settings_file"]

    def show_code(self) -> None:
        """Shows the code of the settings as they are now; of wrong ones, what is wrong."""
        self._asked += 1
        asked, studio = self._asked, self.studio

        def show(markups):
            if asked == self._asked:  # no later change is shown already
                for way, markup in markups.items():
                    self.ways[way].value = markup

        def done(pieces):
            numbered = {way: enumerate(of_way) for way, of_way in pieces.items()}
            show({way: Markup("").join(_PIECE.format(*piece) for piece in of_way) for way, of_way in numbered.items()})

        def fail(error):
            show(dict.fromkeys(_WAYS, said(studio.texts["code.invalid"].format(problem=error), "status")))

        def make():  # what a file of data is read by takes seconds to load
            config = studio.config
            command = [f"# {studio.texts['code.file']}\n{code.command_line(config, self.file.value)}"]
            return {"cells": code.cells(config), "yaml": [code.yaml_text(config)], "command": command}

        studio.worker.do(make, done, fail, beside=True)
