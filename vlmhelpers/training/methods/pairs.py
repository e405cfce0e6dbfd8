"""What trainers of pairs share: one forward pass of both answers, and the figures that are logged."""

import torch
from trl import SFTTrainer


class PairTrainer(SFTTrainer):
    """`SFTTrainer` with a loss over pairs, whose batches `PreferenceCollator` makes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over pairs: accumulation has to divide it

    def pair_loss(self, model: torch.nn.Module, inputs: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(loss, rewards of the n chosen answers, rewards of the n rejected ones)."""
        raise NotImplementedError

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, chosen, rejected = self.pair_loss(model, inputs)
        self.log_mean("rewards/chosen", chosen)
        self.log_mean("rewards/rejected", rejected)
        self.log_mean("rewards/accuracies", (chosen > rejected).float())
        self.log_mean("rewards/margins", chosen - rejected)
        return (loss, {}) if return_outputs else loss

    def log_mean(self, name: str, values: torch.Tensor) -> None:
        """Adds the mean over all processes to what is logged next."""
        mean = self.accelerator.gather(values.detach().mean()).mean().item()
        self._metrics["train" if self.model.training else "eval"][name].append(mean)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None
