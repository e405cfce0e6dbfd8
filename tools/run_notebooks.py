"""Runs the notebooks from top to bottom through papermill, two at a time, and writes their outputs back into them.

    python tools/run_notebooks.py                          all of them
    python tools/run_notebooks.py --only 01 03             some
    python tools/run_notebooks.py --only 01 -p EPOCHS 5    one with another parameter

A parameter that names a file or folder is taken from the directory where this is called, as any command line is.
A notebook that uses the outputs of another one runs after it. A notebook is replaced only after a run without errors,
and never after one with changed parameters: those, and failed ones, stay under outputs/. The first failing cell ends
everything: exit code 1.
"""

import argparse
import ast
import os
import re
import shutil
import sys
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from pathlib import Path

import nbformat
import papermill
import readme_tables
from clean_outputs import clean
from papermill.exceptions import PapermillExecutionError
from progress import ENGINE, Display, Progress

from vlmhelpers.common.claims import CLAIMS
from vlmhelpers.common.digests import digest
from vlmhelpers.common.files import atomic_file
from vlmhelpers.common.records import read_records

LARGE_KB = 500
OUTPUTS = re.compile(r"\boutputs/(\d\d)\b")  # how a parameter names the folder that another notebook writes
# Parameters that are paths, and those that can be one or a name: such a value is a path where something lies there.
PATHS, NAMES_OR_PATHS = ("_PATH", "_ROOT", "_DIR"), ("BASE", "DATASET", "LLAMA_CPP", "MODEL_ID", "RUN")


class Run:
    """One run of a notebook into the file `executed`, with `parameters` changed."""

    def __init__(self, notebook, executed, parameters):
        self.notebook, self.executed, self.parameters = notebook, executed, parameters
        self.number = notebook.name[:2] if notebook.name[:2].isdigit() else notebook.stem

    def values(self):
        """The value of each parameter, by name."""
        defaults = papermill.inspect_notebook(self.notebook).values()
        return {parameter["name"]: literal(parameter["default"]) for parameter in defaults} | self.parameters

    def keep_apart(self):
        """Let changed parameters have an output folder of their own, unless they name one: a run goes on in its own."""
        if "OUTPUT_DIR" in self.values() and "OUTPUT_DIR" not in self.parameters:
            self.parameters["OUTPUT_DIR"] = f"outputs/{self.notebook.stem}_{digest(self.parameters)[:8]}"

    def needs(self):
        """The numbers of the other notebooks whose outputs its parameters name."""
        return set(OUTPUTS.findall(" ".join(map(str, self.values().values())))) - {self.number}

    def start(self):
        """Gets the progress ready, and gives it."""
        cells = nbformat.read(self.notebook, as_version=4).cells
        self.progress = Progress(len(cells), f"{self.number}  ")
        return self.progress

    def execute(self):
        """Run papermill; None, or what went wrong as a text."""
        try:
            papermill.execute_notebook(
                self.notebook,
                self.executed,
                self.parameters,
                engine_name=ENGINE,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                stdout_file=self.progress,
                folder=self.notebook.parent,
            )
        except PapermillExecutionError as error:
            return str(error)
        except Exception as error:  # the kernel did not start, or died, as it does when memory runs out
            return f"{type(error).__name__}: {error}"
        return None


def run_all(runs, at_once, finish=lambda run: []):
    """Execute `runs`, so many at once; False, with the failure printed, when a cell fails.

    `finish` is called with each run that was without errors, and gives lines to print.
    """
    order, waiting, running, begun = in_order(runs), [], {}, 0
    with ThreadPoolExecutor(at_once) as pool, Display() as display:
        try:
            while order.is_active():
                waiting += order.get_ready()
                while waiting and len(running) < at_once:
                    run, begun = waiting.pop(0), begun + 1
                    display.running.append(run.start())
                    display.print(f"[{begun}/{len(runs)}] {run.notebook.name}: {run.progress.total} cells")
                    running[pool.submit(run.execute)] = run
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    run, failure = running.pop(future), future.result()
                    display.running.remove(run.progress)
                    if failure is not None:
                        display.print(*describe(run, failure))
                        return False
                    display.print(f"      {run.notebook.name}: done in {run.progress.elapsed()}", *finish(run))
                    order.done(run)
        finally:  # also on Ctrl-C
            for run in running.values():
                run.progress.stop()
    return True


def in_order(runs):
    """A sorter that gives out each run when those it needs are done; those that others need come first."""
    needs = {run: [other for other in runs if other.number in run.needs()] for run in runs}
    needed = {other for others in needs.values() for other in others}
    sorter = TopologicalSorter({run: needs[run] for run in sorted(runs, key=lambda run: run not in needed)})
    sorter.prepare()
    return sorter


