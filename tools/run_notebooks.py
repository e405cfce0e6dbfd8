"""Runs the notebooks from top to bottom through papermill, and writes their outputs back into them.

    python tools/run_notebooks.py                          all of them, in order
    python tools/run_notebooks.py --only 01 03             some
    python tools/run_notebooks.py --only 01 -p EPOCHS 5    one with another parameter

A notebook is replaced only after a run without errors, and never after one with changed parameters: those,
and failed ones, stay under outputs/. The first failing cell ends everything: exit code 1.
"""

import argparse
import ast
import os
import shutil
import sys
from pathlib import Path

import nbformat
import papermill
import readme_tables
from clean_outputs import clean
from papermill.exceptions import PapermillExecutionError
from progress import ENGINE, Progress

from vlmhelpers.common.records import read_records

LARGE_KB = 500


def run(notebook, executed, parameters, heading):
    """Execute one notebook into the file `executed`; False, with the failure printed, when a cell fails."""
    total = len(nbformat.read(notebook, as_version=4).cells)
    print(f"{heading} {notebook.name}: {total} cells", flush=True)
    with Progress(total) as progress:
        failure = execute(notebook, executed, parameters, progress)
    if failure is None:
        print(f"      done in {progress.elapsed()}", flush=True)
        return True
    print(failure)
    print(f"FAILED: {notebook.name}, cell {progress.number} of {total}, after {progress.elapsed()}.")
    print(f"The notebook is unchanged; the run up to the failure is in {executed}", flush=True)
    return False


def execute(notebook, executed, parameters, progress):
    """Run papermill; None, or what went wrong as a text."""
    try:
        papermill.execute_notebook(
            notebook,
            executed,
            parameters,
            engine_name=ENGINE,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=notebook.parent,
            stdout_file=progress,
            extra_arguments=["--log-level=ERROR"],  # it warns that its local sockets are not encrypted
        )
    except PapermillExecutionError as error:
        return str(error)
    except Exception as error:  # the kernel did not start, or died, as it does when memory runs out
        return f"{type(error).__name__}: {error}"
    return None


def write_back(executed, notebook):
    """Replace `notebook` by its cleaned executed copy in one step, and remove the copy."""
    node = nbformat.read(executed, as_version=4)
    clean(node, notebook.parent, notebook.parent.parent)
    partial = notebook.with_suffix(".partial")
    nbformat.write(node, partial)
    os.replace(partial, notebook)
    executed.unlink()
    kilobytes = notebook.stat().st_size / 1000
    if kilobytes > LARGE_KB:
        print(f"      {notebook.name} has {kilobytes:.0f} kB, over {LARGE_KB} kB: make its pictures smaller")


def select(folder, numbers):
    """The notebooks of `folder` whose names begin with one of `numbers`; all of them without numbers."""
    notebooks = readme_tables.find_notebooks(folder)
    if not notebooks:
        sys.exit(f"no notebook like 01_name.ipynb in {folder}")
    for number in numbers:
        if not any(notebook.name.startswith(number) for notebook in notebooks):
            sys.exit(f"no notebook begins with {number!r}; there are: {', '.join(n.name for n in notebooks)}")
    return [n for n in notebooks if not numbers or n.name.startswith(tuple(numbers))]


def parameters_for(notebook, parameters):
    """Those of `parameters` that the notebook's cell tagged "parameters" sets."""
    known = papermill.inspect_notebook(notebook)
    return {name: value for name, value in parameters.items() if name in known}


def literal(text):
    """A value of the command line: a Python literal where it is one ("5", "2e-4"), else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def show_records(notebooks):
    """Print what the notebooks recorded, as a table."""
    print("\nRecorded results")
    for notebook in notebooks:
        print(f"  {notebook.stem}")
        rows = [readme_tables.readable(name, value) for name, value in read_records(notebook).items()]
        width = max((len(label) for label, _ in rows), default=0)
        for label, text in rows:
            print(f"    {label:<{width}}  {text}")


def parse(arguments):
    parser = argparse.ArgumentParser(description="Run the notebooks and write their outputs back into them.")
    add = parser.add_argument
    add("--only", nargs="+", action="extend", default=[], metavar="NN", help="the notebooks' numbers")
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter")
    add("--folder", type=Path, default=readme_tables.ROOT / "notebooks", help="where the notebooks are")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse(arguments)
    folder = options.folder.resolve()
    notebooks = select(folder, options.only)
    parameters = {name: literal(value) for name, value in options.p}
    chosen = {notebook: parameters_for(notebook, parameters) for notebook in notebooks}
    unknown = set(parameters).difference(*chosen.values())
    if unknown:
        sys.exit(f"no parameters cell sets {', '.join(sorted(unknown))}")

    # The kernel is this Python: its own kernelspec goes before any that is registered on the machine.
    os.environ["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))
    outputs = folder.parent / "outputs"
    outputs.mkdir(exist_ok=True)
    for position, notebook in enumerate(notebooks, start=1):
        executed = outputs / notebook.name
        if not parameters:  # what is written back shows a whole run, not one that goes on from checkpoints
            shutil.rmtree(folder / "outputs" / notebook.name[:2], ignore_errors=True)
        if not run(notebook, executed, chosen[notebook], f"[{position}/{len(notebooks)}]"):
            return 1
        if not parameters:
            write_back(executed, notebook)
    if parameters:
        show_records([outputs / notebook.name for notebook in notebooks])
        print(f"\nThe notebooks are unchanged; the runs with {parameters} are in {outputs}")
        return 0
    show_records(readme_tables.find_notebooks(folder))
    print()
    return readme_tables.main(["--folder", str(folder)])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted: the notebook is unchanged")
