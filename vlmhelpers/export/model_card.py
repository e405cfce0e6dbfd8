"""The model card of an adapter: what it was trained on, how well it answers, with what, and under which licence."""

import json
import re
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from datasets import Dataset
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from vlmhelpers.common.environment import LIBRARIES
from vlmhelpers.models.loading import FAMILIES, family_of

CARD = "README.md"

# Words in the name of a base -> its licence, as metadata of the hub and as a sentence; the first that fit. From the
# models' own pages on the Hugging Face Hub.
_QWEN = {"license": "other", "license_name": "qwen-research"}
_LICENCES = [
    (
        ("llama-3.2",),
        {"license": "llama3.2"},
        "Llama 3.2 Community License: its name has to stay, and so has its notice",
    ),
    (("qwen2.5-vl-3b",), _QWEN, "Qwen Research License: no commercial use"),
    (("qwen2.5-vl-72b",), {"license": "other", "license_name": "qwen"}, "Qwen License"),
    (("qwen2.5-vl-",), {"license": "apache-2.0"}, "Apache License 2.0"),
    (("qwen3-vl-",), {"license": "apache-2.0"}, "Apache License 2.0"),
    (("phi-3",), {"license": "mit"}, "MIT License"),
]
_TINY = ({"license": "apache-2.0"}, "Apache License 2.0, as this project's tiny bases are")
_UNKNOWN = ({}, "not known here: look it up on the page of the base")


def licence_of(base):
    """The licence of a base by its hub id or family: (metadata for a card, a sentence)."""
    if base in FAMILIES:
        return _TINY
    name = str(base).lower()
    return next(((data, text) for words, data, text in _LICENCES if all(w in name for w in words)), _UNKNOWN)


def adapter_card(base, lora, sizes, dataset=None, source=None, evaluations=None, comparison=None, notes=None):
    """The `ModelCard` of an adapter.

    base: portable name of the base. lora: the `LoraConfig`. sizes: trained numbers by tower, a dict. The other
    arguments are those of `save_adapter`.
    """
    text = [
        "# Adapter for " + base,
        notes or "",
        "## What it was trained on\n\n" + _data_text(dataset, source),
        "## LoRA\n\n" + _lora_text(lora, sizes),
        "## Results\n\n" + _results_text(evaluations, comparison),
        "## Versions that were installed\n\n" + _versions(),
        "## How to load it\n\n" + _loading(base, is_adapter=True),
        "## Limits\n\n" + _LIMITS,
        "## Licence\n\n" + _licence_text(base),
    ]
    return ModelCard(f"---\n{_metadata(base, source, evaluations)}\n---\n\n" + "\n\n".join(filter(None, text)) + "\n")


def merged_card(card, base):
    """The card of a merged model: the adapter's, with other metadata and another way to load it. `card` may be None."""
    if card is None:
        data = ModelCardData(base_model=base, **licence_of(base)[0])
        body = f"# Merged model\n\n## How to load it\n\n## Licence\n\n{_licence_text(base)}\n"
    else:
        data, body = card.data, card.text
    data.library_name, data.pipeline_tag = "transformers", "image-text-to-text"
    data.tags = ["vision-language", "merged"]
    body = body.replace("# Adapter for ", "# Adapter merged into ", 1)
    body = re.sub(
        r"(## How to load it\n).*?(?=\n## )", lambda m: m[1] + "\n" + _loading(base, False) + "\n", body, flags=re.S
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body.lstrip()}")


def _metadata(base, source, evaluations):
    """The YAML of the card, as the hub reads it."""
    name = Path(source).name if source else "rows held out from training"
    tuned = (evaluations or {}).get("tuned")
    results = [
        EvalResult("image-text-to-text", "custom", name, "accuracy", round(score.value, 4), metric_name=metric)
        for metric, score in (tuned.scores.items() if tuned else ())
    ]
    return ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag="image-text-to-text",
        tags=["vision-language", "lora", "vlmhelpers"],
        model_name=f"Adapter for {base}" if results else None,
        eval_results=results or None,
        **licence_of(base)[0],
    ).to_yaml()


def _data_text(dataset, source):
    lines = [dataset] if isinstance(dataset, str) else []
    if isinstance(dataset, Dataset):
        texts = json.dumps(dataset.with_format(None)["messages"][:], ensure_ascii=False).encode()
        lines.append(f"- {len(dataset):,} rows; SHA-256 of their messages: `{sha256(texts).hexdigest()}`")
    if source:
        lines.append(f"- file `{Path(source).name}`, SHA-256 `{sha256(Path(source).read_bytes()).hexdigest()}`")
    return "\n".join(lines) or "Not told by whoever saved it."


def _lora_text(lora, sizes):
    towers = ", ".join(f"{tower} {size:,}" for tower, size in sizes.items())
    targets = lora.target_modules if isinstance(lora.target_modules, str) else "|".join(sorted(lora.target_modules))
    return (
        f"- r = {lora.r}, alpha = {lora.lora_alpha}, dropout = {lora.lora_dropout}, rsLoRA: {bool(lora.use_rslora)}\n"
        f"- numbers trained, by tower: {towers}\n- targets:\n\n```\n{targets}\n```"
    )


def _results_text(evaluations, comparison):
    """A table: a line for each score and model, with its interval."""
    if not evaluations:
        return "Not measured."
    lines = ["| score | model | value | 95% interval | rows |", "| --- | --- | ---: | :---: | ---: |"]
    for name in dict.fromkeys(name for evaluation in evaluations.values() for name in evaluation.scores):
        for model, evaluation in evaluations.items():
            if score := evaluation.scores.get(name):
                interval = f"[{score.low:.1%}, {score.high:.1%}]"
                lines.append(f"| {name} | {model} | {score.value:.1%} | {interval} | {score.n} |")
    return "\n".join(lines) + (f"\n\n{comparison!r}" if comparison is not None else "")


def _versions():
    return "\n".join(f"- {name} {version(name)}" for name in LIBRARIES if find_spec(name))


def _loading(base, is_adapter):
    """Python code that loads the folder of the card."""
    tiny, phi = base in FAMILIES, (base if base in FAMILIES else family_of(base)) == "phi-3-vision"
    lines = ["from peft import PeftModel"] if is_adapter else []
    lines.append("from transformers import AutoModelForImageTextToText, AutoProcessor")
    if is_adapter and tiny:
        lines.append("from vlmhelpers import tiny_model")
    if phi:
        lines.append("import vlmhelpers.families.phi3_vision  # makes the model known to transformers")
    model = (f'tiny_model("{base}")' if tiny else f'"{base}"') if is_adapter else "folder"
    lines += ["", 'folder = "."  # where this file lies']
    lines.append(f'model = AutoModelForImageTextToText.from_pretrained({model}, dtype="auto")')
    lines += ["model = PeftModel.from_pretrained(model, folder)"] if is_adapter else []
    lines.append("processor = AutoProcessor.from_pretrained(folder)")
    return "```python\n" + "\n".join(lines) + "\n```"


_LIMITS = (
    "It answers questions of the kind that it was trained on, about pictures of the same kind. Results hold for such "
    "rows only; nothing was measured on others, nor on what the model may have unlearned. Do not let it decide about "
    "people."
)


def _licence_text(base):
    return (
        f"What is trained over a base falls under the base's licence. That of {base}: {licence_of(base)[1]}. "
        "The licence of the training data holds besides: where it is unknown, neither the data nor what was "
        "trained on them should be given away."
    )
