"""Export: the adapter merged, converted, checked, and pushed to the Hub."""

from vlmhelpers.studio.fields import Form
from vlmhelpers.studio.tabs.tab import Tab

_ONLY = {"outtype": ("gguf",), "llama_cpp": ("gguf",), "dtype": ("merged", "gguf"), "check": ("merged", "gguf")}


class ExportTab(Tab):
    name = "export"

    def build(self):
        self.forms = {"export": Form.of("exporting"), "push": Form.of("pushing")}
        for name, form in self.forms.items():
            act = getattr(self.studio, name)
            do = lambda name=name, act=act, form=form: self.work(name, lambda: act(**form.values))  # noqa: E731
            yield form.grid()
            yield self.row(self.button(name, do))
        self.forms["export"].fields["form"].on_change(self._show_used)
        yield self.out

    def speak(self, texts):
        super().speak(texts)
        for form in self.forms.values():
            form.speak(texts)
        self._show_used()

    def _show_used(self):
        """What only some formats have."""
        fields = self.forms["export"].fields
        for name, forms in _ONLY.items():
            fields[name].show(fields["form"].value in forms)
