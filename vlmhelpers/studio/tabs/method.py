"""Method: how the model is trained, and the settings that only this method has."""

from vlmhelpers.studio.tabs.tab import Tab
from vlmhelpers.training.methods.catalog import OWN_SETTINGS


class MethodTab(Tab):
    name = "method"

    def build(self):
        yield self.studio.form.grid("method")
        yield self.studio.form.grid(*OWN_SETTINGS)
