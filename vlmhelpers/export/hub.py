"""Uploading a folder to the Hugging Face Hub: a dry run unless it is asked for."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import huggingface_hub

from vlmhelpers.export.model_card import CARD

# Of training, not of the model: optimizer states, pickles, checkpoints' own files.
_LEFTOVERS = ("optimizer", "scheduler.pt", "scaler.pt", "rng_state", "training_args.bin", "trainer_state.json")
_SECRET_FILES = re.compile(r"(^|/)(\.env.*|id_rsa|id_ed25519|.*\.pem|.*\.key|\.netrc|\.git-credentials|token)$")
_SECRETS = re.compile(rb"\b(hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,})\b")
_TEXTS = (".md", ".json", ".jinja", ".txt", ".yaml", ".yml", ".py", ".ipynb", ".log", ".csv", ".jsonl")


@dataclass(frozen=True)
class Upload:
    """What `push` sends or would send: `files` maps names to bytes; `url` is None until it is sent."""

    repo_id: str
    private: bool
    files: dict[str, int]
    url: str | None = None

    def __repr__(self):
        lines = [f"{size / 2**20:9.2f} MiB  {name}" for name, size in self.files.items()]
        done = f"sent: {self.url}" if self.url else "a dry run, nothing was sent: dry_run=False sends it"
        kind = "private" if self.private else "PUBLIC"
        return "\n".join([f"{self.repo_id} ({kind}), {len(lines)} files, {done}", *lines])


def push(
    folder: str | Path, repo_id: str, private: bool = True, token: str | None = None, dry_run: bool = True
) -> Upload:
    """Shows what an upload of `folder` would hold, an adapter or a merged model; `dry_run=False` sends it.

    `repo_id`: "owner/name" of a model repository, made private where it is new unless `private=False`. `token`: a
    token that may write; None takes the one of `hf auth login`. A dry run sends nothing and uses no network.

    Raises FileNotFoundError for a folder without card, ValueError for a card without base_model, library_name and
    license, a name without owner, and for files that should not leave this machine: secrets, and leftovers of training
    (optimizer states, pickled arguments), which tell more than the weights and are larger.
    """
    folder = Path(folder)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"repo_id={repo_id!r}: write it as owner/name")
    _check_card(folder / CARD)
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for name, path in paths.items():
        _check_file(path, name)
    upload = Upload(repo_id, private, {name: path.stat().st_size for name, path in paths.items()})
    if dry_run:
        return upload
    api = huggingface_hub.HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    url = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload with its processor and card")
    return replace(upload, url=str(url))


def _check_card(path):
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {CARD}: write the folder with save_adapter or merge")
    data = huggingface_hub.ModelCard.load(path).data
    if missing := [name for name in ("base_model", "library_name", "license") if not data.get(name)]:
        raise ValueError(f"{path} does not say {', '.join(missing)}: add it between the lines of --- at its beginning")


def _check_file(path, name):
    if any(part in path.name for part in _LEFTOVERS):
        raise ValueError(f"{path} is left over from training: remove it, or push the adapter's folder alone")
    if _SECRET_FILES.search(name):
        raise ValueError(f"{path} looks like a secret by its name: remove it")
    if path.suffix in _TEXTS and _SECRETS.search(path.read_bytes()):
        raise ValueError(f"{path} holds what looks like an access token: remove it, and revoke the token")
