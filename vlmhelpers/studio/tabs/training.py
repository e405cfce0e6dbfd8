"""Training: how long, how fast, in which batches, what is measured and kept on the way."""

from vlmhelpers.studio.tabs.tab import Tab

OPTIMIZER = ("learning_rate", "lr_scheduler_type", "warmup_steps", "adam_beta2", "max_grad_norm")
LENGTH = ("epochs", "max_steps", "batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "seed")
ON_THE_WAY = ("logging_steps", "eval_steps", "early_stopping_patience", "load_best_model_at_end", "sample_answers")
KEPT = ("save_steps", "report_to", "cache")


class TrainingTab(Tab):
    name = "training"

    def build(self):
        for names in (OPTIMIZER, LENGTH, ON_THE_WAY, KEPT):
            yield self.studio.form.grid(*names)
