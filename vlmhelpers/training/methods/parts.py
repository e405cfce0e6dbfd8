"""What a trainer of any method is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, IterableDataset
from peft import LoraConfig
from transformers import PreTrainedModel, ProcessorMixin, Trainer, set_seed
from trl.models.utils import _ForwardRedirection


@dataclass(frozen=True)
class Parts:
    """The parts of a trainer. `lora`: adapters to be put onto the model; None where its own weights are trained."""

    config: Any  # a RunConfig with all values filled in, which itself imports the catalog of this package
    arguments: dict[str, object]  # what the configurations of all trainers take
    model: PreTrainedModel
    processor: ProcessorMixin
    lora: LoraConfig | None
    train: Dataset | IterableDataset
    validation: Dataset | None
    load_base: Callable[[str], tuple[PreTrainedModel, ProcessorMixin]]  # another model, by its id or folder

    def options(self, *names: str, **others: object) -> dict[str, object]:
        """Arguments for the method's configuration: the common ones and those settings that are not None."""
        chosen = {name: getattr(self.config, name) for name in names}
        return self.arguments | {name: value for name, value in (chosen | others).items() if value is not None}

    def make(self, trainer: type[Trainer], **more: object) -> Trainer:
        """The trainer of that class, with `more` arguments in place of the common ones."""
        set_seed(self.config.seed)  # so that the adapters start the same, whichever other models were loaded
        common = {
            "model": self.model,
            "train_dataset": self.train,
            "eval_dataset": self.validation,
            "processing_class": self.processor,
            "peft_config": self.lora,
        }
        return trainer(**common | more)


def without_logits(trainer: Trainer) -> Trainer:
    """Makes a DPO or KTO trainer of TRL compute log-probabilities from hidden states, in chunks.

    It saves the largest matrix, and Mllama cannot do otherwise: the id of its image token has no row in the head.
    """
    trainer.use_liger_kernel = True  # in the configuration it would ask for the package of that name
    trainer._forward_redirection = _ForwardRedirection()  # which its constructor makes then; DDP and FSDP need it
    return trainer
