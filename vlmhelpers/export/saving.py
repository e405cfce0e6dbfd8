"""An adapter saved with what it needs elsewhere: its processor and a card, and no path of this machine."""

import json
from collections import Counter
from pathlib import Path

from peft import PeftModel

from vlmhelpers.common.files import atomic_file
from vlmhelpers.export.adapters import CONFIG, portable_name
from vlmhelpers.export.model_card import CARD, adapter_card
from vlmhelpers.families.towers import tower_of


def save_adapter(model, processor, folder, dataset=None, source=None, evaluations=None, comparison=None, notes=None):
    """Writes the adapter of a PeftModel, the processor's files and a model card to `folder`, and returns that Path.

    The adapter_config.json names the base so that it can be found on another machine: by its hub id, or by its family
    for a tiny base. Of another local folder only the last name is written; `merge` then has to be told `base=`.

    The card (README.md) has the metadata of the Hugging Face Hub and says what it is given: `dataset`, the rows
    trained on (a Dataset, or a sentence), `source`, the path of their file, `evaluations`, such as {"base":
    Evaluation, "tuned": Evaluation}, `comparison`, what `compare` returned, and `notes`, a text for its beginning.
    Files that are in `folder` already are replaced. Raises TypeError for a model without adapters.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(f"a {type(model).__name__} has no adapters: pass the model that add_lora or the trainer gave")
    folder, lora = Path(folder), model.peft_config[model.active_adapter]
    model.save_pretrained(folder, selected_adapters=[model.active_adapter])
    processor.save_pretrained(folder)
    base = portable_name(lora.base_model_name_or_path or model.config._name_or_path)
    _name_base(folder / CONFIG, base)
    card = adapter_card(base, lora, _sizes(model), dataset, source, evaluations, comparison, notes)
    with atomic_file(folder / CARD, encoding="utf-8") as file:
        file.write(str(card))
    return folder


def _name_base(path, base):
    config = json.loads(path.read_text(encoding="utf-8"))
    with atomic_file(path, encoding="utf-8") as file:
        json.dump(config | {"base_model_name_or_path": base}, file, indent=2, sort_keys=True)


def _sizes(model):
    """How many numbers the adapters of each tower have."""
    sizes = Counter()
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            sizes[tower_of(name)] += parameter.numel()
    return dict(sizes)
