"""Model: which one, in how many bits, and what of it is trained; whether that fits on a GPU."""

from vlmhelpers.studio.tabs.tab import Tab

MODEL = ("model_id", "backend", "bits", "max_pixels", "chat_template")
TRAINED = ("weights", "last_layers", "language", "vision", "attention", "mlp", "experts")
LORA = ("lora_r", "lora_alpha", "lora_dropout", "init_lora_weights", "use_rslora", "use_dora")


class ModelTab(Tab):
    name = "model"

    def build(self):
        studio = self.studio
        yield studio.form.grid(*MODEL)
        yield studio.form.grid(*TRAINED)
        yield studio.form.grid(*LORA)
        yield self.row(studio.gpu.widget, self.button("estimate", lambda: self.work("estimate", studio.preflight)))
        yield self.out
