"""Runs the notebooks as Google Colab would: with the versions of its image, from a folder without a checkout.

    python tools/run_hosted.py               the set-up cell, then all notebooks
    python tools/run_hosted.py --only 01     the set-up cell, then some

The environment under build/hosted is made once (5 GB), and brought back to the image's versions before each run. What
is committed runs, from a clone. Exit code 1 when a notebook fails, or when the set-up cell changes torch, NumPy or
another package that a kernel of the image has loaded. Linux only; no GPU and no real model is part of this.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import hosted
import nbclient
import nbformat
from nbclient.exceptions import CellExecutionError
from readme_tables import ROOT
from run_notebooks import Run, run_all, select

IMAGE = ROOT / "tools" / "colab-2026-08.txt"
FOLDER = ROOT / "build" / "hosted"
CONTENT = FOLDER / "content"  # the working directory, as /content in Colab
PYTHON = FOLDER / "venv" / "bin" / "python"
UV = [sys.executable, "-m", "uv"]
SHOWN = "torch torchvision numpy pandas pillow matplotlib ipywidgets ipython".split()
LOADED = (
    "import IPython, PIL.Image, matplotlib, numpy, pandas, requests"  # what a hosted kernel has loaded, or may have
)


class Copy(Run):
    """A run of a notebook that keeps how long it took."""

    time = "not run to its end"

    def execute(self):
        failure = super().execute()
        if failure is None:
            self.time = self.progress.elapsed()
        return failure


def make_environment(python):
    """Bring the environment to the image's versions; makes it the first time."""
    frozen = FOLDER / "image.txt"  # the image's list with all that is beneath it
    if not frozen.exists() or frozen.stat().st_mtime < IMAGE.stat().st_mtime:
        print(f"Making {FOLDER / 'venv'} from {IMAGE.name}: 5 GB")
        subprocess.run([*UV, "venv", "--quiet", "--clear", "--seed", "--python", python, FOLDER / "venv"], check=True)
        subprocess.run([*UV, "pip", "install", "--quiet", "--python", PYTHON, "-r", IMAGE], check=True)
        frozen.write_bytes(subprocess.run([*UV, "pip", "freeze", "--python", PYTHON], check=True, stdout=-1).stdout)
    subprocess.run([*UV, "pip", "sync", "--quiet", "--python", PYTHON, frozen], check=True)


def versions():
    """Name -> version of the environment's packages."""
    listed = subprocess.run(
        [*UV, "pip", "list", "--quiet", "--format", "json", "--python", PYTHON], check=True, stdout=-1
    )
    return {package["name"]: package["version"] for package in json.loads(listed.stdout)}


def make_origin():
    """Clone what is committed to where the set-up cell will fetch it; gives its address."""
    origin = FOLDER / "origin"
    for folder in (origin, CONTENT):
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), origin], check=True)
    (origin / "raw").mkdir()
    (origin / "raw" / "main").symlink_to(origin)  # where GitHub has the files of the branch main
    CONTENT.mkdir()
    return origin


def make_kernel(origin):
    """Let "python3" be a kernel of the environment, that fetches the project from `origin`."""
    kernel = FOLDER / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True, exist_ok=True)
    command = [str(PYTHON), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "hosted", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    os.environ |= {"JUPYTER_PATH": str(FOLDER / "jupyter"), "VLMHELPERS_REPOSITORY": origin.as_uri()}
    os.environ["PATH"] += os.pathsep + str(Path(sys.executable).parent)  # uv, which Colab has, too
    os.environ |= {"OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def set_up(cell):
    """Run the set-up cell, in a second kernel where it asks for a restart; exits with its sentence when it stops."""
    stopped = run_cell(cell)
    if stopped and "restart" in stopped:
        stopped = run_cell(cell)
    if stopped:
        sys.exit("The set-up cell does not go through.")


def run_cell(cell):
    """Run the set-up cell in a new kernel, and print what it printed; gives the sentence with which it stopped."""
    cells = [nbformat.v4.new_code_cell(source) for source in (LOADED, cell)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(CONTENT)}})
    with suppress(CellExecutionError):
        client.execute()
    stopped = None
    for output in cells[1].outputs:
        if output.output_type == "error":
            stopped = "\n".join(output.traceback)
        print("  |", (stopped or output.text).rstrip().replace("\n", "\n  | "))
    return stopped


def report(before, after, runs):
    """Print what changed in the environment and how long the notebooks took; True when the kernel's packages stayed."""
    print(f"\n{'':<14}{'before':<12}after")
    for name in SHOWN:
        print(f"{name:<14}{before[name]:<12}{after[name]}")
    changed = [f"{name} {before[name]} -> {after[name]}" for name in before if after.get(name) != before[name]]
    print(f"changed: {', '.join(changed) or 'nothing'}")
    print(f"added: {', '.join(f'{name} {after[name]}' for name in after if name not in before) or 'nothing'}\n")
    for run in runs:
        print(f"{run.notebook.name:<30}{run.time}")
    return all(before[name] == after[name] for name in before if hosted.KEPT.fullmatch(name))


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Run the notebooks in an environment like Google Colab's.")
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="NN", help="the notebooks' numbers")
    parser.add_argument("--python", default="3.13", help="the environment's Python: 3.13, or a path")
    options = parser.parse_args(arguments)
    FOLDER.mkdir(parents=True, exist_ok=True)
    make_environment(options.python)
    origin = make_origin()
    make_kernel(origin)
    before = versions()
    set_up((origin / "tools" / "setup_cell.py").read_text(encoding="utf-8"))
    runs = [
        Copy(Path(shutil.copy(path, CONTENT)), FOLDER / path.name, {})
        for path in select(origin / "notebooks", options.only)
    ]
    passed = run_all(runs, at_once=2)
    same = report(before, versions(), runs)
    if not same:
        print("The set-up cell changed a package that a hosted kernel has loaded.")
    return 0 if passed and same else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"failed: {' '.join(map(str, error.cmd))}")
