"""Evaluate: held-out rows before and after training, with and without their images, and answer by answer."""

import ipywidgets as widgets

from vlmhelpers.studio.fields import Form
from vlmhelpers.studio.tabs.tab import Tab


class EvaluateTab(Tab):
    name = "evaluate"

    def build(self):
        self.form = Form.of("evaluating")
        self.browser = widgets.VBox()
        yield self.form.grid()
        yield self.button("evaluate", lambda: self.work("evaluate", lambda: self.studio.evaluate(**self.form.values)))
        yield self.out
        yield self.browser

    def speak(self, texts):
        super().speak(texts)
        self.form.speak(texts)

    def show(self, found):
        super().show(found)
        self.browser.children = [found.browser.panel]
