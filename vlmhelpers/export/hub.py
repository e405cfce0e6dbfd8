"""What the Hugging Face Hub shows and takes: model cards and uploads."""

import json
import re
import warnings
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
from vlmhelpers.common.printable import one_line, printable
from vlmhelpers.families import TINY_BASES, family_of

CARD = "README.md"
_LOADING = re.compile(r"## How to load it\n.*?(?=\n## |\Z)", flags=re.DOTALL)
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~&])")
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
    targets = lora.target_modules
    targets = one_line(targets if isinstance(targets, str) else "|".join(sorted(targets)))
    values = {"lora": lora, "sizes": sizes, "scores": scores, "comparison": comparison, "versions": versions}
    values |= {"targets": targets, "fence": _fence(targets, least=3)}
    return _render(base, metadata, notes=notes, data=_describe_data(dataset, source), **values)


def merged_card(adapter: str | Path, base: str) -> ModelCard:
    """The adapter's card with the metadata of a merged model and how to load that; a short one where it has none."""
    card = _render(base, {"library_name": "transformers", "tags": ["vision-language", "merged"]}, is_merged=True)
    if not (Path(adapter) / CARD).is_file():
        return card
    try:
        old = _load_card(Path(adapter) / CARD)
    except ValueError as error:
        warnings.warn(f"{error} The merged model gets a short card.", stacklevel=2)
        return card
    for name in ("library_name", "pipeline_tag", "tags"):
        old.data[name] = card.data[name]
    text = old.text.replace("\r\n", "\n").strip().replace("# Adapter for ", "# Adapter merged into ", 1)
    loading = _LOADING.search(card.text)[0]
    text, count = _LOADING.subn(lambda _: loading, text)
    text = text if count else f"{text}\n\n{loading}"
    return ModelCard(f"---\n{old.data.to_yaml()}\n---\n\n{text}\n")


def _load_card(path):
    try:
        return ModelCard.load(path)
    except Exception as error:  # for what is no metadata, whatever YAML and huggingface_hub raise
        if isinstance(error, OSError):
            raise
        why = one_line(str(error))[:200]
        raise ValueError(printable(f"{path} cannot be read: {why}. Mend it between its first lines of ---.")) from None


def _render(base, metadata, **values):
    family = family_of(base)
    license_data, license_text = family.license_of(base)
    data = ModelCardData(base_model=base, pipeline_tag="image-text-to-text", **metadata, **license_data)
    # Python writes no backtick as \x60, but a reader of Markdown may take three of them for the end of the code.
    values |= {"base": base, "base_code": repr(base).replace("`", r"\x60"), "markdown": _markdown}
    values |= {"is_tiny": base in TINY_BASES, "family": family, "license_text": license_text}
    return ModelCard.from_template(data, Path(__file__).with_name("model_card.md"), **values)


def _markdown(text):
    """The text in one line of Markdown, or in a cell of a table, with none of its signs."""
    return _MARKDOWN.sub(r"\\\1", one_line(str(text)))


def _fence(text, least=1):
    """More backticks than the text has in a row."""
    return "`" * max(least, *(len(found) + 1 for found in re.findall("`+", text)), 0)


def _code_span(text):
    text = one_line(text)
    blank = " " * ("`" in text)
    return f"{_fence(text)}{blank}{text}{blank}{_fence(text)}"


def _describe_data(dataset, source):
    lines = [dataset] if isinstance(dataset, str) else []
    if isinstance(dataset, Dataset):
        texts = json.dumps(dataset.with_format(None)["messages"][:], ensure_ascii=False).encode()
        lines.append(f"- {len(dataset):,} rows; SHA-256 of their messages: `{sha256(texts).hexdigest()}`")
    if source:
        found = sha256(Path(source).read_bytes()).hexdigest()
        lines.append(f"- file {_code_span(Path(source).name)}, SHA-256 `{found}`")
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
        return "\n".join([head, *(f"{size / 2**20:9.2f} MiB  {one_line(name)}" for name, size in self.files.items())])


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
    card = _load_card(folder / CARD).data
    if missing := [name for name in ("base_model", "library_name", "license") if not card.get(name)]:
        raise ValueError(f"{folder / CARD} does not say {', '.join(missing)}: add it between its first lines of ---")
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for name, path in paths.items():
        shown = printable(str(path))
        if any(part in path.name for part in _LEFTOVERS):
            raise ValueError(f"{shown} is left over from training: remove it, or push the adapter's folder alone")
        if _SECRET_FILES.search(name):
            raise ValueError(f"{shown} looks like a secret by its name: remove it")
        if path.suffix in _TEXTS and _SECRETS.search(path.read_bytes()):
            raise ValueError(f"{shown} holds what looks like an access token: remove it, and revoke the token")
    upload = Upload(repo_id, private, {name: path.stat().st_size for name, path in paths.items()})
    if dry_run:
        return upload
    api = huggingface_hub.HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    url = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload with its processor and card")
    return replace(upload, url=str(url))
