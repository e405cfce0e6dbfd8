"""Versions, devices and folders. What needs a real GPU is in tests/gpu/."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from vlmhelpers.common import environment
from vlmhelpers.common.environment import compute_dtype, data_dir, hidden_gpu, one_gpu, peak_memory, show_versions

ROOT = Path(__file__).resolve().parents[2]


class Cuda:
    """Stands in for torch.cuda on a machine with `gpus` GPUs, of which CUDA_VISIBLE_DEVICES names those to be seen."""

    def __init__(self, gpus, capability=(7, 5), initialized=False):
        self.gpus, self.capability, self.fixed = gpus, capability, gpus if initialized else None

    def device_count(self):
        return self._visible() if self.fixed is None else self.fixed

    def init(self):
        self.fixed = self.device_count()

    def is_available(self):
        return self.device_count() > 0

    def get_device_capability(self):
        return self.capability

    def get_arch_list(self):
        return ["sm_75", "sm_80", "compute_90"]

    def _visible(self):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return self.gpus if visible is None else len(visible.split(","))


@pytest.fixture
def clean_environment(monkeypatch):
    """No launcher, nothing chosen, and what a test sets is undone."""
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it, whatever the code under test does
        monkeypatch.delenv(name)
    return monkeypatch


def test_show_versions_names_libraries_and_device(capsys):
    show_versions()
    shown = capsys.readouterr().out
    assert f"python {sys.version_info.major}.{sys.version_info.minor}" in shown
    assert f"torch {torch.__version__.split('+')[0]}" in shown
    assert "transformers 5" in shown
    assert "device: " in shown


def test_show_versions_says_what_is_missing(capsys, monkeypatch):
    def version(name):
        if name == "unsloth":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(environment, "version", version)
    show_versions()
    shown = capsys.readouterr().out
    assert "not installed: unsloth" in shown
    assert "unsloth 1.0" not in shown


@pytest.mark.slow
def test_show_versions_imports_only_torch():
    code = (
        "import sys; from vlmhelpers import show_versions; show_versions(); "
        "assert 'torch' in sys.modules; "
        "assert not {'transformers', 'trl', 'peft', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_one_of_two_gpus_is_taken_and_said(clean_environment, capsys):
    cuda = Cuda(gpus=2)
    clean_environment.setattr(torch, "cuda", cuda)
    one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert cuda.device_count() == 1
    assert "2 GPUs found" in capsys.readouterr().out


@pytest.mark.parametrize("gpus", [0, 1])
def test_nothing_is_chosen_where_there_is_no_choice(clean_environment, capsys, gpus):
    clean_environment.setattr(torch, "cuda", Cuda(gpus))
    one_gpu()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["LOCAL_RANK", "WORLD_SIZE"])
def test_a_launched_process_keeps_its_gpus(clean_environment, name):
    clean_environment.setattr(torch, "cuda", Cuda(gpus=2))
    clean_environment.setenv(name, "1")
    one_gpu()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_the_users_choice_stands(clean_environment):
    clean_environment.setattr(torch, "cuda", Cuda(gpus=4))
    clean_environment.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_too_late_is_an_error_and_leaves_no_trace(clean_environment):
    clean_environment.setattr(torch, "cuda", Cuda(gpus=2, initialized=True))
    with pytest.raises(RuntimeError, match="restart the kernel"):
        one_gpu()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((8, 9), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_compute_dtype_follows_the_gpu(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch, "cuda", Cuda(gpus=1, capability=capability))
    assert compute_dtype() == dtype


def test_compute_dtype_without_a_gpu_is_float32(monkeypatch):
    monkeypatch.setattr(torch, "cuda", Cuda(gpus=0))
    assert compute_dtype() == torch.float32


@pytest.fixture
def nvidia_smi(clean_environment, tmp_path):
    """Puts a program of that name on the PATH, where torch finds no GPU; called with the lines of its shell script."""
    clean_environment.setattr(torch, "cuda", Cuda(gpus=0))
    clean_environment.setenv("PATH", str(tmp_path))

    def write(*lines):
        (tmp_path / "nvidia-smi").write_text("\n".join(["#!/bin/sh", *lines]))
        (tmp_path / "nvidia-smi").chmod(0o755)

    return write


posix = pytest.mark.skipif(os.name == "nt", reason="a script stands in for nvidia-smi")
TWO_T4 = "printf 'Tesla T4, 550.54.15\\nTesla T4, 550.54.15\\n'"


@posix
@pytest.mark.parametrize("cuda, built", [("13.0", "built for CUDA 13.0"), (None, "built for CPUs only")])
def test_a_gpu_that_torch_cannot_use_is_said_with_both_versions(nvidia_smi, monkeypatch, cuda, built):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    nvidia_smi(TWO_T4)
    seen = f"the driver 550.54.15 sees a GPU (Tesla T4) that torch {torch.__version__} ({built}) cannot use: "
    assert hidden_gpu().startswith(seen) and "pytorch.org" in hidden_gpu()


@posix
@pytest.mark.parametrize("lines", [["echo NVIDIA-SMI has failed because of its driver, 1", "exit 9"], ["exit 0"]])
def test_a_driver_that_sees_no_gpu_hides_none(nvidia_smi, lines):
    assert hidden_gpu() is None  # no nvidia-smi at all
    nvidia_smi(*lines)
    assert hidden_gpu() is None


@posix
def test_a_gpu_in_use_or_hidden_on_purpose_is_none_to_mention(nvidia_smi, monkeypatch):
    nvidia_smi(TWO_T4)
    for visible in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert hidden_gpu() is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert hidden_gpu() is not None
    monkeypatch.setattr(torch, "cuda", Cuda(gpus=1))
    assert hidden_gpu() is None


@posix
@pytest.mark.parametrize(
    ("capability", "usable"), [((6, 0), False), ((7, 0), False), ((7, 5), True), ((8, 9), True), ((12, 0), True)]
)
def test_a_gpu_that_torch_was_not_built_for_is_one_it_cannot_use(nvidia_smi, monkeypatch, capability, usable):
    nvidia_smi("echo 'Tesla P100, 550.54.15'")
    monkeypatch.setattr(torch, "cuda", Cuda(gpus=1, capability=capability))
    assert (hidden_gpu() is None) == usable


@pytest.mark.slow
def test_peak_memory_is_what_this_process_held_at_once_and_not_its_parent():
    code = (
        "import json, vlmhelpers as vlm; first = vlm.peak_memory(); {}; print(json.dumps([first, vlm.peak_memory()]))"
    )
    child = "import subprocess, sys; bytes(2**20) * 1024; print(subprocess.run([sys.executable, '-c', sys.argv[1]]))"
    held = code.format("data = b'x' * 2**28; del data")
    run = subprocess.run([sys.executable, "-c", child, held], capture_output=True, text=True, check=True)
    before, after = json.loads(run.stdout.splitlines()[0])
    assert 0.2 < after - before < 0.3 and before < 0.9


@pytest.mark.parametrize("initialized, gibibytes", [(True, 3.0), (False, 1.0)])
def test_peak_memory_is_the_gpus_where_torch_uses_one(monkeypatch, initialized, gibibytes):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    monkeypatch.setattr(environment, "_peak_of_process", lambda: 2**30)
    assert peak_memory() == gibibytes


def test_data_dir_is_the_checkouts_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data_dir() == ROOT / "data"


def installed_copy(folder):
    """The package alone, as a plain `pip install` leaves it, and the environment that finds it first."""
    shutil.copytree(ROOT / "vlmhelpers", folder / "site" / "vlmhelpers")
    return {**os.environ, "PYTHONPATH": str(folder / "site")}


PRINT_DATA_DIR = [sys.executable, "-c", "from vlmhelpers.common import data_dir; print(data_dir())"]


def test_an_installed_package_finds_the_clone_it_is_used_in(tmp_path):
    environment = installed_copy(tmp_path)
    run = subprocess.run(PRINT_DATA_DIR, cwd=ROOT / "tests", env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == str(ROOT / "data")


def test_an_installed_package_without_data_says_what_to_do(tmp_path):
    environment = installed_copy(tmp_path)
    run = subprocess.run(PRINT_DATA_DIR, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode != 0
    assert "installed without its data" in run.stderr
    assert "pip install --no-deps -e ." in run.stderr
