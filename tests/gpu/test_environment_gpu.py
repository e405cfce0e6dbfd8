"""What environment.py says about a real GPU."""

import os
import subprocess
import sys

import torch

from vlmhelpers.common.environment import compute_dtype, device_line

ONE_GPU = """
from vlmhelpers.common.environment import one_gpu
one_gpu()
import torch
assert torch.cuda.device_count() == 1
x = torch.ones(3, device="cuda")
assert float(x.sum()) == 3
"""


def test_device_line_names_the_gpu():
    assert torch.cuda.get_device_name() in device_line()
    assert "compute capability" in device_line()


def test_compute_dtype_is_what_the_card_multiplies_natively():
    dtype = compute_dtype()
    assert (dtype == torch.bfloat16) == (torch.cuda.get_device_capability() >= (8, 0))
    x = torch.eye(16, dtype=dtype, device="cuda")
    assert torch.equal(x @ x, x)


def test_a_process_is_left_one_gpu():
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    subprocess.run([sys.executable, "-c", ONE_GPU], env=environment, check=True)
