"""Where a run is recorded, as one word, without a question asked on the way."""

import importlib.util
import netrc
import os

_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",)}
_WANDB_HOST = "api.wandb.ai"


def report_to(name):
    """`name` for `SFTConfig(report_to=...)`: "none", "tensorboard", "trackio" or "wandb"; a line says where to look.

    None of them asks for a login: without a key, Weights & Biases records offline (WANDB_MODE), and Trackio and
    TensorBoard record on this machine. Installing Trackio (0.43) takes Pillow back below 13. Raises ValueError for
    another name or one whose package is not installed.
    """
    if name == "none":
        return name
    if name not in _PACKAGES:
        raise ValueError(f"REPORT_TO={name!r}: choose none, {', '.join(_PACKAGES)}")
    if not any(map(importlib.util.find_spec, _PACKAGES[name])):
        raise ValueError(f"REPORT_TO={name!r} needs a package: pip install {name}, and restart the kernel")
    print(_prepare_wandb() if name == "wandb" else _LOOK_AT[name])
    return name


_LOOK_AT = {
    "tensorboard": "TensorBoard: `tensorboard --logdir OUTPUT_DIR` shows the run.",
    "trackio": "Trackio: `trackio show` shows the run, from this machine's disk.",
}


def _prepare_wandb():
    if "WANDB_MODE" not in os.environ and not _has_wandb_key():
        os.environ["WANDB_MODE"] = "offline"
    if os.environ.get("WANDB_MODE") == "offline":
        return "Weights & Biases: recorded offline in ./wandb; `wandb login` and `wandb sync` upload it later."
    return "Weights & Biases: recorded under the account of the key that was found."


def _has_wandb_key():
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", f"https://{_WANDB_HOST}").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
