"""Sets a hosted notebook (Colab, Kaggle) up. The set-up cell of every notebook fetches this file and calls `set_up`.

What the image brings along stays where it fits the bounds in pyproject.toml, and torch, NumPy, Pillow and what else a
kernel runs on stay always: replaced under a running kernel they can crash it. Needs only `packaging`.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = "vlm-notebooks"  # where a hosted notebook keeps the project, under its working directory
MARKER = ".git/made-by-set-up"  # in such a folder only, not in a checkout that somebody made
LOADED = "VLMHELPERS_LOADED"  # the packages that this kernel has loaded, with their versions then; a restart forgets it
KEPT = re.compile(
    "torch|torchvision|torchaudio|triton|numpy|pandas|pillow|matplotlib|ipywidgets|ipython|ipykernel|tornado|pyzmq|"
    "traitlets|notebook|jupyter.*"
)
HARMLESS = {"certifi"}  # a file of certificates, whose path stays
REASONS = {
    r"No space left|Disk quota": "the disk is full; delete files",
    r"resolve host|name resolution|dns error|error sending request|Failed to (fetch|connect|establish)|timed out|"
    r"unreachable|Connection (refused|reset)": "no network; on Kaggle switch Internet on in the notebook's settings",
    r"No solution found|ResolutionImpossible|conflicting|No matching distribution": "what the notebooks need and what "
    "this image brings exclude each other; choose another version of the image (Colab: Runtime, Change runtime type)",
    r"does not (exist|appear)|not found|could not read Username": "nothing is there; correct the address in REPOSITORY",
}


class Stop(Exception):
    """Ends a cell with a sentence in place of a traceback."""

    def _render_traceback_(self):
        return [str(self)]


def set_up(repository):
    """Clone `repository` unless it is there, install what it lacks here, and change into its folder of notebooks.

    In a checkout that somebody made nothing is installed. Raises Stop with what to do when something is missing.
    """
    if sys.version_info < (3, 11):  # noqa: UP036
        raise Stop("The notebooks need Python 3.11 or newer; this kernel runs " + sys.version.split()[0] + ".")
    root = find_checkout() or clone(repository)
    if (root / MARKER).is_file():
        limit_gpus()
        install(root)
        os.chdir(root / "notebooks")
    else:
        check(root)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
        others = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(root) + (os.pathsep + others if others else "")  # for the commands of notebooks


def find_checkout():
    """The project's folder: the parent of the working directory, or cloned into that before; else None."""
    return next((path.resolve() for path in (Path(".."), Path(FOLDER)) if (path / "tools/hosted.py").is_file()), None)


def clone(repository):
    """Clone `repository` into the working directory, whole or not at all; gives the folder."""
    target = Path(FOLDER).resolve()
    if target.exists():
        raise Stop(f"{target} is something else than this project: rename it, then run this cell again.")
    for abandoned in target.parent.glob(f".{FOLDER}-*"):  # by a kernel that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    print(f"Cloning {repository} into {target}")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{FOLDER}-", dir=target.parent) as draft:
            run(["git", "clone", "--quiet", "--depth", "1", repository, f"{draft}/clone"])
            Path(draft, "clone", MARKER).touch()
            Path(draft, "clone").rename(target)
    except OSError as error:
        raise Stop(f"{repository} was not cloned: {reason(error)}; then run this cell again.") from None
    return target


def install(root):
    """Install what is missing or out of bounds, optional packages where that works, and print what changed."""
    before, (required, optional) = installed(), declared(root)
    under_kernel = {name: before[name] for name in loaded() & before.keys()} | json.loads(os.environ.get(LOADED, "{}"))
    os.environ[LOADED] = json.dumps(under_kernel)  # for the next try, should this one fail half way
    kept = {name: number for name, number in before.items() if KEPT.fullmatch(name)}
    for name in kept.keys() & faulty(required, before):
        print(f"{name} stays at {kept[name]}, although only {required[name]} was tried")
    bounds = [f"{name}=={number}" for name, number in kept.items()]
    bounds += [f"{name}{tried}" for name, tried in required.items() if name not in kept]
    add({name: tried for name, tried in faulty(required, before).items() if name not in kept}, bounds)
    try:
        add(faulty(optional, before), bounds)
    except Stop as stop:
        print(f"Going on without an optional package. {stop}")
    importlib.invalidate_caches()
    after = installed()
    print_changes(before, after)
    if stale := sorted(name for name in under_kernel.keys() - HARMLESS if after.get(name) != under_kernel[name]):
        how = "restart it (Colab: Runtime, Restart session; Kaggle: Run, Restart) and run the notebook from the top"
        raise Stop(f"{', '.join(stale)} changed while this kernel had an older version loaded: {how}.")


