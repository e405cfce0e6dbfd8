"""Where the code runs: library versions, the device and its number format, the folder of the data."""

import logging
import os
import platform
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "unsloth",
)

# Set by torchrun and accelerate, which give each process a GPU of its own.
_LAUNCHER_VARIABLES = ("LOCAL_RANK", "WORLD_SIZE")


def show_versions():
    """Print the versions of the libraries that decide a run, and the device that will do the work.

    Versions come from the packages' metadata: of the libraries only torch is imported, for the device. On a
    machine with several GPUs this settles which one is used (see `one_gpu`), so call it before anything else
    touches a GPU.
    """
    found = {name: _version(name) for name in LIBRARIES}
    print(f"python {platform.python_version()}")
    print(", ".join(f"{name} {number}" for name, number in found.items() if number))
    missing = [name for name, number in found.items() if number is None]
    if missing:
        print(f"not installed: {', '.join(missing)}")
    one_gpu()
    print(f"device: {device_line()}")


def quiet():
    """Silence what libraries say to each other: coming changes, torch's note on enums, missing extras, loading bars.

    Everything that a reader could act on still shows. Call it before torch, peft or trl are imported.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    # A faster 4-bit kernel for some CPUs, which would come from the hub and passes no gradients on.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def device_line():
    """One line about the device that torch will use, such as "Tesla T4, 14.6 GiB, compute capability 7.5"."""
    import torch

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        return f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, compute capability {gpu.major}.{gpu.minor}"
    if torch.backends.mps.is_available():
        return f"Apple GPU (mps) beside a CPU, {torch.get_num_threads()} threads"
    return f"CPU, {torch.get_num_threads()} threads"


def one_gpu():
    """Leave this process the first GPU only, and say so, where it would see several.

    With several GPUs in one process transformers' trainers fall into `torch.nn.DataParallel`, and a model
    that is spread over them fails: two T4s on Kaggle are the usual case. Nothing happens where accelerate or
    torchrun launched the process or where CUDA_VISIBLE_DEVICES is set: then someone has chosen. Raises
    RuntimeError when it comes too late.
    """
    if "CUDA_VISIBLE_DEVICES" in os.environ or any(name in os.environ for name in _LAUNCHER_VARIABLES):
        return
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    # Reads the variable, unless CUDA has counted the GPUs before, for which is_available() is enough.
    torch.cuda.init()
    if torch.cuda.device_count() > 1:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        raise RuntimeError(
            f"this process has looked at its {count} GPUs already and cannot be left one of them: restart "
            "the kernel and call show_versions() first, or start it with CUDA_VISIBLE_DEVICES=0"
        )
    print(f"{count} GPUs found: using the first (CUDA_VISIBLE_DEVICES=0); `accelerate launch` uses all.")


def compute_dtype():
    """The torch dtype to compute in: bfloat16 from compute capability 8 on, float16 below, float32 elsewhere.

    `torch.cuda.is_bf16_supported()` is no test: it counts emulation, so a T4 (7.5) passes it and is then
    slow. On a CPU half precision is slow or missing. Apple GPUs get float32 too: they have no 4-bit kernels
    to save memory with, and float16 training would need a gradient scaler that is written for CUDA.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.float32
    major, _ = torch.cuda.get_device_capability()
    return torch.bfloat16 if major >= 8 else torch.float16


def find_repository_root():
    """The folder of the checkout: the one this package lies in, else the nearest above the working directory.

    Raises FileNotFoundError, with what to do, when the package was installed without its repository.
    """
    here = Path(__file__).resolve().parents[2]
    working = Path.cwd()
    for folder in (here, working, *working.parents):
        if (folder / "vlmhelpers" / "__init__.py").is_file() and (folder / "data").is_dir():
            return folder
    raise FileNotFoundError(
        f"no checkout of the project around {here} or {working}: the package was installed without its data. "
        "Clone the repository, run `pip install --no-deps -e .` in it, and restart the kernel"
    )


def data_dir():
    """The folder `data` of the checkout: the sample CSV files, their pictures and the tiny base models."""
    return find_repository_root() / "data"
