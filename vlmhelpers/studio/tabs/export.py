"""Export: the adapter merged, converted, checked, and pushed to the Hub."""

from vlmhelpers.studio.fields import Form
from vlmhelpers.studio.tabs.tab import Tab


class ExportTab(Tab):
    name = "export"

    def build(self):
        self.forms = {"export": Form.of("exporting"), "push": Form.of("pushing")}
        for name, form in self.forms.items():
            act = getattr(self.studio, name)
            yield form.grid()
            yield self.button(name, lambda name=name, act=act, form=form: self.work(name, lambda: act(**form.values)))
        yield self.out

    def speak(self, texts):
        super().speak(texts)
        for form in self.forms.values():
            form.speak(texts)
