"""Export: the adapter merged, converted, checked, and pushed to the Hub."""

from functools import partial

from vlmhelpers.studio.fields import Form
from vlmhelpers.studio.tabs.tab import Tab

_MERGED = ("merged", "gguf", "onnx")
_ONLY = {"outtype": ("gguf",), "llama_cpp": ("gguf",), "dtype": _MERGED, "check": _MERGED}


class ExportTab(Tab):
    name = "export"

    def build(self):
        self.forms = {"export": Form.of("exporting"), "push": Form.of("pushing")}
        for name, form in self.forms.items():
            yield form.grid()
            yield self.row(self.button(name, partial(self._do, name)))
        self.forms["export"].fields["form"].on_change(self._show_used)
        yield self.out

    def _do(self, name):
        self.work(name, lambda: getattr(self.studio, name)(**self.forms[name].values))

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
