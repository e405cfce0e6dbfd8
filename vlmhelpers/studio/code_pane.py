"""The pane below the tabs: what they stand for as cells, as a settings file, as a command, and in other programs."""

import os
import shlex

import ipywidgets as widgets
from markupsafe import Markup

from vlmhelpers import interchange
from vlmhelpers.common.printable import one_line
from vlmhelpers.studio import code
from vlmhelpers.studio.tabs.tab import Tab, said

# As `convert` calls them: their name, and the function of interchange, which is loaded when it is needed.
_ELSEWHERE = {"llama-factory": ("LLaMA-Factory", "llama_factory_yaml"), "swift": ("ms-swift", "swift_yaml")}
_WAYS = ("cells", "yaml", "command", *_ELSEWHERE)
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
            self.tabs.set_title(number, _ELSEWHERE[way][0] if way in _ELSEWHERE else texts[f"code.{way}"])
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
            pieces = {"cells": code.cells(config), "yaml": [code.yaml_text(config)], "command": command}
            return pieces | {way: [_of(way, config, self.file.value)] for way in _ELSEWHERE}

        studio.worker.do(make, done, fail, beside=True)


def _of(way, config, file):
    """The settings in the YAML of another program, below the command that writes its rows, too."""
    try:
        text = getattr(interchange, _ELSEWHERE[way][1])(config)
    except (ValueError, OSError) as error:
        return f"# {one_line(str(error))}"
    return f"# python -m vlmhelpers convert {shlex.quote(os.path.abspath(file))} --to {way}\n{text}"