def check(root):
    """Raise Stop when a required package is missing; print those in versions that were not tried."""
    found, (required, _) = installed(), declared(root)
    wanted = faulty(required, found)
    if missing := [name for name in wanted if name not in found]:
        remedy = "`make lab` in the project's folder builds an environment with all of them and opens JupyterLab"
        raise Stop(f"Not installed: {', '.join(missing)}. In a checkout this cell installs nothing: {remedy}.")
    for name, tried in wanted.items():
        print(f"{name} is {found[name]}; only {tried} was tried")


def declared(root):
    """What pyproject.toml asks for here, as two dictionaries of name -> versions tried: required, and optional."""
    import tomllib

    project = tomllib.loads(Path(root, "pyproject.toml").read_text(encoding="utf-8"))
    extras, found = project["project"]["optional-dependencies"], installed()
    beside = bounds_of(project["tool"]["vlmhelpers"]["where-installed"])
    required = bounds_of(project["project"]["dependencies"]) | {n: beside[n] for n in beside if n in found}
    return required, bounds_of(extras["unsloth"]) if gpu_count() else {}


def bounds_of(lines):
    """Name -> versions, of those requirements whose marker holds here."""
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(one.name): one.specifier for one in parsed if not one.marker or one.marker.evaluate()}


def installed():
    """Name -> version, of the packages of this environment."""
    return {canonicalize_name(one.name): one.version for one in reversed(list(distributions())) if one.name}


def faulty(bounds, found):
    """The part of `bounds` that `found`, name -> version, does not meet."""
    return {n: b for n, b in bounds.items() if n not in found or not b.contains(found[n], prereleases=True)}


def loaded():
    """The names of the packages that this kernel has loaded a module of."""
    modules = packages_distributions().items()
    return {canonicalize_name(name) for module, names in modules if module in sys.modules for name in names}


def add(wanted, bounds):
    """Install `wanted`, name -> versions, within `bounds`; raises Stop."""
    if not wanted:
        return
    print(f"Installing {', '.join(wanted)} and what they need: a minute or two")
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("\n".join(bounds), encoding="utf-8")
        installer = [sys.executable, "-m", "pip", "install", "--quiet"]
        if uv := shutil.which("uv"):
            installer = [uv, "pip", "install", "--quiet", "--python", sys.executable]
        try:
            run([*installer, "--constraint", str(constraints), *(f"{name}{tried}" for name, tried in wanted.items())])
        except OSError as error:
            raise Stop(f"{', '.join(wanted)} not installed: {reason(error)}; then run this cell again.") from None


def print_changes(before, after):
    """Print which packages were changed and added, and that the most important ones were not."""
    changed = [
        f"{name} {before[name]} -> {after[name]}" for name in before if after.get(name, before[name]) != before[name]
    ]
    added = [f"{name} {after[name]}" for name in after if name not in before]
    for title, lines in (("changed", changed), ("added", added)):
        if lines:
            print(f"{title}: {', '.join(sorted(lines))}")
    stays = ", ".join(f"{name} {after[name]}" for name in ("torch", "numpy", "pandas", "pillow") if name in before)
    print(f"left as this image brings them: {stays}" if changed or added else "all packages are there")


def gpu_count():
    """How many GPUs the driver shows."""
    try:
        return sum(line.startswith("GPU ") for line in run(["nvidia-smi", "--list-gpus"]).splitlines())
    except OSError:
        return 0


def limit_gpus():
    """Leave this kernel the first of several GPUs, unless CUDA_VISIBLE_DEVICES is set. Before torch is imported."""
    if gpu_count() > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"
        print("Several GPUs: using the first (CUDA_VISIBLE_DEVICES=0); set that variable before this cell for others.")


def run(command):
    """What a command printed; raises OSError with that when it fails or does not exist."""
    done = subprocess.run(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
    )
    if done.returncode:
        raise OSError(done.stdout)
    return done.stdout


def reason(error):
    """Why a command failed and what to do, in half a sentence."""
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} is not installed here; install it"
    known = (words for pattern, words in REASONS.items() if re.search(pattern, str(error), re.IGNORECASE))
    return next(known, str(error).strip().rpartition("\n")[2])
