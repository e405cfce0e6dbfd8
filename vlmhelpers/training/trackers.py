"""Experiment trackers by name, without a prompt for a login."""

import importlib.util
import os

from requests.utils import get_netrc_auth

_TRACKERS = {  # the packages of which one is needed, and where the run is seen
    "tensorboard": (["tensorboard", "tensorboardX"], "TensorBoard: `tensorboard --logdir OUTPUT_DIR` shows the run."),
    "trackio": (["trackio"], "Trackio: `trackio show` shows the run, from this machine's disk."),
    "wandb": (["wandb"], "Weights & Biases: recorded under the account of the key that was found."),
}
_OFFLINE = "Weights & Biases: recorded offline in ./wandb; `wandb login` and `wandb sync` upload it later."


def report_to(name: str) -> str:
    """`name` for `SFTConfig(report_to=...)`: "none", "tensorboard", "trackio" or "wandb"; prints where the run is seen.

    None of them asks for a login: without a key, Weights & Biases records offline (WANDB_MODE), and Trackio and
    TensorBoard record on this machine. Installing Trackio (0.43) takes Pillow back below 13. Raises ValueError for
    another name or one whose package is not installed.
    """
    if name == "none":
        return name
    if name not in _TRACKERS:
        raise ValueError(f"REPORT_TO={name!r}: choose none, {', '.join(_TRACKERS)}")
    packages, hint = _TRACKERS[name]
    if not any(map(importlib.util.find_spec, packages)):
        raise ValueError(f"REPORT_TO={name!r} needs a package: pip install {name}, and restart the kernel")
    if name == "wandb":
        host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        if not (os.environ.get("WANDB_API_KEY") or get_netrc_auth(host)):  # where wandb itself searches for a key
            os.environ.setdefault("WANDB_MODE", "offline")
        hint = _OFFLINE if os.environ.get("WANDB_MODE") == "offline" else hint
    print(hint)
    return name
