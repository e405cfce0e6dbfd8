"""Model cards: what an adapter was trained on, how well it answers, with which versions, under which license."""

import json
import re
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from datasets import Dataset
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import LoraConfig

from vlmhelpers.common.environment import LIBRARIES
from vlmhelpers.families import FAMILIES, family_of

CARD = "README.md"
_LOADING = re.compile(r"## How to load it\n.*?(?=\n## )", flags=re.DOTALL)


def adapter_card(
    base: str, lora: LoraConfig, sizes: dict, dataset=None, source=None, evaluations=None, comparison=None, notes=None
) -> ModelCard:
    """The card of an adapter. base: portable name. sizes: trained parameters by tower. Others: as in `save_adapter`."""
    evaluations = evaluations or {}
    names = dict.fromkeys(name for evaluation in evaluations.values() for name in evaluation.scores)
    scores = [
        (name, model, evaluation.scores[name])
        for name in names
        for model, evaluation in evaluations.items()
        if name in evaluation.scores
    ]
    rows = Path(source).name if source else "rows held out from training"
    results = [
        EvalResult("image-text-to-text", "custom", rows, "accuracy", round(score.value, 4), metric_name=name)
        for name, model, score in scores
        if model == "tuned"
    ]
    metadata = {"library_name": "peft", "tags": ["vision-language", "lora", "vlmhelpers"]}
    if results:
        metadata |= {"model_name": f"Adapter for {base}", "eval_results": results}
    versions = [(name, version(name)) for name in LIBRARIES if find_spec(name)]
    values = {"lora": lora, "sizes": sizes, "scores": scores, "comparison": comparison, "versions": versions}
    return _render(base, metadata, notes=notes, data=_describe_data(dataset, source), **values)


def merged_card(adapter: str | Path, base: str) -> ModelCard:
    """The card of a merged model: that of the adapter's folder, with other metadata and another way to load it.

    A short one for an adapter without a card.
    """
    card = _render(base, {"library_name": "transformers", "tags": ["vision-language", "merged"]}, is_merged=True)
    if not (Path(adapter) / CARD).is_file():
        return card
    old = ModelCard.load(Path(adapter) / CARD)
    for name in ("library_name", "pipeline_tag", "tags"):
        old.data[name] = card.data[name]
    text = old.text.lstrip().replace("# Adapter for ", "# Adapter merged into ", 1)
    loading = _LOADING.search(card.text)[0]
    return ModelCard(f"---\n{old.data.to_yaml()}\n---\n\n{_LOADING.sub(lambda _: loading, text)}")


def _render(base, metadata, **values):
    family = family_of(base)
    license_data, license_text = family.license_of(base)
    data = ModelCardData(base_model=base, pipeline_tag="image-text-to-text", **metadata, **license_data)
    values |= {"base": base, "is_tiny": base in FAMILIES, "family": family, "license_text": license_text}
    return ModelCard.from_template(data, Path(__file__).with_suffix(".md"), **values)


def _describe_data(dataset, source):
    lines = [dataset] if isinstance(dataset, str) else []
    if isinstance(dataset, Dataset):
        texts = json.dumps(dataset.with_format(None)["messages"][:], ensure_ascii=False).encode()
        lines.append(f"- {len(dataset):,} rows; SHA-256 of their messages: `{sha256(texts).hexdigest()}`")
    if source:
        lines.append(f"- file `{Path(source).name}`, SHA-256 `{sha256(Path(source).read_bytes()).hexdigest()}`")
    return "\n".join(lines) or "Not stated."
