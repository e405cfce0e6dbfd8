"""Uploading a folder to the Hugging Face Hub, as a step that has to be asked for twice."""

import re
from dataclasses import dataclass
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
    files: dict
    url: str | None = None

    def __repr__(self):
        lines = [f"{size / 2**20:9.2f} MiB  {name}" for name, size in self.files.items()]
        done = f"sent: {self.url}" if self.url else "a dry run, nothing was sent: dry_run=False sends it"
        kind = "private" if self.private else "PUBLIC"
        return "\n".join([f"{self.repo_id} ({kind}), {len(lines)} files, {done}", *lines])


def push(folder, repo_id, private=True, token=None, dry_run=True):
    """Shows what an upload of `folder` would hold, an adapter or a merged model; `dry_run=False` sends it: an `Upload`.

    `repo_id`: "owner/name" of a model repository, made private where it is new unless `private=False`. `token`: a
    token that may write; None takes the one of `hf auth login`. Nothing is sent, and no network used, in a dry run.

    Raises FileNotFoundError for a folder without card, ValueError for a card without base_model, library_name and
    licence, a name with no owner, and for files that should not leave this machine: secrets, and leftovers of training
    (optimizer states, pickled arguments), which tell more than the weights and are larger.
    """
    folder = Path(folder)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"repo_id={repo_id!r}: write it as owner/name")
    _check_card(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    _check_files(folder, files)
    if dry_run:
        return Upload(repo_id, private, files)
    api = huggingface_hub.HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    sent = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload with its processor and card")
    return Upload(repo_id, private, files, str(sent))


def _check_card(folder):
    path = folder / CARD
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {CARD}: write the folder with save_adapter or merge")
    data = huggingface_hub.ModelCard.load(path).data.to_dict()
    missing = [name for name in ("base_model", "library_name", "license") if not data.get(name)]
    if missing:
        raise ValueError(f"{path} does not say {', '.join(missing)}: add it between the lines of --- at its beginning")


def _check_files(folder, files):
    """Raises ValueError that names the first file that should not be sent."""
    for name in files:
        if any(part in Path(name).name for part in _LEFTOVERS):
            raise ValueError(
                f"{folder / name} is left over from training: remove it, or push the adapter's folder alone"
            )
        if _SECRET_FILES.search(name):
            raise ValueError(f"{folder / name} looks like a secret by its name: remove it")
        if Path(name).suffix in _TEXTS and _SECRETS.search((folder / name).read_bytes()):
            raise ValueError(f"{folder / name} holds what looks like an access token: remove it, and revoke the token")
