"""Evaluate: held-out rows before and after training, with and without their images, and answer by answer."""

import ipywidgets as widgets

from vlmhelpers.studio.fields import Form
from vlmhelpers.studio.tabs.tab import Tab, said


class EvaluateTab(Tab):
    name = "evaluate"

    def build(self):
        self.form = Form.of("evaluating")
        self.browser = widgets.VBox()
        yield self.form.grid()
        self.form.fields["prompted"].on_change(self._show_used)
        yield self.row(self.button("evaluate", lambda: self.work("evaluate", self._evaluate)))
        yield self.out
        yield self.browser

    def _evaluate(self):
        return self.studio.evaluate(self._tell, **self.form.values)

    def _tell(self, name, done, total):
        texts = self.studio.texts
        self.out.value = said(texts["answered"].format(name=texts.get(name, name), done=done, total=total), "status")

    def speak(self, texts):
        super().speak(texts)
        self.form.speak(texts)

        self._show_used()

    def _show_used(self):
        self.form.fields["instruction"].show(self.form.fields["prompted"].value)

    def clear(self):
        super().clear()
        self.browser.children = []

    def fail(self, error):
        self.clear()
        super().fail(error)

    def show(self, found):
        super().show(found)
        self.browser.children = [found.browser.panel]