def describe(run, failure):
    """The lines that say which cell failed and why."""
    return (
        failure,
        f"FAILED: {run.notebook.name}, cell {run.progress.number} of {run.progress.total}, "
        f"after {run.progress.elapsed()}.",
        *(recorded_lines(run.executed) if run.executed.is_file() else ()),
        f"The notebook is unchanged; the run up to the failure is in {run.executed}",
    )


def write_back(run):
    """Replace the notebook by its cleaned executed copy in one step, and remove the copy. Gives lines to print."""
    notebook = run.notebook
    node = nbformat.read(run.executed, as_version=4)
    clean(node, notebook.parent, notebook.parent.parent)
    with atomic_file(notebook, encoding="utf-8") as file:
        nbformat.write(node, file)
    run.executed.unlink()
    kilobytes = notebook.stat().st_size / 1000
    if kilobytes > LARGE_KB:
        return [f"      {notebook.name} has {kilobytes:.0f} kB, over {LARGE_KB} kB: make its images smaller"]
    return []


def select(folder, numbers):
    """The notebooks of `folder` whose names begin with one of `numbers`; all of them without numbers."""
    notebooks = readme_tables.find_notebooks(folder)
    if not notebooks:
        sys.exit(f"no notebook (*.ipynb) in {folder}")
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


def from_here(name, value):
    """The value of a parameter of the command line, absolute where it is a path: the kernels run elsewhere."""
    if not isinstance(value, str) or not value:
        return value
    is_path = name.endswith(PATHS) or (name in NAMES_OR_PATHS and os.path.exists(value))
    return os.path.abspath(value) if is_path else value


def recorded_lines(notebook):
    """What a notebook recorded, a line each, and which of its claims were met."""
    records = read_records(notebook)
    rows = [readme_tables.readable(*figure) for figure in readme_tables.figures(records).items()]
    width = max((len(label) for label, _ in rows), default=0)
    lines = [f"    {label:<{width}}  {text}" for label, text in rows]
    claims = records.get(CLAIMS, {})
    if claims and set(claims.values()) == {"met"}:
        return [*lines, f"    claims: {len(claims)} met"]
    return [*lines, *(f"    {verdict}: {claim}" for claim, verdict in claims.items())]


def show_records(notebooks):
    """Print what the notebooks recorded."""
    print("\nRecorded results")
    for notebook in notebooks:
        print(f"  {notebook.stem}", *recorded_lines(notebook), sep="\n")


def parse(arguments):
    parser = argparse.ArgumentParser(description="Run the notebooks and write their outputs back into them.")
    add = parser.add_argument
    add(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="NN",
        help="the notebooks' numbers, or beginnings of names",
    )
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter")
    add("--at-once", type=int, metavar="N", help="notebooks that run at the same time: 2, or with -p 1")
    add("--folder", type=Path, default=readme_tables.ROOT / "notebooks", help="where the notebooks are")
    return parser.parse_args(arguments)


def prepare_kernels(one_thread):
    """Set what the kernels inherit: this Python, and one thread each where the outputs are to be kept.

    The outputs must not depend on how many run at once, and sums over other numbers of threads round differently.
    """
    os.environ["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))  # before any kernel of the machine
    if one_thread:
        os.environ["OMP_NUM_THREADS"] = "1"


def main(arguments=None):
    options = parse(arguments)
    folder = options.folder.resolve()
    notebooks = select(folder, options.only)
    parameters = {name: from_here(name, literal(value)) for name, value in options.p}
    outputs = folder.parent / "outputs"
    runs = [Run(notebook, outputs / notebook.name, parameters_for(notebook, parameters)) for notebook in notebooks]
    unknown = set(parameters).difference(*(run.parameters for run in runs))
    if unknown:
        sys.exit(f"no parameters cell sets {', '.join(sorted(unknown))}")

    for run in runs if parameters else ():
        run.keep_apart()
    outputs.mkdir(exist_ok=True)
    at_once = options.at_once or (1 if parameters else 2)
    prepare_kernels(one_thread=at_once > 1 or not parameters)
    if parameters:
        if not run_all(runs, at_once):
            return 1
        show_records([run.executed for run in runs])
        print(f"\nThe notebooks are unchanged; the runs with {parameters} are in {outputs}")
        return 0
    for run in runs:  # what is written back shows a whole run, not one that goes on from checkpoints
        shutil.rmtree(folder / "outputs" / run.number, ignore_errors=True)
    if not run_all(runs, at_once, write_back):
        return 1
    show_records(readme_tables.find_notebooks(folder))
    print()
    return readme_tables.main(["--folder", str(folder)])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted: the notebooks that were running are unchanged")
