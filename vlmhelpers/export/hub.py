"""What the Hugging Face Hub shows and takes: model cards and uploads."""

import json
import re
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub
from datasets import Dataset
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import LoraConfig

from vlmhelpers.common.environment import LIBRARIES
from vlmhelpers.families import FAMILIES, family_of

CARD = "README.md"
_LOADING = re.compile(r"## How to load it\n.*?(?=\n## )", flags=re.DOTALL)
# Of training, not of the model: optimizer states, pickles, checkpoints' own files.
_LEFTOVERS = ("optimizer", "scheduler.pt", "scaler.pt", "rng_state", "training_args.bin", "trainer_state.json")
_SECRET_FILES = re.compile(r"(^|/)(\.env.*|id_rsa|id_ed25519|.*\.pem|.*\.key|\.netrc|\.git-credentials|token)$")
_SECRETS = re.compile(rb"\b(hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,})\b")
_TEXTS = (".md", ".json", ".jinja", ".txt", ".yaml", ".yml", ".py", ".ipynb", ".log", ".csv", ".jsonl")


def adapter_card(
    base: str, lora: LoraConfig, sizes: dict, dataset=None, source=None, evaluations=None, comparison=None, notes=None
) -> ModelCard:
    """The card of an adapter. base: portable name. sizes: trained parameters by tower. Others: as in `save_adapter`."""
    evaluations = (evaluations or {}).items()
    scores = [(name, model, score) for model, found in evaluations for name, score in found.scores.items()]
    names = [name for name, _, _ in scores]
    scores.sort(key=lambda entry: names.index(entry[0]))
    fixed = "image-text-to-text", "custom", Path(source).name if source else "rows held out from training", "accuracy"
    of_tuned = [(name, round(score.value, 4)) for name, model, score in scores if model == "tuned"]
    results = [EvalResult(*fixed, value, metric_name=name) for name, value in of_tuned]
    metadata = {"library_name": "peft", "tags": ["vision-language", "lora", "vlmhelpers"]}
    if results:
        metadata |= {"model_name": f"Adapter for {base}", "eval_results": results}
    versions = [(name, version(name)) for name in LIBRARIES if find_spec(name)]
    values = {"lora": lora, "sizes": sizes, "scores": scores, "comparison": comparison, "versions": versions}
    return _render(base, metadata, notes=notes, data=_describe_data(dataset, source), **values)


def merged_card(adapter: str | Path, base: str) -> ModelCard:
    """The adapter's card with the metadata of a merged model and how to load that; a short one where it has none."""
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
    return ModelCard.from_template(data, Path(__file__).with_name("model_card.md"), **values)


def _describe_data(dataset, source):
    lines = [dataset] if isinstance(dataset, str) else []
    if isinstance(dataset, Dataset):
        texts = json.dumps(dataset.with_format(None)["messages"][:], ensure_ascii=False).encode()
        lines.append(f"- {len(dataset):,} rows; SHA-256 of their messages: `{sha256(texts).hexdigest()}`")
    if source:
        lines.append(f"- file `{Path(source).name}`, SHA-256 `{sha256(Path(source).read_bytes()).hexdigest()}`")
    return "\n".join(lines) or "Not stated."


@dataclass(frozen=True)
class Upload:
    """What `push` sends or would send: `files` maps names to bytes; `url` is None until it is sent."""

    repo_id: str
    private: bool
    files: dict[str, int]
    url: str | None = None

    def __repr__(self):
        done = f"sent: {self.url}" if self.url else "a dry run, nothing was sent: dry_run=False sends it"
        head = f"{self.repo_id} ({'private' if self.private else 'PUBLIC'}), {len(self.files)} files, {done}"
        return "\n".join([head, *(f"{size / 2**20:9.2f} MiB  {name}" for name, size in self.files.items())])


def push(
    folder: str | Path, repo_id: str, private: bool = True, token: str | None = None, dry_run: bool = True
) -> Upload:
    """Shows what an upload of an adapter's or merged model's `folder` would hold, without network, or sends it.

    `repo_id`: "owner/name"; a new one is `private`. `token`: None takes that of `hf auth login`. Raises ValueError for
    another name, secrets, leftovers of training, and a card without base_model, library_name and license.
    """
    folder = Path(folder)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"repo_id={repo_id!r}: write it as owner/name")
    if not (folder / CARD).is_file():
        raise FileNotFoundError(f"{folder} has no {CARD}: write the folder with save_adapter or merge")
    card = ModelCard.load(folder / CARD).data
    if missing := [name for name in ("base_model", "library_name", "license") if not card.get(name)]:
        raise ValueError(f"{folder / CARD} does not say {', '.join(missing)}: add it between its first lines of ---")
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for name, path in paths.items():
        if any(part in path.name for part in _LEFTOVERS):
            raise ValueError(f"{path} is left over from training: remove it, or push the adapter's folder alone")
        if _SECRET_FILES.search(name):
            raise ValueError(f"{path} looks like a secret by its name: remove it")
        if path.suffix in _TEXTS and _SECRETS.search(path.read_bytes()):
            raise ValueError(f"{path} holds what looks like an access token: remove it, and revoke the token")
    upload = Upload(repo_id, private, {name: path.stat().st_size for name, path in paths.items()})
    if dry_run:
        return upload
    api = huggingface_hub.HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    url = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload with its processor and card")
    return replace(upload, url=str(url))
