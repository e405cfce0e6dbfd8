"""Where the code runs: library versions, the device and its number format, the folder of the data."""

import logging
import os
import platform
import re
import subprocess
import sys
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from vlmhelpers.common.errors import CannotRun

if TYPE_CHECKING:
    import torch

LIBRARIES = "torch torchvision transformers trl peft bitsandbytes accelerate datasets unsloth".split()


def show_versions() -> None:
    """Print the versions of the libraries that decide a run, and the device, after `one_gpu()`; imports only torch."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    print(f"python {platform.python_version()}")
    print(", ".join(f"{name} {number}" for name, number in found.items()))
    if missing := [name for name in LIBRARIES if name not in found]:
        print(f"not installed: {', '.join(missing)}")
    one_gpu()
    print(f"device: {device_line()}")


def quiet() -> None:
    """Silence notes that a reader cannot act on, and loading bars. Call it before importing torch, peft or trl."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler, which measures memory, notes its start and end
    # A faster 4-bit kernel for some CPUs, which would come from the hub and passes no gradients on.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def device_line() -> str:
    """One line about the device that torch will use, such as "Tesla T4, 14.6 GiB, compute capability 7.5"."""
    import torch

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        return f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, compute capability {gpu.major}.{gpu.minor}"
    apple, count = "Apple GPU (mps) and " * torch.backends.mps.is_available(), torch.get_num_threads()
    return f"{apple}CPU, {count} thread{'s' * (count > 1)}"


def one_gpu() -> None:
    """Leave this process only the first of several GPUs (two T4s on Kaggle), and print that.

    With more, transformers' trainers fall into `torch.nn.DataParallel`. Nothing happens in a process of accelerate or
    torchrun, or where CUDA_VISIBLE_DEVICES is set. Raises RuntimeError when CUDA is initialized already.
    """
    if any(name in os.environ for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "WORLD_SIZE")):
        return
    import torch

    if (count := torch.cuda.device_count()) < 2:
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    torch.cuda.init()  # reads the variable, unless CUDA has counted the GPUs before: is_available() is enough for that
    if torch.cuda.device_count() > 1:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        remedy = "restart the kernel and call show_versions() first, or start it with CUDA_VISIBLE_DEVICES=0"
        raise CannotRun(f"this process uses its {count} GPUs already and cannot be limited to one: {remedy}")
    print(f"{count} GPUs found: using the first (CUDA_VISIBLE_DEVICES=0); `accelerate launch` uses all.")


def hidden_gpu() -> str | None:
    """What to do, in one sentence, where NVIDIA's driver sees a GPU that torch cannot use; else None.

    None, too, where CUDA_VISIBLE_DEVICES hides the GPUs ("" or "-1").
    """
    import torch

    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or (torch.cuda.is_available() and _has_kernels()):
        return None
    if (found := _gpu_of_driver()) is None:
        return None
    gpu, driver = found
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs only"
    seen = f"the driver {driver} sees a GPU ({gpu}) that torch {torch.__version__} ({built}) cannot use"
    remedy = "install a build of torch for that driver (https://pytorch.org/get-started/previous-versions)"
    return f"{seen}: {remedy}; on Colab choose Runtime > Disconnect and delete runtime, and start again"


def _has_kernels():
    """Whether torch was built for the compute capability of its GPU: new builds leave out old GPUs."""
    import torch

    gpu, built = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    found = [(kind, (int(major), int(minor))) for kind, major, minor in re.findall(r"(\w+)_(\d+)(\d)", " ".join(built))]
    # Machine code (sm) runs on later ones of the same generation, PTX (compute) on all later ones.
    return any(one <= gpu and (kind == "compute" or one[0] == gpu[0]) for kind, one in found)


def _gpu_of_driver():
    """(name, version of the driver) of the first GPU that NVIDIA's driver sees, or None."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    name, _, driver = shown.partition("\n")[0].rpartition(", ")
    return (name, driver) if name else None


def peak_memory() -> float:
    """The most memory that was used at once so far, in GiB: torch's of the GPU where it uses one, else this process's.

    On a GPU it is what tensors held (`torch.cuda.max_memory_allocated`), without the CUDA context.
    """
    import torch

    held = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    return round((held or _peak_of_process()) / 2**30, 2)


def _peak_of_process():
    """The bytes of memory that this process held at once, at most."""
    if os.name == "nt":
        import psutil

        return psutil.Process().memory_info().peak_wset
    status = Path("/proc/self/status")  # on Linux getrusage would count what the process that started this one held
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used  # macOS counts bytes


def compute_dtype() -> "torch.dtype":
    """The dtype to compute in: bfloat16 from compute capability 8 on, float16 below, float32 without CUDA.

    `torch.cuda.is_bf16_supported()` is no test: it counts emulation, so a T4 (7.5) passes it and is then slow.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.float32
    major, _ = torch.cuda.get_device_capability()
    return torch.bfloat16 if major >= 8 else torch.float16


def data_dir() -> Path:
    """The folder `data` of the checkout that this package lies in, else of the nearest above the working directory.

    Raises FileNotFoundError when there is none.
    """
    here, working = Path(__file__).resolve().parents[2], Path.cwd()
    for folder in (here, working, *working.parents):
        if (folder / "vlmhelpers" / "__init__.py").is_file() and (folder / "data").is_dir():
            return folder / "data"
    remedy = "Clone the repository, run `pip install --no-deps -e .` in it, and restart the kernel"
    raise FileNotFoundError(f"no checkout at {here} or {working}: the package was installed without its data. {remedy}")
