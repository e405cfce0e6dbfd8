"""Runs every notebook once, to its last cell, with a small model of the published vocabulary, layout and chat template.

    python tools/run_real.py                 all of them, one after another
    python tools/run_real.py --only 01 03    some

The models are random and trained for a few steps, so what the notebooks claim of the samples is only reported. The
notebooks stay as they are; the runs are in outputs/real. A failing cell does not keep the others from running, and the
exit code is then 1. See tests/helpers/real_models.py for the models, which need PyPI and npm once.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import readme_tables
from progress import Display
from run_notebooks import Run, describe, prepare_kernels, select

sys.path.insert(0, str(readme_tables.ROOT / "tests" / "helpers"))

from real_models import model_folder  # noqa: E402
from real_vocabularies import OutOfReach  # noqa: E402

# The model of each notebook, by how its name begins, and parameters that keep it short.
SETTINGS = {
    "01": ("llama-3.2-vision", {"TEST_ROWS": 8, "BATCH_SIZE": 2, "MORE": {"max_steps": 4}}),
    "02": ("qwen3-vl", {"MORE": {"max_steps": 4, "batch_size": 2}, "EXPERIMENTS": False}),
    "03": ("phi-3-vision", {"TEST_ROWS": 8, "MORE": {"max_steps": 4, "batch_size": 2, "max_pixels": 336**2}}),
    "04": (
        "qwen2.5-vl",
        {
            "BATCH_SIZE": 2,
            "MORE": {"max_steps": 4, "save_steps": 2, "test_rows": 8, "validation_rows": 4},
            "EXPERIMENTS": False,
        },
    ),
    "05": ("qwen2.5-vl", {"MAX_NEW_TOKENS": 16, "BATCH_SIZE": 8}),
    "06": ("qwen3-vl", {"STEPS": 2, "TEST_ROWS": 8, "EXPERIMENTS": False}),
    "07": ("qwen3-vl", {"STEPS": 24, "TEST_ROWS": 8, "MORE": {"batch_size": 2}}),
    "troubleshooting": ("qwen2.5-vl", {}),
}


def make_run(notebook, outputs):
    """The `Run` of a notebook with its model. Notebook 05 takes what 04 has trained."""
    name = next((name for name in SETTINGS if notebook.name.startswith(name)), None)
    if name is None:
        raise ValueError(f"{notebook.name} has no model in {Path(__file__).name}: add one to SETTINGS")
    model, parameters = SETTINGS[name]
    folder = model_folder(model)
    own = {"OUTPUT_DIR": f"outputs/real/{name}", "MODEL_ID": str(folder)}
    if name == "05":
        own = {"OUTPUT_DIR": own["OUTPUT_DIR"], "BASE": str(folder), "RUN": f"outputs/real/04/{folder.name}"}
    shutil.rmtree(notebook.parent / own["OUTPUT_DIR"], ignore_errors=True)
    return Run(notebook, outputs / notebook.name, own | parameters)


def execute(run):
    """Run a notebook: None, or the lines that say what failed."""
    with Display() as display:
        display.running.append(run.start())
        display.print(f"{run.notebook.name}: {run.progress.total} cells")
        failure = run.execute()
        display.running.clear()
    return None if failure is None else describe(run, failure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="NN", help="the notebooks' numbers")
    root = readme_tables.ROOT
    notebooks, outputs = select(root / "notebooks", parser.parse_args(arguments).only), root / "outputs" / "real"
    outputs.mkdir(parents=True, exist_ok=True)
    prepare_kernels(one_thread=True)
    lines, failed = [], False
    for notebook in notebooks:
        begun = time.monotonic()
        try:
            run = make_run(notebook, outputs)
        except OutOfReach as error:
            sys.exit(f"make real needs the published vocabularies: {error}")
        failure = execute(run)
        if failure:
            print(*failure, sep="\n")
        failed |= failure is not None
        cells = f"{run.progress.number} of {run.progress.total} cells"
        seconds = time.monotonic() - begun
        lines.append(f"  {'FAILED' if failure else 'done':<8}{notebook.stem:<26}{cells:<18}{seconds:>6.0f} s")
    print("\nNotebooks with real vocabularies", *lines, sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
