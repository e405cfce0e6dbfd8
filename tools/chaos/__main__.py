"""Attacks the package's jobs at moments drawn from a seed, and says which of its promises were kept.

After an attack the same job is started until it ends by itself. It has to end with the result of an undisturbed one,
or to say in one sentence why not; what was whole stays whole, and nothing is left behind.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MOUNTS = "CHAOS_MOUNTS"  # in the environment where mounts are this program's own


def arguments():
    parser = argparse.ArgumentParser("make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="how long new tries are begun (default: 10)")
    parser.add_argument("--tries", type=int, help="in place of minutes: how often each job is attacked")
    parser.add_argument("--seed", type=int, default=0, help="other seeds attack at other moments (default: 0)")
    parser.add_argument("--only", default="", help="JOB or JOB/ATTACK, or how their names begin")
    parser.add_argument("--number", type=int, help="the number of a try, to repeat it")
    return parser.parse_args()


def own_mounts():
    """Starts this program again where its mounts are its own and end with it, if the machine allows that."""
    for options in (["-m"], ["-rm"]) if MOUNTS not in os.environ and shutil.which("unshare") else ():
        tried = ["unshare", *options, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        if subprocess.run(tried, capture_output=True).returncode == 0:
            os.environ[MOUNTS] = "yes"
            os.execvp("unshare", ["unshare", *options, sys.executable, "-m", "chaos", *sys.argv[1:]])


def main():
    options = arguments()
    own_mounts()
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    os.environ |= {"HF_HOME": str(scratch / "hf"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        from vlmhelpers.common.environment import quiet

        quiet()
        from chaos.loop import attack_all

        return attack_all(options, scratch, tmpfs=MOUNTS in os.environ)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
